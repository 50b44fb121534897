//! A guest without an operating system: it finds devices on the PCI bus, drives them by the specification, and says over the serial
//! port how that went. What it does is in `bare/`; this holds what came of compiling that.
//!
//! Its command line has the names of what it is to do, in order; see `bare/main.rs`. Lines that it prints begin with `CHECK`, `NOTE` or,
//! where it went wrong itself, with `GUEST`.

/// The guest, an ELF file as a kernel is.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));
