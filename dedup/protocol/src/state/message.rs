//! Bodies of the messages about leases and write-back, tags 0x60 to 0x6f. `docs/wire.md` has them byte by byte.
//!
//! All are asked by the branch on streams of the class *state*; [`ProveLease`] may also come by itself, so that a break is noticed at once.

use dedup::DesktopId;
use serde::{Deserialize, Serialize};

use super::{Ended, Generation, Head, Line, Nonce, Position};
use crate::wire::Batch;

/// Branch → datacenter: asks for a desktop, or for the next lease of one it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskLease {
    /// Which desktop.
    pub desktop: DesktopId,
    /// Generation of the lease it has; none: it asks for the desktop.
    pub generation: Generation,
    /// Number of the newest renewal it has.
    pub renewal: u64,
    /// Names the question; the same in its repetitions. The branch keeps it before it asks.
    pub nonce: Nonce,
    /// That of the [`ProveLease`] which it answers; 0: none.
    pub challenge: u64,
    /// How far it knows its writes to be at the datacenter.
    pub acked: Position,
    /// The segment that is under way; [`Nonce::NONE`]: none is.
    pub sealed: Nonce,
    /// Sequence number of its newest durable record: what is still to come, for people.
    pub flushed: u64,
}

/// Datacenter → branch: say now how far you are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProveLease {
    /// Which desktop.
    pub desktop: DesktopId,
    /// Under which generation.
    pub generation: Generation,
    /// To be told in the answer; not 0.
    pub challenge: u64,
}

/// Datacenter → branch, unasked: the volume is wanted elsewhere. It is to be given back as soon as no machine uses it and all of it is at the datacenter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecallLease {
    /// Which desktop.
    pub desktop: DesktopId,
    /// Under which generation.
    pub generation: Generation,
}

/// Why a branch does not get a lease. Nothing changes for a lease that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DenyReason {
    /// Another branch has it, or this one under a question that it does not remember.
    Held,
    /// Too many earlier generations may still come back as forks: IT is to settle some.
    Unsettled,
    /// The datacenter does not know such a desktop or generation, or not for this branch.
    Unknown,
    /// The question was answered by a generation that has ended since. Ask anew.
    Spent,
    /// The branch knows more than the datacenter does, which was set back. IT is alarmed there.
    Behind,
}

/// Datacenter → branch: no lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenyLease {
    /// Which desktop.
    pub desktop: DesktopId,
    /// The one of the question, zeros for what was none.
    pub nonce: Nonce,
    /// For programs.
    pub reason: DenyReason,
    /// For people.
    pub message: String,
}

/// Datacenter → branch: that generation has ended; what was written under it and is not here becomes a fork.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceLease {
    /// Which desktop.
    pub desktop: DesktopId,
    /// Which generation.
    pub generation: Generation,
    /// How it ended.
    pub ended: Ended,
}

/// Branch → datacenter: gives a desktop back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReturnLease {
    /// Which desktop.
    pub desktop: DesktopId,
    /// Under which generation it had it.
    pub generation: Generation,
    /// The end of what it wrote, all of it at the datacenter.
    pub at: Position,
}

/// Branch → datacenter: somebody gave up what was written here, and it is destroyed. The generation is to end with what is at the datacenter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropLease {
    /// Which desktop.
    pub desktop: DesktopId,
    /// Under which generation it had it.
    pub generation: Generation,
}

/// Datacenter → branch: the desktop was given back, or its generation has ended as it was to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReturned {
    /// Which desktop.
    pub desktop: DesktopId,
    /// Which generation.
    pub generation: Generation,
}

/// Whether a snapshot is to be cut where a segment ends, and why.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Cut {
    /// None is asked for; the datacenter may cut one by its policy.
    #[default]
    None,
    /// The user logged off.
    LogOff,
    /// Somebody asked for it.
    Asked,
    /// Somebody asked for it, and the guest's file systems were frozen meanwhile.
    Frozen,
}

/// Branch → datacenter: what a part of a segment says, by names of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferPart {
    /// What it is written to.
    pub line: Line,
    /// The end of the segment before.
    pub from: Position,
    /// The segment's name, drawn when it was sealed.
    pub segment: Nonce,
    /// Sequence number of its last record.
    pub to: u64,
    /// Number of the part in the segment, from 0.
    pub part: u32,
    /// Whether it is the segment's last.
    pub is_last: bool,
    /// The head before this part: that of `from` for the first.
    pub head: Head,
    /// Whether a snapshot is to be cut where the segment ends.
    pub cut: Cut,
    /// When the segment was sealed, unix seconds by the branch's clock.
    pub sealed_unix_s: u64,
    /// Encoded [`super::writeback::Part`].
    #[serde(with = "serde_bytes")]
    pub ranges: Vec<u8>,
}

/// Datacenter → branch: the chunks of a part that it does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantChunks {
    /// Of which line.
    pub line: Line,
    /// Of which segment.
    pub segment: Nonce,
    /// Of which part.
    pub part: u32,
    /// Indexes among the part's distinct chunks, in order of first appearance; ascending.
    pub wanted: Vec<u16>,
}

/// Branch → datacenter: the next of the chunks that are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartChunks {
    /// Of which line.
    pub line: Line,
    /// Of which segment.
    pub segment: Nonce,
    /// Of which part.
    pub part: u32,
    /// They.
    pub batch: Batch,
}

/// Datacenter → branch: a part is durable, with all its chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartStaged {
    /// Of which line.
    pub line: Line,
    /// Of which segment.
    pub segment: Nonce,
    /// Which part.
    pub part: u32,
    /// The head behind it.
    pub head: Head,
}

/// Datacenter → branch: all up to here is the desktop's state (the fork's), whole and durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentApplied {
    /// Of which line.
    pub line: Line,
    /// Which segment.
    pub segment: Nonce,
    /// Up to where that is.
    pub at: Position,
}

/// Datacenter → branch: of that segment nothing is staged that the offered part could follow; begin again with its first part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartSegment {
    /// Of which line.
    pub line: Line,
    /// Which segment.
    pub segment: Nonce,
}
