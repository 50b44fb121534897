//! The datacenter: its catalog, its machines, and what their owner does with their actions.

use std::collections::{BTreeMap, BTreeSet};

use super::super::authority::{Authority, AuthorityAction, AuthorityRow, Holder, Standing, Terms};
use super::super::lease::Lease;
use super::super::message::{DenyLease, DenyReason, FenceLease, RecallLease};
use super::super::writeback::{LineRow, Part, ReceiveAction, Receiver, SendRow};
use super::super::{Ended, Generation, Line, Nonce};
use super::world::{Act, Actor, ForkKey, World, branch_id, site_of};
use super::{DESKTOP, DISK_BYTES, REALM, Write, shown, tree, union};
use crate::wire::{Message, SignedBytes};

const TERMS: Terms = Terms {
    lease_s: 100,
    offline_grace_s: 100,
};

/// The manifests of a segment, on the desktop's own line or a fork's.
pub(super) type Build = (Option<ForkKey>, Nonce);

/// A line with the parts that are staged on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LineDisk {
    pub(super) row: LineRow,
    pub(super) parts: BTreeMap<u32, Vec<u8>>,
}

/// What a power cut leaves of the datacenter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CenterDisk {
    pub(super) authority: AuthorityRow,
    pub(super) main: LineDisk,
    pub(super) forks: BTreeMap<ForkKey, LineDisk>,
    /// The branch that may ask for the desktop; none before it was moved: whoever does.
    pub(super) home: Option<usize>,
    chunks: BTreeSet<Write>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Center {
    pub(super) disk: CenterDisk,
    pub(super) authority: Authority,
    main: Receiver,
    pub(super) forks: BTreeMap<ForkKey, Receiver>,
    /// Manifests that are being built.
    pub(super) builds: BTreeSet<Build>,
    holds_chunks: bool,
    /// Random numbers drawn so far.
    pub(super) drawn: u64,
}

impl Center {
    pub(super) fn new(holds_chunks: bool) -> Self {
        let line = Line {
            desktop: DESKTOP,
            generation: Generation::NONE,
            fork: None,
        };
        let disk = CenterDisk {
            authority: AuthorityRow::new(DESKTOP),
            main: LineDisk {
                row: LineRow::new(line, vec![tree(&[])]),
                parts: BTreeMap::new(),
            },
            forks: BTreeMap::new(),
            home: None,
            chunks: BTreeSet::new(),
        };
        Self {
            authority: Authority::open(disk.authority.clone()),
            main: Receiver::open(disk.main.row.clone()).0,
            forks: BTreeMap::new(),
            builds: BTreeSet::new(),
            disk,
            holds_chunks,
            drawn: 0,
        }
    }

    /// The datacenter starts from its disk.
    pub(super) fn restart(&mut self) -> Vec<Act> {
        self.authority = Authority::open(self.disk.authority.clone());
        let (main, left) = Receiver::open(self.disk.main.row.clone());
        self.main = main;
        self.builds.clear();
        let mut acts = received(None, left);
        self.forks.clear();
        for (key, fork) in &self.disk.forks {
            let (receiver, left) = Receiver::open(fork.row.clone());
            self.forks.insert(*key, receiver);
            acts.extend(received(Some(*key), left));
        }
        acts
    }

    /// Writes that are durable here for good: in the desktop's state, or in a fork that is whole.
    pub(super) fn holds(&self) -> Vec<Write> {
        let mut all = shown(&self.disk.main.row.disks);
        for fork in self.disk.forks.values().filter(|f| f.row.applied.seq > 0) {
            all = union(&all, &shown(&fork.row.disks));
        }
        all
    }

    /// Whether more has happened here under a lease than the disk copy can know that has these rows.
    pub(super) fn has_seen_more(&self, lease: &Lease, send: &SendRow) -> bool {
        let Some(holder) = &self.disk.authority.holder else {
            return false;
        };
        let main = &self.disk.main.row;
        let progress = main.progress(lease.generation);
        let sealed = send.sealed.as_ref().map(|sealed| sealed.segment);
        let is_behind = progress.applied != send.acked && sealed != Some(progress.newest);
        self.disk.authority.last == lease.generation
            && (holder.renewal >= lease.renewal + 2 || is_behind)
    }

    pub(super) fn receiver(&mut self, fork: Option<ForkKey>) -> Option<&mut Receiver> {
        match fork {
            None => Some(&mut self.main),
            Some(key) => self.forks.get_mut(&key),
        }
    }

    pub(super) fn line_disk(&mut self, fork: Option<ForkKey>) -> Option<&mut LineDisk> {
        match fork {
            None => Some(&mut self.disk.main),
            Some(key) => self.disk.forks.get_mut(&key),
        }
    }

    pub(super) fn standing_on(&self, fork: Option<ForkKey>) -> Standing {
        let generation = fork.map_or(self.main.row().line.generation, |(of, _)| of);
        self.authority.standing_of(generation)
    }
}

pub(super) fn received(fork: Option<ForkKey>, actions: Vec<ReceiveAction>) -> Vec<Act> {
    let acts = actions.into_iter();
    acts.map(|action| Act::Receive(fork, action)).collect()
}

fn decided(actions: Vec<AuthorityAction>) -> Vec<Act> {
    actions.into_iter().map(Act::Authority).collect()
}

impl World {
    pub(super) fn center_breaks(&mut self) -> Vec<Act> {
        let broken = self
            .center
            .authority
            .break_lease("IT says so", true, self.now);
        decided(broken.unwrap_or_default())
    }

    /// Another branch may ask for the desktop from now on, and whoever holds it is to give it back.
    pub(super) fn center_moves(&mut self, to: usize) -> Vec<Act> {
        self.center.disk.home = Some(to);
        if let Some(holder) = &self.center.authority.row().holder {
            let site = site_of(holder.branch);
            self.recall(site);
        }
        Vec::new()
    }

    fn is_held_by(&self, site: usize) -> bool {
        let holder = self.center.authority.row().holder.as_ref();
        holder.is_some_and(|holder| site_of(holder.branch) == site)
    }

    fn is_home(&self, site: usize) -> bool {
        self.center.disk.home.is_none_or(|home| home == site)
    }

    /// Tells a branch that holds the desktop and is not its home.
    fn recall(&mut self, site: usize) {
        if self.is_held_by(site) && !self.is_home(site) {
            let recall = Message::RecallLease(RecallLease {
                desktop: DESKTOP,
                generation: self.center.authority.row().last,
            });
            self.post(Actor::Site(site), site, &recall);
        }
    }

    /// Whether a branch's question is answered: it is the desktop's home, holds it (and may not know that yet), or names a generation that it had.
    fn may_ask(&self, site: usize, generation: Generation) -> bool {
        let authority = &self.center.authority;
        self.is_home(site)
            || self.is_held_by(site)
            || authority.standing(branch_id(site), generation) != Standing::Unknown
    }

    pub(super) fn center_hears(&mut self, site: usize, message: Message) -> Vec<Act> {
        let (now, branch) = (self.now, branch_id(site));
        if let Message::AskLease(ask) = &message
            && !self.may_ask(site, ask.generation)
        {
            let deny = Message::DenyLease(DenyLease {
                desktop: DESKTOP,
                nonce: ask.nonce,
                reason: DenyReason::Unknown,
                message: String::new(),
            });
            self.post(Actor::Site(site), site, &deny);
            return Vec::new();
        }
        let center = &mut self.center;
        let fresh = center.drawn + 1;
        match message {
            Message::AskLease(ask) => {
                let under = match ask.generation {
                    Generation::NONE => center.authority.row().last,
                    generation => generation,
                };
                let progress = center.main.row().progress(under);
                let authority = &mut center.authority;
                let actions = authority.ask(branch, &ask, &progress, &TERMS, fresh, now);
                self.drawn(site, actions)
            }
            Message::DropLease(message) => {
                let actions = center.authority.drop_lease(branch, &message, now);
                self.drawn(site, actions)
            }
            Message::ReturnLease(at) => {
                let progress = center.main.row().progress(at.generation);
                let authority = &mut center.authority;
                let actions = authority.give_back(branch, &at, &progress, fresh, now);
                self.drawn(site, actions)
            }
            Message::OfferPart(offer) => {
                let standing = center.authority.standing(branch, offer.line.generation);
                let fork = offer.line.fork.map(|name| (offer.line.generation, name));
                if !self.open_fork(fork) {
                    return Vec::new();
                }
                let part = Part::decode(&offer.ranges, &[DISK_BYTES]).expect("our own part");
                let center = &mut self.center;
                let mut missing = Vec::new();
                for (index, (id, _)) in part.chunks().iter().enumerate() {
                    if !center.holds_chunks && !center.disk.chunks.contains(&id.0[0]) {
                        missing.push(index as u16);
                    }
                }
                let Some(receiver) = center.receiver(fork) else {
                    return Vec::new();
                };
                let taken = receiver.offer(standing, &offer, &part, &missing);
                let mut acts = Vec::new();
                for action in taken.unwrap_or_default() {
                    match action {
                        // It goes to whoever offered.
                        ReceiveAction::Fence(ended) => self.fence(site, &offer.line, ended),
                        action => acts.push(Act::Receive(fork, action)),
                    }
                }
                acts
            }
            Message::PartChunks(frame) => {
                let fork = frame.line.fork.map(|name| (frame.line.generation, name));
                let standing = center.standing_on(fork);
                let Some(receiver) = center.receiver(fork) else {
                    return Vec::new();
                };
                let Ok(chunks) = receiver.expected(&frame) else {
                    return Vec::new();
                };
                let actions = receiver.stored(standing, chunks.len() as u32);
                let stored = chunks.iter().map(|(id, _)| id.0[0]);
                center.disk.chunks.extend(stored);
                received(fork, actions)
            }
            other => unreachable!("{} to the datacenter", other.name()),
        }
    }

    /// Counts the random number as drawn if it was used.
    pub(super) fn drawn(&mut self, site: usize, actions: Vec<AuthorityAction>) -> Vec<Act> {
        let fresh = self.center.drawn + 1;
        let mut acts = Vec::new();
        for action in actions {
            match action {
                AuthorityAction::Prove(prove) => {
                    if prove.challenge == fresh {
                        // Without a bound a branch would prove itself for ever. Beyond it, the question gets lost.
                        if self.budget.proofs == 0 {
                            continue;
                        }
                        self.budget.proofs -= 1;
                        self.center.drawn = fresh;
                    }
                    self.post(Actor::Site(site), site, &Message::ProveLease(prove));
                }
                AuthorityAction::Deny(deny) => {
                    self.post(Actor::Site(site), site, &Message::DenyLease(deny));
                }
                // To whoever it was that asked, but behind what is kept.
                other => acts.push(Act::Authority(other)),
            }
        }
        acts
    }

    fn fence(&mut self, site: usize, line: &Line, ended: Ended) {
        let message = Message::FenceLease(FenceLease {
            desktop: DESKTOP,
            generation: line.generation,
            ended,
        });
        self.post(Actor::Site(site), site, &message);
    }

    pub(super) fn authority_acts(&mut self, action: AuthorityAction) -> Vec<Act> {
        match action {
            AuthorityAction::Keep(row, audit) => {
                if let Some(broken) = audit
                    && broken.ended == Ended::Broken
                {
                    self.oracle.broken.insert(broken.generation);
                }
                self.center.disk.authority = row;
            }
            AuthorityAction::Grant(generation, holder) => self.grant(generation, &holder),
            AuthorityAction::Fence(fence) => {
                if let Some(site) = self.holder_of(fence.generation) {
                    self.post(Actor::Site(site), site, &Message::FenceLease(fence));
                }
            }
            AuthorityAction::Returned(returned) => {
                if let Some(site) = self.holder_of(returned.generation) {
                    self.post(Actor::Site(site), site, &Message::LeaseReturned(returned));
                }
            }
            // Posted where the asker is known.
            AuthorityAction::Prove(_) | AuthorityAction::Deny(_) => {}
        }
        Vec::new()
    }

    fn grant(&mut self, generation: Generation, holder: &Holder) {
        let site = site_of(holder.branch);
        if *self.oracle.granted.entry(generation).or_insert(site) != site {
            self.fault("a generation was granted to two branches");
        }
        let lease = Lease {
            realm: REALM,
            desktop: DESKTOP,
            branch: holder.branch,
            generation,
            renewal: holder.renewal,
            nonce: holder.nonce,
            base: holder.base,
            issued_unix_s: holder.issued_unix_s,
            expires_unix_s: holder.expires_unix_s,
            offline_grace_s: holder.offline_grace_s,
        };
        let bytes = postcard::to_stdvec(&lease).expect("leases serialise without failing");
        let message = Message::LeaseGranted(SignedBytes { bytes });
        self.post(Actor::Site(site), site, &message);
        // Behind the lease, which takes the wish back.
        self.recall(site);
    }

    pub(super) fn holder_of(&self, generation: Generation) -> Option<usize> {
        self.oracle.granted.get(&generation).copied()
    }
}
