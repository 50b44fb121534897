//! Messages of vhost-user in their wire form (QEMU, `docs/interop/vhost-user.rst`), for both ends. Pure: no sockets.
//!
//! ```text
//! request u32 | flags u32 | size u32 | body of `size` bytes        numbers in the machine's byte order, little-endian here
//! ```
//!
//! Only what a disk needs is known. A message that comes in becomes a [`Message`] or is refused: its length and its number of file
//! descriptors are exactly what its kind has.

mod body;

use std::os::fd::OwnedFd;

pub use body::{
    CONFIG_HEAD_BYTES, ConfigPart, InflightPlace, Region, VringAddresses, VringState, event_body,
};
use body::{EVENT_QUEUE, Fields, NO_EVENT, table};

/// Bytes before a body.
pub const HEADER_BYTES: usize = 12;
/// Longest body: a memory table of [`REGIONS_MAX`] regions is 1,032 bytes.
pub const BODY_BYTES_MAX: usize = 4096;
/// Most file descriptors of a message, and so most memory regions: QEMU sends 8 at most where slots are not negotiated.
pub const REGIONS_MAX: usize = 32;
/// The configuration of a virtio device that can be read.
pub const CONFIG_BYTES_MAX: u32 = 256;

/// Version in a header's flags.
const VERSION: u32 = 1;
/// In a header's flags: the version.
const VERSION_MASK: u32 = 3;
/// In a header's flags: this is a reply.
pub const REPLY: u32 = 1 << 2;
/// In a header's flags: tell whether it worked.
pub const NEED_REPLY: u32 = 1 << 3;

/// The virtio feature by which both ends say that they speak of protocol features.
pub const F_PROTOCOL: u64 = 1 << 30;

/// Protocol features.
pub mod protocol {
    /// Several queues.
    pub const MQ: u64 = 1 << 0;
    /// Every message can be acknowledged.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The configuration is the back-end's.
    pub const CONFIG: u64 = 1 << 9;
    /// Requests in flight are kept in shared memory.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
}

/// Kinds of messages.
pub mod code {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
}

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Kind of message.
    pub code: u32,
    /// [`REPLY`], [`NEED_REPLY`].
    pub flags: u32,
    /// Bytes of the body.
    pub size: usize,
}

impl Header {
    /// Parses a header.
    ///
    /// # Errors
    /// Another version, or a body that is too long.
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let mut words = Fields(&bytes);
        let (code, flags, size) = (words.u32(), words.u32(), words.u32());
        if flags & VERSION_MASK != VERSION {
            return Err(WireError::Version(flags & VERSION_MASK));
        }
        let size = size as usize;
        if size > BODY_BYTES_MAX {
            return Err(WireError::TooLong { code, size });
        }
        let flags = flags & (REPLY | NEED_REPLY);
        Ok(Self { code, flags, size })
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.code.to_le_bytes());
        bytes[4..8].copy_from_slice(&(self.flags | VERSION).to_le_bytes());
        bytes[8..].copy_from_slice(&(self.size as u32).to_le_bytes());
        bytes
    }
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Version.
    #[error("version {0} of the protocol, not {VERSION}")]
    Version(u32),
    /// Length, before the body was read.
    #[error("message {code} with a body of {size} bytes; at most {BODY_BYTES_MAX} are taken")]
    TooLong {
        /// Kind of message.
        code: u32,
        /// Bytes of its body.
        size: usize,
    },
    /// Length.
    #[error("message {code} with a body of {size} bytes")]
    Length {
        /// Kind of message.
        code: u32,
        /// Bytes of its body.
        size: usize,
    },
    /// File descriptors.
    #[error("message {code} with {count} file descriptors")]
    Descriptors {
        /// Kind of message.
        code: u32,
        /// How many came with it.
        count: usize,
    },
    /// A reply where a request should be, or the other way round.
    #[error("message {0} in the wrong direction")]
    Direction(u32),
    /// Kind.
    #[error("message {0} is not known")]
    Unknown(u32),
}

/// A message as it comes from the socket.
#[derive(Debug)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its body, as long as the header says.
    pub body: Vec<u8>,
    /// File descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A request of a front-end.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(Region, OwnedFd)>),
    SetVringNum(VringState),
    SetVringAddr(VringAddresses),
    SetVringBase(VringState),
    GetVringBase(u32),
    SetVringKick(u32, Option<OwnedFd>),
    SetVringCall(u32, Option<OwnedFd>),
    SetVringErr(u32),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(VringState),
    GetConfig(ConfigPart),
    SetConfig,
    GetInflightFd(InflightPlace),
    SetInflightFd(InflightPlace, OwnedFd),
}

impl Message {
    /// Parses a request.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn parse(frame: Frame) -> Result<Self, WireError> {
        let Frame { header, body, fds } = frame;
        let (code, size, count) = (header.code, body.len(), fds.len());
        if header.flags & REPLY != 0 {
            return Err(WireError::Direction(code));
        }
        let length = WireError::Length { code, size };
        let descriptors = WireError::Descriptors { code, count };
        let mut fds = fds.into_iter();
        let number = || -> Result<u64, WireError> {
            let mut fields = (size == 8).then_some(Fields(&body)).ok_or(length)?;
            Ok(fields.u64())
        };
        let state = || VringState::parse(&body).ok_or(length);
        let empty = |message| if size == 0 { Ok(message) } else { Err(length) };
        let message = match code {
            code::GET_FEATURES => empty(Self::GetFeatures)?,
            code::SET_FEATURES => Self::SetFeatures(number()?),
            code::SET_OWNER => empty(Self::SetOwner)?,
            code::RESET_OWNER => empty(Self::ResetOwner)?,
            code::SET_MEM_TABLE => {
                let regions = table(&body).ok_or(length)?;
                if regions.len() != count {
                    return Err(descriptors);
                }
                return Ok(Self::SetMemTable(regions.into_iter().zip(fds).collect()));
            }
            code::SET_VRING_NUM => Self::SetVringNum(state()?),
            code::SET_VRING_ADDR => Self::SetVringAddr(VringAddresses::parse(&body).ok_or(length)?),
            code::SET_VRING_BASE => Self::SetVringBase(state()?),
            code::GET_VRING_BASE => Self::GetVringBase(state()?.index),
            code::SET_VRING_KICK | code::SET_VRING_CALL | code::SET_VRING_ERR => {
                let word = number()?;
                if count != usize::from(word & NO_EVENT == 0) {
                    return Err(descriptors);
                }
                let (queue, event) = ((word & EVENT_QUEUE) as u32, fds.next());
                return Ok(match code {
                    code::SET_VRING_KICK => Self::SetVringKick(queue, event),
                    code::SET_VRING_CALL => Self::SetVringCall(queue, event),
                    _ => Self::SetVringErr(queue),
                });
            }
            code::GET_PROTOCOL_FEATURES => empty(Self::GetProtocolFeatures)?,
            code::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(number()?),
            code::GET_QUEUE_NUM => empty(Self::GetQueueNum)?,
            code::SET_VRING_ENABLE => Self::SetVringEnable(state()?),
            code::GET_CONFIG => Self::GetConfig(ConfigPart::parse(&body).ok_or(length)?),
            code::SET_CONFIG => {
                ConfigPart::parse(&body).ok_or(length)?;
                Self::SetConfig
            }
            code::GET_INFLIGHT_FD => {
                Self::GetInflightFd(InflightPlace::parse(&body).ok_or(length)?)
            }
            code::SET_INFLIGHT_FD => {
                let place = InflightPlace::parse(&body).ok_or(length)?;
                let (Some(fd), None) = (fds.next(), fds.next()) else {
                    return Err(descriptors);
                };
                return Ok(Self::SetInflightFd(place, fd));
            }
            _ => return Err(WireError::Unknown(code)),
        };
        // Those that take descriptors have returned.
        if count == 0 {
            Ok(message)
        } else {
            Err(descriptors)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(code: u32, body: Vec<u8>, fds: usize) -> Result<Message, WireError> {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").expect("it is everywhere"));
        let header = Header {
            code,
            flags: 0,
            size: body.len(),
        };
        let fds = std::iter::repeat_with(null).take(fds).collect();
        Message::parse(Frame { header, body, fds })
    }

    #[test]
    fn headers_have_a_version_and_a_bounded_length() {
        let header = Header {
            code: 5,
            flags: NEED_REPLY,
            size: 40,
        };
        let mut bytes = header.bytes();
        assert_eq!(bytes, [5, 0, 0, 0, 9, 0, 0, 0, 40, 0, 0, 0]);
        assert_eq!(Header::parse(bytes), Ok(header));
        bytes[10] = 1;
        let size = (1 << 16) + 40;
        assert_eq!(
            Header::parse(bytes),
            Err(WireError::TooLong { code: 5, size })
        );
        bytes[4] = 2;
        assert_eq!(Header::parse(bytes), Err(WireError::Version(2)));
    }

    #[test]
    fn bodies_come_back_as_they_were() {
        let regions = [1, 2].map(|n| Region {
            guest: n << 32,
            len: n << 20,
            user: n,
            offset: n << 12,
        });
        let Ok(Message::SetMemTable(taken)) =
            parse(code::SET_MEM_TABLE, Region::table(&regions), 2)
        else {
            panic!("a table");
        };
        assert_eq!(
            taken.iter().map(|(region, _)| *region).collect::<Vec<_>>(),
            regions
        );
        let addresses = VringAddresses {
            index: 3,
            descriptors: 4,
            used: 5,
            available: 6,
        };
        assert!(matches!(
            parse(code::SET_VRING_ADDR, addresses.body(), 0),
            Ok(Message::SetVringAddr(taken)) if taken == addresses
        ));
        let place = InflightPlace {
            len: 1 << 14,
            offset: 0,
            queues: 2,
            queue_size: 256,
        };
        let body = place.body();
        assert_eq!(body.len(), 24);
        assert_eq!(InflightPlace::parse(&body), Some(place));
        assert_eq!(InflightPlace::parse(&body[..20]), Some(place));
        assert_eq!(InflightPlace::parse(&body[..21]), None);
        let part = ConfigPart { offset: 8, len: 4 };
        assert_eq!(ConfigPart::parse(&part.body(&[1, 2, 3, 4])), Some(part));
        assert_eq!(ConfigPart::parse(&part.body(&[1, 2, 3])), None);
        let far = ConfigPart {
            offset: u32::MAX,
            len: 4,
        };
        assert_eq!(ConfigPart::parse(&far.body(&[0; 4])), None);
    }

    #[test]
    fn a_message_has_exactly_its_descriptors() {
        for (code, body, right) in [
            (code::GET_FEATURES, vec![], 0),
            (code::SET_MEM_TABLE, Region::table(&[]), 0),
            (code::SET_VRING_CALL, event_body(1, true), 1),
            (code::SET_VRING_CALL, event_body(1, false), 0),
            (code::SET_VRING_KICK, event_body(1, true), 1),
        ] {
            for count in 0..3 {
                let parsed = parse(code, body.clone(), count);
                let wrong = WireError::Descriptors { code, count };
                assert_eq!(parsed.is_ok(), count == right, "{code} with {count}");
                assert!(parsed.is_ok() || parsed.is_err_and(|error| error == wrong));
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(
            code in 0..64u32,
            body in proptest::collection::vec(any::<u8>(), 0..200),
            fds in 0..3usize,
        ) {
            let _ = parse(code, body, fds);
        }
    }
}
