//! One direction of a link; see the module above for what it promises.
//!
//! Invariant: `queue` is first in, first out, its head is the packet in transmission (`sending` is set exactly when
//! the queue is not empty), and each packet is counted once in `in_transit` until it is delivered or dropped.
//! Departures are worked off lazily, in time order, whenever a caller passes a later `now`.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::counters::{Counters, DirectionStats};
use super::jitter::Jitter;
use super::loss::LossProcess;
use super::rng::Rng;
use super::shape::Shape;

/// What a pipe carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Packets that may be lost, reordered and duplicated.
    Datagram,
    /// Pieces of a byte stream: an outage stalls them and nothing is lost. Ask [`Pipe::has_room`] before enqueueing.
    Stream,
}

/// What became of an offered packet at the entrance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is on its way (and may still be lost).
    Queued,
    /// The queue was full.
    DroppedQueue,
    /// The link was down.
    DroppedOutage,
}

struct Queued<P> {
    packet: P,
    bytes: u64,
    enqueued: Duration,
    sending_since: Duration,
}

struct InFlight<P> {
    arrives: Duration,
    serial: u64,
    packet: P,
    bytes: u64,
}

impl<P> InFlight<P> {
    fn key(&self) -> (Duration, u64) {
        (self.arrives, self.serial)
    }
}

impl<P> PartialEq for InFlight<P> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<P> Eq for InFlight<P> {}

impl<P> PartialOrd for InFlight<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> Ord for InFlight<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// One direction of a link.
pub struct Pipe<P> {
    shape: Shape,
    mode: Mode,
    queue_limit_bytes: u64,
    rng: Rng,
    jitter_seed: u64,
    loss: LossProcess,
    jitter: Jitter,
    queue: VecDeque<Queued<P>>,
    queue_bytes: u64,
    /// When the head of the queue has left; frozen as time still needed while a stream is cut.
    sending: Option<Duration>,
    /// Fraction of a nanosecond left over by the last transmission, in units of 1/rate: keeps the rate exact.
    carry: u64,
    air: BinaryHeap<Reverse<InFlight<P>>>,
    last_arrival: Duration,
    serial: u64,
    cut_at: Option<Duration>,
    schedule_start: Duration,
    counters: Counters,
}

impl<P: Clone> Pipe<P> {
    /// A direction that begins at `now` with an empty queue.
    pub fn new(now: Duration, shape: Shape, mode: Mode, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let jitter_seed = rng.next_u64();
        Self {
            queue_limit_bytes: shape.queue_bytes(),
            loss: LossProcess::new(shape.loss),
            jitter: Jitter::new(shape.jitter, jitter_seed),
            shape,
            mode,
            rng,
            jitter_seed,
            queue: VecDeque::new(),
            queue_bytes: 0,
            sending: None,
            carry: 0,
            air: BinaryHeap::new(),
            last_arrival: Duration::ZERO,
            serial: 0,
            cut_at: None,
            schedule_start: now,
            counters: Counters::default(),
        }
    }

    /// Offers a packet of `bytes` on the wire.
    pub fn enqueue(&mut self, now: Duration, packet: P, bytes: u64) -> Verdict {
        self.advance(now);
        self.counters.offered.add(bytes);
        if self.mode == Mode::Datagram {
            if !self.is_up(now) {
                self.counters.dropped_outage.add(bytes);
                return Verdict::DroppedOutage;
            }
            if self.queue_bytes + bytes > self.queue_limit_bytes {
                self.counters.dropped_queue.add(bytes);
                return Verdict::DroppedQueue;
            }
        }
        self.counters.in_transit.add(bytes);
        self.queue_bytes += bytes;
        self.queue.push_back(Queued {
            packet,
            bytes,
            enqueued: now,
            sending_since: now,
        });
        if self.queue.len() == 1 {
            self.carry = 0;
            self.start_sending(now);
        }
        Verdict::Queued
    }

    /// Whether a stream piece of `bytes` fits the queue and the link is up: the back-pressure of [`Mode::Stream`].
    pub fn has_room(&mut self, now: Duration, bytes: u64) -> bool {
        self.advance(now);
        self.is_up(now) && self.queue_bytes + bytes <= self.queue_limit_bytes
    }

    /// The next packet that has arrived by `now`, if any.
    pub fn poll(&mut self, now: Duration) -> Option<P> {
        self.advance(now);
        if self.mode == Mode::Stream && self.cut_at.is_some() {
            return None;
        }
        if self.air.peek()?.0.arrives > now {
            return None;
        }
        let Reverse(arrived) = self.air.pop()?;
        self.counters.in_transit.remove(arrived.bytes);
        self.counters.delivered.add(arrived.bytes);
        Some(arrived.packet)
    }

    /// No packet arrives before this instant; poll again then. None: nothing is on its way (or a stream is cut).
    pub fn next_event(&self) -> Option<Duration> {
        if self.mode == Mode::Stream && self.cut_at.is_some() {
            return None;
        }
        let shortest = self.shape.delay.saturating_sub(self.shape.jitter);
        let queued = self.sending.map(|end| end + shortest);
        let flying = self.air.peek().map(|next| next.0.arrives);
        match (queued, flying) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// When the queue will have shrunk: the end of the current transmission, for a stream that waits for room.
    pub fn next_departure(&self) -> Option<Duration> {
        if self.cut_at.is_some() {
            None
        } else {
            self.sending
        }
    }

    /// How long a packet offered now would wait until its transmission begins: what a queue monitor at the bottleneck sees.
    pub fn queue_delay(&mut self, now: Duration) -> Duration {
        self.advance(now);
        let (Some(end), Some(head)) = (self.sending, self.queue.front()) else {
            return Duration::ZERO;
        };
        let behind = u128::from(self.queue_bytes - head.bytes) * 8_000_000_000;
        end.saturating_sub(now)
            + Duration::from_nanos((behind / u128::from(self.shape.rate_bps)) as u64)
    }

    /// Takes the link down until [`Pipe::restore`]. Datagrams queued or in flight are dropped.
    pub fn cut(&mut self, now: Duration) {
        self.advance(now);
        if self.cut_at.is_some() {
            return;
        }
        self.cut_at = Some(now);
        if self.mode == Mode::Stream {
            return;
        }
        let queued = self.queue.drain(..).map(|q| q.bytes);
        let flying = self.air.drain().map(|f| f.0.bytes);
        for bytes in queued.chain(flying) {
            self.counters.in_transit.remove(bytes);
            self.counters.dropped_outage.add(bytes);
        }
        self.queue_bytes = 0;
        self.sending = None;
    }

    /// Ends a [`Pipe::cut`]. A planned outage is not affected.
    pub fn restore(&mut self, now: Duration) {
        self.advance(now);
        if let Some(cut_at) = self.cut_at.take()
            && let Some(end) = self.sending
        {
            self.sending = Some(now + end.saturating_sub(cut_at));
        }
    }

    /// Changes what the direction does from `now` on. Queued packets leave at the new rate; packets in flight keep
    /// their arrival; planned outages are counted from `now`.
    pub fn set_shape(&mut self, now: Duration, shape: Shape) {
        self.advance(now);
        if let Some(end) = self.sending {
            let from = self.cut_at.unwrap_or(now);
            let left = end.saturating_sub(from).as_nanos();
            let left = left * u128::from(self.shape.rate_bps) / u128::from(shape.rate_bps);
            self.sending = Some(from + Duration::from_nanos(left as u64));
        }
        self.carry = 0;
        self.queue_limit_bytes = shape.queue_bytes();
        self.loss = LossProcess::new(shape.loss);
        self.jitter = Jitter::new(shape.jitter, self.jitter_seed);
        self.schedule_start = now;
        self.shape = shape;
    }

    /// What the direction does at present.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Whether the link carries packets at `now`: neither cut nor in a planned outage.
    pub fn is_up(&self, now: Duration) -> bool {
        self.cut_at.is_none()
            && !self
                .shape
                .outage
                .is_some_and(|outage| outage.is_down(now.saturating_sub(self.schedule_start)))
    }

    /// Whether the link was cut by hand.
    pub fn is_cut(&self) -> bool {
        self.cut_at.is_some()
    }

    /// A stream pipe waits for this instant while in a planned outage.
    pub fn up_from(&self, now: Duration) -> Duration {
        match self.shape.outage {
            Some(outage) => {
                self.schedule_start + outage.up_from(now.saturating_sub(self.schedule_start))
            }
            None => now,
        }
    }

    /// Counters as of `now`.
    pub fn stats(&mut self, now: Duration) -> DirectionStats {
        self.advance(now);
        self.counters.snapshot()
    }

    /// Clears the counters; packets on their way are delivered and counted all the same.
    pub fn reset_stats(&mut self) {
        self.counters.reset();
    }

    fn advance(&mut self, now: Duration) {
        if self.cut_at.is_some() {
            return;
        }
        while let Some(end) = self.sending
            && end <= now
        {
            let Some(head) = self.queue.pop_front() else {
                break;
            };
            self.queue_bytes -= head.bytes;
            self.start_sending(end);
            self.depart(end, head);
        }
    }

    /// Begins the transmission of the queue's head at `at`, if there is one.
    fn start_sending(&mut self, at: Duration) {
        let start = if self.mode == Mode::Stream {
            self.up_from(at)
        } else {
            at
        };
        let Some(head) = self.queue.front_mut() else {
            self.sending = None;
            return;
        };
        head.sending_since = start;
        let work = u128::from(head.bytes) * 8_000_000_000 + u128::from(self.carry);
        let rate = u128::from(self.shape.rate_bps);
        self.carry = (work % rate) as u64;
        self.sending = Some(start + Duration::from_nanos((work / rate) as u64));
    }

    /// The last bit of `head` left at `at`: loss, then delay.
    fn depart(&mut self, at: Duration, head: Queued<P>) {
        self.counters
            .waited(head.sending_since.saturating_sub(head.enqueued));
        let offset = self.jitter.offset_ns(at);
        let delay_ns = (self.shape.delay.as_nanos() as i64)
            .saturating_add(offset)
            .max(0);
        let arrives = (at + Duration::from_nanos(delay_ns as u64)).max(self.last_arrival);
        if self.mode == Mode::Stream {
            let arrives = self.up_from(arrives);
            self.last_arrival = arrives;
            self.fly(arrives, head.packet, head.bytes);
            return;
        }
        // Every packet draws, so that one packet's fate does not shift with the schedule of outages.
        let lost = self.loss.draw(&mut self.rng);
        let held = self
            .shape
            .reorder
            .filter(|reorder| self.rng.chance(reorder.p));
        let twice = self.rng.chance(self.shape.duplicate);
        let arrives = match held {
            Some(reorder) => arrives + reorder.delay,
            None => arrives,
        };
        let down = self.shape.outage.is_some_and(|outage| {
            let since = |t: Duration| t.saturating_sub(self.schedule_start);
            outage.overlaps(since(at), since(arrives))
        });
        if down || lost {
            self.counters.in_transit.remove(head.bytes);
            let cause = if down {
                &mut self.counters.dropped_outage
            } else {
                &mut self.counters.dropped_loss
            };
            cause.add(head.bytes);
            return;
        }
        if held.is_some() {
            self.counters.reordered += 1;
        } else {
            self.last_arrival = arrives;
        }
        if twice {
            self.counters.duplicated.add(head.bytes);
            self.counters.in_transit.add(head.bytes);
            self.fly(arrives, head.packet.clone(), head.bytes);
        }
        self.fly(arrives, head.packet, head.bytes);
    }

    fn fly(&mut self, arrives: Duration, packet: P, bytes: u64) {
        self.serial += 1;
        self.air.push(Reverse(InFlight {
            arrives,
            serial: self.serial,
            packet,
            bytes,
        }));
    }
}
