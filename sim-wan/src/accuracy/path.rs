//! A link to be measured, with a UDP socket at each end.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::{AccuracyError, Via};
use crate::link::{Direction, LinkStats};
use crate::profile::Profile;
use crate::proxy::{Proxy, UdpProxy};
use crate::tun::{LinkSpec, Namespaces, TunLink, inside};

/// Socket buffers of the measuring ends: two batches of the fastest profile must not overrun them.
const BUFFER_BYTES: usize = 8 << 20;

/// IPv4 and UDP headers.
pub(super) const HEADER_BYTES: usize = 28;

enum Carrier {
    // Order matters: the link's devices go before their namespaces.
    Tun(
        Box<TunLink>,
        #[allow(dead_code, reason = "held for its drop")] Namespaces,
    ),
    Proxy(Proxy),
}

/// Both ends, connected to each other through the link.
pub(super) struct Path {
    pub(super) dc: UdpSocket,
    pub(super) branch: UdpSocket,
    carrier: Carrier,
}

impl Path {
    pub(super) fn set_up(profile: &Profile, via: Via, seed: u64) -> Result<Self, AccuracyError> {
        match via {
            Via::Tun => Self::tun(profile, seed),
            Via::Proxy => Self::proxy(profile, seed),
        }
    }

    fn tun(profile: &Profile, seed: u64) -> Result<Self, AccuracyError> {
        let pid = std::process::id();
        let (dc_ns, branch_ns) = (format!("sim-wan-{pid}-dc"), format!("sim-wan-{pid}-br"));
        let namespaces = Namespaces::create(&[dc_ns.clone(), branch_ns.clone()])?;
        let spec: LinkSpec = format!(
            "name=accuracy,dc-ns={dc_ns},branch-ns={branch_ns},dc-addr=10.77.0.1/30,branch-addr=10.77.0.2/30"
        )
        .parse()?;
        let link = TunLink::start(&spec, profile, seed)?;
        let dc = inside(&dc_ns, || socket("10.77.0.1:9000"))??;
        let branch = inside(&branch_ns, || socket("10.77.0.2:9000"))??;
        dc.connect("10.77.0.2:9000")?;
        branch.connect("10.77.0.1:9000")?;
        Ok(Self {
            dc,
            branch,
            carrier: Carrier::Tun(Box::new(link), namespaces),
        })
    }

    fn proxy(profile: &Profile, seed: u64) -> Result<Self, AccuracyError> {
        let (dc, branch) = (socket("127.0.0.1:0")?, socket("127.0.0.1:0")?);
        let proxy = UdpProxy::spawn(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            dc.local_addr()?,
            profile,
            seed,
        )?;
        branch.connect(proxy.local_addr())?;
        // The datacenter learns from the first datagram which socket of the proxy stands for the branch.
        let mut buffer = [0; 8];
        let limit = profile.rtt() * 2 + Duration::from_secs(1);
        dc.set_read_timeout(Some(limit))?;
        let peer = (0..20).find_map(|_| {
            branch.send(&[0]).ok()?;
            dc.recv_from(&mut buffer).ok().map(|(_, peer)| peer)
        });
        dc.connect(peer.ok_or_else(|| AccuracyError::Silent(profile.name.clone()))?)?;
        Ok(Self {
            dc,
            branch,
            carrier: Carrier::Proxy(proxy),
        })
    }

    /// The sending and the receiving socket of a direction.
    pub(super) fn ends(&self, direction: Direction) -> (&UdpSocket, &UdpSocket) {
        match direction {
            Direction::Down => (&self.dc, &self.branch),
            Direction::Up => (&self.branch, &self.dc),
        }
    }

    pub(super) fn stats(&self) -> LinkStats {
        match &self.carrier {
            Carrier::Tun(link, _) => link.stats(),
            Carrier::Proxy(proxy) => proxy.stats(),
        }
    }

    pub(super) fn unseen_drops(&self) -> u64 {
        match &self.carrier {
            Carrier::Tun(link, _) => link.ring_drops().unwrap_or(0),
            Carrier::Proxy(_) => 0,
        }
    }
}

fn socket(address: &str) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES)?;
    }
    Ok(socket)
}
