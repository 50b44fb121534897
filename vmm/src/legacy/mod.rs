//! The few parts of a PC that kernels expect beside PCI devices: serial port, clock, power management, reset lines, generation.

pub mod cmos;
pub mod generation;
pub mod power;
pub mod reset;
pub mod serial;
