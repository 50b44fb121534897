//! What to fetch next: one flight per chunk per branch, classes in strict order, fill yielding to guests.
//!
//! A pure state machine; time is an argument (milliseconds of a monotonic clock). Its owner feeds wants in, asks for the next request,
//! and tells what arrived or failed.
//!
//! ```text
//!   absent ──want──► queued(class) ──next_request──► in flight ──arrived──► resident (forgotten here)
//!                      ▲  ▲ a higher class moves it up    │
//!                      └──┴────────────── failed ─────────┘
//! ```
//!
//! Invariant: a chunk is in at most one flight. Each flight knows its request, so that the end of a request never touches a later
//! flight of the same chunk (which came, was evicted and is wanted again).

mod fill;
#[cfg(test)]
mod prefetch_tests;
#[cfg(test)]
mod prepare_tests;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use dedup::{ChunkId, VersionId};
use dedup_protocol::records::Tree;
use dedup_protocol::wire::{CHUNKS_MAX, RUNS_MAX, Run, Urgency};

use crate::content_map::{ChunkPlace, ContentMap};
use fill::Fill;

/// Plain bytes in one request, by class. Demand is small by nature; a boot request is what read-ahead asks at once; a fill
/// request is one batch on the wire.
const REQUEST_BYTES_MAX: u64 = 4 << 20;

/// Most chunks in one request: each may need a run of its own.
const CHUNKS_PER_REQUEST_MAX: usize = if RUNS_MAX < CHUNKS_MAX {
    RUNS_MAX
} else {
    CHUNKS_MAX
};

/// Requests of one class in flight. Demand: as many as guests wait for, up to a bound that a hostile guest cannot pass.
const DEMAND_FLIGHTS_MAX: usize = 64;
const BOOT_FLIGHTS_MAX: usize = 16;

/// Fill requests in flight are bounded by bytes instead, so that a demand never waits behind much fill: see [`Queue::next_request`].
const FILL_FLIGHT_BYTES_MIN: u64 = 2 << 20;
const FILL_FLIGHT_BYTES_MAX: u64 = 48 << 20;

/// Plain bytes in one prefetch request: the guest may wait for any chunk of it, which it cannot have before the whole of the request
/// is here, so it is a small part of what the path holds in flight …
const PREFETCH_BYTES_MIN: u64 = 512 << 10;
const PREFETCH_REQUESTS_IN_FLIGHT: u64 = 6;
/// … and no more is in flight than keeps the line busy: what comes first is wanted first.
const PREFETCH_FLIGHT_BYTES_MIN: u64 = 1 << 20;
const PREFETCH_FLIGHT_BYTES_MAX: u64 = 24 << 20;

/// Fill pauses for this long after a guest last waited for a chunk …
const FILL_YIELD_MS: u64 = 2_000;
/// … and for this long while a desktop boots: a boot reads in bursts with seconds of computing between them, and has the link to
/// itself until it has settled …
const FILL_YIELD_BOOT_MS: u64 = 15_000;
/// … but at most for so long after it was started, …
const BOOT_MS_MAX: u64 = 300_000;
/// … and one request goes out this often all the same, so that a busy branch is filled in the end.
const FILL_RESERVED_EVERY_MS: u64 = 5_000;

/// How often fill looks whether its hours have begun, or whether there is room in a cache that was full: fetching what cannot be kept
/// would go over the line for nothing.
const FILL_LOOK_MS: u64 = 15_000;

/// Most wants queued for read-ahead; older ones are forgotten first, they are guesses.
const BOOT_QUEUE_MAX: usize = 16_384;

/// A tree of a version, as wants refer to it.
#[derive(Debug, Clone)]
pub struct TreeHandle {
    /// The version.
    pub version: VersionId,
    /// Which of its trees.
    pub tree: Tree,
    /// Its extents.
    pub map: Arc<ContentMap>,
}

/// One chunk wanted.
#[derive(Debug, Clone)]
pub struct Want {
    /// Where it can be asked for.
    pub tree: TreeHandle,
    /// Chunk number in the tree's map.
    pub index: usize,
}

impl Want {
    fn place(&self) -> &ChunkPlace {
        self.tree.map.chunk(self.index)
    }
}

/// A request to put on the wire.
#[derive(Debug)]
pub struct Request {
    /// Names it in [`Queue::arrived`] and [`Queue::failed`].
    pub number: u64,
    /// Its class.
    pub urgency: Urgency,
    /// The version it names.
    pub version: VersionId,
    /// The tree it names.
    pub tree: Tree,
    /// Places.
    pub runs: Vec<Run>,
    /// The chunks that answer it, in order, with their lengths.
    pub expected: Vec<(ChunkId, u32)>,
    wants: Vec<Want>,
    /// The fill or prefetch that made it.
    fill: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    Queued(Urgency),
    Flying {
        /// Number of the request.
        request: u64,
        /// Whether a guest waits for it: after a cut it is asked for as demand, whoever asked first.
        demanded: bool,
    },
}

impl Flight {
    fn flying(request: u64, urgency: Urgency) -> Self {
        Self::Flying {
            request,
            demanded: urgency == Urgency::Demand,
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    demand: VecDeque<Want>,
    boot: VecDeque<Want>,
    fills: VecDeque<Fill>,
    /// What boot profiles name, in guests' order.
    prefetches: VecDeque<Fill>,
    flights: HashMap<ChunkId, Flight>,
    flying: [usize; 3],
    fill_bytes_flying: u64,
    prefetch_bytes_flying: u64,
    /// Batches of updates among what is flying as fill.
    updates_flying: usize,
    next_number: u64,
    next_fill: u64,
    last_demand_ms: Option<u64>,
    /// Until when a desktop counts as booting, if guests go on waiting for chunks.
    boot_until_ms: u64,
    last_fill_ms: u64,
    /// Outside of the hours of fill.
    fill_closed: bool,
    /// Until when fill waits for room in the cache.
    full_until_ms: u64,
}

fn slot(urgency: Urgency) -> usize {
    match urgency {
        Urgency::Demand => 0,
        Urgency::Boot => 1,
        Urgency::Fill => 2,
    }
}

impl Queue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// A desktop is being started.
    pub fn boot_begins(&mut self, now_ms: u64) {
        self.last_demand_ms = Some(now_ms);
        self.boot_until_ms = now_ms + BOOT_MS_MAX;
    }

    /// Until when fill yields, if no guest waits again.
    fn yield_until_ms(&self) -> u64 {
        let Some(last) = self.last_demand_ms else {
            return 0;
        };
        let settled = last + FILL_YIELD_BOOT_MS;
        if settled <= self.boot_until_ms {
            settled
        } else {
            last + FILL_YIELD_MS
        }
    }

    /// Says whether the hours of fill are now. What is in flight still arrives.
    pub fn set_fill_hour(&mut self, open: bool) {
        self.fill_closed = !open;
    }

    /// What came could not be cached for lack of room: fill waits a while.
    pub fn cache_is_full(&mut self, now_ms: u64) {
        self.full_until_ms = now_ms + FILL_LOOK_MS;
    }

    /// A guest waits for this chunk. Returns whether this call queued it (false: already on its way as demand).
    pub fn demand(&mut self, want: Want, now_ms: u64) -> bool {
        self.last_demand_ms = Some(now_ms);
        match self.flights.get_mut(&want.place().id) {
            Some(Flight::Flying { demanded, .. }) => {
                *demanded = true;
                false
            }
            Some(Flight::Queued(Urgency::Demand)) => false,
            // The entry in the boot queue stays behind and is passed over when it comes up.
            Some(Flight::Queued(_)) | None => {
                self.flights
                    .insert(want.place().id, Flight::Queued(Urgency::Demand));
                self.demand.push_back(want);
                true
            }
        }
    }

    /// A guest will probably want this chunk.
    pub fn read_ahead(&mut self, want: Want) {
        let id = want.place().id;
        if self.flights.contains_key(&id) {
            return;
        }
        self.flights.insert(id, Flight::Queued(Urgency::Boot));
        self.boot.push_back(want);
        if self.boot.len() > BOOT_QUEUE_MAX
            && let Some(old) = self.boot.pop_front()
        {
            self.forget_queued(old.place().id, Urgency::Boot);
        }
    }

    /// Makes a tree whole in the background, after those asked for before. Asked twice, it starts over.
    pub fn fill(&mut self, tree: TreeHandle) {
        self.stop_fill(tree.version, tree.tree);
        let fill = self.new_fill(tree, None);
        self.fills.push_back(fill);
    }

    /// The same, but these chunks of the tree first, in their order.
    pub fn fill_first(&mut self, tree: TreeHandle, order: Arc<[u32]>) {
        self.stop_fill(tree.version, tree.tree);
        for order in [Some(order), None] {
            let fill = self.new_fill(tree.clone(), order);
            self.fills.push_back(fill);
        }
    }

    /// Brings only these chunks of the tree, in their order and in the background, after what was asked for before. Asked again, it
    /// starts over.
    pub fn fill_only(&mut self, tree: TreeHandle, order: Arc<[u32]>) {
        self.fills
            .retain(|f| !f.only || (f.tree.version, f.tree.tree) != (tree.version, tree.tree));
        let mut fill = self.new_fill(tree, Some(order));
        fill.only = true;
        self.fills.push_back(fill);
    }

    fn new_fill(&mut self, tree: TreeHandle, order: Option<Arc<[u32]>>) -> Fill {
        self.next_fill += 1;
        Fill::new(self.next_fill, tree, order)
    }

    /// A guest that is starting will ask for these chunks of the tree in this order: they come ahead of it, after what guests wait
    /// for now. The answer names it in [`Self::stop_prefetch`].
    pub fn prefetch(&mut self, tree: TreeHandle, order: Arc<[u32]>) -> u64 {
        let prefetch = self.new_fill(tree, Some(order));
        let number = prefetch.number;
        self.prefetches.push_back(prefetch);
        number
    }

    /// Ends a prefetch; what is in flight for it still arrives.
    pub fn stop_prefetch(&mut self, number: u64) {
        self.prefetches.retain(|p| p.number != number);
    }

    /// Ends the filling of a tree; what is in flight for it still arrives.
    pub fn stop_fill(&mut self, version: VersionId, tree: Tree) {
        self.fills
            .retain(|f| (f.tree.version, f.tree.tree) != (version, tree));
    }

    /// Versions and trees still being filled.
    pub fn filling(&self) -> impl Iterator<Item = (VersionId, Tree)> + '_ {
        self.fills.iter().map(|f| (f.tree.version, f.tree.tree))
    }

    /// The next request to send, if any may be sent now. `resident` says whether a chunk is here already; `fill_flight_bytes` is about
    /// what the path holds in flight (its bandwidth-delay product, plain bytes).
    pub fn next_request(
        &mut self,
        now_ms: u64,
        fill_flight_bytes: u64,
        resident: &dyn Fn(&ChunkId) -> bool,
    ) -> Option<Request> {
        for (urgency, limit) in [
            (Urgency::Demand, DEMAND_FLIGHTS_MAX),
            (Urgency::Boot, BOOT_FLIGHTS_MAX),
        ] {
            if self.flying[slot(urgency)] < limit {
                let wants = self.take_queued(urgency, resident);
                if !wants.is_empty() {
                    return Some(self.depart(urgency, wants, None));
                }
            }
        }
        if now_ms >= self.full_until_ms
            && let Some(request) = self.next_prefetch(fill_flight_bytes, resident)
        {
            return Some(request);
        }
        if !self.fill_allowed(now_ms, fill_flight_bytes) {
            return None;
        }
        let number = self.next_number;
        let (fill, wants) = take_fill(
            &mut self.fills,
            number,
            REQUEST_BYTES_MAX,
            &mut self.flights,
            resident,
        )?;
        self.last_fill_ms = now_ms;
        Some(self.depart(Urgency::Fill, wants, Some(fill)))
    }

    /// When to ask again though nothing happens, in milliseconds from now. `None`: only an event can make a difference.
    pub fn idle_ms(&self, now_ms: u64) -> Option<u64> {
        let yield_end = self.yield_until_ms();
        if self.fills.is_empty() {
            return None;
        }
        if self.fill_closed {
            return Some(FILL_LOOK_MS);
        }
        if now_ms < self.full_until_ms {
            return Some(self.full_until_ms - now_ms);
        }
        if now_ms >= yield_end {
            return None;
        }
        let reserved = self.last_fill_ms + FILL_RESERVED_EVERY_MS;
        // A reserved request waits for the end of the one before, which is an event.
        let next = if self.flying[slot(Urgency::Fill)] == 0 {
            yield_end.min(reserved)
        } else {
            yield_end
        };
        Some(next.saturating_sub(now_ms).max(10))
    }

    /// Whether fill may run at all: its hours, and room for what it brings.
    fn fill_is_open(&self, now_ms: u64) -> bool {
        !self.fill_closed && now_ms >= self.full_until_ms
    }

    /// Whether guests have the line to themselves, but for the reserved share.
    fn fill_yields(&self, now_ms: u64) -> bool {
        now_ms < self.yield_until_ms() || !self.prefetches.is_empty()
    }

    fn fill_allowed(&self, now_ms: u64, flight_bytes: u64) -> bool {
        if !self.fill_is_open(now_ms) {
            return false;
        }
        if self.fill_yields(now_ms) {
            return self.flying[slot(Urgency::Fill)] == 0
                && now_ms >= self.last_fill_ms + FILL_RESERVED_EVERY_MS;
        }
        let limit = flight_bytes.clamp(FILL_FLIGHT_BYTES_MIN, FILL_FLIGHT_BYTES_MAX);
        self.fill_bytes_flying < limit
    }

    /// Takes queued wants of one tree, in order, up to the limits of a request.
    fn take_queued(&mut self, urgency: Urgency, resident: &dyn Fn(&ChunkId) -> bool) -> Vec<Want> {
        let mut taken: Vec<Want> = Vec::new();
        let mut bytes = 0;
        let number = self.next_number;
        loop {
            let queue = if urgency == Urgency::Demand {
                &mut self.demand
            } else {
                &mut self.boot
            };
            let Some(want) = queue.front() else { break };
            let id = want.place().id;
            if self.flights.get(&id) != Some(&Flight::Queued(urgency)) {
                queue.pop_front();
                continue;
            }
            if resident(&id) {
                queue.pop_front();
                self.flights.remove(&id);
                continue;
            }
            let same_tree = taken.first().is_none_or(|first| {
                (first.tree.version, first.tree.tree) == (want.tree.version, want.tree.tree)
            });
            let full = bytes >= REQUEST_BYTES_MAX || taken.len() >= CHUNKS_PER_REQUEST_MAX;
            if !same_tree || full {
                break;
            }
            bytes += u64::from(want.place().len);
            // A chunk that is queued twice must not be asked for twice in one request.
            self.flights.insert(id, Flight::flying(number, urgency));
            taken.extend(queue.pop_front());
        }
        taken
    }

    fn next_prefetch(
        &mut self,
        flight_bytes: u64,
        resident: &dyn Fn(&ChunkId) -> bool,
    ) -> Option<Request> {
        let limit = flight_bytes.clamp(PREFETCH_FLIGHT_BYTES_MIN, PREFETCH_FLIGHT_BYTES_MAX);
        if self.prefetch_bytes_flying >= limit {
            return None;
        }
        let bytes = (limit / PREFETCH_REQUESTS_IN_FLIGHT).max(PREFETCH_BYTES_MIN);
        let number = self.next_number;
        let (fill, wants) = take_fill(
            &mut self.prefetches,
            number,
            bytes,
            &mut self.flights,
            resident,
        )?;
        Some(self.depart(Urgency::Boot, wants, Some(fill)))
    }

    fn depart(&mut self, urgency: Urgency, mut wants: Vec<Want>, fill: Option<u64>) -> Request {
        // In the order of the leaves, so that runs join and the datacenter opens each leaf once.
        wants.sort_by_key(|w| (w.place().leaf, w.place().extent));
        let mut runs: Vec<Run> = Vec::new();
        for want in &wants {
            let place = want.place();
            match runs.last_mut() {
                Some(run)
                    if run.leaf == place.leaf
                        && u32::from(run.first) + u32::from(run.count)
                            == u32::from(place.extent) =>
                {
                    run.count += 1;
                }
                _ => runs.push(Run {
                    leaf: place.leaf,
                    first: place.extent,
                    count: 1,
                }),
            }
        }
        let number = self.next_number;
        self.next_number += 1;
        let expected: Vec<(ChunkId, u32)> = wants
            .iter()
            .map(|w| (w.place().id, w.place().len))
            .collect();
        match (urgency, fill) {
            // Bounded by its bytes alone: read-ahead keeps its own places.
            (Urgency::Boot, Some(_)) => self.prefetch_bytes_flying += request_bytes(&expected),
            (Urgency::Fill, _) => {
                self.flying[slot(urgency)] += 1;
                self.fill_bytes_flying += request_bytes(&expected);
            }
            _ => self.flying[slot(urgency)] += 1,
        }
        let first = &wants[0].tree;
        Request {
            number,
            urgency,
            version: first.version,
            tree: first.tree,
            runs,
            expected,
            wants,
            fill,
        }
    }

    /// A chunk of a flying request is resident.
    pub fn arrived(&mut self, id: &ChunkId) {
        self.flights.remove(id);
    }

    /// A chunk that was fetched early found no room. A guest that waits for it still has its flight, and when that ends its demand,
    /// which may evict what nobody's guess may.
    pub fn came_in_vain(&mut self, id: &ChunkId) {
        let waited_for = matches!(
            self.flights.get(id),
            Some(Flight::Flying { demanded: true, .. } | Flight::Queued(Urgency::Demand))
        );
        if !waited_for {
            self.flights.remove(id);
        }
    }

    /// A request ended. Those of its chunks that did not arrive go back to the front of their queue, to the queue of demands if a
    /// guest asked for them meanwhile, or to the fill that asked.
    pub fn ended(&mut self, request: Request) {
        match (request.urgency, request.fill) {
            (Urgency::Boot, Some(_)) => {
                self.prefetch_bytes_flying -= request_bytes(&request.expected);
            }
            (Urgency::Fill, _) => {
                self.flying[slot(request.urgency)] -= 1;
                self.fill_bytes_flying -= request_bytes(&request.expected);
            }
            _ => self.flying[slot(request.urgency)] -= 1,
        }
        let mut lost_fill = Vec::new();
        for want in request.wants.into_iter().rev() {
            let id = want.place().id;
            let demanded = match self.flights.get(&id) {
                Some(Flight::Flying {
                    request: r,
                    demanded,
                }) if *r == request.number => *demanded,
                _ => continue,
            };
            if request.fill.is_some() {
                lost_fill.push(want.index);
            }
            if demanded {
                self.flights.insert(id, Flight::Queued(Urgency::Demand));
                self.demand.push_front(want);
            } else if request.urgency == Urgency::Boot && request.fill.is_none() {
                self.flights.insert(id, Flight::Queued(Urgency::Boot));
                self.boot.push_front(want);
            } else {
                self.flights.remove(&id);
            }
        }
        // A fill that was stopped meanwhile stays stopped.
        lost_fill.reverse();
        let asked = self
            .fills
            .iter_mut()
            .chain(&mut self.prefetches)
            .find(|f| Some(f.number) == request.fill);
        if let Some(fill) = asked {
            fill.ended(&lost_fill);
        }
    }

    /// Nobody waits for this chunk any more (the guest gave up): it is not asked for again.
    pub fn give_up(&mut self, id: &ChunkId) {
        if self.forget_queued(*id, Urgency::Demand) {
            // While the link is down nobody takes from the queue: what is left in it would pile up with every read that times out.
            self.demand.retain(|want| want.place().id != *id);
        }
    }

    fn forget_queued(&mut self, id: ChunkId, urgency: Urgency) -> bool {
        let queued = self.flights.get(&id) == Some(&Flight::Queued(urgency));
        if queued {
            self.flights.remove(&id);
        }
        queued
    }

    /// Whether a chunk is queued or on its way.
    pub fn is_pending(&self, id: &ChunkId) -> bool {
        self.flights.contains_key(id)
    }
}

/// Takes what the first of `fills` that has anything to ask for asks for.
fn take_fill(
    fills: &mut VecDeque<Fill>,
    request: u64,
    bytes_max: u64,
    flights: &mut HashMap<ChunkId, Flight>,
    resident: &dyn Fn(&ChunkId) -> bool,
) -> Option<(u64, Vec<Want>)> {
    let mut at = 0;
    while let Some(fill) = fills.get_mut(at) {
        let wants = fill.take(request, bytes_max, flights, resident);
        if !wants.is_empty() {
            return Some((fill.number, wants));
        }
        if fill.is_done() {
            fills.remove(at);
        } else {
            at += 1;
        }
    }
    None
}

fn request_bytes(expected: &[(ChunkId, u32)]) -> u64 {
    expected.iter().map(|(_, len)| u64::from(*len)).sum()
}

/// Trees for the tests of other modules.
#[cfg(test)]
pub(crate) mod made {
    /// A disk of about `count` chunks, as in the queue's own tests.
    pub(crate) fn published(version: u8, count: u32, changed: u32) -> super::TreeHandle {
        super::tests::publish(version, count, changed).handle
    }
}
