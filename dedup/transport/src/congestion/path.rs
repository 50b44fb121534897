//! What is known about a path: shared by the controller that measures it, the link that shows it, and the memory that keeps it.
//!
//! A controller is born with its connection, before a listening end knows who dials, and dies with it. So what an earlier connection
//! learned reaches it through [`PathCell`], and what it learns leaves the same way. Nothing here decides anything.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bytes of a record: version, MTU, network, rate, round trip, time.
const RECORD_BYTES: usize = 1 + 2 + 9 + 8 + 4 + 8;
/// First byte of a record.
const RECORD_VERSION: u8 = 1;
/// Older figures are worth nothing: lines are upgraded and moved.
const AGE_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Within this age a remembered rate is taken whole; beyond, it halves once per [`HALF_LIFE`].
const FRESH: Duration = Duration::from_secs(600);
const HALF_LIFE: Duration = Duration::from_secs(86_400);
/// No memory is believed beyond 1.25 GB/s (10 Gbit/s): a damaged record must not open the flood gates.
const RATE_MAX: u64 = 1_250_000_000;
/// Nor beyond a round trip of ten seconds.
const RTT_MAX: Duration = Duration::from_secs(10);

/// The last good figures of a path, as remembered between connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathRecord {
    /// Bytes a second that the path delivered.
    pub rate: u64,
    /// Round trip with an empty queue.
    pub rtt: Duration,
    /// Largest UDP payload that went through, in bytes.
    pub mtu: u16,
    /// The peer's network: its IPv4 address less 8 bits, its IPv6 address less 64. A branch that moved has another line.
    pub network: Network,
    /// When it was measured, in seconds of Unix time.
    pub measured_unix_s: u64,
}

/// A peer's network, as far as its address tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    family: u8,
    prefix: [u8; 8],
}

impl Network {
    /// The network that an address is part of.
    pub fn of(address: IpAddr) -> Self {
        let mut prefix = [0; 8];
        match address.to_canonical() {
            IpAddr::V4(address) => {
                prefix[..3].copy_from_slice(&address.octets()[..3]);
                Self { family: 4, prefix }
            }
            IpAddr::V6(address) => {
                prefix.copy_from_slice(&address.octets()[..8]);
                Self { family: 6, prefix }
            }
        }
    }
}

impl PathRecord {
    /// The stored form: version 1, MTU, address family, prefix, rate in bytes a second, round trip in microseconds, Unix time in
    /// seconds; all little-endian.
    pub fn to_bytes(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let rtt_us = u32::try_from(self.rtt.as_micros()).unwrap_or(u32::MAX);
        bytes[0] = RECORD_VERSION;
        bytes[1..3].copy_from_slice(&self.mtu.to_le_bytes());
        bytes[3] = self.network.family;
        bytes[4..12].copy_from_slice(&self.network.prefix);
        bytes[12..20].copy_from_slice(&self.rate.to_le_bytes());
        bytes[20..24].copy_from_slice(&rtt_us.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.measured_unix_s.to_le_bytes());
        bytes
    }

    /// Reads the stored form; `None` for any other version or length, and for figures that no path has.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().ok()?;
        let u64_at = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(raw)
        };
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&bytes[4..12]);
        let rtt_us = u32::from_le_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]);
        let record = Self {
            rate: u64_at(12),
            rtt: Duration::from_micros(rtt_us.into()),
            mtu: u16::from_le_bytes([bytes[1], bytes[2]]),
            network: Network {
                family: bytes[3],
                prefix,
            },
            measured_unix_s: u64_at(24),
        };
        let sane = bytes[0] == RECORD_VERSION
            && matches!(record.network.family, 4 | 6)
            && (1..=RATE_MAX).contains(&record.rate)
            && !record.rtt.is_zero()
            && record.rtt <= RTT_MAX;
        sane.then_some(record)
    }

    /// What is left of these figures at `now`, towards a peer at `address`: `None` when they are too old, from the future or of
    /// another network; else with a rate that has decayed with age.
    pub fn at(&self, now_unix_s: u64, address: IpAddr) -> Option<Self> {
        let age = Duration::from_secs(now_unix_s.checked_sub(self.measured_unix_s)?);
        if age > AGE_MAX || self.network != Network::of(address) {
            return None;
        }
        let stale = age.saturating_sub(FRESH).as_secs_f64() / HALF_LIFE.as_secs_f64();
        let rate = self.rate as f64 * 0.5f64.powf(stale);
        Some(Self {
            rate: (rate as u64).max(1),
            ..*self
        })
    }
}

/// Keeps the figures of paths between connections, and between runs of the process where it is durable.
///
/// A datacenter's key is the branch's id, a branch's the datacenter's address. Implementations are called from the network's
/// threads, a few times per connection and minute, and must not block for long; failures are theirs to log.
pub trait PathMemory: Send + Sync {
    /// The record under `key`.
    fn load(&self, key: &[u8]) -> Option<PathRecord>;
    /// Replaces the record under `key`.
    fn store(&self, key: &[u8], record: &PathRecord);
}

/// Where a controller and its link meet. Figures are single words, each true by itself; they need not fit each other to the
/// microsecond.
#[derive(Default)]
pub struct PathCell {
    rate: AtomicU64,
    rest_us: AtomicU64,
    delivered: AtomicU64,
    in_flight: AtomicU64,
    allowance: AtomicU64,
    remembered: Mutex<Option<PathRecord>>,
}

impl PathCell {
    /// Tells the controller what an earlier connection over this path measured. Only the first round trips make use of it.
    pub fn remember(&self, record: PathRecord) {
        *self.lock() = Some(record);
    }

    /// Once: it is of the path that the connection began on, not of one that it may move to.
    pub(super) fn take_remembered(&self) -> Option<PathRecord> {
        self.lock().take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<PathRecord>> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self, rate: f64, rest: f64, delivered: u64) {
        self.rate.store(rate as u64, Ordering::Relaxed);
        self.rest_us.store((rest * 1e6) as u64, Ordering::Relaxed);
        self.delivered.store(delivered, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.in_flight.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn lost(&self, bytes: u64) {
        let less = |in_flight: u64| Some(in_flight.saturating_sub(bytes));
        let _ = self
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Something came back: this much is still under way, and no knocking is due.
    pub(super) fn answered(&self, in_flight: u64) {
        self.in_flight.store(in_flight, Ordering::Relaxed);
        self.allowance.store(0, Ordering::Relaxed);
    }

    pub(super) fn allowance(&self) -> u64 {
        self.allowance.load(Ordering::Relaxed)
    }

    /// Bytes a second that the path delivers to the peer; 0 before it is known.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// Round trip with an empty queue; zero before it is known.
    pub fn rest(&self) -> Duration {
        Duration::from_micros(self.rest_us.load(Ordering::Relaxed))
    }

    /// Bytes acknowledged since the connection began to use this path.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for PathCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PathCell")
            .field("rate", &self.rate())
            .field("rest", &self.rest())
            .finish_non_exhaustive()
    }
}

/// Sees an outage and knocks until it is over.
///
/// QUIC's own probes back off by doubling (RFC 9002 section 6.2): after an outage of ten seconds the next may be six seconds away,
/// while the line is up and users wait. While bytes are under way and nothing at all comes back, the knocker lets two packets a
/// second through, whatever the window says. Time is an argument.
#[derive(Debug, Default)]
pub struct Knocker {
    delivered: u64,
    silent_for: u32,
}

impl Knocker {
    /// Between two looks.
    pub const EVERY: Duration = Duration::from_millis(500);
    /// Looks without an answer before the first knock: longer than any round trip that is not an outage.
    const PATIENCE: u32 = 4;
    /// Knocks without an answer, in packets: with an idle timeout of ten minutes at most, the window stays a window.
    const PACKETS_MAX: u64 = 64;

    /// Takes a look. True: the window has grown by a packet of `mtu` bytes, and the connection should be woken to use it.
    pub fn look(&mut self, cell: &PathCell, mtu: u16) -> bool {
        let delivered = cell.delivered.load(Ordering::Relaxed);
        if delivered != self.delivered || cell.in_flight.load(Ordering::Relaxed) == 0 {
            self.delivered = delivered;
            self.silent_for = 0;
            return false;
        }
        self.silent_for += 1;
        let mtu = u64::from(mtu);
        if self.silent_for < Self::PATIENCE || cell.allowance() >= Self::PACKETS_MAX * mtu {
            return false;
        }
        cell.allowance.fetch_add(mtu, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    fn record() -> PathRecord {
        PathRecord {
            rate: 2_500_000,
            rtt: Duration::from_millis(612),
            mtu: 1452,
            network: Network::of(HERE),
            measured_unix_s: 1_000_000,
        }
    }

    #[test]
    fn a_record_survives_its_stored_form_and_nothing_else_is_one() {
        let bytes = record().to_bytes();
        assert_eq!(PathRecord::from_bytes(&bytes), Some(record()));
        assert_eq!(PathRecord::from_bytes(&bytes[1..]), None);
        for (at, value) in [(0, 2), (3, 5), (19, 0xff)] {
            let mut bad = bytes;
            bad[at] = value;
            assert_eq!(PathRecord::from_bytes(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn figures_decay_and_belong_to_one_network() {
        let record = record();
        let at = |age: u64, address: &str| record.at(1_000_000 + age, address.parse().unwrap());
        assert_eq!(at(60, "192.0.2.99").unwrap().rate, 2_500_000);
        let day = at(600 + 86_400, "192.0.2.7").unwrap().rate;
        assert_eq!(day, 1_250_000);
        assert_eq!(at(8 * 86_400, "192.0.2.7"), None, "too old");
        assert_eq!(at(60, "192.0.3.7"), None, "another network");
        assert_eq!(
            record.at(999_999, "192.0.2.7".parse().unwrap()),
            None,
            "from the future"
        );
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(Network::of(mapped), record.network);
    }

    #[test]
    fn a_knock_comes_only_when_something_is_under_way_and_nothing_comes_back() {
        let cell = PathCell::default();
        let mut knocker = Knocker::default();
        for _ in 0..10 {
            assert!(!knocker.look(&cell, 1200), "idle");
        }
        cell.sent(5000);
        cell.publish(1.0, 0.1, 2500);
        let looks: Vec<bool> = (0..6).map(|_| knocker.look(&cell, 1200)).collect();
        assert_eq!(looks, [false, false, false, false, true, true]);
        assert_eq!(cell.allowance(), 2400);
        cell.publish(1.0, 0.1, 3700);
        cell.answered(1300);
        assert!(!knocker.look(&cell, 1200), "an answer");
        assert_eq!(cell.allowance(), 0);
    }
}
