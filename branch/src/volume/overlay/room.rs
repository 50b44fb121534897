//! What happens while the host's disk has no room for what a guest writes, or the index none.
//!
//! Writes wait and reads go on: a write that finds no room is tried again until there is some or its patience ends, and then the guest is
//! told, whose machine pauses. Nothing that was acknowledged is touched. That room is short is remembered and told outside until a
//! write succeeds or [`Overlay::look_for_room`] sees that there is room again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::error::OverlayError;
use super::{Overlay, lock};

/// Most writes of one overlay that wait at a time. They hold half of an export's workers at most, and the other half is for reads; it is
/// also as many requests as QEMU keeps in flight.
const WAITING_MAX: usize = 16;
/// How often a write that waits tries again.
const RETRY_EVERY: Duration = Duration::from_millis(500);
/// Free bytes on the host's disk, beyond what the write itself takes, at which a desktop goes on: less would be gone at once.
const ROOM_BYTES: u64 = 4 << 20;

/// What an overlay lacks.
#[derive(Debug, Default)]
pub struct Room {
    /// As in the state, for the path of every write.
    short: AtomicBool,
    state: Mutex<State>,
    /// There is room again.
    came: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lack: Option<Lack>,
    waiting: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// The host's disk has not so many free bytes.
    Disk(u64),
    /// The index has too many extents.
    Index,
}

/// Why writes wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// So many bytes must come free on the host's disk.
    DiskBytes(u64),
    /// The index is full: compaction has to join extents first.
    IndexFull,
}

impl Room {
    /// Whether the last write found no room.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Acquire)
    }

    /// Waits for a while. False: no longer than that, or too many wait already.
    fn wait(&self, lack: Lack, patience: Duration) -> bool {
        let mut state = lock(&self.state);
        state.lack = Some(lack);
        self.short.store(true, Ordering::Release);
        if patience.is_zero() || state.waiting >= WAITING_MAX {
            return false;
        }
        state.waiting += 1;
        let (mut state, _) = self
            .came
            .wait_timeout(state, patience.min(RETRY_EVERY))
            .expect("no code panics while it holds this lock");
        state.waiting -= 1;
        true
    }

    /// There is room.
    fn came(&self) {
        if self.is_short() {
            lock(&self.state).lack = None;
            self.short.store(false, Ordering::Release);
            self.came.notify_all();
        }
    }
}

impl Overlay {
    /// Why writes wait, if they do.
    pub fn shortage(&self) -> Option<Shortage> {
        if !self.room.is_short() {
            return None;
        }
        let lack = lock(&self.room.state).lack?;
        Some(match lack {
            Lack::Index => Shortage::IndexFull,
            // At least one: a disk that says it has enough did not take the write.
            Lack::Disk(bytes) => {
                Shortage::DiskBytes(bytes.saturating_sub(self.free_bytes()).max(1))
            }
        })
    }

    /// Does a guest's write of `bytes`, waiting for room as long as the options say.
    pub(super) fn with_room<T>(
        &self,
        bytes: u64,
        mut write: impl FnMut() -> Result<T, OverlayError>,
    ) -> Result<T, OverlayError> {
        let begun = Instant::now();
        loop {
            let error = match write() {
                Ok(done) => {
                    self.room.came();
                    // What a sync that failed meanwhile has closed is not acknowledged.
                    self.check_alive()?;
                    return Ok(done);
                }
                Err(error) => error,
            };
            let lack = match &error {
                OverlayError::NoSpace { .. } => Lack::Disk(bytes + ROOM_BYTES),
                OverlayError::IndexFull { .. } => Lack::Index,
                _ => return Err(error),
            };
            let patience = self.options.room_wait.saturating_sub(begun.elapsed());
            if !self.room.wait(lack, patience) {
                return Err(error);
            }
        }
    }

    /// Lets writes go on if there is room again; nothing happens while none waits for it.
    pub(super) fn look_for_room(&self) {
        let Some(lack) = lock(&self.room.state).lack else {
            return;
        };
        let there_is = match lack {
            Lack::Disk(bytes) => self.free_bytes() >= bytes,
            Lack::Index => self.extents.load(Ordering::Relaxed) < self.options.extents_max,
        };
        if there_is {
            self.room.came();
        }
    }

    /// Free bytes of the host's disk; 0 if it does not say.
    pub(super) fn free_bytes(&self) -> u64 {
        self.disk.available_bytes().unwrap_or(0)
    }
}
