//! How long to look for the next request before sleeping: waking up costs more than answering a read from memory.
//!
//! A client that sends one small request at a time comes back within tens of microseconds, and two wake-ups would be most of
//! that. So a connection polls, but only while polling has been paying, as QEMU's event loop does (`poll-max-ns`): each request that
//! came within [`POLL_MAX`] lets it poll longer, one that came later stops it. An idle or slow client costs nothing.
//!
//! Pure: time is an argument.

use std::time::Duration;

/// Longest polling for one request. A client that is woken, takes a reply and asks again needs about 40 µs.
pub(crate) const POLL_MAX: Duration = Duration::from_micros(64);
/// Where polling begins again after it had stopped.
const POLL_MIN: Duration = Duration::from_micros(8);

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Patience {
    poll: Duration,
}

impl Patience {
    /// For how long to poll now; zero: not at all.
    pub(crate) fn poll(&self) -> Duration {
        self.poll
    }

    /// Learns how long the request took to come, polling and sleeping together.
    pub(crate) fn learn(&mut self, waited: Duration) {
        if waited > POLL_MAX {
            self.poll = Duration::ZERO;
        } else if waited > self.poll {
            self.poll = (self.poll * 2).clamp(POLL_MIN, POLL_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::{POLL_MAX, Patience};
    use std::time::Duration;

    #[test]
    fn polling_grows_with_a_quick_client_and_ends_with_a_slow_one() {
        let mut patience = Patience::default();
        assert_eq!(patience.poll(), Duration::ZERO);
        let mut polls = Vec::new();
        for _ in 0..6 {
            patience.learn(Duration::from_micros(40));
            polls.push(patience.poll().as_micros());
        }
        assert_eq!(polls, [8, 16, 32, 64, 64, 64]);
        patience.learn(Duration::from_micros(5));
        assert_eq!(patience.poll(), POLL_MAX, "it pays");
        patience.learn(POLL_MAX + Duration::from_nanos(1));
        assert_eq!(patience.poll(), Duration::ZERO);
    }
}
