//! The index snapshot: the extents of everything before one segment, so that opening need not read the log from its beginning.
//!
//! Invariant: it says nothing that the log does not say. Damaged, foreign, of another release or not there, it costs time only. All of it
//! is encrypted and numbered, so that nobody without the key can make an old block come back by way of the index.
//!
//! It is taken while guests write ([`super::checkpoint`]): what a record of its own segment or a later one says is left out, because these
//! records are read anyway, and it becomes valid only when they are durable. So any snapshot that was ever valid stays valid.
//! This module has the layout and reads it; `docs/disk-formats/overlay.md` tells it byte by byte.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use dedup_store::disk::DiskFile;

use super::format::{
    Fault, SEGMENT_HEADER_BYTES, SEQ_MAX, SegmentHeader, array_at, u32_at, u64_at,
};
use super::map::{Map, Segment};
use super::meta::Meta;
use super::packed::{PACKED_BYTES, Packed};
use super::replay::{Found, Start};
use super::seal::{AuthTag, Domain, Form, LogKey, NONCE_BYTES, Nonce};

/// Name of the file within the overlay's directory.
pub const NAME: &str = "overlay.index";
/// Name while it is written.
pub const NEW_NAME: &str = "overlay.index.new";

const MAGIC: [u8; 8] = *b"SPLOVIDX";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const FRONT_BYTES: usize = 48;
/// Most bytes of one part: what reading and writing hold at a time.
const PART_BYTES_MAX: usize = 64 << 10;
const LISTED_BYTES: usize = 32;
const END_BYTES: usize = 32;
/// In front of the extents of a part: their disk.
const DISK_BYTES: usize = 8;

/// Segments of one part.
pub const PART_SEGMENTS_MAX: usize = PART_BYTES_MAX / LISTED_BYTES;
/// Extents of one part.
pub const PART_EXTENTS_MAX: usize = (PART_BYTES_MAX - DISK_BYTES) / PACKED_BYTES;

const SEGMENTS: u32 = 1;
const EXTENTS: u32 = 2;
const END: u32 = 3;

/// A segment that the snapshot covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub number: u32,
    /// Sequence number of its first record.
    pub first_seq: u64,
    /// Sequence number of its last record.
    pub last_seq: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// Why a snapshot was not taken in.
#[derive(Debug)]
pub enum Unusable {
    /// It does not verify or does not fit the log.
    Damaged(String),
    /// The operating system reported an error.
    Io(io::Error),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn damaged<T>(why: impl Into<String>) -> Result<T, Unusable> {
    Err(Unusable::Damaged(why.into()))
}

/// Writes a snapshot front to back.
pub struct Parts<'a> {
    file: &'a dyn DiskFile,
    key: &'a LogKey,
    segment: u32,
    last_seq: u64,
    /// Where the next part goes.
    at: u64,
    number: u32,
    segments: u32,
    extents: u64,
    buffer: Vec<u8>,
}

impl<'a> Parts<'a> {
    /// Begins a snapshot of what is before `segment`, whose records follow number `last_seq`.
    pub fn begin(
        file: &'a dyn DiskFile,
        key: &'a LogKey,
        segment: u32,
        last_seq: u64,
    ) -> io::Result<Self> {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&segment.to_le_bytes());
        header[16..32].copy_from_slice(key.log_id());
        header[32..40].copy_from_slice(&last_seq.to_le_bytes());
        let check = key.header_check(&header[..56]);
        header[56..].copy_from_slice(&check.to_le_bytes());
        file.write_at(0, &header)?;
        Ok(Self {
            file,
            key,
            segment,
            last_seq,
            at: HEADER_BYTES as u64,
            number: 0,
            segments: 0,
            extents: 0,
            buffer: Vec::new(),
        })
    }

    /// Adds segments, at most [`PART_SEGMENTS_MAX`], ascending over all calls and before any extents.
    pub fn segments(&mut self, listed: &[Listed]) -> io::Result<()> {
        self.buffer.clear();
        for segment in listed {
            self.buffer.extend_from_slice(&segment.number.to_le_bytes());
            self.buffer.extend_from_slice(&[0; 4]);
            for word in [segment.first_seq, segment.last_seq, segment.len] {
                self.buffer.extend_from_slice(&word.to_le_bytes());
            }
        }
        self.segments += listed.len() as u32;
        self.part(SEGMENTS)
    }

    /// Adds extents of `disk`, at most [`PART_EXTENTS_MAX`], ascending over all calls.
    pub fn extents(&mut self, disk: u16, extents: &[Packed]) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.extend_from_slice(&disk.to_le_bytes());
        self.buffer.extend_from_slice(&[0; DISK_BYTES - 2]);
        for extent in extents {
            self.buffer.extend_from_slice(&extent.to_bytes());
        }
        self.extents += extents.len() as u64;
        self.part(EXTENTS)
    }

    /// Ends it: `chain` is the checksum of the last record before its segment, and every record up to `durable` is durable. Returns
    /// the length in bytes.
    pub fn end(mut self, chain: u64, durable: u64) -> io::Result<u64> {
        self.buffer.clear();
        for word in [chain, durable, self.extents, u64::from(self.segments)] {
            self.buffer.extend_from_slice(&word.to_le_bytes());
        }
        self.part(END)?;
        Ok(self.at)
    }

    /// Adds a part with any content, for the fuzz target.
    pub fn raw(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.extend_from_slice(body);
        self.part(kind)
    }

    fn part(&mut self, kind: u32) -> io::Result<()> {
        let place = PartPlace {
            segment: self.segment,
            last_seq: self.last_seq,
            number: self.number,
            kind,
            len: self.buffer.len() as u32,
        };
        let nonce = self.key.nonce();
        let tag = self
            .key
            .seal(Domain::Index, &nonce, &place.clear(), &mut self.buffer);
        let mut out = Vec::with_capacity(FRONT_BYTES + self.buffer.len());
        out.extend_from_slice(&place.len.to_le_bytes());
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&tag);
        out.extend_from_slice(&self.buffer);
        self.file.write_at(self.at, &out)?;
        self.at += out.len() as u64;
        self.number += 1;
        Ok(())
    }
}

/// What a part's tag covers besides its content.
struct PartPlace {
    segment: u32,
    last_seq: u64,
    number: u32,
    kind: u32,
    len: u32,
}

impl PartPlace {
    fn clear(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.last_seq.to_le_bytes());
        for (bytes, word) in
            out[8..]
                .chunks_exact_mut(4)
                .zip([self.segment, self.number, self.kind, self.len])
        {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}

/// Reads a snapshot of the log that `meta` describes and whose segments were found.
pub fn read(
    file: &dyn DiskFile,
    meta: &Meta,
    key: &LogKey,
    found: &BTreeMap<u32, Found>,
) -> Result<Start, Unusable> {
    let file_len = file.len()?;
    if file_len < HEADER_BYTES as u64 {
        return damaged("it ends within its header");
    }
    let mut header = [0; HEADER_BYTES];
    file.read_at(0, &mut header)?;
    if header[..8] != MAGIC || key.header_check(&header[..56]) != u64_at(&header, 56) {
        return damaged("its header is not one of this log");
    }
    let (segment, last_seq) = (u32_at(&header, 12), u64_at(&header, 32));
    if u32_at(&header, 8) != VERSION || header[40..56].iter().any(|&b| b != 0) {
        return damaged("it was written by another release");
    }
    if segment == 0 || segment > meta.segments_synced || last_seq > SEQ_MAX {
        return damaged("it is ahead of the header file");
    }
    let mut load = Load {
        meta,
        key,
        found,
        segment,
        map: Map::new(meta.disks.len()),
        gone: BTreeSet::new(),
        last: 0,
        segments: 0,
        extents: 0,
    };
    let (mut at, mut number) = (HEADER_BYTES as u64, 0u32);
    let mut body = Vec::new();
    loop {
        let mut front = [0; FRONT_BYTES];
        if file_len - at < FRONT_BYTES as u64 {
            return damaged("it ends without an end");
        }
        file.read_at(at, &mut front)?;
        let (len, kind) = (u32_at(&front, 0), u32_at(&front, 4));
        at += FRONT_BYTES as u64;
        if len as usize > PART_BYTES_MAX || u64::from(len) > file_len - at {
            return damaged(format!("part {number} has {len} bytes"));
        }
        body.resize(len as usize, 0);
        file.read_at(at, &mut body)?;
        at += u64::from(len);
        let place = PartPlace {
            segment,
            last_seq,
            number,
            kind,
            len,
        };
        let (nonce, tag): (Nonce, AuthTag) =
            (array_at(&front, 8), array_at(&front, 8 + NONCE_BYTES));
        if !key.open(Domain::Index, &nonce, &place.clear(), &mut body, &tag) {
            return damaged(format!("part {number} does not verify"));
        }
        match kind {
            SEGMENTS => load.segments(&body)?,
            EXTENTS => load.extents(&body)?,
            END if at == file_len => return load.end(&body, last_seq),
            _ => return damaged(format!("part {number} is of kind {kind}")),
        }
        number += 1;
    }
}

/// A snapshot that is being read.
struct Load<'a> {
    meta: &'a Meta,
    key: &'a LogKey,
    found: &'a BTreeMap<u32, Found>,
    segment: u32,
    map: Map,
    /// Segments that were dropped since. What replaced their extents is in the records that will be read.
    gone: BTreeSet<u32>,
    /// The last segment listed.
    last: u32,
    segments: u64,
    extents: u64,
}

impl Load<'_> {
    fn segments(&mut self, body: &[u8]) -> Result<(), Unusable> {
        if !body.len().is_multiple_of(LISTED_BYTES) {
            return damaged("a part with half a segment");
        }
        for entry in body.chunks_exact(LISTED_BYTES) {
            let listed = Listed {
                number: u32_at(entry, 0),
                first_seq: u64_at(entry, 8),
                last_seq: u64_at(entry, 16),
                len: u64_at(entry, 24),
            };
            if listed.number <= self.last || listed.number >= self.segment {
                return damaged("its segments are out of order");
            }
            self.last = listed.number;
            self.segments += 1;
            if self.meta.dropped_until(listed.number).is_some() {
                self.gone.insert(listed.number);
            } else {
                self.register(&listed)?;
            }
        }
        Ok(())
    }

    fn register(&mut self, listed: &Listed) -> Result<(), Unusable> {
        let number = listed.number;
        let (header, form) = self.header(number)?;
        let found = &self.found[&number];
        let whole = header.first_seq == listed.first_seq
            && listed.last_seq >= header.first_seq - 1
            && listed.last_seq <= SEQ_MAX
            && found.file.len()? >= listed.len;
        if !whole {
            return damaged(format!("segment {number} is not as it was"));
        }
        let mut segment = Segment::new(
            found.name.clone(),
            found.file.clone(),
            form,
            &header,
            listed.len,
        );
        segment.last_seq = listed.last_seq;
        self.map.segments.insert(number, segment);
        Ok(())
    }

    /// The header of a segment that must be there.
    fn header(&self, number: u32) -> Result<(SegmentHeader, Form), Unusable> {
        let Some(found) = self.found.get(&number) else {
            return damaged(format!("segment {number} is not there"));
        };
        if found.file.len()? < SEGMENT_HEADER_BYTES as u64 {
            return damaged(format!("segment {number} has no header"));
        }
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        found.file.read_at(0, &mut bytes)?;
        match SegmentHeader::decode(&bytes, self.key, number) {
            Ok((_, Form::Plain)) if number > self.meta.plain_until => {
                damaged(format!("segment {number} is in the clear"))
            }
            Ok(header) => Ok(header),
            Err(Fault::Damaged(why) | Fault::Unsupported(why)) => {
                damaged(format!("segment {number}: {why}"))
            }
            Err(Fault::OtherKey(_)) => damaged(format!("segment {number} has another key")),
        }
    }

    fn extents(&mut self, body: &[u8]) -> Result<(), Unusable> {
        let sound = body.len() >= DISK_BYTES
            && (body.len() - DISK_BYTES).is_multiple_of(PACKED_BYTES)
            && body[2..DISK_BYTES].iter().all(|&b| b == 0);
        if !sound {
            return damaged("a part with half an extent");
        }
        let disk = u16::from_le_bytes([body[0], body[1]]);
        let Some(&size) = self.meta.disks.get(usize::from(disk)) else {
            return damaged(format!("extents of disk {disk}"));
        };
        for entry in body[DISK_BYTES..].chunks_exact(PACKED_BYTES) {
            let Some(extent) = Packed::from_bytes(entry.try_into().expect("cut at this length"))
            else {
                return damaged("an extent that is none");
            };
            self.extents += 1;
            if self.gone.contains(&extent.content().segment()) {
                continue;
            }
            if !self.map.restore(disk, size, extent) {
                return damaged("an extent that does not fit");
            }
        }
        Ok(())
    }

    fn end(self, body: &[u8], last_seq: u64) -> Result<Start, Unusable> {
        if body.len() != END_BYTES
            || u64_at(body, 16) != self.extents
            || u64_at(body, 24) != self.segments
        {
            return damaged("its end does not fit");
        }
        let (chain, durable) = (u64_at(body, 0), u64_at(body, 8));
        // It must lead into the log that is there: a backup may have come back beside a snapshot that is newer.
        if self.meta.dropped_until(self.segment).is_none() {
            let (header, _) = self.header(self.segment)?;
            if header.first_seq != last_seq + 1 || header.chain != chain {
                return damaged("the log does not continue it");
            }
        }
        Ok(Start {
            map: self.map,
            segment: self.segment,
            last_seq,
            chain,
            durable,
        })
    }
}
