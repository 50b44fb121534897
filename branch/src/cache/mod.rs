//! The branch's chunk cache: verified, uncompressed chunks in encrypted slab files, checked on every read.
//!
//! - A chunk enters only as a [`Chunk`], which is verified by construction. Each 4 KiB block of it is encrypted and has a tag that is bound
//!   to chunk and place ([`seal`]); no byte leaves whose block did not match. A mismatch quarantines the chunk and the caller fetches again.
//! - A read is one lookup in memory and one `preadv` for all chunks that lie side by side, decrypted where it lies; the tags are in memory. No database, no
//!   decompression, no lock during I/O.
//! - Durability order: slab data, then the residency index, in batches ([`Cache::sync`]). Slots are reused only once the index
//!   has durably forgotten their chunk. So after any crash the index never names a block that was not written.
//! - It is refetchable by definition: a lost index, slab or header gives a smaller cache, never an error.
//!
//! Readers against slot reuse: a reader may find a slot reused under it, because nothing is locked during I/O. Then the
//! tag, which is bound to the chunk's name, does not match, and the reader looks the chunk up again: if the entry still has
//! the same stamp, the slots were the chunk's all along and it is damaged; else the reader follows the new entry. A match needs
//! no second look: same name, same bytes, wherever they lie.
//!
//! The format is `docs/disk-formats/cache.md`. It does not fetch, and does not decide what to keep: callers pin and evict.

mod error;
mod evict;
#[cfg(test)]
mod evict_tests;
mod format;
mod gather;
mod insert;
mod load;
mod read;
mod residency;
mod seal;
mod slab;
#[cfg(test)]
mod slices_tests;
mod slots;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use dedup::ChunkId;
use dedup_store::disk::Disk;
use dedup_store::kv::Kv;

pub use error::CacheError;
pub use evict::ScrubReport;
pub use format::CacheIdentity;
pub use read::{ReadOutcome, Wanted};
pub use seal::CacheKey;

use format::{BLOCK_BYTES, Keys, Meta};
use insert::Pending;
use residency::ResidencyMap;
use slab::Slab;
use slots::Slots;

#[cfg(doc)]
use dedup::Chunk;

/// How a cache is kept.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Most bytes that chunks may take, in slots of 4 KiB.
    pub capacity_bytes: u64,
    /// Data bytes of one slab file, at least the longest chunk; takes space only as it fills.
    pub slab_bytes: u64,
    /// Bytes inserted after which a sync happens by itself: what a crash makes us fetch again.
    pub sync_bytes: u64,
    /// Prefix of the cache's keys in the key-value store.
    pub kv_prefix: Vec<u8>,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            capacity_bytes: 64 << 30,
            slab_bytes: 256 << 20,
            sync_bytes: 64 << 20,
            kv_prefix: b"cache/".to_vec(),
        }
    }
}

/// Figures about a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheStats {
    /// Chunks held, quarantined ones included.
    pub chunks: u64,
    /// Bytes that their slots take.
    pub bytes: u64,
    /// The limit for that.
    pub capacity_bytes: u64,
    /// Reads served.
    pub hits: u64,
    /// Reads not served: absent or quarantined.
    pub misses: u64,
    /// Chunks in quarantine now.
    pub quarantined: u64,
    /// Chunks found damaged since the start.
    pub damaged: u64,
    /// Syncs that failed since the start; what they covered is fetched again after a crash.
    pub sync_failures: u64,
    /// Chunks evicted since the start.
    pub evicted: u64,
    /// Bytes that their slots took.
    pub evicted_bytes: u64,
}

/// How often chunks came and went since the start. Two equal readings: nothing did in between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Churn {
    /// Chunks that became resident.
    pub arrivals: u64,
    /// Chunks that were evicted, removed or quarantined.
    pub departures: u64,
}

#[derive(Debug, Default)]
struct Counters {
    arrivals: AtomicU64,
    departures: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    quarantined: AtomicU64,
    damaged: AtomicU64,
    sync_failures: AtomicU64,
    evicted: AtomicU64,
    evicted_bytes: AtomicU64,
}

/// An open cache. All methods may be called from any thread.
pub struct Cache {
    disk: Arc<dyn Disk>,
    dir: String,
    kv: Arc<dyn Kv>,
    keys: Keys,
    key: CacheKey,
    meta: Meta,
    options: CacheOptions,
    /// By number; filled as slabs come into being.
    slabs: Vec<OnceLock<Slab>>,
    map: ResidencyMap,
    slots: Mutex<Slots>,
    pending: Mutex<Pending>,
    /// One sync at a time.
    sync: Mutex<()>,
    /// Held while the residency index changes together with the map, so that no commit overtakes another.
    commit: Mutex<()>,
    /// Coarse clock for coldness: it advances with bytes inserted and with evictions.
    tick: AtomicU32,
    stamp: AtomicU32,
    counters: Counters,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("no code panics while it holds this lock")
}

/// Path of a file of the cache in `dir`.
fn path(dir: &str, name: &str) -> String {
    if dir.is_empty() {
        name.to_owned()
    } else {
        format!("{dir}/{name}")
    }
}

impl Cache {
    /// Whether `id` is resident and sound, as far as known.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.map.find(id).is_some_and(|stay| !stay.quarantined)
    }

    /// Length in bytes of `id`, if it is resident and sound.
    pub fn len_of(&self, id: &ChunkId) -> Option<u32> {
        self.map
            .find(id)
            .filter(|stay| !stay.quarantined)
            .map(|stay| stay.len)
    }

    /// Figures for the console and for eviction.
    pub fn stats(&self) -> CacheStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            chunks: self.map.len(),
            bytes: lock(&self.slots).used() * BLOCK_BYTES,
            capacity_bytes: self.options.capacity_bytes,
            hits: of(&self.counters.hits),
            misses: of(&self.counters.misses),
            quarantined: of(&self.counters.quarantined),
            damaged: of(&self.counters.damaged),
            sync_failures: of(&self.counters.sync_failures),
            evicted: of(&self.counters.evicted),
            evicted_bytes: of(&self.counters.evicted_bytes),
        }
    }

    /// How often chunks came and went. Counted after the fact: whoever reads this and then looks finds at least that much changed.
    pub fn churn(&self) -> Churn {
        Churn {
            arrivals: self.counters.arrivals.load(Ordering::Acquire),
            departures: self.counters.departures.load(Ordering::Acquire),
        }
    }

    /// Whose cache it is.
    pub fn identity(&self) -> &CacheIdentity {
        &self.meta.identity
    }

    fn slab(&self, number: u32) -> &Slab {
        self.slabs[number as usize]
            .get()
            .expect("slots are given out and entries loaded only from slabs that are open")
    }
}
