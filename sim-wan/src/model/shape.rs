//! What one direction of a link does to packets, as plain numbers. Construction checks nothing; a user's profile is
//! validated where it is read ([`crate::profile`]).

use std::time::Duration;

use super::loss::Loss;

/// Full size of a packet for queue sizing, in bytes: the link's MTU.
pub const FULL_PACKET_BYTES: u64 = 1500;

/// Planned outages: the link is down for the last `length` of every `period`, counted from when the profile was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// From one outage's start to the next one's.
    pub period: Duration,
    /// How long each lasts; shorter than `period`.
    pub length: Duration,
}

impl Outage {
    /// Whether `t` (since the schedule began) is inside an outage.
    pub fn is_down(&self, t: Duration) -> bool {
        self.phase(t) >= self.period - self.length
    }

    /// Whether any instant of `[from, to]` is inside an outage.
    pub fn overlaps(&self, from: Duration, to: Duration) -> bool {
        self.is_down(from) || from + (self.period - self.length - self.phase(from)) <= to
    }

    /// The first instant at or after `t` when the link is up.
    pub fn up_from(&self, t: Duration) -> Duration {
        if self.is_down(t) {
            t + (self.period - self.phase(t))
        } else {
            t
        }
    }

    fn phase(&self, t: Duration) -> Duration {
        Duration::from_nanos((t.as_nanos() % self.period.as_nanos()) as u64)
    }
}

/// A share of packets held back so that later ones overtake them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reorder {
    /// Probability, 0 to 1.
    pub p: f64,
    /// How much later a held packet arrives.
    pub delay: Duration,
}

/// One direction of a link.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Serialisation rate in bit/s of IP packets.
    pub rate_bps: u64,
    /// One-way propagation delay.
    pub delay: Duration,
    /// The delay varies by ± this much; at most `delay`.
    pub jitter: Duration,
    /// Losses after the rate limiter.
    pub loss: Loss,
    /// Packets held back.
    pub reorder: Option<Reorder>,
    /// Probability that a packet is delivered twice.
    pub duplicate: f64,
    /// Drop-tail limit, in time at `rate_bps`.
    pub queue: Duration,
    /// Planned outages.
    pub outage: Option<Outage>,
}

impl Shape {
    /// A clean direction: rate, delay and queue only.
    pub fn clean(rate_bps: u64, delay: Duration, queue: Duration) -> Self {
        Self {
            rate_bps,
            delay,
            jitter: Duration::ZERO,
            loss: Loss::None,
            reorder: None,
            duplicate: 0.0,
            queue,
            outage: None,
        }
    }

    /// The queue limit in bytes, the packet in transmission included: at least two full packets, because a queue
    /// that cannot hold one packet behind another would drop at any load.
    pub fn queue_bytes(&self) -> u64 {
        let bytes = u128::from(self.rate_bps) * self.queue.as_nanos() / 8_000_000_000;
        u64::try_from(bytes)
            .unwrap_or(u64::MAX)
            .max(2 * FULL_PACKET_BYTES)
    }
}
