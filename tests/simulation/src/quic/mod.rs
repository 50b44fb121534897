//! The carrier for fewer worlds: real QUIC connections (quinn-proto) under the product's settings, over a line of packets.
//!
//! ```text
//!   Site ─ messages ─► branch: an endpoint per attempt ─ packets ─► Wire ─ packets ─► datacenter: an endpoint per life ─► Master
//!                      LinkEnd: frames on streams       both ways: loss, order,       LinkEnd per connection, of which
//!                                                       twice, queue, cuts            the dead ones are found out later
//! ```
//!
//! Handshake, loss detection, retransmission, flow control, pacing, congestion control, migration, idle timeouts and stateless resets run
//! for real. A process that dies takes its connections along without a word. No end is told anything that it could not know from
//! packets and its clock.

mod branch;
mod datacenter;
mod frames;
mod link;
mod settings;
mod watch;
mod wire;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use crash::Rng;
use dedup_protocol::wire::{Message, Urgency};
use dedup_transport::link::Class;
use quinn_proto::{ConnectionError, TransportErrorCode};

use crate::carrier::{Arrival, Carrier, End};
use crate::line::Way;
use crate::tally::{QuicTally, Tally};
use branch::Branch;
use datacenter::Datacenter;
use settings::Settings;
use wire::{Datagram, Wire};

/// The least that time goes on by: a line's next event may be a lower bound that is already past.
const STEP: Duration = Duration::from_micros(1);
/// Where branches find the datacenter, and where it finds them.
const DATACENTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4433);
const BRANCH: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const BOTH: [Way; 2] = [Way::Up, Way::Down];

/// See the module.
pub(crate) struct Quic {
    around: Around,
    branch: Branch,
    datacenter: Datacenter,
    bytes: u64,
}

/// What is around the two ends, and what they have in common.
struct Around {
    rng: Rng,
    settings: Settings,
    /// Where virtual time begins, for those who want an [`Instant`].
    base: Instant,
    now: Duration,
    wire: Wire,
    arrivals: VecDeque<Arrival>,
    tally: QuicTally,
}

impl Around {
    fn at(&self) -> Instant {
        self.base + self.now
    }

    fn put(&mut self, way: Way, branch: SocketAddr, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.wire.put(self.now, way, Datagram { branch, bytes });
    }

    /// Nothing gets through for a random time.
    fn silence(&mut self, from_ms: u64, below_ms: u64, ways: &[Way]) {
        let length = from_ms + self.rng.below(below_ms - from_ms);
        self.wire.cut(self.now, Duration::from_millis(length), ways);
    }

    /// Why a link ended that its end did not give up.
    fn note(&mut self, reason: &ConnectionError) {
        match reason {
            ConnectionError::TimedOut => self.tally.timeouts += 1,
            ConnectionError::Reset => self.tally.resets += 1,
            ConnectionError::ApplicationClosed(_) => self.tally.closed += 1,
            // The same, during a handshake.
            ConnectionError::ConnectionClosed(close)
                if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
            {
                self.tally.closed += 1;
            }
            // Both ends are honest and speak the same version: anything else is a defect, ours or QUIC's.
            other => panic!("a link ended by {other}"),
        }
    }
}

impl Quic {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut quic = Self {
            around: Around {
                settings: Settings::new(&mut rng),
                base: Instant::now(),
                now: Duration::ZERO,
                wire: Wire::new(&mut rng),
                rng,
                arrivals: VecDeque::new(),
                tally: QuicTally::default(),
            },
            branch: Branch::new(),
            datacenter: Datacenter::new(),
            bytes: 0,
        };
        quic.datacenter.start(&mut quic.around);
        quic
    }

    /// Does all that is due now.
    fn drive(&mut self) {
        while let Some((way, datagram)) = self.around.wire.poll(self.around.now) {
            match way {
                Way::Up => self.datacenter.receive(&mut self.around, datagram),
                Way::Down => self.branch.receive(&mut self.around, datagram),
            }
        }
        self.branch.drive(&mut self.around);
        self.datacenter.drive(&mut self.around);
    }

    fn next_event(&self) -> Option<Duration> {
        [
            self.branch.due(),
            self.datacenter.due(),
            self.around.wire.next_event(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

impl Carrier for Quic {
    fn dial(&mut self) {
        self.branch.dial(&mut self.around);
    }

    fn send_up(&mut self, stream: u64, message: &Message) {
        let payload = message.encode();
        self.bytes += payload.len() as u64;
        let is_control = matches!(message, Message::Hello(_));
        self.branch
            .send(stream, class_of(message), &payload, is_control);
    }

    fn send_down(&mut self, link: u64, stream: u64, message: Option<&Message>) {
        let payload = message.map(Message::encode);
        self.bytes += payload.as_ref().map_or(0, |p| p.len() as u64);
        self.datacenter.send(link, stream, payload.as_deref());
    }

    fn died(&mut self, end: End) {
        match end {
            End::Branch => self.branch.die(),
            End::Datacenter => self.datacenter.die(),
        }
        self.around.arrivals.retain(|arrival| arrival.end() != end);
    }

    fn started(&mut self, end: End) {
        match end {
            End::Branch => self.branch.is_alive = true,
            End::Datacenter => self.datacenter.start(&mut self.around),
        }
    }

    fn cut(&mut self) {
        let around = &mut self.around;
        match around.rng.below(8) {
            // Shorter than the idle timeout, and about as long.
            0 => around.silence(0, 5_000, &BOTH),
            1 => around.silence(12_000, 30_000, &BOTH),
            2 => around.silence(0, 30_000, &[Way::Up]),
            3 => around.silence(0, 30_000, &[Way::Down]),
            4 => around.wire.change(around.now, &mut around.rng),
            5 => self.branch.rebind(around),
            6 => self.branch.hang_up(around),
            _ => self.datacenter.hang_up(around),
        }
    }

    fn outage(&mut self) {
        self.around.silence(0, 60_000, &BOTH);
    }

    fn advance(&mut self, until_ms: u64) -> Option<(u64, Arrival)> {
        let until = Duration::from_millis(until_ms);
        loop {
            if let Some(arrival) = self.around.arrivals.pop_front() {
                return Some((self.around.now.as_millis() as u64, arrival));
            }
            self.drive();
            let now = self.around.now;
            if self.around.arrivals.is_empty() {
                if now >= until {
                    return None;
                }
                let next = self.next_event().unwrap_or(until);
                self.around.now = next.max(now + STEP).min(until);
            }
        }
    }

    fn count(&mut self, tally: &mut Tally) {
        self.around
            .wire
            .count(self.around.now, &mut self.around.tally);
        tally.line_bytes = self.bytes;
        tally.quic = self.around.tally;
    }
}

/// As the branch server opens its streams, and as the datacenter answers on them.
fn class_of(message: &Message) -> Class {
    match message {
        Message::Hello(_) => Class::Demand,
        Message::GetChunks(request) => class_of_chunks(request.urgency),
        _ => Class::Boot,
    }
}

fn class_of_chunks(urgency: Urgency) -> Class {
    match urgency {
        Urgency::Demand => Class::Demand,
        Urgency::Boot => Class::Boot,
        Urgency::Fill => Class::Fill,
    }
}
