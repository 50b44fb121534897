//! The branch: its real cache, catalog and queue, guests that read, and what a connection is about at the moment.
//!
//! Invariant checked at every read: a guest sees the bytes that were published, or waits. Invariant checked at every request: what
//! was delivered and not lost with the power is not asked for again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use branch::cache::{Cache, CacheError, CacheIdentity, CacheKey, CacheOptions, ReadOutcome};
use branch::catalog::Catalog;
use branch::content_map::Piece;
use branch::fetch::queue::{Queue, Want};
use branch::versions::{TREES, Versions};
use crash::{Rng, SimDisk, SimKv};
use dedup::{ChunkId, VersionId};
use dedup_protocol::control::BranchControl;
use dedup_protocol::records::Tree;
use dedup_protocol::wire::{GetChunks, Message};

use crate::keys::{BEGIN_UNIX_S, BRANCH, Keys, REALM, id_key};
use crate::master::Published;
use crate::sync::{Flow, Syncing};

/// Chunk bytes a power cut may cost: what the cache syncs at once.
const SYNC_BYTES: u64 = 64 << 10;
/// A guest's read is given up after this.
const READ_MAX_MS: u64 = 60_000;

/// A guest's read.
struct Read {
    version: VersionId,
    offset: u64,
    len: u64,
    begun_ms: u64,
    waiting: Vec<ChunkId>,
}

/// What is lost with the process.
pub(crate) struct Process {
    pub(crate) cache: Cache,
    pub(crate) versions: Versions,
    pub(crate) queue: Queue,
    pub(crate) connection: Option<Connection>,
    reads: Vec<Read>,
}

/// What is lost with the connection.
pub(crate) struct Connection {
    pub(crate) next_stream: u64,
    pub(crate) control: BranchControl,
    pub(crate) greeted: bool,
    pub(crate) flows: BTreeMap<u64, Flow>,
    pub(crate) syncing: Option<Syncing>,
}

/// Counters over a run.
#[derive(Debug, Default, Clone, Copy)]
pub struct SiteTally {
    pub reads: u64,
    pub read_timeouts: u64,
    pub demanded: u64,
    pub requests: u64,
    pub deaths: u64,
}

/// See the module.
pub struct Site {
    keys: Keys,
    pub(crate) disk: SimDisk,
    kv: SimKv,
    pub(crate) process: Option<Process>,
    /// Chunks that came and must not be asked for again.
    pub(crate) delivered: HashSet<ChunkId>,
    pub(crate) published: HashMap<VersionId, Published>,
    pub tally: SiteTally,
}

impl Site {
    pub fn new(seed: u64, keys: Keys) -> Self {
        let disk = SimDisk::new(seed);
        let mut site = Self {
            keys,
            kv: SimKv::new(&disk),
            disk,
            process: None,
            delivered: HashSet::new(),
            published: HashMap::new(),
            tally: SiteTally::default(),
        };
        site.start();
        site
    }

    /// What guests must see of a version.
    pub fn learn(&mut self, published: Published) {
        self.published.insert(published.id, published);
    }

    pub fn is_alive(&self) -> bool {
        self.process.is_some()
    }

    pub fn start(&mut self) {
        let identity = CacheIdentity {
            realm: REALM,
            key_id: [2; 8],
        };
        let options = CacheOptions {
            capacity_bytes: 1 << 30,
            slab_bytes: 1 << 20,
            sync_bytes: SYNC_BYTES,
            ..CacheOptions::default()
        };
        let (disk, kv) = (Arc::new(self.disk.clone()), Arc::new(self.kv.clone()));
        let key = CacheKey::new([4; 32]);
        let cache = Cache::open(disk, "cache", kv.clone(), identity, [7; 16], key, options);
        let cache = cache.expect("a cache opens after any death");
        let catalog = Catalog::new(kv, self.keys.anchor.clone());
        let mut lost: u64 = 0;
        self.delivered.retain(|id| {
            let kept = cache.contains(id);
            lost += u64::from(!kept);
            kept
        });
        // Every chunk here is at least 1 KiB but the last of a tree; the cache counts whole slots of 4 KiB.
        assert!(
            lost <= SYNC_BYTES / 4096 + 17,
            "{lost} chunks were lost, more than one sync covers"
        );
        self.process = Some(Process {
            cache,
            versions: Versions::open(catalog).expect("a catalog opens after any death"),
            queue: Queue::new(),
            connection: None,
            reads: Vec::new(),
        });
    }

    /// The process is gone, or the whole machine.
    pub fn die(&mut self, rng: &mut Rng) {
        self.tally.deaths += 1;
        self.process = None;
        if rng.one_in(2) {
            self.disk = self.disk.clone_live();
            self.kv = self.kv.clone_live(&self.disk);
        } else {
            let seed = rng.bits();
            self.disk = self.disk.crash(seed);
            self.kv = self.kv.crash(seed, &self.disk);
        }
    }

    /// Lets the disk stop after so many more changes: a kill in the middle of anything.
    pub fn stop_after(&self, changes: u64) {
        self.disk.stop_after(changes);
    }

    /// A connection is up; greets.
    pub fn connected(&mut self) -> Vec<(u64, Message)> {
        let Some(process) = &mut self.process else {
            return Vec::new();
        };
        let counter = process.versions.assignment().map_or(0, |a| a.counter);
        let endorsements = process.versions.catalog().endorsements();
        let Ok(endorsements) = endorsements else {
            return Vec::new();
        };
        let control = BranchControl::new(BRANCH, self.keys.anchor.clone(), endorsements, counter);
        let hello = control.hello("simulation");
        process.connection = Some(Connection {
            next_stream: 1,
            control,
            greeted: false,
            flows: BTreeMap::from([(0, Flow::Control)]),
            syncing: None,
        });
        vec![(0, hello)]
    }

    /// The connection is gone: what was not finished goes back into the queue.
    pub fn hung_up(&mut self) {
        if let Some(process) = &mut self.process
            && let Some(connection) = process.connection.take()
        {
            for flow in connection.flows.into_values() {
                if let Flow::Chunks { request, .. } = flow {
                    process.queue.ended(*request);
                }
            }
        }
    }

    /// A guest begins to read somewhere in the pool's version.
    pub fn begin_read(&mut self, rng: &mut Rng, now_ms: u64) {
        let Some(process) = &mut self.process else {
            return;
        };
        let Some(pool) = process.versions.assignment().map(|a| a.pools[0].version) else {
            return;
        };
        let Ok(Some(tree)) = process.versions.tree(pool, Tree::Disk) else {
            return;
        };
        let size = tree.map.size_bytes();
        let offset = rng.below(size);
        let len = (1 + rng.below(40_000)).min(size - offset);
        self.tally.reads += 1;
        process.reads.push(Read {
            version: pool,
            offset,
            len,
            begun_ms: now_ms,
            waiting: Vec::new(),
        });
    }

    /// Goes on with everything that can go on; returns what to send.
    pub fn pump(&mut self, now_ms: u64) -> Vec<(u64, Message)> {
        self.go_on_reading(now_ms);
        let mut out = self.go_on_syncing();
        let Some(process) = &mut self.process else {
            return out;
        };
        let Some(connection) = process.connection.as_mut().filter(|c| c.greeted) else {
            return out;
        };
        let cache = &process.cache;
        while let Some(request) = process
            .queue
            .next_request(now_ms, 1 << 20, &|id| cache.contains(id))
        {
            self.tally.requests += 1;
            for (id, _) in &request.expected {
                assert!(
                    !self.delivered.contains(id),
                    "chunk {id} was delivered and is asked for again"
                );
            }
            let message = Message::GetChunks(GetChunks {
                version: request.version,
                tree: request.tree,
                urgency: request.urgency,
                runs: request.runs.clone(),
            });
            let stream = connection.next_stream;
            connection.next_stream += 1;
            let flow = Flow::chunks(id_key(), request);
            connection.flows.insert(stream, flow);
            out.push((stream, message));
        }
        out
    }

    /// When to pump though nothing happens.
    pub fn idle_ms(&self, now_ms: u64) -> Option<u64> {
        self.process.as_ref()?.queue.idle_ms(now_ms)
    }

    fn go_on_reading(&mut self, now_ms: u64) {
        let Some(process) = &mut self.process else {
            return;
        };
        let mut reads = std::mem::take(&mut process.reads);
        reads.retain_mut(|read| {
            if read.waiting.iter().any(|id| process.queue.is_pending(id)) {
                if now_ms < read.begun_ms + READ_MAX_MS {
                    return true;
                }
                for id in &read.waiting {
                    process.queue.give_up(id);
                }
                self.tally.read_timeouts += 1;
                return false;
            }
            match attempt(process, &self.published, read, now_ms) {
                Some(wanted) => {
                    self.tally.demanded += wanted;
                    true
                }
                None => false,
            }
        });
        process.reads = reads;
    }

    /// Whether every version that is to be whole here is, and nobody waits.
    pub fn is_settled(&self, assigned: u64) -> bool {
        let Some(process) = &self.process else {
            return false;
        };
        let Some(assignment) = process.versions.assignment() else {
            return assigned == 0;
        };
        assignment.counter == assigned
            && process.reads.is_empty()
            && process.versions.wanted().into_iter().all(|(id, whole)| {
                let Ok(Some(record)) = process.versions.catalog().version(id) else {
                    return false;
                };
                let residency = process.versions.residency(id, &record, &process.cache);
                residency.is_ok_and(|r| r.complete || !whole)
                    && process.versions.can_boot(&record).unwrap_or(false)
            })
    }

    /// Compares every version that is whole here with what was published; returns how many were.
    pub fn compare(&self) -> usize {
        let process = self.process.as_ref().expect("it is settled");
        let mut compared = 0;
        for (id, whole) in process.versions.wanted() {
            let published = &self.published[&id];
            for tree in TREES {
                let Ok(Some(handle)) = process.versions.tree(id, tree) else {
                    continue;
                };
                let was: &[u8] = match tree {
                    Tree::Disk => &published.disk,
                    _ => &published.kernel,
                };
                assert_eq!(handle.map.size_bytes(), was.len() as u64);
                if !whole {
                    continue;
                }
                compared += 1;
                for piece in at(handle.map.pieces(0, was.len() as u64)) {
                    let (offset, piece) = piece;
                    let is = bytes_of(process, &handle, &piece).expect("all of it is resident");
                    assert!(
                        is == was[offset as usize..offset as usize + is.len()],
                        "{tree:?} of {id} differs at {offset}"
                    );
                }
            }
        }
        compared
    }

    pub(crate) fn now_unix_s(now_ms: u64) -> u64 {
        BEGIN_UNIX_S + now_ms / 1000
    }
}

/// Pieces with the offset each begins at.
fn at(pieces: impl Iterator<Item = Piece>) -> impl Iterator<Item = (u64, Piece)> {
    let mut offset = 0;
    pieces.map(move |piece| {
        let len = match piece {
            Piece::Zero { len } | Piece::Chunk { len, .. } => len,
        };
        offset += len;
        (offset - len, piece)
    })
}

fn bytes_of(
    process: &Process,
    tree: &branch::fetch::queue::TreeHandle,
    piece: &Piece,
) -> Option<Vec<u8>> {
    match *piece {
        Piece::Zero { len } => Some(vec![0; len as usize]),
        Piece::Chunk { index, offset, len } => {
            let mut buf = vec![0xEE; len as usize];
            let id = tree.map.chunk(index).id;
            match process.cache.read(&id, offset, &mut buf) {
                Ok(ReadOutcome::Hit) => Some(buf),
                Ok(ReadOutcome::Absent | ReadOutcome::WouldWait) => None,
                Ok(ReadOutcome::Quarantined) => panic!("chunk {id} is damaged"),
                Err(error @ CacheError::OutOfRange { .. }) => panic!("{error}"),
                Err(_) => None,
            }
        }
    }
}

/// Reads, or demands what is missing. `None`: done. `Some(n)`: n chunks were asked for by this call.
fn attempt(
    process: &mut Process,
    published: &HashMap<VersionId, Published>,
    read: &mut Read,
    now_ms: u64,
) -> Option<u64> {
    let tree = process.versions.tree(read.version, Tree::Disk).ok()??;
    let was = &published[&read.version].disk;
    read.waiting.clear();
    let mut wants = Vec::new();
    for (offset, piece) in at(tree.map.pieces(read.offset, read.len)) {
        match bytes_of(process, &tree, &piece) {
            Some(is) => {
                let begin = (read.offset + offset) as usize;
                assert!(
                    is == was[begin..begin + is.len()],
                    "a guest read wrong bytes"
                );
            }
            None => {
                if let Piece::Chunk { index, .. } = piece {
                    wants.push(index);
                }
            }
        }
    }
    if wants.is_empty() {
        return None;
    }
    let mut asked = 0;
    let last = *wants.last().expect("it is not empty");
    for index in wants {
        read.waiting.push(tree.map.chunk(index).id);
        let want = Want {
            tree: tree.clone(),
            index,
        };
        asked += u64::from(process.queue.demand(want, now_ms));
    }
    for index in last + 1..(last + 4).min(tree.map.chunks().len()) {
        if !process.cache.contains(&tree.map.chunk(index).id) {
            process.queue.read_ahead(Want {
                tree: tree.clone(),
                index,
            });
        }
    }
    Some(asked)
}
