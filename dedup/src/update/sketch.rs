//! Sketches: six numbers of a chunk, of which two chunks with common content are likely to share one.
//!
//! A gear hash runs over the chunk; positions whose hash has [`SAMPLE_BITS`] leading zeros are sampled, so that both chunks sample the
//! same places in what they have in common, wherever it lies. Each of [`FEATURES`] features is the least of a permutation of the sampled
//! hashes; [`GROUP`] features hash into one super-feature. Source: Zou et al., "Odess: Speeding up Resemblance Detection for Redundancy
//! Elimination by Fast Content-Defined Sampling", ICDE 2021.
//!
//! Pairs, where the literature groups by four: a prefix need not hold *the* most similar chunk, it is enough to come near it, so
//! finding twice as many matches is worth more than finding better ones (decision 0020).

/// Features of a chunk.
const FEATURES: usize = 12;

/// Features in a super-feature. More make a match rarer and better.
const GROUP: usize = 2;

/// Super-features of a chunk.
pub(super) const SUPER_FEATURES: usize = FEATURES / GROUP;

/// One position in 2⁷ is sampled.
const SAMPLE_BITS: u32 = 7;

/// One random word for each byte value.
const GEAR: [u64; 256] = {
    let mut words = [0; 256];
    let mut state = 0;
    let mut index = 0;
    while index < words.len() {
        (state, words[index]) = split_mix(state);
        index += 1;
    }
    words
};

/// Multiplier (odd) and summand of each feature's permutation of 32-bit words.
const PERMUTATIONS: [(u32, u32); FEATURES] = {
    let mut permutations = [(0, 0); FEATURES];
    let mut state = 1 << 63;
    let mut index = 0;
    while index < FEATURES {
        let (next, word) = split_mix(state);
        state = next;
        permutations[index] = ((word >> 32) as u32 | 1, word as u32);
        index += 1;
    }
    permutations
};

/// One step of SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators", OOPSLA 2014): next state, output.
const fn split_mix(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    (state, scramble(state))
}

const fn scramble(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// Super-features of a chunk; 0 stands for none. A chunk in which no position is sampled (short, or of one byte value) has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sketch(pub(super) [u32; SUPER_FEATURES]);

/// Sketches a chunk's plain bytes, at about 1 GB/s.
pub fn sketch(bytes: &[u8]) -> Sketch {
    let mut least = [u32::MAX; FEATURES];
    let mut hash = 0u64;
    let mut sampled = false;
    for byte in bytes {
        hash = (hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
        if hash >> (64 - SAMPLE_BITS) == 0 {
            sampled = true;
            // Below the sampled bits, and above those that only the last few bytes reach.
            let word = (hash >> 24) as u32;
            for (least, (multiplier, summand)) in least.iter_mut().zip(PERMUTATIONS) {
                *least = (*least).min(word.wrapping_mul(multiplier).wrapping_add(summand));
            }
        }
    }
    if !sampled {
        return Sketch::default();
    }
    let mut features = [0; SUPER_FEATURES];
    for (feature, group) in features.iter_mut().zip(least.chunks_exact(GROUP)) {
        let joined = group
            .iter()
            .fold(0, |hash, part| scramble(hash ^ u64::from(*part)));
        *feature = (joined as u32).max(1);
    }
    Sketch(features)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn shared(a: Sketch, b: Sketch) -> usize {
        a.0.iter().zip(b.0).filter(|(a, b)| **a == *b).count()
    }

    #[test]
    fn similar_chunks_share_super_features_wherever_their_content_lies_and_others_do_not() {
        let mut random = StdRng::seed_from_u64(1);
        let (mut near, mut far) = (0, 0);
        for _ in 0..100 {
            let mut old = vec![0u8; 16 << 10];
            random.fill(&mut old[..]);
            let mut new = vec![0u8; 100];
            random.fill(&mut new[..]);
            new.extend_from_slice(&old[..15 << 10]);
            new[8000] ^= 1;
            near += usize::from(shared(sketch(&old), sketch(&new)) > 0);
            let mut other = vec![0u8; 16 << 10];
            random.fill(&mut other[..]);
            far += shared(sketch(&old), sketch(&other));
        }
        assert!(near >= 98, "{near} of 100 similar pairs were found");
        assert_eq!(far, 0);
    }

    #[test]
    fn what_has_nothing_to_sample_has_no_features() {
        assert_eq!(sketch(&[]), Sketch::default());
        assert_eq!(sketch(&[1, 2, 3]).0.len(), SUPER_FEATURES);
        let sketched = sketch(&GEAR.map(|w| w as u8).repeat(40));
        assert!(sketched.0.iter().all(|f| *f != 0));
    }
}
