//! The few parts of a PC that kernels expect beside PCI devices: serial port, clock, power management, reset lines.

pub mod cmos;
mod log;
pub mod power;
pub mod reset;
pub mod serial;
