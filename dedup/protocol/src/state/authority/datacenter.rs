//! The datacenter's end of leases: grant, renew, take back, break, fence.
//!
//! Invariant: see [the module](super). The row is read and written in one catalog transaction with what is decided by it; the challenge
//! is not kept, because a crash may forget a question but must not forget a decision.
//!
//! It does not know who is entitled to a desktop (its owner asks before [`Authority::ask`]), and it does not sign.

use dedup::{BranchId, DesktopId};

use super::super::message::{
    AskLease, DenyLease, DenyReason, DropLease, FenceLease, LeaseReturned, ProveLease, ReturnLease,
};
use super::super::{Ended, Generation, Mutant, Nonce, is_mutated};
use super::row::{AuthorityRow, Holder, PAST_MAX, Past, Progress, Standing, Terms};

/// By how much a branch's clock may be slow, in seconds: only so long after its end a lease is broken without `force`.
const CLOCK_SLACK_S: u64 = 300;

/// A lease was broken, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which desktop.
    pub desktop: DesktopId,
    /// Which generation.
    pub generation: Generation,
    /// Whose.
    pub branch: BranchId,
    /// How it ended.
    pub ended: Ended,
    /// Who broke it, and why; what the datacenter saw, if it was not IT.
    pub reason: String,
}

/// What the owner does, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorityAction {
    /// Makes this durable, with the audit entry in the same transaction, before it goes on.
    Keep(AuthorityRow, Option<Broken>),
    /// Signs the lease that follows from this, and sends it to its branch.
    Grant(Generation, Holder),
    /// Sends it to the branch that asked.
    Prove(ProveLease),
    /// The same.
    Deny(DenyLease),
    /// The same; after a break to the branch whose lease it was, if it is connected.
    Fence(FenceLease),
    /// The same.
    Returned(LeaseReturned),
}

/// Why a lease is not broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BreakError {
    /// Nobody has it.
    #[error("no branch holds the desktop; there is no lease to break")]
    NotHeld,
    /// Nobody said why.
    #[error("say why the lease is broken; the reason is kept in the audit log")]
    NoReason,
    /// The branch may still run it.
    #[error(
        "branch {branch} may run the desktop until {ends_unix_s} (unix seconds); what it writes until it hears of the break becomes a fork. Break it by force if that is wanted"
    )]
    MayRun {
        /// Which branch.
        branch: BranchId,
        /// Until when.
        ends_unix_s: u64,
    },
}

/// The datacenter's end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authority {
    row: AuthorityRow,
    /// The question whose answer decides whether the holder is an older copy. Forgotten whenever the holder shows that it is none.
    challenge: Option<u64>,
}

impl Authority {
    /// From its row.
    pub fn open(row: AuthorityRow) -> Self {
        Self {
            row,
            challenge: None,
        }
    }

    /// Its row.
    pub fn row(&self) -> &AuthorityRow {
        &self.row
    }

    /// What `generation` is worth when `branch` says it.
    pub fn standing(&self, branch: BranchId, generation: Generation) -> Standing {
        if generation == self.row.last
            && let Some(holder) = &self.row.holder
        {
            return if holder.branch == branch {
                Standing::Current
            } else {
                Standing::Unknown
            };
        }
        let past = self.row.past.iter();
        match past.rev().find(|p| p.generation == generation) {
            Some(past) if past.branch == branch => {
                if past.ended == Ended::Broken && is_mutated(Mutant::AcceptAfterBreak) {
                    return Standing::Current;
                }
                Standing::Past(past.ended)
            }
            _ => Standing::Unknown,
        }
    }

    /// What `generation` is worth, whoever's it was.
    pub fn standing_of(&self, generation: Generation) -> Standing {
        let holder = self.row.holder.as_ref();
        let holder = holder.filter(|_| generation == self.row.last);
        let past = self
            .row
            .past
            .iter()
            .rev()
            .find(|p| p.generation == generation);
        let branch = holder.map(|h| h.branch).or(past.map(|p| p.branch));
        branch.map_or(Standing::Unknown, |branch| {
            self.standing(branch, generation)
        })
    }

    /// Answers a question of `branch`, which is entitled to the desktop. `progress` is that of the generation asked under, of the newest
    /// for a first question. `fresh` is random, not 0.
    pub fn ask(
        &mut self,
        branch: BranchId,
        ask: &AskLease,
        progress: &Progress,
        terms: &Terms,
        fresh: u64,
        now_unix_s: u64,
    ) -> Vec<AuthorityAction> {
        if ask.generation == Generation::NONE {
            return self.first_ask(branch, ask, progress, terms, now_unix_s);
        }
        match self.standing(branch, ask.generation) {
            Standing::Current => {}
            Standing::Past(ended) => return vec![self.fence_message(ask.generation, ended)],
            Standing::Unknown if ask.generation > self.row.last => {
                return vec![self.deny(ask.nonce, DenyReason::Behind)];
            }
            Standing::Unknown => return vec![self.deny(ask.nonce, DenyReason::Unknown)],
        }
        let Some(holder) = &mut self.row.holder else {
            return vec![self.deny(ask.nonce, DenyReason::Unknown)];
        };
        // A branch learns of nothing that is not durable here. If it knows more, this row is older than it was.
        if ask.renewal > holder.renewal || ask.acked.seq > progress.applied.seq {
            return vec![self.deny(ask.nonce, DenyReason::Behind)];
        }
        let is_next = ask.renewal == holder.renewal;
        let is_again = ask.renewal + 1 == holder.renewal && ask.nonce == holder.nonce;
        let is_there = ask.acked == progress.applied
            || (progress.newest != Nonce::NONE
                && (ask.acked, ask.sealed) == (progress.before, progress.newest));
        let is_sound = ((is_next || is_again) && is_there) || is_mutated(Mutant::TrustOldCopy);
        if is_sound {
            self.challenge = None;
            if is_again {
                return vec![AuthorityAction::Grant(ask.generation, holder.clone())];
            }
            holder.renewal = ask.renewal + 1;
            holder.nonce = ask.nonce;
            holder.issued_unix_s = now_unix_s;
            holder.expires_unix_s = now_unix_s.saturating_add(terms.lease_s);
            holder.offline_grace_s = terms.offline_grace_s;
            let holder = holder.clone();
            return vec![
                AuthorityAction::Keep(self.row.clone(), None),
                AuthorityAction::Grant(ask.generation, holder),
            ];
        }
        let is_proven = ask.challenge != 0 && self.challenge == Some(ask.challenge);
        if !is_proven && !is_mutated(Mutant::FenceUnproven) {
            return self.doubt(ask.generation, fresh);
        }
        let reason = format!(
            "the branch is at renewal {} and record {} of a lease that is at renewal {} and record {}: its disk is older than it was",
            ask.renewal, ask.acked.seq, holder.renewal, progress.applied.seq
        );
        let mut actions = self.end(Ended::OldCopy, reason, now_unix_s);
        actions.push(self.fence_message(ask.generation, Ended::OldCopy));
        actions
    }

    fn first_ask(
        &mut self,
        branch: BranchId,
        ask: &AskLease,
        progress: &Progress,
        terms: &Terms,
        now_unix_s: u64,
    ) -> Vec<AuthorityAction> {
        if let Some(holder) = &self.row.holder {
            let is_again = holder.branch == branch
                && holder.nonce == ask.nonce
                && holder.renewal == 1
                && progress.applied.seq == 0;
            return if is_again {
                vec![AuthorityAction::Grant(self.row.last, holder.clone())]
            } else {
                vec![self.deny(ask.nonce, DenyReason::Held)]
            };
        }
        let mut past = self.row.past.iter();
        if past.any(|past| past.branch == branch && past.asked == ask.nonce) {
            return vec![self.deny(ask.nonce, DenyReason::Spent)];
        }
        self.trim_past();
        if self.row.past.len() >= PAST_MAX {
            return vec![self.deny(ask.nonce, DenyReason::Unsettled)];
        }
        let is_first = self.row.last == Generation::NONE;
        if is_first || !is_mutated(Mutant::StaleGeneration) {
            self.row.last = self.row.last.next();
        }
        let holder = Holder {
            branch,
            renewal: 1,
            nonce: ask.nonce,
            asked: ask.nonce,
            base: progress.applied.head,
            issued_unix_s: now_unix_s,
            expires_unix_s: now_unix_s.saturating_add(terms.lease_s),
            offline_grace_s: terms.offline_grace_s,
        };
        self.challenge = None;
        self.row.holder = Some(holder.clone());
        vec![
            AuthorityAction::Keep(self.row.clone(), None),
            AuthorityAction::Grant(self.row.last, holder),
        ]
    }

    /// Makes room among the ended generations: those given back with all they wrote go first, oldest first.
    fn trim_past(&mut self) {
        while self.row.past.len() >= PAST_MAX {
            let past = &mut self.row.past;
            let Some(index) = past.iter().position(|p| p.ended == Ended::Returned) else {
                return;
            };
            past.remove(index);
        }
    }

    /// Asks the holder of a generation where it is: something that came from it does not fit.
    pub fn doubt(&mut self, generation: Generation, fresh: u64) -> Vec<AuthorityAction> {
        let challenge = *self.challenge.get_or_insert(fresh);
        vec![AuthorityAction::Prove(ProveLease {
            desktop: self.row.desktop,
            generation,
            challenge,
        })]
    }

    /// A segment of the holder was applied: it is no older copy, whatever else was heard.
    pub fn reassured(&mut self) {
        self.challenge = None;
    }

    /// Takes a desktop back. `fresh` is random, not 0.
    pub fn give_back(
        &mut self,
        branch: BranchId,
        message: &ReturnLease,
        progress: &Progress,
        fresh: u64,
        now_unix_s: u64,
    ) -> Vec<AuthorityAction> {
        let generation = message.generation;
        match self.standing(branch, generation) {
            Standing::Current if message.at == progress.applied => {
                let mut actions = self.end(Ended::Returned, String::new(), now_unix_s);
                actions.push(self.returned(generation));
                actions
            }
            Standing::Current if message.at.seq > progress.applied.seq => {
                vec![self.deny(Nonce::NONE, DenyReason::Behind)]
            }
            Standing::Current => self.doubt(generation, fresh),
            Standing::Past(Ended::Returned) => vec![self.returned(generation)],
            Standing::Past(ended) => vec![self.fence_message(generation, ended)],
            Standing::Unknown => vec![self.deny(Nonce::NONE, DenyReason::Unknown)],
        }
    }

    /// Ends a generation of which its branch has destroyed what is not here. What is here stays.
    pub fn drop_lease(
        &mut self,
        branch: BranchId,
        message: &DropLease,
        now_unix_s: u64,
    ) -> Vec<AuthorityAction> {
        let generation = message.generation;
        match self.standing(branch, generation) {
            Standing::Current => {
                let mut actions = self.end(Ended::Returned, String::new(), now_unix_s);
                actions.push(self.returned(generation));
                actions
            }
            // However it ended: no fork of it comes any more.
            Standing::Past(_) => vec![self.returned(generation)],
            Standing::Unknown => vec![self.deny(Nonce::NONE, DenyReason::Unknown)],
        }
    }

    /// Breaks a lease at IT's word. `reason` says who does it and why. With `force` also one under which the branch may still run the
    /// desktop.
    ///
    /// # Errors
    /// See [`BreakError`].
    pub fn break_lease(
        &mut self,
        reason: &str,
        force: bool,
        now_unix_s: u64,
    ) -> Result<Vec<AuthorityAction>, BreakError> {
        let Some(holder) = &self.row.holder else {
            return Err(BreakError::NotHeld);
        };
        if reason.trim().is_empty() {
            return Err(BreakError::NoReason);
        }
        let ends_unix_s = holder
            .expires_unix_s
            .saturating_add(holder.offline_grace_s)
            .saturating_add(CLOCK_SLACK_S);
        if now_unix_s < ends_unix_s && !force {
            return Err(BreakError::MayRun {
                branch: holder.branch,
                ends_unix_s,
            });
        }
        let generation = self.row.last;
        let mut actions = self.end(Ended::Broken, reason.to_owned(), now_unix_s);
        actions.push(self.fence_message(generation, Ended::Broken));
        Ok(actions)
    }

    /// IT has settled what could still come of a generation: it is forgotten, and what it began with need not be kept for it.
    pub fn forget(&mut self, generation: Generation) -> Vec<AuthorityAction> {
        let before = self.row.past.len();
        self.row.past.retain(|p| p.generation != generation);
        if self.row.past.len() == before {
            return Vec::new();
        }
        vec![AuthorityAction::Keep(self.row.clone(), None)]
    }

    /// Ends the present generation.
    fn end(&mut self, ended: Ended, reason: String, now_unix_s: u64) -> Vec<AuthorityAction> {
        let Some(holder) = self.row.holder.take() else {
            return Vec::new();
        };
        self.challenge = None;
        let generation = self.row.last;
        self.row.past.push(Past {
            generation,
            branch: holder.branch,
            asked: holder.asked,
            base: holder.base,
            ended,
            ended_unix_s: now_unix_s,
        });
        let audit = (ended != Ended::Returned).then_some(Broken {
            desktop: self.row.desktop,
            generation,
            branch: holder.branch,
            ended,
            reason,
        });
        vec![AuthorityAction::Keep(self.row.clone(), audit)]
    }

    fn deny(&self, nonce: Nonce, reason: DenyReason) -> AuthorityAction {
        let message = match reason {
            DenyReason::Held => {
                "another branch holds the desktop, or this one did before its disk was replaced; give it back there, or break the lease with `splice desktop-state break-lease`"
            }
            DenyReason::Unsettled => {
                "too many ended leases of this desktop may still come back as forks; settle some with `splice desktop-state fork`"
            }
            DenyReason::Spent => "an old question; it is asked anew",
            DenyReason::Unknown => "no such desktop or lease for this branch",
            DenyReason::Behind => {
                "the datacenter was set back to before this lease; nothing is lost at the branch, IT is to restore a newer backup or break the lease"
            }
        };
        AuthorityAction::Deny(DenyLease {
            desktop: self.row.desktop,
            nonce,
            reason,
            message: message.to_owned(),
        })
    }

    fn fence_message(&self, generation: Generation, ended: Ended) -> AuthorityAction {
        AuthorityAction::Fence(FenceLease {
            desktop: self.row.desktop,
            generation,
            ended,
        })
    }

    fn returned(&self, generation: Generation) -> AuthorityAction {
        AuthorityAction::Returned(LeaseReturned {
            desktop: self.row.desktop,
            generation,
        })
    }
}
