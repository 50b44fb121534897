//! Congestion control by measured delivery: keep in flight what the path delivers in one round trip, and a little more.
//!
//! A model in the family of BBR (Cardwell et al., ACM Queue 14(5), 2016), for long lossy paths with small queues. Two figures are
//! measured: the *delivery rate* (most bytes a second that arrived over any recent round trip, by the samples of
//! draft-cheng-iccrg-delivery-rate-estimation) and the *round trip without queue* (least seen in ten seconds). Their product is what
//! the path itself holds. A lost packet says nothing by itself; only a round that loses clearly more than rounds with an empty queue
//! do is taken for a full queue.
//!
//! ```text
//!   Startup ──rate grew under a quarter in three rounds──► Drain ──in flight ≤ path holds──► Cruise
//!      ▲ doubles each round                                                               │ up, down, 6 × level
//!      └───────────────────────── persistent congestion (an outage) ◄────────────────────┘
//! ```
//!
//! quinn paces at 1.25 windows a smoothed round trip, so the window is the only lever here. Why not quinn's own BBR: it takes the gap
//! between two packets for a rate, aims too high, and sends 1.3 to 1.9 times the payload on our profiles (decision 0013).

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};

/// Packets in flight before anything is known.
const INITIAL_PACKETS: u64 = 32;
/// Packets always allowed in flight: acknowledgements must keep coming.
const MIN_PACKETS: u64 = 4;
/// Rounds over which the delivery rate is the greatest seen.
const RATE_ROUNDS: u64 = 10;
/// For how long the least round trip is believed: routes change.
const MIN_RTT_MAX_AGE: Duration = Duration::from_secs(10);
/// Startup ends after this many rounds in which the rate grew by less than a quarter.
const PLATEAU_ROUNDS: u32 = 3;
/// What one round of a cruise cycle keeps in flight, against what the path holds. The second lets the queue run empty, so that
/// the round trip without queue is seen.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// Above what the path holds, so that late or joined acknowledgements do not stall it: four times the spread of round trips (the least
/// round trip of a jittery path is far below its mean), between these.
const SLACK_MIN: Duration = Duration::from_millis(8);
const SLACK_MAX: Duration = Duration::from_millis(80);
/// A round that loses this much more than the path does at rest has met a full queue.
const LOSS_ABOVE_FLOOR: f64 = 0.02;

/// Makes [`Delivery`] controllers.
#[derive(Debug, Default)]
pub struct DeliveryConfig;

impl ControllerFactory for DeliveryConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Delivery::new(now, current_mtu))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Startup,
    Drain,
    Cruise { step: usize },
}

/// What was delivered when a packet left.
#[derive(Debug, Clone, Copy)]
struct Departure {
    at: Instant,
    delivered: u64,
    delivered_at: Instant,
    /// When the packet whose delivery was last known had left.
    previous_sent: Instant,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Delivery {
    mtu: u64,
    phase: Phase,
    window: u64,
    /// Bytes known to have arrived.
    delivered: u64,
    delivered_at: Instant,
    /// When the newest packet known to have arrived had left.
    newest_sent: Instant,
    departures: VecDeque<Departure>,
    /// (round, bytes a second), decreasing.
    rates: VecDeque<(u64, f64)>,
    min_rtt: Option<(Duration, Instant)>,
    /// Average round trip and its spread, in seconds.
    rtt_mean: f64,
    rtt_spread: f64,
    round: u64,
    /// A round ends when a packet that left after this many bytes were delivered is acknowledged.
    round_ends_at: u64,
    round_acked: u64,
    round_lost: u64,
    round_limited: bool,
    plateau: u32,
    plateau_rate: f64,
    /// Share lost while the queue was empty.
    loss_floor: f64,
    /// Share of the slack that is used: less while the queue overflows.
    slack_share: f64,
}

impl Delivery {
    fn new(now: Instant, mtu: u16) -> Self {
        let mtu = u64::from(mtu);
        Self {
            mtu,
            phase: Phase::Startup,
            window: INITIAL_PACKETS * mtu,
            delivered: 0,
            delivered_at: now,
            newest_sent: now,
            departures: VecDeque::new(),
            rates: VecDeque::new(),
            min_rtt: None,
            rtt_mean: 0.0,
            rtt_spread: 0.0,
            round: 0,
            round_ends_at: 0,
            round_acked: 0,
            round_lost: 0,
            round_limited: false,
            plateau: 0,
            plateau_rate: 0.0,
            loss_floor: 0.0,
            slack_share: 1.0,
        }
    }

    /// Bytes a second.
    fn rate(&self) -> f64 {
        self.rates.front().map_or(0.0, |(_, rate)| *rate)
    }

    /// Bytes that the path holds without a queue.
    fn path_bytes(&self) -> f64 {
        let rtt = self.min_rtt.map_or(0.0, |(rtt, _)| rtt.as_secs_f64());
        self.rate() * rtt
    }

    fn slack_bytes(&self) -> f64 {
        let spread =
            (4.0 * self.rtt_spread).clamp(SLACK_MIN.as_secs_f64(), SLACK_MAX.as_secs_f64());
        self.rate() * spread * self.slack_share
    }

    fn sample_rtt(&mut self, now: Instant, sample: Duration) {
        if self
            .min_rtt
            .is_none_or(|(least, at)| sample <= least || now - at > MIN_RTT_MAX_AGE)
        {
            self.min_rtt = Some((sample, now));
        }
        let sample = sample.as_secs_f64();
        if self.rtt_mean == 0.0 {
            self.rtt_mean = sample;
        }
        self.rtt_spread += ((sample - self.rtt_mean).abs() - self.rtt_spread) / 64.0;
        self.rtt_mean += (sample - self.rtt_mean) / 64.0;
    }

    /// The departure of a packet that left at `sent`; earlier ones are forgotten.
    fn departure(&mut self, sent: Instant) -> Option<Departure> {
        let index = self.departures.partition_point(|d| d.at <= sent);
        let found = index.checked_sub(1).map(|i| self.departures[i]);
        // Packets may be acknowledged out of order, so a little of the past is kept.
        let keep_from = sent.checked_sub(Duration::from_secs(1));
        while self.departures.len() > 1
            && keep_from.is_some_and(|from| self.departures[1].at < from)
        {
            self.departures.pop_front();
        }
        found
    }

    fn sample_rate(&mut self, rate: f64, app_limited: bool) {
        // What the application did not offer was not refused by the path: such a sample can only raise the estimate.
        if app_limited && rate <= self.rate() {
            return;
        }
        while self
            .rates
            .front()
            .is_some_and(|(round, _)| round + RATE_ROUNDS < self.round)
        {
            self.rates.pop_front();
        }
        while self.rates.back().is_some_and(|(_, old)| *old <= rate) {
            self.rates.pop_back();
        }
        self.rates.push_back((self.round, rate));
    }

    fn end_round(&mut self) {
        self.round += 1;
        self.round_ends_at = self.delivered;
        let seen = self.round_acked + self.round_lost;
        let loss = if seen > 0 {
            self.round_lost as f64 / seen as f64
        } else {
            0.0
        };
        match self.phase {
            Phase::Startup => {
                let rate = self.rate();
                if rate > self.plateau_rate * 1.25 {
                    self.plateau_rate = rate;
                    self.plateau = 0;
                } else if !self.round_limited {
                    self.plateau += 1;
                }
                if self.plateau >= PLATEAU_ROUNDS {
                    self.phase = Phase::Drain;
                }
            }
            Phase::Drain => {}
            Phase::Cruise { step } => {
                if CYCLE[step] < 1.0 {
                    self.loss_floor += (loss - self.loss_floor) / 4.0;
                } else if loss > self.loss_floor * 1.5 + LOSS_ABOVE_FLOOR {
                    self.slack_share = (self.slack_share * 0.7).max(0.05);
                } else {
                    self.slack_share = (self.slack_share + 0.03).min(1.0);
                }
                self.phase = Phase::Cruise {
                    step: (step + 1) % CYCLE.len(),
                };
            }
        }
        self.round_acked = 0;
        self.round_lost = 0;
        self.round_limited = false;
    }

    fn set_window(&mut self, acked: u64) {
        let path = self.path_bytes();
        let target = match self.phase {
            // Twice what was delivered in a round trip, reached as fast as acknowledgements come.
            Phase::Startup => {
                let grown = self.window + acked;
                let bound = (2.0 * path) as u64 + INITIAL_PACKETS * self.mtu;
                grown.min(bound.max(self.window))
            }
            Phase::Drain => path as u64,
            Phase::Cruise { step } if CYCLE[step] < 1.0 => (CYCLE[step] * path) as u64,
            Phase::Cruise { step } => (CYCLE[step] * path + self.slack_bytes()) as u64,
        };
        self.window = target.max(MIN_PACKETS * self.mtu);
    }
}

impl Controller for Delivery {
    fn on_sent(&mut self, now: Instant, _bytes: u64, _last_packet_number: u64) {
        if self.departures.back().is_none_or(|d| d.at < now) {
            self.departures.push_back(Departure {
                at: now,
                delivered: self.delivered,
                delivered_at: self.delivered_at,
                previous_sent: self.newest_sent,
            });
        }
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        _rtt: &quinn_proto::RttEstimator,
    ) {
        self.delivered += bytes;
        self.delivered_at = now;
        self.newest_sent = self.newest_sent.max(sent);
        self.round_acked += bytes;
        self.round_limited |= app_limited;
        self.sample_rtt(now, now.saturating_duration_since(sent));
        let Some(departure) = self.departure(sent) else {
            return;
        };
        // Whichever took longer, sending or acknowledging: joined acknowledgements must not look like a fast path.
        let sending = sent.saturating_duration_since(departure.previous_sent);
        let acknowledging = now.saturating_duration_since(departure.delivered_at);
        let took = sending.max(acknowledging);
        let least = self.min_rtt.map_or(Duration::ZERO, |(rtt, _)| rtt);
        if took >= least && !took.is_zero() {
            let rate = (self.delivered - departure.delivered) as f64 / took.as_secs_f64();
            self.sample_rate(rate, app_limited);
        }
        if departure.delivered >= self.round_ends_at {
            self.end_round();
        }
        self.set_window(bytes);
    }

    fn on_end_acks(
        &mut self,
        _now: Instant,
        in_flight: u64,
        _app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        if self.phase == Phase::Drain && in_flight as f64 <= self.path_bytes() {
            self.phase = Phase::Cruise { step: 2 };
            self.set_window(0);
        }
    }

    fn on_congestion_event(
        &mut self,
        _now: Instant,
        _sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.round_lost += lost_bytes;
        if is_persistent_congestion {
            // Everything of several round trips was lost: an outage, or another path. Begin again, carefully.
            self.phase = Phase::Startup;
            self.rates.clear();
            self.plateau = 0;
            self.plateau_rate = 0.0;
            self.window = INITIAL_PACKETS / 2 * self.mtu;
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.window = self.window.max(MIN_PACKETS * self.mtu);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.mtu
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
