//! The NBD protocol's numbers, and the parsers of what a client sends. Nothing here does I/O or allocates.
//!
//! Source: doc/proto.md of the NetworkBlockDevice project. All integers are big-endian. Extended headers (an
//! experimental extension) are not spoken: the option is answered as unknown, and clients then use these headers.

use super::limits::{META_QUERIES_MAX, NAME_BYTES_MAX};

pub(crate) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

// Handshake flags, the same bits from server and client.
pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
pub(crate) const FLAG_NO_ZEROES: u16 = 1 << 1;

// Transmission flags.
pub(crate) const TX_HAS_FLAGS: u16 = 1 << 0;
pub(crate) const TX_READ_ONLY: u16 = 1 << 1;
pub(crate) const TX_SEND_FLUSH: u16 = 1 << 2;
pub(crate) const TX_SEND_FUA: u16 = 1 << 3;
pub(crate) const TX_SEND_TRIM: u16 = 1 << 5;
pub(crate) const TX_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(crate) const TX_SEND_DF: u16 = 1 << 7;
pub(crate) const TX_CAN_MULTI_CONN: u16 = 1 << 8;
pub(crate) const TX_SEND_CACHE: u16 = 1 << 10;
pub(crate) const TX_SEND_FAST_ZERO: u16 = 1 << 11;

// Options.
pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;

// Option replies.
pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
pub(crate) const REP_ERR_POLICY: u32 = (1 << 31) + 2;
pub(crate) const REP_ERR_INVALID: u32 = (1 << 31) + 3;
pub(crate) const REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
pub(crate) const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
pub(crate) const REP_ERR_SHUTDOWN: u32 = (1 << 31) + 7;
pub(crate) const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

// Information items.
pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_NAME: u16 = 1;
pub(crate) const INFO_DESCRIPTION: u16 = 2;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

/// The one metadata context there is here, and the id it gets.
pub(crate) const ALLOCATION_CONTEXT: &str = "base:allocation";
pub(crate) const ALLOCATION_CONTEXT_ID: u32 = 1;
pub(crate) const STATE_HOLE: u32 = 1 << 0;
pub(crate) const STATE_ZERO: u32 = 1 << 1;

// Commands.
pub(crate) const CMD_READ: u16 = 0;
pub(crate) const CMD_WRITE: u16 = 1;
pub(crate) const CMD_DISC: u16 = 2;
pub(crate) const CMD_FLUSH: u16 = 3;
pub(crate) const CMD_TRIM: u16 = 4;
pub(crate) const CMD_CACHE: u16 = 5;
pub(crate) const CMD_WRITE_ZEROES: u16 = 6;
pub(crate) const CMD_BLOCK_STATUS: u16 = 7;

// Command flags.
pub(crate) const CMD_FLAG_FUA: u16 = 1 << 0;
pub(crate) const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub(crate) const CMD_FLAG_DF: u16 = 1 << 2;
pub(crate) const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
pub(crate) const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

// Structured replies.
pub(crate) const REPLY_FLAG_DONE: u16 = 1 << 0;
pub(crate) const REPLY_NONE: u16 = 0;
pub(crate) const REPLY_OFFSET_DATA: u16 = 1;
pub(crate) const REPLY_OFFSET_HOLE: u16 = 2;
pub(crate) const REPLY_BLOCK_STATUS: u16 = 5;
pub(crate) const REPLY_ERROR: u16 = (1 << 15) + 1;

// Errors, by the protocol's numbers.
pub(crate) const EPERM: u32 = 1;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;

/// Length of a request header, bytes.
pub(crate) const REQUEST_BYTES: usize = 28;
/// Length of an option header, bytes.
pub(crate) const OPTION_HEADER_BYTES: usize = 16;
/// Length of a simple reply, bytes.
pub(crate) const SIMPLE_REPLY_BYTES: usize = 16;
/// Length of a structured reply chunk's header, bytes.
pub(crate) const CHUNK_HEADER_BYTES: usize = 20;

/// One request as it came, not yet judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    /// Opaque; goes back in the reply.
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Request {
    /// `None` if the magic is wrong: the stream is then out of step for good.
    pub(crate) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
        })
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// One option's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OptionHeader {
    pub(crate) option: u32,
    pub(crate) len: u32,
}

impl OptionHeader {
    /// `None` if the magic is wrong.
    pub(crate) fn parse(bytes: &[u8; OPTION_HEADER_BYTES]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        if fields.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(Self {
            option: fields.u32()?,
            len: fields.u32()?,
        })
    }
}

/// Data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) wants_name: bool,
    pub(crate) wants_description: bool,
}

impl<'a> InfoRequest<'a> {
    /// `None` if lengths and counts do not add up to the data, or the name is no valid string.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(data);
        let name = fields.string()?;
        let count = fields.u16()?;
        let (mut wants_name, mut wants_description) = (false, false);
        for _ in 0..count {
            match fields.u16()? {
                INFO_NAME => wants_name = true,
                INFO_DESCRIPTION => wants_description = true,
                // Export and block sizes are always told; unknown items are to be ignored.
                _ => {}
            }
        }
        fields.is_empty().then_some(Self {
            name,
            wants_name,
            wants_description,
        })
    }
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MetaRequest<'a> {
    pub(crate) name: &'a str,
    /// No query at all, which asks a LIST for everything and a SET for nothing.
    pub(crate) no_queries: bool,
    /// `base:allocation` was named.
    pub(crate) names_allocation: bool,
    /// `base:`, the wildcard of a LIST, was named.
    pub(crate) names_base: bool,
}

/// Why a metadata option is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MetaError {
    Invalid,
    TooManyQueries,
}

impl<'a> MetaRequest<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, MetaError> {
        let mut fields = Fields::new(data);
        let name = fields.string().ok_or(MetaError::Invalid)?;
        let count = fields.u32().ok_or(MetaError::Invalid)?;
        if count > META_QUERIES_MAX {
            return Err(MetaError::TooManyQueries);
        }
        let mut request = Self {
            name,
            no_queries: count == 0,
            names_allocation: false,
            names_base: false,
        };
        for _ in 0..count {
            match fields.string().ok_or(MetaError::Invalid)? {
                ALLOCATION_CONTEXT => request.names_allocation = true,
                "base:" => request.names_base = true,
                // Other namespaces must be ignored; a query without one is a client's mistake.
                query if query.contains(':') => {}
                _ => return Err(MetaError::Invalid),
            }
        }
        if fields.is_empty() {
            Ok(request)
        } else {
            Err(MetaError::Invalid)
        }
    }
}

/// An export name as the client sent it: UTF-8 without NUL, of bounded length.
pub(crate) fn parse_name(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > NAME_BYTES_MAX || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// Reads big-endian fields off the front of a slice; every step checks what is left.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its 32-bit length before it.
    fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        parse_name(self.take(len)?)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::{InfoRequest, MetaError, MetaRequest, OptionHeader, Request};

    #[test]
    fn a_request_is_read_field_by_field() {
        let mut bytes = [0; 28];
        bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        bytes[4..8].copy_from_slice(&[0, 1, 0, 6]);
        bytes[15] = 9;
        bytes[23] = 8;
        bytes[27] = 7;
        let request = Request {
            flags: 1,
            command: 6,
            cookie: 9,
            offset: 8,
            len: 7,
        };
        assert_eq!(Request::parse(&bytes), Some(request));
        bytes[0] = 0;
        assert_eq!(Request::parse(&bytes), None);
    }

    #[test]
    fn an_option_needs_its_magic() {
        assert_eq!(
            OptionHeader::parse(b"IHAVEOPT\0\0\0\x07\0\0\0\x05"),
            Some(OptionHeader { option: 7, len: 5 })
        );
        assert_eq!(OptionHeader::parse(b"IHAVEOPt\0\0\0\x07\0\0\0\x05"), None);
    }

    #[test]
    fn info_requests_must_add_up() {
        let whole = InfoRequest::parse(b"\0\0\0\x01a\0\x02\0\x01\0\x03").unwrap();
        assert_eq!(
            (whole.name, whole.wants_name, whole.wants_description),
            ("a", true, false)
        );
        for broken in [
            &b""[..],
            b"\0\0\0\x02a\0\0",
            b"\xff\xff\xff\xffa\0\0",
            b"\0\0\0\x01a\0\x02\0\x01",
            b"\0\0\0\x01a\0\0more",
            b"\0\0\0\x01\xff\0\0",
            b"\0\0\0\x01\0\0\0",
        ] {
            assert_eq!(InfoRequest::parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn meta_requests_ignore_foreign_namespaces_only() {
        let request =
            MetaRequest::parse(b"\0\0\0\0\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x03x:y")
                .unwrap();
        assert!(request.names_allocation && !request.names_base && !request.no_queries);
        assert_eq!(
            MetaRequest::parse(b"\0\0\0\0\0\0\0\x01\0\0\0\x01x"),
            Err(MetaError::Invalid)
        );
        assert_eq!(
            MetaRequest::parse(b"\0\0\0\0\xff\0\0\x01\0\0\0\x01x"),
            Err(MetaError::TooManyQueries)
        );
        assert_eq!(
            MetaRequest::parse(b"\0\0\0\0\0\0\0\x01\0\0\0\x09x"),
            Err(MetaError::Invalid)
        );
    }
}
