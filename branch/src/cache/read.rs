//! The hit path, and quarantine.

use std::sync::atomic::Ordering;

use dedup::ChunkId;

use super::gather::{GATHER_MAX, Gathered, adjoins};
use super::residency::Stay;
use super::{Cache, CacheError, gather, lock};

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
    /// The chunk is here, but not in the host's memory, and the reader would not wait for the disk.
    WouldWait,
}

/// A slice of a chunk, and where its bytes shall go.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The chunk.
    pub id: &'a ChunkId,
    /// Where in the chunk the slice begins, in bytes.
    pub offset: u32,
    /// As long as the slice.
    pub buf: &'a mut [u8],
    /// Set by [`Cache::read_slices`].
    pub outcome: ReadOutcome,
}

impl<'a> Wanted<'a> {
    /// A slice that was not looked for yet.
    pub fn new(id: &'a ChunkId, offset: u32, buf: &'a mut [u8]) -> Self {
        Self {
            id,
            offset,
            buf,
            outcome: ReadOutcome::Absent,
        }
    }
}

impl Cache {
    /// Fills the buffers of `wanted`, in order, those whose chunks lie side by side by one system call. Each slice's
    /// [`Wanted::outcome`] says whether its buffer is filled; the others hold anything.
    ///
    /// Unless it `may_wait`, nothing is read that the host's memory does not have, and it ends at the first slice that is not a hit.
    ///
    /// # Errors
    /// As [`Cache::read`].
    pub fn read_slices(&self, wanted: &mut [Wanted<'_>], may_wait: bool) -> Result<(), CacheError> {
        let (mut hits, mut misses) = (0, 0);
        let result = self.read_runs(wanted, may_wait, &mut hits, &mut misses);
        if hits > 0 {
            self.counters.hits.fetch_add(hits, Ordering::Relaxed);
        }
        if misses > 0 {
            self.counters.misses.fetch_add(misses, Ordering::Relaxed);
        }
        result
    }

    fn read_runs(
        &self,
        wanted: &mut [Wanted<'_>],
        may_wait: bool,
        hits: &mut u64,
        misses: &mut u64,
    ) -> Result<(), CacheError> {
        let tick = self.tick.load(Ordering::Relaxed);
        let locate = |wanted: &Wanted<'_>| -> Result<Option<Stay>, CacheError> {
            let found = self.map.touch(wanted.id, tick);
            found.map_or(Ok(()), |stay| in_range(wanted, &stay))?;
            Ok(found)
        };
        let mut rest = wanted;
        // The stay of the first of `rest`, once it was looked up.
        let mut ahead: Option<Option<Stay>> = None;
        while let Some(first) = rest.first_mut() {
            let found = match ahead.take() {
                Some(found) => found,
                None => locate(first)?,
            };
            let Some(stay) = found.filter(|stay| !stay.quarantined) else {
                first.outcome = match found {
                    Some(_) => ReadOutcome::Quarantined,
                    None => ReadOutcome::Absent,
                };
                *misses += 1;
                if !may_wait {
                    return Ok(());
                }
                rest = &mut rest[1..];
                continue;
            };
            let mut stays = [stay; GATHER_MAX];
            let mut count = 1;
            while count < rest.len().min(GATHER_MAX) {
                let next = locate(&rest[count])?;
                ahead = Some(next);
                let Some(next) = next.filter(|next| {
                    !next.quarantined
                        && adjoins(&rest[count - 1], &stays[count - 1], &rest[count], next)
                }) else {
                    break;
                };
                stays[count] = next;
                (count, ahead) = (count + 1, None);
            }
            let (run, behind) = std::mem::take(&mut rest).split_at_mut(count);
            let slab = self.slab(stay.slab);
            let read = gather::read(slab, &self.key, run, &stays[..count], may_wait);
            match read {
                Ok(Gathered::Whole) => {
                    run.iter_mut().for_each(|w| w.outcome = ReadOutcome::Hit);
                    *hits += count as u64;
                }
                Ok(Gathered::WouldWait) => {
                    run[0].outcome = ReadOutcome::WouldWait;
                    return Ok(());
                }
                // Damaged, evicted meanwhile, or a disk that fails: one by one, to find out which.
                Ok(Gathered::Mismatch) | Err(_) => {
                    for wanted in run {
                        wanted.outcome = self.read_one(wanted)?;
                        let counter = match wanted.outcome {
                            ReadOutcome::Hit => &mut *hits,
                            _ => &mut *misses,
                        };
                        *counter += 1;
                    }
                }
            }
            rest = behind;
        }
        Ok(())
    }

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
        let mut wanted = [Wanted::new(id, offset, buf)];
        self.read_slices(&mut wanted, true)?;
        let [wanted] = wanted;
        Ok(wanted.outcome)
    }

    /// Reads the whole of `id` as the disk has it, tags included, without leaving traces in figures or coldness: for scrubbing.
    pub(super) fn probe(&self, id: &ChunkId, buf: &mut Vec<u8>) -> Result<ReadOutcome, CacheError> {
        let cipher = self.key.of(id);
        Ok(self.follow(id, |slab, stay| {
            buf.resize(stay.len as usize, 0);
            slab.read_stored(&cipher, stay, buf)
        }))
    }

    /// Reads one slice, following the chunk if it moves.
    fn read_one(&self, wanted: &mut Wanted<'_>) -> Result<ReadOutcome, CacheError> {
        self.map.touch(wanted.id, self.tick.load(Ordering::Relaxed));
        let id = wanted.id;
        let mut mismatch = None;
        let outcome = self.follow(id, |slab, stay| {
            if let Err(error) = in_range(wanted, stay) {
                mismatch = Some(error);
                return Ok(true);
            }
            let slice = std::slice::from_mut(wanted);
            gather::read(slab, &self.key, slice, std::slice::from_ref(stay), true)
                .map(|read| matches!(read, Gathered::Whole))
        });
        mismatch.map_or(Ok(outcome), Err)
    }

    /// Has `read` read where `id` is, until what it reads verifies; quarantines the chunk if it never does.
    fn follow(
        &self,
        id: &ChunkId,
        mut read: impl FnMut(&super::Slab, &Stay) -> std::io::Result<bool>,
    ) -> ReadOutcome {
        for _ in 0..ROUNDS_MAX {
            let Some(stay) = self.map.find(id) else {
                return ReadOutcome::Absent;
            };
            if stay.quarantined {
                return ReadOutcome::Quarantined;
            }
            let read = read(self.slab(stay.slab), &stay);
            if matches!(read, Ok(true)) {
                return ReadOutcome::Hit;
            }
            // Damaged, or evicted and its slots reused during the read? The stamp tells.
            if self.map.find(id).is_some_and(|now| now.stamp == stay.stamp) {
                let why = read.err().map(|e| e.to_string());
                self.quarantine(
                    id,
                    &stay,
                    why.as_deref().unwrap_or("a block does not match its tag"),
                );
                return ReadOutcome::Quarantined;
            }
        }
        // Somebody evicts it as fast as it comes: fetching again is right, and bounded.
        ReadOutcome::Absent
    }

    fn quarantine(&self, id: &ChunkId, stay: &Stay, why: &str) {
        if !self.map.quarantine(id, stay.stamp) {
            return;
        }
        self.counters.departures.fetch_add(1, Ordering::Release);
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

/// Refuses a slice that its chunk does not have.
fn in_range(wanted: &Wanted<'_>, stay: &Stay) -> Result<(), CacheError> {
    let end = u64::from(wanted.offset) + wanted.buf.len() as u64;
    if end <= u64::from(stay.len) {
        return Ok(());
    }
    Err(CacheError::OutOfRange {
        id: *wanted.id,
        offset: u64::from(wanted.offset),
        end,
        len: stay.len,
    })
}
