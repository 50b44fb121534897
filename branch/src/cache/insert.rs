//! Chunks coming in, and making them durable.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use dedup::{CHUNK_BYTES_MAX, Chunk, ChunkId};
use dedup_store::kv::{Batch, Durability};

use super::format::{BLOCK_BYTES, CHUNK_SLOTS_MAX, slots_of};
use super::residency::{Placed, Stay};
use super::slab::{SLABS_MAX, Slab};
use super::slots::{Run, Slots};
use super::{Cache, CacheError, lock};

/// How many ticks a filling of the whole cache takes: the resolution of coldness.
const TICKS_PER_FILL: u64 = 1024;

/// What the residency index does not know yet.
#[derive(Debug, Default)]
pub struct Pending {
    /// Stays that began or were quarantined.
    pub entries: Vec<(ChunkId, u32)>,
    /// Runs that damaged stays left behind when they were healed elsewhere.
    bad: Vec<Run>,
    /// Slabs to sync first.
    slabs: BTreeSet<u32>,
    /// Bytes inserted.
    bytes: u64,
    /// Bytes inserted since the last tick.
    tick_bytes: u64,
}

impl Cache {
    /// Takes a chunk in. It can be read at once, and survives a crash after the next [`Cache::sync`], which happens by itself
    /// every [`super::CacheOptions::sync_bytes`]. A chunk that is there already is left alone; a quarantined one is healed in
    /// new slots. Returns whether it was taken.
    ///
    /// # Errors
    /// [`CacheError::Full`], [`CacheError::NoSpace`]: evict and try again. [`CacheError::TooLong`], [`CacheError::Io`].
    pub fn insert(&self, chunk: &Chunk) -> Result<bool, CacheError> {
        let (id, bytes) = (chunk.id(), chunk.bytes());
        if bytes.len() > CHUNK_BYTES_MAX {
            return Err(CacheError::TooLong {
                id,
                len: bytes.len(),
            });
        }
        if self.contains(&id) {
            return Ok(false);
        }
        let len = bytes.len() as u32;
        let run = self.write(&id, bytes)?;
        let stay = Stay {
            slab: run.slab,
            slot: run.slot,
            len,
            stamp: self.stamp.fetch_add(1, Ordering::Relaxed),
            tick: self.tick.load(Ordering::Relaxed),
            quarantined: false,
        };
        let bad = match self.map.place(id, stay) {
            Placed::New => None,
            Placed::Healed(old) => Some(old),
            Placed::Refused => {
                self.give_slots(run);
                return Ok(false);
            }
        };
        self.counters.arrivals.fetch_add(1, Ordering::Release);
        if bad.is_some() {
            self.counters.quarantined.fetch_sub(1, Ordering::Relaxed);
        }
        if self.note(id, stay, bad) {
            // The chunk is in, so this is not the caller's error; sync() reports it to whoever asks.
            let _ = self.sync();
        }
        Ok(true)
    }

    /// Writes a chunk into slots of its own. A disk that has no room, or a slab that fails, is tried a second time elsewhere.
    fn write(&self, id: &ChunkId, bytes: &[u8]) -> Result<Run, CacheError> {
        let count = slots_of(bytes.len() as u32);
        let first = self.take_slots(count)?;
        let error = match self.write_at(first, id, bytes) {
            Ok(()) => return Ok(first),
            Err(error) => error,
        };
        let second = match &error {
            CacheError::NoSpace { .. } => lock(&self.slots).take_written(count),
            CacheError::Io { .. } => self.take_slots(count).ok(),
            _ => None,
        };
        let Some(second) = second else {
            return Err(error);
        };
        self.write_at(second, id, bytes).map(|()| second)
    }

    fn write_at(&self, run: Run, id: &ChunkId, bytes: &[u8]) -> Result<(), CacheError> {
        let slab = self.slab(run.slab);
        let cipher = self.key.of(id);
        slab.write(&self.dir, &cipher, run.slot, bytes).inspect_err(|error| {
            self.give_slots(run);
            if slab.has_failed() {
                lock(&self.slots).close_slab(run.slab);
                tracing::error!(cache = %self.dir, file = %slab.name, %error, "slab takes no more chunks");
            }
        })
    }

    /// Adds to what is pending; true if it is time to sync.
    fn note(&self, id: ChunkId, stay: Stay, bad: Option<Run>) -> bool {
        let bytes = u64::from(stay.run().count) * BLOCK_BYTES;
        let mut pending = lock(&self.pending);
        pending.entries.push((id, stay.stamp));
        pending.bad.extend(bad);
        pending.slabs.insert(stay.slab);
        pending.bytes += bytes;
        pending.tick_bytes += bytes;
        if pending.tick_bytes >= self.options.capacity_bytes / TICKS_PER_FILL {
            pending.tick_bytes = 0;
            self.tick.fetch_add(1, Ordering::Relaxed);
        }
        pending.bytes >= self.options.sync_bytes
    }

    fn take_slots(&self, count: u32) -> Result<Run, CacheError> {
        let mut slots = lock(&self.slots);
        let full = || CacheError::Full {
            dir: self.dir.clone(),
            needed_bytes: u64::from(count) * BLOCK_BYTES,
            capacity_bytes: self.options.capacity_bytes,
        };
        let capacity = self.options.capacity_bytes / BLOCK_BYTES;
        if slots.used() + u64::from(count) > capacity {
            return Err(full());
        }
        if let Some(run) = slots.take(count) {
            return Ok(run);
        }
        if slots.total() >= capacity || !self.add_slab(&mut slots)? {
            return Err(full());
        }
        slots.take(count).ok_or_else(full)
    }

    pub(super) fn give_slots(&self, run: Run) {
        lock(&self.slots).give(run);
    }

    /// Begins another slab, once per 256 MiB; inserts wait meanwhile. False if there may be no more.
    fn add_slab(&self, slots: &mut Slots) -> Result<bool, CacheError> {
        let free = (0..self.slabs.len() as u32).find(|number| !slots.has_slab(*number));
        let Some(number) = free.filter(|number| *number < SLABS_MAX) else {
            return Ok(false);
        };
        let count = ((self.options.slab_bytes / BLOCK_BYTES) as u32).max(CHUNK_SLOTS_MAX);
        let slab = Slab::create(&*self.disk, &self.dir, &self.meta, number, count)?;
        let fresh = self.slabs[number as usize].set(slab).is_ok();
        debug_assert!(fresh, "a number without slots has no slab");
        slots.add_slab(number, count);
        Ok(true)
    }

    /// Makes everything inserted so far durable.
    ///
    /// # Errors
    /// [`CacheError::Io`], [`CacheError::NoSpace`]: chunks that were not durable yet in the slab that failed are dropped, for
    /// nobody knows what the disk has of them. [`CacheError::Index`]: nothing is lost, and the next sync tries again.
    pub fn sync(&self) -> Result<(), CacheError> {
        let _one_at_a_time = lock(&self.sync);
        let taken = {
            let mut pending = lock(&self.pending);
            let tick_bytes = pending.tick_bytes;
            std::mem::replace(
                &mut *pending,
                Pending {
                    tick_bytes,
                    ..Pending::default()
                },
            )
        };
        if taken.entries.is_empty() && taken.bad.is_empty() {
            return Ok(());
        }
        let mut failure = None;
        for &number in &taken.slabs {
            let slab = self.slab(number);
            if let Err(error) = slab.sync(&self.dir) {
                tracing::error!(cache = %self.dir, file = %slab.name, %error, "slab takes no more chunks");
                lock(&self.slots).close_slab(number);
                failure.get_or_insert(error);
            }
        }
        let committed = self.commit_pending(&taken);
        if let Err(error) = committed {
            tracing::error!(cache = %self.dir, %error, "residency was not recorded");
            failure.get_or_insert(error);
            let mut pending = lock(&self.pending);
            pending.entries.extend(taken.entries);
            pending.bad.extend(taken.bad);
            pending.slabs.extend(taken.slabs);
        }
        match failure {
            None => Ok(()),
            Some(error) => {
                self.counters.sync_failures.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }

    /// Records residencies, except those that ended meanwhile; ends those whose slab failed.
    fn commit_pending(&self, taken: &Pending) -> Result<(), CacheError> {
        let _commit = lock(&self.commit);
        let mut batch = Batch::new();
        for (id, stamp) in &taken.entries {
            let Some(stay) = self.map.find(id).filter(|stay| stay.stamp == *stamp) else {
                continue;
            };
            if self.slab(stay.slab).has_failed() {
                // Its slots stay taken: nobody writes to a failed slab.
                if self.map.remove(id, *stamp) {
                    self.counters.departures.fetch_add(1, Ordering::Release);
                    if stay.quarantined {
                        self.counters.quarantined.fetch_sub(1, Ordering::Relaxed);
                    }
                }
                batch.delete(self.keys.chunk(id));
            } else {
                batch.put(self.keys.chunk(id), stay.residency().encode());
            }
        }
        for run in &taken.bad {
            batch.put(self.keys.bad(run.slab, run.slot), run.count.to_le_bytes());
        }
        if !batch.is_empty() {
            self.kv.commit(batch, Durability::Synced)?;
        }
        Ok(())
    }
}
