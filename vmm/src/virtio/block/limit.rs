//! How much a disk may do a second, all its queues together.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::machine::bus::lock;
use crate::machine::rate::Bucket;

/// What passes at once after a rest is a part of a second's worth: this many parts make one.
const BURSTS_A_SECOND: u64 = 10;

/// Limits of a disk; none is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second.
    pub requests_per_s: Option<u64>,
    /// Bytes a second, of reads and writes together.
    pub bytes_per_s: Option<u64>,
}

/// What is left of the limits.
struct Left {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

/// See the module.
pub(super) struct Toll {
    since: Instant,
    left: Mutex<Left>,
}

impl Toll {
    /// `None`: there is no limit.
    pub(super) fn new(limits: Limits) -> Option<Self> {
        let bucket = |per_s: u64| Bucket::new(per_s, (per_s / BURSTS_A_SECOND).max(1));
        let left = Left {
            requests: limits.requests_per_s.map(bucket),
            bytes: limits.bytes_per_s.map(bucket),
        };
        let any = left.requests.is_some() || left.bytes.is_some();
        any.then(|| Self {
            since: Instant::now(),
            left: Mutex::new(left),
        })
    }

    /// Lets a request of so many bytes pass, or says how long it has to wait.
    pub(super) fn pass(&self, bytes: u64) -> Result<(), Duration> {
        lock(&self.left).pass(bytes, self.since.elapsed())
    }
}

impl Left {
    /// Takes from both or from none.
    fn pass(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        let mut requests = self.requests.clone();
        if let Some(bucket) = &mut requests {
            bucket.take(1, now)?;
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes, now)?;
        }
        self.requests = requests;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn no_limits_are_no_toll() {
        assert!(Toll::new(Limits::default()).is_none());
        let limits = Limits {
            requests_per_s: Some(1),
            bytes_per_s: None,
        };
        let toll = Toll::new(limits).expect("a limit");
        assert_eq!(toll.pass(1 << 30), Ok(()));
        assert!(toll.pass(0).is_err_and(|wait| wait > MS * 900));
    }

    #[test]
    fn a_request_that_waits_for_bytes_has_not_paid_yet() {
        let bucket = |per_s, burst| Some(Bucket::new(per_s, burst));
        let mut left = Left {
            requests: bucket(1000, 2),
            bytes: bucket(1_000_000, 4096),
        };
        assert_eq!(left.pass(4096, Duration::ZERO), Ok(()));
        for _ in 0..5 {
            assert!(left.pass(4096, Duration::ZERO).is_err());
        }
        // Four milliseconds later there are bytes, and requests were not used up by asking.
        assert!(left.pass(4096, MS * 4).is_err());
        assert_eq!(left.pass(4096, MS * 5), Ok(()));
    }

    #[test]
    fn both_limits_hold_over_time() {
        let bucket = |per_s, burst| Some(Bucket::new(per_s, burst));
        let mut left = Left {
            requests: bucket(100, 10),
            bytes: bucket(1 << 20, 1 << 16),
        };
        let mut moved = 0u64;
        for tick in 0..10_000 {
            if left.pass(32 << 10, MS * tick).is_ok() {
                moved += 32 << 10;
            }
        }
        let second = moved / 10;
        assert!(
            ((1 << 20) - (1 << 15)..(1 << 20) + (1 << 15)).contains(&second),
            "{second}"
        );
    }
}
