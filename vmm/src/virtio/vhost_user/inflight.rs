//! Requests that a server has taken and not answered, kept for the server that goes on with them: by this process, or in a snapshot.
//!
//! Their memory is the server's: its layout is the protocol's, and nothing of it is looked at here. A snapshot keeps its bytes. Refused:
//! memory for other queues than the disk has, or more than any disk needs.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use vmm_block::vhost_user::wire::InflightPlace;

use super::QUEUE_SIZE;
use crate::machine::memory;
use crate::virtio::state::DeviceStateError;

/// Most bytes of such memory: a disk with 16 queues needs 66 KiB.
const BYTES_MAX: usize = 1 << 20;

/// Memory for requests in flight, and where they are in it.
pub(super) type Inflight = (InflightPlace, OwnedFd);

/// Requests that are left when queues are not served any more.
pub(super) struct Left {
    pub(super) inflight: Inflight,
    /// Their server has given the queues back: it does nothing any more. Otherwise it is gone, or nobody knows.
    pub(super) is_at_rest: bool,
}

/// What a snapshot keeps of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InflightState {
    queues: u16,
    queue_size: u16,
    #[serde(with = "serde_bytes")]
    memory: Vec<u8>,
}

impl InflightState {
    /// Of requests whose server is at rest.
    pub(super) fn of((place, file): &Inflight) -> Result<Self, DeviceStateError> {
        let len = usize::try_from(place.len).unwrap_or(usize::MAX);
        if len > BYTES_MAX {
            return Err(DeviceStateError::Wrong("memory for requests in flight"));
        }
        let mut memory = vec![0; len];
        let read = file
            .try_clone()
            .and_then(|file| File::from(file).read_exact_at(&mut memory, place.offset));
        read.map_err(DeviceStateError::Inflight)?;
        Ok(Self {
            queues: place.queues,
            queue_size: place.queue_size,
            memory,
        })
    }

    /// Memory like it, for a disk with so many queues.
    pub(super) fn inflight(&self, queues: u16) -> Result<Inflight, DeviceStateError> {
        let fits = (1..=BYTES_MAX).contains(&self.memory.len());
        if !fits || (self.queues, self.queue_size) != (queues, QUEUE_SIZE) {
            return Err(DeviceStateError::Wrong("memory for requests in flight"));
        }
        let place = InflightPlace {
            len: self.memory.len() as u64,
            offset: 0,
            queues,
            queue_size: QUEUE_SIZE,
        };
        // Sealed, as servers want the memory that they share.
        let file = memory::memfd(place.len).map_err(io::Error::other);
        let file = file.and_then(|file| file.write_all_at(&self.memory, 0).map(|()| file));
        Ok((place, file.map_err(DeviceStateError::Inflight)?.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_as_it_was_and_none_of_other_disks_is_taken() {
        let state = InflightState {
            queues: 2,
            queue_size: QUEUE_SIZE,
            memory: (0..9000u32).map(|at| at as u8).collect(),
        };
        let inflight = state.inflight(2).expect("memory");
        assert_eq!(InflightState::of(&inflight).expect("read"), state);
        assert!(state.inflight(1).is_err());
        for memory in [Vec::new(), vec![0; BYTES_MAX + 1]] {
            let wrong = InflightState {
                memory,
                ..state.clone()
            };
            assert!(wrong.inflight(2).is_err());
        }
        let huge = InflightPlace {
            len: u64::MAX,
            ..inflight.0
        };
        assert!(InflightState::of(&(huge, inflight.1)).is_err());
    }
}
