//! How long things took, as a histogram of fixed buckets: 32 to each doubling, from a microsecond to over an hour.
//!
//! Figures taken from it are upper ends of buckets, at most 1/32 above the true ones. Recording is a few atomic additions, so guests'
//! threads share one histogram; its size is fixed (7 KiB), whatever is recorded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use datacenter_api::Latencies;
use datacenter_observe::samples::Buckets;

/// Buckets to a doubling, as a power of two.
const FINE_BITS: u32 = 5;
const FINE: u64 = 1 << FINE_BITS;
/// Longest time told apart, in microseconds: 71 minutes.
const LONGEST: u64 = (1 << 32) - 1;
const BUCKETS: usize = bucket(LONGEST) + 1;

/// Doublings that metrics tell apart, as powers of two of a microsecond: from a quarter of a millisecond to two minutes, which is how long a
/// guest's read waits at most unless it is configured otherwise.
const TOLD: std::ops::RangeInclusive<u32> = 8..=27;

/// See the module.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    longest: AtomicU64,
    /// Microseconds of all of them.
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            longest: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }
}

const fn bucket(micros: u64) -> usize {
    if micros < FINE {
        return micros as usize;
    }
    let doubling = 63 - micros.leading_zeros();
    let fine = (micros >> (doubling - FINE_BITS)) & (FINE - 1);
    ((doubling - FINE_BITS + 1) as u64 * FINE + fine) as usize
}

/// The greatest value in a bucket.
const fn upper_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < FINE {
        return bucket;
    }
    let shift = (bucket / FINE - 1) as u32;
    ((FINE + bucket % FINE + 1) << shift) - 1
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros())
            .unwrap_or(LONGEST)
            .min(LONGEST);
        self.buckets[bucket(micros)].fetch_add(1, Ordering::Relaxed);
        self.longest.fetch_max(micros, Ordering::Relaxed);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }

    /// The same for metrics, a bucket to each doubling.
    pub fn doublings(&self) -> Buckets {
        let mut counts: Vec<(f64, u64)> = Vec::new();
        let mut from = 0;
        for doubling in TOLD {
            // What takes this long to the microsecond is in the next one.
            let until = bucket(1 << doubling);
            let within = &self.buckets[from..until];
            let count = within.iter().map(|count| count.load(Ordering::Relaxed));
            counts.push(((1u64 << doubling) as f64 / 1e6, count.sum()));
            from = until;
        }
        let above = self.buckets[from..].iter();
        Buckets {
            sum_s: self.sum.load(Ordering::Relaxed) as f64 / 1e6,
            counts,
            above: above.map(|count| count.load(Ordering::Relaxed)).sum(),
        }
    }

    /// The figures now.
    pub fn figures(&self) -> Latencies {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let longest = self.longest.load(Ordering::Relaxed);
        let at = |share: f64| {
            let rank = (count as f64 * share).ceil().max(1.0) as u64;
            let mut seen = 0;
            let found = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            found.map_or(0, upper_end).min(longest) as f64 / 1e3
        };
        Latencies {
            count,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            max_ms: longest as f64 / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_a_bucket_that_is_no_wider_than_a_32nd_of_it() {
        let mut before = 0;
        for micros in (0..4096).chain((12..32).flat_map(|e| [1 << e, (1 << e) + 1, (2 << e) - 1])) {
            let at = bucket(micros);
            assert!(
                at == before || at == before + 1 || micros >= 4096,
                "{micros}"
            );
            before = at;
            let end = upper_end(at);
            assert!(
                micros <= end && end - micros <= micros / FINE,
                "{micros} in {end}"
            );
        }
        assert_eq!(upper_end(BUCKETS - 1), LONGEST);
    }

    #[test]
    fn figures_against_sorted_times() {
        let histogram = Histogram::default();
        assert_eq!(histogram.figures(), Latencies::default());
        let mut times: Vec<u64> = (0..10_000u64).map(|i| i * i % 700_001 + 17).collect();
        for micros in &times {
            histogram.record(Duration::from_micros(*micros));
        }
        times.sort_unstable();
        let figures = histogram.figures();
        assert_eq!(figures.count, 10_000);
        for (got, rank) in [
            (figures.p50_ms, 4999),
            (figures.p90_ms, 8999),
            (figures.p99_ms, 9899),
            (figures.max_ms, 9999),
        ] {
            let due = times[rank] as f64 / 1e3;
            assert!((due..=due * 1.0323).contains(&got), "{got} for {due}");
        }
    }

    #[test]
    fn doublings_hold_everything_once() {
        let histogram = Histogram::default();
        let times = [0, 1, 255, 256, 511, 512, 1 << 27, (1 << 27) - 1, LONGEST];
        for micros in times {
            histogram.record(Duration::from_micros(micros));
        }
        let told = histogram.doublings();
        let at = |bound: f64| {
            let found = told.counts.iter().find(|(b, _)| *b == bound);
            found.expect("it is a bound").1
        };
        assert_eq!((at(0.000_256), at(0.000_512), at(0.001_024)), (3, 2, 1));
        assert_eq!((at(134.217_728), told.above), (1, 2));
        let counted: u64 = told.counts.iter().map(|(_, count)| count).sum();
        assert_eq!(counted + told.above, times.len() as u64);
        let sum: u64 = times.iter().sum();
        assert_eq!(told.sum_s, sum as f64 / 1e6);
    }

    #[test]
    fn a_day_counts_as_the_longest() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_secs(86_400));
        assert_eq!(histogram.figures().p50_ms, LONGEST as f64 / 1e3);
    }
}
