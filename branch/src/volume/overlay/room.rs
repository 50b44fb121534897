//! What happens while the host's disk has no room for what a guest writes, or the index none.
//!
//! Writes wait and reads go on: a write that finds no room is tried again until there is some or its patience ends, and then the guest is
//! told, whose machine pauses. They wait before the disk is full to the last byte: a floor stays free ([`Overlay::check_floor`]), without which
//! nothing that frees room, and no start of the branch server, could write a line. Nothing that was acknowledged is touched. That room is short is remembered and told outside until a
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
/// Most bytes of guests' data that one overlay appends before it looks at the host's disk again.
const LOOK_EVERY_BYTES: u64 = 4 << 20;
/// One overlay appends at most this part of what is above the floor before it looks again: so many of them together stay above it.
const LOOK_SHARES: u64 = 256;

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
                    // What takes no room says nothing of it.
                    if bytes > 0 {
                        self.room.came();
                    }
                    // What a sync that failed meanwhile has closed is not acknowledged.
                    self.check_alive()?;
                    return Ok(done);
                }
                Err(error) => error,
            };
            let lack = match &error {
                OverlayError::NoSpace { .. } => {
                    Lack::Disk(bytes + ROOM_BYTES + self.options.floor_bytes)
                }
                OverlayError::IndexFull { .. } => Lack::Index,
                _ => return Err(error),
            };
            let patience = self.options.room_wait.saturating_sub(begun.elapsed());
            if !self.room.wait(lack, patience) {
                return Err(error);
            }
        }
    }

    /// Refuses a guest's data if less than the floor would stay free on the host's disk. Only data: what gives room back is taken.
    /// `allowed_bytes` is what the overlay may append before it asks the disk again; a disk that does not say has no floor.
    pub(super) fn check_floor(
        &self,
        allowed_bytes: &mut u64,
        bytes: u64,
    ) -> Result<(), OverlayError> {
        let floor = self.options.floor_bytes;
        if floor == 0 || bytes == 0 {
            return Ok(());
        }
        if let Some(left) = allowed_bytes.checked_sub(bytes) {
            *allowed_bytes = left;
            return Ok(());
        }
        *allowed_bytes = 0;
        let Ok(free) = self.disk.available_bytes() else {
            return Ok(());
        };
        let Some(above) = free.checked_sub(floor.saturating_add(bytes)) else {
            return Err(self.no_space());
        };
        *allowed_bytes = (above / LOOK_SHARES).min(LOOK_EVERY_BYTES);
        Ok(())
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
