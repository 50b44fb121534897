//! Parts of a segment: what changed, cut into as many ranges as a part may have.
//!
//! Invariant: where parts end depends on what guests wrote alone: not on how the log lies, how it is read, or what the chunks are. So a
//! part made again after a crash has the same ranges, and those before it are passed over without reading what they hold. One part is in memory: 7 MB at most.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use dedup::{ChunkId, IdKey};
use dedup_protocol::state::writeback::{PART_RANGES_MAX, Part, Range, RangeSource};

use super::cut::{chunk_bytes_min, cut};
use crate::volume::{Change, Changes, Overlay, OverlayError};

/// Room of a part below which no run begins: its first chunks would be cut for nothing.
const BEGIN_BYTES_MIN: u64 = 64 << 10;
/// What a run may have in ranges besides one for each shortest chunk.
const RUN_RANGES: u64 = 2;

/// A part of a segment.
#[derive(Debug, Clone)]
pub struct MadePart {
    /// Its number.
    pub part: u32,
    /// Its encoded ranges.
    pub ranges: Vec<u8>,
    /// Its distinct chunks, in order of first appearance.
    pub chunks: Vec<Bytes>,
    /// Whether nothing follows.
    pub is_last: bool,
}

/// Makes the parts of one segment, one by one.
pub struct Maker {
    overlay: Arc<Overlay>,
    key: IdKey,
    changes: Changes,
    /// Looked at, and not taken yet.
    ahead: Option<Change>,
    next: u32,
}

/// Neighbours of one kind.
struct Run {
    disk: u16,
    start: u64,
    end: u64,
    is_zero: bool,
    changes: Vec<Change>,
}

impl Run {
    fn goes_on(&self, change: &Change) -> bool {
        (self.disk, self.end, self.is_zero) == (change.disk(), change.start(), change.is_zero())
    }
}

/// What a part has room for, in bytes of shortest chunks: counted by bytes, so that it does not matter in which pieces a run comes.
struct Room {
    bytes: u64,
}

impl Room {
    /// Takes room for another run; false if there is too little.
    fn begin(&mut self, is_zero: bool) -> bool {
        let (ranges, least) = if is_zero {
            (1, 0)
        } else {
            (RUN_RANGES, BEGIN_BYTES_MIN)
        };
        let left = self.bytes.checked_sub(ranges * chunk_bytes_min());
        let left = left.filter(|bytes| *bytes >= least);
        if let Some(bytes) = left {
            self.bytes = bytes;
        }
        left.is_some()
    }
}

impl Maker {
    /// Of what `changes` tells of the overlay.
    pub fn new(overlay: Arc<Overlay>, key: IdKey, changes: Changes) -> Self {
        Self {
            overlay,
            key,
            changes,
            ahead: None,
            next: 0,
        }
    }

    /// Number of the part that is made next.
    pub fn next_part(&self) -> u32 {
        self.next
    }

    /// Makes the next part. Behind the last there is one more, without ranges.
    ///
    /// # Errors
    /// What changed cannot be read, or does not verify.
    pub fn make(&mut self) -> Result<MadePart, OverlayError> {
        let (runs, is_last) = self.plan()?;
        let mut made = Ranges::default();
        for run in runs {
            self.cut_run(&run, &mut made)?;
        }
        let part = self.next;
        self.next += 1;
        let disks = &self.overlay.identity().disks;
        let encoded = Part::new(made.ranges, disks)
            .expect("changes lie on the disks, and a part's room is for as many")
            .encode();
        Ok(MadePart {
            part,
            ranges: encoded,
            chunks: made.chunks,
            is_last,
        })
    }

    /// Passes over the next part.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn skip(&mut self) -> Result<(), OverlayError> {
        self.plan()?;
        self.next += 1;
        Ok(())
    }

    /// The runs of the next part, and whether nothing follows.
    fn plan(&mut self) -> Result<(Vec<Run>, bool), OverlayError> {
        let mut runs: Vec<Run> = Vec::new();
        let mut room = Room {
            bytes: PART_RANGES_MAX as u64 * chunk_bytes_min(),
        };
        loop {
            let change = match self.ahead.take() {
                Some(change) => Some(change),
                None => self.changes.next_change()?,
            };
            let Some(change) = change else {
                return Ok((runs, true));
            };
            let is_zero = change.is_zero();
            let goes_on = runs.last().is_some_and(|run| run.goes_on(&change));
            if !goes_on && !room.begin(is_zero) {
                self.ahead = Some(change);
                return Ok((runs, false));
            }
            let len = change.end() - change.start();
            let most = if is_zero { len } else { room.bytes.min(len) };
            if most == 0 {
                self.ahead = Some(change);
                return Ok((runs, false));
            }
            let end = change.start() + most;
            let taken = if most < len {
                let (front, back) = change.split(end);
                self.ahead = Some(back);
                front
            } else {
                change
            };
            match runs.last_mut() {
                Some(run) if goes_on => run.end = end,
                _ => runs.push(Run {
                    disk: taken.disk(),
                    start: taken.start(),
                    end,
                    is_zero,
                    changes: Vec::new(),
                }),
            }
            if !is_zero {
                room.bytes -= most;
                if let Some(run) = runs.last_mut() {
                    run.changes.push(taken);
                }
            }
        }
    }

    fn cut_run(&self, run: &Run, made: &mut Ranges) -> Result<(), OverlayError> {
        if run.is_zero {
            made.push(run.disk, run.start, run.end - run.start, RangeSource::Zero);
            return Ok(());
        }
        let mut bytes = vec![0; (run.end - run.start) as usize];
        for change in &run.changes {
            let span = (change.start() - run.start) as usize..(change.end() - run.start) as usize;
            self.overlay.read_change(change, &mut bytes[span])?;
        }
        let (mut rest, mut at) = (Bytes::from(bytes), run.start);
        for piece in cut(&rest.clone()) {
            let bytes = rest.split_to(piece.len);
            let source = if piece.is_zero {
                RangeSource::Zero
            } else {
                RangeSource::Chunk(made.chunk(&self.key, bytes))
            };
            made.push(run.disk, at, piece.len as u64, source);
            at += piece.len as u64;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Ranges {
    ranges: Vec<Range>,
    chunks: Vec<Bytes>,
    seen: HashSet<ChunkId>,
}

impl Ranges {
    fn chunk(&mut self, key: &IdKey, bytes: Bytes) -> ChunkId {
        let id = key.chunk_id(&bytes);
        if self.seen.insert(id) {
            self.chunks.push(bytes);
        }
        id
    }

    /// Zeros that touch zeros are one range.
    fn push(&mut self, disk: u16, offset: u64, len: u64, source: RangeSource) {
        match self.ranges.last_mut() {
            Some(last)
                if source == RangeSource::Zero
                    && last.source == RangeSource::Zero
                    && (last.disk, last.offset + last.len) == (disk, offset) =>
            {
                last.len += len;
            }
            _ => self.ranges.push(Range {
                disk,
                offset,
                len,
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use dedup_protocol::client::ChunkExchange;
    use dedup_protocol::state::message::WantChunks;
    use dedup_protocol::state::writeback::{PART_BYTES_MAX, pack};
    use dedup_protocol::state::{Generation, Line, Nonce};
    use proptest::prelude::*;
    use rand::{RngCore, SeedableRng};

    use super::super::tests::{DISK, open};
    use super::*;

    fn key() -> IdKey {
        IdKey::new([4; 32])
    }

    /// All parts of a segment; each is sent whole, and taken as the datacenter takes it.
    fn parts(overlay: &Arc<Overlay>, to: u64, state: &mut [u8]) -> Vec<MadePart> {
        let mut maker = Maker::new(Arc::clone(overlay), key(), overlay.changes(0, to));
        let mut parts = Vec::new();
        loop {
            let made = maker.make().unwrap();
            take(&made, state);
            let is_last = made.is_last;
            parts.push(made);
            if is_last {
                return parts;
            }
        }
    }

    fn take(made: &MadePart, state: &mut [u8]) {
        let part = Part::decode(&made.ranges, &[DISK]).unwrap();
        let chunks = part.chunks();
        assert_eq!(chunks.len(), made.chunks.len());
        let want = WantChunks {
            line: Line {
                desktop: dedup::DesktopId([1; 16]),
                generation: Generation(1),
                fork: None,
            },
            segment: Nonce([1; 16]),
            part: made.part,
            wanted: (0..chunks.len() as u16).collect(),
        };
        let mut exchange = ChunkExchange::new(key(), chunks);
        let mut taken = std::collections::HashMap::new();
        for frame in pack(&want, &made.chunks).unwrap_or_default() {
            for chunk in exchange.batch(&frame.batch).unwrap() {
                taken.insert(chunk.id(), chunk.bytes().clone());
            }
        }
        assert_eq!(exchange.remaining(), 0);
        for range in part.ranges() {
            let into = &mut state[range.offset as usize..(range.offset + range.len) as usize];
            match range.source {
                RangeSource::Zero => into.fill(0),
                RangeSource::Chunk(id) => into.copy_from_slice(&taken[&id]),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn parts_are_what_was_written_and_the_same_each_time(
            seed in any::<u64>(),
            writes in prop::collection::vec((0..DISK / 512, prop_oneof![6 => 1..40u64, 1 => 1..8000u64], 0u8..4), 1..300),
        ) {
            let root = tempfile::tempdir().unwrap();
            let mut random = rand::rngs::StdRng::seed_from_u64(seed);
            let overlay = open(root.path());
            overlay.send_after(0).unwrap();
            let mut disk = vec![0; DISK as usize];
            for (at, sectors, kind) in writes {
                let at = at * 512;
                let len = (sectors * 512).min(DISK - at);
                let span = at as usize..(at + len) as usize;
                if kind == 0 {
                    overlay.zero(0, at, len, true).unwrap();
                    disk[span].fill(0);
                } else {
                    random.fill_bytes(&mut disk[span.clone()]);
                    overlay.write(0, at, &disk[span]).unwrap();
                }
            }
            overlay.flush().unwrap();
            let to = overlay.hold(0, u64::MAX);
            let mut state = vec![0; DISK as usize];
            let made = parts(&overlay, to, &mut state);
            prop_assert!(state == disk);
            for part in &made {
                let plain: usize = part.chunks.iter().map(Bytes::len).sum();
                prop_assert!(plain as u64 <= PART_BYTES_MAX);
            }
            // Each of them made alone, behind an opening and compaction, is the same.
            while overlay.tend(1 << 20).unwrap().has_more {}
            drop(overlay);
            let overlay = open(root.path());
            overlay.send_after(0).unwrap();
            overlay.hold(0, to);
            for part in &made {
                let mut maker = Maker::new(Arc::clone(&overlay), key(), overlay.changes(0, to));
                while maker.next_part() < part.part {
                    maker.skip().unwrap();
                }
                let again = maker.make().unwrap();
                prop_assert!(again.ranges == part.ranges && again.chunks == part.chunks);
                prop_assert_eq!(again.is_last, part.is_last);
            }
            // In whatever pieces the log has it.
            let mut maker = Maker::new(Arc::clone(&overlay), key(), overlay.changes_to_base());
            for part in &made {
                let live = maker.make().unwrap();
                prop_assert!(live.ranges == part.ranges);
            }
        }
    }

    #[test]
    fn a_segment_that_changes_nothing_has_one_part_without_ranges() {
        let root = tempfile::tempdir().unwrap();
        let overlay = open(root.path());
        let made = parts(&overlay, 0, &mut vec![0; DISK as usize]);
        assert_eq!(made.len(), 1);
        assert!(made[0].chunks.is_empty());
        assert_eq!(made[0].ranges, Part::default().encode());
    }
}
