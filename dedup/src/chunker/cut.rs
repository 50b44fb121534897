//! Where a chunk ends: FastCDC v2020 with normalization level 1, four places at a time.
//!
//! The gear hash takes in one byte a step and each step waits for the one before it, so one chain of steps leaves most of a core
//! idle. A byte has left the 64-bit hash after 64 steps: a chain that is begun 64 bytes early has the very same hash from there on.
//! So four chains run side by side over neighbouring stretches, and the first place in disk order wins.
//!
//! Invariant: the answer is that of the `fastcdc` crate's `v2020::FastCDC::cut`, bit for bit; a test holds them together. The gear
//! table and the masks are that crate's. Source: Xia et al., IEEE TPDS 2020 (decision 0002), section 3.7.

use fastcdc::v2020::{Normalization, get_gear_with_seed, select_masks};

use super::ChunkerParams;

/// Bytes that one chain looks at before all four meet. Longer ones look further past a cut than needed, shorter ones spend more on
/// the 64 bytes that each begins early.
const LANE: usize = 512;
/// Steps after which a byte has left the hash.
const MEMORY: usize = 64;

/// The cuts of one set of parameters.
#[derive(Debug, Clone)]
pub(super) struct Cutter {
    min: usize,
    avg: usize,
    max: usize,
    /// Up to the average length a cut is four times as unlikely as beyond it.
    mask_short: u64,
    mask_long: u64,
    gear: &'static [u64; 256],
}

impl Cutter {
    pub(super) fn new(params: ChunkerParams) -> Self {
        let (mask_short, mask_long) = select_masks(params.avg as usize, Normalization::Level1);
        let std::borrow::Cow::Borrowed(gear) = get_gear_with_seed(0).0 else {
            unreachable!("without a seed the table is the constant one");
        };
        Self {
            min: params.min as usize,
            avg: params.avg as usize,
            max: params.max as usize,
            mask_short,
            mask_long,
            gear: gear.try_into().expect("a byte has 256 values"),
        }
    }

    /// Length of the longest chunk, in bytes.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Length of the first chunk of `data`, which reaches to the end of its segment or at least as far as the longest chunk.
    pub(super) fn cut(&self, data: &[u8]) -> usize {
        let len = data.len().min(self.max);
        if data.len() <= self.min {
            return data.len();
        }
        // The paper's algorithm takes two bytes a step, so it looks at even places and their successors only.
        let even = |place: usize| place & !1;
        let start = even(self.min);
        let middle = even(self.avg.min(len));
        let mut hash = 0;
        let found = self
            .search(data, start, start, middle, self.mask_short, &mut hash)
            .or_else(|| self.search(data, start, middle, even(len), self.mask_long, &mut hash));
        found.unwrap_or(len)
    }

    /// The first place in `from..to` where no bit of `mask` is set. `hash` is that of `begin..from`, and of `begin..to` after a
    /// search that found nothing.
    fn search(
        &self,
        data: &[u8],
        begin: usize,
        from: usize,
        to: usize,
        mask: u64,
        hash: &mut u64,
    ) -> Option<usize> {
        let mut at = from;
        if at < begin + MEMORY {
            let end = to.min(begin + MEMORY);
            if let Some(place) = self.chain(&data[at..end], mask, hash) {
                return Some(at + place);
            }
            at = end;
        }
        while to - at >= 4 * LANE {
            let (window, _) = data[at - MEMORY..].split_at(MEMORY + 4 * LANE);
            if let Some(place) = self.four(window, mask, hash) {
                return Some(at + place);
            }
            at += 4 * LANE;
        }
        self.chain(&data[at..to], mask, hash)
            .map(|place| at + place)
    }

    fn step(&self, hash: u64, byte: u8) -> u64 {
        (hash << 1).wrapping_add(self.gear[usize::from(byte)])
    }

    /// One chain over `data`.
    fn chain(&self, data: &[u8], mask: u64, hash: &mut u64) -> Option<usize> {
        let mut h = *hash;
        for (place, byte) in data.iter().enumerate() {
            h = self.step(h, *byte);
            if h & mask == 0 {
                return Some(place);
            }
        }
        *hash = h;
        None
    }

    /// Four chains over what follows the first [`MEMORY`] bytes of `window`. `hash` is that of what precedes.
    fn four(&self, window: &[u8], mask: u64, hash: &mut u64) -> Option<usize> {
        let lane = |k: usize| -> &[u8; LANE] {
            let start = MEMORY + k * LANE;
            window[start..start + LANE]
                .try_into()
                .expect("a slice of LANE bytes")
        };
        let before = |k: usize| {
            let start = k * LANE;
            let bytes = window[start..start + MEMORY].iter();
            bytes.fold(0, |h, byte| self.step(h, *byte))
        };
        let lanes = [lane(0), lane(1), lane(2), lane(3)];
        let mut h = [*hash, before(1), before(2), before(3)];
        for i in 0..LANE {
            h[0] = self.step(h[0], lanes[0][i]);
            h[1] = self.step(h[1], lanes[1][i]);
            h[2] = self.step(h[2], lanes[2][i]);
            h[3] = self.step(h[3], lanes[3][i]);
            let hit = h[0] & mask == 0 || h[1] & mask == 0 || h[2] & mask == 0 || h[3] & mask == 0;
            if hit {
                // A chain over an earlier stretch may still find a place that comes first.
                for k in 0..4 {
                    let place = match h[k] & mask {
                        0 => Some(i),
                        _ => self
                            .chain(&lanes[k][i + 1..], mask, &mut h[k])
                            .map(|place| i + 1 + place),
                    };
                    if let Some(place) = place {
                        return Some(k * LANE + place);
                    }
                }
                unreachable!("one of the four had found a place");
            }
        }
        *hash = h[3];
        None
    }
}

#[cfg(test)]
mod tests {
    use fastcdc::v2020::FastCDC;
    use proptest::prelude::*;

    use super::*;
    use crate::chunker::tests::content;

    /// Every place that a chunk may begin at, cut by the crate and by us.
    fn same(params: ChunkerParams, data: &[u8], starts: impl Iterator<Item = usize>) {
        let (min, avg, max) = (
            params.min as usize,
            params.avg as usize,
            params.max as usize,
        );
        let theirs = FastCDC::new(data, min, avg, max);
        let ours = Cutter::new(params);
        for start in starts.filter(|start| *start < data.len()) {
            let (_, end) = theirs.cut(start, data.len() - start);
            assert_eq!(start + ours.cut(&data[start..]), end, "from {start}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn cuts_are_those_of_the_reference(
            data in content(200_000),
            avg_bits in 12u32..17,
            step in 1usize..5000,
        ) {
            let avg = 1 << avg_bits;
            let params = ChunkerParams::new(avg / 4, avg, (avg * 4).min(256 << 10)).expect("in range");
            same(params, &data, (0..data.len()).step_by(step));
        }
    }

    #[test]
    fn lengths_around_every_threshold_cut_as_the_reference() {
        use rand::{RngCore, SeedableRng};
        let mut data = vec![0; 70_000];
        rand::rngs::StdRng::seed_from_u64(3).fill_bytes(&mut data);
        let params = ChunkerParams::default();
        let lengths = [
            0,
            1,
            63,
            64,
            65,
            LANE,
            4 * LANE,
            4095,
            4096,
            4097,
            4159,
            4160,
            4161,
        ];
        let near = [16_384, 65_536].map(|at: usize| at - 2..at + 3);
        for len in lengths.into_iter().chain(near.into_iter().flatten()) {
            same(params, &data[..len], 0..1);
            same(params, &vec![7; len], 0..1);
        }
        // Odd sizes are possible, though nobody uses them.
        let odd = ChunkerParams::new(1025, 4097, 9001).expect("in range");
        same(odd, &data, (0..data.len()).step_by(333));
    }
}
