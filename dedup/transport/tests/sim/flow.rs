//! One link of a simulation: a datacenter that answers, a branch that asks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use dedup_transport::congestion::{
    Delivery, Figures, Knocker, Network, PathCell, PathRecord, SendWindow,
};
use dedup_transport::link::{Class, LinkTuning};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, ServerConfig, StreamEvent, StreamId, Transmit,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

pub type Packet = Vec<u8>;

/// Datagrams that one call may put together, as quinn does with segmentation offload.
const SEGMENTS_MAX: usize = 10;
/// What the datacenter hands to QUIC at once.
const PIECE: &[u8] = &[0; 65536];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Branch,
    Datacenter,
}

/// What a branch asks for.
#[derive(Debug, Clone, Copy)]
pub enum Load {
    /// Answers of `bytes`, `at_once` of them at any time.
    Bulk { bytes: u64, at_once: usize },
    /// One answer of `bytes` every `every`: a sender that rarely fills the line.
    Periodic { bytes: u64, every: Duration },
}

/// One link.
#[derive(Debug, Clone)]
pub struct Spec {
    pub tuning: LinkTuning,
    pub load: Load,
    pub starts: Duration,
    pub stops: Duration,
    /// When the branch gets another address, as after a reconnected DSL line.
    pub moves: Option<Duration>,
    /// What the datacenter remembers of this path from an earlier link.
    pub remembered: Option<PathRecord>,
}

impl Spec {
    pub fn bulk(tuning: LinkTuning) -> Self {
        Self {
            tuning,
            load: Load::Bulk {
                bytes: 4 << 20,
                at_once: 24,
            },
            starts: Duration::ZERO,
            stops: Duration::MAX,
            moves: None,
            remembered: None,
        }
    }

    pub fn moving(mut self, at: Duration) -> Self {
        self.moves = Some(at);
        self
    }

    /// With so many requests at once.
    pub fn asking(mut self, requests: usize) -> Self {
        if let Load::Bulk { at_once, .. } = &mut self.load {
            *at_once = requests;
        }
        self
    }

    pub fn remembering(mut self, mbit: f64, rtt: Duration) -> Self {
        self.remembered = Some(PathRecord {
            rate: (mbit * 1e6 / 8.0) as u64,
            rtt,
            mtu: 1452,
            network: Network::of(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            measured_unix_s: 0,
        });
        self
    }

    pub fn starting(mut self, at: Duration) -> Self {
        self.starts = at;
        self
    }
}

struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    peer: SocketAddr,
}

/// What has come of one answer: read in any order, of use in order.
#[derive(Default)]
struct Came {
    whole_to: u64,
    /// Ends of what lies behind holes, by beginning.
    ahead: BTreeMap<u64, u64>,
}

impl Came {
    /// Takes bytes that come for the first time; returns how many more are of use.
    fn take(&mut self, offset: u64, bytes: u64) -> u64 {
        let before = self.whole_to;
        self.ahead.insert(offset, offset + bytes);
        while let Some(entry) = self.ahead.first_entry()
            && *entry.key() == self.whole_to
        {
            self.whole_to = entry.remove();
        }
        self.whole_to - before
    }
}

/// A link under simulation.
pub struct Flow {
    spec: Spec,
    base: Instant,
    client_config: ClientConfig,
    branch: End,
    datacenter: End,
    /// The datacenter's answers: bytes left to write.
    answers: BTreeMap<StreamId, u64>,
    /// What the branch has of the answers that are not whole.
    came: BTreeMap<StreamId, Came>,
    open: usize,
    next_ask: Duration,
    path: Arc<PathCell>,
    knocker: Knocker,
    next_look: Duration,
    send_window: SendWindow,
    looks: u32,
    connected: bool,
    received: u64,
    lost: Option<String>,
    buffer: Vec<u8>,
}

impl Flow {
    pub fn new(index: usize, spec: Spec, base: Instant, seed: u64) -> Self {
        let (server, client) = tls();
        let mut server = ServerConfig::with_crypto(server);
        let path = Arc::new(PathCell::default());
        server.transport_config(spec.tuning.quic_settings_for_datacenter(&path).unwrap());
        if let Some(record) = spec.remembered {
            path.remember(record);
        }
        let mut client_config = ClientConfig::new(client);
        client_config.transport_config(
            spec.tuning
                .quic_settings_for_branch(&Arc::default())
                .unwrap(),
        );
        let addr = |host| SocketAddr::from((Ipv4Addr::new(10, 0, index as u8, host), 4433));
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8] = index as u8;
        let mut endpoint = |server: Option<Arc<ServerConfig>>| {
            bytes[9] += 1;
            let mut config = EndpointConfig::default();
            config.rng_seed(Some(bytes));
            Endpoint::new(Arc::new(config), server, true, None)
        };
        Self {
            base,
            client_config,
            datacenter: End {
                endpoint: endpoint(Some(Arc::new(server))),
                connection: None,
                peer: addr(1),
            },
            branch: End {
                endpoint: endpoint(None),
                connection: None,
                peer: addr(2),
            },
            answers: BTreeMap::new(),
            came: BTreeMap::new(),
            open: 0,
            next_ask: spec.starts,
            path,
            knocker: Knocker::default(),
            next_look: spec.starts,
            send_window: SendWindow::new(spec.tuning.window_bytes),
            looks: 0,
            connected: false,
            received: 0,
            lost: None,
            buffer: Vec::new(),
            spec,
        }
    }

    pub fn next_event(&mut self) -> Option<Duration> {
        if self.lost.is_some() {
            return None;
        }
        if self.branch.connection.is_none() {
            return Some(self.spec.starts);
        }
        let base = self.base;
        let timeout = |end: &mut End| {
            let (_, connection) = end.connection.as_mut()?;
            Some(connection.poll_timeout()?.saturating_duration_since(base))
        };
        let timers = [timeout(&mut self.branch), timeout(&mut self.datacenter)];
        let ask = matches!(self.spec.load, Load::Periodic { .. }).then_some(self.next_ask);
        timers
            .into_iter()
            .flatten()
            .chain(ask)
            .chain([self.next_look])
            .min()
    }

    pub fn receive(&mut self, side: Side, now: Duration, packet: Packet) {
        let at = self.base + now;
        let end = self.end(side);
        let data = BytesMut::from(&packet[..]);
        let mut buffer = Vec::new();
        let local = Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3)));
        match end
            .endpoint
            .handle(at, end.peer, local, None, data, &mut buffer)
        {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut end.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                // A repeated first packet of a link that is already there is none of ours.
                let accepted = end.endpoint.accept(incoming, at, &mut buffer, None);
                if end.connection.is_none() {
                    end.connection = accepted.ok();
                }
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Branch => &mut self.branch,
            Side::Datacenter => &mut self.datacenter,
        }
    }

    pub fn drive(&mut self, now: Duration, mut put: impl FnMut(Side, Packet)) {
        if self.lost.is_some() || now < self.spec.starts {
            return;
        }
        let at = self.base + now;
        if self.spec.moves.is_some_and(|at| now >= at) {
            self.datacenter.peer = SocketAddr::from((Ipv4Addr::new(10, 99, 0, 2), 4433));
        }
        if self.branch.connection.is_none() {
            let made = self.branch.endpoint.connect(
                at,
                self.client_config.clone(),
                self.branch.peer,
                "datacenter",
            );
            self.branch.connection = Some(made.unwrap());
        }
        if now >= self.next_look {
            // The link does this in the product; being driven here is being woken.
            // Often while it is young: for the first two seconds.
            self.looks += 1;
            let every = if self.looks < 40 {
                Duration::from_millis(50)
            } else {
                Knocker::EVERY
            };
            self.next_look = now + every;
            if self.looks >= 40 {
                self.knocker.look(&self.path, 1200);
            }
            if let Some((_, connection)) = &mut self.datacenter.connection {
                let cwnd = connection.stats().path.cwnd;
                self.send_window.fit(cwnd, self.path.delivered());
                connection.set_send_window(self.send_window.bytes());
            }
        }
        for side in [Side::Branch, Side::Datacenter] {
            let Some((handle, mut connection)) = self.end(side).connection.take() else {
                continue;
            };
            connection.handle_timeout(at);
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(event) = self.end(side).endpoint.handle_event(handle, event) {
                    connection.handle_event(event);
                }
            }
            self.application(side, now, &mut connection);
            self.buffer.clear();
            while let Some(transmit) = connection.poll_transmit(at, SEGMENTS_MAX, &mut self.buffer)
            {
                let Transmit {
                    size, segment_size, ..
                } = transmit;
                for datagram in self.buffer[..size].chunks(segment_size.unwrap_or(size)) {
                    put(side, datagram.to_vec());
                }
                self.buffer.clear();
            }
            self.end(side).connection = Some((handle, connection));
        }
    }

    fn application(&mut self, side: Side, now: Duration, connection: &mut Connection) {
        let mut writable = Vec::new();
        while let Some(event) = connection.poll() {
            match event {
                Event::Connected => self.connected |= side == Side::Branch,
                Event::ConnectionLost { reason } => self.lost = Some(reason.to_string()),
                Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                    while let Some(id) = connection.streams().accept(Dir::Bi) {
                        self.read(side, id, connection, &mut writable);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => {
                    self.read(side, id, connection, &mut writable)
                }
                Event::Stream(StreamEvent::Writable { id }) => writable.push(id),
                _ => {}
            }
        }
        match side {
            Side::Branch => self.ask(now, connection),
            Side::Datacenter => {
                for id in writable {
                    self.write(id, connection);
                }
            }
        }
    }

    fn ask(&mut self, now: Duration, connection: &mut Connection) {
        if !self.connected || now >= self.spec.stops {
            return;
        }
        match self.spec.load {
            Load::Bulk { bytes, at_once } => {
                while self.open < at_once {
                    self.ask_for(bytes, connection);
                }
            }
            Load::Periodic { bytes, every } => {
                if now >= self.next_ask {
                    self.next_ask = now + every;
                    self.ask_for(bytes, connection);
                }
            }
        }
    }

    fn ask_for(&mut self, bytes: u64, connection: &mut Connection) {
        let id = connection.streams().open(Dir::Bi).unwrap();
        let mut stream = connection.send_stream(id);
        stream.write(&bytes.to_le_bytes()).unwrap();
        stream.finish().unwrap();
        self.open += 1;
    }

    fn read(
        &mut self,
        side: Side,
        id: StreamId,
        connection: &mut Connection,
        writable: &mut Vec<StreamId>,
    ) {
        let mut stream = connection.recv_stream(id);
        // In any order, as the link does.
        let Ok(mut chunks) = stream.read(false) else {
            return;
        };
        let mut request = Vec::new();
        let mut ended = false;
        loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) if side == Side::Branch => {
                    let answer = self.came.entry(id).or_default();
                    self.received += answer.take(chunk.offset, chunk.bytes.len() as u64);
                }
                Ok(Some(chunk)) => request.extend_from_slice(&chunk.bytes),
                Ok(None) => {
                    ended = true;
                    break;
                }
                Err(_) => break,
            }
        }
        let _ = chunks.finalize();
        if side == Side::Branch {
            if ended {
                self.came.remove(&id);
                self.open -= 1;
            }
        } else if request.len() == 8 {
            let bytes = u64::from_le_bytes(request.try_into().unwrap());
            // The link does this in the product.
            let priority = Class::Fill.priority(id.index());
            connection.send_stream(id).set_priority(priority).unwrap();
            self.answers.insert(id, bytes);
            writable.push(id);
        }
    }

    fn write(&mut self, id: StreamId, connection: &mut Connection) {
        let Some(left) = self.answers.get_mut(&id) else {
            return;
        };
        let mut stream = connection.send_stream(id);
        while *left > 0 {
            let piece = Bytes::from_static(PIECE).slice(..PIECE.len().min(*left as usize));
            match stream.write_chunks(&mut [piece]) {
                Ok(written) => *left -= written.bytes as u64,
                Err(_) => return,
            }
        }
        stream.finish().unwrap();
        self.answers.remove(&id);
    }

    /// Bytes that the branch's application has.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Round trip, congestion window, largest UDP payload, packets that the datacenter declared lost.
    pub fn path(&self) -> Option<(Duration, u64, u16, u64)> {
        let (_, connection) = self.datacenter.connection.as_ref()?;
        let path = connection.stats().path;
        Some((path.rtt, path.cwnd, path.current_mtu, path.lost_packets))
    }

    /// What our own congestion control believes at the datacenter; None for another control.
    pub fn figures(&self) -> Option<Figures> {
        let (_, connection) = self.datacenter.connection.as_ref()?;
        let control = connection.congestion_state().clone_box().into_any();
        Some(control.downcast::<Delivery>().ok()?.figures())
    }

    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }
}

/// An Ed25519 certificate, because its signatures always have the same length: a run must not depend on chance.
fn tls() -> (Arc<QuicServerConfig>, Arc<QuicClientConfig>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let cert = rcgen::CertificateParams::new(["datacenter".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let der: CertificateDer<'static> = cert.der().clone();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![der],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    server.send_tls13_tickets = 0;
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (
        Arc::new(server.try_into().unwrap()),
        Arc::new(client.try_into().unwrap()),
    )
}
