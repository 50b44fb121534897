//! The branch's end of write-back: seal, offer, send, be acknowledged.
//!
//! Invariant: a segment is offered only when it is durable where it begins and ends, so that it is the same segment after any crash; and
//! the overlay may forget how it looked at a sequence number only when [`SendAction::Release`] says so. At most one part is in memory.
//!
//! ```text
//!   Idle ──poll: something is durable that is not there──► seal, keep ──► Making ──made──► Offered ──PartStaged──► Making (the next part)
//!    ▲                                                                                       │  └─ WantChunks: send them
//!    └────────────────────────── SegmentApplied: keep, release ◄─────────────────────────────┘ the last part
//! ```
//!
//! Whatever is under way is forgotten when the link goes, and begun again from the row when it is back. It does not read the overlay,
//! cut chunks or pack them: its owner does, one part at a time.

use serde::{Deserialize, Serialize};

use super::super::authority::Facts;
use super::super::message::{
    Cut, OfferPart, PartStaged, RestartSegment, SegmentApplied, WantChunks,
};
use super::super::{Head, Line, Mutant, Nonce, Position, is_mutated};

/// What a branch keeps of a desktop's write-back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SendRow {
    /// Where it goes.
    pub line: Line,
    /// Up to where it is known to be there.
    pub acked: Position,
    /// The segment under way.
    pub sealed: Option<Sealed>,
}

/// A segment that was sealed: the records behind `acked` up to `to`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sealed {
    /// Its name: random, drawn when it was sealed. A copy of the disk from before that draws another.
    pub segment: Nonce,
    /// Sequence number of its last record, durable in the overlay.
    pub to: u64,
    /// Whether a snapshot is to be cut where it ends.
    pub cut: Cut,
    /// When it was sealed, unix seconds.
    pub sealed_unix_s: u64,
    /// How many of its parts are at the datacenter.
    pub parts: u32,
    /// The head behind them.
    pub head: Head,
}

/// When a segment is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealPolicy {
    /// So long after the first write that is not at the datacenter, in seconds: what is overwritten meanwhile is not sent. It bounds
    /// what a stolen branch costs while the line keeps up.
    pub after_s: u64,
    /// Or when so many records are behind.
    pub after_records: u64,
}

impl Default for SealPolicy {
    fn default() -> Self {
        Self {
            after_s: 30,
            after_records: 1 << 16,
        }
    }
}

/// How far the datacenter is behind a desktop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Durable records that are not there.
    pub records: u64,
    /// Since when there are any, in seconds: what the loss of the branch would cost.
    pub behind_s: u64,
}

/// What the owner does, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendAction {
    /// Makes this durable before it goes on.
    Keep(SendRow),
    /// Makes part `part` of what the records behind `after` up to `to` left on the disks, the same at every call, and tells
    /// [`Sender::made`]. Of a fork: of what the disks show, over what the generation began with.
    Make {
        /// Records up to this one are in earlier segments.
        after: u64,
        /// The last record that is in it.
        to: u64,
        /// Which part, from 0.
        part: u32,
    },
    /// Sends it.
    Offer(OfferPart),
    /// Sends these chunks of the part that was made, by their indexes.
    SendChunks(WantChunks),
    /// The overlay need not be able to show the disks as they were before this record.
    Release(u64),
    /// All of the fork is at the datacenter.
    Settled(Nonce),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Flight {
    /// Nothing is under way.
    Idle,
    /// A part is being made.
    Making,
    /// A part was offered. The head behind it, and whether it is the last.
    Offered { head: Head, is_last: bool },
}

/// The branch's end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sender {
    row: SendRow,
    flushed: u64,
    behind_since: Option<u64>,
    /// A snapshot that was asked for and is in no segment yet, with the record that is to be in it.
    wish: Option<(Cut, u64)>,
    flight: Flight,
    is_linked: bool,
}

impl Sender {
    /// From its row. `flushed` is the overlay's newest durable record.
    pub fn open(row: SendRow, flushed: u64, now_unix_s: u64) -> Self {
        let is_behind = flushed > row.acked.seq;
        let since = row.sealed.as_ref().map_or(now_unix_s, |s| s.sealed_unix_s);
        Self {
            row,
            flushed,
            behind_since: is_behind.then_some(since),
            wish: None,
            flight: Flight::Idle,
            is_linked: false,
        }
    }

    /// Its row.
    pub fn row(&self) -> &SendRow {
        &self.row
    }

    /// What the branch says of it.
    pub fn facts(&self) -> Facts {
        Facts {
            acked: self.row.acked,
            sealed: self
                .row
                .sealed
                .as_ref()
                .map_or(Nonce::NONE, |sealed| sealed.segment),
            flushed: self.flushed,
        }
    }

    /// How far the datacenter is behind.
    pub fn lag(&self, now_unix_s: u64) -> Lag {
        Lag {
            records: self.flushed.saturating_sub(self.row.acked.seq),
            behind_s: self
                .behind_since
                .map_or(0, |since| now_unix_s.saturating_sub(since)),
        }
    }

    /// Sends to `line` from now on, which begins at `start`. Nothing changes if it does already. `flushed` is the newest durable record
    /// of the overlay that goes there.
    pub fn aim(
        &mut self,
        line: Line,
        start: Position,
        flushed: u64,
        now_unix_s: u64,
    ) -> Vec<SendAction> {
        if self.row.line == line {
            return Vec::new();
        }
        let is_linked = self.is_linked;
        let row = SendRow {
            line,
            acked: start,
            sealed: None,
        };
        *self = Self::open(row, flushed, now_unix_s);
        self.is_linked = is_linked;
        vec![SendAction::Keep(self.row.clone())]
    }

    /// The link is up: goes on with the segment under way.
    pub fn linked(&mut self) -> Vec<SendAction> {
        self.is_linked = true;
        self.flight = Flight::Idle;
        self.make()
    }

    /// The link is gone.
    pub fn unlinked(&mut self) {
        self.is_linked = false;
        self.flight = Flight::Idle;
    }

    /// Records up to this one are durable. It is the newest one that a guest asked for: marks and moved records say nothing new, and would
    /// keep write-back busy for ever.
    pub fn flushed(&mut self, seq: u64, now_unix_s: u64) {
        self.flushed = self.flushed.max(seq);
        if self.flushed > self.row.acked.seq {
            self.behind_since.get_or_insert(now_unix_s);
        }
    }

    /// Wants a snapshot of everything up to record `seq`. It comes with the segment in which that is. A crash before that segment is
    /// sealed forgets the wish: whoever has it tells it again.
    pub fn wish(&mut self, cut: Cut, seq: u64) {
        self.wish = Some((cut, seq));
    }

    fn is_due(&self, policy: &SealPolicy, now_unix_s: u64) -> bool {
        let is_old = self
            .behind_since
            .is_some_and(|since| now_unix_s >= since.saturating_add(policy.after_s));
        let records = self.flushed.saturating_sub(self.row.acked.seq);
        let is_wished = self.wish.is_some_and(|(_, seq)| seq <= self.flushed);
        is_old || is_wished || records >= policy.after_records || self.row.line.fork.is_some()
    }

    /// Seals a segment, if it is time. To be called after each flush, every few seconds, and when the desktop stops. `fresh` is random.
    pub fn poll(&mut self, policy: &SealPolicy, fresh: Nonce, now_unix_s: u64) -> Vec<SendAction> {
        if let Some(fork) = self.row.line.fork
            && self.flushed == self.row.acked.seq
            && self.row.sealed.is_none()
        {
            // Also if nothing was ever written: there is nothing to be kept.
            return vec![SendAction::Settled(fork)];
        }
        let is_behind = self.flushed > self.row.acked.seq;
        if !self.is_linked
            || self.row.sealed.is_some()
            || !is_behind
            || !self.is_due(policy, now_unix_s)
        {
            return Vec::new();
        }
        let cut = match self.wish {
            Some((cut, seq)) if seq <= self.flushed => {
                self.wish = None;
                cut
            }
            _ => Cut::None,
        };
        self.row.sealed = Some(Sealed {
            segment: fresh,
            to: self.flushed,
            cut,
            sealed_unix_s: now_unix_s,
            parts: 0,
            head: self.row.acked.head,
        });
        let mut actions = self.make();
        if !is_mutated(Mutant::UnkeptSeal) {
            actions.insert(0, SendAction::Keep(self.row.clone()));
        }
        actions
    }

    /// Has the next part made.
    fn make(&mut self) -> Vec<SendAction> {
        let Some(sealed) = &self.row.sealed else {
            return Vec::new();
        };
        if !self.is_linked {
            return Vec::new();
        }
        self.flight = Flight::Making;
        vec![SendAction::Make {
            after: self.row.acked.seq,
            to: sealed.to,
            part: sealed.parts,
        }]
    }

    /// The part that was to be made: its encoded ranges, and whether it is the last.
    pub fn made(&mut self, to: u64, part: u32, ranges: Vec<u8>, is_last: bool) -> Vec<SendAction> {
        let Some(sealed) = &self.row.sealed else {
            return Vec::new();
        };
        if self.flight != Flight::Making || (sealed.to, sealed.parts) != (to, part) {
            return Vec::new();
        }
        let offer = OfferPart {
            line: self.row.line,
            from: self.row.acked,
            segment: sealed.segment,
            to,
            part,
            is_last,
            head: sealed.head,
            cut: sealed.cut,
            sealed_unix_s: sealed.sealed_unix_s,
            ranges,
        };
        let head = sealed.head.part(to, part, is_last, &offer.ranges);
        self.flight = Flight::Offered { head, is_last };
        vec![SendAction::Offer(offer)]
    }

    /// The part of that segment which was offered: the head behind it, and whether it is the last.
    fn offered(&self, line: Line, segment: Nonce) -> Option<(Head, bool)> {
        let sealed = self.row.sealed.as_ref()?;
        match self.flight {
            Flight::Offered { head, is_last }
                if line == self.row.line && segment == sealed.segment =>
            {
                Some((head, is_last))
            }
            _ => None,
        }
    }

    /// The datacenter lacks chunks.
    pub fn wanted(&mut self, want: &WantChunks) -> Vec<SendAction> {
        let parts = self.row.sealed.as_ref().map(|sealed| sealed.parts);
        if self.offered(want.line, want.segment).is_none() || parts != Some(want.part) {
            return Vec::new();
        }
        vec![SendAction::SendChunks(want.clone())]
    }

    /// A part is there.
    pub fn staged(&mut self, staged: &PartStaged) -> Vec<SendAction> {
        let offered = self.offered(staged.line, staged.segment);
        let Some(sealed) = &mut self.row.sealed else {
            return Vec::new();
        };
        // Of the last part nothing is kept: it is offered again until the segment is applied.
        if offered != Some((staged.head, false)) || staged.part != sealed.parts {
            return Vec::new();
        }
        sealed.parts += 1;
        sealed.head = staged.head;
        let mut actions = vec![SendAction::Keep(self.row.clone())];
        actions.extend(self.make());
        actions
    }

    /// Nothing is staged that the part could follow.
    pub fn restart(&mut self, restart: &RestartSegment) -> Vec<SendAction> {
        if self.offered(restart.line, restart.segment).is_none() {
            return Vec::new();
        }
        let Some(sealed) = self.row.sealed.as_mut().filter(|sealed| sealed.parts > 0) else {
            return Vec::new();
        };
        sealed.parts = 0;
        sealed.head = self.row.acked.head;
        let mut actions = vec![SendAction::Keep(self.row.clone())];
        actions.extend(self.make());
        actions
    }

    /// The segment is there, whole.
    pub fn applied(&mut self, applied: &SegmentApplied) -> Vec<SendAction> {
        let at = applied.at;
        // Whichever part was offered: after a restart it may be one that is long there.
        let sealed = self.row.sealed.as_ref();
        let ends_there = sealed.is_some_and(|sealed| sealed.to == at.seq);
        if !ends_there || self.offered(applied.line, applied.segment).is_none() {
            return Vec::new();
        }
        // What is not in the segment was written after it was sealed.
        let sealed_unix_s = self.row.sealed.take().map(|sealed| sealed.sealed_unix_s);
        self.row.acked = at;
        self.flight = Flight::Idle;
        self.behind_since = sealed_unix_s.filter(|_| self.flushed > at.seq);
        let mut actions = vec![
            SendAction::Keep(self.row.clone()),
            SendAction::Release(at.seq),
        ];
        if let Some(fork) = self.row.line.fork
            && self.flushed == at.seq
        {
            actions.push(SendAction::Settled(fork));
        }
        actions
    }
}
