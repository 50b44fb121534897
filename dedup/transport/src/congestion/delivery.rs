//! The controller; its states and rules are told in the module above.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};

use super::path::{PathCell, PathRecord};
use super::rate::DeliveryRate;
use super::rtt::RoundTrips;

/// Packets in flight before anything is known.
const INITIAL_PACKETS: u64 = 32;
/// Packets always allowed in flight: acknowledgements must keep coming.
const MIN_PACKETS: u64 = 4;
/// Packets in flight beyond what the path holds: acknowledgements come in pairs, and the window is not filled to the last byte.
const SPARE_PACKETS: u64 = 3;
/// Rounds over which the delivery rate is the greatest seen.
const RATE_ROUNDS: u64 = 10;
/// And when the queue says that it is too high.
const RATE_ROUNDS_CONGESTED: u64 = 3;
/// Startup ends after so many rounds in which the rate grew by less than a quarter, or at once when the queue grew. Rounds in which the
/// sender had little to send do not count: they say nothing of what the path can do, and a bulk that comes after them has to find out.
const PLATEAU: u32 = 3;
/// In startup, each byte that arrived makes room for this many more.
const STARTUP_GROWTH: f64 = 1.5;
/// And the window is at most this many times what was delivered in a round trip.
const STARTUP_GAIN: f64 = 2.3;
/// What a rest keeps in flight, against what the path holds: the queue runs empty, and its round trip and loss are the path's own.
const REST_GAIN: f64 = 0.88;
/// A rest comes after so many rounds of cruise, and not before so much time: on short paths rounds are cheap, rests are not.
const REST_EVERY_ROUNDS: u64 = 8;
const REST_EVERY: Duration = Duration::from_secs(4);
/// A probe keeps this much in flight, for a round in which the queue seemed empty.
const PROBE_GAIN: f64 = 1.25;
/// Rounds between probes, doubling while they find nothing.
const PROBE_WAIT_MIN: u64 = 4;
const PROBE_WAIT_MAX: u64 = 64;
/// Queue that a cruise allows itself, so that late or joined acknowledgements do not stall it: this many standard deviations of the round
/// trip, or this share of it, between these bounds.
const SLACK_SPREADS: f64 = 3.0;
const SLACK_SHARE: f64 = 1.0 / 16.0;
const SLACK_MIN: f64 = 0.008;
const SLACK_MAX: f64 = 0.1;
/// A round that loses this much more than the path does at rest has met a full queue.
const LOSS_ABOVE_FLOOR: f64 = 0.02;
/// A queue that does not empty when we let it, above this share of the round trip, is somebody else's.
const OTHERS_QUEUE: f64 = 0.125;
/// So many rests in a row must have met one.
const CONTENDED_RESTS: u32 = 2;
/// Beside somebody else: the window after a congested round, its growth in others (a share of itself, at least a packet), and the loss
/// above the path's own that makes a round congested (RFC 9438 has 0.7 and about a packet).
const CONTENDED_BETA: f64 = 0.7;
const CONTENDED_GROWTH: u64 = 64;
const CONTENDED_LOSS: f64 = 0.004;
/// Loss of a round, averaged over this many: losses come in bursts.
const LOSS_GAIN: f64 = 0.125;
/// Rests over which their loss is averaged.
const FLOOR_RESTS: u32 = 8;
/// Loss at rest is believed up to here: a line that loses more is not helped by sending more.
const FLOOR_MAX: f64 = 0.3;
/// Of a remembered path, this share is sent at once (draft-ietf-tsvwg-careful-resume, section 3: at most half).
const RESUME_SHARE: f64 = 0.5;
/// And never more than this many bytes: 107 Mbit/s at 600 ms.
const RESUME_BYTES_MAX: f64 = 8e6;

/// Makes [`Delivery`] controllers that meet their link in `cell`.
#[derive(Debug, Default)]
pub struct DeliveryConfig {
    /// Where figures come from and go to.
    pub cell: Arc<PathCell>,
}

impl ControllerFactory for DeliveryConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Delivery::new(now, current_mtu, Arc::clone(&self.cell)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Startup,
    /// Until the queue has run empty.
    Drain,
    /// Round 0 sends packets that meet no queue, round 1 hears what became of them.
    Rest {
        round: u32,
    },
    /// Steady: what the path holds, and a little queue.
    Cruise,
    /// A cruise's round with more in flight.
    Probe,
}

/// What one round has seen.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    acked: u64,
    lost: u64,
    /// A router marked a packet instead of dropping it (RFC 3168): its queue is too long.
    marked: bool,
    starved: bool,
    /// Acknowledgements that came while the queue was seen to grow, and all.
    queued: u32,
    acknowledgements: u32,
}

impl Round {
    fn loss(&self) -> f64 {
        self.lost as f64 / (self.acked + self.lost).max(1) as f64
    }
}

/// What a controller believes, for reports and tests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Name of the state: `startup`, `drain`, `rest`, `cruise`, `contend` or `probe`.
    pub phase: &'static str,
    /// Bytes a second that arrive.
    pub rate: f64,
    /// Round trip with an empty queue, in seconds.
    pub rest: f64,
    /// Standard deviation of the round trip within a round, in seconds.
    pub spread: f64,
    /// Queue that is aimed at, in seconds.
    pub slack: f64,
    /// Share of the packets that the path loses anyway.
    pub loss_floor: f64,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Delivery {
    cell: Arc<PathCell>,
    mtu: u64,
    window: u64,
    phase: Phase,
    rest_began: Instant,
    rate: DeliveryRate,
    rtt: RoundTrips,
    round: u64,
    round_began: Instant,
    this: Round,
    /// Newest packet that the acknowledgement in hand covers.
    newest: Option<Instant>,
    plateau: u32,
    plateau_rate: f64,
    /// Share lost while the queue was empty.
    loss_floor: f64,
    /// Rests that the floor is the average of.
    rests: u32,
    /// Share lost in recent rounds of cruise.
    loss_recent: f64,
    /// Share of the slack that is used: less while the queue overflows.
    slack_share: f64,
    rested_at: Instant,
    rested_round: u64,
    probe_round: u64,
    probe_wait: u64,
    probe_rate: f64,
    /// The window beside somebody else who keeps the queue full.
    contended: Option<u64>,
    /// Rests in a row that met a queue.
    rests_queued: u32,
    backed_off_round: u64,
    /// What was begun with on another connection's word, until it is confirmed.
    resumed: Option<u64>,
    /// Bytes acknowledged when the window was last set.
    delivered_then: u64,
}

impl Delivery {
    fn new(now: Instant, mtu: u16, cell: Arc<PathCell>) -> Self {
        let mtu = u64::from(mtu);
        Self {
            cell,
            mtu,
            window: INITIAL_PACKETS * mtu,
            phase: Phase::Startup,
            rest_began: now,
            rate: DeliveryRate::new(now),
            rtt: RoundTrips::new(now),
            round: 0,
            round_began: now,
            this: Round::default(),
            newest: None,
            plateau: 0,
            plateau_rate: 0.0,
            loss_floor: 0.0,
            rests: 0,
            loss_recent: 0.0,
            slack_share: 1.0,
            rested_at: now,
            rested_round: 0,
            probe_round: 0,
            probe_wait: PROBE_WAIT_MIN,
            probe_rate: 0.0,
            contended: None,
            rests_queued: 0,
            backed_off_round: 0,
            resumed: None,
            delivered_then: 0,
        }
    }

    /// What the controller believes now.
    pub fn figures(&self) -> Figures {
        Figures {
            phase: match self.phase {
                Phase::Startup => "startup",
                Phase::Drain => "drain",
                Phase::Rest { .. } => "rest",
                Phase::Cruise if self.contended.is_some() => "contend",
                Phase::Cruise => "cruise",
                Phase::Probe => "probe",
            },
            rate: self.rate.best(),
            rest: self.rtt.rest(),
            spread: self.rtt.spread(),
            slack: self.slack(),
            loss_floor: self.loss_floor,
        }
    }

    /// Bytes a second that must leave for the path to be full: what arrives, and what it loses anyway.
    fn gross_rate(&self) -> f64 {
        self.rate.best() / (1.0 - self.loss_floor)
    }

    /// Bytes that the path holds without a queue.
    fn path_bytes(&self) -> f64 {
        self.gross_rate() * self.rtt.rest()
    }

    /// Seconds of queue that a cruise allows itself.
    fn slack(&self) -> f64 {
        let wanted = (SLACK_SPREADS * self.rtt.spread()).max(SLACK_SHARE * self.rtt.rest());
        // The spread itself is not queue: without it a window that fits the least mean round trip would leave gaps.
        (wanted.clamp(SLACK_MIN, SLACK_MAX) * self.slack_share)
            .max(self.rtt.spread().min(SLACK_MAX))
    }

    fn rest(&mut self, now: Instant) {
        self.phase = Phase::Drain;
        self.rest_began = now;
    }

    fn end_round(&mut self, now: Instant) {
        let seen = std::mem::take(&mut self.this);
        self.round += 1;
        self.round_began = now;
        let steady = matches!(self.phase, Phase::Cruise | Phase::Rest { round: 1 });
        self.rtt.end_round(now, steady, self.rests_queued > 0);
        match self.phase {
            Phase::Startup => self.startup_round(now, seen),
            Phase::Drain => {}
            Phase::Rest { round: 0 } => self.phase = Phase::Rest { round: 1 },
            Phase::Rest { .. } if self.queue() > self.others_queue() => {
                // The queue does not empty for us: it is somebody else's, and so are the losses. When that is no chance, compete.
                self.rested_at = now;
                self.rested_round = self.round;
                self.phase = Phase::Cruise;
                self.rests_queued += 1;
                if self.rests_queued >= CONTENDED_RESTS {
                    self.contended.get_or_insert(self.window);
                }
            }
            Phase::Rest { .. } => {
                self.contended = None;
                self.rests_queued = 0;
                self.rests = (self.rests + 1).min(FLOOR_RESTS);
                let step = (seen.loss() - self.loss_floor) / f64::from(self.rests);
                self.loss_floor = (self.loss_floor + step).min(FLOOR_MAX);
                self.rested_at = now;
                self.rested_round = self.round;
                self.phase = Phase::Cruise;
            }
            Phase::Cruise | Phase::Probe => self.cruise_round(now, seen),
        }
    }

    fn startup_round(&mut self, now: Instant, seen: Round) {
        let rate = self.rate.best();
        if rate > self.plateau_rate * 1.25 {
            self.plateau_rate = rate;
            self.plateau = 0;
        } else if seen.marked || seen.queued * 2 > seen.acknowledgements {
            self.plateau = PLATEAU;
        } else if !seen.starved {
            self.plateau += 1;
        }
        if self.plateau >= PLATEAU {
            self.rest(now);
        }
    }

    /// Seconds that the last round's packets waited.
    fn queue(&self) -> f64 {
        self.rtt.last_mean() - self.rtt.rest()
    }

    /// A longer wait than this, after a rest, is not of our making.
    fn others_queue(&self) -> f64 {
        let jitter = 4.0 * self.rtt.spread();
        let spare = 2.0 * (SPARE_PACKETS * self.mtu) as f64 / self.rate.best().max(1.0);
        let least = (self.rtt.rest() * OTHERS_QUEUE).max(SLACK_MIN);
        least.max(jitter).max(spare)
    }

    /// A round beside somebody who fills the queue: as TCP does it, but for losses that the path has anyway.
    fn contended_round(&mut self, window: u64, seen: Round) {
        let lossy = seen.marked || seen.loss() > self.loss_floor * 2.0 + CONTENDED_LOSS;
        let next = if lossy && self.round > self.backed_off_round + 1 {
            self.backed_off_round = self.round;
            (window as f64 * CONTENDED_BETA) as u64
        } else if lossy || seen.starved {
            window
        } else {
            window + (window / CONTENDED_GROWTH).max(self.mtu)
        };
        // What the others leave us when the queue is full, and not more than twice that.
        let most = (2.5 * self.path_bytes()) as u64;
        self.contended = Some(next.min(most).max(MIN_PACKETS * self.mtu));
    }

    fn cruise_round(&mut self, now: Instant, seen: Round) {
        let queue = self.queue();
        let slack = self.slack();
        if let Some(window) = self.contended {
            if queue < self.others_queue() / 2.0 {
                self.contended = None;
                self.rests_queued = 0;
            } else {
                self.contended_round(window, seen);
            }
        }
        self.loss_recent += (seen.loss() - self.loss_recent) * LOSS_GAIN;
        let lossy = self.loss_recent.min(seen.loss()) > self.loss_floor * 1.5 + LOSS_ABOVE_FLOOR;
        if seen.marked || (lossy && queue > slack / 2.0) {
            self.slack_share = (self.slack_share * 0.7).max(0.05);
            self.rate.expire(self.round, RATE_ROUNDS_CONGESTED);
            self.probe_wait = (self.probe_wait * 2).min(PROBE_WAIT_MAX);
        } else {
            self.slack_share = (self.slack_share + 0.03).min(1.0);
        }
        let rested_for = now.saturating_duration_since(self.rested_at);
        if rested_for >= REST_EVERY && self.round >= self.rested_round + REST_EVERY_ROUNDS {
            self.rest(now);
            return;
        }
        if self.phase == Phase::Probe {
            self.phase = Phase::Cruise;
            return;
        }
        // What a probe did to the rate is known a round after it.
        if self.probe_rate > 0.0 && self.round >= self.probe_round + 2 {
            let found = self.rate.best() > self.probe_rate * 1.1;
            self.probe_wait = if found {
                1
            } else {
                (self.probe_wait * 2).clamp(PROBE_WAIT_MIN, PROBE_WAIT_MAX)
            };
            self.probe_rate = 0.0;
        }
        let due = self.contended.is_none() && self.round >= self.probe_round + 2 + self.probe_wait;
        if due && !seen.starved && !lossy && !seen.marked && queue < slack / 4.0 {
            self.probe_round = self.round;
            self.probe_rate = self.rate.best();
            self.phase = Phase::Probe;
        }
    }

    /// Another connection's word about this path, once, as soon as a round trip confirms that it is this path.
    fn resume(&mut self) {
        if self.phase != Phase::Startup {
            return;
        }
        let Some(PathRecord { rate, rtt, .. }) = self.cell.take_remembered() else {
            return;
        };
        let rtt = rtt.as_secs_f64();
        let seen = self.rtt.last_sample();
        if !(0.5 * rtt..=1.5 * rtt + 0.01).contains(&seen) {
            return;
        }
        let bytes = (rate as f64 * rtt.min(seen) * RESUME_SHARE).min(RESUME_BYTES_MAX) as u64;
        if bytes > self.window {
            self.window = bytes;
            self.resumed = Some(bytes);
        }
    }

    fn set_window(&mut self, acked: u64) {
        let path = self.path_bytes();
        let target = match self.phase {
            Phase::Startup => {
                let rtt = &self.rtt;
                let allowed = rtt.rest() / 8.0 + 2.0 * rtt.spread() + 0.004;
                let queued = rtt.last_sample() > rtt.rest() + allowed;
                self.this.queued += u32::from(queued);
                self.this.acknowledgements += 1;
                let grown = if queued {
                    self.window
                } else {
                    self.window + (STARTUP_GROWTH * acked as f64) as u64
                };
                let bound = (STARTUP_GAIN * path) as u64 + INITIAL_PACKETS * self.mtu;
                grown.min(bound.max(self.window))
            }
            // As long as packets are sent whose round trip counts: a rest that was taken for too long must be able to shrink.
            Phase::Drain | Phase::Rest { round: 0 } => self.window_of(REST_GAIN, 0.0),
            Phase::Rest { .. } => self.window_of(1.0, 0.0),
            Phase::Cruise => self
                .contended
                .unwrap_or_else(|| self.window_of(1.0, self.slack())),
            Phase::Probe => self.window_of(PROBE_GAIN, self.slack()),
        };
        self.window = target.max(MIN_PACKETS * self.mtu);
    }

    /// So many times what the path holds, and a queue of `slack` seconds; never without room for a pair of packets whose
    /// acknowledgement waits for a third.
    fn window_of(&self, gain: f64, slack: f64) -> u64 {
        let bytes = gain * self.path_bytes() + slack * self.gross_rate();
        bytes as u64 + SPARE_PACKETS * self.mtu
    }
}

impl Controller for Delivery {
    fn on_sent(&mut self, _now: Instant, bytes: u64, _last_packet_number: u64) {
        self.cell.sent(bytes);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        _app_limited: bool,
        _rtt: &quinn_proto::RttEstimator,
    ) {
        let _ = now;
        self.rate.acknowledged(sent, bytes);
        self.this.acked += bytes;
        self.newest = self.newest.max(Some(sent));
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        let Some(sent) = self.newest.take() else {
            return;
        };
        let sample = now.saturating_duration_since(sent);
        // The newest packet of an acknowledgement only: older ones waited for it, after a loss of acknowledgements for long.
        self.rtt.sample(sample);
        if app_limited {
            self.rate.starved(now, sample);
            self.this.starved = true;
        }
        let span = self.rtt.rest().max(8.0 * self.rtt.spread());
        let rounds = RATE_ROUNDS;
        self.rate
            .sample(now, Duration::from_secs_f64(span), self.round, rounds);
        self.resume();
        if sent >= self.round_began {
            self.end_round(now);
        }
        if self.phase == Phase::Drain
            && in_flight <= self.window_of(REST_GAIN, 0.0)
            && now > self.rest_began
        {
            self.phase = Phase::Rest { round: 0 };
            self.rest_began = now;
            self.end_round_quietly(now);
        }
        // Not the cell's count: a path that a connection moves to has a controller of its own, which begins at nothing.
        let acked = self.rate.delivered() - self.delivered_then;
        self.delivered_then = self.rate.delivered();
        self.set_window(acked);
        self.cell
            .publish(self.rate.best(), self.rtt.rest(), self.rate.delivered());
        self.cell.answered(in_flight);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        // What was sent before a rest began says nothing about the path at rest.
        if !matches!(self.phase, Phase::Drain | Phase::Rest { .. }) || sent >= self.rest_began {
            self.this.lost += lost_bytes;
        }
        // quinn tells of a mark as of a loss of nothing.
        self.this.marked |= lost_bytes == 0;
        self.cell.lost(lost_bytes);
        if let Some(resumed) = self.resumed
            && self.phase == Phase::Startup
            && self.this.lost > resumed / 8
        {
            // The path is not what it was: go on from what does arrive.
            self.resumed = None;
            self.window = self.window_of(1.0, 0.0).min(self.window);
        }
        if is_persistent_congestion {
            // Everything of several round trips was lost: an outage, or another path. Begin again, with half of what there was.
            let before = self.path_bytes().min(RESUME_BYTES_MAX);
            self.rate.forget();
            self.rtt.forget(now);
            self.plateau = 0;
            self.plateau_rate = 0.0;
            self.contended = None;
            self.rests_queued = 0;
            self.phase = Phase::Startup;
            self.window = ((before * RESUME_SHARE) as u64).max(INITIAL_PACKETS / 2 * self.mtu);
            self.resumed = Some(self.window);
            self.round_began = now;
            self.this = Round::default();
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.window = self.window.max(MIN_PACKETS * self.mtu);
    }

    fn window(&self) -> u64 {
        self.window + self.cell.allowance()
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

impl Delivery {
    /// Begins a round without judging the one before.
    fn end_round_quietly(&mut self, now: Instant) {
        self.round += 1;
        self.round_began = now;
        self.this = Round::default();
        self.rtt.end_round(now, false, self.rests_queued > 0);
    }
}
