//! What datacenter and branch say to each other, as values: signed records, wire messages, framing, and both ends' state machines.
//!
//! Nothing here does I/O or reads a clock: time is an argument, bytes go in and come out. `docs/wire.md` tells it byte by byte.

pub mod records;
pub mod trust;
