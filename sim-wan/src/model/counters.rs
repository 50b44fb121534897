//! Counters of one direction. They obey `offered + duplicated = delivered + dropped + in_transit`, in packets and in
//! bytes, from the pipe's start (a reset clears all but `in_transit`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Packets and bytes together; bytes are IP packet bytes (headers included).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// IP packet bytes.
    pub bytes: u64,
}

impl Tally {
    pub(super) fn add(&mut self, bytes: u64) {
        self.packets += 1;
        self.bytes += bytes;
    }

    pub(super) fn remove(&mut self, bytes: u64) {
        self.packets -= 1;
        self.bytes -= bytes;
    }
}

/// A snapshot of one direction's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionStats {
    /// Packets the sender put on the link, before any queue or loss.
    pub offered_packets: u64,
    /// Their bytes: what a sender's traffic costs, `wire_bytes` in reports.
    pub offered_bytes: u64,
    /// Packets handed to the receiver, duplicates included.
    pub delivered_packets: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Dropped because the queue was full.
    pub dropped_queue: Tally,
    /// Lost after the rate limiter.
    pub dropped_loss: Tally,
    /// Dropped because the link was cut or in a planned outage.
    pub dropped_outage: Tally,
    /// Extra copies made.
    pub duplicated: Tally,
    /// Packets held back.
    pub reordered_packets: u64,
    /// Still queued or in flight.
    pub in_transit: Tally,
    /// Longest wait for transmission to begin, in microseconds.
    pub queue_delay_max_us: u64,
    /// Mean wait, over packets that were transmitted, in microseconds.
    pub queue_delay_mean_us: u64,
}

impl DirectionStats {
    /// All packets dropped, whatever the cause.
    pub fn dropped_packets(&self) -> u64 {
        self.dropped_queue.packets + self.dropped_loss.packets + self.dropped_outage.packets
    }

    /// Whether the conservation law above holds.
    pub fn is_conserved(&self) -> bool {
        let dropped_bytes =
            self.dropped_queue.bytes + self.dropped_loss.bytes + self.dropped_outage.bytes;
        self.offered_packets + self.duplicated.packets
            == self.delivered_packets + self.dropped_packets() + self.in_transit.packets
            && self.offered_bytes + self.duplicated.bytes
                == self.delivered_bytes + dropped_bytes + self.in_transit.bytes
    }
}

/// The live counters.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) offered: Tally,
    pub(super) delivered: Tally,
    pub(super) dropped_queue: Tally,
    pub(super) dropped_loss: Tally,
    pub(super) dropped_outage: Tally,
    pub(super) duplicated: Tally,
    pub(super) reordered: u64,
    pub(super) in_transit: Tally,
    waits: u64,
    wait_sum: Duration,
    wait_max: Duration,
}

impl Counters {
    pub(super) fn waited(&mut self, wait: Duration) {
        self.waits += 1;
        self.wait_sum += wait;
        self.wait_max = self.wait_max.max(wait);
    }

    pub(super) fn reset(&mut self) {
        *self = Self {
            in_transit: self.in_transit,
            ..Self::default()
        };
    }

    pub(super) fn snapshot(&self) -> DirectionStats {
        let mean_ns = self.wait_sum.as_nanos() / u128::from(self.waits.max(1));
        DirectionStats {
            offered_packets: self.offered.packets,
            offered_bytes: self.offered.bytes,
            delivered_packets: self.delivered.packets,
            delivered_bytes: self.delivered.bytes,
            dropped_queue: self.dropped_queue,
            dropped_loss: self.dropped_loss,
            dropped_outage: self.dropped_outage,
            duplicated: self.duplicated,
            reordered_packets: self.reordered,
            in_transit: self.in_transit,
            queue_delay_max_us: self.wait_max.as_micros() as u64,
            queue_delay_mean_us: (mean_ns / 1000) as u64,
        }
    }
}
