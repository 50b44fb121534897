//! Messages to and from the guest's agent, and the chunks that they come in (spice-protocol, vd_agent.h). Little-endian.
//!
//! ```text
//! chunk:    port u32, size u32, then size bytes of messages of that port
//! message:  protocol u32 = 1, type u32, opaque u64, size u32, then size bytes
//! ```
//!
//! A message may come in several chunks. Invariant: of a message, at most [`MESSAGE_BYTES_MAX`] bytes are kept; a longer one is passed
//! over. After a message of another protocol nothing more is told.

use serde::{Deserialize, Serialize};

use super::TEXT_BYTES_MAX;

/// The port of messages for clients; others are passed over.
const CLIENT_PORT: u32 = 1;
const PROTOCOL: u32 = 1;
const CHUNK_HEAD_BYTES: usize = 8;
const MESSAGE_HEAD_BYTES: usize = 20;
/// The largest chunk that agents take.
const CHUNK_BYTES_MAX: usize = 2048;
/// The longest body that is of interest: a text with which clipboard and of what kind it is.
pub(super) const MESSAGE_BYTES_MAX: usize = TEXT_BYTES_MAX + 8;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub kind: u32,
    pub body: Vec<u8>,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unpacker {
    chunk_head: Vec<u8>,
    /// Bytes that are left of the chunk, and whether they are for us.
    left: usize,
    is_ours: bool,
    /// Bytes of the message, its head first.
    message: Vec<u8>,
    /// Bytes of a message that is passed over.
    skip: u64,
    is_broken: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

impl Unpacker {
    /// Whether bytes can have led to it: one of a snapshot may be anything.
    pub(super) fn is_sound(&self) -> bool {
        let len = self.message.len();
        let field = |at| u32_at(&self.message, at);
        let is_message = match (field(0), field(MESSAGE_HEAD_BYTES - 4)) {
            _ if self.is_broken => len <= MESSAGE_HEAD_BYTES,
            (Some(PROTOCOL), Some(size)) => {
                let size = size as usize;
                size <= MESSAGE_BYTES_MAX && len < MESSAGE_HEAD_BYTES + size
            }
            (_, size) => size.is_none(),
        };
        let is_skipping = self.skip > 0;
        self.chunk_head.len() < CHUNK_HEAD_BYTES && is_message && !(is_skipping && len > 0)
    }

    /// Takes bytes; messages that are whole now are told in order.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Message)) {
        while !bytes.is_empty() && !self.is_broken {
            if self.left == 0 {
                let missing = CHUNK_HEAD_BYTES - self.chunk_head.len();
                let (head, rest) = bytes.split_at(missing.min(bytes.len()));
                self.chunk_head.extend_from_slice(head);
                bytes = rest;
                if let (Some(port), Some(size)) =
                    (u32_at(&self.chunk_head, 0), u32_at(&self.chunk_head, 4))
                {
                    self.is_ours = port == CLIENT_PORT;
                    self.left = size as usize;
                    self.chunk_head.clear();
                }
                continue;
            }
            let (here, rest) = bytes.split_at(self.left.min(bytes.len()));
            self.left -= here.len();
            bytes = rest;
            if self.is_ours {
                self.take(here, &mut tell);
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8], tell: &mut impl FnMut(Message)) {
        while !bytes.is_empty() && !self.is_broken {
            let passed = self.skip.min(bytes.len() as u64);
            self.skip -= passed;
            bytes = &bytes[passed as usize..];
            let wanted = match u32_at(&self.message, MESSAGE_HEAD_BYTES - 4) {
                None => MESSAGE_HEAD_BYTES,
                Some(size) => MESSAGE_HEAD_BYTES + size as usize,
            };
            let missing = wanted - self.message.len();
            let (here, rest) = bytes.split_at(missing.min(bytes.len()));
            self.message.extend_from_slice(here);
            bytes = rest;
            self.tell_if_whole(tell);
        }
    }

    fn tell_if_whole(&mut self, tell: &mut impl FnMut(Message)) {
        let field = |at| u32_at(&self.message, at);
        let (Some(protocol), Some(kind), Some(size)) = (field(0), field(4), field(16)) else {
            return;
        };
        if protocol != PROTOCOL {
            self.is_broken = true;
        } else if size as usize > MESSAGE_BYTES_MAX {
            self.skip = size.into();
            self.message.clear();
        } else if self.message.len() == MESSAGE_HEAD_BYTES + size as usize {
            let body = self.message.split_off(MESSAGE_HEAD_BYTES);
            self.message.clear();
            tell(Message { kind, body });
        }
    }
}

/// A message in chunks, behind what is in `out`.
pub(super) fn pack(kind: u32, body: &[u8], out: &mut Vec<u8>) {
    let mut message = Vec::with_capacity(MESSAGE_HEAD_BYTES + body.len());
    message.extend(PROTOCOL.to_le_bytes());
    message.extend(kind.to_le_bytes());
    message.extend(0u64.to_le_bytes());
    message.extend((body.len() as u32).to_le_bytes());
    message.extend_from_slice(body);
    for chunk in message.chunks(CHUNK_BYTES_MAX) {
        out.extend(CLIENT_PORT.to_le_bytes());
        out.extend((chunk.len() as u32).to_le_bytes());
        out.extend_from_slice(chunk);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(bytes: &[u8], step: usize) -> Vec<Message> {
        let (mut unpacker, mut all) = (Unpacker::default(), Vec::new());
        for piece in bytes.chunks(step) {
            unpacker.feed(piece, |message| all.push(message));
            assert!(unpacker.message.len() <= MESSAGE_HEAD_BYTES + MESSAGE_BYTES_MAX);
            assert!(unpacker.is_sound());
        }
        all
    }

    fn message(kind: u32, len: usize) -> Message {
        let body = (0..len).map(|at| at as u8).collect();
        Message { kind, body }
    }

    #[test]
    fn a_message_is_as_documented() {
        let mut out = Vec::new();
        pack(7, &[9, 8], &mut out);
        let expected = [
            [1, 0, 0, 0, 22, 0, 0, 0].as_slice(),
            &[
                1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 9, 8,
            ],
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn messages_come_whole_in_any_pieces_and_from_their_port_only() {
        let messages = [
            message(4, 5000),
            message(6, 0),
            message(7, MESSAGE_BYTES_MAX),
        ];
        let mut bytes = vec![2, 0, 0, 0, 3, 0, 0, 0, 99, 99, 99];
        for one in &messages {
            pack(one.kind, &one.body, &mut bytes);
        }
        for step in [1, 7, 4096, bytes.len()] {
            assert_eq!(told(&bytes, step), messages, "{step}");
        }
    }

    #[test]
    fn what_is_too_long_is_passed_over_and_another_protocol_ends_it() {
        let mut bytes = Vec::new();
        pack(4, &vec![0; MESSAGE_BYTES_MAX + 1], &mut bytes);
        pack(6, &[1], &mut bytes);
        assert_eq!(told(&bytes, 1000), [message_of(6, &[1])]);
        let mut other = vec![1, 0, 0, 0, 20, 0, 0, 0, 2];
        other.resize(8 + 20, 0);
        pack(6, &[1], &mut other);
        assert_eq!(told(&other, 1000), []);
    }

    #[test]
    fn what_no_bytes_lead_to_is_not_sound() {
        let with = |message: &[u8]| Unpacker {
            message: message.to_vec(),
            ..Unpacker::default()
        };
        let mut head = vec![1, 0, 0, 0];
        head.resize(MESSAGE_HEAD_BYTES, 0);
        assert!(with(&head[..19]).is_sound());
        assert!(!with(&head).is_sound(), "it is whole");
        head[16] = 2;
        assert!(with(&head).is_sound());
        head.extend([7, 7]);
        assert!(!with(&head).is_sound(), "it is whole");
        head[19] = 1;
        assert!(!with(&head).is_sound(), "it is too long");
        let head = Unpacker {
            chunk_head: vec![0; CHUNK_HEAD_BYTES],
            ..Unpacker::default()
        };
        assert!(!head.is_sound());
        let passed_over = Unpacker {
            skip: 1,
            ..with(&[1])
        };
        assert!(!passed_over.is_sound());
    }

    fn message_of(kind: u32, body: &[u8]) -> Message {
        let body = body.to_vec();
        Message { kind, body }
    }

    proptest! {
        #[test]
        fn garbage_is_kept_within_its_bound(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1u8), any::<u8>()], 0..3000),
            step in 1usize..500,
        ) {
            told(&bytes, step);
        }
    }
}
