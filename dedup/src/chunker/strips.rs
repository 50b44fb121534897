//! Cutting a disk on many cores, at the very places where [`Chunker`](super::Chunker) cuts it.
//!
//! A disk is handed over in strips. [`Scan::new`] looks at one strip alone, on any thread and in any order: where its zero runs are,
//! and where cuts would fall if a chunk began at each run of data. [`Joiner`] then takes strips and scans in disk order. It knows
//! where chunks really begin, and where such a place is in the scan it takes the scan's cut; else it looks for the cut itself, until
//! the two meet, which content-defined cuts do after a few chunks.
//!
//! Invariant: where a chunk ends depends on where it begins and on the bytes behind that, at most as many as the longest chunk has. A
//! scan tells only ends for which it saw all of those, so what it tells is true wherever chunks begin; nothing is taken back, and the
//! cuts do not depend on the strips. Chunks inside one strip are slices of it; only those across two strips are copied.

use bytes::Bytes;

use super::cut::Cutter;
use super::{BLOCK, ChunkerParams, ZERO_RUN_BYTES_MIN, is_zero};

/// Every strip but the last has a length that is a multiple of this, in bytes.
pub const STRIP_ALIGN: usize = BLOCK;

/// What the joiner puts out, in disk order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A run of zeros, in bytes.
    Zero(u64),
    /// The bytes of one chunk.
    Data(Bytes),
}

/// What one strip shows by itself.
#[derive(Debug)]
pub struct Scan {
    strip_len: usize,
    runs: Vec<Run>,
}

/// Data without a zero run that is long enough for an extent.
#[derive(Debug)]
struct Run {
    start: usize,
    /// Behind the last block that is not zero.
    end: usize,
    /// Whether zeros enough for an extent follow in this strip.
    ends_segment: bool,
    /// Ends of chunks from the run's start, ascending: each but the last is the start of a chunk that ends at the next.
    cuts: Vec<u32>,
}

impl Scan {
    /// Looks through a strip of less than 4 GiB that begins at a multiple of [`STRIP_ALIGN`] on the disk.
    pub fn new(params: ChunkerParams, strip: &[u8]) -> Self {
        assert!(u32::try_from(strip.len()).is_ok(), "strips are short");
        let cutter = Cutter::new(params);
        let mut runs: Vec<Run> = Vec::new();
        let mut at = 0;
        for block in strip.chunks(BLOCK) {
            let start = at;
            at += block.len();
            if is_zero(block) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if start - run.end < ZERO_RUN_BYTES_MIN as usize => run.end = at,
                _ => runs.push(Run {
                    start,
                    end: at,
                    ends_segment: true,
                    cuts: Vec::new(),
                }),
            }
        }
        if let Some(last) = runs.last_mut() {
            last.ends_segment = strip.len() - last.end >= ZERO_RUN_BYTES_MIN as usize;
        }
        for run in &mut runs {
            run.look_ahead(&cutter, &strip[run.start..run.end]);
        }
        Self {
            strip_len: strip.len(),
            runs,
        }
    }
}

impl Run {
    fn look_ahead(&mut self, cutter: &Cutter, data: &[u8]) {
        let mut at = 0;
        self.cuts.push(0);
        while self.is_final(cutter, data, at) {
            at += cutter.cut(&data[at..]);
            self.cuts.push(at as u32);
        }
    }

    /// Whether all that decides on the end of a chunk at `at` is in `data`, the bytes of this run.
    fn is_final(&self, cutter: &Cutter, data: &[u8], at: usize) -> bool {
        let rest = data.len() - at;
        rest >= cutter.max() || (rest > 0 && self.ends_segment)
    }
}

/// Puts scanned strips together into chunks and zero runs.
#[derive(Debug)]
pub struct Joiner {
    cutter: Cutter,
    /// The open segment's bytes that are not cut yet: fewer than the longest chunk has, between calls.
    carry: Vec<u8>,
    /// Zeros seen since the last data, not yet known to be long enough for an extent.
    zeros: u64,
    segment_open: bool,
}

impl Joiner {
    /// At the start of a disk.
    pub fn new(params: ChunkerParams) -> Self {
        Self {
            cutter: Cutter::new(params),
            carry: Vec::new(),
            zeros: 0,
            segment_open: false,
        }
    }

    /// Takes the next strip of the disk with its scan; `emit` is called for every part that is final.
    pub fn push_strip(&mut self, strip: &Bytes, scan: &Scan, emit: &mut impl FnMut(Part)) {
        assert_eq!(strip.len(), scan.strip_len, "the scan is of this strip");
        let mut at = 0;
        for run in &scan.runs {
            self.zeros += (run.start - at) as u64;
            if self.zeros >= ZERO_RUN_BYTES_MIN || (self.zeros > 0 && !self.segment_open) {
                self.end_segment(emit);
            } else {
                self.fill_zeros();
            }
            self.segment_open = true;
            self.push_run(strip.slice(run.start..run.end), run, emit);
            at = run.end;
        }
        self.zeros += (strip.len() - at) as u64;
    }

    /// Takes `len` zero bytes that were not read (a hole), a multiple of [`STRIP_ALIGN`] unless the disk ends with them.
    pub fn push_zero(&mut self, len: u64) {
        self.zeros += len;
    }

    /// Ends the disk.
    pub fn finish(mut self, emit: &mut impl FnMut(Part)) {
        if self.segment_open && self.zeros < ZERO_RUN_BYTES_MIN {
            self.fill_zeros();
        }
        self.end_segment(emit);
    }

    fn push_run(&mut self, data: Bytes, run: &Run, emit: &mut impl FnMut(Part)) {
        let Some(mut at) = self.push_carry(&data, run, emit) else {
            return;
        };
        let mut known = run.cuts.iter().map(|cut| *cut as usize).peekable();
        while run.is_final(&self.cutter, &data, at) {
            while known.next_if(|cut| *cut < at).is_some() {}
            let meets = known.next_if_eq(&at).is_some();
            let end = match known.peek() {
                Some(end) if meets => *end,
                _ => at + self.cutter.cut(&data[at..]),
            };
            emit(Part::Data(data.slice(at..end)));
            at = end;
        }
        self.carry.extend_from_slice(&data[at..]);
    }

    /// Cuts the chunks that began before `data`. Answers where in `data` the first other one begins, or nothing if all of `data` had
    /// to be carried over too.
    fn push_carry(
        &mut self,
        data: &Bytes,
        run: &Run,
        emit: &mut impl FnMut(Part),
    ) -> Option<usize> {
        let before = self.carry.len();
        if before == 0 {
            return Some(0);
        }
        let taken = data.len().min(self.cutter.max());
        self.carry.extend_from_slice(&data[..taken]);
        let mut at = 0;
        while at < before {
            let rest = self.carry.len() - at;
            let all_known = rest >= self.cutter.max() || (taken == data.len() && run.ends_segment);
            if !all_known {
                self.carry.drain(..at);
                return None;
            }
            at += self.emit_carried(at, emit);
        }
        self.carry.clear();
        Some(at - before)
    }

    fn emit_carried(&self, at: usize, emit: &mut impl FnMut(Part)) -> usize {
        let len = self.cutter.cut(&self.carry[at..]);
        emit(Part::Data(Bytes::copy_from_slice(
            &self.carry[at..at + len],
        )));
        len
    }

    /// Zeros too few for an extent become part of the segment.
    fn fill_zeros(&mut self) {
        let len = self.carry.len() + self.zeros as usize;
        self.carry.resize(len, 0);
        self.zeros = 0;
    }

    fn end_segment(&mut self, emit: &mut impl FnMut(Part)) {
        let mut at = 0;
        while at < self.carry.len() {
            at += self.emit_carried(at, emit);
        }
        self.carry.clear();
        if self.zeros > 0 {
            emit(Part::Zero(self.zeros));
            self.zeros = 0;
        }
        self.segment_open = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunker::tests::content;
    use crate::chunker::{Chunker, Piece};

    fn sequential(params: ChunkerParams, disk: &[u8]) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut emit = |piece: Piece<'_>| {
            parts.push(match piece {
                Piece::Zero(len) => Part::Zero(len),
                Piece::Data(data) => Part::Data(Bytes::copy_from_slice(data)),
            });
        };
        let mut chunker = Chunker::new(params);
        chunker.push_data(disk, &mut emit);
        chunker.finish(&mut emit);
        parts
    }

    /// Strips of `blocks` blocks each, over and over; those without data are handed over as holes if `holes` says so.
    fn joined(params: ChunkerParams, disk: &[u8], blocks: &[usize], holes: bool) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut emit = |part| parts.push(part);
        let mut joiner = Joiner::new(params);
        let mut rest = Bytes::copy_from_slice(disk);
        for blocks in blocks.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let strip = rest.split_to((blocks * BLOCK).min(rest.len()));
            if holes && is_zero(&strip) {
                joiner.push_zero(strip.len() as u64);
            } else {
                let scan = Scan::new(params, &strip);
                joiner.push_strip(&strip, &scan, &mut emit);
            }
            assert!(joiner.carry.len() < params.max as usize + ZERO_RUN_BYTES_MIN as usize);
        }
        joiner.finish(&mut emit);
        parts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(120))]

        #[test]
        fn strips_of_any_size_are_cut_as_the_stream_is(
            disk in content(700_000),
            blocks in prop::collection::vec(prop_oneof![1usize..5, 1usize..70, Just(16), Just(17)], 1..6),
            holes in any::<bool>(),
            avg_bits in 12u32..16,
        ) {
            let avg = 1 << avg_bits;
            let params = ChunkerParams::new(avg / 4, avg, avg * 4).expect("in range");
            let expected = sequential(params, &disk);
            prop_assert!(joined(params, &disk, &blocks, holes) == expected);
        }
    }

    #[test]
    fn data_in_which_cuts_never_meet_is_cut_the_same() {
        // Without content-defined cuts every chunk is of the longest length, so a scan's guess is right by chance only.
        let params = ChunkerParams::default();
        let mut disk = vec![1; 5_000_001];
        disk[0] = 9;
        for blocks in [1, 3, 16, 17, 100, 511] {
            assert_eq!(
                joined(params, &disk, &[blocks], false),
                sequential(params, &disk)
            );
        }
    }

    #[test]
    fn scans_are_used() {
        use rand::{RngCore, SeedableRng};
        let mut disk = vec![0; 8 << 20];
        rand::rngs::StdRng::seed_from_u64(5).fill_bytes(&mut disk);
        let params = ChunkerParams::default();
        let strip = Bytes::from(disk);
        let (first, second) = (strip.slice(..4_198_400), strip.slice(4_198_400..));
        let mut joiner = Joiner::new(params);
        let mut copied = 0;
        let mut at = std::collections::HashSet::new();
        let inside = strip.as_ptr_range();
        let mut emit = |part: Part| {
            if let Part::Data(data) = part {
                copied += usize::from(!inside.contains(&data.as_ptr()));
                at.insert(data.as_ptr());
            }
        };
        let scan = Scan::new(params, &second);
        joiner.push_strip(&first, &Scan::new(params, &first), &mut emit);
        joiner.push_strip(&second, &scan, &mut emit);
        assert!(copied < 20, "{copied} chunks were copied");
        let base = second.as_ptr();
        let guesses = scan.runs[0].cuts.iter();
        let met = guesses.filter(|cut| at.contains(&base.wrapping_add(**cut as usize)));
        assert!(met.count() + 20 > scan.runs[0].cuts.len());
    }
}
