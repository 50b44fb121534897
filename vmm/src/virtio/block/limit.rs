//! How much a disk may do a second, all its queues together.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::machine::bus::lock;
use crate::machine::rate;

/// Limits of a disk; none is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second.
    pub requests_per_s: Option<u64>,
    /// Bytes a second, of reads and writes together.
    pub bytes_per_s: Option<u64>,
}

/// See the module.
pub(super) struct Toll {
    since: Instant,
    left: Mutex<rate::Toll>,
}

impl Toll {
    /// `None`: there is no limit.
    pub(super) fn new(limits: Limits) -> Option<Self> {
        let left = rate::Toll::new(limits.requests_per_s, limits.bytes_per_s)?;
        Some(Self {
            since: Instant::now(),
            left: Mutex::new(left),
        })
    }

    /// Lets a request of so many bytes pass, or says how long it has to wait.
    pub(super) fn pass(&self, bytes: u64) -> Result<(), Duration> {
        lock(&self.left).pass(1, bytes, self.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_queues_share_what_there_is() {
        assert!(Toll::new(Limits::default()).is_none());
        let limits = Limits {
            requests_per_s: Some(1),
            bytes_per_s: None,
        };
        let toll = Toll::new(limits).expect("a limit");
        assert_eq!(toll.pass(1 << 30), Ok(()));
        assert!(
            toll.pass(0)
                .is_err_and(|wait| wait > Duration::from_millis(900))
        );
    }
}
