//! WAN emulator: what the project's network claims are measured over.
//!
//! One impairment model ([`model::Pipe`], pure, on a virtual clock) stands behind three ways to use it: a TUN link
//! between two network namespaces ([`tun`], root, any program), a UDP and a TCP proxy ([`proxy`], no root), and the
//! model itself inside a simulation. [`control`] steers running links and reads their counters; [`accuracy`] measures
//! what the emulator itself delivers.
//!
//! Invariant: every packet offered to a link is delivered, dropped with its cause counted, or still on its way.
//!
//! This crate depends on no other crate of the project, and it does not emulate the kernel's network stack: MTU,
//! fragmentation and congestion control are those of the programs and kernels at either end.

pub mod accuracy;
pub mod control;
pub mod link;
pub mod model;
pub mod profile;
pub mod proxy;
mod sys;
pub mod tun;

pub use link::{Controlled, Direction, LinkState, LinkStats};
pub use profile::{Profile, Profiles};
