//! Cutting what changed into chunks: at places that the content has, so that the same data has the same names wherever it is written.
//!
//! The cuts are the project's own ([`Chunker`]), moved up to the next sector, because a range of a disk is whole sectors. Invariant: ranges
//! cover a run without a gap, each a chunk of at most 256 KiB or zeros, and depend on its bytes alone.

use dedup::{Chunker, ChunkerParams, Piece};

/// A range must be whole ones.
const SECTOR_BYTES: usize = 512;

/// A stretch of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Its length in bytes, whole sectors.
    pub len: usize,
    /// Whether all of it is zeros.
    pub is_zero: bool,
}

/// Least bytes of all chunks of a run but those before zeros and its end: a cut moves by less than a sector.
pub fn chunk_bytes_min() -> u64 {
    u64::from(ChunkerParams::default().min) - SECTOR_BYTES as u64
}

/// Cuts a run of whole sectors.
pub fn cut(run: &[u8]) -> Vec<Cut> {
    let params = ChunkerParams::default();
    // What most scattered writes are; a chunker has buffers of megabytes.
    if run.len() <= params.min as usize {
        let is_zero = run.iter().all(|byte| *byte == 0);
        let len = run.len();
        return Vec::from([Cut { len, is_zero }]);
    }
    let mut cuts = Vec::new();
    let (mut at, mut begun) = (0, 0);
    let mut emit = |piece: Piece<'_>| {
        let (len, is_zero) = match piece {
            Piece::Zero(len) => (len as usize, true),
            Piece::Data(data) => (data.len(), false),
        };
        at += len;
        // Zeros begin and end on whole blocks of the run, or where it ends: these cuts do not move.
        let end = at.next_multiple_of(SECTOR_BYTES);
        if end > begun {
            let len = end - begun;
            cuts.push(Cut { len, is_zero });
            begun = end;
        }
    };
    let mut chunker = Chunker::new(params);
    chunker.push_data(run, &mut emit);
    chunker.finish(&mut emit);
    cuts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use std::collections::HashSet;

    use dedup::CHUNK_BYTES_MAX;
    use proptest::prelude::*;
    use rand::{RngCore, SeedableRng};

    use super::*;

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        bytes
    }

    fn pieces(run: &[u8]) -> Vec<&[u8]> {
        let mut rest = run;
        let pieces = cut(run).into_iter().map(|cut| {
            let (piece, after) = rest.split_at(cut.len);
            rest = after;
            assert_eq!(cut.is_zero, piece.iter().all(|byte| *byte == 0));
            piece
        });
        let pieces = pieces.collect();
        assert!(rest.is_empty());
        pieces
    }

    fn run() -> impl Strategy<Value = Vec<u8>> {
        let stretch = (1usize..400, 0u8..3, any::<u64>()).prop_map(|(sectors, kind, seed)| {
            let len = sectors * SECTOR_BYTES;
            match kind {
                0 => vec![0; len],
                1 => noise(seed, len),
                _ => vec![seed as u8 | 1; len],
            }
        });
        prop::collection::vec(stretch, 1..6).prop_map(|stretches| stretches.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn cuts_cover_a_run_by_whole_sectors(run in run()) {
            let cuts = cut(&run);
            prop_assert_eq!(cuts.iter().map(|cut| cut.len).sum::<usize>(), run.len());
            let mut rest = &run[..];
            let (mut chunks, mut zeros) = (0, 0);
            for cut in &cuts {
                prop_assert!(cut.len > 0 && cut.len.is_multiple_of(SECTOR_BYTES));
                prop_assert!(cut.is_zero || cut.len <= CHUNK_BYTES_MAX);
                let (piece, after) = rest.split_at(cut.len);
                rest = after;
                prop_assert!(!cut.is_zero || piece.iter().all(|byte| *byte == 0));
                if cut.is_zero { zeros += 1 } else { chunks += 1 }
            }
            // What a part's budget counts on.
            let most = run.len() as u64 / chunk_bytes_min() + 2;
            prop_assert!(chunks + zeros <= most, "{} and {} of {}", chunks, zeros, run.len());
        }
    }

    #[test]
    fn the_same_data_has_the_same_chunks_wherever_it_lies() {
        let data = noise(1, 2 << 20);
        let alone: HashSet<&[u8]> = pieces(&data).into_iter().collect();
        let mut other = noise(2, 100 * SECTOR_BYTES);
        other.extend_from_slice(&data);
        other.extend(noise(3, 7 * SECTOR_BYTES));
        let inside = pieces(&other);
        let shared = inside.iter().filter(|piece| alone.contains(*piece));
        let shared: usize = shared.map(|piece| piece.len()).sum();
        assert!(shared > data.len() / 10 * 9, "{shared} of {}", data.len());
    }

    #[test]
    fn short_runs_are_one_piece() {
        let zeros = cut(&[0; 4096]);
        assert_eq!(
            zeros,
            [Cut {
                len: 4096,
                is_zero: true
            }]
        );
        let data = cut(&noise(4, 512));
        assert_eq!(
            data,
            [Cut {
                len: 512,
                is_zero: false
            }]
        );
    }
}
