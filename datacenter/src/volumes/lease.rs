//! Leases: questions of branches answered, volumes taken back, leases broken by IT.
//!
//! A branch is entitled to a volume if it is the volume's home: the branch that told of it first, or the one that IT named since. Whoever held it before
//! is still told how its generation ended.

use dedup::{BranchId, DesktopId};
use dedup_protocol::state::authority::{
    Authority, AuthorityAction, BreakError, Holder, Standing, Terms,
};
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::message::{
    AskLease, DenyLease, DenyReason, DropLease, RecallLease, ReturnLease,
};
use dedup_protocol::state::{Generation, Nonce};
use dedup_protocol::wire::{Message, SignedBytes};

use super::keep::broken_entry;
use super::{Machines, StateError, Told, fresh, lock};
use crate::catalog::CatalogError;
use crate::catalog::volumes::{AuditEvent, VolumeRow};
use crate::datacenter::Datacenter;
use crate::restored::counter_floor;

/// What a branch hears of a volume that it had before.
const MOVED: &str =
    "it is at home at another branch now; IT can move it back: `splice desktop-state move`";

/// What a branch hears of a volume that is none, or not its own: the two are not told apart.
fn unknown(volume: DesktopId, nonce: Nonce) -> Message {
    refusal(volume, nonce, None)
}

/// The same of a volume that is away, for people.
fn refusal(volume: DesktopId, nonce: Nonce, away: Option<String>) -> Message {
    let message = away.unwrap_or_else(|| {
        "no such desktop for this branch; it is to be in the branch's report first".to_owned()
    });
    Message::DenyLease(DenyLease {
        desktop: volume,
        nonce,
        reason: DenyReason::Unknown,
        message,
    })
}

impl Datacenter {
    /// Answers a question for a lease.
    pub fn ask_lease(&self, branch: BranchId, ask: &AskLease) -> Result<Vec<Message>, StateError> {
        let Some(volume) = self.volume_row(ask.desktop)? else {
            return Ok(vec![unknown(ask.desktop, ask.nonce)]);
        };
        let machines = self.machines(ask.desktop, &volume)?;
        let mut machines = lock(&machines);
        let mut authority = machines.authority.clone();
        let standing = authority.standing(branch, ask.generation);
        let holds = |authority: &Authority| {
            let holder = authority.row().holder.as_ref();
            holder.is_some_and(|holder| holder.branch == branch)
        };
        // Who holds it may not know that yet, and asks as if for the first time.
        if volume.home != branch && standing == Standing::Unknown && !holds(&authority) {
            let mut past = authority.row().past.iter();
            let why = match self.away(branch, ask.desktop)? {
                None if past.any(|past| past.branch == branch) => Some(MOVED.to_owned()),
                away => away,
            };
            return Ok(vec![refusal(ask.desktop, ask.nonce, why)]);
        }
        if ask.generation == Generation::NONE && authority.row().holder.is_none() {
            authority = self.above_floor(authority)?;
        }
        let under = match ask.generation {
            Generation::NONE => authority.row().last,
            generation => generation,
        };
        let Some(progress) = machines.progress(ask.desktop, under) else {
            return Ok(vec![unknown(ask.desktop, ask.nonce)]);
        };
        let now = self.now_unix_s();
        let terms = self.lease_terms(ask.desktop, &volume)?;
        let actions = authority.ask(branch, ask, &progress, &terms, fresh(), now);
        let mut answers = self.decide(&mut machines, ask.desktop, &volume, authority, actions)?;
        let is_wanted = volume.home != branch || self.awaits_checkout(ask.desktop)?;
        if is_wanted && holds(&machines.authority) {
            // Behind the lease, which takes the wish back.
            answers.push(Message::RecallLease(RecallLease {
                desktop: ask.desktop,
                generation: machines.authority.row().last,
            }));
        }
        if standing == Standing::Current {
            machines.told = Some(Told {
                flushed: ask.flushed,
                generation: ask.generation,
                unix_s: now,
            });
        }
        drop(machines);
        let is_granted = answers
            .iter()
            .any(|a| matches!(a, Message::LeaseGranted(_)));
        if is_granted && ask.generation == Generation::NONE {
            self.advance_move(ask.desktop);
        }
        Ok(answers)
    }

    /// After a restore generations go on above all that may have been granted before it, so that what was becomes a fork.
    fn above_floor(&self, authority: Authority) -> Result<Authority, CatalogError> {
        let floor = Generation(self.catalog().read(counter_floor)?);
        if authority.row().last >= floor {
            return Ok(authority);
        }
        let mut row = authority.row().clone();
        row.last = floor;
        // Nobody holds it, so nothing is asked back.
        Ok(Authority::open(row))
    }

    fn lease_terms(&self, id: DesktopId, volume: &VolumeRow) -> Result<Terms, CatalogError> {
        let now = self.now_unix_s();
        self.catalog().read(|tx| {
            if let Some(terms) = Self::checkout_terms(tx, volume.home, id, now)? {
                return Ok(terms);
            }
            let policy = super::policy::policy_of(tx, volume.home, &volume.pool)?;
            Ok(Terms {
                lease_s: policy.lease_s,
                offline_grace_s: policy.offline_grace_s,
            })
        })
    }

    /// Takes a volume back.
    pub fn return_lease(
        &self,
        branch: BranchId,
        message: &ReturnLease,
    ) -> Result<Vec<Message>, StateError> {
        let id = message.desktop;
        let Some(volume) = self.volume_row(id)? else {
            return Ok(vec![unknown(id, Nonce::NONE)]);
        };
        let machines = self.machines(id, &volume)?;
        let mut machines = lock(&machines);
        let Some(progress) = machines.progress(id, message.generation) else {
            return Ok(vec![unknown(id, Nonce::NONE)]);
        };
        let mut authority = machines.authority.clone();
        let now = self.now_unix_s();
        let actions = authority.give_back(branch, message, &progress, fresh(), now);
        let answers = self.decide(&mut machines, id, &volume, authority, actions)?;
        drop(machines);
        self.advance_checkout_of(id);
        self.advance_move(id);
        Ok(answers)
    }

    /// Ends a lease of which the branch has destroyed what is not here.
    pub fn drop_lease(
        &self,
        branch: BranchId,
        message: &DropLease,
    ) -> Result<Vec<Message>, StateError> {
        let id = message.desktop;
        let Some(volume) = self.volume_row(id)? else {
            return Ok(vec![unknown(id, Nonce::NONE)]);
        };
        let machines = self.machines(id, &volume)?;
        let mut machines = lock(&machines);
        let mut authority = machines.authority.clone();
        let actions = authority.drop_lease(branch, message, self.now_unix_s());
        let answers = self.decide(&mut machines, id, &volume, authority, actions)?;
        drop(machines);
        if answers
            .iter()
            .any(|a| matches!(a, Message::LeaseReturned(_)))
        {
            tracing::info!(volume = %id, desktop = volume.desktop, %branch, "given up at its branch");
        }
        self.advance_checkout_of(id);
        self.advance_move(id);
        Ok(answers)
    }

    /// Breaks a lease at IT's word; `home` is the branch that may ask for the volume from now on. The branch that held it is told at once if its
    /// link is up. Of a volume that nobody holds only the home is changed, if it is another.
    pub(super) fn break_volume_lease(
        &self,
        id: DesktopId,
        volume: &VolumeRow,
        reason: &str,
        force: bool,
        home: BranchId,
    ) -> Result<Result<(), BreakError>, StateError> {
        let machines = self.machines(id, volume)?;
        let mut machines = lock(&machines);
        let mut authority = machines.authority.clone();
        let holder = authority.row().holder.as_ref().map(|holder| holder.branch);
        let actions = match authority.break_lease(reason, force, self.now_unix_s()) {
            Ok(actions) => actions,
            Err(BreakError::NotHeld) if home != volume.home => {
                let event = AuditEvent::HomeChanged;
                let entry = self.entry(id, volume, event, Generation::NONE, reason.to_owned());
                let row = authority.row().clone();
                self.keep_authority(&mut machines, id, volume, row, Some(entry), home)?;
                return Ok(Ok(()));
            }
            Err(error) => return Ok(Err(error)),
        };
        let messages = self.decide_for(&mut machines, id, volume, authority, actions, home)?;
        drop(machines);
        if let Some(holder) = holder {
            for message in messages {
                self.notify(holder, message);
            }
        }
        Ok(Ok(()))
    }

    /// Asks the holder of a generation where it is; answers what it is asked.
    pub(super) fn doubt(
        &self,
        machines: &mut Machines,
        id: DesktopId,
        volume: &VolumeRow,
        generation: Generation,
    ) -> Result<Vec<Message>, StateError> {
        let mut authority = machines.authority.clone();
        let actions = authority.doubt(generation, fresh());
        self.decide(machines, id, volume, authority, actions)
    }

    /// Does what `authority`, a step further than the one in `machines`, has decided; then it takes that one's place.
    fn decide(
        &self,
        machines: &mut Machines,
        id: DesktopId,
        volume: &VolumeRow,
        authority: Authority,
        actions: Vec<AuthorityAction>,
    ) -> Result<Vec<Message>, StateError> {
        self.decide_for(machines, id, volume, authority, actions, volume.home)
    }

    /// The same; from then on `home` may ask for the volume.
    fn decide_for(
        &self,
        machines: &mut Machines,
        id: DesktopId,
        volume: &VolumeRow,
        authority: Authority,
        actions: Vec<AuthorityAction>,
        home: BranchId,
    ) -> Result<Vec<Message>, StateError> {
        let mut messages = Vec::new();
        let mut is_kept = false;
        for action in actions {
            messages.push(match action {
                AuthorityAction::Keep(row, broken) => {
                    let entry = broken
                        .as_ref()
                        .map(|broken| broken_entry(broken, volume, self.now_unix_s()));
                    self.keep_authority(machines, id, volume, row, entry, home)?;
                    if let Some(broken) = broken {
                        tracing::warn!(volume = %id, desktop = volume.desktop, branch = %broken.branch, generation = broken.generation.0, reason = broken.reason, "a lease has ended");
                    }
                    is_kept = true;
                    continue;
                }
                AuthorityAction::Grant(generation, holder) => {
                    self.granted(id, generation, &holder)
                }
                AuthorityAction::Prove(prove) => Message::ProveLease(prove),
                AuthorityAction::Deny(deny) => {
                    if deny.reason == DenyReason::Behind {
                        tracing::error!(volume = %id, desktop = volume.desktop, "a branch knows more of a volume than is here; it goes on with what it has: was this datacenter restored from an old backup?");
                    }
                    Message::DenyLease(deny)
                }
                AuthorityAction::Fence(fence) => Message::FenceLease(fence),
                AuthorityAction::Returned(returned) => Message::LeaseReturned(returned),
            });
        }
        // A row that was only prepared for a grant is forgotten with the refusal.
        if is_kept || authority.row() == machines.authority.row() {
            machines.authority = authority;
        }
        Ok(messages)
    }

    fn granted(&self, id: DesktopId, generation: Generation, holder: &Holder) -> Message {
        let lease = Lease {
            realm: self.realm(),
            desktop: id,
            branch: holder.branch,
            generation,
            renewal: holder.renewal,
            nonce: holder.nonce,
            base: holder.base,
            issued_unix_s: holder.issued_unix_s,
            expires_unix_s: holder.expires_unix_s,
            offline_grace_s: holder.offline_grace_s,
        };
        let bytes = self.publisher().sign(&lease).to_bytes();
        Message::LeaseGranted(SignedBytes { bytes })
    }
}
