//! A branch: its disk, its two machines, and what their owner does with their actions.

use super::super::authority::{Hold, HoldAction, HoldRow, Right, Stage};
use super::super::lease::Lease;
use super::super::message::PartChunks;
use super::super::writeback::{SealPolicy, SendAction, SendRow, Sender};
use super::super::{Generation, Line, Nonce, Position};
use super::world::{Act, Actor, History, World, branch_id};
use super::{DESKTOP, Write, part_of};
use crate::wire::{Batch, BatchEncoding, Message};

/// Seals at every poll: the explorer decides when that is.
const AT_ONCE: SealPolicy = SealPolicy {
    after_s: 0,
    after_records: 1,
};

/// What a power cut leaves of a branch, and what a backup copies.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SiteDisk {
    pub(super) hold: HoldRow,
    pub(super) send: SendRow,
    /// Under which generation the overlay is written.
    pub(super) overlay: Generation,
    /// What lies under the overlay.
    pub(super) base: Vec<Write>,
    /// The overlay: its records, from sequence number 1.
    pub(super) log: Vec<Write>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Site {
    pub(super) disk: SiteDisk,
    pub(super) backup: Option<Box<SiteDisk>>,
    pub(super) hold: Hold,
    pub(super) send: Sender,
    /// Which history its guest lives in.
    pub(super) history: usize,
    /// Random numbers drawn so far. No disk copy takes them back.
    drawn: u8,
    index: usize,
}

impl Site {
    pub(super) fn new(index: usize) -> Self {
        let line = Line {
            desktop: DESKTOP,
            generation: Generation::NONE,
            fork: None,
        };
        let disk = SiteDisk {
            hold: HoldRow::new(DESKTOP),
            send: SendRow {
                line,
                acked: Position::START,
                sealed: None,
            },
            overlay: Generation::NONE,
            base: Vec::new(),
            log: Vec::new(),
        };
        let mut send = Sender::open(disk.send.clone(), 0, 0);
        send.linked();
        Self {
            hold: Hold::open(branch_id(index), disk.hold.clone()),
            send,
            disk,
            backup: None,
            history: usize::MAX,
            drawn: 0,
            index,
        }
    }

    fn fresh(&self) -> Nonce {
        let mut bytes = [0; 16];
        bytes[0] = self.index as u8 + 1;
        bytes[1] = self.drawn + 1;
        Nonce(bytes)
    }

    /// Counts a number as drawn if it was used.
    fn note_drawn(&mut self) {
        let fresh = self.fresh();
        let row = self.hold.row();
        let is_fork = matches!(&row.stage, Stage::Fenced { fork, .. } if *fork == fresh);
        if is_fork || row.asking == Some(fresh) || self.send.facts().sealed == fresh {
            self.drawn += 1;
        }
    }

    pub(super) fn holds(&self) -> bool {
        matches!(self.hold.row().stage, Stage::Held { .. })
    }

    pub(super) fn may_ask(&self) -> bool {
        matches!(
            self.hold.row().stage,
            Stage::Idle { .. }
                | Stage::Held {
                    is_returning: false,
                    ..
                }
        )
    }

    /// Whether somebody can give the desktop up here, or is to tell that again.
    pub(super) fn may_drop(&self) -> bool {
        let row = self.hold.row();
        match row.stage {
            Stage::Idle { .. } => row.asking.is_some(),
            Stage::Held { .. } | Stage::Dropped { .. } => true,
            Stage::Fenced { .. } => false,
        }
    }

    pub(super) fn may_write(&self, now: u64) -> bool {
        let may_run = matches!(self.hold.right(now), Right::Run | Right::Grace);
        let aim = self.hold.aim();
        may_run && aim.is_some_and(|(line, _)| line.generation == self.disk.overlay)
    }

    fn flushed(&self) -> u64 {
        self.disk.log.len() as u64
    }
}

fn holds(actions: Vec<HoldAction>) -> Vec<Act> {
    actions.into_iter().map(Act::Hold).collect()
}

fn sends(actions: Vec<SendAction>) -> Vec<Act> {
    actions.into_iter().map(Act::Send).collect()
}

impl World {
    pub(super) fn site_asks(&mut self, index: usize) -> Vec<Act> {
        let site = &mut self.sites[index];
        let (fresh, facts) = (site.fresh(), site.send.facts());
        let actions = site.hold.ask(fresh, &facts).unwrap_or_default();
        site.note_drawn();
        self.budget.asks = self.budget.asks.saturating_sub(1);
        holds(actions)
    }

    pub(super) fn site_writes(&mut self, index: usize) {
        self.budget.writes -= 1;
        let histories = self.oracle.histories.iter();
        let written: usize = histories.map(|history| history.writes.len()).sum();
        // Copies of a disk repeat numbers in their histories, so this may leave some out.
        let write = (written + 1) as Write;
        let site = &mut self.sites[index];
        site.disk.log.push(write);
        let flushed = site.flushed();
        site.send.flushed(flushed, self.now);
        let history = site.history;
        self.oracle.histories[history].writes.push(write);
        self.oracle.owed.insert(write);
    }

    pub(super) fn site_polls(&mut self, index: usize) -> Vec<Act> {
        let now = self.now;
        let site = &mut self.sites[index];
        let fresh = site.fresh();
        let actions = site.send.poll(&AT_ONCE, fresh, now);
        site.note_drawn();
        sends(actions)
    }

    pub(super) fn site_gives_back(&mut self, index: usize) -> Vec<Act> {
        let site = &mut self.sites[index];
        let was_returning = site.hold.right(0) == Right::None;
        let facts = site.send.facts();
        let actions = site.hold.give_back(&facts).unwrap_or_default();
        if !was_returning && !actions.is_empty() {
            self.budget.returns = self.budget.returns.saturating_sub(1);
        }
        holds(actions)
    }

    /// What the datacenter does not have goes, by somebody's wish.
    pub(super) fn site_drops(&mut self, index: usize) -> Vec<Act> {
        let held = self.center.holds();
        let site = &mut self.sites[index];
        let is_new = !matches!(site.hold.row().stage, Stage::Dropped { .. });
        if is_new {
            self.budget.drops = self.budget.drops.saturating_sub(1);
            let log = &site.disk.log;
            let owed = &mut self.oracle.owed;
            owed.retain(|write| held.contains(write) || !log.contains(write));
        }
        let mut actions = site.hold.drop_writes().unwrap_or_default();
        let facts = site.send.facts();
        actions.extend(site.hold.tell_dropped(&facts));
        holds(actions)
    }

    pub(super) fn site_hears(&mut self, index: usize, message: Message) -> Vec<Act> {
        let site = &mut self.sites[index];
        let (fresh, facts) = (site.fresh(), site.send.facts());
        match message {
            Message::LeaseGranted(signed) => {
                // What signing adds is tested elsewhere.
                let (lease, _) = postcard::take_from_bytes::<Lease>(&signed.bytes)
                    .expect("the datacenter's own bytes");
                holds(site.hold.granted(lease))
            }
            Message::ProveLease(prove) => {
                if self.budget.answers == 0 {
                    return Vec::new();
                }
                let actions = site.hold.prove(&prove, fresh, &facts);
                site.note_drawn();
                if !actions.is_empty() {
                    self.budget.answers -= 1;
                }
                holds(actions)
            }
            Message::RecallLease(recall) => {
                site.hold.recalled(&recall);
                Vec::new()
            }
            Message::DenyLease(deny) => {
                let is_dropped = matches!(site.hold.row().stage, Stage::Dropped { .. });
                let asking = site.hold.row().asking;
                let actions = site.hold.denied(&deny);
                if let Some(nonce) = asking
                    && is_dropped
                    && matches!(site.hold.row().stage, Stage::Idle { .. })
                {
                    self.oracle.let_go.insert((index, nonce));
                }
                holds(actions)
            }
            Message::FenceLease(fence) => {
                let actions = site.hold.fenced(&fence, fresh);
                site.note_drawn();
                holds(actions)
            }
            Message::LeaseReturned(returned) => holds(site.hold.returned(&returned)),
            Message::WantChunks(want) => sends(site.send.wanted(&want)),
            Message::PartStaged(staged) => sends(site.send.staged(&staged)),
            Message::SegmentApplied(applied) => sends(site.send.applied(&applied)),
            Message::RestartSegment(restart) => sends(site.send.restart(&restart)),
            other => unreachable!("{} to a branch", other.name()),
        }
    }

    /// The link comes back.
    pub(super) fn site_links(&mut self, index: usize) {
        let acts = sends(self.sites[index].send.linked());
        self.run(Actor::Site(index), acts, usize::MAX);
    }

    /// The branch starts from its disk.
    pub(super) fn restart_site(&mut self, index: usize) -> Vec<Act> {
        let now = self.now;
        let site = &mut self.sites[index];
        site.hold = Hold::open(branch_id(index), site.disk.hold.clone());
        site.send = Sender::open(site.disk.send.clone(), site.flushed(), now);
        let mut acts = match site.hold.row().stage {
            Stage::Idle { .. } | Stage::Dropped { .. } => vec![Act::Hold(HoldAction::Leave)],
            Stage::Held { .. } | Stage::Fenced { .. } => vec![Act::Hold(HoldAction::Aim)],
        };
        acts.extend(sends(site.send.linked()));
        acts
    }

    /// A copy of its disk takes the disk's place. What was only on that disk is nobody's fault.
    pub(super) fn restore_site(&mut self, index: usize) {
        let site = &self.sites[index];
        let copy = site.backup.clone().expect("there is a copy");
        let held: Vec<Write> = self.center.holds();
        let lost = site.disk.log.iter().filter(|write| !held.contains(write));
        let lost: Vec<Write> = lost.filter(|w| !copy.log.contains(w)).copied().collect();
        self.oracle.owed.retain(|write| !lost.contains(write));
        self.oracle.restored.insert(index);
        if let Stage::Held { lease, .. } = &copy.hold.stage
            && self.center.has_seen_more(lease, &copy.send)
        {
            self.oracle.stale.insert((index, lease.generation));
        }
        let history = History {
            generation: copy.overlay,
            base: copy.base.clone(),
            writes: copy.log.clone(),
        };
        self.oracle.histories.push(history);
        let site = &mut self.sites[index];
        site.history = self.oracle.histories.len() - 1;
        site.disk = *copy;
        self.restart(Actor::Site(index));
    }

    pub(super) fn hold_acts(&mut self, index: usize, action: HoldAction) -> Vec<Act> {
        let now = self.now;
        let site = &mut self.sites[index];
        match action {
            HoldAction::Keep(row) => site.disk.hold = row,
            HoldAction::Stop | HoldAction::Denied(_) => {}
            HoldAction::Ask(ask) => self.post(Actor::Center, index, &Message::AskLease(ask)),
            HoldAction::Drop(drop) => self.post(Actor::Center, index, &Message::DropLease(drop)),
            HoldAction::Return(at) => self.post(Actor::Center, index, &Message::ReturnLease(at)),
            HoldAction::Aim => return self.aim(index),
            HoldAction::Leave => {
                if matches!(site.hold.row().stage, Stage::Dropped { .. }) {
                    // What was on its way is nothing any more.
                    let line = Line {
                        desktop: DESKTOP,
                        generation: Generation::NONE,
                        fork: None,
                    };
                    site.disk.send = SendRow {
                        line,
                        acked: Position::START,
                        sealed: None,
                    };
                    site.send = Sender::open(site.disk.send.clone(), 0, now);
                    site.send.linked();
                }
                site.disk.log.clear();
                site.disk.base.clear();
                site.disk.overlay = Generation::NONE;
            }
        }
        Vec::new()
    }

    fn aim(&mut self, index: usize) -> Vec<Act> {
        let now = self.now;
        let site = &mut self.sites[index];
        let Some((line, start)) = site.hold.aim() else {
            return Vec::new();
        };
        if site.disk.overlay != line.generation {
            // A new overlay, over what the desktop showed where the generation begins.
            let base = self.oracle.shown.get(&start.head).cloned();
            site.disk.overlay = line.generation;
            site.disk.base = base.unwrap_or_default();
            site.disk.log.clear();
            self.oracle.histories.push(History {
                generation: line.generation,
                base: site.disk.base.clone(),
                writes: Vec::new(),
            });
            site.history = self.oracle.histories.len() - 1;
        }
        let flushed = site.flushed();
        let mut acts = sends(site.send.aim(line, start, flushed, now));
        acts.extend(sends(site.send.linked()));
        acts
    }

    pub(super) fn send_acts(&mut self, index: usize, action: SendAction) -> Vec<Act> {
        let site = &mut self.sites[index];
        match action {
            SendAction::Keep(row) => site.disk.send = row,
            SendAction::Make { after, to, part } => {
                let records = site.disk.log.get(after as usize..to as usize);
                let records = records.unwrap_or_default();
                // Later writes lie in front, see `part_of`.
                let Some(write) = records.iter().rev().nth(part as usize) else {
                    // Never, unless a defect is switched on.
                    return Vec::new();
                };
                let is_last = part as usize + 1 == records.len();
                let ranges = part_of(*write);
                return sends(site.send.made(to, part, ranges, is_last));
            }
            SendAction::Offer(offer) => self.post(Actor::Center, index, &Message::OfferPart(offer)),
            SendAction::SendChunks(want) => {
                let chunks = PartChunks {
                    line: want.line,
                    segment: want.segment,
                    part: want.part,
                    batch: Batch {
                        count: want.wanted.len() as u32,
                        encoding: BatchEncoding::Each,
                        packed: Vec::new(),
                    },
                };
                self.post(Actor::Center, index, &Message::PartChunks(chunks));
            }
            SendAction::Release(_) => {}
            SendAction::Settled(fork) => return holds(site.hold.settled(fork)),
        }
        Vec::new()
    }

    /// Whether some branch's disk has a write.
    pub(super) fn is_on_a_disk(&self, write: Write) -> bool {
        let mut disks = self.sites.iter().map(|site| &site.disk);
        disks.any(|disk| disk.log.contains(&write))
    }
}
