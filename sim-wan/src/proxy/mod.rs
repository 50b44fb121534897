//! Proxies that carry traffic through the model without privilege: [`UdpProxy`] packet by packet, [`TcpProxy`] as a
//! byte stream. The client is the branch, the target is the datacenter.
//!
//! All flows of one proxy share one link, as all desktops of a branch share its line.
//!
//! What they cannot do: a proxy sees the payload only, so headers are computed, not seen (IPv4 20 or IPv6 40 bytes,
//! UDP 8, TCP 20). The TCP proxy ends the connection at both sides: rate, delay and outages (as stalls) are real, but
//! loss, retransmission and the sender's congestion control are not emulated, and acknowledgements cost nothing. The
//! TUN link is the honest way to measure TCP.

mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::link::{Controlled, LinkStats};
use crate::profile::Profile;
use crate::sys::Bell;

pub use tcp::TcpProxy;
pub use udp::UdpProxy;

/// Shortest time between two rounds of work, as in the TUN link.
const PACE: Duration = Duration::from_micros(50);

/// Ends a proxy's thread.
pub(super) struct Stop {
    flag: AtomicBool,
    bell: Bell,
}

impl Stop {
    fn is_set(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }
}

/// A running proxy; it stops when dropped.
pub struct Proxy {
    link: Arc<dyn Controlled>,
    local: SocketAddr,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start(
        link: Arc<dyn Controlled>,
        local: SocketAddr,
        run: impl FnOnce(&Stop) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(Stop {
            flag: AtomicBool::new(false),
            bell: Bell::new()?,
        });
        let stopping = stop.clone();
        let thread = thread::Builder::new()
            .name("wan-proxy".to_owned())
            .spawn(move || run(&stopping))?;
        Ok(Self {
            link,
            local,
            stop,
            thread: Some(thread),
        })
    }

    /// Where clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Takes the link down until [`Proxy::restore`].
    pub fn cut(&self) {
        self.link.cut();
    }

    /// Ends a cut.
    pub fn restore(&self) {
        self.link.restore();
    }

    /// Changes the profile while traffic runs.
    pub fn set_profile(&self, profile: &Profile) {
        self.link.set_profile(profile);
    }

    /// Counters now.
    pub fn stats(&self) -> LinkStats {
        self.link.stats()
    }

    /// Clears the counters.
    pub fn reset_stats(&self) {
        self.link.reset_stats();
    }

    /// The handle that the control socket needs.
    pub fn controlled(&self) -> Arc<dyn Controlled> {
        self.link.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.flag.store(true, Ordering::Release);
        self.stop.bell.ring();
        if let Some(thread) = self.thread.take() {
            // A panic in the proxy is our bug; it has printed itself, and the proxy is ending anyway.
            let _ = thread.join();
        }
    }
}

/// The unspecified address with port 0 of the same family.
fn any_like(address: IpAddr) -> SocketAddr {
    match address {
        IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// IP header bytes of one packet to `address`.
fn ip_header(address: IpAddr) -> u64 {
    if address.is_ipv4() { 20 } else { 40 }
}
