//! The line between the two ends, message by message.
//!
//! It delivers the messages of a stream in order and those of different streams in any order, as QUIC does; a lost packet is a
//! round trip more. What it does not deliver is lost with the whole connection: there is no silent loss inside a stream.

use std::collections::HashMap;

use crash::Rng;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    Up,
    Down,
}

/// See the module.
#[derive(Debug)]
pub struct Line {
    delay_ms: u64,
    jitter_ms: u64,
    /// One message in this many meets a lost packet.
    loss_one_in: u64,
    bytes_per_ms: u64,
    /// When the sender of a direction is done with what it was given.
    busy_until_ms: HashMap<Way, u64>,
    /// When the newest message of a stream arrives: the next one is not earlier.
    last_arrival_ms: HashMap<(u64, u64, Way), u64>,
}

impl Line {
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            delay_ms: 1 + rng.below(350),
            jitter_ms: 1 + rng.below(200),
            loss_one_in: 2 + rng.below(100),
            bytes_per_ms: 50 + rng.below(10_000),
            busy_until_ms: HashMap::new(),
            last_arrival_ms: HashMap::new(),
        }
    }

    /// Takes a message; says when the sender may send the next, and when this one arrives.
    pub fn carry(
        &mut self,
        rng: &mut Rng,
        now_ms: u64,
        (connection, stream, way): (u64, u64, Way),
        bytes: usize,
    ) -> (u64, u64) {
        let busy = self.busy_until_ms.entry(way).or_default();
        let sent = now_ms.max(*busy) + bytes as u64 / self.bytes_per_ms;
        *busy = sent;
        let mut arrival = sent + self.delay_ms + rng.below(self.jitter_ms);
        while rng.one_in(self.loss_one_in) {
            arrival += 2 * self.delay_ms + rng.below(self.jitter_ms);
        }
        let last = self
            .last_arrival_ms
            .entry((connection, stream, way))
            .or_default();
        arrival = arrival.max(*last);
        *last = arrival;
        (sent, arrival)
    }

    /// The connection is gone, and with it what was on the way.
    pub fn cut(&mut self) {
        self.busy_until_ms.clear();
        self.last_arrival_ms.clear();
    }

    /// How long a handshake takes.
    pub fn handshake_ms(&self) -> u64 {
        4 * self.delay_ms
    }
}
