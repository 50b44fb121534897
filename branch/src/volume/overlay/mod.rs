//! A desktop's private writes: an append-only, encrypted log over a read-only version.
//!
//! - One overlay serves all disks of a desktop, and one sequence orders their records.
//! - An acknowledged write is in the kernel (it survives the death of this process); an acknowledged flush covers every write
//!   that completed before it began, on any disk, and survives the loss of power.
//! - After a stop of any kind the log is a prefix of what was appended. Damage within what was flushed closes the overlay with
//!   an error that names file and offset ([`replay`]).
//! - What guests wrote is encrypted under the desktop's key, and all of the log is authenticated ([`seal`]): without the key it is noise,
//!   and nobody without it can change, reorder or replay a part of it.
//! - ENOSPC undoes the append; the write waits for room, then may be tried again ([`room`]). Any other error of a write or sync closes the
//!   overlay for good: Linux reports a write-back error once and may drop the data, so a later success would mean nothing.
//! - What is not at the datacenter yet can be read for it, and is not given up before it is there ([`sending`], [`changes`]).
//! - Space, memory and the time to open are bounded by [`compact`] and [`checkpoint`], which a thread of the branch calls again and again.
//!
//! Locks, outermost first: `upkeep` (one step of housekeeping at a time), `writer` orders appends, `map` is the readers' view; `flush`
//! elects the one who syncs, `sending` is taken inside any of them. No lock but `upkeep` is held while the log is read or synced. The format is
//! `docs/disk-formats/overlay.md`. It does not keep keys, does not decide when to do its housekeeping, and has no lock against a second
//! process. An old copy of the whole directory put in the place of a newer one is not noticed here: the desktop's lease does that.

mod changes;
mod checkpoint;
mod compact;
mod error;
mod flush;
mod format;
mod fuzz;
#[cfg(test)]
mod golden_tests;
mod index;
mod map;
mod meta;
mod moves;
mod open;
mod packed;
mod read;
mod replay;
mod room;
mod seal;
mod sending;
mod settle;
mod snapshot;
mod writer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, RwLock};
use std::time::Duration;

use dedup::VersionId;
use dedup_store::disk::Disk;

pub use changes::{Change, Changes};
pub use compact::Tended;
pub use error::OverlayError;
pub(crate) use format::{PIECE_BYTES, SECTOR_BYTES};
pub use fuzz::{fuzz_index_snapshot, fuzz_overlay};
pub(crate) use map::{Part, Source};
pub use room::Shortage;
pub use seal::{FillRandom, OverlayKey};

use compact::Upkeep;
use map::Map;
use meta::Meta;
use room::Room;
use seal::{Form, LogKey};
use sending::Sending;
use writer::Writer;

/// Whose overlay it is. All of it is checked when one is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayIdentity {
    /// The desktop.
    pub desktop: [u8; 16],
    /// The version that the overlay lies over.
    pub base: VersionId,
    /// Sizes of the desktop's disks in bytes, multiples of 512; at least one, at most 16.
    pub disks: Vec<u64>,
}

/// What is in an overlay's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayState {
    /// Nothing: it is to be made.
    Absent,
    /// A log that an earlier release wrote in the clear.
    Plain,
    /// An encrypted log.
    Sealed,
}

/// How an overlay is kept.
#[derive(Debug, Clone, Copy)]
pub struct OverlayOptions {
    /// Length in bytes at which a segment is full, at most 128 MiB. A record may reach past it.
    pub segment_bytes: u64,
    /// Bytes of log after which a new index snapshot is due, or four times the snapshot's length if that is more: what opening reads.
    pub snapshot_bytes: u64,
    /// Most extents that are kept in memory, about 22 bytes each. Then writes wait until compaction has joined some.
    pub extents_max: u64,
    /// How long a write waits for room on the host's disk before the guest is told.
    pub room_wait: Duration,
    /// Bytes that guests' data leaves free on the host's disk, for everything else that the branch server keeps there. 0: none.
    pub floor_bytes: u64,
}

impl Default for OverlayOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            snapshot_bytes: 64 << 20,
            // 370 MB, or 64 GiB of 4 KiB writes without a neighbour.
            extents_max: 16 << 20,
            // Less than closing an export waits for the requests in it. QEMU pauses the guest after that.
            room_wait: Duration::from_secs(8),
            floor_bytes: 256 << 20,
        }
    }
}

/// Figures about an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlayStats {
    /// Bytes in all segments.
    pub log_bytes: u64,
    /// Payload bytes that a read could still return.
    pub live_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Segment files that an earlier release left in the clear.
    pub plain_segments: u64,
    /// Extents in the in-memory index, about 22 bytes of memory each.
    pub extents: u64,
    /// Sequence number of the last record.
    pub seq: u64,
    /// Every record up to this one is durable.
    pub flushed_seq: u64,
    /// Reads that failed because the log did not verify or could not be read.
    pub read_faults: u64,
}

/// An open overlay. Cheap to share; all methods may be called from any thread.
pub struct Overlay {
    disk: Arc<dyn Disk>,
    dir: String,
    identity: OverlayIdentity,
    options: OverlayOptions,
    key: LogKey,
    writer: Mutex<Writer>,
    map: RwLock<Map>,
    /// The header file's content; only the flush leader changes it.
    meta: Mutex<Meta>,
    flush: Mutex<FlushState>,
    flushed: Condvar,
    room: Room,
    upkeep: Mutex<Upkeep>,
    /// Last record that says something new; what a flush must cover.
    guest_seq: AtomicU64,
    /// The last one of these that is durable.
    guest_durable: AtomicU64,
    /// What is at the datacenter, and what is on its way there.
    sending: Mutex<Sending>,
    /// Extents in the map, for who does not want its lock.
    extents: AtomicU64,
    /// Bytes of log read by the opening and appended since.
    appended: AtomicU64,
    durable: AtomicU64,
    read_faults: AtomicU64,
    failed: OnceLock<String>,
}

#[derive(Debug, Default)]
struct FlushState {
    syncing: bool,
}

/// Path of a file of the overlay in `dir`.
fn path(dir: &str, name: &str) -> String {
    if dir.is_empty() {
        name.to_owned()
    } else {
        format!("{dir}/{name}")
    }
}

/// Path of segment `number`.
fn segment_name(dir: &str, number: u32) -> String {
    path(dir, &format!("{number:010}.seg"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("no code panics while it holds this lock")
}

impl Overlay {
    /// Why it failed closed, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    /// Directory of the overlay within its disk.
    pub fn dir(&self) -> &str {
        &self.dir
    }

    /// Whose overlay it is.
    pub fn identity(&self) -> &OverlayIdentity {
        &self.identity
    }

    /// Every record up to this sequence number is durable.
    pub fn flushed_seq(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Whether nothing was ever written, zeroed or discarded in it: every byte is the base's.
    pub fn is_unwritten(&self) -> bool {
        let stats = self.stats();
        // A record that was taken back, or that others have overwritten, leaves its number.
        stats.seq == 0 && stats.extents == 0
    }

    /// Figures for the console and for eviction decisions.
    pub fn stats(&self) -> OverlayStats {
        let map = self.map_read();
        OverlayStats {
            log_bytes: map.log_bytes(),
            live_bytes: map.segments.values().map(|s| s.live_payload).sum(),
            segments: map.segments.len() as u64,
            plain_segments: map
                .segments
                .values()
                .filter(|s| s.form == Form::Plain)
                .count() as u64,
            extents: map.extents(),
            seq: map.segments.values().next_back().map_or(0, |s| s.last_seq),
            flushed_seq: self.flushed_seq(),
            read_faults: self.read_faults.load(Ordering::Relaxed),
        }
    }

    fn map_read(&self) -> std::sync::RwLockReadGuard<'_, Map> {
        self.map
            .read()
            .expect("no code panics while it holds this lock")
    }

    fn map_write(&self) -> std::sync::RwLockWriteGuard<'_, Map> {
        self.map
            .write()
            .expect("no code panics while it holds this lock")
    }

    /// Refuses once a write or sync has failed.
    fn check_alive(&self) -> Result<(), OverlayError> {
        match self.failed.get() {
            None => Ok(()),
            Some(why) => Err(OverlayError::Failed {
                dir: self.dir.clone(),
                why: why.clone(),
            }),
        }
    }

    /// Closes the overlay because of `error`, which it hands back.
    fn fail(&self, error: OverlayError) -> OverlayError {
        let mut why = error.to_string();
        if let OverlayError::Io { source, .. } = &error {
            why = format!("{why}: {source}");
        }
        tracing::error!(overlay = %self.dir, why, "overlay closed: what was not flushed may be lost");
        // The first reason is the one that matters.
        let _ = self.failed.set(why);
        error
    }

    fn no_space(&self) -> OverlayError {
        OverlayError::NoSpace {
            dir: self.dir.clone(),
        }
    }
}
