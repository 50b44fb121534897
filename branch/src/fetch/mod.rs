//! Getting chunks that are not here: guests' threads wait, the link's tasks work.
//!
//! [`Fetcher`] owns the [`queue::Queue`] and the cache it fills. Guests' threads call [`Fetcher::wait_for`]; the link's tasks call
//! [`Fetcher::next_request`], [`Fetcher::deliver`] and [`Fetcher::ended`]. Invariant: a chunk is announced only when a read of it from
//! the cache will hit.

pub mod base;
pub mod latency;
pub mod queue;
#[cfg(test)]
mod room_tests;
pub mod update;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use dedup::{Chunk, ChunkId};
use dedup_protocol::policy::Policy;
use dedup_protocol::records::Tree;
use dedup_protocol::wire::Urgency;
use tokio::sync::Notify;

use crate::cache::{Cache, CacheError};
use crate::clock::{Clock, HostClock};
use crate::keep::Ranks;
use latency::Histogram;
use queue::{Queue, Request, TreeHandle, Want};

/// For how long a chunk that the datacenter refused is not asked for again.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Least room made at once, in bytes; an eighth of a cache that is very small.
const EVICT_BYTES_MIN: u64 = 8 << 20;

/// Most refusals remembered; beyond it the oldest make room.
const REFUSALS_MAX: usize = 4096;

/// How soon a wait notices that it is to end.
const ENOUGH_LOOK: Duration = Duration::from_millis(100);

/// Counters since the start of the process.
#[derive(Debug, Default)]
pub struct FetchCounters {
    /// Chunks a guest had to wait for.
    pub demand_chunks: AtomicU64,
    /// Milliseconds guests waited, over all waits.
    pub demand_wait_ms: AtomicU64,
    /// Chunks fetched before a guest asked.
    pub prefetch_chunks: AtomicU64,
    /// Plain bytes of all chunks fetched.
    pub chunk_bytes: AtomicU64,
    /// How long guests waited for what one read lacked.
    pub demand_wait: Histogram,
    /// How long requests for read-ahead and boots took, from the first byte sent to the last chunk cached.
    pub boot_fetch: Histogram,
    /// How long fill's requests took.
    pub fill_fetch: Histogram,
    /// Those of them that came by updates.
    pub update_bytes: AtomicU64,
    /// Bytes of these updates' batches on the wire.
    pub update_packed_bytes: AtomicU64,
}

/// Why a wait for a chunk ended without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The bounded wait ran out.
    #[error(
        "chunk {id} did not come within {waited:?}: {}",
        if *.connected { "the link is up but slow" } else { "the link to the datacenter is down" }
    )]
    TimedOut {
        /// The chunk.
        id: ChunkId,
        /// How long was waited.
        waited: Duration,
        /// Whether the link was up at the end.
        connected: bool,
    },
    /// Who waited did so no longer.
    #[error("the wait for chunk {id} was ended")]
    Ended {
        /// The chunk.
        id: ChunkId,
    },
    /// The datacenter will not give it.
    #[error("the datacenter refused chunk {id}: {reason}")]
    Refused {
        /// The chunk.
        id: ChunkId,
        /// Its words.
        reason: String,
    },
    /// The cache cannot take it.
    #[error("chunk {id} could not be cached: {reason}")]
    Cache {
        /// The chunk.
        id: ChunkId,
        /// Why.
        reason: String,
        /// Whether it was for want of room.
        full: bool,
    },
}

/// See the module.
pub struct Fetcher {
    state: Mutex<State>,
    changed: Condvar,
    work: Notify,
    cache: Arc<Cache>,
    /// Since the start of the process.
    pub counters: FetchCounters,
    started: Instant,
    wait_max: Duration,
    needs: OnceLock<NeededChunks>,
    /// The wall clock, for the hours of the policy.
    wall: Arc<dyn Clock>,
    policy: Mutex<Policy>,
    /// The cache takes nothing more, and that was told.
    full: AtomicBool,
}

/// Tells which chunks something needs here, and how much.
pub type NeededChunks = Box<dyn Fn() -> Ranks + Send + Sync>;

#[derive(Default)]
struct State {
    queue: Queue,
    refusals: HashMap<ChunkId, (Instant, WaitError)>,
    connected: bool,
}

impl Fetcher {
    /// Fetches into `cache`; a guest waits at most `wait_max` for a chunk.
    pub fn new(cache: Arc<Cache>, wait_max: Duration) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            work: Notify::new(),
            cache,
            counters: FetchCounters::default(),
            started: Instant::now(),
            wait_max,
            needs: OnceLock::new(),
            wall: Arc::new(HostClock),
            policy: Mutex::default(),
            full: AtomicBool::new(false),
        }
    }

    /// The same, by another wall clock.
    pub fn with_wall_clock(self, wall: Arc<dyn Clock>) -> Self {
        Self { wall, ..self }
    }

    /// Keeps to these hours from now on. What fill has in flight still arrives.
    pub fn follow_policy(&self, policy: Policy) {
        *self.policy.lock().expect("no panic under this lock") = policy;
        self.work.notify_one();
    }

    /// Whether the policy lets fill run at this moment.
    pub fn is_fill_hour(&self) -> bool {
        let policy = *self.policy.lock().expect("no panic under this lock");
        policy.fill_allowed(self.wall.now_unix_s())
    }

    /// Says once who knows what is needed here, and so which chunks are evicted last.
    pub fn set_needs(&self, needs: NeededChunks) {
        // A second call would be a mistake of ours; the first stays.
        let first = self.needs.set(needs).is_ok();
        debug_assert!(first, "needs are set once");
    }

    /// The cache it fills.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Waits until none of `wants` is on its way any more. `ahead` is what will probably be read next.
    ///
    /// A chunk may still be missing afterwards (evicted, or found damaged): the caller reads, and comes back. Soon after `enough` says so
    /// the wait ends without it.
    pub fn wait_for(
        &self,
        wants: Vec<Want>,
        ahead: Vec<Want>,
        enough: Option<&dyn Fn() -> bool>,
    ) -> Result<(), WaitError> {
        let begun = Instant::now();
        let ids: Vec<ChunkId> = wants.iter().map(|w| w.tree.map.chunk(w.index).id).collect();
        let mut state = self.state();
        let now_ms = self.now_ms();
        let mut queued = 0;
        for want in wants {
            // It may have arrived between the caller's look and the lock.
            if !self.cache.contains(&want.tree.map.chunk(want.index).id) {
                queued += u64::from(state.queue.demand(want, now_ms));
            }
        }
        self.counters
            .demand_chunks
            .fetch_add(queued, Ordering::Relaxed);
        for want in ahead {
            if !self.cache.contains(&want.tree.map.chunk(want.index).id) {
                state.queue.read_ahead(want);
            }
        }
        self.work.notify_one();
        let result = loop {
            let refusal = ids.iter().find_map(|id| {
                let (at, error) = state.refusals.get(id)?;
                (at.elapsed() < REFUSED_FOR).then(|| error.clone())
            });
            if let Some(error) = refusal {
                break Err(error);
            }
            let Some(id) = ids.iter().find(|id| state.queue.is_pending(id)).copied() else {
                break Ok(());
            };
            let waited = begun.elapsed();
            let is_over = waited >= self.wait_max;
            let is_enough = enough.is_some_and(|enough| enough());
            if is_over || is_enough {
                for id in &ids {
                    state.queue.give_up(id);
                }
                if is_enough {
                    break Err(WaitError::Ended { id });
                }
                let connected = state.connected;
                break Err(WaitError::TimedOut {
                    id,
                    waited,
                    connected,
                });
            }
            let look = enough.map_or(Duration::MAX, |_| ENOUGH_LOOK);
            state = self
                .changed
                .wait_timeout(state, (self.wait_max - waited).min(look))
                .expect("no panic happens under this lock")
                .0;
        };
        drop(state);
        let waited = begun.elapsed();
        self.counters.demand_wait.record(waited);
        self.counters
            .demand_wait_ms
            .fetch_add(waited.as_millis() as u64, Ordering::Relaxed);
        result
    }

    /// Asks for what will probably be read next, and does not wait for it.
    pub fn read_ahead(&self, ahead: Vec<Want>) {
        let mut state = self.state();
        for want in ahead {
            if !self.cache.contains(&want.tree.map.chunk(want.index).id) {
                state.queue.read_ahead(want);
            }
        }
        drop(state);
        self.work.notify_one();
    }

    /// A desktop is being started: it has the link to itself until it has settled.
    pub fn boot_begins(&self) {
        let now_ms = self.now_ms();
        self.state().queue.boot_begins(now_ms);
    }

    /// Makes a tree whole in the background.
    pub fn fill(&self, tree: TreeHandle) {
        self.state().queue.fill(tree);
        self.work.notify_one();
    }

    /// The same, but these chunks of the tree first, in their order.
    pub fn fill_first(&self, tree: TreeHandle, order: Arc<[u32]>) {
        self.state().queue.fill_first(tree, order);
        self.work.notify_one();
    }

    /// Brings only these chunks of a tree, in the background and in their order.
    pub fn fill_only(&self, tree: TreeHandle, order: Arc<[u32]>) {
        self.state().queue.fill_only(tree, order);
        self.work.notify_one();
    }

    /// Fetches these chunks ahead of a guest that will ask for them in this order. The answer is for [`Self::stop_prefetch`].
    pub fn prefetch(&self, tree: TreeHandle, order: Arc<[u32]>) -> u64 {
        let number = self.state().queue.prefetch(tree, order);
        self.work.notify_one();
        number
    }

    /// Ends a prefetch.
    pub fn stop_prefetch(&self, number: u64) {
        self.state().queue.stop_prefetch(number);
        self.work.notify_one();
    }

    /// Whether trees of `version` other than `tree` are being filled.
    pub fn is_filling_beside(&self, version: dedup::VersionId, tree: Tree) -> bool {
        let state = self.state();
        let mut filling = state.queue.filling();
        filling.any(|(v, t)| v == version && t != tree)
    }

    /// Ends the filling of all trees that `keep` does not keep.
    pub fn retain_fills(&self, keep: impl Fn(dedup::VersionId) -> bool) {
        let mut state = self.state();
        let gone: Vec<_> = state.queue.filling().filter(|(v, _)| !keep(*v)).collect();
        for (version, tree) in gone {
            state.queue.stop_fill(version, tree);
        }
    }

    /// The link came up or went down.
    pub fn set_connected(&self, connected: bool) {
        let mut state = self.state();
        state.connected = connected;
        if connected {
            state.refusals.clear();
        }
        drop(state);
        self.changed.notify_all();
        self.work.notify_one();
    }

    /// Whether the link is up.
    pub fn is_connected(&self) -> bool {
        self.state().connected
    }

    /// The next request, if one may be sent now.
    pub fn next_request(&self, fill_flight_bytes: u64) -> Option<Request> {
        let now_ms = self.now_ms();
        let fill_hour = self.is_fill_hour();
        let mut state = self.state();
        state.queue.set_fill_hour(fill_hour);
        let cache = &self.cache;
        let request = state
            .queue
            .next_request(now_ms, fill_flight_bytes, &|id| cache.contains(id));
        drop(state);
        if request.is_none() {
            // What was found resident instead of requested may be what someone waits for.
            self.changed.notify_all();
        }
        request
    }

    /// Returns when [`Self::next_request`] is worth asking again.
    pub async fn work_arrived(&self) {
        let idle_ms = self.state().queue.idle_ms(self.now_ms());
        match idle_ms {
            Some(ms) => {
                let _ = tokio::time::timeout(Duration::from_millis(ms), self.work.notified()).await;
            }
            None => self.work.notified().await,
        }
    }

    /// Caches chunks of a request and wakes who waits for them. Blocks on the disk.
    ///
    /// What nobody waits for ends at the first chunk that finds no room: looking for room anew for each of the others, in a cache of
    /// what is assigned, would take a look at the whole residency map each. A guest's wait is never answered by that.
    pub fn deliver(&self, urgency: Urgency, chunks: &[Chunk]) -> Result<(), CacheError> {
        let mut result = Ok(());
        let mut full = false;
        let mut bytes = 0;
        let mut failed = Vec::new();
        let mut in_vain = &chunks[chunks.len()..];
        for (at, chunk) in chunks.iter().enumerate() {
            let Err(error) = self.insert(urgency, chunk) else {
                bytes += chunk.bytes().len() as u64;
                continue;
            };
            full |= is_full(&error);
            if full && urgency != Urgency::Demand {
                in_vain = &chunks[at..];
                result = Err(error);
                break;
            }
            failed.push((chunk.id(), error.to_string(), is_full(&error)));
            result = Err(error);
        }
        self.counters
            .chunk_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        let came = &chunks[..chunks.len() - in_vain.len()];
        if urgency != Urgency::Demand {
            self.counters
                .prefetch_chunks
                .fetch_add(came.len() as u64, Ordering::Relaxed);
        }
        let now_ms = self.now_ms();
        let mut state = self.state();
        if full {
            state.queue.cache_is_full(now_ms);
        }
        for chunk in came {
            state.queue.arrived(&chunk.id());
        }
        for chunk in in_vain {
            state.queue.came_in_vain(&chunk.id());
        }
        for (id, reason, full) in failed {
            remember(&mut state, id, WaitError::Cache { id, reason, full });
        }
        drop(state);
        self.changed.notify_all();
        result
    }

    /// Caches a chunk, making room if the cache is full: [`crate::keep`] says of what.
    fn insert(&self, urgency: Urgency, chunk: &Chunk) -> Result<(), CacheError> {
        let full = match self.cache.insert(chunk) {
            Ok(_) => return Ok(()),
            Err(error) if is_full(&error) => error,
            Err(error) => return Err(error),
        };
        // A percent at a time: an eviction looks at the whole residency map.
        let capacity = self.cache.stats().capacity_bytes;
        let room = (capacity / 100).max(EVICT_BYTES_MIN.min(capacity / 8));
        if self.evict(room, urgency)? == 0 {
            return Err(full);
        }
        self.cache.insert(chunk).map(|_| ())
    }

    /// One pass over the cache for `bytes` of room; how many it made.
    fn evict(&self, bytes: u64, urgency: Urgency) -> Result<u64, CacheError> {
        let ranks = self.needs.get().map(|needs| needs()).unwrap_or_default();
        let connected = self.is_connected();
        self.cache.evict_ranked(bytes, &|id| {
            let rank = ranks.of(&id);
            rank.gives_way(urgency, connected).then_some(rank as u8)
        })
    }

    /// Gives `bytes` of the host's disk back, of chunks that a fill may push out: for desktops that have no room to write. Returns what
    /// the cache's free slots add up to then.
    ///
    /// # Errors
    /// As [`crate::cache::Cache::evict`] and [`crate::cache::Cache::give_back_space`].
    pub fn give_room(&self, bytes: u64) -> Result<u64, CacheError> {
        let mut left = bytes;
        while left > 0 {
            // A pass may end with the lowest rank though that was not enough.
            match self.evict(left, Urgency::Fill)? {
                0 => break,
                freed => left = left.saturating_sub(freed),
            }
        }
        self.cache.give_back_space()
    }

    /// Logs that chunks could not be cached: a full disk once, until something could be cached again.
    pub fn log_uncached(&self, result: &Result<(), CacheError>) {
        let line = |error| crate::desktop::error_line(error);
        match result {
            Ok(()) => {
                if self.full.swap(false, Ordering::Relaxed) {
                    tracing::info!("the cache takes chunks again");
                }
            }
            Err(error) if is_full(error) => {
                if !self.full.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        error = line(error),
                        "the cache is full of what is needed here: fill pauses; enlarge --cache-size, free disk space, or unassign versions (splice branch-cache shows what is held)"
                    );
                }
            }
            Err(error) => tracing::error!(error = line(error), "chunks could not be cached"),
        }
    }

    /// A request ended, whole or cut: what did not arrive is asked for again.
    pub fn ended(&self, request: Request) {
        self.state().queue.ended(request);
        self.changed.notify_all();
        self.work.notify_one();
    }

    /// A request was refused for good: who waits for its chunks is told.
    pub fn refused(&self, request: Request, reason: &str) {
        let ids: Vec<ChunkId> = request.expected.iter().map(|(id, _)| *id).collect();
        self.unreadable(&ids, reason);
        self.ended(request);
    }

    /// Chunks in flight that the datacenter cannot give: who waits for them is told.
    pub fn unreadable(&self, ids: &[ChunkId], reason: &str) {
        let mut state = self.state();
        for id in ids {
            if state.queue.is_pending(id) {
                let error = WaitError::Refused {
                    id: *id,
                    reason: reason.into(),
                };
                remember(&mut state, *id, error);
                state.queue.arrived(id);
            }
        }
        drop(state);
        self.changed.notify_all();
    }
}

fn is_full(error: &CacheError) -> bool {
    matches!(error, CacheError::Full { .. } | CacheError::NoSpace { .. })
}

fn remember(state: &mut State, id: ChunkId, error: WaitError) {
    if state.refusals.len() >= REFUSALS_MAX {
        state
            .refusals
            .retain(|_, (at, _)| at.elapsed() < REFUSED_FOR);
    }
    if state.refusals.len() < REFUSALS_MAX {
        state.refusals.insert(id, (Instant::now(), error));
    }
}
