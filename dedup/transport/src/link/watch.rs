//! Looks after one link while it lives: twice a second, without keeping it alive.
//!
//! It fits the send buffer to the measured path, knocks during an outage ([`Knocker`]) and keeps what was measured for the next link.
//! It decides nothing about rates; that is the congestion control's.

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::connection::Shared;
use crate::congestion::{Knocker, Network, PathCell, PathMemory, PathRecord, SendWindow};

/// How often figures are kept while a link lives: what a crash may lose.
const STORE_EVERY: Duration = Duration::from_secs(60);
/// How often the send buffer is fitted to the path while a link is young, and how many times.
const FIRST_LOOKS_EVERY: Duration = Duration::from_millis(50);
const FIRST_LOOKS: usize = 40;
/// Figures of less traffic than this are none: 1 MiB, a few dozen round trips of a slow line or a burst of a fast one.
const STORE_BYTES_MIN: u64 = 1 << 20;
/// A link's place in a memory of paths.
pub(super) struct Remembering {
    memory: Arc<dyn PathMemory>,
    key: Vec<u8>,
    address: IpAddr,
}

impl Remembering {
    /// Hands what the memory knows of the path to `address` to the congestion control behind `path`.
    pub(super) fn new(
        memory: &Arc<dyn PathMemory>,
        key: &[u8],
        address: IpAddr,
        path: &PathCell,
    ) -> Self {
        let known = memory
            .load(key)
            .and_then(|record| record.at(now_unix_s(), address));
        if let Some(record) = known {
            path.remember(record);
        }
        Self {
            memory: Arc::clone(memory),
            key: key.to_owned(),
            address,
        }
    }
}

/// See the module.
pub(super) struct Watch {
    path: Arc<PathCell>,
    memory: Option<Remembering>,
    send_window: SendWindow,
    /// The peer has another address than the memory's: what is measured now is of another path.
    moved: bool,
    knocker: Knocker,
    mtu: u16,
    stored_bytes: u64,
}

impl Watch {
    pub(super) fn new(
        path: Arc<PathCell>,
        memory: Option<Remembering>,
        window_bytes_max: u64,
    ) -> Self {
        Self {
            path,
            memory,
            send_window: SendWindow::new(window_bytes_max),
            moved: false,
            knocker: Knocker::default(),
            mtu: 1200,
            stored_bytes: 0,
        }
    }

    /// Until the link has ended or nobody holds it any more.
    pub(super) async fn run(mut self, link: Weak<Shared>) {
        let looks_per_store = STORE_EVERY.as_millis() / Knocker::EVERY.as_millis();
        let mut looks = 0;
        // A remembered path is full at once, and a new one soon: the send buffer keeps up with it from the first round trips on.
        for _ in 0..FIRST_LOOKS {
            tokio::time::sleep(FIRST_LOOKS_EVERY).await;
            let Some(link) = link.upgrade() else {
                break;
            };
            self.fit(&link);
        }
        loop {
            tokio::time::sleep(Knocker::EVERY).await;
            let Some(link) = link.upgrade() else {
                break;
            };
            if link.connection().close_reason().is_some() {
                break;
            }
            self.look(&link);
            drop(link);
            looks += 1;
            if looks % looks_per_store == 0 {
                self.store();
            }
        }
        self.store();
    }

    fn look(&mut self, link: &Shared) {
        self.mtu = link.connection().stats().path.current_mtu;
        if let Some(memory) = &self.memory {
            let address = link.connection().remote_address().ip();
            self.moved |= Network::of(address) != Network::of(memory.address);
        }
        let fitted = self.fit(link);
        // Setting the window, even to what it was, also wakes the connection.
        if self.knocker.look(&self.path, self.mtu) && !fitted {
            link.connection().set_send_window(self.send_window.bytes());
        }
    }

    /// Fits the send buffer to the congestion window; true if it was another.
    fn fit(&mut self, link: &Shared) -> bool {
        let connection = link.connection();
        let cwnd = connection.stats().path.cwnd;
        let other = self.send_window.fit(cwnd, self.path.delivered());
        if other {
            connection.set_send_window(self.send_window.bytes());
        }
        other
    }

    fn store(&mut self) {
        let delivered = self.path.delivered();
        let (rate, rtt) = (self.path.rate(), self.path.rest());
        let Some(memory) = self.memory.as_ref().filter(|_| !self.moved) else {
            return;
        };
        if delivered < self.stored_bytes.saturating_add(STORE_BYTES_MIN)
            || rate == 0
            || rtt.is_zero()
        {
            return;
        }
        self.stored_bytes = delivered;
        let record = PathRecord {
            rate,
            rtt,
            mtu: self.mtu,
            network: Network::of(memory.address),
            measured_unix_s: now_unix_s(),
        };
        memory.memory.store(&memory.key, &record);
    }
}

fn now_unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
