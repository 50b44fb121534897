//! State of persistent desktops: who may write it, and how it comes to the datacenter.
//!
//! Two pairs of state machines, one pair for each question, without I/O, clock or random numbers of their own:
//!
//! ```text
//!   branch                                            datacenter
//!   authority::Hold   ── AskLease, ReturnLease, DropLease ──►   authority::Authority     who may write: a lease with a generation
//!                     ◄── LeaseGranted, FenceLease, RecallLease ──
//!   writeback::Sender ── OfferPart, PartChunks ──►    writeback::Receiver      what is written: segments in order
//!                     ◄── WantChunks, SegmentApplied ──
//! ```
//!
//! Each machine is a value over one durable row. A call takes an event and gives *actions*, which its owner performs **in order**, and
//! each of them before the next: an action `Keep` is durable before anything behind it is done. So a crash between any two actions is
//! nothing but a reload of the row, and the explorer (`explore`, test builds only) stops at every one of these places.
//!
//! Messages may be lost, doubled and overtaken; none of the machines relies on the transport's order. What they must never do, and the
//! argument why they do not, is in decisions 0038 and 0039.

pub mod authority;
pub mod began;
pub mod checkout;
pub mod lease;
pub mod message;
pub mod moved;
pub mod writeback;

#[cfg(test)]
mod explore;
mod mutant;

use std::fmt;

use dedup::DesktopId;
use serde::{Deserialize, Serialize};

pub(crate) use mutant::{Mutant, is_mutated};

/// Counts the times a desktop was given to a branch, from 1; 0 is none. It fences stale writers.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

impl Generation {
    /// The one of a desktop that was never given to a branch.
    pub const NONE: Self = Self(0);

    /// The one after it.
    pub fn next(self) -> Self {
        Self(
            self.0
                .checked_add(1)
                .expect("2^64 leases are never granted"),
        )
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.0)
    }
}

/// 16 random bytes that are drawn for one question, and tell its repetition from another question.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    /// Stands for no question; never drawn.
    pub const NONE: Self = Self([0; 16]);
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({}…)", hex::encode(&self.0[..4]))
    }
}

/// Names a history: hash over all that was written back, in order. Equal heads are equal histories.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Head(pub [u8; 32]);

impl Head {
    /// Of a desktop nobody has written to yet.
    pub const START: Self = Self([0; 32]);

    /// The head behind a part of a segment, where this is the head before it.
    pub fn part(self, to: u64, part: u32, is_last: bool, ranges: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("splice 2026 write-back head v1");
        hasher.update(&self.0);
        hasher.update(&to.to_le_bytes());
        hasher.update(&part.to_le_bytes());
        hasher.update(&[u8::from(is_last)]);
        hasher.update(ranges);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({}…)", hex::encode(&self.0[..4]))
    }
}

/// A place in what one generation wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Sequence number of the overlay's last record that is in it; 0: none of this generation's.
    pub seq: u64,
    /// The history up to there, those of earlier generations included.
    pub head: Head,
}

impl Position {
    /// Of a desktop nobody has written to yet, and of a fork of which nothing has come.
    pub const START: Self = Self {
        seq: 0,
        head: Head::START,
    };

    /// Where a generation begins that goes on behind `head`.
    pub fn begin(head: Head) -> Self {
        Self { seq: 0, head }
    }
}

/// What segments are written to: the desktop itself under its generation, or a fork of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Line {
    /// Whose state it is.
    pub desktop: DesktopId,
    /// Under which generation it was written.
    pub generation: Generation,
    /// The fork's name, if it is one. Drawn by the branch, since two copies of one disk may both come back.
    pub fork: Option<Nonce>,
}

/// How a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Ended {
    /// The branch gave it back with all its writes at the datacenter.
    Returned,
    /// IT broke the lease.
    Broken,
    /// The branch came with an older copy of its disk.
    OldCopy,
}

impl Ended {
    /// For people.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Returned => "the branch had given the desktop back",
            Self::Broken => "IT broke the lease",
            Self::OldCopy => "the branch came with an older copy of its disk",
        }
    }
}
