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

#[cfg(test)]
mod tests {
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
}
