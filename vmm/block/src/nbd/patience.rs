//! How long to look for the next request before sleeping: waking up costs more than answering a read from memory.
//!
//! A client that sends one small request at a time comes back within tens of microseconds, and two wake-ups would be most of
//! that. So a connection polls, but only while polling has been paying, as QEMU's event loop does (`poll-max-ns`): each request that
//! came within [`POLL_MAX`] lets it poll longer, one that came later halves that. An idle or slow client costs nothing.
//!
//! Where others want the processor, polling takes it from them, the client's own threads included. So at most half of the processors
//! poll at a time ([`poller`]), and a connection that was put aside while it polled leaves it for a while. An interrupt, or a pause
//! of the host below us, looks the same but comes seldom: so the while is short at first, and doubles as long as it happens again.
//!
//! Nor does polling always shorten the wait. It keeps client and server on two processors; where waking a processor that has gone to
//! sleep costs more than two changes of thread on one that is awake, as in many virtual machines, sleeping is quicker. No rule
//! tells beforehand, so a connection that polls measures the other way now and then ([`Trial`]) and keeps the quicker one.
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
/// Requests without polling after that: the first time, and at most.
const REST_MIN: u32 = 4;
const REST_MAX: u32 = 256;
/// After so many requests without being put aside, the next time counts as the first.
const CALM_REQUESTS: u32 = 256;

/// Requests of each way that are compared.
const SAMPLE: u32 = 64;
/// Requests after a change of ways that are not counted: threads find their processors.
const SETTLE: u32 = 16;
/// Requests served in the way that was quicker until both are compared again: the first time, and at most.
const KEEP_MIN: u32 = 1024;
const KEEP_MAX: u32 = 64 * 1024;
/// No wait counts for more than this, so that a client's pause decides nothing.
const COUNTED_MAX: Duration = Duration::from_micros(256);

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
    /// Requests for which it does not poll.
    rest: u32,
    /// How many it was the last time.
    last_rest: u32,
    /// Requests since then.
    calm: u32,
    trial: Trial,
}

/// Which way to wait is quicker: polling or sleeping.
#[derive(Debug, Clone, Copy, Default)]
struct Trial {
    sleeps: bool,
    stage: Stage,
    /// Requests in this stage.
    seen: u32,
    /// What the counted ones waited, together.
    waited: Duration,
    /// Requests that the last choice was kept for.
    keep: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// In the way that was quicker, until it is time to compare.
    #[default]
    Keeping,
    /// Measuring that way.
    First,
    /// Measuring the other way, and what the first one took.
    Second(Duration),
}

impl Trial {
    fn learn(&mut self, waited: Duration) {
        self.seen += 1;
        if self.stage == Stage::Keeping {
            if self.seen >= self.keep.max(KEEP_MIN) {
                self.enter(Stage::First);
            }
            return;
        }
        if self.seen > SETTLE {
            self.waited += waited.min(COUNTED_MAX);
        }
        if self.seen < SETTLE + SAMPLE {
            return;
        }
        match self.stage {
            Stage::Keeping => {}
            Stage::First => {
                let first = self.waited;
                self.sleeps = !self.sleeps;
                self.enter(Stage::Second(first));
            }
            Stage::Second(first) => {
                // An eighth is more than chance: below that a connection would change ways for ever.
                if self.waited >= first - first / 8 {
                    self.sleeps = !self.sleeps;
                    self.keep = (self.keep * 2).clamp(KEEP_MIN, KEEP_MAX);
                } else {
                    self.keep = KEEP_MIN;
                }
                self.enter(Stage::Keeping);
            }
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.seen = 0;
        self.waited = Duration::ZERO;
    }
}

impl Patience {
    /// For how long to poll now; zero: not at all.
    pub(crate) fn poll(&self) -> Duration {
        if self.rest > 0 || self.trial.sleeps {
            return Duration::ZERO;
        }
        self.poll
    }

    /// Learns how long the request took to come, polling and sleeping together.
    pub(crate) fn learn(&mut self, waited: Duration) {
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        let sleeps = self.trial.sleeps;
        if sleeps || !self.poll.is_zero() {
            self.trial.learn(waited);
        }
        self.calm = self.calm.saturating_add(1);
        if sleeps {
            // Says nothing of how long to poll.
            return;
        }
        if waited > POLL_MAX {
            self.poll /= 2;
            if self.poll < POLL_MIN {
                self.poll = Duration::ZERO;
            }
        } else if waited > self.poll {
            self.poll = (self.poll * 2).clamp(POLL_MIN, POLL_MAX);
        }
    }

    /// Learns that the thread was put aside while it polled.
    pub(crate) fn put_aside(&mut self) {
        self.rest = if self.calm >= CALM_REQUESTS {
            REST_MIN
        } else {
            (self.last_rest * 2).clamp(REST_MIN, REST_MAX)
        };
        self.last_rest = self.rest;
        self.calm = 0;
    }
}

/// A flush that takes no longer than this may hold up what comes behind it: as long as copying the largest read that does.
const FLUSH_QUICK_MAX: Duration = Duration::from_millis(1);
/// Flushes that are left to workers after one that took longer, so that a slow disk's hold up next to nothing.
const FLUSH_REST: u32 = 64;

/// Whether a connection's reader may flush by itself: while its flushes have been quick.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FlushPace {
    rest: u32,
}

impl FlushPace {
    /// Asked once for each flush.
    pub(crate) fn is_quick(&mut self) -> bool {
        let quick = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        quick
    }

    /// Learns how long a flush by the reader took.
    pub(crate) fn learn(&mut self, took: Duration) {
        if took > FLUSH_QUICK_MAX {
            self.rest = FLUSH_REST;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::{
        CALM_REQUESTS, FLUSH_QUICK_MAX, FLUSH_REST, FlushPace, KEEP_MIN, POLL_MAX, Patience,
        REST_MAX, REST_MIN,
    };
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
        let mut polls = Vec::new();
        for _ in 0..5 {
            patience.learn(POLL_MAX + Duration::from_nanos(1));
            polls.push(patience.poll().as_micros());
        }
        assert_eq!(polls, [32, 16, 8, 0, 0]);
    }

    fn quick(patience: &mut Patience, requests: u32) {
        (0..requests).for_each(|_| patience.learn(Duration::from_micros(40)));
    }

    /// Requests that come until it polls again.
    fn rest(patience: &mut Patience) -> u32 {
        let mut requests = 0;
        while patience.poll().is_zero() {
            quick(patience, 1);
            requests += 1;
        }
        requests
    }

    #[test]
    fn a_thread_that_is_put_aside_again_and_again_polls_ever_less() {
        let mut patience = Patience::default();
        quick(&mut patience, 10);
        let rests: Vec<u32> = (0..9)
            .map(|_| {
                patience.put_aside();
                rest(&mut patience)
            })
            .collect();
        assert_eq!(rests, [4, 8, 16, 32, 64, 128, 256, 256, REST_MAX]);
    }

    #[test]
    fn an_interrupt_now_and_then_costs_a_few_requests_only() {
        let mut patience = Patience::default();
        quick(&mut patience, 10);
        // Fewer requests than there are before the ways to wait are compared.
        for _ in 0..KEEP_MIN / CALM_REQUESTS - 1 {
            patience.put_aside();
            assert_eq!(rest(&mut patience), REST_MIN);
            assert_eq!(patience.poll(), POLL_MAX, "as long as before");
            quick(&mut patience, CALM_REQUESTS);
        }
    }

    /// Of `requests`, those for which it polled, where a request takes so many microseconds to come.
    fn polled(patience: &mut Patience, requests: u32, polling_us: u64, sleeping_us: u64) -> u32 {
        (0..requests)
            .filter(|_| {
                let polls = !patience.poll().is_zero();
                let waited_us = if polls { polling_us } else { sleeping_us };
                patience.learn(Duration::from_micros(waited_us));
                polls
            })
            .count() as u32
    }

    #[test]
    fn the_quicker_way_to_wait_is_found_and_found_again_when_it_changes() {
        const MANY: u32 = 1_000_000;
        for slower_us in [30, 60, 500] {
            let mut patience = Patience::default();
            quick(&mut patience, 10);
            let by_polling = polled(&mut patience, MANY, 20, slower_us);
            assert!(by_polling > MANY / 100 * 98, "{slower_us}: {by_polling}");
        }
        for slower_us in [30, 60] {
            let mut patience = Patience::default();
            let by_polling = polled(&mut patience, MANY, slower_us, 20);
            assert!(by_polling < MANY / 100 * 2, "{slower_us}: {by_polling}");
            let by_polling = polled(&mut patience, MANY, 20, slower_us);
            assert!(by_polling > MANY / 100 * 85, "{slower_us}: {by_polling}");
        }
        let mut patience = Patience::default();
        polled(&mut patience, MANY, 20, 20);
        let by_polling = polled(&mut patience, MANY, 20, 20);
        assert!(by_polling > MANY / 100 * 98, "no better, no change");
    }

    #[test]
    fn a_client_that_has_gone_slow_is_not_polled_for_whatever_was_found() {
        for sleeping_us in [10, 90] {
            let mut patience = Patience::default();
            polled(&mut patience, 10 * KEEP_MIN, 40, sleeping_us);
            polled(&mut patience, 1000, 10_000, 10_000);
            let by_polling = polled(&mut patience, 100_000, 10_000, 10_000);
            assert!(by_polling < 1000, "{by_polling}");
        }
    }

    #[test]
    fn after_a_slow_flush_workers_flush_for_a_while() {
        let mut pace = FlushPace::default();
        assert!(pace.is_quick());
        pace.learn(FLUSH_QUICK_MAX);
        assert!(pace.is_quick());
        pace.learn(FLUSH_QUICK_MAX * 2);
        let rest = (0..).take_while(|_| !pace.is_quick()).count();
        assert_eq!(rest, FLUSH_REST as usize);
        assert!(
            pace.is_quick(),
            "and goes on as long as it is not slow again"
        );
    }
}
