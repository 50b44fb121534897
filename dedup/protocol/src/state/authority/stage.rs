//! Where a branch stands with a desktop: its row, what it may do, and what its owner is to do.

use dedup::DesktopId;
use serde::{Deserialize, Serialize};

use super::super::lease::Lease;
use super::super::message::{AskLease, DenyReason, DropLease, ReturnLease};
use super::super::{Ended, Generation, Nonce, Position};

/// What a branch keeps of its right to one desktop.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HoldRow {
    /// Which desktop.
    pub desktop: DesktopId,
    /// Where it stands.
    pub stage: Stage,
    /// The question that was asked and not answered.
    pub asking: Option<Nonce>,
    /// The latest time seen under this lease, unix seconds: a clock set back does not prolong it.
    pub seen_unix_s: u64,
}

impl HoldRow {
    /// Of a desktop that was never here.
    pub fn new(desktop: DesktopId) -> Self {
        Self {
            desktop,
            stage: Stage::Idle {
                last: Generation::NONE,
            },
            asking: None,
            seen_unix_s: 0,
        }
    }
}

/// Where a branch stands with a desktop.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// It has no right to it and nothing of it that is not at the datacenter.
    Idle {
        /// Newest generation it had.
        last: Generation,
    },
    /// It may run it, as long as the lease says.
    Held {
        /// The newest lease.
        lease: Lease,
        /// It is being given back, and runs no more.
        is_returning: bool,
    },
    /// Its generation has ended. What it wrote goes to the datacenter as a fork.
    Fenced {
        /// Under which generation it wrote.
        generation: Generation,
        /// How that ended.
        ended: Ended,
        /// The fork's name.
        fork: Nonce,
    },
    /// Somebody gave up what was written here. It is destroyed; the datacenter is told until it knows.
    Dropped {
        /// The generation that is to end; none: a question is out, and what it is granted is to end.
        generation: Generation,
    },
}

/// What a branch may do with a desktop at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// Nothing.
    None,
    /// Its lease and its offline grace are over: a running machine is paused, and goes on when the lease is renewed.
    Over,
    /// Run it. The lease should have been renewed; this is the offline grace.
    Grace,
    /// Run it.
    Run,
}

/// How far the desktop's overlay and its write-back are, for what a branch says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// [`crate::state::writeback::SendRow::acked`].
    pub acked: Position,
    /// The segment that is under way, [`Nonce::NONE`] if there is none.
    pub sealed: Nonce,
    /// Newest durable record of the overlay.
    pub flushed: u64,
}

/// What the owner does, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldAction {
    /// Makes this durable before it goes on.
    Keep(HoldRow),
    /// Pauses the machine: no write is acknowledged behind it, until [`Right`] says that it may run.
    Stop,
    /// Asks.
    Ask(AskLease),
    /// Gives back.
    Return(ReturnLease),
    /// Tells that what was written was given up.
    Drop(DropLease),
    /// Aims overlay and write-back anew by [`Hold::aim`](super::Hold::aim). Also to be done at each start, since a crash may have come before it.
    Aim,
    /// The desktop is not here any more: its overlay may go. Also to be done at each start, for a row that is [`Stage::Idle`] or
    /// [`Stage::Dropped`]. A desktop without a row is from before leases, and its overlay is the only copy there is.
    Leave,
    /// The datacenter said no.
    Denied(DenyReason),
}

/// Why a call was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// There is no lease to give back or to renew.
    #[error("this branch does not hold the desktop")]
    NotHeld,
    /// Writes have not come to the datacenter yet.
    #[error(
        "record {flushed} of the desktop is not at the datacenter yet (record {acked} is); wait for write-back, then give it back"
    )]
    NotDrained {
        /// What is there.
        acked: u64,
        /// What is durable here.
        flushed: u64,
    },
    /// It is given back or fenced already.
    #[error(
        "the desktop's lease has ended here; ask for it again when its writes are at the datacenter"
    )]
    Ended,
}
