//! How long to look for the next request before sleeping: waking up costs more than answering a read from memory.
//!
//! A client that sends one small request at a time comes back within tens of microseconds, and two wake-ups would be most of
//! that. So a connection polls, but only while polling has been paying, as QEMU's event loop does (`poll-max-ns`): each request that
//! came within [`POLL_MAX`] lets it poll longer, one that came later stops it. An idle or slow client costs nothing.
//!
//! Where others want the processor, polling takes it from them, the client's own threads included. So at most half of the processors
//! poll at a time ([`poller`]), and a connection that was put aside while it polled leaves it for a while.
//!
//! Pure but for the count of those who poll: time is an argument.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Longest polling for one request. A client that is woken, takes a reply and asks again needs about 40 µs.
pub(crate) const POLL_MAX: Duration = Duration::from_micros(64);
/// Where polling begins again after it had stopped.
const POLL_MIN: Duration = Duration::from_micros(8);

/// Two looks at the socket are less than a microsecond apart, unless somebody else had the processor.
pub(crate) const PUT_ASIDE: Duration = Duration::from_micros(20);
/// Requests without polling after that.
const REST_REQUESTS: u32 = 256;

/// Connections that poll at this moment, in the whole process.
static POLLERS: AtomicUsize = AtomicUsize::new(0);

/// A place among those who may poll; given back when it is dropped.
pub(crate) struct Poller(());

/// `None`: half of the processors poll already.
pub(crate) fn poller() -> Option<Poller> {
    static MAX: OnceLock<usize> = OnceLock::new();
    let max = *MAX.get_or_init(|| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        (processors / 2).max(1)
    });
    let taken = POLLERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |polling| {
        (polling < max).then(|| polling + 1)
    });
    // Made only if there is a place: it gives one back when it is dropped.
    taken.is_ok().then(|| Poller(()))
}

impl Drop for Poller {
    fn drop(&mut self) {
        POLLERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Patience {
    poll: Duration,
    /// Requests for which it does not begin again.
    rest: u32,
}

impl Patience {
    /// For how long to poll now; zero: not at all.
    pub(crate) fn poll(&self) -> Duration {
        self.poll
    }

    /// Learns how long the request took to come, polling and sleeping together.
    pub(crate) fn learn(&mut self, waited: Duration) {
        if self.rest > 0 {
            self.rest -= 1;
        } else if waited > POLL_MAX {
            self.poll = Duration::ZERO;
        } else if waited > self.poll {
            self.poll = (self.poll * 2).clamp(POLL_MIN, POLL_MAX);
        }
    }

    /// Learns that the thread was put aside while it polled.
    pub(crate) fn put_aside(&mut self) {
        self.poll = Duration::ZERO;
        self.rest = REST_REQUESTS;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::{POLL_MAX, POLL_MIN, Patience, REST_REQUESTS};
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

    #[test]
    fn a_thread_that_was_put_aside_does_not_poll_for_a_while() {
        let mut patience = Patience::default();
        patience.put_aside();
        let quick = |patience: &mut Patience| {
            patience.learn(Duration::from_micros(5));
            patience.poll()
        };
        for _ in 0..REST_REQUESTS {
            assert_eq!(quick(&mut patience), Duration::ZERO);
        }
        assert_eq!(quick(&mut patience), POLL_MIN);
    }
}
