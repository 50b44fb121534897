//! The line of a world, packet by packet: sim-wan's model in both directions, with a shape, cuts and a largest packet of its own.
//!
//! It knows the branch's address only, because that is the one that changes: each attempt of the branch has a port of its own, and a
//! NAT may give it another.

use std::net::SocketAddr;
use std::time::Duration;

use crash::Rng;
use sim_wan::model::{Loss, Mode, Pipe, Reorder, Shape};

use crate::line::Way;
use crate::tally::QuicTally;

/// IPv4 and UDP headers: what a line carries besides the UDP payload.
const HEADER_BYTES: usize = 28;
/// The least that QUIC must be able to send (RFC 9000 section 14), with headers.
const PACKET_BYTES_LEAST: u64 = 1228;
const PACKET_BYTES_USUAL: u64 = 1500;

/// A UDP payload, with the branch's end of its path.
#[derive(Debug, Clone)]
pub(super) struct Datagram {
    pub(super) branch: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// See the module.
pub(super) struct Wire {
    up: Pipe<Datagram>,
    down: Pipe<Datagram>,
    packet_bytes_max: usize,
    restored_at: Option<Duration>,
    oversized: u64,
}

impl Wire {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let (up, down) = shapes(rng);
        let mut pipe = |shape: Shape| Pipe::new(Duration::ZERO, shape, Mode::Datagram, rng.bits());
        let (up, down) = (pipe(up), pipe(down));
        Self {
            up,
            down,
            packet_bytes_max: packet_bytes_max(rng),
            restored_at: None,
            oversized: 0,
        }
    }

    pub(super) fn put(&mut self, now: Duration, way: Way, datagram: Datagram) {
        let bytes = datagram.bytes.len() + HEADER_BYTES;
        if bytes > self.packet_bytes_max {
            // A black hole: nobody is told that it was too large.
            self.oversized += 1;
            return;
        }
        let pipe = match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        };
        pipe.enqueue(now, datagram, bytes as u64);
    }

    /// The next packet that has arrived.
    pub(super) fn poll(&mut self, now: Duration) -> Option<(Way, Datagram)> {
        if self.restored_at.is_some_and(|at| at <= now) {
            self.restored_at = None;
            self.up.restore(now);
            self.down.restore(now);
        }
        let up = self.up.poll(now).map(|datagram| (Way::Up, datagram));
        up.or_else(|| Some((Way::Down, self.down.poll(now)?)))
    }

    /// Nothing happens before this.
    pub(super) fn next_event(&self) -> Option<Duration> {
        [
            self.up.next_event(),
            self.down.next_event(),
            self.restored_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Nothing gets through for `length`: in both directions, or in one, which an end cannot tell from silence.
    pub(super) fn cut(&mut self, now: Duration, length: Duration, ways: &[Way]) {
        for way in ways {
            match way {
                Way::Up => self.up.cut(now),
                Way::Down => self.down.cut(now),
            }
        }
        self.restored_at = self.restored_at.max(Some(now + length));
    }

    /// From now on it is another line: a backup took over, or somebody else shares it.
    pub(super) fn change(&mut self, now: Duration, rng: &mut Rng) {
        let (up, down) = shapes(rng);
        self.up.set_shape(now, up);
        self.down.set_shape(now, down);
        self.packet_bytes_max = packet_bytes_max(rng);
    }

    pub(super) fn count(&mut self, now: Duration, tally: &mut QuicTally) {
        for pipe in [&mut self.up, &mut self.down] {
            let stats = pipe.stats(now);
            assert!(stats.is_conserved(), "{stats:?}");
            tally.packets += stats.offered_packets;
            tally.lost += stats.dropped_loss.packets;
            tally.overflowed += stats.dropped_queue.packets;
            tally.cut_off += stats.dropped_outage.packets;
            tally.reordered += stats.reordered_packets;
            tally.duplicated += stats.duplicated.packets;
        }
        tally.packets += self.oversized;
        tally.oversized += self.oversized;
    }
}

/// One line in three carries less than Ethernet does: tunnels, mobile networks.
fn packet_bytes_max(rng: &mut Rng) -> usize {
    let bytes = if rng.one_in(3) {
        PACKET_BYTES_LEAST + rng.below(PACKET_BYTES_USUAL - PACKET_BYTES_LEAST)
    } else {
        PACKET_BYTES_USUAL
    };
    bytes as usize
}

/// From a bad mobile line to a good fixed one: 250 kbit/s to 64 Mbit/s, a round trip of 2 to 700 ms, up to 8 % lost, singly or in bursts.
fn shapes(rng: &mut Rng) -> (Shape, Shape) {
    let down_bps = (250_000 + rng.below(250_000)) << rng.below(8);
    let up_bps = (down_bps / (1 + rng.below(10))).max(100_000);
    let delay = Duration::from_millis(1 + rng.below(350));
    (shape(rng, up_bps, delay), shape(rng, down_bps, delay))
}

fn shape(rng: &mut Rng, rate_bps: u64, delay: Duration) -> Shape {
    let queue = Duration::from_millis(20 + rng.below(600));
    let mut shape = Shape::clean(rate_bps, delay, queue);
    shape.jitter = delay.mul_f64(share(rng, 500));
    shape.loss = match rng.below(6) {
        0 => Loss::None,
        1..=3 => Loss::Random { p: share(rng, 80) },
        _ => Loss::Bursts {
            p: share(rng, 40),
            mean_packets: 1.0 + rng.below(20) as f64,
        },
    };
    if rng.one_in(2) {
        shape.reorder = Some(Reorder {
            p: share(rng, 60),
            delay: Duration::from_millis(1 + rng.below(80)),
        });
    }
    if rng.one_in(2) {
        shape.duplicate = share(rng, 40);
    }
    shape
}

/// Below `per_mille` thousandths.
fn share(rng: &mut Rng, per_mille: u64) -> f64 {
    rng.below(per_mille * 1000) as f64 / 1e6
}
