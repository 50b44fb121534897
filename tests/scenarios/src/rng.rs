//! Seeded random numbers, so that a scenario that failed can be played again.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// The sequence that `seed` names.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The sequence of `SPLICE_SEED`, or of a new seed, which is printed with the way to play it again.
    pub fn from_environment(scenario: &str) -> Self {
        let seed = match std::env::var("SPLICE_SEED") {
            Ok(text) => text.parse().expect("SPLICE_SEED is a number"),
            Err(_) => std::time::UNIX_EPOCH
                .elapsed()
                .map_or(1, |since| since.as_nanos() as u64 % 1_000_000_007),
        };
        println!("{scenario}: seed {seed}; SPLICE_SEED={seed} plays it again");
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below zero");
        self.bits() % bound
    }

    /// A number of milliseconds below `bound`.
    pub fn pause(&mut self, bound_ms: u64) -> std::time::Duration {
        std::time::Duration::from_millis(self.below(bound_ms))
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.bits().to_le_bytes()[..part.len()]);
        }
    }
}
