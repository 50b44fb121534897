//! What people are told of a volume's line: whether it may run here and why not, and how far the datacenter is behind.

use dedup::DesktopId;
use dedup_protocol::state::Generation;
use dedup_protocol::state::authority::{HoldRow, Stage};
use dedup_protocol::state::writeback::Sender;

/// Why a volume may not be run at this branch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRight {
    /// Its lease and offline grace are over.
    #[error(
        "its lease ended, offline grace included, at {until_unix_s} (unix seconds); what was written is kept, and it starts again when this branch has reached the datacenter"
    )]
    Over {
        /// Until when it could be run.
        until_unix_s: u64,
    },
    /// This branch does not hold it.
    #[error(
        "this branch does not hold it; it is asked for while the link is up{}",
        why.as_ref().map_or(String::new(), |why| format!(": {why}"))
    )]
    NotHeld {
        /// What the datacenter said last.
        why: Option<String>,
    },
    /// It is held, and what it goes on behind is on its way here.
    #[error(
        "this branch holds it, and the state that it goes on behind is fetched from the datacenter while the link is up; start it again in a moment"
    )]
    Coming,
    /// It is held behind what was written elsewhere, and an overlay of before its first lease is here.
    #[error(
        "this branch holds it behind a state that was written elsewhere, and what was written here before it was leased does not lie over that; reset the desktop here to go on with that state, or delete it"
    )]
    Elsewhere,
    /// Its generation has ended.
    #[error(
        "{why}; what was written here goes to the datacenter as a fork, which IT can inspect and restore, and is kept until it is there"
    )]
    Fenced {
        /// How.
        why: &'static str,
    },
    /// Somebody gave it up, and was interrupted.
    #[error(
        "what was written to it was given up, and that was interrupted; reset or delete the desktop again"
    )]
    Dropped,
    /// It is being given back.
    #[error("it is being given back to the datacenter; start it when that is done")]
    Returning,
}

/// A volume's line, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineShown {
    /// The volume.
    pub volume: DesktopId,
    /// `unleased`, `held`, `recalled`, `returning`, `fenced`, `given up` or `idle`.
    pub lease: &'static str,
    /// Under which generation it is or was last held; none: never.
    pub generation: Generation,
    /// Until when it may be run without a link, unix seconds, while it is held.
    pub ends_unix_s: Option<u64>,
    /// Why it may not be run.
    pub no_right: Option<NoRight>,
    /// Durable records that are not at the datacenter; none: nothing is sent there.
    pub behind_records: Option<u64>,
    /// Since when, in seconds: what the loss of this branch would cost.
    pub behind_s: u64,
    /// When the newest segment that is there was sealed, unix seconds, if one came since the start of the branch server.
    pub applied_unix_s: Option<u64>,
    /// What keeps it from going on.
    pub trouble: Option<String>,
}

impl LineShown {
    /// Of a line's parts.
    pub(super) fn new(
        volume: DesktopId,
        hold: &HoldRow,
        send: Option<&Sender>,
        (no_right, is_recalled): (Option<NoRight>, bool),
        applied_unix_s: Option<u64>,
        trouble: Option<String>,
        now_unix_s: u64,
    ) -> Self {
        let (lease, generation, ends_unix_s) = match &hold.stage {
            Stage::Idle { last } if *last == Generation::NONE => ("unleased", *last, None),
            Stage::Idle { last } => ("idle", *last, None),
            Stage::Held {
                lease,
                is_returning,
            } => {
                let name = match (*is_returning, is_recalled) {
                    (true, _) => "returning",
                    (false, true) => "recalled",
                    (false, false) => "held",
                };
                (name, lease.generation, Some(lease.ends_unix_s()))
            }
            Stage::Fenced { generation, .. } => ("fenced", *generation, None),
            Stage::Dropped { generation } => ("given up", *generation, None),
        };
        let lag = send.map(|send| send.lag(now_unix_s));
        Self {
            volume,
            lease,
            generation,
            ends_unix_s,
            no_right,
            behind_records: lag.map(|lag| lag.records),
            behind_s: lag.map_or(0, |lag| lag.behind_s),
            applied_unix_s,
            trouble,
        }
    }
}
