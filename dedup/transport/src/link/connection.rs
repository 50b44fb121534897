//! An established link: streams, datagrams, figures, its end.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint, ReadError, SendDatagramError, VarInt, WriteError};
use rustls::pki_types::CertificateDer;

use super::error::{CODE_CLOSED, CODE_REFUSED, REASON_BYTES_MAX};
use super::gate::Gate;
use super::repair::Repairs;
use super::shape::{Caps, Shaper};
use super::traffic::{ClassBytes, Traffic};
use super::watch::{Remembering, Watch};
use super::{Class, FrameRecv, FrameSend, LinkError, Party};
use crate::congestion::PathCell;
use crate::identity::{PeerIdentity, cert_pem};

/// How long a closing link waits for its goodbye to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A link between branch and datacenter. Clones are the same link; it closes when the last one and its streams go.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

/// What streams need of their link.
pub(super) struct Shared {
    connection: Connection,
    /// Which end we are; decides whom errors name.
    here: Party,
    remote: SocketAddr,
    identity: Option<PeerIdentity>,
    authority: Option<CertificateDer<'static>>,
    /// The dialling end owns a socket per link and waits for it when closing.
    endpoint: Option<Endpoint>,
    pub(super) gate: Gate,
    /// Where the congestion control shows what it measures.
    path: Arc<PathCell>,
    pub(super) repairs: Repairs,
    pub(super) shaper: Shaper,
    pub(super) traffic: Traffic,
}

/// Figures of a link since it was made, and of its path now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Share of packets that the path loses of late, per mille, by both ends' words; 0: as good as none, or not known. The other end's word comes with
    /// what repairs its answers, so it is known where guests wait.
    pub loss_per_mille: u16,
    /// Packets declared lost by this end.
    pub lost_packets: u64,
    /// UDP payload bytes sent, retransmissions and headers included.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Congestion window in bytes: what may be in flight.
    pub cwnd: u64,
    /// Largest UDP payload the path is known to carry, in bytes.
    pub mtu: u16,
    /// Datagrams received that repair streams.
    pub repairs_received: u64,
    /// Bytes of frames by class.
    pub classes: ClassBytes,
}

/// What distinguishes a link at birth.
pub(super) struct LinkParts {
    pub(super) connection: Connection,
    pub(super) here: Party,
    pub(super) identity: Option<PeerIdentity>,
    pub(super) authority: Option<CertificateDer<'static>>,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) path: Arc<PathCell>,
    pub(super) memory: Option<Remembering>,
    /// Bytes that may wait for acknowledgement at most.
    pub(super) window_bytes_max: u64,
}

impl Link {
    pub(super) fn new(parts: LinkParts) -> Self {
        let LinkParts {
            connection,
            here,
            identity,
            authority,
            endpoint,
            path,
            memory,
            window_bytes_max,
        } = parts;
        let shared = Arc::new(Shared {
            remote: connection.remote_address(),
            repairs: Repairs::new(connection.clone()),
            connection,
            here,
            identity,
            authority,
            endpoint,
            gate: Gate::default(),
            shaper: Shaper::default(),
            traffic: Traffic::default(),
            path: Arc::clone(&path),
        });
        let watch = Watch::new(path, memory, window_bytes_max);
        tokio::spawn(watch.run(Arc::downgrade(&shared)));
        Self { shared }
    }

    /// Opens a stream for one request. Waits while the peer's limit of open requests is reached.
    ///
    /// The peer learns of the stream with its first frame.
    ///
    /// # Errors
    /// Why the link ended.
    pub async fn open(&self, class: Class) -> Result<(FrameSend, FrameRecv), LinkError> {
        let (send, recv) = self
            .shared
            .connection
            .open_bi()
            .await
            .map_err(|error| self.shared.error(error))?;
        let slot = self.shared.repairs.opened(u64::from(send.id()));
        let recv = FrameRecv::in_any_order(recv, Arc::clone(&self.shared), slot).counted(class);
        Ok((self.frames(send, class), recv))
    }

    /// Asks for something on a stream of its own, and returns where the answer comes. For what a guest waits for, so that it is repaired
    /// on a path that loses packets (`docs/transport.md`, section Repair): the request leaves twice, and the answer is
    /// put together from the stream and from what repairs it.
    ///
    /// # Errors
    /// As [`Self::open`] and [`FrameSend::send`].
    pub async fn request(&self, class: Class, payload: &[u8]) -> Result<FrameRecv, LinkError> {
        let (mut send, recv) = self.open(class).await?;
        send.send(payload).await?;
        let copy = send.protection();
        if copy.is_empty() {
            send.finish()?;
        } else {
            // The end of the stream travels with the copy: a datagram cannot open the stream at the peer, a stream's end can.
            let spacing = self.shared.repairs.spacing();
            let link = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(spacing).await;
                link.shared.repairs.send_now(copy);
                // An error says that the link is gone, and whoever waits for the answer is told so.
                let _ = send.finish();
            });
        }
        Ok(recv)
    }

    /// Accepts the peer's next request. Set the class of the answer by [`FrameSend::set_class`]; it starts as
    /// [`Class::Fill`]. Cancellation safe.
    ///
    /// # Errors
    /// Why the link ended.
    pub async fn accept(&self) -> Result<(FrameSend, FrameRecv), LinkError> {
        let (send, recv) = self
            .shared
            .connection
            .accept_bi()
            .await
            .map_err(|error| self.shared.error(error))?;
        // Who has not shown who it is, a branch that joins, is read in order: what a hole keeps waiting is memory.
        let stranger = self.shared.here == Party::Datacenter && self.shared.identity.is_none();
        let recv = if stranger {
            FrameRecv::in_order(recv, Arc::clone(&self.shared))
        } else {
            let slot = self.shared.repairs.accepted(u64::from(recv.id()));
            FrameRecv::in_any_order(recv, Arc::clone(&self.shared), slot)
        };
        let mut send = self.frames(send, Class::Fill);
        send.answers();
        Ok((send, recv))
    }

    fn frames(&self, send: quinn::SendStream, class: Class) -> FrameSend {
        FrameSend::new(send, Arc::clone(&self.shared), class)
    }

    /// Largest datagram that can be sent now, in bytes; `None` when the peer takes none.
    pub fn datagram_bytes_max(&self) -> Option<usize> {
        self.shared.connection.max_datagram_size()
    }

    /// Sends a datagram: unordered, unacknowledged, ahead of all streams; the oldest unsent one gives way.
    ///
    /// # Errors
    /// [`LinkError::FrameTooLarge`] over [`Self::datagram_bytes_max`], else why the link ended.
    pub fn send_datagram(&self, payload: Bytes) -> Result<(), LinkError> {
        let bytes = payload.len() as u64;
        self.shared
            .connection
            .send_datagram(payload)
            .map_err(|error| match error {
                SendDatagramError::ConnectionLost(error) => self.shared.error(error),
                SendDatagramError::TooLarge
                | SendDatagramError::UnsupportedByPeer
                | SendDatagramError::Disabled => LinkError::FrameTooLarge {
                    bytes,
                    bytes_max: self.datagram_bytes_max().unwrap_or(0),
                },
            })
    }

    /// Receives the next datagram that is not the transport's own repair. Cancellation safe.
    ///
    /// # Errors
    /// Why the link ended.
    pub async fn recv_datagram(&self) -> Result<Bytes, LinkError> {
        match self.shared.repairs.other().await {
            Some(datagram) => Ok(datagram),
            None => Err(self.closed().await),
        }
    }

    /// Limits what this end sends from now on; the other end has limits of its own.
    pub fn set_caps(&self, caps: Caps) {
        self.shared.shaper.set(caps);
    }

    /// Figures for reports and budgets.
    pub fn stats(&self) -> LinkStats {
        let stats = self.shared.connection.stats();
        LinkStats {
            rtt: stats.path.rtt,
            loss_per_mille: self
                .shared
                .repairs
                .loss_per_mille(stats.path.sent_packets, stats.path.lost_packets),
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            cwnd: stats.path.cwnd,
            mtu: stats.path.current_mtu,
            repairs_received: self.shared.repairs.received(),
            classes: self.shared.traffic.bytes(),
        }
    }

    /// Whom the peer's certificate names; `None` for a joining branch, which has none yet.
    pub fn peer(&self) -> Option<PeerIdentity> {
        self.shared.identity
    }

    /// The realm authority's certificate (PEM) that a joining branch has just checked against its token, to be kept.
    /// `None` on links that are not joins.
    pub fn authority_pem(&self) -> Option<String> {
        self.shared.authority.as_deref().map(cert_pem)
    }

    /// Closes the link at once: streams end with [`LinkError::ClosedHere`] here and [`LinkError::Closed`] there. What
    /// was not acknowledged may be lost; wait for [`FrameSend::delivered`] first where that matters.
    pub fn close(&self, reason: &str) {
        self.close_with(CODE_CLOSED, reason);
    }

    /// Closes the link and tells the peer not to come back: it sees [`LinkError::Refused`], which is permanent.
    pub fn refuse(&self, reason: &str) {
        self.close_with(CODE_REFUSED, reason);
    }

    /// Closes the link and waits, at most 3 s, until the peer has been told. For the dialling end before it exits; the
    /// listening end uses [`super::LinkServer::wait_idle`].
    pub async fn close_and_wait(&self, reason: &str) {
        self.close(reason);
        if let Some(endpoint) = &self.shared.endpoint {
            // On time-out the peer notices by its own idle timeout.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
        }
    }

    /// Waits for the link's end and says why.
    pub async fn closed(&self) -> LinkError {
        let error = self.shared.connection.closed().await;
        self.shared.error(error)
    }

    /// The peer's address; a branch behind a NAT may change it while the link lives.
    pub fn remote_addr(&self) -> SocketAddr {
        self.shared.connection.remote_address()
    }

    /// What this end's sending has measured of the path: delivery rate and round trip. Zero under a congestion control other than
    /// `delivery`, and before the first megabytes.
    pub fn path(&self) -> &PathCell {
        &self.shared.path
    }

    /// The connection below, for tests that play a peer which does not keep to the framing.
    #[cfg(test)]
    pub(crate) fn connection(&self) -> &Connection {
        &self.shared.connection
    }

    pub(super) fn close_with(&self, code: VarInt, reason: &str) {
        let reason = reason.as_bytes();
        self.shared
            .connection
            .close(code, &reason[..reason.len().min(REASON_BYTES_MAX)]);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("here", &self.shared.here)
            .field("remote", &self.shared.remote)
            .field("peer", &self.shared.identity)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    fn error(&self, error: quinn::ConnectionError) -> LinkError {
        LinkError::from_connection(error, self.here, &self.remote.to_string())
    }

    pub(super) fn write_error(&self, error: WriteError) -> LinkError {
        LinkError::from_write(error, self.here, &self.remote.to_string())
    }

    pub(super) fn read_error(&self, error: ReadError) -> LinkError {
        LinkError::from_read(error, self.here, &self.remote.to_string())
    }
}
