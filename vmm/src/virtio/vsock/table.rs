//! All connections of a guest, and what is to be said to it next. No rings and no sockets of its own.
//!
//! Invariant: there are at most [`CONNECTIONS_MAX`] connections and [`REFUSALS_MAX`] refusals that wait for room; a guest that takes
//! nothing is not listened to any more before there would be more.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::connection::{Connection, Ends, Stream};
use super::packet::{HOST_CID, Header, STREAM, op};

/// Most connections: agents have a few. With [`super::connection::BUFFER_BYTES`] each, a guest takes 16 MiB of ours at most.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Most packets that tell of connections which do not exist.
const REFUSALS_MAX: usize = 64;
/// Ports of the host's programs that call, as no service has them.
const CALLERS_FIRST: u32 = 1 << 30;
const CALLERS_LAST: u32 = (1 << 31) - 1;

/// Where the guest's calls go.
pub(super) trait Host {
    type Stream: Stream;
    /// Connects to whoever serves this port. `None`: nobody does.
    fn connect(&mut self, port: u32) -> Option<Self::Stream>;
}

/// See the module.
pub(super) struct Connections<S> {
    guest_cid: u64,
    all: BTreeMap<Ends, Connection<S>>,
    refusals: VecDeque<Header>,
    /// The last that was served, so that the others come before it.
    last: Option<Ends>,
    next_caller: u32,
}

impl<S: Stream> Connections<S> {
    pub(super) fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            all: BTreeMap::new(),
            refusals: VecDeque::new(),
            last: None,
            next_caller: CALLERS_FIRST,
        }
    }

    /// Whether a packet of the guest's can be taken.
    pub(super) fn listens(&self) -> bool {
        self.refusals.len() < REFUSALS_MAX
    }

    /// Connections that there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// A program of the host calls a port of the guest. When there are too many, the one that has waited longest for its answer goes; if
    /// none waits, this one does.
    pub(super) fn call(&mut self, guest_port: u32, stream: S) {
        if self.all.len() >= CONNECTIONS_MAX {
            let mut waiting = self.all.iter().filter(|(_, one)| one.is_calling());
            // The guest never hears of its end: an answer will be refused as one to nobody.
            let Some((oldest, _)) = waiting.next() else {
                return;
            };
            let oldest = *oldest;
            self.all.remove(&oldest);
        }
        let ends = loop {
            let host_port = self.next_caller;
            self.next_caller = match host_port {
                CALLERS_LAST => CALLERS_FIRST,
                port => port + 1,
            };
            let ends = Ends {
                host_port,
                guest_port,
            };
            if !self.all.contains_key(&ends) {
                break ends;
            }
        };
        self.all.insert(ends, Connection::calling(ends, stream));
    }

    /// A packet of the guest's.
    pub(super) fn take(&mut self, header: &Header, data: &[u8], host: &mut impl Host<Stream = S>) {
        if header.src_cid != self.guest_cid {
            // It speaks for somebody else.
            return;
        }
        let ends = Ends {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let is_ours = header.dst_cid == HOST_CID && header.kind == STREAM;
        if let Some(connection) = self.all.get_mut(&ends).filter(|_| is_ours) {
            connection.take(header, data);
            if connection.is_gone() {
                self.all.remove(&ends);
            }
            return;
        }
        let is_call = is_ours && header.op == op::REQUEST && self.all.len() < CONNECTIONS_MAX;
        let stream = if is_call {
            host.connect(header.dst_port)
        } else {
            None
        };
        if let Some(stream) = stream {
            let connection = Connection::answering(ends, stream, header);
            self.all.insert(ends, connection);
        } else if header.op != op::RESET && self.listens() {
            self.refusals.push_back(header.refusal());
        }
    }

    /// Streams may have something to read, or take something.
    pub(super) fn wake(&mut self) {
        for connection in self.all.values_mut() {
            connection.wake();
            connection.flush();
        }
        self.all.retain(|_, connection| !connection.is_gone());
    }

    /// The next packet for the guest, with at most `room` bytes of data, which are put into `data`.
    pub(super) fn give(&mut self, room: usize, data: &mut Vec<u8>) -> Option<Header> {
        data.clear();
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self
            .all
            .range((after, Bound::Unbounded))
            .map(|(ends, _)| *ends);
        let before = self
            .all
            .keys()
            .copied()
            .take_while(|ends| Some(*ends) <= self.last);
        let order: Vec<Ends> = behind.chain(before).collect();
        for ends in order {
            let Some(connection) = self.all.get_mut(&ends) else {
                continue;
            };
            let given = connection.give(self.guest_cid, room, data);
            if connection.is_gone() {
                self.all.remove(&ends);
            }
            if given.is_some() {
                self.last = Some(ends);
                return given;
            }
        }
        None
    }
}
