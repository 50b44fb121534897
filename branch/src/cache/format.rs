//! The bytes of a cache: header file, slab header, block checks, residency values.
//!
//! Invariant: every layout here matches `docs/disk-formats/cache.md`; little-endian, checked before believed. What lies in slots and
//! tags is [`super::seal`]'s. It does no I/O.

use dedup::{CHUNK_BYTES_MAX, ChunkId, RealmId};
use xxhash_rust::xxh3::xxh3_64;

/// A slot, and what one tag covers.
pub const BLOCK_BYTES: u64 = 4096;
/// Length of a tag.
pub const TAG_BYTES: u64 = 16;
/// Length of a slab header; the tags follow it.
pub const SLAB_HEADER_BYTES: u64 = 4096;
/// Most slots of one chunk.
pub const CHUNK_SLOTS_MAX: u32 = (CHUNK_BYTES_MAX as u64 / BLOCK_BYTES) as u32;

/// Version of headers. Version 1 was not encrypted.
const VERSION: u32 = 2;
const PLAIN: u32 = 1;
/// Version of the residency index's values.
const RESIDENCY_VERSION: u8 = 1;
const META_MAGIC: [u8; 8] = *b"SPLCACHE";
const SLAB_MAGIC: [u8; 8] = *b"SPLCSLAB";
/// Length of the header file.
pub const META_BYTES: usize = 80;
/// Bytes of a slab header that are in use.
const SLAB_USED_BYTES: usize = 80;

/// Whose cache it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheIdentity {
    /// The realm whose chunks it holds.
    pub realm: RealmId,
    /// Public name of the realm's id key.
    pub key_id: [u8; 8],
}

impl std::fmt::Display for CacheIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "realm {} with key {:016x}",
            self.realm,
            u64::from_be_bytes(self.key_id)
        )
    }
}

/// Why a header was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Torn or damaged.
    Damaged,
    /// Of an earlier release, which did not encrypt.
    Plain,
    /// A later format.
    Unsupported(String),
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

/// The layout that header file and slab header share; only `magic` and the four words differ.
fn encode_header(magic: [u8; 8], words: [u32; 2], meta: &Meta) -> [u8; 80] {
    let mut out = [0; 80];
    out[..8].copy_from_slice(&magic);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&words[0].to_le_bytes());
    out[16..32].copy_from_slice(&meta.identity.realm.0);
    out[32..40].copy_from_slice(&meta.identity.key_id);
    out[40..48].copy_from_slice(&meta.sealed_by);
    out[48..64].copy_from_slice(&meta.instance);
    out[64..68].copy_from_slice(&words[1].to_le_bytes());
    let check = xxh3_64(&out[..72]);
    out[72..].copy_from_slice(&check.to_le_bytes());
    out
}

fn decode_header(magic: [u8; 8], bytes: &[u8; 80]) -> Result<([u32; 2], Meta), Fault> {
    if bytes[..8] != magic || xxh3_64(&bytes[..72]) != u64_at(bytes, 72) {
        return Err(Fault::Damaged);
    }
    match u32_at(bytes, 8) {
        VERSION => {}
        PLAIN => return Err(Fault::Plain),
        version => {
            return Err(Fault::Unsupported(format!(
                "it has format version {version}"
            )));
        }
    }
    let meta = Meta {
        identity: CacheIdentity {
            realm: RealmId(array_at(bytes, 16)),
            key_id: array_at(bytes, 32),
        },
        sealed_by: array_at(bytes, 40),
        instance: array_at(bytes, 48),
    };
    Ok(([u32_at(bytes, 12), u32_at(bytes, 64)], meta))
}

/// The header file of a cache directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Whose cache it is.
    pub identity: CacheIdentity,
    /// Public name of the key that it is encrypted under.
    pub sealed_by: [u8; 8],
    /// Random name of this very cache: ties slabs and residency index together.
    pub instance: [u8; 16],
}

impl Meta {
    /// The bytes of the header file.
    pub fn encode(&self) -> [u8; META_BYTES] {
        encode_header(META_MAGIC, [0, 0], self)
    }

    /// Reads a header file.
    pub fn decode(bytes: &[u8; META_BYTES]) -> Result<Self, Fault> {
        decode_header(META_MAGIC, bytes).map(|(_, meta)| meta)
    }
}

/// The header of slab `number` with `slots` slots.
pub fn encode_slab_header(meta: &Meta, number: u32, slots: u32) -> Vec<u8> {
    let mut out = vec![0; SLAB_HEADER_BYTES as usize];
    out[..SLAB_USED_BYTES].copy_from_slice(&encode_header(SLAB_MAGIC, [number, slots], meta));
    out
}

/// The number of slots of slab `number`, if this is the header of a slab of this very cache.
pub fn decode_slab_header(meta: &Meta, number: u32, bytes: &[u8; SLAB_USED_BYTES]) -> Option<u32> {
    let ([found, slots], found_meta) = decode_header(SLAB_MAGIC, bytes).ok()?;
    (found == number && found_meta == *meta && slots > 0).then_some(slots)
}

/// Where the tag of `slot` lies in its slab.
pub fn tag_position(slot: u32) -> u64 {
    SLAB_HEADER_BYTES + TAG_BYTES * u64::from(slot)
}

/// Where `slot` itself lies in a slab of `slots` slots.
pub fn slot_position(slots: u32, slot: u32) -> u64 {
    let table = (TAG_BYTES * u64::from(slots)).next_multiple_of(BLOCK_BYTES);
    SLAB_HEADER_BYTES + table + BLOCK_BYTES * u64::from(slot)
}

/// How many slots a chunk of `len` bytes takes; an empty one takes a slot too, so that places are never shared.
pub fn slots_of(len: u32) -> u32 {
    len.div_ceil(BLOCK_BYTES as u32).max(1)
}

/// Where a chunk is and how it is doing, as the residency index keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residency {
    /// Slab that holds it.
    pub slab: u32,
    /// First slot.
    pub slot: u32,
    /// Length in bytes.
    pub len: u32,
    /// Whether a read found it damaged.
    pub quarantined: bool,
    /// The cache's tick when it was last known to be used.
    pub tick: u32,
}

const RESIDENCY_BYTES: usize = 18;
const RESIDENT: u8 = 1;
const QUARANTINED: u8 = 2;

impl Residency {
    /// The value in the index.
    pub fn encode(&self) -> [u8; RESIDENCY_BYTES] {
        let mut out = [0; RESIDENCY_BYTES];
        out[0] = RESIDENCY_VERSION;
        out[1] = if self.quarantined {
            QUARANTINED
        } else {
            RESIDENT
        };
        out[2..6].copy_from_slice(&self.slab.to_le_bytes());
        out[6..10].copy_from_slice(&self.slot.to_le_bytes());
        out[10..14].copy_from_slice(&self.len.to_le_bytes());
        out[14..].copy_from_slice(&self.tick.to_le_bytes());
        out
    }

    /// Reads a value; `None` if it is not one, which costs one fetch.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let known = bytes.len() == RESIDENCY_BYTES && bytes[0] == RESIDENCY_VERSION;
        if !known || !matches!(bytes[1], RESIDENT | QUARANTINED) {
            return None;
        }
        let found = Self {
            slab: u32_at(bytes, 2),
            slot: u32_at(bytes, 6),
            len: u32_at(bytes, 10),
            quarantined: bytes[1] == QUARANTINED,
            tick: u32_at(bytes, 14),
        };
        (found.len as usize <= CHUNK_BYTES_MAX).then_some(found)
    }
}

/// Keys of the residency index, all under the prefix that the cache was given.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: Vec<u8>,
}

impl Keys {
    /// Keys under `prefix`.
    pub fn new(prefix: &[u8]) -> Self {
        Self {
            prefix: prefix.to_vec(),
        }
    }

    fn key(&self, kind: u8, rest: &[u8]) -> Vec<u8> {
        [&self.prefix, &[kind][..], rest].concat()
    }

    /// Names the cache instance that the index belongs to.
    pub fn instance(&self) -> Vec<u8> {
        self.key(b'i', &[])
    }

    /// Residency of `id`.
    pub fn chunk(&self, id: &ChunkId) -> Vec<u8> {
        self.key(b'c', id.as_bytes())
    }

    /// Prefix of all residencies.
    pub fn chunks(&self) -> Vec<u8> {
        self.key(b'c', &[])
    }

    /// The chunk whose residency this key is.
    pub fn chunk_of(&self, key: &[u8]) -> Option<ChunkId> {
        ChunkId::from_slice(key.get(self.prefix.len() + 1..)?)
    }

    /// Slots that a damaged chunk left behind when it was healed elsewhere.
    pub fn bad(&self, slab: u32, slot: u32) -> Vec<u8> {
        let place = (u64::from(slab) << 32) | u64::from(slot);
        self.key(b'x', &place.to_be_bytes())
    }

    /// Prefix of all such slots.
    pub fn all_bad(&self) -> Vec<u8> {
        self.key(b'x', &[])
    }

    /// Slab and first slot that this key names.
    pub fn bad_of(&self, key: &[u8]) -> Option<(u32, u32)> {
        let place = u64::from_be_bytes(key.get(self.prefix.len() + 1..)?.try_into().ok()?);
        Some(((place >> 32) as u32, place as u32))
    }
}
