//! The pack file format, version 1, as values: header, record header, seal, and the reader of a whole pack.
//!
//! Pure: bytes in, bytes out; [`crate::chunk_store`] does the I/O. Documented byte by byte in `docs/disk-formats/store.md`. The
//! checksum of a record header depends on the pack and the offset it lies at, so that a pack file inside a guest's disk, stored as
//! the bytes of a chunk, is never taken for records of ours.

use std::fmt;

use bytes::Bytes;
use dedup::{CHUNK_BYTES_MAX, ChunkId, IdKey, NodeId, RealmId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::codec::{self, Encoding};

/// Longest pack file, in bytes. A verification or rebuild holds one in memory.
pub const PACK_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Longest manifest node, in bytes. Decoders allocate no more than this for one node.
pub const NODE_BYTES_MAX: usize = 1024 * 1024;

/// The pack format that this release writes.
pub const PACK_VERSION: u16 = 1;

pub(crate) const HEADER_LEN: usize = 64;
pub(crate) const RECORD_HEADER_LEN: usize = 64;
pub(crate) const SEAL_LEN: usize = 64;

const PACK_MAGIC: [u8; 8] = *b"SPLPACK\0";
const RECORD_MARK: [u8; 4] = *b"SREC";
const SEAL_MARK: [u8; 4] = *b"SEAL";
/// Every fixed structure ends with the checksum of what precedes it.
const CHECKSUM_AT: usize = 56;

/// The number of a pack file; numbers only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackNumber(pub u64);

/// The directory of the pack files on the store's disk.
pub const PACK_DIR: &str = "packs";

impl PackNumber {
    /// The pack's path on the store's disk, and in a backup.
    pub fn path(self) -> String {
        format!("{PACK_DIR}/{:016x}.pack", self.0)
    }

    /// The pack that a file name in the pack directory means.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".pack")?;
        if digits.len() != 16 || digits.contains(|c: char| !matches!(c, '0'..='9' | 'a'..='f')) {
            return None;
        }
        u64::from_str_radix(digits, 16).ok().map(Self)
    }
}

impl fmt::Display for PackNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

/// What a record holds. The numbers are part of the pack format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A chunk of disk content.
    Chunk = 1,
    /// An encoded manifest node.
    Node = 2,
}

impl RecordKind {
    pub(crate) fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(RecordKind::Chunk),
            2 => Some(RecordKind::Node),
            _ => None,
        }
    }

    /// Longest plain content, in bytes.
    pub(crate) fn bytes_max(self) -> usize {
        match self {
            RecordKind::Chunk => CHUNK_BYTES_MAX,
            RecordKind::Node => NODE_BYTES_MAX,
        }
    }
}

/// Kind and id: what a record is found by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordName {
    /// What it holds.
    pub kind: RecordKind,
    /// The bytes of its [`ChunkId`] or [`NodeId`].
    pub id: [u8; 32],
}

impl RecordName {
    /// The name of a chunk's record.
    pub fn chunk(id: ChunkId) -> Self {
        Self {
            kind: RecordKind::Chunk,
            id: id.0,
        }
    }

    /// The name of a manifest node's record.
    pub fn node(id: NodeId) -> Self {
        Self {
            kind: RecordKind::Node,
            id: id.0,
        }
    }

    /// The name that `plain` has under `key`.
    pub(crate) fn of(kind: RecordKind, key: &IdKey, plain: &[u8]) -> Self {
        match kind {
            RecordKind::Chunk => Self::chunk(key.chunk_id(plain)),
            RecordKind::Node => Self::node(key.node_id(plain)),
        }
    }
}

impl fmt::Debug for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RecordKind::Chunk => write!(f, "chunk {}", ChunkId(self.id)),
            RecordKind::Node => write!(f, "manifest node {}", NodeId(self.id)),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// `N` bytes from `at`. The caller has checked the length of the structure.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// What makes the same bytes at another place not pass for a structure.
fn place(pack: PackNumber, offset: u64) -> u64 {
    pack.0.rotate_left(32) ^ offset
}

fn finish_checksum(bytes: &mut [u8; 64], seed: u64) {
    let sum = xxh3_64_with_seed(&bytes[..CHECKSUM_AT], seed);
    bytes[CHECKSUM_AT..].copy_from_slice(&sum.to_le_bytes());
}

fn checksum_holds(bytes: &[u8], seed: u64) -> bool {
    debug_assert_eq!(bytes.len(), CHECKSUM_AT + 8);
    xxh3_64_with_seed(&bytes[..CHECKSUM_AT], seed) == u64_at(bytes, CHECKSUM_AT)
}

/// Why the first bytes of a file are no pack header of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("it ends after {0} bytes, inside its header")]
    Short(usize),
    #[error("it does not begin as a pack file")]
    Magic,
    #[error("its format version is {0}, this release reads {PACK_VERSION}")]
    Version(u16),
    #[error("its header does not match its checksum")]
    Checksum,
}

/// Gives what may be a record header the checksum that belongs there, for tests of what lies behind it.
pub(crate) fn mend(header: &mut [u8], pack: PackNumber, offset: u64) {
    let sum = xxh3_64_with_seed(&header[..CHECKSUM_AT], place(pack, offset));
    header[CHECKSUM_AT..RECORD_HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
}

/// The first bytes of a pack file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackHeader {
    pub(crate) realm: RealmId,
    pub(crate) key_id: [u8; 8],
    pub(crate) pack: PackNumber,
}

impl PackHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&PACK_MAGIC);
        bytes[8..10].copy_from_slice(&PACK_VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(HEADER_LEN as u16).to_le_bytes());
        bytes[16..32].copy_from_slice(&self.realm.0);
        bytes[32..40].copy_from_slice(&self.key_id);
        bytes[40..48].copy_from_slice(&self.pack.0.to_le_bytes());
        finish_checksum(&mut bytes, 0);
        bytes
    }

    /// Reads a header.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() < HEADER_LEN {
            return Err(HeaderError::Short(bytes.len()));
        }
        if bytes[..8] != PACK_MAGIC {
            return Err(HeaderError::Magic);
        }
        // A later version may place its checksum elsewhere, so the version comes first.
        let version = u16_at(bytes, 8);
        if version != PACK_VERSION {
            return Err(HeaderError::Version(version));
        }
        if !checksum_holds(&bytes[..HEADER_LEN], 0) {
            return Err(HeaderError::Checksum);
        }
        Ok(Self {
            realm: RealmId(array_at(bytes, 16)),
            key_id: array_at(bytes, 32),
            pack: PackNumber(u64_at(bytes, 40)),
        })
    }
}

/// What precedes each record's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) name: RecordName,
    pub(crate) encoding: Encoding,
    pub(crate) raw_len: u32,
    pub(crate) stored_len: u32,
    pub(crate) stored_sum: u64,
}

impl RecordHeader {
    /// Length of the whole record in bytes.
    pub(crate) fn record_len(&self) -> u64 {
        RECORD_HEADER_LEN as u64 + u64::from(self.stored_len)
    }

    pub(crate) fn encode(&self, pack: PackNumber, offset: u64) -> [u8; RECORD_HEADER_LEN] {
        let mut bytes = [0; RECORD_HEADER_LEN];
        bytes[..4].copy_from_slice(&RECORD_MARK);
        bytes[4] = self.name.kind as u8;
        bytes[5] = self.encoding as u8;
        bytes[8..40].copy_from_slice(&self.name.id);
        bytes[40..44].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.stored_sum.to_le_bytes());
        finish_checksum(&mut bytes, place(pack, offset));
        bytes
    }

    /// Reads the record header at `offset` of `pack`, or says what is wrong with it.
    pub(crate) fn parse(bytes: &[u8], pack: PackNumber, offset: u64) -> Result<Self, String> {
        if bytes.len() < RECORD_HEADER_LEN {
            return Err("the file ends inside a record header".into());
        }
        if bytes[..4] != RECORD_MARK {
            return Err("no record begins here".into());
        }
        if !checksum_holds(&bytes[..RECORD_HEADER_LEN], place(pack, offset)) {
            return Err("the record header does not match its checksum".into());
        }
        let kind = RecordKind::from_tag(bytes[4])
            .ok_or_else(|| format!("unknown record kind {}", bytes[4]))?;
        let encoding =
            Encoding::from_tag(bytes[5]).ok_or_else(|| format!("unknown encoding {}", bytes[5]))?;
        let header = Self {
            name: RecordName {
                kind,
                id: array_at(bytes, 8),
            },
            encoding,
            raw_len: u32_at(bytes, 40),
            stored_len: u32_at(bytes, 44),
            stored_sum: u64_at(bytes, 48),
        };
        // A flag would mean something that this release does not know.
        let flags = u16_at(bytes, 6);
        if flags != 0 {
            return Err(format!("unknown flags {flags:#06x}"));
        }
        if header.raw_len as usize > kind.bytes_max() || header.stored_len > header.raw_len {
            return Err(format!(
                "{} claims {} bytes stored as {}, the limit is {}",
                header.name,
                header.raw_len,
                header.stored_len,
                kind.bytes_max()
            ));
        }
        Ok(header)
    }

    /// The plain bytes, proven by name. `stored` is as read from the pack.
    pub(crate) fn open(&self, key: &IdKey, stored: &Bytes) -> Result<Bytes, String> {
        self.check_stored(stored)?;
        let plain = codec::decode(self.encoding, stored, self.raw_len as usize)
            .map_err(|e| e.to_string())?;
        let actual = RecordName::of(self.name.kind, key, &plain);
        if actual != self.name {
            return Err(format!("its bytes are those of {actual}"));
        }
        Ok(plain)
    }

    /// Whether the stored bytes are those that were written.
    pub(crate) fn check_stored(&self, stored: &[u8]) -> Result<(), String> {
        if stored.len() != self.stored_len as usize || xxh3_64(stored) != self.stored_sum {
            return Err("its stored bytes do not match their checksum".into());
        }
        Ok(())
    }
}

/// A record that is ready to be appended anywhere.
#[derive(Debug, Clone)]
pub struct Encoded {
    pub(crate) name: RecordName,
    pub(crate) encoding: Encoding,
    pub(crate) raw_len: u32,
    pub(crate) stored: Bytes,
    pub(crate) stored_sum: u64,
}

impl Encoded {
    /// Compresses `plain`, whose name the caller has proven and whose length is within the limit of its kind.
    pub(crate) fn new(name: RecordName, plain: &Bytes, level: i32) -> Self {
        debug_assert!(plain.len() <= name.kind.bytes_max());
        let (encoding, stored) = codec::encode(plain, level);
        Self {
            name,
            encoding,
            raw_len: plain.len() as u32,
            stored_sum: xxh3_64(&stored),
            stored,
        }
    }

    pub(crate) fn header(&self) -> RecordHeader {
        RecordHeader {
            name: self.name,
            encoding: self.encoding,
            raw_len: self.raw_len,
            stored_len: self.stored.len() as u32,
            stored_sum: self.stored_sum,
        }
    }
}

/// Counts of a pack's records, and a digest that depends on each of them and their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) chunks: u32,
    pub(crate) nodes: u32,
    pub(crate) raw_bytes: u64,
    pub(crate) digest: u64,
}

impl Tally {
    /// Counts the record whose encoded header is `encoded`.
    pub(crate) fn add(&mut self, header: &RecordHeader, encoded: &[u8]) {
        match header.name.kind {
            RecordKind::Chunk => self.chunks += 1,
            RecordKind::Node => self.nodes += 1,
        }
        self.raw_bytes += u64::from(header.raw_len);
        self.digest = xxh3_64_with_seed(&encoded[CHECKSUM_AT..RECORD_HEADER_LEN], self.digest);
    }
}

/// The last bytes of a pack that will not grow any more.
pub(crate) fn encode_seal(tally: &Tally, pack: PackNumber, offset: u64) -> [u8; SEAL_LEN] {
    let mut bytes = [0; SEAL_LEN];
    bytes[..4].copy_from_slice(&SEAL_MARK);
    bytes[8..16].copy_from_slice(&offset.to_le_bytes());
    bytes[16..20].copy_from_slice(&tally.chunks.to_le_bytes());
    bytes[20..24].copy_from_slice(&tally.nodes.to_le_bytes());
    bytes[24..32].copy_from_slice(&tally.raw_bytes.to_le_bytes());
    bytes[32..40].copy_from_slice(&tally.digest.to_le_bytes());
    finish_checksum(&mut bytes, place(pack, offset));
    bytes
}

fn parse_seal(bytes: &[u8], pack: PackNumber, offset: u64) -> Option<Tally> {
    if bytes.len() < SEAL_LEN
        || bytes[..4] != SEAL_MARK
        || !checksum_holds(&bytes[..SEAL_LEN], place(pack, offset))
    {
        return None;
    }
    Some(Tally {
        chunks: u32_at(bytes, 16),
        nodes: u32_at(bytes, 20),
        raw_bytes: u64_at(bytes, 24),
        digest: u64_at(bytes, 32),
    })
}

/// What [`Records`] finds.
#[derive(Debug)]
pub(crate) enum Found {
    /// A record whose header is sound; its stored bytes are not checked yet.
    Record {
        offset: u64,
        header: RecordHeader,
        encoded: [u8; RECORD_HEADER_LEN],
        stored: Bytes,
    },
    /// The seal, with the counts that the writer had.
    Seal { end: u64, tally: Tally },
    /// Bytes that are no record; the next record, if any, begins after `len` more bytes.
    Damage { offset: u64, len: u64, why: String },
}

/// Reads the records in a piece of a pack file one after the other, and goes on behind damage.
pub(crate) struct Records {
    bytes: Bytes,
    /// Offset of `bytes` in the file.
    base: u64,
    at: usize,
    pack: PackNumber,
}

impl Records {
    /// Reads `bytes`, which begin at offset `base` of `pack`, where a record should begin.
    pub(crate) fn new(bytes: Bytes, base: u64, pack: PackNumber) -> Self {
        Self {
            bytes,
            base,
            at: 0,
            pack,
        }
    }

    /// The record at `at`, if it is whole.
    fn record_at(&self, at: usize) -> Result<RecordHeader, String> {
        let header = RecordHeader::parse(&self.bytes[at..], self.pack, self.base + at as u64)?;
        if header.record_len() > (self.bytes.len() - at) as u64 {
            return Err(format!("the file ends inside {}", header.name));
        }
        Ok(header)
    }

    /// The next place after `at` where a whole record or a seal begins, or the end.
    fn resume_after(&self, at: usize) -> usize {
        (at + 1..self.bytes.len().saturating_sub(3))
            .find(|&next| {
                let mark = &self.bytes[next..next + 4];
                (mark == RECORD_MARK && self.record_at(next).is_ok())
                    || (mark == SEAL_MARK
                        && parse_seal(&self.bytes[next..], self.pack, self.base + next as u64)
                            .is_some())
            })
            .unwrap_or(self.bytes.len())
    }
}

impl Iterator for Records {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        let at = self.at;
        if at >= self.bytes.len() {
            return None;
        }
        let offset = self.base + at as u64;
        match self.record_at(at) {
            Ok(header) => {
                let body = at + RECORD_HEADER_LEN;
                self.at = at + header.record_len() as usize;
                Some(Found::Record {
                    offset,
                    header,
                    encoded: array_at(&self.bytes, at),
                    stored: self.bytes.slice(body..self.at),
                })
            }
            Err(why) => {
                if let Some(tally) = parse_seal(&self.bytes[at..], self.pack, offset) {
                    self.at = at + SEAL_LEN;
                    return Some(Found::Seal {
                        end: offset + SEAL_LEN as u64,
                        tally,
                    });
                }
                self.at = self.resume_after(at);
                Some(Found::Damage {
                    offset,
                    len: (self.at - at) as u64,
                    why,
                })
            }
        }
    }
}
