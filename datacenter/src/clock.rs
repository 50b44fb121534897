//! Time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Where the datacenter has its time from.
pub trait Clock: Send + Sync + 'static {
    /// Seconds since 1970-01-01 UTC.
    fn unix_s(&self) -> u64;
}

/// The host's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn unix_s(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }
}

/// A clock that stands until it is set, for tests.
#[derive(Debug)]
pub struct SetClock(std::sync::atomic::AtomicU64);

impl SetClock {
    /// Stands at `unix_s`.
    pub fn new(unix_s: u64) -> Self {
        Self(unix_s.into())
    }

    /// Moves on.
    pub fn advance(&self, seconds: u64) {
        self.0
            .fetch_add(seconds, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn unix_s(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}
