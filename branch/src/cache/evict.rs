//! Chunks going out: eviction, removal, giving space back; and scrubbing.
//!
//! Invariant: the index durably forgets a chunk before its slots can be given to another.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use dedup::ChunkId;
use dedup_store::kv::{Batch, Durability};

use super::format::BLOCK_BYTES;
use super::read::ReadOutcome;
use super::residency::Stay;
use super::slots::Run;
use super::{Cache, CacheError, lock};

/// Chunks forgotten by one commit: bounds its size, and what is freed late if it fails.
const FORGET_BATCH: usize = 4096;

/// Less than this part of what is wanted is so little that the next rank goes on.
const FEW_PART: u64 = 8;

/// Why a chunk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// For room.
    Evicted,
    /// It is not wanted any more, or not sound.
    Removed,
}

/// What a scrub found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Chunks read.
    pub chunks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Chunks found damaged and quarantined.
    pub damaged: u64,
    /// Whether it went through to the end.
    pub finished: bool,
}

impl Cache {
    /// Evicts the coldest chunks until their slots add up to `bytes_wanted` or nothing is left that `pinned` lets go. Chunks
    /// in quarantine stay. Returns the bytes freed. Cost: passes over the residency map, so ask for a batch (a percent of
    /// the capacity), not for one chunk.
    ///
    /// # Errors
    /// [`CacheError::Index`]: what was evicted before it stays evicted.
    pub fn evict(
        &self,
        bytes_wanted: u64,
        pinned: &dyn Fn(ChunkId) -> bool,
    ) -> Result<u64, CacheError> {
        self.evict_ranked(bytes_wanted, &|id| (!pinned(id)).then_some(0))
    }

    /// The same by ranks: the coldest of the lowest rank that any chunk here has. What ranks higher goes only when all that ranks lower
    /// went and was less than an eighth of what is wanted, which would not be worth a pass. A chunk without a rank stays.
    ///
    /// # Errors
    /// As [`Self::evict`].
    pub fn evict_ranked(
        &self,
        bytes_wanted: u64,
        rank: &dyn Fn(ChunkId) -> Option<u8>,
    ) -> Result<u64, CacheError> {
        let now = self.tick.fetch_add(1, Ordering::Relaxed);
        let mut by_rank: BTreeMap<u8, BTreeMap<u32, u64>> = BTreeMap::new();
        for shard in 0..self.map.shards() {
            for (id, stay) in self.sound_in(shard) {
                if let Some(rank) = rank(id) {
                    let by_tick = by_rank.entry(rank).or_default();
                    *by_tick.entry(stay.tick).or_default() += bytes_of(&stay);
                }
            }
        }
        let mut freed = 0;
        for (lowest, by_tick) in by_rank {
            let warmest = warmest_needed(&by_tick, bytes_wanted.saturating_sub(freed));
            // What is colder than the warmest tick that is needed goes whole; of that tick goes what is still wanted.
            for colder in [true, false] {
                for shard in 0..self.map.shards() {
                    if freed >= bytes_wanted {
                        break;
                    }
                    let mut found = self.sound_in(shard);
                    found.retain(|(id, stay)| {
                        let due = if colder {
                            stay.tick < warmest
                        } else {
                            stay.tick == warmest
                        };
                        due && rank(*id) == Some(lowest)
                    });
                    let wanted = bytes_wanted - freed;
                    freed += self.forget(&mut found.into_iter(), wanted, Why::Evicted)?;
                }
            }
            if freed > 0 && freed >= bytes_wanted / FEW_PART {
                break;
            }
        }
        tracing::debug!(cache = %self.dir, freed, bytes_wanted, tick = now, "evicted");
        Ok(freed)
    }

    /// The sound stays of a shard. A copy, so that no reader waits while something is worked out about them.
    fn sound_in(&self, shard: usize) -> Vec<(ChunkId, Stay)> {
        let mut stays = Vec::new();
        self.map.for_each_in(shard, &mut |id, stay| {
            if !stay.quarantined {
                stays.push((*id, stay));
            }
        });
        stays
    }

    /// Visits every sound chunk with the bytes that its slots take; for reports.
    pub fn visit(&self, visit: &mut dyn FnMut(ChunkId, u64)) {
        for shard in 0..self.map.shards() {
            for (id, stay) in self.sound_in(shard) {
                visit(id, bytes_of(&stay));
            }
        }
    }

    /// Drops `id`, also from quarantine; false if it was not here.
    ///
    /// # Errors
    /// [`CacheError::Index`].
    pub fn remove(&self, id: &ChunkId) -> Result<bool, CacheError> {
        let Some(stay) = self.map.find(id) else {
            return Ok(false);
        };
        let one = &mut std::iter::once((*id, stay));
        Ok(self.forget(one, u64::MAX, Why::Removed)? > 0)
    }

    /// Forgets stays until `enough` bytes are free; returns how many are.
    fn forget(
        &self,
        stays: &mut dyn Iterator<Item = (ChunkId, Stay)>,
        enough: u64,
        why: Why,
    ) -> Result<u64, CacheError> {
        let mut freed = 0;
        while freed < enough {
            let mut batch = Vec::new();
            let mut within = 0;
            while batch.len() < FORGET_BATCH && freed + within < enough {
                let Some(next) = stays.next() else { break };
                within += bytes_of(&next.1);
                batch.push(next);
            }
            if batch.is_empty() {
                break;
            }
            let _commit = lock(&self.commit);
            // A stay that ended meanwhile was healed elsewhere, and the index may know that already.
            batch.retain(|(id, stay)| self.map.find(id).is_some_and(|now| now.stamp == stay.stamp));
            let mut changes = Batch::new();
            for (id, _) in &batch {
                changes.delete(self.keys.chunk(id));
            }
            self.kv.commit(changes, Durability::Synced)?;
            for (id, stay) in batch {
                // If it is healed in this very moment, the next sync records it again.
                if self.map.remove(&id, stay.stamp) {
                    self.counters.departures.fetch_add(1, Ordering::Release);
                    if stay.quarantined {
                        self.counters.quarantined.fetch_sub(1, Ordering::Relaxed);
                    }
                    self.give_slots(stay.run());
                    let bytes = bytes_of(&stay);
                    freed += bytes;
                    if why == Why::Evicted {
                        let counters = &self.counters;
                        counters.evicted.fetch_add(1, Ordering::Relaxed);
                        counters.evicted_bytes.fetch_add(bytes, Ordering::Relaxed);
                    }
                }
            }
        }
        Ok(freed)
    }

    /// Makes the slots usable again that healed chunks left behind because their bytes had gone bad there. Returns the bytes
    /// that came back. For an operator who has checked the disk.
    ///
    /// # Errors
    /// [`CacheError::Index`].
    pub fn reuse_bad_slots(&self) -> Result<u64, CacheError> {
        // What is pending has to be in the index first.
        self.sync()?;
        let _commit = lock(&self.commit);
        let mut runs = Vec::new();
        let mut batch = Batch::new();
        let prefix = self.keys.all_bad();
        self.kv.scan(&prefix, &prefix, &mut |key, value| {
            if let Some(run) = self.bad_run(key, value) {
                runs.push(run);
                batch.delete(key);
            }
            std::ops::ControlFlow::Continue(())
        })?;
        if runs.is_empty() {
            return Ok(0);
        }
        self.kv.commit(batch, Durability::Synced)?;
        let bytes = runs
            .iter()
            .map(|run| u64::from(run.count) * BLOCK_BYTES)
            .sum();
        runs.into_iter().for_each(|run| self.give_slots(run));
        Ok(bytes)
    }

    pub(super) fn bad_run(&self, key: &[u8], value: &[u8]) -> Option<Run> {
        let (slab, slot) = self.keys.bad_of(key)?;
        let count = u32::from_le_bytes(value.try_into().ok()?);
        Some(Run { slab, slot, count })
    }

    /// Gives the space of all free slots back to the host's file system, for others to use. Returns the bytes offered.
    ///
    /// # Errors
    /// [`CacheError::Io`]: some space stays with the cache.
    pub fn give_back_space(&self) -> Result<u64, CacheError> {
        let mut offered = 0;
        let runs = lock(&self.slots).free_runs();
        for run in runs {
            // Taken meanwhile, so that nobody writes where the hole goes.
            if !lock(&self.slots).take_exactly(run) {
                continue;
            }
            let punched = self.slab(run.slab).punch(&self.dir, run);
            self.give_slots(run);
            punched?;
            offered += u64::from(run.count) * BLOCK_BYTES;
        }
        Ok(offered)
    }

    /// Reads every chunk and quarantines those that do not verify. `proceed(bytes)` is called after each chunk with its length
    /// and paces the scrub; it stops when that says false. Blocks in the host's page cache are not read from the disk.
    ///
    /// # Errors
    /// None today; reads that fail are damage.
    pub fn scrub(&self, proceed: &mut dyn FnMut(u64) -> bool) -> Result<ScrubReport, CacheError> {
        let mut report = ScrubReport::default();
        let mut bytes = Vec::new();
        for shard in 0..self.map.shards() {
            for (id, _) in self.sound_in(shard) {
                match self.probe(&id, &mut bytes)? {
                    ReadOutcome::Absent | ReadOutcome::WouldWait => continue,
                    ReadOutcome::Hit => {}
                    ReadOutcome::Quarantined => report.damaged += 1,
                }
                report.chunks += 1;
                report.bytes += bytes.len() as u64;
                if !proceed(bytes.len() as u64) {
                    return Ok(report);
                }
            }
        }
        report.finished = true;
        Ok(report)
    }
}

/// The tick up to which chunks have to go for `bytes_wanted`; the last one if all of them are not enough.
fn warmest_needed(by_tick: &BTreeMap<u32, u64>, bytes_wanted: u64) -> u32 {
    let mut within: u64 = 0;
    let enough = by_tick.iter().find(|(_, bytes)| {
        within = within.saturating_add(**bytes);
        within >= bytes_wanted
    });
    let last = enough.or_else(|| by_tick.last_key_value());
    last.map_or(0, |(tick, _)| *tick)
}

fn bytes_of(stay: &Stay) -> u64 {
    u64::from(stay.run().count) * BLOCK_BYTES
}
