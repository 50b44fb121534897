//! Delay variation that keeps packets in order by itself.
//!
//! The offset moves on straight lines between random levels in `[-amplitude, +amplitude]`, one level every two
//! amplitudes of time, so its slope never exceeds 1 and no packet can overtake another. Drawing a fresh offset per
//! packet and then repairing the order (as a naive emulator does) would push a fast flow's delay to the maximum; here
//! a bulk flow and a ping see the same distribution. Levels are a hash of (seed, index): no state, any time may be
//! asked in any order.

use std::time::Duration;

use super::rng::{mix, unit};

#[derive(Debug, Clone)]
pub(super) struct Jitter {
    amplitude_ns: f64,
    period_ns: u64,
    seed: u64,
}

impl Jitter {
    pub(super) fn new(amplitude: Duration, seed: u64) -> Self {
        let amplitude_ns = amplitude.as_nanos() as u64;
        Self {
            amplitude_ns: amplitude_ns as f64,
            period_ns: amplitude_ns.saturating_mul(2),
            seed,
        }
    }

    fn level(&self, index: u64) -> f64 {
        let bits = mix(self.seed ^ mix(index));
        (2.0 * unit(bits) - 1.0) * self.amplitude_ns
    }

    /// The offset at time `t`, in nanoseconds.
    pub(super) fn offset_ns(&self, t: Duration) -> i64 {
        if self.period_ns == 0 {
            return 0;
        }
        let t = t.as_nanos() as u64;
        let index = t / self.period_ns;
        let part = (t % self.period_ns) as f64 / self.period_ns as f64;
        let (from, to) = (self.level(index), self.level(index + 1));
        (from + (to - from) * part) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_never_falls_faster_than_time_passes() {
        let jitter = Jitter::new(Duration::from_millis(20), 3);
        let step = Duration::from_micros(37);
        for n in 0..200_000u32 {
            let fall = jitter.offset_ns(step * n) - jitter.offset_ns(step * (n + 1));
            // One nanosecond for rounding towards zero.
            assert!(fall <= 37_001, "fell {fall} ns in 37 µs at step {n}");
        }
    }
}
