//! The world: its parts, its events, and how one event is performed, up to the end or to a crash.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use dedup::BranchId;

use super::super::authority::{AuthorityAction, HoldAction};
use super::super::writeback::{ReceiveAction, SendAction};
use super::super::{Generation, Head, Nonce};
use super::Write;
use super::center::{Build, Center};
use super::site::Site;
use crate::wire::Message;

/// Late enough for every lease and grace to be over.
pub(super) const LATE: u64 = 10_000;

/// How often what may still happen. Part of the world: two worlds are the same only if as much may still happen in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub(super) writes: u8,
    /// Questions of branches, new ones and repetitions, which tell how far the branch is by then.
    pub(super) asks: u8,
    pub(super) returns: u8,
    pub(super) crashes: u8,
    /// Questions of the datacenter.
    pub(super) proofs: u8,
    /// Answers of branches to them: one message may arrive again and again.
    pub(super) answers: u8,
    pub(super) breaks: u8,
    pub(super) backups: u8,
    pub(super) restores: u8,
    pub(super) expiries: u8,
    /// Desktops that somebody gives up at their branch.
    pub(super) drops: u8,
    /// Desktops that IT moves to another branch.
    pub(super) moves: u8,
}

impl Budget {
    pub(super) const NOTHING: Self = Self {
        writes: 0,
        asks: 0,
        returns: 0,
        crashes: 0,
        proofs: 0,
        answers: 0,
        breaks: 0,
        backups: 0,
        restores: 0,
        expiries: 0,
        drops: 0,
        moves: 0,
    };
}

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// A branch asks for the desktop, or for its next lease.
    Ask(usize),
    /// A guest writes and flushes, and is told that it is durable.
    Write(usize),
    /// A branch seals a segment if there is anything to send.
    Poll(usize),
    /// A branch gives the desktop back.
    GiveBack(usize),
    /// Somebody gives up what the desktop wrote at a branch; or the datacenter is told of it once more.
    Drop(usize),
    /// IT moves the desktop to a branch.
    Move(usize),
    /// A message arrives.
    Deliver(Packet),
    /// The manifests of a segment are built.
    Built(Build),
    /// IT breaks the lease.
    Break,
    /// Somebody copies a branch's disk.
    Backup(usize),
    /// Somebody puts that copy in the place of the disk.
    Restore(usize),
    /// All leases end.
    Expire,
}

/// Who performs an event, and so who can crash in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Actor {
    Center,
    Site(usize),
}

/// A message on its way, between the datacenter and one branch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Packet {
    pub(super) to: Actor,
    /// The branch at the other end, or the one that it goes to.
    pub(super) site: usize,
    /// Shared, because worlds are cloned all the time.
    pub(super) frame: Rc<[u8]>,
}

/// One thing that an actor does. A crash comes between two of them.
#[derive(Debug)]
pub(super) enum Act {
    Hold(HoldAction),
    Send(SendAction),
    Authority(AuthorityAction),
    /// On the desktop's own line, or on a fork's.
    Receive(Option<ForkKey>, ReceiveAction),
}

/// A fork, at the datacenter.
pub(super) type ForkKey = (Generation, Nonce);

/// What a branch's disk showed over time, as its guest was told: what it began with, and writes in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct History {
    pub(super) generation: Generation,
    pub(super) base: Vec<Write>,
    pub(super) writes: Vec<Write>,
}

/// What is known about the world from outside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Oracle {
    pub(super) histories: Vec<History>,
    /// Writes that were acknowledged and not lost with a disk that somebody took away.
    pub(super) owed: BTreeSet<Write>,
    /// To which branch each generation was granted.
    pub(super) granted: BTreeMap<Generation, usize>,
    pub(super) broken: BTreeSet<Generation>,
    /// Branches that came back with a copy of their disk.
    pub(super) restored: BTreeSet<usize>,
    /// Questions that a branch let go of, for a desktop that was given up, as it was not theirs. A repetition of it that is on its way still
    /// (over a former link) and arrives when it is theirs again is granted to nobody, until IT breaks that lease: a known hole.
    pub(super) let_go: BTreeSet<(usize, Nonce)>,
    /// Of those that came back: generations under which the datacenter had seen more than the copy knows.
    pub(super) stale: BTreeSet<(usize, Generation)>,
    /// What the desktop showed at each head.
    pub(super) shown: BTreeMap<Head, Vec<Write>>,
    /// What must never be, and was.
    pub(super) fault: Option<&'static str>,
}

/// See [the module](super).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) center: Center,
    pub(super) sites: Vec<Site>,
    pub(super) net: BTreeSet<Packet>,
    pub(super) budget: Budget,
    pub(super) oracle: Oracle,
    pub(super) now: u64,
    /// When it heals, messages arrive once and in order.
    pub(super) line: Option<VecDeque<Packet>>,
}

impl World {
    /// `sites` branches, none of which has the desktop. `holds_chunks`: the datacenter holds every chunk already.
    pub(super) fn new(sites: usize, holds_chunks: bool, budget: Budget) -> Self {
        Self {
            center: Center::new(holds_chunks),
            sites: (0..sites).map(Site::new).collect(),
            net: BTreeSet::new(),
            budget,
            oracle: Oracle {
                histories: Vec::new(),
                owed: BTreeSet::new(),
                granted: BTreeMap::new(),
                broken: BTreeSet::new(),
                restored: BTreeSet::new(),
                let_go: BTreeSet::new(),
                stale: BTreeSet::new(),
                shown: BTreeMap::from([(Head::START, Vec::new())]),
                fault: None,
            },
            now: 0,
            line: None,
        }
    }

    /// The events that may happen next.
    pub(super) fn events(&self) -> Vec<Event> {
        let mut events: Vec<Event> = self.net.iter().cloned().map(Event::Deliver).collect();
        events.extend(self.center.builds.iter().copied().map(Event::Built));
        let budget = &self.budget;
        for (index, site) in self.sites.iter().enumerate() {
            if budget.asks > 0 && site.may_ask() {
                events.push(Event::Ask(index));
            }
            if budget.writes > 0 && site.may_write(self.now) {
                events.push(Event::Write(index));
            }
            events.push(Event::Poll(index));
            let is_recalled = site.hold.is_recalled();
            if site.holds() && (budget.returns > 0 || is_recalled) {
                events.push(Event::GiveBack(index));
            }
            if budget.drops > 0 && site.may_drop() {
                events.push(Event::Drop(index));
            }
            if budget.moves > 0 && self.center.disk.home != Some(index) {
                events.push(Event::Move(index));
            }
            if budget.backups > 0 {
                events.push(Event::Backup(index));
            }
            if budget.restores > 0 && site.backup.is_some() {
                events.push(Event::Restore(index));
            }
        }
        if budget.breaks > 0 && self.center.disk.authority.holder.is_some() {
            events.push(Event::Break);
        }
        if budget.expiries > 0 {
            events.push(Event::Expire);
        }
        events
    }

    /// Performs an event. With `stop_after`, whoever performs it crashes after so many actions, and is started again. Returns the number
    /// of actions that were performed.
    pub(super) fn perform(&mut self, event: &Event, stop_after: Option<usize>) -> usize {
        let (actor, acts) = self.begin(event);
        let done = self.run(actor, acts, stop_after.unwrap_or(usize::MAX));
        if stop_after.is_some() {
            self.budget.crashes = self.budget.crashes.saturating_sub(1);
            self.restart(actor);
        }
        done
    }

    /// Performs actions in order, at most `limit`; returns how many.
    pub(super) fn run(&mut self, actor: Actor, acts: Vec<Act>, limit: usize) -> usize {
        let mut queue = VecDeque::from(acts);
        let mut done = 0;
        while done < limit {
            let Some(act) = queue.pop_front() else { break };
            // What an action leads to comes before what stands behind it.
            for next in self.act(actor, act).into_iter().rev() {
                queue.push_front(next);
            }
            done += 1;
        }
        done
    }

    /// Starts an actor again from its disk.
    pub(super) fn restart(&mut self, actor: Actor) {
        let acts = match actor {
            Actor::Center => self.center.restart(),
            Actor::Site(index) => self.restart_site(index),
        };
        self.run(actor, acts, usize::MAX);
    }

    fn begin(&mut self, event: &Event) -> (Actor, Vec<Act>) {
        match event {
            Event::Ask(index) => (Actor::Site(*index), self.site_asks(*index)),
            Event::Write(index) => {
                self.site_writes(*index);
                (Actor::Site(*index), Vec::new())
            }
            Event::Poll(index) => (Actor::Site(*index), self.site_polls(*index)),
            Event::GiveBack(index) => (Actor::Site(*index), self.site_gives_back(*index)),
            Event::Drop(index) => (Actor::Site(*index), self.site_drops(*index)),
            Event::Move(index) => {
                self.budget.moves -= 1;
                (Actor::Center, self.center_moves(*index))
            }
            Event::Deliver(packet) => {
                let message = Message::decode(&packet.frame).expect("our own frame");
                let acts = match packet.to {
                    Actor::Center => self.center_hears(packet.site, message),
                    Actor::Site(index) => self.site_hears(index, message),
                };
                (packet.to, acts)
            }
            Event::Built(build) => (Actor::Center, self.center_builds(*build)),
            Event::Break => {
                self.budget.breaks -= 1;
                (Actor::Center, self.center_breaks())
            }
            Event::Backup(index) => {
                self.budget.backups -= 1;
                let site = &mut self.sites[*index];
                site.backup = Some(Box::new(site.disk.clone()));
                (Actor::Site(*index), Vec::new())
            }
            Event::Restore(index) => {
                self.budget.restores -= 1;
                self.restore_site(*index);
                (Actor::Site(*index), Vec::new())
            }
            Event::Expire => {
                self.budget.expiries -= 1;
                self.now += LATE;
                (Actor::Center, Vec::new())
            }
        }
    }

    fn act(&mut self, actor: Actor, act: Act) -> Vec<Act> {
        match (actor, act) {
            (Actor::Site(index), Act::Hold(action)) => self.hold_acts(index, action),
            (Actor::Site(index), Act::Send(action)) => self.send_acts(index, action),
            (_, Act::Authority(action)) => self.authority_acts(action),
            (_, Act::Receive(fork, action)) => self.receive_acts(fork, action),
            (Actor::Center, act) => unreachable!("the datacenter does not {act:?}"),
        }
    }

    pub(super) fn post(&mut self, to: Actor, site: usize, message: &Message) {
        let packet = Packet {
            to,
            site,
            frame: message.encode().into(),
        };
        match &mut self.line {
            Some(line) => line.push_back(packet),
            None => {
                self.net.insert(packet);
            }
        }
    }

    /// Notes what must never be.
    pub(super) fn fault(&mut self, what: &'static str) {
        self.oracle.fault.get_or_insert(what);
    }
}

/// The branch of a place in [`World::sites`].
pub(super) fn branch_id(index: usize) -> BranchId {
    BranchId([index as u8 + 1; 16])
}

/// Its place.
pub(super) fn site_of(branch: BranchId) -> usize {
    usize::from(branch.0[0]) - 1
}
