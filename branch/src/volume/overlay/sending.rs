//! What write-back asks of the overlay: how far guests' records are durable, and that a segment under way can be read again.
//!
//! Invariant: as long as it is told what is at the datacenter, what guests wrote behind that record can be read from records behind it
//! that do not carry the flag *moved* ([`super::changes`]). Compaction keeps to it by writing what is not there yet as new, because the record that
//! said it first may be dropped then; and what a segment under way consists of is not dropped at all, however short room is. The guest
//! waits for room first.
//!
//! Nothing of this is kept: the owner tells it again right after each opening, before anything else is done with the overlay.

use std::sync::atomic::Ordering;

use super::error::OverlayError;
use super::map::Segment;
use super::writer::Origin;
use super::{Overlay, lock};

/// What an overlay knows of its write-back.
#[derive(Debug, Default)]
pub struct Sending {
    /// Records up to this one are at the datacenter; none: nothing of it is sent there.
    acked: Option<u64>,
    /// Records that may not be dropped: those behind the first number, up to the second.
    held: Option<(u64, u64)>,
}

impl Overlay {
    /// From now on what was written behind record `acked` is to be sent. 0: all that is in the overlay, also what compaction moved before
    /// anybody sent it.
    ///
    /// # Errors
    /// The overlay is closed.
    pub fn send_after(&self, acked: u64) -> Result<(), OverlayError> {
        self.check_alive()?;
        let newest = {
            // Compaction asks under this lock: what it moved before counts below, what it moves later as new.
            let writer = lock(&self.writer);
            lock(&self.sending).acked = Some(acked);
            if acked > 0 {
                return Ok(());
            }
            self.guest_seq.fetch_max(writer.last_seq, Ordering::AcqRel);
            writer.last_seq
        };
        self.flush_all()?;
        self.guest_durable.fetch_max(newest, Ordering::AcqRel);
        Ok(())
    }

    /// Newest durable record that says something new: marks and what compaction moves of what is at the datacenter do not.
    pub fn guest_flushed_seq(&self) -> u64 {
        self.guest_durable.load(Ordering::Acquire)
    }

    /// Drops no record behind `after` up to `to` from now on, and returns the newest that a segment may end at. A segment that is sealed up to
    /// that number can be read until [`Self::release`].
    pub fn hold(&self, after: u64, to: u64) -> u64 {
        lock(&self.sending).held = Some((after, to));
        // Behind the hold: what was dropped before it was replaced by records that are counted in this.
        self.guest_flushed_seq()
    }

    /// Ends the hold: records up to `acked` are at the datacenter.
    pub fn release(&self, acked: u64) {
        let mut sending = lock(&self.sending);
        sending.held = None;
        sending.acked = sending.acked.max(Some(acked));
    }

    /// Whether a segment of the log may not be dropped.
    pub(super) fn is_held(&self, segment: &Segment) -> bool {
        let held = lock(&self.sending).held;
        held.is_some_and(|(after, to)| segment.last_seq > after && segment.first_seq <= to)
    }

    /// As what compaction writes content again whose newest record is `newest`. To be called under the writer's lock.
    pub(super) fn origin_of(&self, newest: u64) -> Origin {
        match lock(&self.sending).acked {
            Some(acked) if newest > acked => Origin::Unsent,
            _ => Origin::Own,
        }
    }
}
