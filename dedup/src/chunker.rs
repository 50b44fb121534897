//! Cutting a disk into chunks: FastCDC v2020 inside data, zero runs left out.
//!
//! A disk is a sequence of *segments* of data between zero runs of at least [`ZERO_RUN_BYTES_MIN`]; content-defined cuts are made
//! inside a segment only. Cuts depend on content and parameters alone, never on how the input was handed over. Source: Xia et al.,
//! "The Design of Fast Content-Defined Chunking", IEEE TPDS 2020; the gear table is that of the `fastcdc` crate's v2020 module.
//!
//! [`Chunker`] takes a disk as a stream. [`strips`] cuts the same disk at the same places on many cores.

mod cut;
pub mod strips;

use serde::{Deserialize, Serialize};

use crate::chunk::CHUNK_BYTES_MAX;
use crate::codec::{CodecError, Reader, write_varint};
use cut::Cutter;

/// Shortest run of zeros that becomes a zero extent, in bytes. Shorter runs stay inside chunks, where they compress to nothing,
/// rather than cost an extent each.
pub const ZERO_RUN_BYTES_MIN: u64 = 64 * 1024;

/// Zero runs begin and end at multiples of this, in bytes from the start of the disk.
const BLOCK: usize = 4096;

/// Chunk sizes in bytes, recorded in each manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkerParams {
    /// No chunk is shorter, except the last of a segment.
    pub min: u32,
    /// The size aimed at.
    pub avg: u32,
    /// No chunk is longer.
    pub max: u32,
}

/// The parameters cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "chunk sizes {min}/{avg}/{max} (min/avg/max bytes) are out of order or range: \
     need 1024 ≤ min ≤ avg ≤ max ≤ {CHUNK_BYTES_MAX}"
)]
pub struct ParamsError {
    min: u64,
    avg: u64,
    max: u64,
}

impl Default for ChunkerParams {
    /// 4/16/64 KiB: measured the best trade of wire bytes against index size on real desktop updates (decision 0002).
    fn default() -> Self {
        Self {
            min: 4 << 10,
            avg: 16 << 10,
            max: 64 << 10,
        }
    }
}

impl ChunkerParams {
    /// Checks order and range.
    pub fn new(min: u32, avg: u32, max: u32) -> Result<Self, ParamsError> {
        if 1024 <= min && min <= avg && avg <= max && max as usize <= CHUNK_BYTES_MAX {
            return Ok(Self { min, avg, max });
        }
        Err(ParamsError {
            min: min.into(),
            avg: avg.into(),
            max: max.into(),
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for size in [self.min, self.avg, self.max] {
            write_varint(out, u64::from(size));
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Result<Self, ParamsError>, CodecError> {
        let (min, avg, max) = (reader.varint()?, reader.varint()?, reader.varint()?);
        let narrow = |v: u64| u32::try_from(v).unwrap_or(u32::MAX);
        Ok(Self::new(narrow(min), narrow(avg), narrow(max)))
    }
}

/// What the chunker puts out, in disk order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A run of zeros, in bytes.
    Zero(u64),
    /// The bytes of one chunk.
    Data(&'a [u8]),
}

/// A streaming chunker.
#[derive(Debug)]
pub struct Chunker {
    cutter: Cutter,
    /// The open segment's bytes that are not cut yet.
    segment: Vec<u8>,
    /// Bytes of a block that is not complete yet.
    block: Vec<u8>,
    /// Zeros seen since the last data, not yet known to be long enough for an extent.
    zeros: u64,
    segment_open: bool,
}

/// Data is cut when this much has gathered: large against a chunk, small against memory.
const CUT_BYTES: usize = 4 << 20;

impl Chunker {
    /// At the start of a disk.
    pub fn new(params: ChunkerParams) -> Self {
        Self {
            cutter: Cutter::new(params),
            segment: Vec::with_capacity(CUT_BYTES + 2 * CHUNK_BYTES_MAX),
            block: Vec::with_capacity(BLOCK),
            zeros: 0,
            segment_open: false,
        }
    }

    /// Takes the next `data` of the disk; `emit` is called for every piece that is final.
    pub fn push_data(&mut self, mut data: &[u8], emit: &mut impl FnMut(Piece<'_>)) {
        if !self.block.is_empty() {
            let take = data.len().min(BLOCK - self.block.len());
            self.block.extend_from_slice(&data[..take]);
            data = &data[take..];
            if self.block.len() < BLOCK {
                return;
            }
            let block = std::mem::take(&mut self.block);
            self.push_block(&block, emit);
            self.block = block;
            self.block.clear();
        }
        let whole = data.len() - data.len() % BLOCK;
        for block in data[..whole].chunks_exact(BLOCK) {
            self.push_block(block, emit);
        }
        self.block.extend_from_slice(&data[whole..]);
    }

    /// Takes `len` zero bytes that were not read (a hole).
    pub fn push_zero(&mut self, mut len: u64, emit: &mut impl FnMut(Piece<'_>)) {
        // A hole that does not begin or end on a block shares that block with data.
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        if !self.block.is_empty() {
            let head = len.min((BLOCK - self.block.len()) as u64);
            self.push_data(&ZEROS[..head as usize], emit);
            len -= head;
        }
        let whole = len - len % BLOCK as u64;
        self.zeros += whole;
        self.push_data(&ZEROS[..(len - whole) as usize], emit);
    }

    /// Ends the disk.
    pub fn finish(mut self, emit: &mut impl FnMut(Piece<'_>)) {
        let tail = std::mem::take(&mut self.block);
        if tail.iter().any(|b| *b != 0) {
            self.append(&tail, emit);
        } else {
            self.zeros += tail.len() as u64;
        }
        if self.zeros >= ZERO_RUN_BYTES_MIN || !self.segment_open {
            self.end_segment(emit);
        } else {
            self.fill_zeros();
            self.end_segment(emit);
        }
    }

    fn push_block(&mut self, block: &[u8], emit: &mut impl FnMut(Piece<'_>)) {
        if is_zero(block) {
            self.zeros += block.len() as u64;
        } else {
            self.append(block, emit);
        }
    }

    fn append(&mut self, data: &[u8], emit: &mut impl FnMut(Piece<'_>)) {
        if self.zeros >= ZERO_RUN_BYTES_MIN || (self.zeros > 0 && !self.segment_open) {
            self.end_segment(emit);
        } else {
            self.fill_zeros();
        }
        self.segment_open = true;
        self.segment.extend_from_slice(data);
        if self.segment.len() >= CUT_BYTES + self.cutter.max() {
            self.cut(false, emit);
        }
    }

    /// Zeros too few for an extent become part of the segment.
    fn fill_zeros(&mut self) {
        let len = self.segment.len() + self.zeros as usize;
        self.segment.resize(len, 0);
        self.zeros = 0;
    }

    fn end_segment(&mut self, emit: &mut impl FnMut(Piece<'_>)) {
        self.cut(true, emit);
        if self.zeros > 0 {
            emit(Piece::Zero(self.zeros));
            self.zeros = 0;
        }
        self.segment_open = false;
    }

    /// Cuts what is final: everything at the end of a segment, else only where the longest chunk still fits into
    /// what is there, so that a cut never depends on how much input had arrived.
    fn cut(&mut self, last: bool, emit: &mut impl FnMut(Piece<'_>)) {
        let mut at = 0;
        while at < self.segment.len() && (last || self.segment.len() - at >= self.cutter.max()) {
            let end = at + self.cutter.cut(&self.segment[at..]);
            emit(Piece::Data(&self.segment[at..end]));
            at = end;
        }
        self.segment.drain(..at);
    }
}

/// Whether all bytes are zero; compiles to wide compares.
fn is_zero(block: &[u8]) -> bool {
    block.iter().fold(0, |acc, b| acc | b) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(params: ChunkerParams, parts: &[(bool, Vec<u8>)]) -> Vec<Option<Vec<u8>>> {
        let mut out: Vec<Option<Vec<u8>>> = Vec::new();
        let mut zeros = Vec::new();
        let mut chunker = Chunker::new(params);
        let mut emit = |piece: Piece<'_>| match piece {
            Piece::Zero(len) => {
                zeros.push(len);
                out.push(None);
            }
            Piece::Data(data) => out.push(Some(data.to_vec())),
        };
        for (hole, data) in parts {
            if *hole {
                chunker.push_zero(data.len() as u64, &mut emit);
            } else {
                chunker.push_data(data, &mut emit);
            }
        }
        chunker.finish(&mut emit);
        let mut zeros = zeros.into_iter();
        out.into_iter()
            .map(|piece| piece.or_else(|| zeros.next().map(|len| vec![0; len as usize])))
            .collect()
    }

    /// Disks of up to `len` bytes out of noise, text, repetition and zeros, whose runs have lengths around what the chunker looks at.
    pub(super) fn content(len: usize) -> impl Strategy<Value = Vec<u8>> {
        let run = prop_oneof![
            (1usize..120_000),
            (0usize..4).prop_map(|n| (16 + n) * BLOCK - 1),
            (1usize..40).prop_map(|n| n * BLOCK),
        ];
        let kind = prop_oneof![Just(0u8), Just(1), Just(1), Just(2), Just(3), Just(4)];
        let runs = prop::collection::vec((run, kind, any::<u64>()), 0..16);
        runs.prop_map(move |runs| {
            use rand::{RngCore, SeedableRng};
            let mut data = Vec::new();
            for (run, kind, seed) in runs {
                let start = data.len();
                data.resize(start + run, 0);
                let new = &mut data[start..];
                match kind {
                    0 => {}
                    1 => rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(new),
                    // A period that no cut falls into, or the same ones again and again.
                    2 => (0..)
                        .zip(new)
                        .for_each(|(i, b)| *b = (seed >> (i % 7)) as u8),
                    3 => (0u64..)
                        .zip(new)
                        .for_each(|(i, b)| *b = ((i % 9001).wrapping_mul(seed | 1) >> 20) as u8),
                    _ => new.fill(seed as u8),
                }
            }
            data.truncate(len);
            data
        })
    }

    fn part() -> impl Strategy<Value = (bool, Vec<u8>)> {
        prop_oneof![
            (1usize..300_000, any::<u64>()).prop_map(|(len, seed)| {
                use rand::{RngCore, SeedableRng};
                let mut data = vec![0; len];
                rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut data);
                (false, data)
            }),
            (1usize..200_000).prop_map(|len| (false, vec![0; len])),
            (1usize..200_000).prop_map(|len| (true, vec![0; len])),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn pieces_are_the_disk_and_do_not_depend_on_the_hand_over(
            parts in prop::collection::vec(part(), 0..12),
            step in 1usize..70_000,
        ) {
            let params = ChunkerParams::default();
            let disk: Vec<u8> = parts.iter().flat_map(|(_, d)| d.clone()).collect();
            let cut = pieces(params, &parts);
            let joined: Vec<u8> = cut.iter().flatten().flatten().copied().collect();
            prop_assert!(joined == disk, "the pieces do not join to the disk");
            for piece in cut.iter().flatten() {
                let zero = piece.iter().all(|b| *b == 0);
                prop_assert!(zero || piece.len() <= params.max as usize);
            }
            let stepped: Vec<_> = disk.chunks(step).map(|d| (false, d.to_vec())).collect();
            prop_assert!(pieces(params, &stepped) == cut, "cuts depend on the hand-over");
        }
    }

    #[test]
    fn an_insertion_changes_only_chunks_near_it() {
        use rand::{RngCore, SeedableRng};
        let mut data = vec![0; 4 << 20];
        rand::rngs::StdRng::seed_from_u64(7).fill_bytes(&mut data);
        let before: std::collections::HashSet<_> =
            pieces(ChunkerParams::default(), &[(false, data.clone())])
                .into_iter()
                .collect();
        data.splice(1_000_000..1_000_000, [1, 2, 3]);
        let after = pieces(ChunkerParams::default(), &[(false, data)]);
        let fresh = after.iter().filter(|c| !before.contains(*c)).count();
        assert!(fresh <= 3, "{fresh} of {} chunks are new", after.len());
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        assert!(ChunkerParams::new(4096, 1024, 65536).is_err());
        assert!(ChunkerParams::new(0, 0, 0).is_err());
        assert!(ChunkerParams::new(4096, 16384, 1 << 30).is_err());
        assert_eq!(
            ChunkerParams::new(4096, 16384, 65536),
            Ok(ChunkerParams::default())
        );
    }
}
