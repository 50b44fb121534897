//! One end of one link: a real QUIC connection, the frames on its streams, and what the product's link does beside it.
//!
//! It plays the part of `dedup_transport::link::Link` and of quinn's driver below, without their tasks: time is an argument, and what
//! they would wake somebody for is a [`Told`]. Invariant: an answer has at most one frame here that QUIC has not taken, because the
//! next is asked for only by [`Told::Room`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dedup_transport::congestion::{PathCell, PathRecord};
use dedup_transport::link::Class;
use quinn_proto::{
    Connection, ConnectionError, ConnectionEvent, ConnectionHandle, Dir, Endpoint, Event,
    ReadError, Side, StreamEvent, StreamId, VarInt, WriteError,
};

use super::Around;
use super::frames::{Reassembly, framed};
use super::watch::Watch;

/// Longest a handshake may take, greeting included: the product's.
const HANDSHAKE_MAX: Duration = Duration::from_secs(15);
/// What the datacenter sends on a stream of its own once it has accepted the peer; no link is up before it came.
const GREETING: &[u8; 8] = b"splice/1";
/// How a link that an end gives up is closed.
const CODE_CLOSED: VarInt = VarInt::from_u32(0);
/// Datagrams that one call may put together, as quinn does with segmentation offload.
const SEGMENTS_MAX: usize = 10;

/// What an end learns from its connection.
#[derive(Debug)]
pub(super) enum Told {
    /// Both ends have accepted each other.
    Up,
    /// A frame of a stream; `None` is the stream's end.
    Frame { stream: u64, frame: Option<Vec<u8>> },
    /// QUIC has taken a frame whole.
    Room { stream: u64 },
    /// QUIC takes no more for now.
    Blocked,
    /// The connection is lost, other than by this end's own doing.
    Gone(ConnectionError),
}

/// The sending half of a stream.
struct Sending {
    class: Class,
    is_open: bool,
    /// Frames, the first perhaps without a beginning that QUIC has taken.
    frames: VecDeque<Bytes>,
    ends: bool,
}

/// See the module.
pub(super) struct LinkEnd {
    quic: Connection,
    handle: ConnectionHandle,
    began: Duration,
    is_up: bool,
    is_over: bool,
    greeting: Vec<u8>,
    sending: BTreeMap<u64, Sending>,
    /// Streams that may be written to.
    ready: BTreeSet<u64>,
    receiving: BTreeMap<u64, Reassembly>,
    watch: Watch,
    /// Something has happened since it was driven.
    is_awake: bool,
    timer: Option<Duration>,
}

impl LinkEnd {
    pub(super) fn new(
        (handle, quic): (ConnectionHandle, Connection),
        now: Duration,
        path: Arc<PathCell>,
        window_bytes_max: u64,
    ) -> Self {
        Self {
            quic,
            handle,
            began: now,
            is_up: false,
            is_over: false,
            greeting: Vec::new(),
            sending: BTreeMap::new(),
            ready: BTreeSet::new(),
            receiving: BTreeMap::new(),
            watch: Watch::new(path, window_bytes_max),
            is_awake: true,
            timer: None,
        }
    }

    pub(super) fn handle(&self) -> ConnectionHandle {
        self.handle
    }

    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Nothing is left of it, and its endpoint has forgotten it.
    pub(super) fn is_drained(&self) -> bool {
        self.quic.is_drained()
    }

    /// The handshake has taken too long.
    pub(super) fn is_overdue(&self, now: Duration) -> bool {
        !self.is_up && !self.is_over && now >= self.began + HANDSHAKE_MAX
    }

    /// What is worth keeping for the next link over the same path.
    pub(super) fn record(&self, remote: Ipv4Addr) -> Option<PathRecord> {
        self.watch.record(&self.quic, remote)
    }

    /// What came for it.
    pub(super) fn receive(&mut self, event: ConnectionEvent) {
        self.quic.handle_event(event);
        self.is_awake = true;
    }

    /// Gives it up; the other end is told, if it hears.
    pub(super) fn close(&mut self, at: Instant) {
        self.quic
            .close(at, CODE_CLOSED, Bytes::from_static(b"starting over"));
        self.is_over = true;
        self.is_awake = true;
    }

    /// The class of an answer.
    pub(super) fn set_class(&mut self, stream: u64, class: Class) {
        self.sending(stream, class, true);
    }

    /// Opens a stream, in its turn, with this frame. Only the control stream stays open after it.
    pub(super) fn request(&mut self, stream: u64, class: Class, payload: &[u8], is_control: bool) {
        let sending = self.sending(stream, class, false);
        sending.frames.push_back(framed(payload));
        sending.ends = !is_control;
        self.ready.insert(stream);
        self.is_awake = true;
    }

    /// Sends a frame on a stream that the peer opened, or ends it.
    pub(super) fn answer(&mut self, stream: u64, payload: Option<&[u8]>) {
        let Some(sending) = self.sending.get_mut(&stream) else {
            return;
        };
        match payload {
            Some(payload) => sending.frames.push_back(framed(payload)),
            None => sending.ends = true,
        }
        self.ready.insert(stream);
        self.is_awake = true;
    }

    fn sending(&mut self, stream: u64, class: Class, is_open: bool) -> &mut Sending {
        self.sending.entry(stream).or_insert(Sending {
            class,
            is_open,
            frames: VecDeque::new(),
            ends: false,
        })
    }

    /// When it must be driven next, if nothing happens before.
    pub(super) fn due(&self) -> Option<Duration> {
        if self.is_awake {
            return Some(Duration::ZERO);
        }
        let deadline = (!self.is_up && !self.is_over).then_some(self.began + HANDSHAKE_MAX);
        let look = (self.is_up && !self.is_over).then_some(self.watch.next_look());
        [self.timer, deadline, look].into_iter().flatten().min()
    }

    /// Whether it must be driven now.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// Does all that is due, hands the packets that leave to `put`, and returns what it learned.
    pub(super) fn drive(
        &mut self,
        around: &mut Around,
        endpoint: &mut Endpoint,
        mut put: impl FnMut(&mut Around, SocketAddr, &[u8]),
    ) -> Vec<Told> {
        let (at, now) = (around.at(), around.now);
        let mut told = Vec::new();
        self.is_awake = false;
        self.quic.handle_timeout(at);
        while let Some(event) = self.quic.poll_endpoint_events() {
            if let Some(event) = endpoint.handle_event(self.handle, event) {
                self.quic.handle_event(event);
            }
        }
        if self.is_up && !self.is_over && now >= self.watch.next_look() {
            self.watch.look(&mut self.quic, now);
        }
        self.listen(now, &mut told);
        self.write(&mut told);
        let mut buffer = Vec::new();
        while let Some(transmit) = self.quic.poll_transmit(at, SEGMENTS_MAX, &mut buffer) {
            let segment = transmit.segment_size.unwrap_or(transmit.size);
            for datagram in buffer[..transmit.size].chunks(segment) {
                put(around, transmit.destination, datagram);
            }
            buffer.clear();
        }
        let timer = self.quic.poll_timeout();
        self.timer = timer.map(|at| at.saturating_duration_since(around.base));
        told
    }

    fn listen(&mut self, now: Duration, told: &mut Vec<Told>) {
        while let Some(event) = self.quic.poll() {
            match event {
                Event::Connected if self.quic.side() == Side::Server => {
                    self.greet();
                    self.up(now, told);
                }
                Event::ConnectionLost { reason } => {
                    self.is_over = true;
                    told.push(Told::Gone(reason));
                }
                Event::Stream(StreamEvent::Opened { dir }) => {
                    while let Some(id) = self.quic.streams().accept(dir) {
                        self.read(id, now, told);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read(id, now, told),
                Event::Stream(StreamEvent::Writable { id }) => {
                    self.ready.insert(id.index());
                }
                Event::Stream(StreamEvent::Available { .. }) => {
                    let unopened = self.sending.iter().filter(|(_, s)| !s.is_open);
                    self.ready.extend(unopened.map(|(stream, _)| *stream));
                }
                Event::Stream(StreamEvent::Stopped { id, .. }) => panic!("{id} was stopped"),
                _ => {}
            }
        }
    }

    fn up(&mut self, now: Duration, told: &mut Vec<Told>) {
        self.is_up = true;
        self.watch.begin(now);
        told.push(Told::Up);
    }

    fn greet(&mut self) {
        let id = self.quic.streams().open(Dir::Uni);
        let mut stream = self
            .quic
            .send_stream(id.expect("a branch lets itself be greeted"));
        let written = stream.write(GREETING);
        assert_eq!(written, Ok(GREETING.len()), "nothing was sent before");
        stream.finish().expect("it was opened just now");
    }

    fn read(&mut self, id: StreamId, now: Duration, told: &mut Vec<Told>) {
        let mut stream = self.quic.recv_stream(id);
        // A stream that was read to its end is no more.
        let Ok(mut chunks) = stream.read(true) else {
            return;
        };
        let reassembly = self.receiving.entry(id.index()).or_default();
        let ended = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) if id.dir() == Dir::Uni => {
                    self.greeting.extend_from_slice(&chunk.bytes);
                }
                Ok(Some(chunk)) => reassembly.push(&chunk.bytes),
                Ok(None) => break true,
                Err(ReadError::Blocked) => break false,
                Err(ReadError::Reset(_)) => panic!("{id} was reset"),
            }
        };
        // It says whether there is something to transmit, which is looked at anyway.
        let _ = chunks.finalize();
        if id.dir() == Dir::Uni {
            if !self.is_up && self.greeting == GREETING {
                self.up(now, told);
            }
            return;
        }
        let stream = id.index();
        while let Some(frame) = reassembly.next_frame() {
            let frame = Some(frame);
            told.push(Told::Frame { stream, frame });
        }
        if ended {
            assert!(reassembly.is_between_frames(), "{id} ended inside a frame");
            self.receiving.remove(&stream);
            told.push(Told::Frame {
                stream,
                frame: None,
            });
        }
    }

    /// Writes what can be written, higher classes first: the order that the product's gate keeps.
    fn write(&mut self, told: &mut Vec<Told>) {
        let mut turns: Vec<(Reverse<Class>, u64)> = std::mem::take(&mut self.ready)
            .into_iter()
            .filter_map(|stream| Some((Reverse(self.sending.get(&stream)?.class), stream)))
            .collect();
        // Streams are opened in the order of their numbers, whatever their class.
        for (_, stream) in &turns {
            let sending = self.sending.get_mut(stream).expect("it was found");
            if !sending.is_open {
                let Some(id) = self.quic.streams().open(Dir::Bi) else {
                    break;
                };
                assert_eq!(id.index(), *stream, "streams are opened in turn");
                sending.is_open = true;
            }
        }
        turns.sort_unstable();
        for (_, stream) in turns {
            self.write_stream(stream, told);
        }
    }

    fn write_stream(&mut self, stream: u64, told: &mut Vec<Told>) {
        let sending = self.sending.get_mut(&stream).expect("it was found");
        if !sending.is_open {
            return;
        }
        let id = StreamId::new(Side::Client, Dir::Bi, stream);
        let mut out = self.quic.send_stream(id);
        let priority = out.set_priority(sending.class.priority(id.index()));
        priority.expect("it is open");
        while let Some(frame) = sending.frames.front_mut() {
            match out.write_chunks(std::slice::from_mut(frame)) {
                Ok(written) if written.chunks == 1 => {
                    sending.frames.pop_front();
                    told.push(Told::Room { stream });
                }
                // A part of it: the next call says that it is blocked, and makes QUIC tell when it is not.
                Ok(_) => {}
                Err(WriteError::Blocked) => {
                    told.push(Told::Blocked);
                    return;
                }
                Err(error) => panic!("{id}: {error}"),
            }
        }
        if sending.ends {
            out.finish().expect("it is open");
            self.sending.remove(&stream);
        }
    }
}
