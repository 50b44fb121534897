//! Lines against a datacenter made of the pure machines: with losses, kills at every durable step, openings, wrong clocks and broken leases.
#![allow(clippy::unwrap_used, missing_docs)]

mod recall;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dedup::{BranchId, ChunkId, DesktopId, IdKey, NodeId, RealmId};
use dedup_protocol::client::ChunkExchange;
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::authority::{Authority, AuthorityAction, AuthorityRow, Standing, Terms};
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::message::{Cut, OfferPart, PartChunks};
use dedup_protocol::state::writeback::{
    LineRow, Part, RangeSource, ReceiveAction, Receiver, SealPolicy, SendRow,
};
use dedup_protocol::state::{Line as LineName, Nonce};
use dedup_protocol::wire::{Message, SignedBytes};
use rand::{RngCore, SeedableRng};

use super::line::{Common, Line, LineError};
use super::rows::{KeptHold, OverlayOf, Rows};
use super::shown::NoRight;
use super::tests::{DISK, open};
use crate::catalog::CatalogError;
use crate::volume::Overlay;

const VOLUME: DesktopId = DesktopId([5; 16]);
const BRANCH: BranchId = BranchId([6; 16]);
const TERMS: Terms = Terms {
    lease_s: 1000,
    offline_grace_s: 500,
};
const BEGIN: u64 = 1_700_000_000;

fn key() -> IdKey {
    IdKey::new([4; 32])
}

fn fresh() -> Nonce {
    static DRAWN: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0; 16];
    let drawn = DRAWN.fetch_add(1, Ordering::Relaxed);
    bytes[..8].copy_from_slice(&drawn.to_le_bytes());
    Nonce(bytes)
}

/// Rows that may die: at the keep of that number, before it is durable or behind it.
#[derive(Default)]
struct MemRows {
    rows: Mutex<(Option<KeptHold>, Option<SendRow>)>,
    keeps: AtomicU64,
    dies: Mutex<Option<(u64, bool)>>,
}

impl MemRows {
    fn keep(
        &self,
        store: impl FnOnce(&mut (Option<KeptHold>, Option<SendRow>)),
    ) -> Result<(), CatalogError> {
        let number = self.keeps.fetch_add(1, Ordering::Relaxed);
        let dies = *self.dies.lock().unwrap();
        let (is_last, is_kept) = match dies {
            Some((at, is_kept)) if at == number => (true, is_kept),
            _ => (false, true),
        };
        if is_kept {
            store(&mut self.rows.lock().unwrap());
        }
        if is_last {
            return Err(CatalogError::Row {
                key: "row".into(),
                reason: "killed".into(),
            });
        }
        Ok(())
    }
}

impl Rows for MemRows {
    fn keep_hold(&self, kept: &KeptHold) -> Result<(), CatalogError> {
        self.keep(|rows| rows.0 = Some(kept.clone()))
    }

    fn keep_send(&self, row: &SendRow) -> Result<(), CatalogError> {
        self.keep(|rows| rows.1 = Some(row.clone()))
    }

    /// What signing adds is tested where it is done.
    fn open_lease(&self, envelope: &[u8], _now_unix_s: u64) -> Result<Lease, CatalogError> {
        Ok(postcard::from_bytes(envelope).unwrap())
    }
}

/// What the datacenter has of a line.
struct Received {
    receiver: Receiver,
    parts: BTreeMap<u32, Vec<u8>>,
    state: Vec<u8>,
}

impl Received {
    fn new(line: LineName, state: Vec<u8>) -> Self {
        let tree = TreeRef {
            root: NodeId([1; 32]),
            size_bytes: DISK,
        };
        Self {
            receiver: Receiver::open(LineRow::new(line, vec![tree])).0,
            parts: BTreeMap::new(),
            state,
        }
    }
}

struct Center {
    authority: Authority,
    lines: HashMap<Option<Nonce>, Received>,
    chunks: HashMap<ChunkId, Bytes>,
    cuts: Vec<Cut>,
    challenges: u64,
    now: u64,
}

impl Center {
    fn new() -> Self {
        let line = LineName {
            desktop: VOLUME,
            generation: dedup_protocol::state::Generation::NONE,
            fork: None,
        };
        let received = Received::new(line, vec![0; DISK as usize]);
        Self {
            authority: Authority::open(AuthorityRow::new(VOLUME)),
            lines: HashMap::from([(None, received)]),
            chunks: HashMap::new(),
            cuts: Vec::new(),
            challenges: 0,
            now: BEGIN,
        }
    }

    fn state(&self) -> &[u8] {
        &self.lines[&None].state
    }

    fn fresh(&mut self) -> u64 {
        self.challenges += 1;
        self.challenges
    }

    fn hear(&mut self, message: Message) -> Vec<Message> {
        let (now, challenge) = (self.now, self.fresh());
        match message {
            Message::AskLease(ask) => {
                let row = self.lines[&None].receiver.row();
                let generation = if ask.generation.0 == 0 {
                    self.authority.row().last
                } else {
                    ask.generation
                };
                let progress = row.progress(generation);
                let actions = self
                    .authority
                    .ask(BRANCH, &ask, &progress, &TERMS, challenge, now);
                self.decide(actions)
            }
            Message::ReturnLease(message) => {
                let row = self.lines[&None].receiver.row();
                let progress = row.progress(message.generation);
                let actions = self
                    .authority
                    .give_back(BRANCH, &message, &progress, challenge, now);
                self.decide(actions)
            }
            Message::OfferPart(offer) => self.offer(&offer),
            Message::PartChunks(frame) => self.take(&frame),
            other => panic!("{} to a datacenter", other.name()),
        }
    }

    fn decide(&mut self, actions: Vec<AuthorityAction>) -> Vec<Message> {
        let messages = actions.into_iter().filter_map(|action| match action {
            AuthorityAction::Keep(..) => None,
            AuthorityAction::Grant(generation, holder) => {
                let lease = Lease {
                    realm: RealmId([1; 16]),
                    desktop: VOLUME,
                    branch: holder.branch,
                    generation,
                    renewal: holder.renewal,
                    nonce: holder.nonce,
                    base: holder.base,
                    issued_unix_s: holder.issued_unix_s,
                    expires_unix_s: holder.expires_unix_s,
                    offline_grace_s: holder.offline_grace_s,
                };
                let bytes = postcard::to_stdvec(&lease).unwrap();
                Some(Message::LeaseGranted(SignedBytes { bytes }))
            }
            AuthorityAction::Prove(prove) => Some(Message::ProveLease(prove)),
            AuthorityAction::Deny(deny) => Some(Message::DenyLease(deny)),
            AuthorityAction::Fence(fence) => Some(Message::FenceLease(fence)),
            AuthorityAction::Returned(returned) => Some(Message::LeaseReturned(returned)),
        });
        messages.collect()
    }

    fn offer(&mut self, offer: &OfferPart) -> Vec<Message> {
        let part = Part::decode(&offer.ranges, &[DISK]).unwrap();
        let standing = self.authority.standing(BRANCH, offer.line.generation);
        let chunks = part.chunks();
        let missing = (0u16..).zip(&chunks);
        let missing = missing.filter(|(_, (id, _))| !self.chunks.contains_key(id));
        let missing: Vec<u16> = missing.map(|(index, _)| index).collect();
        let fork = offer.line.fork;
        let line = self
            .lines
            .entry(fork)
            .or_insert_with(|| Received::new(offer.line, vec![0; DISK as usize]));
        let actions = line.receiver.offer(standing, offer, &part, &missing);
        self.perform(fork, standing, actions.unwrap())
    }

    fn take(&mut self, frame: &PartChunks) -> Vec<Message> {
        let standing = self.authority.standing(BRANCH, frame.line.generation);
        let fork = frame.line.fork;
        let line = self.lines.get_mut(&fork).unwrap();
        let expected = line.receiver.expected(frame).unwrap();
        let mut exchange = ChunkExchange::new(key(), expected);
        for chunk in exchange.batch(&frame.batch).unwrap() {
            self.chunks.insert(chunk.id(), chunk.bytes().clone());
        }
        let actions = line.receiver.stored(standing, frame.batch.count);
        self.perform(fork, standing, actions)
    }

    fn perform(
        &mut self,
        fork: Option<Nonce>,
        standing: Standing,
        actions: Vec<ReceiveAction>,
    ) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let line = self.lines.get_mut(&fork).unwrap();
            match action {
                ReceiveAction::Keep {
                    drops_parts,
                    part,
                    cut,
                    ..
                } => {
                    if drops_parts {
                        line.parts.clear();
                    }
                    line.parts.extend(part);
                    if cut != Cut::None {
                        self.cuts.push(cut);
                    }
                }
                ReceiveAction::Build { segment } => {
                    let mut state = line.state.clone();
                    for part in line.parts.values() {
                        show(&mut state, part, &self.chunks);
                    }
                    let tree = TreeRef {
                        root: NodeId([1; 32]),
                        size_bytes: DISK,
                    };
                    let built = line.receiver.built(standing, segment, vec![tree]);
                    if !built.is_empty() {
                        line.state = state;
                    }
                    actions.extend(built);
                }
                ReceiveAction::Want(want) => messages.push(Message::WantChunks(want)),
                ReceiveAction::Staged(staged) => messages.push(Message::PartStaged(staged)),
                ReceiveAction::Applied(applied) => {
                    self.authority.reassured();
                    messages.push(Message::SegmentApplied(applied));
                }
                ReceiveAction::Restart(restart) => {
                    messages.push(Message::RestartSegment(restart));
                }
                ReceiveAction::Doubt(generation) => {
                    let challenge = self.fresh();
                    let doubts = self.authority.doubt(generation, challenge);
                    messages.extend(self.decide(doubts));
                }
                ReceiveAction::Fence(ended) => {
                    messages.push(Message::FenceLease(
                        dedup_protocol::state::message::FenceLease {
                            desktop: VOLUME,
                            generation: self.authority.row().last,
                            ended,
                        },
                    ));
                }
            }
        }
        messages
    }
}

fn show(state: &mut [u8], part: &[u8], chunks: &HashMap<ChunkId, Bytes>) {
    for range in Part::decode(part, &[DISK]).unwrap().ranges() {
        let into = &mut state[range.offset as usize..(range.offset + range.len) as usize];
        match range.source {
            RangeSource::Zero => into.fill(0),
            RangeSource::Chunk(id) => into.copy_from_slice(&chunks[&id]),
        }
    }
}

/// A branch with one volume, and a datacenter.
struct World {
    root: tempfile::TempDir,
    rows: Arc<MemRows>,
    overlay: Option<Arc<Overlay>>,
    line: Line,
    center: Center,
    now: u64,
    /// What the guest was told is durable.
    disk: Vec<u8>,
    state: u64,
}

fn line_of(rows: &Arc<MemRows>, now: u64) -> Line {
    let (kept, send) = rows.rows.lock().unwrap().clone();
    let common = Common {
        branch: BRANCH,
        key: key(),
        rows: rows.clone(),
        fresh,
        policy: SealPolicy::default(),
    };
    Line::open(common, VOLUME, kept, send, now)
}

impl World {
    fn new(seed: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let rows = Arc::new(MemRows::default());
        let line = line_of(&rows, BEGIN);
        let mut world = Self {
            root,
            rows,
            overlay: None,
            line,
            center: Center::new(),
            now: BEGIN,
            disk: vec![0; DISK as usize],
            state: seed,
        };
        world.attach();
        world
    }

    fn path(&self) -> PathBuf {
        self.root.path().to_owned()
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % bound
    }

    fn attach(&mut self) {
        let overlay = open(&self.path());
        self.line
            .attach(Arc::clone(&overlay), true, self.now)
            .unwrap();
        self.overlay = Some(overlay);
    }

    /// The branch server dies and starts again.
    fn restart(&mut self) {
        *self.rows.dies.lock().unwrap() = None;
        self.overlay = None;
        self.line = line_of(&self.rows, self.now);
        self.line.start(self.now).unwrap();
        self.attach();
        self.line.linked(self.now).unwrap();
    }

    fn write(&mut self) {
        let overlay = self.overlay.clone().unwrap();
        let at = self.below(DISK / 512 - 400) * 512;
        let len = (1 + self.below(300)) * 512;
        let span = at as usize..(at + len) as usize;
        if self.below(5) == 0 {
            overlay.zero(0, at, len, true).unwrap();
            self.disk[span].fill(0);
        } else {
            let fill = self.below(250) as u8 + 1;
            for (i, byte) in self.disk[span.clone()].iter_mut().enumerate() {
                *byte = fill.wrapping_add((i / 700) as u8);
            }
            overlay.write(0, at, &self.disk[span]).unwrap();
        }
        overlay.flush().unwrap();
    }

    /// Sends what is to be sent, and loses one message in so many.
    fn pump(&mut self, loss: u64) -> Result<(), LineError> {
        self.center.now = self.now;
        for _ in 0..200 {
            let Some(message) = self.line.next_message() else {
                return Ok(());
            };
            let mut inbox = VecDeque::new();
            if loss == 0 || self.below(loss) > 0 {
                inbox.extend(self.center.hear(message));
            }
            while let Some(answer) = inbox.pop_front() {
                if loss > 0 && self.below(loss) == 0 {
                    // The connection goes with it.
                    self.line.unlinked();
                    self.line.linked(self.now)?;
                    break;
                }
                for reply in self.line.hear(answer, self.now)? {
                    inbox.extend(self.center.hear(reply));
                }
            }
        }
        panic!("it talks without end");
    }

    fn round(&mut self, loss: u64) -> Result<(), LineError> {
        self.now += 31;
        self.line.tick(self.now)?;
        self.pump(loss)
    }

    /// Rounds without losses until all of it is there.
    fn settle(&mut self) {
        for _ in 0..8 {
            self.round(0).unwrap();
        }
        assert!(self.line.is_drained());
        assert!(self.center.state() == self.disk);
    }
}

#[test]
fn what_is_written_comes_there_whatever_is_lost() {
    for seed in 1..9 {
        let mut world = World::new(seed);
        world.line.linked(world.now).unwrap();
        for _ in 0..40 {
            match world.below(8) {
                0..=3 => world.write(),
                4 => world.restart(),
                5 => {
                    let overlay = world.overlay.clone().unwrap();
                    overlay.tend(1 << 20).unwrap();
                }
                // A clock that jumps, within the lease.
                6 => world.now += world.state % 300,
                _ => {}
            }
            world.round(6).unwrap();
            let state = world.center.state().to_vec();
            assert_eq!(state.len(), world.disk.len());
        }
        world.settle();
        assert_eq!(world.line.may_run(world.now), Ok(()));
    }
}

#[test]
fn a_segment_of_several_parts_goes_on_where_it_stopped() {
    let mut world = World::new(21);
    world.line.linked(world.now).unwrap();
    world.round(0).unwrap();
    let overlay = world.overlay.clone().unwrap();
    rand::rngs::StdRng::seed_from_u64(1).fill_bytes(&mut world.disk[..20 << 20]);
    overlay.write(0, 0, &world.disk[..20 << 20]).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    for _ in 0..2 {
        world.now += 31;
        world.line.tick(world.now).unwrap();
    }
    // The first part, and no more.
    world.center.now = world.now;
    let first = world.line.next_message().unwrap();
    let mut inbox = VecDeque::from(world.center.hear(first));
    while let Some(answer) = inbox.pop_front() {
        for reply in world.line.hear(answer, world.now).unwrap() {
            inbox.extend(world.center.hear(reply));
        }
    }
    let parts = |world: &World| {
        let rows = world.rows.rows.lock().unwrap().clone();
        rows.1.and_then(|row| row.sealed).map(|sealed| sealed.parts)
    };
    assert_eq!(parts(&world), Some(1));
    assert!(
        world.center.state().iter().all(|byte| *byte == 0),
        "nothing is shown before all is there"
    );
    world.restart();
    assert_eq!(parts(&world), Some(1));
    let Some(Message::OfferPart(offer)) = world.line.next_message() else {
        panic!("it goes on by itself");
    };
    assert_eq!(offer.part, 1);
    world.settle();
    assert_eq!(parts(&world), None);
}

#[test]
fn every_durable_step_can_be_the_last() {
    for is_kept in [false, true] {
        for at in 0.. {
            let mut world = World::new(77);
            world.line.linked(world.now).unwrap();
            *world.rows.dies.lock().unwrap() = Some((at, is_kept));
            let mut died = false;
            for _ in 0..6 {
                world.write();
                if let Err(error) = world.round(0) {
                    assert!(matches!(error, LineError::Catalog(_)), "{error}");
                    assert!(world.line.is_broken());
                    died = true;
                    world.restart();
                }
            }
            // One that has not come by now is none of these steps.
            *world.rows.dies.lock().unwrap() = None;
            world.settle();
            if !died {
                assert!(at > 8, "{at} durable steps");
                break;
            }
        }
    }
}

#[test]
fn rows_that_could_not_be_kept_are_read_again() {
    let mut world = World::new(3);
    world.line.linked(world.now).unwrap();
    for at in 0..6 {
        *world.rows.dies.lock().unwrap() = Some((at, at % 2 == 0));
        world.write();
        if world.round(0).is_err() {
            *world.rows.dies.lock().unwrap() = None;
            let (kept, send) = world.rows.rows.lock().unwrap().clone();
            world.line.reload(kept, send, world.now).unwrap();
        }
    }
    *world.rows.dies.lock().unwrap() = None;
    world.settle();
}

#[test]
fn a_volume_that_was_never_leased_runs_and_is_kept() {
    let mut world = World::new(1);
    world.write();
    world.now += 1_000_000;
    world.line.tick(world.now).unwrap();
    assert_eq!(world.line.may_run(world.now), Ok(()));
    assert!(!world.line.is_to_leave());
    // Its question is asked and the answer is lost: it still is the only copy.
    world.line.linked(world.now).unwrap();
    world.line.tick(world.now).unwrap();
    assert!(matches!(
        world.line.next_message(),
        Some(Message::AskLease(_))
    ));
    world.restart();
    let kept = world.rows.rows.lock().unwrap().0.clone().unwrap();
    assert_eq!(kept.overlay, OverlayOf::Unleased);
    assert_eq!(world.line.may_run(world.now), Ok(()));
    assert!(!world.line.is_to_leave());
    world.settle();
    assert_eq!(world.center.authority.row().last.0, 1);
}

#[test]
fn a_lease_ends_without_a_link_and_a_clock_set_back_does_not_bring_it_back() {
    let mut world = World::new(1);
    world.line.linked(world.now).unwrap();
    world.write();
    world.settle();
    world.line.unlinked();
    let end = world.line.shown(world.now).ends_unix_s.unwrap();
    world.line.tick(end - 1).unwrap();
    assert_eq!(world.line.may_run(end - 1), Ok(()));
    world.line.tick(end + 700).unwrap();
    let over = Err(NoRight::Over { until_unix_s: end });
    assert_eq!(world.line.may_run(end + 700), over);
    assert_eq!(world.line.may_run(end - 600), over);
    world.restart();
    assert_eq!(world.line.may_run(end - 600), over);
    // It is renewed when the link is back, and what was written meanwhile is there.
    world.now = end + 800;
    world.write();
    world.line.linked(world.now).unwrap();
    world.settle();
    assert_eq!(world.line.may_run(world.now), Ok(()));
}

#[test]
fn a_broken_lease_stops_the_desktop_and_its_writes_become_a_fork() {
    for dies_at in [None, Some(0), Some(1), Some(2), Some(3)] {
        let mut world = World::new(9);
        world.line.linked(world.now).unwrap();
        world.write();
        world.settle();
        world.write();
        world
            .center
            .authority
            .break_lease("a test breaks it", true, world.now)
            .unwrap();
        let shown_before = world.center.state().to_vec();
        world.now += 400;
        world.round(0).unwrap();
        let fenced = world.line.may_run(world.now);
        assert!(matches!(fenced, Err(NoRight::Fenced { .. })), "{fenced:?}");
        // The machine is still there: nothing is called the fork yet.
        world.write();
        for _ in 0..3 {
            world.round(0).unwrap();
        }
        assert_eq!(world.center.lines.len(), 1);
        world.line.set_in_use(false, world.now);
        let keeps = world.rows.keeps.load(Ordering::Relaxed);
        *world.rows.dies.lock().unwrap() = dies_at.map(|at| (keeps + at, at % 2 == 0));
        for _ in 0..6 {
            if world.round(0).is_err() {
                world.restart();
                world.line.set_in_use(false, world.now);
            }
        }
        assert!(world.center.state() == shown_before);
        let fork = world.center.lines.iter().find(|(fork, _)| fork.is_some());
        let (_, fork) = fork.expect("there is a fork");
        assert!(fork.state == world.disk, "all that the disk shows");
        assert!(world.line.is_to_leave());
        *world.rows.dies.lock().unwrap() = None;
        world.line.left().unwrap();
        assert!(!world.line.is_to_leave());
        let kept = world.rows.rows.lock().unwrap().0.clone().unwrap();
        assert_eq!(kept.overlay, OverlayOf::Gone);
    }
}

#[test]
fn an_overlay_that_is_older_than_what_was_sent_is_refused() {
    let mut world = World::new(4);
    world.line.linked(world.now).unwrap();
    world.write();
    world.settle();
    world.overlay = None;
    world.line = line_of(&world.rows, world.now);
    world.line.start(world.now).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let empty = open(elsewhere.path());
    let refused = world.line.attach(empty, true, world.now);
    assert!(matches!(refused, Err(LineError::Older { found: 0, .. })));
}

#[test]
fn a_wish_comes_with_its_segment() {
    let mut world = World::new(4);
    world.line.linked(world.now).unwrap();
    world.write();
    world.settle();
    assert!(
        !world.line.wish(Cut::Asked, world.now).unwrap(),
        "nothing is new"
    );
    world.write();
    assert!(world.line.wish(Cut::LogOff, world.now).unwrap());
    // At once, not when it is old enough.
    world.line.tick(world.now).unwrap();
    world.pump(0).unwrap();
    assert_eq!(world.center.cuts, [Cut::LogOff]);
    assert!(world.center.state() == world.disk);
}

#[test]
fn what_a_generation_goes_on_behind_is_waited_for_and_then_written_over() {
    let mut world = World::new(11);
    world.line.linked(world.now).unwrap();
    world.write();
    world.settle();
    world
        .center
        .authority
        .break_lease("a test breaks it", true, world.now)
        .unwrap();
    world.now += 400;
    world.line.set_in_use(false, world.now);
    for _ in 0..6 {
        world.round(0).unwrap();
    }
    assert!(world.line.is_to_leave());
    world.overlay = None;
    world.line.left().unwrap();
    let base = world.center.lines[&None].receiver.row().applied.head;
    world.line.want();
    world.round(0).unwrap();
    assert_eq!(world.line.may_run(world.now), Err(NoRight::Coming));
    assert!(!world.line.needs_overlay(), "there is nothing to lie over");
    let (generation, awaited) = world.line.awaited().unwrap();
    assert_eq!((generation.0, awaited), (2, base));
    let other = generation.next();
    assert!(!world.line.begin_behind(other, world.now).unwrap());
    // The server dies when the line has begun, and the rest is done at the next start.
    let keeps = world.rows.keeps.load(Ordering::Relaxed);
    *world.rows.dies.lock().unwrap() = Some((keeps, true));
    world.line.begin_behind(generation, world.now).unwrap_err();
    world.root = tempfile::tempdir().unwrap();
    world.restart();
    assert_eq!(world.line.may_run(world.now), Ok(()));
    assert_eq!(world.line.awaited(), None);
    for _ in 0..3 {
        world.write();
        world.settle();
    }
}

/// An old disk was put into the branch server: what lies there is of before the first lease, and the datacenter has a later state.
#[test]
fn what_lies_under_no_lease_is_no_fork_and_keeps_nobody_from_a_reset() {
    let mut world = World::new(13);
    world.line.linked(world.now).unwrap();
    world.write();
    world.settle();
    world.root = tempfile::tempdir().unwrap();
    world.rows = Arc::new(MemRows::default());
    world.restart();
    world.write();
    for generation in 2..4 {
        let authority = &mut world.center.authority;
        authority
            .break_lease("a test breaks it", true, world.now)
            .unwrap();
        world.now += 400;
        for _ in 0..3 {
            world.round(0).unwrap();
        }
        assert_eq!(world.line.may_run(world.now), Err(NoRight::Elsewhere));
        assert_eq!(world.line.shown(world.now).generation.0, generation);
    }
    let forks = world.center.lines.keys().flatten().count();
    assert_eq!(forks, 0, "nothing was written under either");
    assert!(world.line.drop_writes(world.now).unwrap());
}

#[test]
fn a_lease_that_is_broken_before_its_state_has_come_leaves_no_fork() {
    let mut world = World::new(12);
    world.line.linked(world.now).unwrap();
    world.write();
    world.settle();
    world.line.set_in_use(false, world.now);
    for _ in 0..2 {
        world
            .center
            .authority
            .break_lease("a test breaks it", true, world.now)
            .unwrap();
        world.now += 400;
        for _ in 0..6 {
            world.round(0).unwrap();
        }
        if world.line.is_to_leave() {
            world.overlay = None;
            world.line.left().unwrap();
        }
        world.line.want();
        world.round(0).unwrap();
        assert_eq!(world.line.may_run(world.now), Err(NoRight::Coming));
    }
    assert_eq!(world.line.awaited().unwrap().0.0, 3);
    let forks = world.center.lines.keys().flatten().count();
    assert_eq!(forks, 1, "of the first generation, which wrote something");
}
