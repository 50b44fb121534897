//! Requests in flight, in memory that outlives this process: the front-end keeps it and hands it to the next server.
//!
//! The layout is the protocol's ("Inflight I/O tracking", split virtqueue), so that another server may take over from us or we from it:
//!
//! ```text
//! a queue's part, aligned to 64 bytes:
//!   0 features u64 | 8 version u16 | 10 entries u16 | 12 head of the last batch u16 | 14 used index u16
//!   16 + 16 * head:  in flight u8 | padding | +6 next in the batch u16 | +8 counter u64
//! ```
//!
//! Invariant: a head that was taken and is not in the used ring yet is marked. Heads are marked in the order of the available ring, so
//! those taken so far are the used ones and the marked ones, and the next to take follows from their number. The front-end may write
//! anything into this memory at any time: what is read of it is checked.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory};

use super::memory::{MapError, map_file};
use super::wire::InflightPlace;

const ALIGN: usize = 64;
const HEAD_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;

const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const BATCH_AT: usize = 12;
const USED_AT: usize = 14;
/// In an entry.
const NEXT_AT: usize = 6;
/// In an entry.
const COUNTER_AT: usize = 8;

const VERSION: u16 = 1;

fn queue_bytes(queue_size: u16) -> usize {
    (HEAD_BYTES + ENTRY_BYTES * usize::from(queue_size)).next_multiple_of(ALIGN)
}

/// Why there is no such memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflightError {
    #[error("memory for {0:?} does not fit its queues")]
    Layout(InflightPlace),
    #[error("memory of version {0}, not {VERSION}")]
    Version(u16),
    #[error("it does not tell what is in flight")]
    Spoilt,
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("memory file")]
    File(#[source] std::io::Error),
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Inflight {
    region: Arc<MmapRegion<()>>,
    queues: u16,
    queue_size: u16,
}

impl Inflight {
    /// Fresh memory for so many queues, as a file, and where it lies in it.
    pub(crate) fn create(
        queues: u16,
        queue_size: u16,
    ) -> Result<(InflightPlace, OwnedFd), InflightError> {
        let failed = |error: rustix::io::Errno| InflightError::File(error.into());
        let len = (queue_bytes(queue_size) * usize::from(queues)) as u64;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("vhost-user-inflight", flags).map_err(failed)?;
        ftruncate(&file, len).map_err(failed)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(failed)?;
        let place = InflightPlace {
            len,
            offset: 0,
            queues,
            queue_size,
        };
        Ok((place, file))
    }

    /// Takes memory that the front-end has kept.
    pub(crate) fn attach(place: InflightPlace, file: OwnedFd) -> Result<Self, InflightError> {
        let needed = queue_bytes(place.queue_size) * usize::from(place.queues);
        if needed == 0 || place.queue_size == 0 || place.len < needed as u64 {
            return Err(InflightError::Layout(place));
        }
        // No more of it than is used.
        let region = map_file(file, place.offset, needed as u64)?;
        Ok(Self {
            region: Arc::new(region),
            queues: place.queues,
            queue_size: place.queue_size,
        })
    }

    /// A queue's part, for a queue of `size` entries whose used ring is at `used`. Also the heads that are to be worked on again, in
    /// order.
    pub(crate) fn open(
        &self,
        queue: u16,
        size: u16,
        used: u16,
    ) -> Result<(QueueLog, Vec<u16>), InflightError> {
        if queue >= self.queues || size > self.queue_size {
            return Err(InflightError::Spoilt);
        }
        let mut log = QueueLog {
            region: Arc::clone(&self.region),
            base: queue_bytes(self.queue_size) * usize::from(queue),
            size,
            counter: 0,
        };
        let heads = log.recover(self.queue_size, used)?;
        Ok((log, heads))
    }
}

/// One queue's part.
pub(crate) struct QueueLog {
    region: Arc<MmapRegion<()>>,
    base: usize,
    /// Heads are below this.
    size: u16,
    counter: u64,
}

impl QueueLog {
    fn put<T: AtomicAccess>(&self, at: usize, value: T) {
        let memory = self.region.as_volatile_slice();
        // In this order and no other: the next server sees what was done up to any moment.
        memory
            .store(value, self.base + at, Ordering::SeqCst)
            .expect("the layout fits the memory and is aligned");
    }

    fn get<T: AtomicAccess>(&self, at: usize) -> T {
        let memory = self.region.as_volatile_slice();
        memory
            .load(self.base + at, Ordering::SeqCst)
            .expect("the layout fits the memory and is aligned")
    }

    fn entry(head: u16) -> usize {
        HEAD_BYTES + ENTRY_BYTES * usize::from(head)
    }

    /// What the last server left.
    fn recover(&mut self, entries: u16, used: u16) -> Result<Vec<u16>, InflightError> {
        match self.get::<u16>(VERSION_AT) {
            0 => {
                self.put(ENTRIES_AT, entries);
                self.put(USED_AT, used);
                self.put(VERSION_AT, VERSION);
                return Ok(Vec::new());
            }
            VERSION => {}
            other => return Err(InflightError::Version(other)),
        }
        // It put a batch into the used ring and did not come to unmark it.
        let batch = used.wrapping_sub(self.get(USED_AT));
        if batch > self.size {
            return Err(InflightError::Spoilt);
        }
        let mut head = self.get::<u16>(BATCH_AT);
        for _ in 0..batch {
            if head >= self.size {
                return Err(InflightError::Spoilt);
            }
            self.put(Self::entry(head), 0u8);
            head = self.get(Self::entry(head) + NEXT_AT);
        }
        self.put(USED_AT, used);
        let mut heads: Vec<(u64, u16)> = (0..self.size)
            .filter(|head| self.get::<u8>(Self::entry(*head)) != 0)
            .map(|head| (self.get(Self::entry(head) + COUNTER_AT), head))
            .collect();
        heads.sort_unstable();
        self.counter = heads
            .last()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(heads.into_iter().map(|(_, head)| head).collect())
    }

    /// A head was taken from the available ring.
    pub(crate) fn taken(&mut self, head: u16) {
        if head < self.size {
            self.put(Self::entry(head) + COUNTER_AT, self.counter);
            self.counter = self.counter.wrapping_add(1);
            self.put(Self::entry(head), 1u8);
        }
    }

    /// A head is going to be put into the used ring.
    pub(crate) fn answering(&mut self, head: u16) {
        if head < self.size {
            let before: u16 = self.get(BATCH_AT);
            self.put(Self::entry(head) + NEXT_AT, before);
            self.put(BATCH_AT, head);
        }
    }

    /// It is in the used ring, which is at `used` now.
    pub(crate) fn answered(&mut self, head: u16, used: u16) {
        if head < self.size {
            self.put(Self::entry(head), 0u8);
            self.put(USED_AT, used);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::super::memory::tests::sealed;
    use super::*;

    fn fresh(queues: u16, size: u16) -> Inflight {
        let (place, file) = Inflight::create(queues, size).unwrap();
        Inflight::attach(place, file).unwrap()
    }

    #[test]
    fn what_was_taken_and_not_answered_comes_back_in_order() {
        let inflight = fresh(2, 8);
        let (mut log, heads) = inflight.open(1, 8, 100).unwrap();
        assert!(heads.is_empty());
        for head in [5, 0, 7, 2] {
            log.taken(head);
        }
        log.answering(0);
        log.answered(0, 101);
        assert_eq!(inflight.open(1, 8, 101).unwrap().1, [5, 7, 2]);
        let (mut log, _) = inflight.open(1, 8, 101).unwrap();
        log.taken(0);
        assert_eq!(inflight.open(1, 8, 101).unwrap().1, [5, 7, 2, 0]);
        assert!(inflight.open(0, 8, 0).unwrap().1.is_empty());
    }

    #[test]
    fn a_server_that_died_between_any_two_steps_loses_and_repeats_nothing() {
        let inflight = fresh(1, 4);
        let (mut log, _) = inflight.open(0, 4, 0).unwrap();
        log.taken(1);
        log.taken(3);
        log.answering(3);
        // Not in the used ring yet.
        assert_eq!(inflight.open(0, 4, 0).unwrap().1, [1, 3]);
        // In it, but not unmarked.
        assert_eq!(inflight.open(0, 4, 1).unwrap().1, [1]);
        assert_eq!(inflight.open(0, 4, 1).unwrap().1, [1]);
    }

    #[test]
    fn memory_that_does_not_fit_is_refused() {
        let place = |len, queues, queue_size| InflightPlace {
            len,
            offset: 0,
            queues,
            queue_size,
        };
        for (wrong, bytes) in [
            (place(4096, 0, 8), 4096),
            (place(4096, 1, 0), 4096),
            (place(4096, 1, 256), 4096),
            (place(1 << 20, 1, 256), 4096),
            (place(u64::MAX, u16::MAX, u16::MAX), 4096),
        ] {
            assert!(Inflight::attach(wrong, sealed(bytes)).is_err(), "{wrong:?}");
        }
        let inflight = fresh(2, 8);
        assert!(inflight.open(2, 8, 0).is_err());
        assert!(inflight.open(0, 16, 0).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_heads_that_exist_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 192),
            used in any::<u16>(),
            version in 0..3u16,
        ) {
            let inflight = fresh(1, 8);
            let memory = inflight.region.as_volatile_slice();
            memory.write_slice(&bytes[..queue_bytes(8)], 0).unwrap();
            memory.write_obj(version, VERSION_AT).unwrap();
            if let Ok((_, mut heads)) = inflight.open(0, 8, used) {
                prop_assert!(heads.iter().all(|head| *head < 8));
                heads.sort_unstable();
                heads.dedup();
                prop_assert!(heads.len() <= 8);
            }
        }
    }
}
