//! Which chunk is where: the in-memory residency map.
//!
//! Invariant: an entry's `stamp` is unique to one stay of a chunk in one place. Slots are given back only after their entry is
//! gone from here, so whoever finds the same stamp after a read knows that the slots were the chunk's all along.
//! Costs about 70 bytes per chunk: 450 MB for 100 GiB at 16 KiB a chunk. Sharded, so that readers seldom meet a writer.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};

use dedup::ChunkId;

use super::format::{Residency, slots_of};
use super::slots::Run;

const SHARDS: usize = 64;

/// Chunk ids are keyed hashes, uniform already: their own bytes are the hash.
#[derive(Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Called with the id's bytes and with their count; the sum keeps both orders of calls sound.
        let mut word = [0; 8];
        let len = bytes.len().min(8);
        word[..len].copy_from_slice(&bytes[..len]);
        self.0 = self.0.wrapping_add(u64::from_le_bytes(word));
    }

    fn write_usize(&mut self, _len: usize) {}
}

/// One chunk's stay.
#[derive(Debug)]
struct Entry {
    slab: u32,
    slot: u32,
    len: u32,
    stamp: u32,
    tick: AtomicU32,
    quarantined: bool,
}

/// A copy of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stay {
    /// Where the chunk is.
    pub slab: u32,
    /// First slot.
    pub slot: u32,
    /// Length in bytes.
    pub len: u32,
    /// Identifies this stay.
    pub stamp: u32,
    /// When it was last used.
    pub tick: u32,
    /// Whether it was found damaged.
    pub quarantined: bool,
}

impl Stay {
    /// The slots.
    pub fn run(&self) -> Run {
        Run {
            slab: self.slab,
            slot: self.slot,
            count: slots_of(self.len),
        }
    }

    /// The value for the residency index.
    pub fn residency(&self) -> Residency {
        Residency {
            slab: self.slab,
            slot: self.slot,
            len: self.len,
            quarantined: self.quarantined,
            tick: self.tick,
        }
    }
}

/// What became of an insert.
#[derive(Debug, PartialEq, Eq)]
pub enum Placed {
    /// The chunk was not there.
    New,
    /// It replaces a damaged stay in this run.
    Healed(Run),
    /// Somebody else was first: the new run is not needed.
    Refused,
}

type Shard = RwLock<HashMap<ChunkId, Entry, BuildHasherDefault<IdHasher>>>;

/// The map.
#[derive(Debug)]
pub struct ResidencyMap {
    shards: Vec<Shard>,
}

fn stay(entry: &Entry) -> Stay {
    Stay {
        slab: entry.slab,
        slot: entry.slot,
        len: entry.len,
        stamp: entry.stamp,
        tick: entry.tick.load(Ordering::Relaxed),
        quarantined: entry.quarantined,
    }
}

macro_rules! locked {
    ($lock:expr) => {
        $lock.expect("no code panics while it holds a shard")
    };
}

impl ResidencyMap {
    /// An empty map.
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
        }
    }

    fn shard(&self, id: &ChunkId) -> &Shard {
        // Not a byte that the hash table uses.
        &self.shards[usize::from(id.0[31]) % SHARDS]
    }

    /// Where `id` is, noting that it was used at `tick`.
    pub fn touch(&self, id: &ChunkId, tick: u32) -> Option<Stay> {
        let shard = locked!(self.shard(id).read());
        let entry = shard.get(id)?;
        // Written only when it changes, so that readers of a hot chunk do not fight for its cache line.
        if entry.tick.load(Ordering::Relaxed) != tick {
            entry.tick.store(tick, Ordering::Relaxed);
        }
        Some(stay(entry))
    }

    /// Where `id` is.
    pub fn find(&self, id: &ChunkId) -> Option<Stay> {
        locked!(self.shard(id).read()).get(id).map(stay)
    }

    /// Places `id`, unless it has a sound stay already.
    pub fn place(&self, id: ChunkId, new: Stay) -> Placed {
        let mut shard = locked!(self.shard(&id).write());
        let entry = Entry {
            slab: new.slab,
            slot: new.slot,
            len: new.len,
            stamp: new.stamp,
            tick: AtomicU32::new(new.tick),
            quarantined: new.quarantined,
        };
        match shard.get(&id).map(stay) {
            Some(old) if !old.quarantined => Placed::Refused,
            Some(old) => {
                shard.insert(id, entry);
                Placed::Healed(old.run())
            }
            None => {
                shard.insert(id, entry);
                Placed::New
            }
        }
    }

    /// Marks the stay `stamp` of `id` as damaged; false if it is over, or was marked before.
    pub fn quarantine(&self, id: &ChunkId, stamp: u32) -> bool {
        let mut shard = locked!(self.shard(id).write());
        match shard.get_mut(id) {
            Some(entry) if entry.stamp == stamp && !entry.quarantined => {
                entry.quarantined = true;
                true
            }
            _ => false,
        }
    }

    /// Ends the stay `stamp` of `id`; false if it is over already.
    pub fn remove(&self, id: &ChunkId, stamp: u32) -> bool {
        let mut shard = locked!(self.shard(id).write());
        if shard.get(id).is_some_and(|entry| entry.stamp == stamp) {
            shard.remove(id);
            return true;
        }
        false
    }

    /// Visits every entry of one shard, which is locked for reading meanwhile.
    pub fn for_each_in(&self, shard: usize, visit: &mut dyn FnMut(&ChunkId, Stay)) {
        let shard = locked!(self.shards[shard].read());
        shard.iter().for_each(|(id, entry)| visit(id, stay(entry)));
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        SHARDS
    }

    /// How many chunks there are, damaged ones included.
    pub fn len(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| locked!(shard.read()).len() as u64)
            .sum()
    }
}
