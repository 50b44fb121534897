//! A version's tree, or a state's, as a volume base: read from the cache, waited for over the link.
//!
//! A hit is one lookup in the content map and one read from the slab for all extents that lie side by side there. A miss asks for all
//! missing chunks of the read at once, and for what sequential readers will read next; a reader that follows what was read ahead has
//! more asked for before it gets there.

use std::iter::repeat;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dedup::{ChunkId, VersionId};
use vmm_block::{BlockError, BlockErrorKind, RangeStatus};

use super::queue::{TreeHandle, Want};
use super::{Fetcher, WaitError};
use crate::cache::{ReadOutcome, Wanted};
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

/// Slices looked for at once: as many as the cache reads by one system call.
const SLICES_FEW: usize = 32;

/// Stands where no slice was put yet.
static NO_CHUNK: ChunkId = ChunkId([0; 32]);

/// See the module.
pub struct CachedBase {
    tree: TreeHandle,
    fetcher: Arc<Fetcher>,
    streams: Mutex<Streams>,
    markers: Markers,
    demand_chunks: AtomicU64,
    watch: Watch,
}

/// Where sequential readers will be when more is to be read ahead for them: looked at by every read, so without a lock.
struct Markers([AtomicU64; STREAMS]);

impl Markers {
    /// No marker.
    const NONE: u64 = u64::MAX;

    fn are_in(&self, offset: u64, end: u64) -> bool {
        self.0
            .iter()
            .any(|marker| (offset..end).contains(&marker.load(Ordering::Relaxed)))
    }
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

impl Stream {
    /// Half of what was read ahead is left: time to ask for more, so that a reader as fast as the line never waits.
    fn marker(&self) -> u64 {
        self.end - self.window / 2
    }
}

impl Streams {
    /// What to read ahead of a miss at `offset..end`.
    fn missed(&mut self, offset: u64, end: u64) -> Range<u64> {
        let near = self
            .recent
            .iter()
            .position(|s| offset <= s.end + AHEAD_BYTES_MIN && offset + s.window >= s.end);
        let window = match near {
            Some(i) => (self.recent.remove(i).window * 2).min(AHEAD_BYTES_MAX),
            None => AHEAD_BYTES_MIN,
        };
        self.follow(end, window)
    }

    /// What to read ahead when a reader has come to a marker in `offset..end`.
    fn passed(&mut self, offset: u64, end: u64) -> Option<Range<u64>> {
        let at = self
            .recent
            .iter()
            .position(|s| (offset..end).contains(&s.marker()))?;
        let stream = self.recent.remove(at);
        let window = (stream.window * 2).min(AHEAD_BYTES_MAX);
        Some(self.follow(stream.end, window))
    }

    fn follow(&mut self, from: u64, window: u64) -> Range<u64> {
        self.recent.truncate(STREAMS - 1);
        let end = from + window;
        self.recent.insert(0, Stream { end, window });
        from..end
    }

    fn show(&self, markers: &Markers) {
        let all = self.recent.iter().map(Stream::marker);
        for (marker, at) in markers.0.iter().zip(all.chain(repeat(Markers::NONE))) {
            marker.store(at, Ordering::Relaxed);
        }
    }
}

impl CachedBase {
    /// Reads `tree` through `fetcher`'s cache.
    pub fn new(tree: TreeHandle, fetcher: Arc<Fetcher>) -> Self {
        Self {
            tree,
            fetcher,
            streams: Mutex::default(),
            markers: Markers([const { AtomicU64::new(Markers::NONE) }; STREAMS]),
            demand_chunks: AtomicU64::new(0),
            watch: Watch::default(),
        }
    }

    /// What it is of: a version, or a state under the name that stands for one.
    pub fn version(&self) -> VersionId {
        self.tree.version
    }

    /// Chunks that readers of this base had to wait for.
    pub fn demand_chunks(&self) -> u64 {
        self.demand_chunks.load(Ordering::Relaxed)
    }

    /// Where a boot of the desktop that reads this base is recorded.
    pub fn watch(&self) -> &Watch {
        &self.watch
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
                // What is here but on the disk is touched by the `read` that follows.
                if !matches!(wanted.outcome, ReadOutcome::WouldWait) {
                    self.watch
                        .touch(index, matches!(wanted.outcome, ReadOutcome::Hit));
                }
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

    fn read_ahead(&self, choose: impl FnOnce(&mut Streams) -> Option<Range<u64>>) -> Vec<Want> {
        let range = {
            let mut streams = self.streams.lock().expect("no panic under this lock");
            let range = choose(&mut streams);
            streams.show(&self.markers);
            range
        };
        let size = self.tree.map.size_bytes();
        let Some(range) = range.filter(|range| range.start < size) else {
            return Vec::new();
        };
        let len = range.end.min(size) - range.start;
        let ahead = self.tree.map.pieces(range.start, len);
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

    /// Fills `buf`, waiting for what is missing.
    fn read_waiting(
        &self,
        offset: u64,
        buf: &mut [u8],
        enough: Option<&dyn Fn() -> bool>,
    ) -> Result<(), BlockError> {
        for _ in 0..ATTEMPTS {
            let mut missing = Vec::new();
            let full = self.read_cached(offset, buf, true, &mut missing)?;
            let end = offset + buf.len() as u64;
            if full {
                if self.markers.are_in(offset, end) {
                    let ahead = self.read_ahead(|streams| streams.passed(offset, end));
                    self.fetcher.read_ahead(ahead);
                }
                return Ok(());
            }
            self.demand_chunks
                .fetch_add(missing.len() as u64, Ordering::Relaxed);
            let ahead = self.read_ahead(|streams| Some(streams.missed(offset, end)));
            let waited = self
                .watch
                .waiting(|| self.fetcher.wait_for(missing, ahead, enough));
            waited.map_err(wait_error)?;
        }
        let context = format!(
            "read of {} bytes at {offset}: its chunks are evicted or damaged as fast as they are fetched; enlarge --cache-size or check the cache's disk",
            buf.len()
        );
        Err(BlockError::new(BlockErrorKind::Unavailable, context))
    }
}

fn cache_error(error: crate::cache::CacheError) -> BlockError {
    BlockError::with_source(BlockErrorKind::Io, "cache", error)
}

fn wait_error(error: WaitError) -> BlockError {
    let kind = match &error {
        WaitError::Cache { full: true, .. } => BlockErrorKind::NoSpace,
        WaitError::Cache { full: false, .. } => BlockErrorKind::Io,
        WaitError::TimedOut { .. } | WaitError::Refused { .. } => BlockErrorKind::Unavailable,
        WaitError::Ended { .. } => BlockErrorKind::ShuttingDown,
    };
    BlockError::with_source(kind, "base of the volume", error)
}

impl Base for CachedBase {
    fn size_bytes(&self) -> u64 {
        self.tree.map.size_bytes()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.read_waiting(offset, buf, None)
    }

    fn read_until(
        &self,
        offset: u64,
        buf: &mut [u8],
        enough: &dyn Fn() -> bool,
    ) -> Result<(), BlockError> {
        self.read_waiting(offset, buf, Some(enough))
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        // What is missing is found again by the `read` that follows.
        let hit = self.read_cached(offset, buf, false, &mut Vec::new())?;
        let end = offset + buf.len() as u64;
        if hit && self.markers.are_in(offset, end) {
            let ahead = self.read_ahead(|streams| streams.passed(offset, end));
            self.fetcher.read_ahead(ahead);
        }
        Ok(hit)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader in pieces of 128 KiB: how often it misses when what was read ahead is there `lag` bytes of reading later.
    fn misses(total: u64, lag: u64) -> usize {
        let (mut streams, mut misses) = (Streams::default(), 0);
        let markers = Markers([const { AtomicU64::new(Markers::NONE) }; STREAMS]);
        // (asked for when the reader was here, up to there)
        let mut asked: Vec<(u64, Range<u64>)> = Vec::new();
        let piece = 128 << 10;
        for offset in (0..total).step_by(piece as usize) {
            let end = offset + piece;
            let here = asked
                .iter()
                .any(|(at, range)| at + lag <= offset && range.start <= offset && end <= range.end);
            if !here {
                misses += 1;
                asked.push((offset, streams.missed(offset, end)));
            } else if markers.are_in(offset, end) {
                asked.extend(streams.passed(offset, end).map(|range| (offset, range)));
            }
            streams.show(&markers);
        }
        misses
    }

    #[test]
    fn a_sequential_reader_misses_while_the_window_grows_and_then_no_more() {
        let begin = misses(64 << 20, 0);
        assert_eq!(misses(1 << 30, 0), begin, "no miss after the beginning");
        assert!(begin <= 3, "{begin}");
        // 6 MiB of reading is what 80 Mbit/s carry in 600 ms.
        let begin = misses(128 << 20, 6 << 20);
        assert_eq!(
            misses(1 << 30, 6 << 20),
            begin,
            "no miss after the beginning"
        );
    }

    #[test]
    fn readers_that_jump_get_little_read_ahead() {
        let mut streams = Streams::default();
        for i in 0..1000u64 {
            let offset = (i * 7_919_333) % 10_000 * (1 << 20);
            let range = streams.missed(offset, offset + 4096);
            assert_eq!(range.end - range.start, AHEAD_BYTES_MIN);
            assert!(streams.recent.len() <= STREAMS);
        }
    }
}
