//! The hit path, and quarantine.

use std::sync::atomic::Ordering;

use dedup::ChunkId;

use super::residency::Stay;
use super::{Cache, CacheError, lock};

/// How often a reader follows a chunk that moves under it. Each round needs an eviction and a reinsert during one read.
const ROUNDS_MAX: usize = 8;

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The buffer is filled with verified bytes.
    Hit,
    /// The chunk is not here.
    Absent,
    /// The chunk is here but damaged. Fetch it again and insert it, which heals it.
    Quarantined,
}

impl Cache {
    /// Fills `buf` from byte `offset` of chunk `id`. Unless the outcome is [`ReadOutcome::Hit`], `buf` holds anything.
    ///
    /// # Errors
    /// [`CacheError::OutOfRange`]: the chunk is shorter. Damage and errors of the disk are outcomes, not errors.
    pub fn read(
        &self,
        id: &ChunkId,
        offset: u32,
        buf: &mut [u8],
    ) -> Result<ReadOutcome, CacheError> {
        let outcome = self.read_with(id, offset, buf, |map, tick| map.touch(id, tick))?;
        let counter = match outcome {
            ReadOutcome::Hit => &self.counters.hits,
            ReadOutcome::Absent | ReadOutcome::Quarantined => &self.counters.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(outcome)
    }

    /// As [`Cache::read`], without leaving traces in figures or coldness: for scrubbing.
    pub(super) fn probe(&self, id: &ChunkId, buf: &mut Vec<u8>) -> Result<ReadOutcome, CacheError> {
        let Some(stay) = self.map.find(id) else {
            return Ok(ReadOutcome::Absent);
        };
        buf.resize(stay.len as usize, 0);
        self.read_with(id, 0, buf, |map, _| map.find(id))
    }

    fn read_with(
        &self,
        id: &ChunkId,
        offset: u32,
        buf: &mut [u8],
        find: impl Fn(&super::ResidencyMap, u32) -> Option<Stay>,
    ) -> Result<ReadOutcome, CacheError> {
        for _ in 0..ROUNDS_MAX {
            let Some(stay) = find(&self.map, self.tick.load(Ordering::Relaxed)) else {
                return Ok(ReadOutcome::Absent);
            };
            if stay.quarantined {
                return Ok(ReadOutcome::Quarantined);
            }
            let end = u64::from(offset) + buf.len() as u64;
            if end > u64::from(stay.len) {
                return Err(CacheError::OutOfRange {
                    id: *id,
                    offset: u64::from(offset),
                    end,
                    len: stay.len,
                });
            }
            let read = self.slab(stay.slab).read(id, &stay, offset, buf);
            if matches!(read, Ok(true)) {
                return Ok(ReadOutcome::Hit);
            }
            // Damaged, or evicted and its slots reused during the read? The stamp tells.
            if self.map.find(id).is_some_and(|now| now.stamp == stay.stamp) {
                let why = read.err().map(|e| e.to_string());
                self.quarantine(
                    id,
                    &stay,
                    why.as_deref()
                        .unwrap_or("a block does not match its checksum"),
                );
                return Ok(ReadOutcome::Quarantined);
            }
        }
        // Somebody evicts it as fast as it comes: fetching again is right, and bounded.
        Ok(ReadOutcome::Absent)
    }

    fn quarantine(&self, id: &ChunkId, stay: &Stay, why: &str) {
        if !self.map.quarantine(id, stay.stamp) {
            return;
        }
        self.counters.quarantined.fetch_add(1, Ordering::Relaxed);
        self.counters.damaged.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            cache = %self.dir, chunk = %id, slab = stay.slab, slot = stay.slot, why,
            "chunk quarantined: it will be fetched again"
        );
        // The next sync records it. If a crash comes first, the next read finds the damage again.
        lock(&self.pending).entries.push((*id, stay.stamp));
    }
}
