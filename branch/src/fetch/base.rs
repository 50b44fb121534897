//! A version's tree as a volume base: read from the cache, waited for over the link.
//!
//! A hit is one lookup in the content map and one read from the slab for each extent. A miss asks for all missing chunks of the read at
//! once, and for what sequential readers will read next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vmm_block::{BlockError, BlockErrorKind, RangeStatus};

use super::queue::{TreeHandle, Want};
use super::{Fetcher, WaitError};
use crate::cache::ReadOutcome;
use crate::content_map::Piece;
use crate::profile::Watch;
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

/// See the module.
pub struct CachedBase {
    tree: TreeHandle,
    fetcher: Arc<Fetcher>,
    streams: Mutex<Streams>,
    demand_chunks: AtomicU64,
    watch: Watch,
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
            watch: Watch::default(),
        }
    }

    /// Chunks that readers of this base had to wait for.
    pub fn demand_chunks(&self) -> u64 {
        self.demand_chunks.load(Ordering::Relaxed)
    }

    /// Where a boot of the desktop that reads this base is recorded.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Fills `buf` as far as the cache can; returns the chunks that are missing.
    fn read_cached(&self, offset: u64, buf: &mut [u8], all: bool) -> Result<Vec<Want>, BlockError> {
        let mut missing = Vec::new();
        let mut at = 0;
        for piece in self.tree.map.pieces(offset, buf.len() as u64) {
            match piece {
                Piece::Zero { len } => {
                    buf[at..at + len as usize].fill(0);
                    at += len as usize;
                }
                Piece::Chunk { index, offset, len } => {
                    let part = &mut buf[at..at + len as usize];
                    at += len as usize;
                    let place = self.tree.map.chunk(index);
                    let outcome = self.fetcher.cache().read(&place.id, offset, part);
                    let outcome = outcome.map_err(cache_error)?;
                    self.watch.touch(index, matches!(outcome, ReadOutcome::Hit));
                    match outcome {
                        ReadOutcome::Hit => {}
                        ReadOutcome::Absent | ReadOutcome::Quarantined => {
                            missing.push(Want {
                                tree: self.tree.clone(),
                                index,
                            });
                            if !all {
                                return Ok(missing);
                            }
                        }
                    }
                }
            }
        }
        if at < buf.len() {
            let context = format!("read of {} bytes at {offset} is beyond the end", buf.len());
            return Err(BlockError::new(BlockErrorKind::OutOfRange, context));
        }
        Ok(missing)
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
            let missing = self.read_cached(offset, buf, true)?;
            if missing.is_empty() {
                return Ok(());
            }
            self.demand_chunks
                .fetch_add(missing.len() as u64, Ordering::Relaxed);
            let ahead = self.read_ahead(offset, offset + buf.len() as u64);
            let waited = self.watch.waiting(|| self.fetcher.wait_for(missing, ahead));
            waited.map_err(wait_error)?;
        }
        let context = format!(
            "read of {} bytes at {offset}: its chunks are evicted or damaged as fast as they are fetched; enlarge --cache-size or check the cache's disk",
            buf.len()
        );
        Err(BlockError::new(BlockErrorKind::Unavailable, context))
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        Ok(self.read_cached(offset, buf, false)?.is_empty())
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
