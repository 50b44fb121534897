//! What the key-value store holds for the chunk store: keys and values as bytes.
//!
//! Everything here can be rebuilt from the packs. Documented in `docs/disk-formats/store.md`. All keys begin with `cs/`, so that
//! other state may live in the same key-value store.

use dedup::RealmId;

use crate::codec::Encoding;
use crate::error::StoreError;
use crate::pack::{
    PackNumber, RECORD_HEADER_LEN, RecordKind, RecordName, Tally, array_at, u32_at, u64_at,
};

pub(crate) const META_KEY: &[u8] = b"cs/m";
pub(crate) const PACK_PREFIX: &[u8] = b"cs/p";
const CHUNK_PREFIX: &[u8] = b"cs/c";
const NODE_PREFIX: &[u8] = b"cs/n";
/// Names of damaged records, each key with an empty value.
pub(crate) const DAMAGED_PREFIX: &[u8] = b"cs/d";
/// Why collections are halted; absent while they are not.
pub(crate) const HALT_KEY: &[u8] = b"cs/h";
/// Where the scrub is.
pub(crate) const SCRUB_KEY: &[u8] = b"cs/s";
/// Highest number of a pack that was ever removed, so that none is used twice.
pub(crate) const REMOVED_KEY: &[u8] = b"cs/x";
/// The index format that this release writes: condemned records, packs that are to be removed, the list of damage.
const INDEX_VERSION: u16 = 2;
/// The oldest that it reads: version 1 knew none of these.
const INDEX_VERSION_MIN: u16 = 1;

fn prefix(kind: RecordKind) -> &'static [u8] {
    match kind {
        RecordKind::Chunk => CHUNK_PREFIX,
        RecordKind::Node => NODE_PREFIX,
    }
}

/// The prefixes of all entries that point at records, with their kinds.
pub(crate) const ENTRY_PREFIXES: [(RecordKind, &[u8]); 2] = [
    (RecordKind::Chunk, CHUNK_PREFIX),
    (RecordKind::Node, NODE_PREFIX),
];

pub(crate) fn entry_key(name: &RecordName) -> Vec<u8> {
    [prefix(name.kind), &name.id].concat()
}

/// The record that an entry's key names.
pub(crate) fn entry_name(kind: RecordKind, key: &[u8]) -> Option<RecordName> {
    let id = key.strip_prefix(prefix(kind))?.try_into().ok()?;
    Some(RecordName { kind, id })
}

/// The key under which a damaged record is listed.
pub(crate) fn damaged_key(name: &RecordName) -> Vec<u8> {
    [DAMAGED_PREFIX, &[name.kind as u8], &name.id].concat()
}

/// The record that a key of the list of damage names.
pub(crate) fn damaged_name(key: &[u8]) -> Option<RecordName> {
    let (kind, id) = key.strip_prefix(DAMAGED_PREFIX)?.split_first()?;
    Some(RecordName {
        kind: RecordKind::from_tag(*kind)?,
        id: id.try_into().ok()?,
    })
}

/// Whether a record may be read.
///
/// ```text
///            put                 collection: nothing refers to it           a later one, after the grace
///   (none) ───────► Live ──────────────────────────────► Condemned ──────────────────────────────► (none)
///     ▲               │ ▲ ◄── put, or something does refer to it ──┘                                  ▲
///     │        damage ▼ │ put                                                                         │
///     │            Quarantined ─────────── collection: nothing refers to it ──────────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Stored and readable.
    Live,
    /// Readable, though a collection found that nothing refers to it.
    Condemned {
        /// When: hours since 1970, modulo 2¹⁶.
        hour: u16,
    },
    /// Known to be damaged: as good as absent, until it is stored again.
    Quarantined,
}

impl State {
    /// The numbers are part of the index format.
    fn tag(self) -> u8 {
        match self {
            State::Live => 1,
            State::Condemned { .. } => 2,
            State::Quarantined => 3,
        }
    }

    /// Whether the record's bytes are those that were written, as far as anybody knows.
    pub(crate) fn is_readable(self) -> bool {
        !matches!(self, State::Quarantined)
    }
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) state: State,
    pub(crate) encoding: Encoding,
    pub(crate) pack: PackNumber,
    /// Of the record header, in bytes. A pack is shorter than 4 GiB.
    pub(crate) offset: u32,
    pub(crate) raw_len: u32,
    pub(crate) stored_len: u32,
}

impl Location {
    pub(crate) const LEN: usize = 24;

    /// Bytes that the record takes in its pack, its header included.
    pub(crate) fn record_len(&self) -> u64 {
        RECORD_HEADER_LEN as u64 + u64::from(self.stored_len)
    }

    /// Whether both are the same record at the same place, whatever its state.
    pub(crate) fn is_at(&self, other: &Location) -> bool {
        (self.pack, self.offset) == (other.pack, other.offset)
    }

    pub(crate) fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.state.tag();
        bytes[1] = self.encoding as u8;
        if let State::Condemned { hour } = self.state {
            bytes[2..4].copy_from_slice(&hour.to_le_bytes());
        }
        bytes[4..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.stored_len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.pack.0.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(name: &RecordName, bytes: &[u8]) -> Result<Self, StoreError> {
        let bad = |why: String| StoreError::BadIndex {
            what: name.to_string(),
            why,
        };
        if bytes.len() != Self::LEN {
            return Err(bad(format!("{} bytes", bytes.len())));
        }
        let state = match bytes[0] {
            1 => State::Live,
            2 => State::Condemned {
                hour: u16::from_le_bytes(array_at(bytes, 2)),
            },
            3 => State::Quarantined,
            other => return Err(bad(format!("unknown state {other}"))),
        };
        let encoding = Encoding::from_tag(bytes[1])
            .ok_or_else(|| bad(format!("unknown encoding {}", bytes[1])))?;
        let location = Self {
            state,
            encoding,
            offset: u32_at(bytes, 4),
            raw_len: u32_at(bytes, 8),
            stored_len: u32_at(bytes, 12),
            pack: PackNumber(u64_at(bytes, 16)),
        };
        if location.raw_len as usize > name.kind.bytes_max()
            || location.stored_len > location.raw_len
        {
            return Err(bad(format!(
                "{} bytes stored as {}",
                location.raw_len, location.stored_len
            )));
        }
        Ok(location)
    }
}

/// How far the index knows a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackState {
    /// Bytes of the file that are durable and whose records are in the index.
    pub(crate) indexed_len: u64,
    /// Whether nothing will be appended any more.
    pub(crate) closed: bool,
    /// Whether nothing in it is wanted any more: no readable entry points into it, and its file is to be removed. It is closed too.
    pub(crate) doomed: bool,
    pub(crate) tally: Tally,
}

impl PackState {
    const LEN: usize = 40;

    pub(crate) fn key(pack: PackNumber) -> Vec<u8> {
        // Big-endian, so that the order of keys is the order of packs.
        [PACK_PREFIX, &pack.0.to_be_bytes()].concat()
    }

    pub(crate) fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = u8::from(self.closed) + u8::from(self.doomed);
        bytes[8..16].copy_from_slice(&self.indexed_len.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.tally.chunks.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.tally.nodes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.tally.raw_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.tally.digest.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(key: &[u8], value: &[u8]) -> Result<(PackNumber, Self), StoreError> {
        let number = key
            .strip_prefix(PACK_PREFIX)
            .and_then(|n| n.try_into().ok())
            .map(u64::from_be_bytes);
        let (Some(number), Self::LEN) = (number, value.len()) else {
            return Err(StoreError::BadIndex {
                what: "a pack".into(),
                why: format!("{} and {} bytes", key.len(), value.len()),
            });
        };
        let state = Self {
            closed: value[0] != 0,
            doomed: value[0] == 2,
            indexed_len: u64_at(value, 8),
            tally: Tally {
                chunks: u32_at(value, 16),
                nodes: u32_at(value, 20),
                raw_bytes: u64_at(value, 24),
                digest: u64_at(value, 32),
            },
        };
        Ok((PackNumber(number), state))
    }
}

/// Whose packs the index describes.
pub(crate) fn encode_meta(realm: RealmId, key_id: [u8; 8]) -> Vec<u8> {
    [&INDEX_VERSION.to_le_bytes()[..], &realm.0, &key_id].concat()
}

/// Whether the index is one that can be used; answers its version.
pub(crate) fn check_meta(meta: &[u8], realm: RealmId, key_id: [u8; 8]) -> Result<u16, StoreError> {
    let bad = |why: String| StoreError::BadIndex {
        what: "the store itself".into(),
        why,
    };
    if meta.len() < 2 {
        return Err(bad(format!("{} bytes", meta.len())));
    }
    let version = u16::from_le_bytes(array_at(meta, 0));
    if !(INDEX_VERSION_MIN..=INDEX_VERSION).contains(&version) {
        return Err(bad(format!(
            "index format version {version}, this release reads {INDEX_VERSION_MIN} to {INDEX_VERSION}"
        )));
    }
    if meta.len() != 26 {
        return Err(bad(format!("{} bytes", meta.len())));
    }
    let found = (RealmId(array_at(meta, 2)), array_at(meta, 18));
    if found != (realm, key_id) {
        return Err(StoreError::ForeignIndex {
            realm: found.0,
            key_id: found.1,
        });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The index format, version 2, byte by byte; `docs/disk-formats/store.md` describes the same.
    #[test]
    fn golden_bytes() {
        let name = RecordName {
            kind: RecordKind::Node,
            id: [0xAB; 32],
        };
        assert_eq!(entry_key(&name), [&b"cs/n"[..], &[0xAB; 32]].concat());
        assert_eq!(entry_name(RecordKind::Node, &entry_key(&name)), Some(name));
        let location = Location {
            state: State::Live,
            encoding: Encoding::Zstd,
            pack: PackNumber(0x0102_0304_0506_0708),
            offset: 0x1112_1314,
            raw_len: 0x0000_4001,
            stored_len: 0x0000_3002,
        };
        let bytes = [
            1, 1, 0, 0, 0x14, 0x13, 0x12, 0x11, 1, 0x40, 0, 0, 2, 0x30, 0, 0, 8, 7, 6, 5, 4, 3, 2,
            1,
        ];
        assert_eq!(location.encode(), bytes);
        assert_eq!(Location::parse(&name, &bytes).unwrap(), location);
        let condemned = Location {
            state: State::Condemned { hour: 0x2122 },
            ..location
        };
        let bytes = [
            2, 1, 0x22, 0x21, 0x14, 0x13, 0x12, 0x11, 1, 0x40, 0, 0, 2, 0x30, 0, 0, 8, 7, 6, 5, 4,
            3, 2, 1,
        ];
        assert_eq!(condemned.encode(), bytes);
        assert_eq!(Location::parse(&name, &bytes).unwrap(), condemned);
        let listed = [&b"cs/d\x02"[..], &[0xAB; 32]].concat();
        assert_eq!(damaged_key(&name), listed);
        assert_eq!(damaged_name(&listed), Some(name));

        let state = PackState {
            indexed_len: 0x0100,
            closed: true,
            doomed: false,
            tally: Tally {
                chunks: 2,
                nodes: 3,
                raw_bytes: 4,
                digest: 5,
            },
        };
        let key = PackState::key(PackNumber(0x0102));
        assert_eq!(key, b"cs/p\0\0\0\0\0\0\x01\x02");
        let bytes = [
            1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0,
            0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(state.encode(), bytes);
        assert_eq!(
            PackState::parse(&key, &bytes).unwrap(),
            (PackNumber(0x0102), state)
        );
        let doomed = PackState {
            doomed: true,
            ..state
        };
        assert_eq!(doomed.encode()[0], 2);
        assert_eq!(PackState::parse(&key, &doomed.encode()).unwrap().1, doomed);

        let meta = encode_meta(RealmId([1; 16]), [2; 8]);
        assert_eq!(meta, [&[2, 0][..], &[1; 16], &[2; 8]].concat());
        let check = |meta: &[u8]| check_meta(meta, RealmId([1; 16]), [2; 8]).unwrap();
        assert_eq!(check(&meta), 2);
        let former = [&[1, 0][..], &[1; 16], &[2; 8]].concat();
        assert_eq!(check(&former), 1, "what the first release wrote");
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        let name = RecordName {
            kind: RecordKind::Chunk,
            id: [0; 32],
        };
        let good = Location {
            state: State::Live,
            encoding: Encoding::Raw,
            pack: PackNumber(1),
            offset: 64,
            raw_len: 10,
            stored_len: 10,
        }
        .encode();
        let change = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Location::parse(&name, &bytes)
        };
        assert!(Location::parse(&name, &good).is_ok());
        assert!(Location::parse(&name, &good[1..]).is_err());
        assert!(change(0, 0).is_err() && change(0, 4).is_err(), "the state");
        assert!(change(1, 9).is_err(), "the encoding");
        assert!(change(12, 11).is_err(), "stored longer than plain");
        assert!(change(11, 1).is_err(), "longer than any chunk");
        let meta = encode_meta(RealmId([1; 16]), [2; 8]);
        assert!(check_meta(&[9, 0], RealmId([1; 16]), [2; 8]).is_err());
        assert!(check_meta(&meta[..25], RealmId([1; 16]), [2; 8]).is_err());
        assert!(check_meta(&[], RealmId([1; 16]), [2; 8]).is_err());
    }
}
