//! A version's tree as a volume base: read from the cache, waited for over the link.
//!
//! A hit is one lookup in the content map and one read from the slab for all extents that lie side by side there. A miss asks for all missing chunks of the read at
//! once, and for what sequential readers will read next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dedup::ChunkId;
use vmm_block::{BlockError, BlockErrorKind, RangeStatus};

use super::queue::{TreeHandle, Want};
use super::{Fetcher, WaitError};
use crate::cache::{ReadOutcome, Wanted};
use crate::content_map::Piece;
use crate::volume::Base;

/// Read-ahead after a first miss, in bytes: guests' file systems read files in pieces of 128 KiB.
const AHEAD_BYTES_MIN: u64 = 128 << 10;
/// Read-ahead of a long sequential run: what 100 Mbit/s carry in 600 ms and then some, so that a copy of a whole disk seldom waits.
const AHEAD_BYTES_MAX: u64 = 16 << 20;
/// Sequential runs followed at once: a booting guest reads several files in turn.
const STREAMS: usize = 8;

/// How often a read tries again when what it waited for is gone again (evicted or damaged): more means the cache is too small to
/// hold even one read.
const ATTEMPTS: usize = 8;

/// Slices looked for at once: as many as the cache reads by one system call.
const SLICES_FEW: usize = 32;

/// Stands where no slice was put yet.
static NO_CHUNK: ChunkId = ChunkId([0; 32]);

/// See the module.
pub struct CachedBase {
    tree: TreeHandle,
    fetcher: Arc<Fetcher>,
    streams: Mutex<Streams>,
    demand_chunks: AtomicU64,
}

#[derive(Default)]
struct Streams {
    recent: Vec<Stream>,
}

/// A run of reads that follow each other.
#[derive(Clone, Copy)]
struct Stream {
    /// Up to where it was read ahead, in bytes.
    end: u64,
    window: u64,
}

impl Streams {
    /// How far to read ahead of a miss at `offset..end`.
    fn window(&mut self, offset: u64, end: u64) -> u64 {
        let near = self
            .recent
            .iter()
            .position(|s| offset <= s.end + AHEAD_BYTES_MIN && offset + s.window >= s.end);
        let window = match near {
            Some(i) => (self.recent.remove(i).window * 2).min(AHEAD_BYTES_MAX),
            None => AHEAD_BYTES_MIN,
        };
        self.recent.truncate(STREAMS - 1);
        self.recent.insert(
            0,
            Stream {
                end: end + window,
                window,
            },
        );
        window
    }
}

impl CachedBase {
    /// Reads `tree` through `fetcher`'s cache.
    pub fn new(tree: TreeHandle, fetcher: Arc<Fetcher>) -> Self {
        Self {
            tree,
            fetcher,
            streams: Mutex::default(),
            demand_chunks: AtomicU64::new(0),
        }
    }

    /// Chunks that readers of this base had to wait for.
    pub fn demand_chunks(&self) -> u64 {
        self.demand_chunks.load(Ordering::Relaxed)
    }

    /// Fills `buf` as far as the cache can; adds the chunks that are missing to `missing`. Unless it `may_wait`, it neither asks the
    /// disk nor looks further than the first slice that cannot be had. Returns whether `buf` is full.
    fn read_cached(
        &self,
        offset: u64,
        buf: &mut [u8],
        may_wait: bool,
        missing: &mut Vec<Want>,
    ) -> Result<bool, BlockError> {
        let (len, mut filled, mut full) = (buf.len(), 0, true);
        let mut rest = buf;
        let map = &self.tree.map;
        let mut pieces = map.pieces(offset, len as u64);
        // Small reads have one or two slices: their list is on the stack.
        let mut few: [Wanted<'_>; SLICES_FEW] =
            std::array::from_fn(|_| Wanted::new(&NO_CHUNK, 0, &mut []));
        let mut indexes = [0; SLICES_FEW];
        loop {
            let mut count = 0;
            for piece in pieces.by_ref() {
                let (Piece::Zero { len } | Piece::Chunk { len, .. }) = piece;
                let (part, behind) = std::mem::take(&mut rest).split_at_mut(len as usize);
                rest = behind;
                filled += part.len();
                match piece {
                    Piece::Zero { .. } => part.fill(0),
                    Piece::Chunk { index, offset, .. } => {
                        few[count] = Wanted::new(&map.chunk(index).id, offset, part);
                        indexes[count] = index;
                        count += 1;
                    }
                }
                if count == SLICES_FEW {
                    break;
                }
            }
            if count == 0 {
                break;
            }
            self.fetcher
                .cache()
                .read_slices(&mut few[..count], may_wait)
                .map_err(cache_error)?;
            for (wanted, &index) in few[..count].iter().zip(&indexes) {
                match wanted.outcome {
                    ReadOutcome::Hit => continue,
                    ReadOutcome::WouldWait => {}
                    ReadOutcome::Absent | ReadOutcome::Quarantined => missing.push(Want {
                        tree: self.tree.clone(),
                        index,
                    }),
                }
                full = false;
                if !may_wait {
                    return Ok(false);
                }
            }
        }
        if filled < len {
            let context = format!("read of {len} bytes at {offset} is beyond the end");
            return Err(BlockError::new(BlockErrorKind::OutOfRange, context));
        }
        Ok(full)
    }

    fn read_ahead(&self, offset: u64, end: u64) -> Vec<Want> {
        let window = {
            let mut streams = self.streams.lock().expect("no panic under this lock");
            streams.window(offset, end)
        };
        let last = (end + window).min(self.tree.map.size_bytes());
        let ahead = self.tree.map.pieces(end, last.saturating_sub(end));
        ahead
            .filter_map(|piece| match piece {
                Piece::Zero { .. } => None,
                Piece::Chunk { index, .. } => Some(Want {
                    tree: self.tree.clone(),
                    index,
                }),
            })
            .collect()
    }
}

fn cache_error(error: crate::cache::CacheError) -> BlockError {
    BlockError::with_source(BlockErrorKind::Io, "cache", error)
}

fn wait_error(error: WaitError) -> BlockError {
    let kind = match &error {
        WaitError::Cache { .. } => BlockErrorKind::NoSpace,
        WaitError::TimedOut { .. } | WaitError::Refused { .. } => BlockErrorKind::Unavailable,
    };
    BlockError::with_source(kind, "base of the volume", error)
}

impl Base for CachedBase {
    fn size_bytes(&self) -> u64 {
        self.tree.map.size_bytes()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        for _ in 0..ATTEMPTS {
            let mut missing = Vec::new();
            if self.read_cached(offset, buf, true, &mut missing)? {
                return Ok(());
            }
            self.demand_chunks
                .fetch_add(missing.len() as u64, Ordering::Relaxed);
            let ahead = self.read_ahead(offset, offset + buf.len() as u64);
            self.fetcher.wait_for(missing, ahead).map_err(wait_error)?;
        }
        let context = format!(
            "read of {} bytes at {offset}: its chunks are evicted or damaged as fast as they are fetched; enlarge --cache-size or check the cache's disk",
            buf.len()
        );
        Err(BlockError::new(BlockErrorKind::Unavailable, context))
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        // What is missing is found again by the `read` that follows.
        self.read_cached(offset, buf, false, &mut Vec::new())
    }

    fn status(&self, offset: u64, len: u64) -> Vec<RangeStatus> {
        let mut status: Vec<RangeStatus> = Vec::new();
        for piece in self.tree.map.pieces(offset, len) {
            let (len, zero) = match piece {
                Piece::Zero { len } => (len, true),
                Piece::Chunk { len, .. } => (len, false),
            };
            match status.last_mut() {
                Some(last) if last.zero == zero => last.len += len,
                _ => status.push(RangeStatus {
                    len,
                    hole: zero,
                    zero,
                }),
            }
        }
        status
    }
}
