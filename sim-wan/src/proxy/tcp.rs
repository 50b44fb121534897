//! The TCP proxy: one thread carries byte streams through one link in full-size segments.
//!
//! ```text
//!   accept ─ Open ─► (up) ─► connect target ─ Opened ─► (down) ─► client is read
//!                    client is read ─ Established ─► (up) ─► target is read
//!   bytes ─ Data… ─► pipe ─► outbox ─► socket        end ─ Fin ─► pipe ─► shutdown once the outbox is empty
//! ```
//!
//! The handshake costs a round trip, and so does finding out that the target refuses. Nothing is read from a socket
//! unless its pipe has room and the other side's outbox is short, so memory is bounded and TCP's own flow control
//! slows the sender.

mod connection;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use connection::{Connection, Content, Side, begin_connect, prepare};

use super::{PACE, Proxy, Stop, ip_header};
use crate::link::{Direction, SharedLink};
use crate::model::Mode;
use crate::profile::Profile;
use crate::sys::{be_punctual, wait};

/// Connections at once; more are closed when they arrive.
const CONNECTIONS_MAX: usize = 256;

/// Payload of a full segment without options.
const MSS: usize = 1460;

/// TCP header bytes.
const TCP_HEADER: u64 = 20;

/// Bytes that may wait for a slow receiver before its sender is no longer read.
const OUTBOX_BYTES_MAX: usize = 256 << 10;

/// Carries TCP through a link; see [`super`] for what it cannot emulate.
pub struct TcpProxy;

impl TcpProxy {
    /// Starts a proxy that accepts on `listen` (port 0: any free one) and connects on to `target`.
    ///
    /// # Errors
    /// As bind(2); `AddrInUse` when the port is taken.
    pub fn spawn(
        listen: SocketAddr,
        target: SocketAddr,
        profile: &Profile,
        seed: u64,
    ) -> io::Result<Proxy> {
        Self::spawn_named(
            &format!("tcp-{}", listen.port()),
            listen,
            target,
            profile,
            seed,
        )
    }

    /// As [`TcpProxy::spawn`], with a name for the control socket.
    ///
    /// # Errors
    /// As [`TcpProxy::spawn`].
    pub fn spawn_named(
        name: &str,
        listen: SocketAddr,
        target: SocketAddr,
        profile: &Profile,
        seed: u64,
    ) -> io::Result<Proxy> {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let local = listener.local_addr()?;
        let shared = Arc::new(SharedLink::new(name, profile, Mode::Stream, seed)?);
        let link = shared.clone();
        Proxy::start(shared, local, move |stop| {
            let header = ip_header(target.ip()) + TCP_HEADER;
            let mut run = Run {
                link: &link,
                listener,
                target,
                header,
                connections: BTreeMap::new(),
                next_id: 0,
                last_read: [0; 2],
            };
            if let Err(error) = run.until(stop) {
                link.fail(format!("TCP proxy: {error}"));
            }
        })
    }
}

#[derive(Clone)]
struct Segment {
    connection: u64,
    content: Content,
}

struct Run<'a> {
    link: &'a SharedLink<Segment>,
    listener: TcpListener,
    target: SocketAddr,
    header: u64,
    connections: BTreeMap<u64, Connection>,
    next_id: u64,
    /// The connection read last in each direction; the next one has the next turn.
    last_read: [u64; 2],
}

const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];

impl Run<'_> {
    fn until(&mut self, stop: &Stop) -> io::Result<()> {
        be_punctual();
        while !stop.is_set() {
            let begun = self.link.clock.now();
            self.accept();
            self.finish_connects();
            for direction in BOTH {
                self.read(direction);
            }
            let worked = self.deliver();
            self.write();
            self.connections
                .retain(|_, connection| !connection.end_if_over());
            if worked {
                thread::sleep(PACE.saturating_sub(self.link.clock.now() - begun));
            }
            self.sleep(stop)?;
        }
        Ok(())
    }

    /// Control segments are tiny and pass a full queue, so that a handshake is not refused by other flows' data.
    fn offer(&self, direction: Direction, connection: u64, content: Content) {
        let payload = if let Content::Data(bytes) = &content {
            bytes.len()
        } else {
            0
        };
        let mut pipe = self.link.lane(direction).pipe();
        let now = self.link.clock.now();
        pipe.enqueue(
            now,
            Segment {
                connection,
                content,
            },
            payload as u64 + self.header,
        );
    }

    fn has_room(&self, direction: Direction) -> bool {
        let mut pipe = self.link.lane(direction).pipe();
        let now = self.link.clock.now();
        pipe.has_room(now, MSS as u64 + self.header)
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if self.connections.len() >= CONNECTIONS_MAX || prepare(&socket).is_err() {
                continue;
            }
            self.next_id += 1;
            let client = Side::accepted(socket);
            self.connections.insert(
                self.next_id,
                Connection {
                    client,
                    ..Connection::default()
                },
            );
            self.offer(Direction::Up, self.next_id, Content::Open);
        }
    }

    /// Connects to the target whose handshake has ended since the last round are answered.
    fn finish_connects(&mut self) {
        let mut answers = Vec::new();
        for (&id, connection) in &mut self.connections {
            let side = &mut connection.server;
            let Some(socket) = side.socket.as_ref().filter(|_| side.connecting) else {
                continue;
            };
            let refused = !matches!(socket.take_error(), Ok(None));
            if refused || socket.peer_addr().is_ok() {
                side.connecting = false;
                answers.push((
                    id,
                    if refused {
                        Content::Reset
                    } else {
                        Content::Opened
                    },
                ));
            }
        }
        for (id, answer) in answers {
            self.offer(Direction::Down, id, answer);
        }
    }

    /// Reads a segment at a time from each sender in turn, so that they share the link, until it has no room.
    fn read(&mut self, direction: Direction) {
        let last = self.last_read[direction as usize];
        let later = self.connections.range(last + 1..).map(|(&id, _)| id);
        let mut ready: VecDeque<u64> = later
            .chain(self.connections.range(..=last).map(|(&id, _)| id))
            .collect();
        while let Some(id) = ready.pop_front()
            && self.has_room(direction)
        {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let (from, to) = connection.ends(direction);
            if !from.opened || from.read_ended || to.outbox.len() >= OUTBOX_BYTES_MAX {
                continue;
            }
            let Some(socket) = from.socket.as_mut() else {
                continue;
            };
            let mut bytes = vec![0; MSS];
            let content = match socket.read(&mut bytes) {
                Ok(0) => Content::Fin,
                Ok(length) => {
                    bytes.truncate(length);
                    ready.push_back(id);
                    self.last_read[direction as usize] = id;
                    Content::Data(bytes)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => Content::Reset,
            };
            from.read_ended = !matches!(content, Content::Data(_));
            self.offer(direction, id, content);
        }
    }

    fn deliver(&mut self) -> bool {
        let mut worked = false;
        for direction in BOTH {
            loop {
                let segment = {
                    let mut pipe = self.link.lane(direction).pipe();
                    let now = self.link.clock.now();
                    pipe.poll(now)
                };
                let Some(segment) = segment else { break };
                worked = true;
                self.arrive(direction, segment);
            }
        }
        worked
    }

    fn arrive(&mut self, direction: Direction, segment: Segment) {
        let Some(connection) = self.connections.get_mut(&segment.connection) else {
            return;
        };
        let (_, to) = connection.ends(direction);
        match segment.content {
            Content::Open => match begin_connect(self.target) {
                Ok(socket) => {
                    to.socket = Some(socket);
                    to.connecting = true;
                }
                Err(_) => self.offer(Direction::Down, segment.connection, Content::Reset),
            },
            Content::Opened => {
                to.opened = true;
                self.offer(Direction::Up, segment.connection, Content::Established);
            }
            Content::Established => to.opened = true,
            Content::Data(bytes) => to.outbox.extend(bytes),
            Content::Fin => to.ending = true,
            Content::Reset => connection.reset = true,
        }
    }

    fn write(&mut self) {
        for connection in self.connections.values_mut() {
            let written = connection.client.write().and(connection.server.write());
            connection.reset |= written.is_err();
        }
    }

    fn sleep(&mut self, stop: &Stop) -> io::Result<()> {
        let mut next: Option<Duration> = None;
        let mut readable = [false; 2];
        for (direction, readable) in BOTH.into_iter().zip(&mut readable) {
            let mut pipe = self.link.lane(direction).pipe();
            let now = self.link.clock.now();
            *readable = pipe.has_room(now, MSS as u64 + self.header);
            let room = match (*readable, pipe.next_departure(), pipe.is_cut()) {
                (true, _, _) | (_, _, true) => None,
                (false, Some(departure), _) => Some(departure),
                (false, None, false) => Some(pipe.up_from(now)),
            };
            next = [next, pipe.next_event(), room].into_iter().flatten().min();
        }
        let timeout = next.map(|at| at.saturating_sub(self.link.clock.now()));
        let bells = [&stop.bell, &self.link.up.bell, &self.link.down.bell];
        let mut fds: Vec<_> = bells
            .iter()
            .map(|bell| PollFd::new(*bell, PollFlags::IN))
            .collect();
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        for connection in self.connections.values() {
            let pairs = [
                (&connection.client, &connection.server),
                (&connection.server, &connection.client),
            ];
            for ((side, other), readable) in pairs.into_iter().zip(readable) {
                let Some(socket) = &side.socket else { continue };
                let mut flags = PollFlags::empty();
                if readable
                    && side.opened
                    && !side.read_ended
                    && other.outbox.len() < OUTBOX_BYTES_MAX
                {
                    flags |= PollFlags::IN;
                }
                if side.connecting || !side.outbox.is_empty() {
                    flags |= PollFlags::OUT;
                }
                if !flags.is_empty() {
                    fds.push(PollFd::new(socket, flags));
                }
            }
        }
        wait(&mut fds, timeout)?;
        self.link.up.bell.silence();
        self.link.down.bell.silence();
        Ok(())
    }
}
