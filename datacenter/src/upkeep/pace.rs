//! Keeping a pace in bytes a second, by waiting.

use std::time::{Duration, Instant};

/// Longest wait without a look whether to stop.
const NAP: Duration = Duration::from_millis(100);

/// How far ahead of its pace some work is.
pub(super) struct Pace {
    bytes_per_s: Option<u64>,
    began: Instant,
    bytes: u64,
}

impl Pace {
    /// Begins now; `None` is no limit.
    pub(super) fn new(bytes_per_s: Option<u64>) -> Self {
        Self {
            bytes_per_s: bytes_per_s.filter(|rate| *rate > 0),
            began: Instant::now(),
            bytes: 0,
        }
    }

    /// Waits until so many more bytes are due, or until `stop`.
    pub(super) fn spend(&mut self, bytes: u64, stop: &dyn Fn() -> bool) {
        let Some(rate) = self.bytes_per_s else { return };
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / rate as f64);
        while !stop() {
            let Some(early) = due.checked_sub(self.began.elapsed()) else {
                return;
            };
            std::thread::sleep(early.min(NAP));
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}
