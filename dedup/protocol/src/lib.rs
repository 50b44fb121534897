//! What datacenter and branch say to each other, as values: signed records, wire messages, and both ends' state machines.
//!
//! Nothing here does I/O or reads a clock: time is an argument, frames go in and come out. `docs/wire.md` tells it byte by byte.

pub mod client;
pub mod control;
pub mod join;
pub mod people;
pub mod policy;
pub mod profile;
pub mod records;
pub mod restore;
pub mod server;
pub mod state;
pub mod trust;
pub mod update;
pub mod wipe;
pub mod wire;
