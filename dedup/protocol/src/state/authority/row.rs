//! What the datacenter keeps of the authority over a desktop, and what it knows when it decides.

use dedup::{BranchId, DesktopId};
use serde::{Deserialize, Serialize};

use super::super::{Ended, Generation, Head, Nonce, Position};

/// Most ended generations of a desktop that may still come back as forks. For each the datacenter keeps what it began with.
pub const PAST_MAX: usize = 16;

/// What the datacenter keeps of the authority over one desktop.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AuthorityRow {
    /// Which desktop.
    pub desktop: DesktopId,
    /// Highest generation that was ever granted.
    pub last: Generation,
    /// Who has it now, under generation `last`.
    pub holder: Option<Holder>,
    /// Ended generations that may still come back, oldest first.
    pub past: Vec<Past>,
}

impl AuthorityRow {
    /// Of a desktop that was never given to a branch.
    pub fn new(desktop: DesktopId) -> Self {
        Self {
            desktop,
            last: Generation::NONE,
            holder: None,
            past: Vec::new(),
        }
    }
}

/// The branch that has a desktop. All of its newest lease follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// Which branch.
    pub branch: BranchId,
    /// Number of its newest lease.
    pub renewal: u64,
    /// The question which that answered.
    pub nonce: Nonce,
    /// The question which the generation's first lease answered.
    pub asked: Nonce,
    /// The history behind which it went on.
    pub base: Head,
    /// When it was signed, unix seconds.
    pub issued_unix_s: u64,
    /// Until when it is to be renewed, unix seconds.
    pub expires_unix_s: u64,
    /// How long it may run the desktop offline after that, in seconds.
    pub offline_grace_s: u64,
}

/// A generation that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Past {
    /// Which.
    pub generation: Generation,
    /// Whose it was.
    pub branch: BranchId,
    /// The question that it answered: a late repetition of it must not be granted another.
    pub asked: Nonce,
    /// The history behind which it went on: what its fork lies over, kept as long as this entry.
    pub base: Head,
    /// How it ended.
    pub ended: Ended,
    /// When, unix seconds.
    pub ended_unix_s: u64,
}

/// How long leases are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// From the signature to the expiry, in seconds.
    pub lease_s: u64,
    /// The pool's offline grace, in seconds.
    pub offline_grace_s: u64,
}

/// How far the desktop's line is at the datacenter, under its present generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The end of what is applied.
    pub applied: Position,
    /// The end of it before the newest segment; `applied` if there is none in this generation.
    pub before: Position,
    /// The newest segment of this generation; [`Nonce::NONE`] if there is none.
    pub newest: Nonce,
}

/// What a generation is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is that branch's now.
    Current,
    /// It was that branch's; what it brings becomes a fork.
    Past(Ended),
    /// It is not known, or not that branch's.
    Unknown,
}
