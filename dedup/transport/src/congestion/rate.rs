//! How fast the path delivers: bytes acknowledged over a span, not gaps between packets.
//!
//! A sample covers at least a round trip, and longer where round trips jitter, because acknowledgements that arrive bunched would else
//! look like a fast path. It is divided by whichever took longer, sending those bytes or hearing of them
//! (draft-cheng-iccrg-delivery-rate-estimation). Invariant: the history is bounded by [`ENTRIES_MAX`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Points of the history: one every 32nd of a span, and a span and a half.
const ENTRIES_MAX: usize = 96;

#[derive(Debug, Clone, Copy)]
struct Point {
    at: Instant,
    delivered: u64,
    /// When the newest packet known to have arrived had left.
    newest_sent: Instant,
}

/// The greatest delivery rate of recent rounds.
#[derive(Debug, Clone)]
pub(super) struct DeliveryRate {
    delivered: u64,
    newest_sent: Instant,
    points: VecDeque<Point>,
    /// (round, bytes a second), decreasing.
    best: VecDeque<(u64, f64)>,
    /// The application had nothing to send until here, plus a round trip for that to show.
    starved_until: Option<Instant>,
}

impl DeliveryRate {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            delivered: 0,
            newest_sent: now,
            points: VecDeque::new(),
            best: VecDeque::new(),
            starved_until: None,
        }
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Bytes a second; 0 before the first sample.
    pub(super) fn best(&self) -> f64 {
        self.best.front().map_or(0.0, |(_, rate)| *rate)
    }

    pub(super) fn acknowledged(&mut self, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.newest_sent = self.newest_sent.max(sent);
    }

    pub(super) fn starved(&mut self, now: Instant, round_trip: Duration) {
        self.starved_until = Some(now + round_trip);
    }

    /// Ends the acknowledgements of one packet: takes a sample over `span`.
    pub(super) fn sample(&mut self, now: Instant, span: Duration, round: u64, rounds_kept: u64) {
        while self.points.len() >= 2 && now.saturating_duration_since(self.points[1].at) >= span {
            self.points.pop_front();
        }
        if let Some(first) = self.points.front().copied() {
            let heard = now.saturating_duration_since(first.at);
            let sent = self
                .newest_sent
                .saturating_duration_since(first.newest_sent);
            let took = heard.max(sent);
            if heard >= span && !took.is_zero() {
                let rate = (self.delivered - first.delivered) as f64 / took.as_secs_f64();
                let starved = self.starved_until.is_some_and(|until| first.at <= until);
                self.keep(rate, starved, round, rounds_kept);
            }
        }
        let spaced = self
            .points
            .back()
            .is_none_or(|last| now.saturating_duration_since(last.at) >= span / 32);
        if spaced {
            if self.points.len() == ENTRIES_MAX {
                self.points.pop_front();
            }
            self.points.push_back(Point {
                at: now,
                delivered: self.delivered,
                newest_sent: self.newest_sent,
            });
        }
    }

    fn keep(&mut self, rate: f64, starved: bool, round: u64, rounds_kept: u64) {
        // What the application did not offer was not refused by the path: such a sample can only raise the estimate.
        if starved && rate <= self.best() {
            return;
        }
        self.expire(round, rounds_kept);
        while self.best.back().is_some_and(|(_, old)| *old <= rate) {
            self.best.pop_back();
        }
        // One sample a round is enough of those that only wait for the greater ones to expire.
        if self.best.back().is_none_or(|(kept, _)| *kept < round) {
            self.best.push_back((round, rate));
        }
    }

    /// Forgets samples older than `rounds_kept` rounds, but never the last.
    pub(super) fn expire(&mut self, round: u64, rounds_kept: u64) {
        while self.best.len() > 1 && self.best[0].0 + rounds_kept < round {
            self.best.pop_front();
        }
    }

    /// Forgets all samples, for example those of before an outage.
    pub(super) fn forget(&mut self) {
        self.points.clear();
        self.best.clear();
    }
}
