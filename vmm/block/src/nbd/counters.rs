//! What an export has done so far, for metrics and for people who ask why a desktop is slow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::wire::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES,
};

/// Buckets of the latency histograms: bucket `n` counts requests that took less than 2^n microseconds (and at least
/// half of that); the last one counts everything slower.
pub const LATENCY_BUCKETS: usize = 26;

/// Counters of one export. They only grow; read them with [`Counters::snapshot`].
#[derive(Default)]
pub(crate) struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    trims: AtomicU64,
    zeroes: AtomicU64,
    status_queries: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    misses: AtomicU64,
    errors: AtomicU64,
    read_latency: [AtomicU64; LATENCY_BUCKETS],
    write_latency: [AtomicU64; LATENCY_BUCKETS],
}

/// A reading of an export's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// READ requests, including failed ones; likewise below.
    pub reads: u64,
    /// WRITE requests.
    pub writes: u64,
    /// FLUSH requests. A write with FUA counts as a write only.
    pub flushes: u64,
    /// TRIM requests.
    pub trims: u64,
    /// WRITE_ZEROES requests.
    pub zeroes: u64,
    /// BLOCK_STATUS requests.
    pub status_queries: u64,
    /// Bytes that READ requests asked for.
    pub read_bytes: u64,
    /// Bytes that WRITE requests brought (not those of WRITE_ZEROES).
    pub written_bytes: u64,
    /// READ requests that could not be served without waiting.
    pub misses: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// READ requests by the time from receipt to reply, see [`LATENCY_BUCKETS`].
    pub read_latency: [u64; LATENCY_BUCKETS],
    /// WRITE requests by time, likewise.
    pub write_latency: [u64; LATENCY_BUCKETS],
}

impl Counters {
    pub(crate) fn count(&self, command: u16, len: u32, took: Duration) {
        let counter = match command {
            CMD_READ => &self.reads,
            CMD_WRITE => &self.writes,
            CMD_FLUSH => &self.flushes,
            CMD_TRIM => &self.trims,
            CMD_WRITE_ZEROES => &self.zeroes,
            CMD_BLOCK_STATUS => &self.status_queries,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = ((64 - micros.leading_zeros()) as usize).min(LATENCY_BUCKETS - 1);
        match command {
            CMD_READ => {
                self.read_bytes.fetch_add(u64::from(len), Ordering::Relaxed);
                self.read_latency[bucket].fetch_add(1, Ordering::Relaxed);
            }
            CMD_WRITE => {
                self.written_bytes
                    .fetch_add(u64::from(len), Ordering::Relaxed);
                self.write_latency[bucket].fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Bytes of a READ that were answered ahead of the rest of it, which [`Counters::count`] counts as the request.
    pub(crate) fn count_part(&self, len: u32) {
        self.read_bytes.fetch_add(u64::from(len), Ordering::Relaxed);
    }

    pub(crate) fn count_miss(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many there are now.
    pub(crate) fn count_error(&self) -> u64 {
        self.errors.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn snapshot(&self) -> CounterSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CounterSnapshot {
            reads: get(&self.reads),
            writes: get(&self.writes),
            flushes: get(&self.flushes),
            trims: get(&self.trims),
            zeroes: get(&self.zeroes),
            status_queries: get(&self.status_queries),
            read_bytes: get(&self.read_bytes),
            written_bytes: get(&self.written_bytes),
            misses: get(&self.misses),
            errors: get(&self.errors),
            read_latency: std::array::from_fn(|bucket| get(&self.read_latency[bucket])),
            write_latency: std::array::from_fn(|bucket| get(&self.write_latency[bucket])),
        }
    }
}

/// Whether a command is one that the protocol defines and this server performs on a device.
pub(crate) const fn is_known(command: u16) -> bool {
    matches!(
        command,
        CMD_READ
            | CMD_WRITE
            | CMD_FLUSH
            | CMD_TRIM
            | CMD_CACHE
            | CMD_WRITE_ZEROES
            | CMD_BLOCK_STATUS
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::{Counters, LATENCY_BUCKETS};
    use crate::nbd::wire::{CMD_READ, CMD_WRITE};
    use std::time::Duration;

    #[test]
    fn latencies_fall_into_powers_of_two() {
        let counters = Counters::default();
        for micros in [0, 1, 3, 1 << 40] {
            counters.count(CMD_READ, 512, Duration::from_micros(micros));
        }
        counters.count(CMD_WRITE, 100, Duration::from_micros(4));
        let seen = counters.snapshot();
        assert_eq!(
            (seen.reads, seen.read_bytes, seen.writes, seen.written_bytes),
            (4, 2048, 1, 100)
        );
        assert_eq!(&seen.read_latency[..3], [1, 1, 1]);
        assert_eq!(seen.read_latency[LATENCY_BUCKETS - 1], 1);
        assert_eq!(seen.write_latency[3], 1);
    }
}
