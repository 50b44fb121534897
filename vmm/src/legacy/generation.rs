//! The generation of a machine (Microsoft, "Virtual Machine Generation ID"): sixteen bytes in the guest's memory that are others after each
//! resume, and an interrupt that tells so. A Linux of 5.18 or later draws new randomness then: two machines that go on from one snapshot
//! must not have the same keys to come.
//!
//! The device is in the DSDT (`\_SB.VGEN`, found by the id VM_Gen_Counter), as in QEMU and Firecracker; the bytes are in the range that
//! the memory map reserves for tables, so that no kernel uses them for anything else. The interrupt belongs to an event device.

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::layout::GENERATION;
use crate::machine::memory::Memory;

/// Bytes of a generation.
pub const BYTES: usize = 16;

/// Why there is no new one.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// No randomness.
    #[error("random bytes")]
    Random(#[source] io::Error),
    /// Ours.
    #[error("write the machine's generation")]
    Write(#[source] GuestMemoryError),
    /// The guest cannot be told.
    #[error("tell the guest of its generation")]
    Tell(#[source] io::Error),
}

fn random() -> Result<[u8; BYTES], GenerationError> {
    let mut bytes = [0; BYTES];
    // SAFETY: the buffer has so many bytes.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), BYTES, 0) };
    // As few bytes as these come whole or not at all.
    if got == BYTES as isize {
        Ok(bytes)
    } else {
        Err(GenerationError::Random(io::Error::last_os_error()))
    }
}

/// Gives a machine a generation that no other has.
///
/// # Errors
/// There is no randomness.
pub fn renew(memory: &Memory) -> Result<(), GenerationError> {
    let written = memory.write_slice(&random()?, GuestAddress(GENERATION));
    written.map_err(GenerationError::Write)
}

/// The generation that a machine has.
///
/// # Errors
/// Never: it has memory there.
pub fn read(memory: &Memory) -> Result<[u8; BYTES], GuestMemoryError> {
    memory.read_obj(GuestAddress(GENERATION))
}

/// Has the guest look at its generation.
///
/// # Errors
/// The event cannot be written.
pub fn tell(event: &EventFd) -> Result<(), GenerationError> {
    event.write(1).map_err(GenerationError::Tell)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory;

    #[test]
    fn each_generation_is_another_one() {
        let memory = memory::create(64).expect("memory");
        renew(&memory).expect("randomness");
        let first = read(&memory).expect("memory");
        renew(&memory).expect("randomness");
        let second = read(&memory).expect("memory");
        assert!(first != second && second != [0; BYTES]);
    }
}
