//! Memory that the guest gives back: by a balloon that the host sizes, and by reports of free pages.
//!
//! What comes back is punched out of the memory file, so that the host has it at once; the guest reads zeros there if it touches it
//! again. A guest decides what it gives, but only pages of its own memory are touched.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use virtio_queue::Reader;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::ring::{Chain, Interrupt, Ring};
use super::state::{DeviceState, DeviceStateError};
use super::worker::{Handler, Worker};
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::bus::lock;
use crate::machine::memory::Memory;

const QUEUE_SIZE: u16 = 128;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The third queue: there is no queue of statistics, so reports come next.
const REPORT: usize = 2;

/// Pages are counted in 4 KiB whatever the guest uses.
const PAGE_SHIFT: u32 = 12;
const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
/// Page numbers read at a time.
const NUMBERS: usize = 256;
/// Most page numbers of one chain: Linux sends 256, Windows 1,024. Each may cost a system call, so one chain must not have billions; what
/// it has beyond stays in the guest.
const NUMBERS_MAX: usize = 4096;
/// Most ranges of free pages of one chain: Linux reports 32.
const RANGES_MAX: usize = 256;

mod features {
    /// The guest takes pages back by itself before it kills programs.
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The guest reports pages that are free.
    pub(super) const REPORTING: u64 = 1 << 5;
}

struct Giver {
    rings: Vec<Option<Ring>>,
    memory: Memory,
}

impl Giver {
    /// Gives a range of guest memory back to the host, as far as it is memory.
    fn give(memory: &Memory, start: u64, len: u64) {
        let mut at = start.next_multiple_of(PAGE_BYTES);
        let end = start.saturating_add(len) & !(PAGE_BYTES - 1);
        while at < end {
            let Some(region) = memory.find_region(GuestAddress(at)) else {
                return;
            };
            let offset = at - region.start_addr().0;
            let len = (region.len() - offset).min(end - at);
            if let Some(file) = region.file_offset() {
                let from = (file.start() + offset) as libc::off_t;
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: no pointers; the range lies inside the region's part of the file. The guest has said that it needs none of it.
                let done =
                    unsafe { libc::fallocate(file.file().as_raw_fd(), mode, from, len as i64) };
                if done != 0 {
                    tracing::debug!(error = %std::io::Error::last_os_error(), "memory not given back");
                }
            }
            at += len;
        }
    }

    /// Page numbers that the guest puts into the balloon; runs of them are given back at once.
    fn inflate(memory: &Memory, chain: Chain<'_>) {
        let Ok(mut reader) = Reader::new(memory, chain) else {
            return;
        };
        let (mut run_start, mut run_pages) = (0u64, 0u64);
        let mut numbers = [0; NUMBERS * 4];
        for _ in 0..NUMBERS_MAX / NUMBERS {
            let len = reader.available_bytes().min(numbers.len()) & !3;
            if len == 0 || std::io::Read::read_exact(&mut reader, &mut numbers[..len]).is_err() {
                break;
            }
            for number in numbers[..len].chunks_exact(4) {
                let page = u64::from(u32::from_le_bytes(number.try_into().expect("four bytes")));
                if run_pages > 0 && page == run_start + run_pages {
                    run_pages += 1;
                    continue;
                }
                Self::give(memory, run_start << PAGE_SHIFT, run_pages << PAGE_SHIFT);
                (run_start, run_pages) = (page, 1);
            }
        }
        Self::give(memory, run_start << PAGE_SHIFT, run_pages << PAGE_SHIFT);
    }

    /// Free pages are told as the buffers of a chain.
    fn report(memory: &Memory, chain: Chain<'_>) {
        for descriptor in chain.writable().take(RANGES_MAX) {
            Self::give(memory, descriptor.addr().0, descriptor.len().into());
        }
    }
}

impl Handler for Giver {
    fn ready(&mut self, token: u64) {
        let memory = &self.memory;
        let queue = token as usize;
        if let Some(Some(ring)) = self.rings.get_mut(queue) {
            ring.drain(memory, |chain| {
                match queue {
                    INFLATE => Self::inflate(memory, chain),
                    REPORT => Self::report(memory, chain),
                    // Pages taken back are had when they are touched.
                    _ => {}
                }
                0
            });
        }
    }
}

#[derive(Default)]
struct Shared {
    /// Pages that the guest should give.
    wanted: AtomicU32,
    /// Pages that it says it gave.
    given: AtomicU32,
    interrupt: std::sync::Mutex<Option<Arc<Interrupt>>>,
}

/// Sizes a balloon from outside.
#[derive(Clone, Default)]
pub struct BalloonSize(Arc<Shared>);

impl BalloonSize {
    /// Asks the guest for so many MiB of its memory.
    pub fn ask_mib(&self, mib: u32) {
        let pages = mib.saturating_mul((1 << 20) / PAGE_BYTES as u32);
        self.0.wanted.store(pages, Ordering::Release);
        if let Some(interrupt) = &*lock(&self.0.interrupt) {
            interrupt.config_changed();
        }
    }

    /// MiB that the guest says are in the balloon.
    pub fn given_mib(&self) -> u32 {
        self.0.given.load(Ordering::Acquire) / ((1 << 20) / PAGE_BYTES as u32)
    }
}

/// What a snapshot keeps, in pages: how much was asked for, and how much the guest says it gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    wanted: u32,
    given: u32,
}

/// See the module.
#[derive(Default)]
pub struct Balloon {
    size: BalloonSize,
    worker: Option<Worker<Giver>>,
}

impl Balloon {
    /// A balloon that `size` sizes.
    pub fn new(size: BalloonSize) -> Self {
        Self { size, worker: None }
    }
}

impl Device for Balloon {
    fn kind(&self) -> Kind {
        Kind::Balloon
    }

    fn features(&self) -> u64 {
        features::DEFLATE_ON_OOM | features::REPORTING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let shared = &self.size.0;
        let mut config = shared.wanted.load(Ordering::Acquire).to_le_bytes().to_vec();
        config.extend(shared.given.load(Ordering::Acquire).to_le_bytes());
        read_from(&config, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        const GIVEN_AT: usize = 4;
        if let (GIVEN_AT, Ok(given)) = (offset, data.try_into()) {
            let given = u32::from_le_bytes(given);
            self.size.0.given.store(given, Ordering::Release);
        }
    }

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        for queue in [INFLATE, DEFLATE] {
            if started.rings.get(queue).is_none_or(Option::is_none) {
                return Err(StartError::Queue(queue));
            }
        }
        let waits: Vec<_> = started.rings.iter().flatten().collect();
        let waits: Vec<_> = waits
            .iter()
            .map(|ring| (ring.kick().as_raw_fd(), ring.index() as u64))
            .collect();
        let giver = Giver {
            rings: started.rings,
            memory: started.memory,
        };
        let worker = Worker::spawn("balloon", giver, &waits);
        self.worker =
            Some(worker.map_err(|error| StartError::Host("the balloon's thread", error))?);
        *lock(&self.size.0.interrupt) = Some(started.interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Ring>> {
        *lock(&self.size.0.interrupt) = None;
        let worker = self.worker.take();
        worker.map_or_else(Vec::new, |worker| worker.stop().rings)
    }

    fn save(&self, _: &Memory) -> Result<DeviceState, DeviceStateError> {
        let shared = &self.size.0;
        Ok(DeviceState::Balloon(BalloonState {
            wanted: shared.wanted.load(Ordering::Acquire),
            given: shared.given.load(Ordering::Acquire),
        }))
    }

    fn restore(&mut self, state: DeviceState, _: &Memory) -> Result<(), DeviceStateError> {
        let BalloonState { wanted, given } = match state {
            DeviceState::Balloon(state) => state,
            other => return Err(other.other()),
        };
        self.size.0.wanted.store(wanted, Ordering::Release);
        self.size.0.given.store(given, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_balloon_that_goes_on_has_its_size(wanted: u32, given: u32) {
            let memory = crate::machine::memory::create(64).expect("memory");
            let mut before = Balloon::default();
            before.size.0.wanted.store(wanted, Ordering::Release);
            before.write_config(4, &given.to_le_bytes());
            let saved = before.save(&memory).expect("saved");
            let bytes = postcard::to_stdvec(&saved).expect("bytes");
            let mut after = Balloon::default();
            after.restore(postcard::from_bytes(&bytes).expect("the same"), &memory).expect("taken up");
            prop_assert_eq!(after.save(&memory).expect("saved"), saved);
            let mut config = [0; 8];
            after.read_config(0, &mut config);
            prop_assert_eq!(&config[..4], &wanted.to_le_bytes());
            prop_assert!(after.restore(DeviceState::Nothing, &memory).is_err());
        }
    }
}
