//! Token buckets: how much a device may do a second, with a burst. Time is an argument.

use std::time::Duration;

/// A bucket that holds a burst and is filled at a steady rate.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_s: u64,
    burst: u64,
    /// May be below zero: what is larger than the bucket passes when it is full, and is paid for afterwards.
    level: i64,
    /// When the level was true, since a start of one's own.
    at: Duration,
}

impl Bucket {
    /// A full bucket: `per_s` tokens a second, `burst` at once. Neither is 0.
    pub fn new(per_s: u64, burst: u64) -> Self {
        Self {
            per_s: per_s.max(1),
            burst: burst.clamp(1, i64::MAX as u64),
            level: burst.clamp(1, i64::MAX as u64) as i64,
            at: Duration::ZERO,
        }
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        let tokens = passed.as_nanos() * u128::from(self.per_s) / 1_000_000_000;
        if tokens == 0 {
            return;
        }
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
        let full = self.burst as i64;
        self.level = self.level.saturating_add(tokens).min(full);
        self.at = if self.level == full {
            now
        } else {
            // Only whole tokens were taken over: the rest of the time counts for the next one.
            self.at
                + Duration::from_nanos(
                    (tokens as u128 * 1_000_000_000 / u128::from(self.per_s)) as u64,
                )
        };
    }

    /// Takes `tokens` now. `Err` says how long to wait before trying again, having taken nothing.
    ///
    /// # Errors
    /// There are not enough.
    pub fn take(&mut self, tokens: u64, now: Duration) -> Result<(), Duration> {
        self.fill(now);
        let needed = tokens.min(self.burst) as i64;
        if self.level >= needed {
            self.level -= i64::try_from(tokens).unwrap_or(i64::MAX);
            return Ok(());
        }
        let missing = (needed - self.level) as u128;
        let wait = (missing * 1_000_000_000).div_ceil(self.per_s.into());
        Err(Duration::from_nanos(
            u64::try_from(wait).unwrap_or(u64::MAX),
        ))
    }
}

/// What passes at once after a rest is a part of a second's worth: this many parts make one.
const BURSTS_A_SECOND: u64 = 10;

/// What is paid for both by number and by size: requests, packets.
#[derive(Debug, Clone)]
pub struct Toll {
    count: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Toll {
    /// So many of them a second, and so many bytes of all; none is no limit. `None`: there is no limit at all.
    pub fn new(count_per_s: Option<u64>, bytes_per_s: Option<u64>) -> Option<Self> {
        let bucket = |per_s: u64| Bucket::new(per_s, (per_s / BURSTS_A_SECOND).max(1));
        let any = count_per_s.is_some() || bytes_per_s.is_some();
        any.then(|| Self {
            count: count_per_s.map(bucket),
            bytes: bytes_per_s.map(bucket),
        })
    }

    /// Lets `count` of them with so many bytes pass. `Err` says how long to wait before trying again, having taken nothing.
    ///
    /// # Errors
    /// There is too little of either.
    pub fn pass(&mut self, count: u64, bytes: u64, now: Duration) -> Result<(), Duration> {
        let mut paid = self.count.clone();
        if let Some(bucket) = &mut paid {
            bucket.take(count, now)?;
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes, now)?;
        }
        self.count = paid;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(1000, 10);
        for _ in 0..10 {
            assert_eq!(bucket.take(1, Duration::ZERO), Ok(()));
        }
        assert_eq!(bucket.take(1, Duration::ZERO), Err(MS));
        assert_eq!(bucket.take(1, MS), Ok(()));
        assert_eq!(bucket.take(3, MS * 2), Err(MS * 2));
        assert_eq!(bucket.take(3, MS * 4), Ok(()));
    }

    #[test]
    fn over_a_long_time_exactly_the_rate_passes() {
        let mut bucket = Bucket::new(997, 5);
        let mut passed = 0;
        for tick in 0..100_000u32 {
            if bucket.take(1, MS * tick / 10).is_ok() {
                passed += 1;
            }
        }
        assert!((9970..=9976).contains(&passed), "{passed} in ten seconds");
    }

    #[test]
    fn what_is_larger_than_the_bucket_passes_when_it_is_full_and_is_paid_for() {
        let mut bucket = Bucket::new(1000, 10);
        assert_eq!(bucket.take(1000, Duration::ZERO), Ok(()));
        let wait = bucket
            .take(1, Duration::ZERO)
            .expect_err("a second's worth is owed");
        assert!(wait > MS * 980, "{wait:?}");
        assert_eq!(bucket.take(1, MS * 995), Ok(()));
    }

    #[test]
    fn no_limits_are_no_toll_and_waiting_for_bytes_pays_for_nothing() {
        assert!(Toll::new(None, None).is_none());
        let mut toll = Toll::new(Some(20), Some(1_000_000)).expect("limits");
        assert_eq!(toll.pass(1, 100_000, Duration::ZERO), Ok(()));
        for _ in 0..5 {
            assert!(toll.pass(1, 100_000, Duration::ZERO).is_err());
        }
        assert_eq!(toll.pass(1, 100_000, MS * 100), Ok(()));
        assert!(toll.pass(3, 0, MS * 100).is_err(), "two of them a burst");
    }

    proptest! {
        /// However it is asked, no more passes than the rate, a burst and what the last one was larger than that; and whoever waits as
        /// long as he is told gets through.
        #[test]
        fn no_more_than_the_rate_passes_and_waits_are_true(
            count_per_s in prop::option::of(1u64..5000),
            bytes_per_s in prop::option::of(1000u64..10_000_000),
            wishes in prop::collection::vec((1u64..50, 0u64..70_000, 0u64..20_000), 1..200),
        ) {
            let Some(mut toll) = Toll::new(count_per_s, bytes_per_s) else {
                return Ok(());
            };
            let mut now = Duration::ZERO;
            let (mut counted, mut moved, mut last) = (0, 0, (0, 0));
            for (count, bytes, later_us) in wishes {
                now += Duration::from_micros(later_us);
                if let Err(wait) = toll.pass(count, bytes, now) {
                    prop_assert!(!wait.is_zero());
                    now += wait;
                    // The other one may have to be waited for as well, but not for ever.
                    for _ in 0..2 {
                        if let Err(wait) = toll.pass(count, bytes, now) {
                            now += wait;
                        } else {
                            counted += count;
                            moved += bytes;
                            last = (count, bytes);
                            break;
                        }
                    }
                } else {
                    counted += count;
                    moved += bytes;
                    last = (count, bytes);
                }
                let most = |per_s: u64, last: u64| {
                    per_s as f64 * (now.as_secs_f64() + 0.1) + last as f64 + 2.0
                };
                if let Some(per_s) = count_per_s {
                    prop_assert!(counted as f64 <= most(per_s, last.0));
                }
                if let Some(per_s) = bytes_per_s {
                    prop_assert!(moved as f64 <= most(per_s, last.1));
                }
            }
        }
    }
}
