//! Compaction: moving what is live out of segments that hold little of it, so that they can be dropped.
//!
//! - **Space.** While a log is longer than half as much again as what is live would take, the segment with the least in it is emptied.
//!   So a log tends to at most twice that, and two segments: the one that takes appends and the one that is being emptied.
//! - **Memory.** Above a sixteenth of the extents that an overlay may have, neighbours that came as small writes are joined.
//! - **Encryption.** Segments in the clear, which an earlier release wrote, are emptied first.
//!
//! A move is an ordinary record with the flag *moved*, appended only if its range still is what was read, under the lock of the writer. So
//! replay needs to know nothing of compaction, a guest's write is never overtaken, and a stop at any moment leaves the same content. The
//! old segment goes when the moves are durable, by the rule that holds for every segment in which nothing is live.
//!
//! It works in steps of a budget that the caller paces ([`Overlay::tend`]), and never while the disk has no room for what it moves.
//! A segment with a payload that does not verify is left alone, so that what can still be read of it can be.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::error::OverlayError;
use super::format::SEGMENT_HEADER_BYTES;
use super::map::{Map, Segment};
use super::seal::Form;
use super::{Overlay, lock};

/// Bytes that stay free on the host's disk besides what a segment's moves take.
const ROOM_BYTES: u64 = 16 << 20;
/// Bytes of log for each extent after which a new index snapshot is worth writing: four times what it takes there.
const SNAPSHOT_EXTENT_BYTES: u64 = 4 * 20;

/// What compaction does next, and what it remembers.
#[derive(Debug)]
pub struct Upkeep {
    task: Option<Task>,
    /// Segments that cannot be emptied: something in them does not verify.
    stuck: BTreeSet<u32>,
    /// Extents after the last joining: it is worth doing again when there are an eighth more.
    joined: u64,
    /// Bytes of the log at the last index snapshot, as [`Overlay`] counts them.
    snapshot_at: u64,
    /// The same when it last looked.
    seen: u64,
}

/// Something to be done, and how far it got ([`super::moves`]).
#[derive(Debug, Clone, Copy)]
pub struct Task {
    /// What is to be done.
    pub goal: Goal,
    /// The disk it is at.
    pub disk: u16,
    /// The byte of that disk it is at.
    pub at: u64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Move everything out of this segment.
    Empty(u32),
    /// Join neighbours.
    Join,
}

/// What one step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tended {
    /// Bytes that were moved within the log.
    pub moved_bytes: u64,
    /// Length of the index snapshot that was written; 0: none was due.
    pub snapshot_bytes: u64,
    /// Whether there is more to do than the budget allowed.
    pub has_more: bool,
}

impl Upkeep {
    /// Of an overlay that has just been opened, of whose log `read_bytes` were read: no snapshot covers them.
    pub fn new(read_bytes: u64) -> Self {
        Self {
            task: None,
            stuck: BTreeSet::new(),
            joined: 0,
            snapshot_at: 0,
            seen: read_bytes,
        }
    }
}

impl Overlay {
    /// One step of housekeeping: lets writes go on that waited for room, takes an index snapshot if one is due, and compacts. It moves
    /// `budget_bytes` and twice what guests have written since the last step, about: so it gains on any guest. To be called again and
    /// again, by one thread; guests' requests go on meanwhile.
    ///
    /// # Errors
    /// The overlay is closed, by this or before.
    pub fn tend(&self, budget_bytes: u64) -> Result<Tended, OverlayError> {
        self.check_alive()?;
        self.look_for_room();
        let mut upkeep = lock(&self.upkeep);
        let mut tended = Tended::default();
        let appended = self.appended.load(Ordering::Relaxed);
        let fresh = appended.saturating_sub(upkeep.seen);
        let due = self
            .options
            .snapshot_bytes
            .max(SNAPSHOT_EXTENT_BYTES * self.extents.load(Ordering::Relaxed));
        if appended.saturating_sub(upkeep.snapshot_at) >= due {
            tended.snapshot_bytes = self.write_snapshot()?;
            // One that has to wait is tried again after an eighth as much more.
            let is_there = tended.snapshot_bytes > 0;
            let ahead = if is_there { 0 } else { due - due / 8 };
            upkeep.snapshot_at = appended.saturating_sub(ahead);
        }
        if (fresh > 0 || (self.room.is_short() && self.has_unsettled())) && self.is_long() {
            // Of a guest that does not flush: what it overwrote can go once what replaced it is durable.
            self.flush_all()?;
        }
        let budget = budget_bytes.saturating_add(fresh.saturating_mul(2));
        let worked = self.compact(&mut upkeep, budget, &mut tended);
        // What it moved itself is no reason to move more.
        upkeep.seen = self.appended.load(Ordering::Relaxed);
        match worked {
            // Guests will be told when it is their turn.
            Err(OverlayError::NoSpace { .. }) => upkeep.task = None,
            other => other?,
        }
        if tended.moved_bytes > 0 {
            self.flush_all()?;
        }
        Ok(tended)
    }

    fn compact(
        &self,
        upkeep: &mut Upkeep,
        budget: u64,
        tended: &mut Tended,
    ) -> Result<(), OverlayError> {
        while tended.moved_bytes < budget {
            let Some(mut task) = upkeep.task.take().or_else(|| self.choose(upkeep)) else {
                return Ok(());
            };
            if !self.has_room_for(task.goal) {
                return Ok(());
            }
            let left = budget - tended.moved_bytes;
            let (moved, is_done) = match self.work(&mut task, left) {
                Ok(worked) => worked,
                // A read that fails has told it, and closes nothing. The segment stays as it is.
                Err(OverlayError::Corrupt { .. } | OverlayError::Io { .. })
                    if self.failed.get().is_none() =>
                {
                    if let Goal::Empty(segment) = task.goal {
                        upkeep.stuck.insert(segment);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            tended.moved_bytes += moved;
            if !is_done {
                tended.has_more = true;
                upkeep.task = Some(task);
                return Ok(());
            }
            if task.goal == Goal::Join {
                upkeep.joined = self.extents.load(Ordering::Relaxed);
            }
            // What was emptied goes with this flush, and what to do next depends on what is left.
            self.flush_all()?;
            if moved == 0 {
                // Nothing could be done there; the next step looks again.
                return Ok(());
            }
        }
        tended.has_more = true;
        Ok(())
    }

    fn is_long(&self) -> bool {
        self.is_longer_than_needed(&self.map_read())
    }

    /// Whether a flush may let go of something. Each one leaves a mark: of overlays that wait for room, flushed again and again for
    /// nothing, these alone would use up what the floor keeps free.
    fn has_unsettled(&self) -> bool {
        if self.guest_seq.load(Ordering::Acquire) > self.flushed_seq() {
            return true;
        }
        let map = self.map_read();
        let Some(newest) = map.segments.keys().next_back() else {
            return false;
        };
        map.segments
            .range(..newest)
            .any(|(_, segment)| segment.live == 0 && !self.is_held(segment))
    }

    /// Whether the log is longer than what is live is worth. While writes wait for room, little is enough.
    fn is_longer_than_needed(&self, map: &Map) -> bool {
        let needed = map.needed_bytes();
        let spare = if self.room.is_short() {
            needed / 8 + self.options.segment_bytes
        } else {
            needed / 2 + 2 * self.options.segment_bytes
        };
        map.log_bytes() > needed + spare
    }

    fn choose(&self, upkeep: &Upkeep) -> Option<Task> {
        let task = |goal| Task {
            goal,
            disk: 0,
            at: 0,
        };
        let durable = self.flushed_seq();
        let map = self.map_read();
        let newest = map.segments.keys().next_back().copied()?;
        let may_go =
            |number: u32, segment: &Segment| segment.live > 0 && !upkeep.stuck.contains(&number);
        // Also the newest one, which takes nothing more if it is in the clear.
        let plain = map
            .segments
            .iter()
            .find(|&(&number, segment)| segment.form == Form::Plain && may_go(number, segment));
        if let Some((&number, _)) = plain {
            return Some(task(Goal::Empty(number)));
        }
        if self.is_longer_than_needed(&map) {
            let least = map
                .segments
                .range(..newest)
                .filter(|&(&number, segment)| {
                    // What is held could be emptied, but not dropped.
                    may_go(number, segment) && segment.last_seq <= durable && !self.is_held(segment)
                })
                .min_by_key(|(_, segment)| {
                    segment.live_payload * 1024 / segment.len.max(SEGMENT_HEADER_BYTES as u64)
                });
            if let Some((&number, segment)) = least
                // Else what is dead is in segments that the next flush drops.
                && segment.live_payload < segment.len / 4 * 3
            {
                return Some(task(Goal::Empty(number)));
            }
        }
        let extents = map.extents();
        let many = extents > self.options.extents_max / 16;
        (many && extents > upkeep.joined + upkeep.joined / 8).then(|| task(Goal::Join))
    }

    fn has_room_for(&self, goal: Goal) -> bool {
        let needed = match goal {
            Goal::Join => self.options.segment_bytes,
            Goal::Empty(segment) => self
                .map_read()
                .segments
                .get(&segment)
                .map_or(0, |segment| segment.live_payload),
        };
        // Writes that wait leave the last bytes to what makes room for them.
        let spare = if self.room.is_short() {
            0
        } else {
            ROOM_BYTES.min(self.options.segment_bytes)
        };
        self.free_bytes() >= needed + needed / 16 + spare
    }
}
