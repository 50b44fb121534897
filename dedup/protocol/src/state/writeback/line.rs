//! What the datacenter keeps of a line, and what the owner of its end is to do.

use serde::{Deserialize, Serialize};

use super::super::authority::Progress;
use super::super::message::{Cut, PartStaged, RestartSegment, SegmentApplied, WantChunks};
use super::super::{Ended, Generation, Head, Line, Nonce, Position};
use super::part::PARTS_MAX;
use crate::records::TreeRef;

/// What the datacenter keeps of a line: the desktop's own, or a fork.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LineRow {
    /// Which line; of a desktop's own, the generation that wrote to it last.
    pub line: Line,
    /// Up to where it is applied.
    pub applied: Position,
    /// The same before the newest segment.
    pub before: Position,
    /// The newest segment; [`Nonce::NONE`] if this generation brought none.
    pub newest: Nonce,
    /// When the branch sealed the newest segment, unix seconds by its clock; 0: none came.
    pub sealed_unix_s: u64,
    /// The state: one tree for each disk.
    pub disks: Vec<TreeRef>,
    /// The segment of which parts are here.
    pub staged: Option<Staged>,
}

impl LineRow {
    /// Of a line whose state so far is `disks`: a desktop's first, or what a fork's generation began with.
    pub fn new(line: Line, disks: Vec<TreeRef>) -> Self {
        Self {
            line,
            applied: Position::START,
            before: Position::START,
            newest: Nonce::NONE,
            sealed_unix_s: 0,
            disks,
            staged: None,
        }
    }

    /// How far the line is, as a holder of `generation` may know it.
    pub fn progress(&self, generation: Generation) -> Progress {
        if generation > self.line.generation {
            let begin = Position::begin(self.applied.head);
            return Progress {
                applied: begin,
                before: begin,
                newest: Nonce::NONE,
            };
        }
        Progress {
            applied: self.applied,
            before: self.before,
            newest: self.newest,
        }
    }
}

/// What is here of a segment. Its parts are rows of their own, by their number.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Staged {
    /// Its name.
    pub segment: Nonce,
    /// Sequence number of its last record.
    pub to: u64,
    /// How many parts are here.
    pub parts: u32,
    /// The head behind them.
    pub head: Head,
    /// Whether that is all of it.
    pub is_whole: bool,
    /// Whether a snapshot is to be cut where it ends.
    pub cut: Cut,
    /// When the branch sealed it, unix seconds.
    pub sealed_unix_s: u64,
}

/// What the owner does, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiveAction {
    /// Makes all of this durable in one transaction before it goes on.
    Keep {
        /// The line's row.
        row: LineRow,
        /// First: all kept parts of the line go.
        drops_parts: bool,
        /// Then: this part is kept under its number.
        part: Option<(u32, Vec<u8>)>,
        /// A snapshot of the new state is cut.
        cut: Cut,
    },
    /// Builds the manifests that the kept parts make of the line's state, and tells [`Receiver::built`](super::Receiver::built).
    Build {
        /// Which segment.
        segment: Nonce,
    },
    /// Sends it.
    Want(WantChunks),
    /// Sends it.
    Staged(PartStaged),
    /// Sends it, and reassures the desktop's authority.
    Applied(SegmentApplied),
    /// Sends it.
    Restart(RestartSegment),
    /// Something does not fit: the desktop's authority asks where the branch is.
    Doubt(Generation),
    /// Tells the branch that the generation has ended.
    Fence(Ended),
}

/// Why a frame is not taken. The stream ends with a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The branch may not write to that line.
    #[error("this branch may not write to that desktop")]
    NotYours,
    /// A segment that ends where it begins, or before.
    #[error("a segment from record {from} to record {to}")]
    Empty {
        /// Where it begins.
        from: u64,
        /// Where it ends.
        to: u64,
    },
    /// A segment of too many parts.
    #[error("part {0} of a segment, which has at most {PARTS_MAX}")]
    Parts(u32),
    /// A wanted chunk's index is not in the part.
    #[error("chunk {0} of a part that has fewer")]
    Missing(u16),
    /// Chunks that were not asked for.
    #[error("chunks of a part that is not due")]
    NotDue,
    /// More of them than were asked for.
    #[error("{count} chunks where {due} are due")]
    TooMany {
        /// How many came.
        count: u32,
        /// How many are due.
        due: usize,
    },
}
