//! The branch's end of a lease: ask, hold, run offline for so long, give back, be fenced.
//!
//! Invariant: nothing is asked that is not durable, so that a question after a crash is the repetition of the one before it; and what
//! was fenced or is being given back never runs again under its generation.
//!
//! It does not verify signatures (its owner opens leases, and keeps the envelope beside the row), and it does not send segments: that is
//! [`crate::state::writeback::Sender`], which is aimed by [`Hold::aim`].

use dedup::BranchId;

use super::super::lease::Lease;
use super::super::message::{
    AskLease, DenyLease, DenyReason, DropLease, FenceLease, LeaseReturned, ProveLease, RecallLease,
    ReturnLease,
};
use super::super::{Ended, Generation, Line, Mutant, Nonce, Position, is_mutated};
use super::stage::{Facts, HoldAction, HoldError, HoldRow, Right, Stage};

/// How often the newest time seen is kept, in seconds: what setting the clock back wins.
const SEEN_STEP_S: u64 = 600;

/// The branch's end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hold {
    branch: BranchId,
    row: HoldRow,
    /// It is wanted elsewhere. Not kept: the datacenter says it again.
    is_recalled: bool,
}

impl Hold {
    /// From its row.
    pub fn open(branch: BranchId, row: HoldRow) -> Self {
        Self {
            branch,
            row,
            is_recalled: false,
        }
    }

    /// Its row.
    pub fn row(&self) -> &HoldRow {
        &self.row
    }

    /// What the branch may do now.
    pub fn right(&self, now_unix_s: u64) -> Right {
        let Stage::Held {
            lease,
            is_returning: false,
        } = &self.row.stage
        else {
            return Right::None;
        };
        let now = now_unix_s.max(self.row.seen_unix_s);
        if now < lease.expires_unix_s {
            Right::Run
        } else if now < lease.ends_unix_s() {
            Right::Grace
        } else {
            Right::Over
        }
    }

    /// What write-back is to send to, and where that begins; `None` if it has nothing to send.
    pub fn aim(&self) -> Option<(Line, Position)> {
        let line = |generation, fork| Line {
            desktop: self.row.desktop,
            generation,
            fork,
        };
        match &self.row.stage {
            Stage::Idle { .. } | Stage::Dropped { .. } => None,
            Stage::Held { lease, .. } => {
                Some((line(lease.generation, None), Position::begin(lease.base)))
            }
            // A fork is sent whole: its overlay stands still, and what the datacenter has of it may be of another copy.
            Stage::Fenced {
                generation, fork, ..
            } => Some((line(*generation, Some(*fork)), Position::START)),
        }
    }

    /// Asks for the desktop or the next lease, or once more if that was asked. `fresh` is random, and used if the question is a new one.
    ///
    /// # Errors
    /// [`HoldError::Ended`].
    pub fn ask(&mut self, fresh: Nonce, facts: &Facts) -> Result<Vec<HoldAction>, HoldError> {
        match &self.row.stage {
            Stage::Idle { .. }
            | Stage::Held {
                is_returning: false,
                ..
            } => Ok(self.question(fresh, 0, facts)),
            Stage::Held { .. } | Stage::Fenced { .. } | Stage::Dropped { .. } => {
                Err(HoldError::Ended)
            }
        }
    }

    fn question(&mut self, fresh: Nonce, challenge: u64, facts: &Facts) -> Vec<HoldAction> {
        let mut actions = Vec::with_capacity(2);
        let nonce = match self.row.asking {
            Some(nonce) => nonce,
            None => {
                self.row.asking = Some(fresh);
                if !is_mutated(Mutant::UnkeptQuestion) {
                    actions.push(HoldAction::Keep(self.row.clone()));
                }
                fresh
            }
        };
        let (generation, renewal) = match &self.row.stage {
            Stage::Held { lease, .. } => (lease.generation, lease.renewal),
            Stage::Idle { .. } | Stage::Fenced { .. } | Stage::Dropped { .. } => {
                (Generation::NONE, 0)
            }
        };
        actions.push(HoldAction::Ask(AskLease {
            desktop: self.row.desktop,
            generation,
            renewal,
            nonce,
            challenge,
            acked: facts.acked,
            sealed: facts.sealed,
            flushed: facts.flushed,
        }));
        actions
    }

    /// Begins to give the desktop back, or goes on with it. The owner has stopped it and brought all its writes to the datacenter.
    ///
    /// # Errors
    /// [`HoldError::NotDrained`], [`HoldError::NotHeld`].
    pub fn give_back(&mut self, facts: &Facts) -> Result<Vec<HoldAction>, HoldError> {
        let Stage::Held {
            lease,
            is_returning,
        } = &mut self.row.stage
        else {
            return Err(HoldError::NotHeld);
        };
        let is_drained = facts.acked.seq == facts.flushed && facts.sealed == Nonce::NONE;
        if !is_drained && !is_mutated(Mutant::ReturnEarly) {
            return Err(HoldError::NotDrained {
                acked: facts.acked.seq,
                flushed: facts.flushed,
            });
        }
        let message = ReturnLease {
            desktop: self.row.desktop,
            generation: lease.generation,
            at: facts.acked,
        };
        let mut actions = Vec::with_capacity(3);
        if !*is_returning {
            *is_returning = true;
            actions.push(HoldAction::Stop);
            actions.push(HoldAction::Keep(self.row.clone()));
        }
        actions.push(HoldAction::Return(message));
        Ok(actions)
    }

    /// Gives up what was written here. The owner destroys it when that is durable; from then on it has the datacenter told, by
    /// [`Self::tell_dropped`]. Nothing is to be done where nobody there thinks that it is here.
    ///
    /// # Errors
    /// [`HoldError::Ended`]: it was fenced, and is sent as a fork first.
    pub fn drop_writes(&mut self) -> Result<Vec<HoldAction>, HoldError> {
        let generation = match &self.row.stage {
            Stage::Fenced { .. } => return Err(HoldError::Ended),
            Stage::Dropped { .. } => return Ok(Vec::new()),
            Stage::Idle { .. } if self.row.asking.is_none() => return Ok(Vec::new()),
            // What it is granted has to be known, or it would be held for ever.
            Stage::Idle { .. } => Generation::NONE,
            Stage::Held { lease, .. } => lease.generation,
        };
        if generation != Generation::NONE {
            self.row.asking = None;
        }
        self.row.stage = Stage::Dropped { generation };
        let mut actions = vec![HoldAction::Stop];
        if !is_mutated(Mutant::UnkeptDrop) {
            actions.push(HoldAction::Keep(self.row.clone()));
        }
        actions.push(HoldAction::Leave);
        Ok(actions)
    }

    /// Tells the datacenter what was given up, again and again until it answers.
    pub fn tell_dropped(&mut self, facts: &Facts) -> Vec<HoldAction> {
        match self.row.stage {
            Stage::Dropped { generation } if generation == Generation::NONE => {
                // The question that is out: it has a name already.
                self.question(Nonce::NONE, 0, facts)
            }
            Stage::Dropped { generation } => vec![self.dropped(generation)],
            Stage::Idle { .. } | Stage::Held { .. } | Stage::Fenced { .. } => Vec::new(),
        }
    }

    fn dropped(&self, generation: Generation) -> HoldAction {
        HoldAction::Drop(DropLease {
            desktop: self.row.desktop,
            generation,
        })
    }

    /// It is wanted elsewhere.
    pub fn recalled(&mut self, recall: &RecallLease) {
        if let Stage::Held { lease, .. } = &self.row.stage
            && recall.desktop == self.row.desktop
            && recall.generation == lease.generation
        {
            self.is_recalled = true;
        }
    }

    /// Whether it is to be given back as soon as it stands still and all of it is at the datacenter.
    pub fn is_recalled(&self) -> bool {
        self.is_recalled && matches!(self.row.stage, Stage::Held { .. })
    }

    /// Takes a lease, whose signature and realm hold.
    pub fn granted(&mut self, lease: Lease) -> Vec<HoldAction> {
        let mine = lease.desktop == self.row.desktop && lease.branch == self.branch;
        if !mine || !lease.is_valid() {
            return Vec::new();
        }
        let is_asked = self.row.asking == Some(lease.nonce);
        let newest = match &self.row.stage {
            Stage::Idle { last } => *last,
            Stage::Held { lease, .. } => lease.generation,
            Stage::Fenced { generation, .. } | Stage::Dropped { generation } => *generation,
        };
        match &mut self.row.stage {
            Stage::Idle { .. } if is_asked && lease.generation > newest => {
                self.is_recalled = false;
                self.row.seen_unix_s = lease.issued_unix_s;
                self.row.asking = None;
                self.row.stage = Stage::Held {
                    lease,
                    is_returning: false,
                };
                vec![HoldAction::Keep(self.row.clone()), HoldAction::Aim]
            }
            Stage::Held { lease: held, .. }
                if is_asked
                    && lease.generation == held.generation
                    && lease.renewal == held.renewal + 1 =>
            {
                self.is_recalled = false;
                // It was signed after our question: so late it is at least, and a clock that was wrong before is forgotten.
                self.row.seen_unix_s = lease.issued_unix_s;
                self.row.asking = None;
                *held = lease;
                vec![HoldAction::Keep(self.row.clone())]
            }
            Stage::Dropped { generation } if is_asked => {
                *generation = lease.generation;
                self.row.asking = None;
                vec![
                    HoldAction::Keep(self.row.clone()),
                    self.dropped(lease.generation),
                ]
            }
            // An answer to a question of former times: the desktop is not wanted any more, and nothing was written under it.
            _ if lease.generation > newest => vec![HoldAction::Return(ReturnLease {
                desktop: lease.desktop,
                generation: lease.generation,
                at: Position::begin(lease.base),
            })],
            // A repetition.
            _ => Vec::new(),
        }
    }

    /// Says how far it is, also while it gives back.
    pub fn prove(&mut self, prove: &ProveLease, fresh: Nonce, facts: &Facts) -> Vec<HoldAction> {
        match &self.row.stage {
            Stage::Held { lease, .. }
                if prove.desktop == self.row.desktop && prove.generation == lease.generation =>
            {
                self.question(fresh, prove.challenge, facts)
            }
            Stage::Dropped { generation }
                if prove.desktop == self.row.desktop && prove.generation == *generation =>
            {
                vec![self.dropped(*generation)]
            }
            _ => Vec::new(),
        }
    }

    /// Takes a refusal.
    pub fn denied(&mut self, deny: &DenyLease) -> Vec<HoldAction> {
        let is_returning = match self.row.stage {
            Stage::Held { is_returning, .. } => is_returning,
            // What a question may yet be granted is told by an answer to that question alone: one without its name is of a former lease.
            Stage::Dropped { generation } => generation != Generation::NONE,
            Stage::Idle { .. } | Stage::Fenced { .. } => false,
        };
        let is_answer =
            self.row.asking == Some(deny.nonce) || (is_returning && deny.nonce == Nonce::NONE);
        if deny.desktop != self.row.desktop || !is_answer {
            return Vec::new();
        }
        if matches!(self.row.stage, Stage::Idle { .. }) && deny.reason == DenyReason::Spent {
            self.row.asking = None;
            return vec![
                HoldAction::Keep(self.row.clone()),
                HoldAction::Denied(deny.reason),
            ];
        }
        if let Stage::Dropped { generation } = self.row.stage
            && matches!(deny.reason, DenyReason::Unknown | DenyReason::Spent)
        {
            // Nobody there thinks that it is here.
            return self.leave(generation);
        }
        // The question stays: an earlier repetition of it may yet be granted, and must then be known again.
        vec![HoldAction::Denied(deny.reason)]
    }

    /// Its generation has ended at the datacenter. `fresh` is random, the fork's name.
    pub fn fenced(&mut self, fence: &FenceLease, fresh: Nonce) -> Vec<HoldAction> {
        match &self.row.stage {
            // A question came behind what gave the desktop back.
            Stage::Held {
                lease,
                is_returning: true,
            } if fence.desktop == self.row.desktop
                && fence.generation == lease.generation
                && fence.ended == Ended::Returned =>
            {
                return self.leave(fence.generation);
            }
            // However it ended: what would be the fork is given up.
            Stage::Dropped { generation }
                if fence.desktop == self.row.desktop && fence.generation == *generation =>
            {
                return self.leave(fence.generation);
            }
            Stage::Held { lease, .. }
                if fence.desktop == self.row.desktop && fence.generation == lease.generation => {}
            _ => return Vec::new(),
        }
        self.row.asking = None;
        self.row.stage = Stage::Fenced {
            generation: fence.generation,
            ended: fence.ended,
            fork: fresh,
        };
        vec![
            HoldAction::Stop,
            HoldAction::Keep(self.row.clone()),
            HoldAction::Aim,
        ]
    }

    /// The desktop was given back, or its generation has ended as it was to.
    pub fn returned(&mut self, returned: &LeaseReturned) -> Vec<HoldAction> {
        match &self.row.stage {
            Stage::Held {
                lease,
                is_returning: true,
            } if returned.desktop == self.row.desktop
                && returned.generation == lease.generation =>
            {
                self.leave(returned.generation)
            }
            Stage::Dropped { generation }
                if returned.desktop == self.row.desktop && returned.generation == *generation =>
            {
                self.leave(returned.generation)
            }
            _ => Vec::new(),
        }
    }

    /// All of the fork is at the datacenter.
    pub fn settled(&mut self, name: Nonce) -> Vec<HoldAction> {
        match &self.row.stage {
            Stage::Fenced {
                generation, fork, ..
            } if *fork == name => {
                let generation = *generation;
                self.leave(generation)
            }
            _ => Vec::new(),
        }
    }

    fn leave(&mut self, last: Generation) -> Vec<HoldAction> {
        self.row.asking = None;
        self.row.stage = Stage::Idle { last };
        vec![HoldAction::Keep(self.row.clone()), HoldAction::Leave]
    }

    /// Notes the time, and stops a machine whose lease is over. To be called every minute or so.
    pub fn tick(&mut self, now_unix_s: u64) -> Vec<HoldAction> {
        if !matches!(self.row.stage, Stage::Held { .. }) {
            return Vec::new();
        }
        let mut actions = Vec::new();
        if self.right(now_unix_s) == Right::Over {
            actions.push(HoldAction::Stop);
        }
        if now_unix_s >= self.row.seen_unix_s.saturating_add(SEEN_STEP_S) {
            self.row.seen_unix_s = now_unix_s;
            actions.push(HoldAction::Keep(self.row.clone()));
        }
        actions
    }
}
