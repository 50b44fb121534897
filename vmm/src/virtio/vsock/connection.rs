//! One connection, between a stream of the host and a port of the guest. No rings: packets are values.
//!
//! ```text
//!  host calls:  Calling ──RESPONSE──► Open            guest calls:  Answering ──(RESPONSE is sent)──► Open
//!  any ── RESET from the guest, or the stream fails, or both have ended and all is passed on ──► Ended
//! ```
//!
//! Invariant: what the guest has sent and the stream has not taken is at most [`BUFFER_BYTES`], which is what the guest was told; a guest
//! that sends more is reset. What the host's program sends stays in its socket until the guest has said that it has room.

use std::io::{self, ErrorKind, Read, Write};

use super::packet::{
    HOST_CID, Header, PACKET_BYTES_MAX, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM, op,
};

/// Room for what the guest sends, as much as Linux gives a socket.
pub(super) const BUFFER_BYTES: u32 = 256 << 10;
/// Room that has become free since the guest heard of it last, at which it is told without asking.
const TELL_BYTES: u32 = BUFFER_BYTES / 4;

/// The host's end.
pub(super) trait Stream: Read + Write {
    /// Nothing more will be written.
    fn end_writes(&mut self);
}

/// Who is at the ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ends {
    pub host_port: u32,
    pub guest_port: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host calls; whether the guest has been asked.
    Calling {
        asked: bool,
    },
    /// The guest calls, and is to be answered.
    Answering,
    Open,
    /// Over; whether the guest is to be told.
    Ended {
        tell: bool,
    },
}

/// See the module.
pub(super) struct Connection<S> {
    ends: Ends,
    stream: S,
    phase: Phase,
    /// From the guest, not taken by the stream yet.
    unsent: Vec<u8>,
    /// Bytes that came from the guest, and those of them that the stream has taken; both wrap.
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    told: u32,
    /// The guest wants to know.
    owes_credit: bool,
    /// What the guest says of its own room; both wrap.
    guest_buffer: u32,
    guest_taken: u32,
    /// Bytes sent to the guest.
    sent: u32,
    asked_for_credit: bool,
    /// The stream may have something.
    readable: bool,
    /// The host's program sends no more, and whether the guest knows.
    host_ended: bool,
    told_end: bool,
    /// What the guest has shut down.
    guest_shut: u32,
    writes_ended: bool,
}

impl<S: Stream> Connection<S> {
    fn new(ends: Ends, stream: S, phase: Phase) -> Self {
        Self {
            ends,
            stream,
            phase,
            unsent: Vec::new(),
            received: 0,
            forwarded: 0,
            told: 0,
            owes_credit: false,
            guest_buffer: 0,
            guest_taken: 0,
            sent: 0,
            asked_for_credit: false,
            readable: true,
            host_ended: false,
            told_end: false,
            guest_shut: 0,
            writes_ended: false,
        }
    }

    /// A program of the host calls the guest.
    pub(super) fn calling(ends: Ends, stream: S) -> Self {
        Self::new(ends, stream, Phase::Calling { asked: false })
    }

    /// The guest has called with this packet, and somebody is there.
    pub(super) fn answering(ends: Ends, stream: S, request: &Header) -> Self {
        let mut this = Self::new(ends, stream, Phase::Answering);
        this.note_room(request);
        this
    }

    /// Whether the guest has not answered yet.
    pub(super) fn is_calling(&self) -> bool {
        matches!(self.phase, Phase::Calling { .. })
    }

    /// Whether it is over and the guest knows.
    pub(super) fn is_gone(&self) -> bool {
        self.phase == Phase::Ended { tell: false }
    }

    /// The stream may have something to read.
    pub(super) fn wake(&mut self) {
        self.readable = true;
    }

    /// Ends it; the guest will be told.
    pub(super) fn reset(&mut self) {
        if !matches!(self.phase, Phase::Ended { .. }) {
            // Nobody at the other end has heard of a call that was not made yet.
            let tell = self.phase != Phase::Calling { asked: false };
            self.phase = Phase::Ended { tell };
            self.unsent = Vec::new();
        }
    }

    fn note_room(&mut self, header: &Header) {
        (self.guest_buffer, self.guest_taken) = (header.buf_alloc, header.fwd_cnt);
    }

    /// Bytes that the guest has room for, by its own words.
    fn guest_room(&self) -> usize {
        let on_the_way = self.sent.wrapping_sub(self.guest_taken);
        self.guest_buffer.saturating_sub(on_the_way) as usize
    }

    /// A packet of the guest's for this connection.
    pub(super) fn take(&mut self, header: &Header, data: &[u8]) {
        if matches!(self.phase, Phase::Ended { .. }) {
            if header.op == op::RESET {
                self.phase = Phase::Ended { tell: false };
            }
            return;
        }
        self.note_room(header);
        // An answer that there is no room is not asked again.
        self.asked_for_credit &= self.guest_room() == 0;
        match (header.op, self.phase) {
            (op::RESET, _) => {
                self.flush();
                self.phase = Phase::Ended { tell: false };
            }
            (op::RESPONSE, Phase::Calling { asked: true }) => self.answered(),
            (op::DATA, Phase::Open) if self.guest_shut & SHUTDOWN_SEND == 0 => self.receive(data),
            (op::SHUTDOWN, Phase::Open) => {
                self.guest_shut |= header.flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
                self.flush();
            }
            (op::CREDIT_UPDATE, Phase::Open) => {}
            (op::CREDIT_REQUEST, Phase::Open) => self.owes_credit = true,
            // Anything else makes no sense now.
            _ => self.reset(),
        }
    }

    /// Tells the host's program that it is connected. A new socket has room for that.
    fn answered(&mut self) {
        self.phase = Phase::Open;
        let line = format!("OK {}\n", self.ends.host_port);
        if !matches!(self.stream.write(line.as_bytes()), Ok(len) if len == line.len()) {
            self.reset();
        }
    }

    fn receive(&mut self, data: &[u8]) {
        let held = self.received.wrapping_sub(self.forwarded) as usize;
        if held + data.len() > BUFFER_BYTES as usize {
            // It was told how much room there is.
            self.reset();
            return;
        }
        self.received = self.received.wrapping_add(data.len() as u32);
        self.unsent.extend_from_slice(data);
        self.flush();
    }

    /// Passes on what the guest has sent, as far as the stream takes it.
    pub(super) fn flush(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        let mut taken = 0;
        while taken < self.unsent.len() {
            match self.stream.write(&self.unsent[taken..]) {
                Ok(len @ 1..) => taken += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Nobody is there any more.
                _ => return self.reset(),
            }
        }
        self.unsent.drain(..taken);
        self.forwarded = self.forwarded.wrapping_add(taken as u32);
        if !self.unsent.is_empty() {
            return;
        }
        if self.guest_shut & SHUTDOWN_SEND != 0 && !self.writes_ended {
            self.writes_ended = true;
            self.stream.end_writes();
        }
        // A guest that neither sends nor takes waits to hear that everything has been passed on.
        if self.guest_shut == SHUTDOWN_RECEIVE | SHUTDOWN_SEND {
            self.reset();
        }
    }

    fn packet(&mut self, op: u16, flags: u32, len: usize, guest_cid: u64) -> Header {
        self.told = self.forwarded;
        self.owes_credit = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ends.host_port,
            dst_port: self.ends.guest_port,
            len: len as u32,
            kind: STREAM,
            op,
            flags,
            buf_alloc: BUFFER_BYTES,
            fwd_cnt: self.forwarded,
        }
    }

    /// The next packet for the guest, with at most `room` bytes of data, which are put into `data`.
    pub(super) fn give(
        &mut self,
        guest_cid: u64,
        room: usize,
        data: &mut Vec<u8>,
    ) -> Option<Header> {
        data.clear();
        match self.phase {
            Phase::Calling { asked: false } => {
                self.phase = Phase::Calling { asked: true };
                return Some(self.packet(op::REQUEST, 0, 0, guest_cid));
            }
            Phase::Answering => {
                self.phase = Phase::Open;
                return Some(self.packet(op::RESPONSE, 0, 0, guest_cid));
            }
            Phase::Ended { tell: true } => {
                self.phase = Phase::Ended { tell: false };
                return Some(self.packet(op::RESET, 0, 0, guest_cid));
            }
            Phase::Calling { asked: true } | Phase::Ended { tell: false } => return None,
            Phase::Open => {}
        }
        self.read(room, data);
        if matches!(self.phase, Phase::Ended { .. }) {
            return self.give(guest_cid, room, data);
        }
        if !data.is_empty() {
            self.sent = self.sent.wrapping_add(data.len() as u32);
            return Some(self.packet(op::DATA, 0, data.len(), guest_cid));
        }
        if self.host_ended && !self.told_end {
            self.told_end = true;
            return Some(self.packet(op::SHUTDOWN, SHUTDOWN_SEND, 0, guest_cid));
        }
        let untold = self.forwarded.wrapping_sub(self.told);
        if self.owes_credit || untold >= TELL_BYTES {
            return Some(self.packet(op::CREDIT_UPDATE, 0, 0, guest_cid));
        }
        let waits = self.readable && !self.host_ended && self.guest_room() == 0;
        if waits && self.guest_shut == 0 && !self.asked_for_credit {
            self.asked_for_credit = true;
            return Some(self.packet(op::CREDIT_REQUEST, 0, 0, guest_cid));
        }
        None
    }

    /// Reads from the stream what the guest has room for.
    fn read(&mut self, room: usize, data: &mut Vec<u8>) {
        let room = room.min(self.guest_room()).min(PACKET_BYTES_MAX);
        let takes = self.guest_shut & SHUTDOWN_RECEIVE == 0;
        if room == 0 || !self.readable || self.host_ended || !takes {
            return;
        }
        data.resize(room, 0);
        let read = loop {
            match self.stream.read(data) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        data.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.host_ended = true,
            Ok(_) => {}
            Err(error) if is_empty(&error) => self.readable = false,
            Err(_) => self.reset(),
        }
    }
}

fn is_empty(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}
