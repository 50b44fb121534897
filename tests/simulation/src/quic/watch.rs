//! What the product's link does while it is up, twice a second: it fits the send buffer to the path and knocks during an outage.
//!
//! The numbers are those of `dedup/transport/src/link/watch.rs`.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use dedup_transport::congestion::{Knocker, Network, PathCell, PathRecord, SendWindow};
use quinn_proto::Connection;

use crate::keys::BEGIN_UNIX_S;

/// How often a young link is looked at, and how many times.
const FIRST_LOOKS_EVERY: Duration = Duration::from_millis(50);
const FIRST_LOOKS: u32 = 40;
/// Figures of less traffic than this are none.
const STORE_BYTES_MIN: u64 = 1 << 20;

/// See the module.
pub(super) struct Watch {
    path: Arc<PathCell>,
    knocker: Knocker,
    send_window: SendWindow,
    looks: u32,
    next_look: Duration,
}

impl Watch {
    pub(super) fn new(path: Arc<PathCell>, window_bytes_max: u64) -> Self {
        Self {
            path,
            knocker: Knocker::default(),
            send_window: SendWindow::new(window_bytes_max),
            looks: 0,
            next_look: Duration::MAX,
        }
    }

    /// The link is up.
    pub(super) fn begin(&mut self, now: Duration) {
        self.next_look = now + FIRST_LOOKS_EVERY;
    }

    pub(super) fn next_look(&self) -> Duration {
        self.next_look
    }

    /// Whoever calls this drives the connection afterwards, which is being woken.
    pub(super) fn look(&mut self, quic: &mut Connection, now: Duration) {
        let path = quic.stats().path;
        if self.send_window.fit(path.cwnd, self.path.delivered()) {
            quic.set_send_window(self.send_window.bytes());
        }
        self.looks += 1;
        if self.looks > FIRST_LOOKS {
            self.knocker.look(&self.path, path.current_mtu);
        }
        self.next_look = now
            + if self.looks < FIRST_LOOKS {
                FIRST_LOOKS_EVERY
            } else {
                Knocker::EVERY
            };
    }

    /// What was measured, if it is worth remembering.
    pub(super) fn record(&self, quic: &Connection, remote: Ipv4Addr) -> Option<PathRecord> {
        let (rate, rtt) = (self.path.rate(), self.path.rest());
        if self.path.delivered() < STORE_BYTES_MIN || rate == 0 || rtt.is_zero() {
            return None;
        }
        Some(PathRecord {
            rate,
            rtt,
            mtu: quic.stats().path.current_mtu,
            network: Network::of(remote.into()),
            measured_unix_s: BEGIN_UNIX_S,
        })
    }
}
