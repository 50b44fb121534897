//! One request and its reply: the buffers both use, and how replies are laid out.
//!
//! Exchanges are reused, so that a request costs no allocation once a connection is warm. A payload starts at
//! [`HEAD_ROOM`] in its buffer: the header of the usual reply is put right before it, and header and payload leave as
//! one slice.

use std::ops::Range;
use std::time::Instant;

use super::limits::ERROR_TEXT_BYTES_MAX;
use super::wire::{
    ALLOCATION_CONTEXT_ID, CHUNK_HEADER_BYTES, REPLY_BLOCK_STATUS, REPLY_ERROR, REPLY_FLAG_DONE,
    REPLY_NONE, REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE, Request, SIMPLE_REPLY_BYTES,
    SIMPLE_REPLY_MAGIC, STATE_HOLE, STATE_ZERO, STRUCTURED_REPLY_MAGIC,
};
use crate::device::RangeStatus;

/// Bytes kept free before the payload: the longest header is a structured chunk's with its offset (28).
const HEAD_ROOM: usize = 32;

/// Zero runs of whole blocks of this size, aligned to it, are sent as holes.
const HOLE_GRAIN: usize = 4096;
static ZERO_BLOCK: [u8; HOLE_GRAIN] = [0; HOLE_GRAIN];

/// Where a piece of the reply is.
enum Part {
    Heads(Range<usize>),
    Buffer(Range<usize>),
}

/// One request and its reply.
pub(crate) struct Exchange {
    pub(crate) request: Request,
    /// When the request was complete.
    pub(crate) started: Instant,
    /// Bytes of the connection's allowance that this exchange holds.
    pub(crate) charged: usize,
    buffer: Vec<u8>,
    payload_len: usize,
    heads: Vec<u8>,
    parts: Vec<Part>,
}

impl Exchange {
    pub(crate) fn new() -> Self {
        Self {
            request: Request {
                flags: 0,
                command: 0,
                cookie: 0,
                offset: 0,
                len: 0,
            },
            started: Instant::now(),
            charged: 0,
            buffer: Vec::new(),
            payload_len: 0,
            heads: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// Makes the exchange ready for the next request.
    pub(crate) fn recycle(&mut self) {
        self.payload_len = 0;
        self.heads.clear();
        self.parts.clear();
    }

    /// Bytes of memory that it holds while it is idle.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.buffer.capacity() + self.heads.capacity()
    }

    /// Room for `len` bytes of payload, which hold anything.
    pub(crate) fn payload_mut(&mut self, len: usize) -> &mut [u8] {
        if self.buffer.len() < HEAD_ROOM + len {
            if self.buffer.capacity() < HEAD_ROOM + len {
                // A fresh zeroed allocation comes from the kernel untouched, so memory is used as bytes arrive.
                self.buffer = vec![0; HEAD_ROOM + len];
            } else {
                self.buffer.resize(HEAD_ROOM + len, 0);
            }
        }
        self.payload_len = len;
        &mut self.buffer[HEAD_ROOM..HEAD_ROOM + len]
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.buffer[HEAD_ROOM..HEAD_ROOM + self.payload_len]
    }

    /// The pieces of the reply, in order.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| match part {
            Part::Heads(range) => &self.heads[range.clone()],
            Part::Buffer(range) => &self.buffer[range.clone()],
        })
    }

    /// Length of the reply, bytes.
    pub(crate) fn reply_len(&self) -> usize {
        self.slices().map(<[u8]>::len).sum()
    }

    /// Success without content.
    pub(crate) fn reply_done(&mut self) {
        // A simple reply is valid whatever was negotiated, for everything except READ.
        if self.request.command == super::wire::CMD_READ {
            self.chunk_head(REPLY_FLAG_DONE, REPLY_NONE, 0);
            self.end_heads();
        } else {
            self.simple(0);
        }
    }

    /// Failure, with a text for a human where the client can take one.
    pub(crate) fn reply_error(&mut self, structured: bool, error: u32, text: &str) {
        debug_assert!(error != 0, "an error reply needs an error");
        self.heads.clear();
        self.parts.clear();
        if structured {
            let mut end = text.len().min(ERROR_TEXT_BYTES_MAX);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            self.chunk_head(REPLY_FLAG_DONE, REPLY_ERROR, 6 + end);
            self.heads.extend_from_slice(&error.to_be_bytes());
            self.heads.extend_from_slice(&(end as u16).to_be_bytes());
            self.heads.extend_from_slice(&text.as_bytes()[..end]);
            self.end_heads();
        } else {
            self.simple(error);
        }
    }

    /// The payload as a part of the answer to a READ of more: structured, and not its end.
    pub(crate) fn reply_read_part(&mut self) {
        self.reply_chunks(true, 0);
    }

    /// The payload as the answer to a READ.
    pub(crate) fn reply_read(&mut self, structured: bool, may_fragment: bool) {
        let len = self.payload_len;
        if !structured {
            let mut head = [0; SIMPLE_REPLY_BYTES];
            head[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
            head[8..].copy_from_slice(&self.request.cookie.to_be_bytes());
            return self.one_slice(&head, len);
        }
        if len == 0 {
            return self.reply_done();
        }
        self.reply_chunks(may_fragment, REPLY_FLAG_DONE);
    }

    /// The payload, which is not empty, as structured chunks, the last of which has `last_flags`.
    fn reply_chunks(&mut self, may_fragment: bool, last_flags: u16) {
        let len = self.payload_len;
        let first = next_run(self.payload(), self.request.offset, 0);
        if first.zero && first.end == len {
            self.hole_chunk(last_flags, self.request.offset, len as u32);
            return self.end_heads();
        }
        if first.end == len || !may_fragment {
            let mut head = [0; CHUNK_HEADER_BYTES + 8];
            head[..CHUNK_HEADER_BYTES].copy_from_slice(&self.encode_head(
                last_flags,
                REPLY_OFFSET_DATA,
                8 + len,
            ));
            head[CHUNK_HEADER_BYTES..].copy_from_slice(&self.request.offset.to_be_bytes());
            return self.one_slice(&head, len);
        }
        let (mut at, mut run) = (0, first);
        loop {
            let flags = if run.end == len { last_flags } else { 0 };
            let offset = self.request.offset + at as u64;
            let head_at = self.heads.len();
            if run.zero {
                self.hole_chunk(flags, offset, (run.end - at) as u32);
                self.parts.push(Part::Heads(head_at..self.heads.len()));
            } else {
                self.chunk_head(flags, REPLY_OFFSET_DATA, 8 + run.end - at);
                self.heads.extend_from_slice(&offset.to_be_bytes());
                self.parts.push(Part::Heads(head_at..self.heads.len()));
                self.parts
                    .push(Part::Buffer(HEAD_ROOM + at..HEAD_ROOM + run.end));
            }
            if run.end == len {
                return;
            }
            at = run.end;
            run = next_run(self.payload(), self.request.offset, at);
        }
    }

    /// The answer to a BLOCK_STATUS: `extents` are merged and not empty.
    pub(crate) fn reply_status(&mut self, extents: &[RangeStatus]) {
        self.chunk_head(REPLY_FLAG_DONE, REPLY_BLOCK_STATUS, 4 + 8 * extents.len());
        self.heads
            .extend_from_slice(&ALLOCATION_CONTEXT_ID.to_be_bytes());
        for extent in extents {
            let state =
                if extent.hole { STATE_HOLE } else { 0 } | if extent.zero { STATE_ZERO } else { 0 };
            self.heads
                .extend_from_slice(&(extent.len as u32).to_be_bytes());
            self.heads.extend_from_slice(&state.to_be_bytes());
        }
        self.end_heads();
    }

    fn simple(&mut self, error: u32) {
        self.heads
            .extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.heads.extend_from_slice(&error.to_be_bytes());
        self.heads
            .extend_from_slice(&self.request.cookie.to_be_bytes());
        self.end_heads();
    }

    /// Puts `head` right before the payload and sends both as one slice.
    fn one_slice(&mut self, head: &[u8], len: usize) {
        if self.buffer.len() < HEAD_ROOM {
            self.buffer.resize(HEAD_ROOM, 0);
        }
        let start = HEAD_ROOM - head.len();
        self.buffer[start..HEAD_ROOM].copy_from_slice(head);
        self.parts.push(Part::Buffer(start..HEAD_ROOM + len));
    }

    fn hole_chunk(&mut self, flags: u16, offset: u64, len: u32) {
        self.chunk_head(flags, REPLY_OFFSET_HOLE, 12);
        self.heads.extend_from_slice(&offset.to_be_bytes());
        self.heads.extend_from_slice(&len.to_be_bytes());
    }

    fn chunk_head(&mut self, flags: u16, kind: u16, len: usize) {
        let head = self.encode_head(flags, kind, len);
        self.heads.extend_from_slice(&head);
    }

    fn encode_head(&self, flags: u16, kind: u16, len: usize) -> [u8; CHUNK_HEADER_BYTES] {
        let len = u32::try_from(len).expect("a payload and its offset are far below 4 GiB");
        let mut head = [0; CHUNK_HEADER_BYTES];
        head[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&flags.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&self.request.cookie.to_be_bytes());
        head[16..].copy_from_slice(&len.to_be_bytes());
        head
    }

    fn end_heads(&mut self) {
        self.parts.push(Part::Heads(0..self.heads.len()));
    }
}

/// A stretch of payload that is all zero, or all to be sent.
struct Run {
    end: usize,
    zero: bool,
}

/// The longest stretch of one kind from `start`. Zero stretches are made of whole grains of the disk, except that a
/// payload's odd ends count too; looking at data costs its first few bytes per grain.
fn next_run(payload: &[u8], offset: u64, start: usize) -> Run {
    let grain_end = |at: usize| {
        let into = ((offset + at as u64) % HOLE_GRAIN as u64) as usize;
        (at + HOLE_GRAIN - into).min(payload.len())
    };
    let is_zero = |at: usize, end: usize| payload[at..end] == ZERO_BLOCK[..end - at];
    let mut end = grain_end(start);
    let zero = is_zero(start, end);
    while end < payload.len() {
        let next = grain_end(end);
        if is_zero(end, next) != zero {
            break;
        }
        end = next;
    }
    Run { end, zero }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::Exchange;
    use crate::nbd::wire::{CMD_READ, Request};

    fn read_reply(payload: &[u8], offset: u64, may_fragment: bool) -> Vec<(u16, u16, Vec<u8>)> {
        let mut exchange = Exchange::new();
        exchange.request = Request {
            flags: 0,
            command: CMD_READ,
            cookie: 7,
            offset,
            len: payload.len() as u32,
        };
        exchange.payload_mut(payload.len()).copy_from_slice(payload);
        exchange.reply_read(true, may_fragment);
        let wire: Vec<u8> = exchange.slices().flatten().copied().collect();
        assert_eq!(wire.len(), exchange.reply_len());
        let (mut at, mut chunks) = (0, Vec::new());
        while at < wire.len() {
            let len = u32::from_be_bytes(wire[at + 16..at + 20].try_into().unwrap()) as usize;
            let word = |from: usize| u16::from_be_bytes(wire[from..from + 2].try_into().unwrap());
            chunks.push((
                word(at + 4),
                word(at + 6),
                wire[at + 20..at + 20 + len].to_vec(),
            ));
            at += 20 + len;
        }
        chunks
    }

    #[test]
    fn zero_blocks_become_holes_and_only_the_last_chunk_is_final() {
        let mut payload = vec![0; 4 * 4096];
        payload[4096 + 5] = 1;
        let chunks = read_reply(&payload, 8192, true);
        let kinds: Vec<_> = chunks
            .iter()
            .map(|(flags, kind, body)| (*flags, *kind, body.len()))
            .collect();
        assert_eq!(kinds, [(0, 2, 12), (0, 1, 8 + 4096), (1, 2, 12)]);
        assert_eq!(
            chunks[2].2,
            [&16384u64.to_be_bytes()[..], &8192u32.to_be_bytes()].concat()
        );
    }

    #[test]
    fn an_unfragmented_read_has_one_chunk() {
        let mut payload = vec![0; 8192];
        assert_eq!(read_reply(&payload, 0, false)[0].1, 2);
        payload[0] = 1;
        let chunks = read_reply(&payload, 0, false);
        assert_eq!(
            (chunks.len(), chunks[0].0, chunks[0].1, chunks[0].2.len()),
            (1, 1, 1, 8200)
        );
    }

    #[test]
    fn odd_offsets_keep_their_ends() {
        let mut payload = vec![0; 5000];
        payload[4999] = 1;
        // The read starts 100 bytes before a grain ends: 100 zero bytes, one grain of zeroes, the rest is data.
        let chunks = read_reply(&payload, 4096 - 100, true);
        let kinds: Vec<_> = chunks
            .iter()
            .map(|(_, kind, body)| (*kind, body.len()))
            .collect();
        assert_eq!(kinds, [(2, 12), (1, 8 + 5000 - 4196)]);
    }
}
