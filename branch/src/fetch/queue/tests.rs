//! The queue against its promises, one by one and then on a seeded random walk.
//!
//! `SPLICE_SEED=n cargo test -p branch --lib fetch::queue` replays one walk.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use dedup::{ChunkerParams, IdKey, Manifest, ManifestBuilder, NodeId, NodeSource};
use dedup_protocol::server::{AnswerError, expand};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A tree with its leaves, as the datacenter has them.
pub(super) struct Published {
    pub(super) handle: TreeHandle,
    manifest: Manifest,
    leaves: HashMap<NodeId, Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
#[error("no such leaf")]
pub(super) struct NoLeaf;

impl NodeSource for &Published {
    type Error = NoLeaf;

    fn node(&self, id: NodeId) -> Result<bytes::Bytes, NoLeaf> {
        self.leaves.get(&id).map(|l| l.clone().into()).ok_or(NoLeaf)
    }
}

/// `count` chunks with holes between them; those whose number is a multiple of `changed` are of this version only, and some
/// are shown twice.
pub(super) fn publish(version: u8, count: u32, changed: u32) -> Published {
    let key = IdKey::new([1; 32]);
    let mut builder = ManifestBuilder::new(key.clone(), ChunkerParams::default());
    for number in 0..count {
        // A few chunks come a second time, far from the first.
        let name = if number % 37 == 36 {
            number / 2
        } else {
            number
        };
        let of = if name % changed == 0 { version } else { 0 };
        let len = 4096 + (name * 7919) % 40_000;
        builder.push_chunk(
            key.chunk_id(&[&name.to_le_bytes()[..], &[of]].concat()),
            len,
        );
        if number % 11 == 0 {
            builder.push_zero(90_000);
        }
    }
    let (manifest, leaves) = builder.finish();
    let mut published = Published {
        handle: TreeHandle {
            version: VersionId([version; 32]),
            tree: Tree::Disk,
            map: Arc::default(),
        },
        manifest,
        leaves: leaves.into_iter().collect(),
    };
    let map = ContentMap::load(&published.manifest, &&published).unwrap();
    published.handle.map = Arc::new(map);
    published
}

impl Published {
    pub(super) fn want(&self, index: usize) -> Want {
        Want {
            tree: self.handle.clone(),
            index,
        }
    }

    pub(super) fn id(&self, index: usize) -> ChunkId {
        self.handle.map.chunk(index).id
    }

    fn len(&self) -> usize {
        self.handle.map.chunks().len()
    }

    /// What the datacenter would send for `request`.
    fn answer(&self, request: &Request) -> Vec<(ChunkId, u32)> {
        expand(&request.runs, |leaf| {
            Ok::<_, AnswerError>(self.manifest.leaf(&self, leaf as usize).unwrap())
        })
        .expect("a branch asks for nothing that is refused")
    }
}

fn ids(request: &Request) -> Vec<ChunkId> {
    request.expected.iter().map(|(id, _)| *id).collect()
}

fn nothing_here(_: &ChunkId) -> bool {
    false
}

/// Far from any yielding.
const LATER: u64 = 1_000_000;

fn next(queue: &mut Queue) -> Option<Request> {
    queue.next_request(LATER, 8 << 20, &nothing_here)
}

#[test]
fn a_chunk_that_many_want_is_asked_for_once() {
    let tree = publish(1, 100, 1);
    let mut queue = Queue::new();
    assert!(queue.demand(tree.want(5), LATER));
    assert!(!queue.demand(tree.want(5), LATER));
    queue.read_ahead(tree.want(5));
    let request = next(&mut queue).unwrap();
    assert_eq!(
        (request.urgency, ids(&request)),
        (Urgency::Demand, vec![tree.id(5)])
    );
    assert!(!queue.demand(tree.want(5), LATER), "it is on its way");
    queue.read_ahead(tree.want(5));
    assert!(next(&mut queue).is_none());
    // The fill asks for all but that one.
    queue.fill(tree.handle.clone());
    let filled = ids(&next_fill(&mut queue));
    assert!(!filled.contains(&tree.id(5)) && filled.contains(&tree.id(4)));
    queue.arrived(&tree.id(5));
    queue.ended(request);
    assert!(!queue.is_pending(&tree.id(5)));
}

/// The next fill request, past the time for which fills yield.
fn next_fill(queue: &mut Queue) -> Request {
    let now_ms = LATER + FILL_YIELD_MS;
    let request = queue.next_request(now_ms, 48 << 20, &nothing_here).unwrap();
    assert_eq!(request.urgency, Urgency::Fill);
    request
}

#[test]
fn demand_goes_before_boot_before_fill() {
    let tree = publish(1, 1000, 1);
    let mut queue = Queue::new();
    queue.fill(tree.handle.clone());
    queue.read_ahead(tree.want(900));
    queue.demand(tree.want(800), LATER - FILL_YIELD_MS);
    let order: Vec<Urgency> = (0..3).map(|_| next(&mut queue).unwrap().urgency).collect();
    assert_eq!(order, [Urgency::Demand, Urgency::Boot, Urgency::Fill]);
}

#[test]
fn a_queued_guess_that_a_guest_asks_for_moves_up() {
    let tree = publish(1, 100, 1);
    let mut queue = Queue::new();
    for index in 10..20 {
        queue.read_ahead(tree.want(index));
    }
    assert!(queue.demand(tree.want(15), LATER));
    let demand = next(&mut queue).unwrap();
    assert_eq!(
        (demand.urgency, ids(&demand)),
        (Urgency::Demand, vec![tree.id(15)])
    );
    let boot = next(&mut queue).unwrap();
    assert_eq!(boot.urgency, Urgency::Boot);
    let rest: Vec<_> = (10..20).filter(|i| *i != 15).map(|i| tree.id(i)).collect();
    assert_eq!(ids(&boot), rest);
    assert!(
        !queue.demand(tree.want(12), LATER),
        "a guess in flight is waited for"
    );
}

#[test]
fn fill_yields_to_guests_and_keeps_its_reserved_share() {
    let tree = publish(1, 3000, 1);
    let mut queue = Queue::new();
    queue.fill(tree.handle.clone());
    let at = |now_ms: u64, queue: &mut Queue| queue.next_request(now_ms, 0, &nothing_here);
    let begin = LATER;
    let first = at(begin, &mut queue).unwrap();
    assert_eq!(first.urgency, Urgency::Fill);
    queue.ended(first);
    let mut reserved = Vec::new();
    // A guest that waits for something every 100 ms.
    let end = begin + 4 * FILL_RESERVED_EVERY_MS;
    for now_ms in (begin + 100..=end).step_by(100) {
        queue.demand(tree.want((now_ms - begin) as usize / 100), now_ms);
        let demand = at(now_ms, &mut queue).unwrap();
        assert_eq!(demand.urgency, Urgency::Demand);
        demand.expected.iter().for_each(|(id, _)| queue.arrived(id));
        queue.ended(demand);
        if let Some(fill) = at(now_ms, &mut queue) {
            assert!(at(now_ms + 90, &mut queue).is_none(), "one at a time");
            reserved.push((now_ms - begin) / FILL_RESERVED_EVERY_MS);
            queue.ended(fill);
        }
        let idle = queue.idle_ms(now_ms).unwrap();
        assert!((10..=FILL_RESERVED_EVERY_MS).contains(&idle), "{idle}");
    }
    assert_eq!(reserved, [1, 2, 3, 4]);
    // Some time after the last demand the link is the fill's again.
    assert!(at(end + FILL_YIELD_MS - 1, &mut queue).is_none());
    assert_eq!(queue.idle_ms(end + FILL_YIELD_MS - 50), Some(50));
    assert!(at(end + FILL_YIELD_MS, &mut queue).is_some());
    assert_eq!(
        queue.idle_ms(end + FILL_YIELD_MS),
        None,
        "from here on only events matter"
    );
}

/// A boot computes for seconds between its reads; fill does not take those for its end.
#[test]
fn a_boot_has_the_link_until_it_has_settled() {
    let tree = publish(1, 3000, 1);
    let fill_at = |now_ms: u64, queue: &mut Queue| {
        let request = queue.next_request(now_ms, 0, &nothing_here);
        request.map(|fill| queue.ended(fill)).is_some()
    };
    let begin = LATER;
    let mut queue = Queue::new();
    queue.fill(tree.handle.clone());
    assert!(fill_at(begin, &mut queue));
    queue.boot_begins(begin);
    assert!(!fill_at(begin + FILL_YIELD_MS, &mut queue));
    assert!(
        fill_at(begin + FILL_RESERVED_EVERY_MS, &mut queue),
        "the reserved share"
    );
    let settled = begin + FILL_YIELD_BOOT_MS;
    assert!(fill_at(settled, &mut queue) && fill_at(settled + 1, &mut queue));
    // A desktop that reads for ever does not count as booting for ever.
    let late = begin + BOOT_MS_MAX;
    queue.demand(tree.want(1), late);
    let demand = queue.next_request(late, 0, &nothing_here).unwrap();
    queue.arrived(&tree.id(1));
    queue.ended(demand);
    let ended = late + FILL_YIELD_MS;
    assert!(fill_at(ended, &mut queue) && fill_at(ended + 1, &mut queue));
}

#[test]
fn a_fill_keeps_as_much_in_flight_as_the_path_holds() {
    let tree = publish(1, 3000, 1);
    for (path, least, most) in [
        (0, FILL_FLIGHT_BYTES_MIN, 8 << 20),
        (20 << 20, 20 << 20, 28 << 20),
        (u64::MAX, FILL_FLIGHT_BYTES_MAX, 56 << 20),
    ] {
        let mut queue = Queue::new();
        queue.fill(tree.handle.clone());
        let mut bytes = 0;
        while let Some(request) = queue.next_request(LATER, path, &nothing_here) {
            bytes += request_bytes(&request.expected);
        }
        assert!((least..=most).contains(&bytes), "{bytes} for {path}");
    }
}

#[test]
fn a_cut_requeues_exactly_what_did_not_arrive() {
    let tree = publish(1, 400, 1);
    for urgency in [Urgency::Demand, Urgency::Boot, Urgency::Fill] {
        let mut queue = Queue::new();
        for index in 0..30 {
            match urgency {
                Urgency::Demand => drop(queue.demand(tree.want(index), 0)),
                Urgency::Boot => queue.read_ahead(tree.want(index)),
                Urgency::Fill => {}
            }
        }
        if urgency == Urgency::Fill {
            queue.fill(tree.handle.clone());
        }
        let request = next(&mut queue).unwrap();
        let asked = ids(&request);
        let (came, lost) = asked.split_at(asked.len() / 3);
        came.iter().for_each(|id| queue.arrived(id));
        queue.ended(request);
        let mut again = Vec::new();
        while let Some(request) = queue.next_request(LATER, 48 << 20, &|id| came.contains(id)) {
            assert_eq!(request.urgency, urgency);
            again.extend(ids(&request));
        }
        assert!(again.iter().all(|id| !came.contains(id)));
        assert!(
            lost.iter()
                .all(|id| again.iter().filter(|a| *a == id).count() == 1)
        );
        if urgency != Urgency::Fill {
            assert_eq!(again, lost, "in the order in which they were asked for");
        }
    }
}

#[test]
fn runs_expand_to_exactly_what_is_expected() {
    let tree = publish(1, 1500, 1);
    let mut queue = Queue::new();
    queue.fill(tree.handle.clone());
    let mut seen = HashSet::new();
    while let Some(request) = queue.next_request(LATER, u64::MAX, &|id| seen.contains(id)) {
        assert_eq!(tree.answer(&request), request.expected);
        assert!(
            request.runs.len() < request.expected.len() / 4,
            "neighbours share a run"
        );
        assert!(request_bytes(&request.expected) <= REQUEST_BYTES_MAX + 64 * 1024);
        for id in ids(&request) {
            assert!(seen.insert(id), "asked for twice");
        }
        request
            .expected
            .iter()
            .for_each(|(id, _)| queue.arrived(id));
        queue.ended(request);
    }
    let all: HashSet<_> = tree
        .handle
        .map
        .chunks()
        .iter()
        .map(|place| place.id)
        .collect();
    assert_eq!(seen, all);
}

#[test]
fn resident_chunks_are_passed_over() {
    let tree = publish(1, 300, 1);
    let here: HashSet<ChunkId> = (0..tree.len())
        .filter(|i| i % 3 == 0)
        .map(|i| tree.id(i))
        .collect();
    let resident = |id: &ChunkId| here.contains(id);
    let mut queue = Queue::new();
    for index in 0..20 {
        queue.demand(tree.want(index), 0);
        queue.read_ahead(tree.want(index + 20));
    }
    queue.fill(tree.handle.clone());
    let mut asked = HashSet::new();
    while let Some(request) = queue.next_request(LATER, u64::MAX, &resident) {
        asked.extend(ids(&request));
    }
    assert!(asked.is_disjoint(&here));
    assert!(
        here.iter().all(|id| !queue.is_pending(id)),
        "who waits for one finds it here"
    );
    let all: HashSet<_> = tree
        .handle
        .map
        .chunks()
        .iter()
        .map(|place| place.id)
        .collect();
    assert_eq!(asked.len() + here.len(), all.len());
}

#[test]
fn a_request_names_one_tree() {
    let (one, two) = (publish(1, 100, 1), publish(2, 100, 1));
    let mut queue = Queue::new();
    queue.demand(one.want(1), 0);
    queue.demand(two.want(2), 0);
    queue.demand(one.want(3), 0);
    let versions: Vec<_> = (0..3).map(|_| next(&mut queue).unwrap().version).collect();
    assert_eq!(
        versions,
        [one.handle.version, two.handle.version, one.handle.version]
    );
}

#[test]
fn flights_of_guests_are_bounded() {
    let (one, two) = (publish(1, 200, 1), publish(2, 200, 1));
    let mut queue = Queue::new();
    for index in 0..200 {
        // One request each: neighbours are of different trees.
        let tree = if index % 2 == 0 { &one } else { &two };
        queue.demand(tree.want(index / 2), 0);
        queue.read_ahead(tree.want(index / 2 + 100));
    }
    let mut flying = [0; 3];
    while let Some(request) = next(&mut queue) {
        flying[slot(request.urgency)] += 1;
    }
    assert_eq!(flying, [DEMAND_FLIGHTS_MAX, BOOT_FLIGHTS_MAX, 0]);
}

/// A fill passes over what a guest has queued. When the guest gives up, the chunk is still the fill's to fetch.
#[test]
fn a_fill_is_not_done_before_what_it_left_to_others_came() {
    let tree = publish(1, 50, 1);
    let mut queue = Queue::new();
    queue.demand(tree.want(7), 0);
    let demand = next(&mut queue).unwrap();
    queue.fill(tree.handle.clone());
    let fill = next(&mut queue).unwrap();
    assert!(!ids(&fill).contains(&tree.id(7)));
    fill.expected.iter().for_each(|(id, _)| queue.arrived(id));
    let rest: HashSet<ChunkId> = ids(&fill).into_iter().collect();
    let resident = |id: &ChunkId| rest.contains(id);
    queue.ended(fill);
    assert!(queue.next_request(LATER, 0, &resident).is_none());
    assert_eq!(queue.filling().count(), 1, "one chunk is not here");
    queue.ended(demand);
    queue.give_up(&tree.id(7));
    let last = queue.next_request(LATER, 0, &resident).unwrap();
    assert_eq!(
        (last.urgency, ids(&last)),
        (Urgency::Fill, vec![tree.id(7)])
    );
    queue.arrived(&tree.id(7));
    queue.ended(last);
    // It came but could not be cached, say. It is not fetched for ever.
    assert!(queue.next_request(LATER, 0, &resident).is_none());
    assert_eq!(queue.filling().count(), 0);
}

#[test]
fn a_stopped_fill_stays_stopped() {
    let tree = publish(1, 600, 1);
    let mut queue = Queue::new();
    queue.fill(tree.handle.clone());
    let cut = next(&mut queue).unwrap();
    queue.stop_fill(tree.handle.version, tree.handle.tree);
    queue.ended(cut);
    assert!(next(&mut queue).is_none());
    // Nor does the end of an old request disturb a fill that was begun anew.
    queue.fill(tree.handle.clone());
    let old = next(&mut queue).unwrap();
    queue.fill(tree.handle.clone());
    let new = next(&mut queue).unwrap();
    queue.ended(old);
    queue.ended(new);
    let mut seen = HashSet::new();
    while let Some(request) = queue.next_request(LATER, u64::MAX, &nothing_here) {
        seen.extend(ids(&request));
        request
            .expected
            .iter()
            .for_each(|(id, _)| queue.arrived(id));
        queue.ended(request);
    }
    let all: HashSet<_> = tree
        .handle
        .map
        .chunks()
        .iter()
        .map(|place| place.id)
        .collect();
    assert_eq!(seen, all);
}

/// The end of a request must not touch a later flight of a chunk that came, was evicted and is wanted again.
#[test]
fn the_end_of_a_request_leaves_later_flights_alone() {
    let tree = publish(1, 50, 1);
    let mut queue = Queue::new();
    queue.demand(tree.want(1), 0);
    let first = next(&mut queue).unwrap();
    queue.arrived(&tree.id(1));
    assert!(queue.demand(tree.want(1), 0), "it was evicted");
    let second = next(&mut queue).unwrap();
    queue.ended(first);
    assert!(next(&mut queue).is_none(), "it is on its way already");
    queue.ended(second);
    assert_eq!(ids(&next(&mut queue).unwrap()), [tree.id(1)]);
}

/// While the link is down, guests come, wait and give up. That must not leave anything behind.
#[test]
fn what_guests_gave_up_does_not_pile_up() {
    let tree = publish(1, 200, 1);
    let mut queue = Queue::new();
    for round in 0..200 {
        for index in 0..50 {
            queue.demand(tree.want(index + round % 3), 0);
        }
        for index in 0..tree.len() {
            queue.give_up(&tree.id(index));
        }
    }
    assert_eq!((queue.demand.len(), queue.flights.len()), (0, 0));
    for index in 0..BOOT_QUEUE_MAX * 3 {
        let id = tree.id(index % tree.len());
        queue.read_ahead(tree.want(index % tree.len()));
        queue.demand(tree.want(index % tree.len()), 0);
        queue.give_up(&id);
    }
    assert!(queue.boot.len() <= BOOT_QUEUE_MAX, "{}", queue.boot.len());
}

/// A guest that waits for a chunk which happens to be on its way in a fill does not wait for the fill's turn after a cut.
#[test]
fn after_a_cut_what_a_guest_asked_for_meanwhile_is_demand() {
    let tree = publish(1, 50, 1);
    let mut queue = Queue::new();
    queue.fill(tree.handle.clone());
    let fill = next(&mut queue).unwrap();
    assert!(!queue.demand(tree.want(9), 0), "it is on its way");
    queue.ended(fill);
    let demand = next(&mut queue).unwrap();
    assert_eq!(
        (demand.urgency, ids(&demand)),
        (Urgency::Demand, vec![tree.id(9)])
    );
    let rest = next(&mut queue).unwrap();
    assert_eq!(rest.urgency, Urgency::Fill);
    assert!(!ids(&rest).contains(&tree.id(9)));
}

/// What the walk knows to be true.
struct Walk {
    rng: StdRng,
    trees: [Published; 2],
    queue: Queue,
    resident: HashSet<ChunkId>,
    /// Requests in flight, each with how many of its chunks came.
    flying: Vec<(Request, usize)>,
    /// Chunks that a guest waits for.
    waiting: HashSet<ChunkId>,
    /// For each tree, what a fill that runs has not brought yet.
    unfilled: [Option<HashSet<ChunkId>>; 2],
    now_ms: u64,
}

impl Walk {
    fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            trees: [publish(1, 700, 3), publish(2, 700, 3)],
            queue: Queue::new(),
            resident: HashSet::new(),
            flying: Vec::new(),
            waiting: HashSet::new(),
            unfilled: [None, None],
            now_ms: 0,
        }
    }

    fn some_want(&mut self) -> Want {
        let tree = &self.trees[self.rng.random_range(0..2)];
        // Guests of one image read the same places.
        let index = self
            .rng
            .random_range(0..tree.len())
            .min(self.rng.random_range(0..tree.len()));
        tree.want(index)
    }

    fn step(&mut self) {
        self.now_ms += self.rng.random_range(0..200);
        match self.rng.random_range(0..100) {
            0..25 => {
                let want = self.some_want();
                let id = want.place().id;
                if !self.resident.contains(&id) {
                    self.queue.demand(want, self.now_ms);
                    self.waiting.insert(id);
                }
            }
            25..44 => {
                let want = self.some_want();
                if !self.resident.contains(&want.place().id) {
                    self.queue.read_ahead(want);
                }
            }
            44 => self.queue.boot_begins(self.now_ms),
            45 => {
                let which = self.rng.random_range(0..2);
                self.queue.fill(self.trees[which].handle.clone());
                let chunks = self.trees[which].handle.map.chunks();
                let missing = chunks
                    .iter()
                    .map(|p| p.id)
                    .filter(|id| !self.resident.contains(id));
                self.unfilled[which] = Some(missing.collect());
            }
            46..70 => self.send(),
            70..85 => self.receive(),
            85..93 => self.end_one(),
            93..97 => {
                if let Some(id) = self.waiting.iter().min().copied() {
                    self.queue.give_up(&id);
                    self.waiting.remove(&id);
                }
            }
            _ => {
                let evicted = self.resident.iter().min().copied();
                evicted.map(|id| self.resident.remove(&id));
            }
        }
    }

    fn send(&mut self) {
        let resident = &self.resident;
        let window = self.rng.random_range(0..32 << 20);
        let Some(request) = self
            .queue
            .next_request(self.now_ms, window, &|id| resident.contains(id))
        else {
            // What was found here instead of asked for ends the wait for it.
            self.waiting.retain(|id| !self.resident.contains(id));
            return;
        };
        let tree = self
            .trees
            .iter()
            .find(|t| t.handle.version == request.version)
            .unwrap();
        assert_eq!(tree.answer(&request), request.expected);
        for (id, _) in &request.expected {
            assert!(!self.resident.contains(id), "asked for what is here");
            let twice = self
                .flying
                .iter()
                .any(|(other, came)| other.expected[*came..].iter().any(|(o, _)| o == id));
            assert!(!twice, "asked for twice at once");
        }
        self.flying.push((request, 0));
    }

    fn receive(&mut self) {
        if self.flying.is_empty() {
            return;
        }
        let which = self.rng.random_range(0..self.flying.len());
        let (request, came) = &mut self.flying[which];
        let upto = (*came + self.rng.random_range(1..60)).min(request.expected.len());
        for (id, _) in &request.expected[*came..upto] {
            self.resident.insert(*id);
            self.queue.arrived(id);
            self.waiting.remove(id);
            for missing in self.unfilled.iter_mut().flatten() {
                missing.remove(id);
            }
        }
        *came = upto;
    }

    fn end_one(&mut self) {
        if !self.flying.is_empty() {
            let which = self.rng.random_range(0..self.flying.len());
            let (request, _) = self.flying.swap_remove(which);
            self.queue.ended(request);
        }
    }

    fn check(&self) {
        for id in &self.waiting {
            assert!(
                self.queue.is_pending(id) || self.resident.contains(id),
                "a guest waits for what nobody fetches"
            );
        }
        assert!(self.queue.demand.len() + self.queue.boot.len() < 4 * 1400);
    }

    /// No more cuts, evictions and guests: all that is wanted comes.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.now_ms += 500;
            self.send();
            if let Some((request, came)) = self.flying.last() {
                let left = request.expected.len() - came;
                for _ in 0..left {
                    self.receive();
                }
            }
            let landed = |(request, came): &(Request, usize)| request.expected.len() == *came;
            while let Some(at) = self.flying.iter().position(landed) {
                let (request, _) = self.flying.swap_remove(at);
                self.queue.ended(request);
            }
            if self.flying.is_empty()
                && self.queue.flights.is_empty()
                && self.queue.fills.is_empty()
            {
                break;
            }
        }
        self.send();
        assert!(
            self.waiting.is_empty(),
            "{} chunks never came",
            self.waiting.len()
        );
        for missing in self.unfilled.iter().flatten() {
            assert!(
                missing.is_empty(),
                "a fill left out {} chunks",
                missing.len()
            );
        }
        assert_eq!((self.queue.flights.len(), self.queue.flying), (0, [0; 3]));
        assert_eq!(self.queue.fill_bytes_flying, 0);
        assert_eq!(self.queue.filling().count(), 0);
    }
}

#[test]
fn any_walk_loses_nothing_and_asks_once() {
    let only = std::env::var("SPLICE_SEED")
        .ok()
        .map(|seed| seed.parse().unwrap());
    for seed in only.map_or(0..40, |seed: u64| seed..seed + 1) {
        let walked = std::panic::catch_unwind(|| {
            let mut walk = Walk::new(seed);
            for _ in 0..1500 {
                walk.step();
                walk.check();
            }
            walk.settle();
        });
        if let Err(panic) = walked {
            eprintln!("replay: SPLICE_SEED={seed} cargo test -p branch --lib fetch::queue");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn outside_its_hours_fill_asks_for_nothing_and_guests_for_all_they_want() {
    let published = publish(1, 400, 1);
    let mut queue = Queue::new();
    queue.fill(published.handle.clone());
    queue.set_fill_hour(false);
    assert!(queue.next_request(0, 1 << 20, &|_| false).is_none());
    assert!(queue.idle_ms(0).is_some(), "it looks again by itself");
    let want = Want {
        tree: published.handle.clone(),
        index: 7,
    };
    assert!(queue.demand(want, 0));
    let request = queue.next_request(0, 1 << 20, &|_| false).unwrap();
    assert_eq!(request.urgency, Urgency::Demand);
    queue.set_fill_hour(true);
    let request = queue.next_request(60_000, 1 << 20, &|_| false).unwrap();
    assert_eq!(request.urgency, Urgency::Fill);
}

#[test]
fn fill_waits_for_room_in_a_full_cache_and_looks_again() {
    let published = publish(1, 400, 1);
    let mut queue = Queue::new();
    queue.fill(published.handle.clone());
    assert!(queue.next_request(0, 64 << 20, &|_| false).is_some());
    queue.cache_is_full(1000);
    assert!(queue.next_request(1000, 64 << 20, &|_| false).is_none());
    let wait = queue.idle_ms(1000).unwrap();
    assert_eq!(wait, FILL_LOOK_MS);
    assert!(
        queue
            .next_request(1000 + wait, 64 << 20, &|_| false)
            .is_some()
    );
}
