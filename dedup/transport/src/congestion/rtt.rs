//! What a round trip takes when the queue is empty, on paths whose round trip is never twice the same.
//!
//! The least sample ever seen is the usual estimate (BBR). On a path that jitters it lies far below what a packet usually takes, and a
//! window computed from it leaves the line half empty. Here the sample is the mean of a whole round, in which jitter averages out, and the
//! estimate is the least of those means in the last eight to sixteen seconds. Invariant: memory is constant.

use std::time::{Duration, Instant};

/// Two of these are remembered: routes change, and a queue of our own making is drained more often than that.
const EPOCH: Duration = Duration::from_secs(8);
/// How fast the spread follows.
const SPREAD_GAIN: f64 = 0.125;

/// Round trips of one path, in seconds.
#[derive(Debug, Clone)]
pub(super) struct RoundTrips {
    epoch_began: Instant,
    least_now: f64,
    least_before: f64,
    spread: f64,
    count: f64,
    sum: f64,
    squares: f64,
    /// Mean of the last whole round.
    last_mean: f64,
    last_sample: f64,
}

impl RoundTrips {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            epoch_began: now,
            least_now: f64::INFINITY,
            least_before: f64::INFINITY,
            spread: 0.0,
            count: 0.0,
            sum: 0.0,
            squares: 0.0,
            last_mean: 0.0,
            last_sample: 0.0,
        }
    }

    /// One acknowledgement's round trip.
    pub(super) fn sample(&mut self, sample: Duration) {
        let sample = sample.as_secs_f64();
        self.last_sample = sample;
        self.count += 1.0;
        self.sum += sample;
        self.squares += sample * sample;
        if self.least_now.is_infinite() && self.least_before.is_infinite() {
            self.least_now = sample;
        }
    }

    /// Ends a round; `steady` when the queue was meant to keep its length, so that the spread is the path's own.
    /// While the queue is `contended` it never empties, and the past is remembered for longer.
    pub(super) fn end_round(&mut self, now: Instant, steady: bool, contended: bool) {
        if self.count == 0.0 {
            return;
        }
        let mean = self.sum / self.count;
        let spread = (self.squares / self.count - mean * mean).max(0.0).sqrt();
        if steady {
            self.spread += (spread - self.spread) * SPREAD_GAIN;
        }
        let epoch = if contended { EPOCH * 5 } else { EPOCH };
        if now.saturating_duration_since(self.epoch_began) > epoch {
            self.epoch_began = now;
            self.least_before = self.least_now;
            self.least_now = mean;
        }
        self.least_now = self.least_now.min(mean);
        self.last_mean = mean;
        (self.count, self.sum, self.squares) = (0.0, 0.0, 0.0);
    }

    /// Forgets the past: another path, perhaps.
    pub(super) fn forget(&mut self, now: Instant) {
        *self = Self {
            spread: self.spread,
            ..Self::new(now)
        };
    }

    /// The round trip with an empty queue; 0 before the first sample.
    pub(super) fn rest(&self) -> f64 {
        let least = self.least_now.min(self.least_before);
        if least.is_finite() { least } else { 0.0 }
    }

    /// Standard deviation within a round.
    pub(super) fn spread(&self) -> f64 {
        self.spread
    }

    pub(super) fn last_mean(&self) -> f64 {
        self.last_mean
    }

    pub(super) fn last_sample(&self) -> f64 {
        self.last_sample
    }
}
