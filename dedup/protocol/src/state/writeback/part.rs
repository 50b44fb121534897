//! One part of a segment: ranges of a desktop's disks and what they show, as names.
//!
//! Invariant: ranges ascend by disk and place, do not overlap, lie on sectors and inside the disks; a chunk is as long as its range.
//! Numbers are LEB128 in the shortest form, so that a part has one spelling: heads are hashes over it.

use std::collections::HashSet;

use dedup::codec::{CodecError, Reader, write_varint};
use dedup::{CHUNK_BYTES_MAX, ChunkId};

/// Most ranges of a part. So many fit a request of 128 KiB.
pub const PART_RANGES_MAX: usize = 2048;

/// Most parts of a segment: a first segment of 8 TiB in blocks of 4 KiB.
pub const PARTS_MAX: u32 = 1 << 20;

/// Most plain bytes of a part: what a cut costs at most, and what an owner may hold of it.
pub const PART_BYTES_MAX: u64 = 16 << 20;

const SECTOR_BYTES: u64 = 512;
/// Most disks of a desktop, as overlays have them.
const DISKS_MAX: usize = 16;
/// Shortest coding of a range, in bytes: head and length.
const RANGE_BYTES_MIN: usize = 2;

const IS_CHUNK: u64 = 1;
const IS_NEXT_DISK: u64 = 2;

/// What a range shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RangeSource {
    /// Zeros.
    Zero,
    /// All of this chunk.
    Chunk(ChunkId),
}

/// A run of bytes on one of the desktop's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    /// Which disk.
    pub disk: u16,
    /// Its first byte, a multiple of 512.
    pub offset: u64,
    /// Its length in bytes, a multiple of 512, not 0.
    pub len: u64,
    /// What it shows.
    pub source: RangeSource,
}

/// A part of a segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    ranges: Vec<Range>,
}

/// Why bytes or ranges are no part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// Cut short, or a number in another form.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Too many ranges.
    #[error("{0} ranges in one part, at most {PART_RANGES_MAX}")]
    Count(u64),
    /// Too much behind the names.
    #[error("{0} bytes in one part, at most {PART_BYTES_MAX}")]
    Bytes(u64),
    /// A range outside the disks, off the sectors, out of order, or with a chunk of another length.
    #[error("range {index} of the part: {what}")]
    Range {
        /// Which.
        index: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// More behind the last range.
    #[error("{0} bytes behind the part")]
    Trailing(usize),
}

impl Part {
    /// Checks ranges against the sizes of the desktop's disks, in bytes.
    pub fn new(ranges: Vec<Range>, disks: &[u64]) -> Result<Self, PartError> {
        if ranges.len() > PART_RANGES_MAX {
            return Err(PartError::Count(ranges.len() as u64));
        }
        let mut before: Option<Range> = None;
        let mut bytes = 0u64;
        for (index, range) in ranges.iter().enumerate() {
            check(range, before.as_ref(), disks)
                .map_err(|what| PartError::Range { index, what })?;
            if let RangeSource::Chunk(_) = range.source {
                bytes += range.len;
            }
            before = Some(*range);
        }
        if bytes > PART_BYTES_MAX {
            return Err(PartError::Bytes(bytes));
        }
        Ok(Self { ranges })
    }

    /// Its ranges, ascending.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Its distinct chunks in order of first appearance, with their lengths: what [`WantChunks`](crate::state::message::WantChunks) numbers.
    pub fn chunks(&self) -> Vec<(ChunkId, u32)> {
        let mut seen = HashSet::new();
        let chunks = self.ranges.iter().filter_map(|range| match range.source {
            RangeSource::Chunk(id) => Some((id, range.len as u32)),
            RangeSource::Zero => None,
        });
        chunks.filter(|(id, _)| seen.insert(*id)).collect()
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.ranges.len() * 40);
        write_varint(&mut out, self.ranges.len() as u64);
        let (mut disk, mut at) = (0, 0);
        for range in &self.ranges {
            let (id, mut kind) = match &range.source {
                RangeSource::Zero => (None, 0),
                RangeSource::Chunk(id) => (Some(id), IS_CHUNK),
            };
            if range.disk != disk {
                kind |= IS_NEXT_DISK;
                at = 0;
            }
            write_varint(&mut out, ((range.offset - at) / SECTOR_BYTES) << 2 | kind);
            if range.disk != disk {
                write_varint(&mut out, u64::from(range.disk - disk) - 1);
                disk = range.disk;
            }
            write_varint(&mut out, range.len / SECTOR_BYTES - 1);
            out.extend_from_slice(id.map_or(&[][..], |id| &id.0[..]));
            at = range.offset + range.len;
        }
        out
    }

    /// Parses foreign bytes. `disks` are the sizes of the desktop's disks, in bytes.
    pub fn decode(bytes: &[u8], disks: &[u64]) -> Result<Self, PartError> {
        let mut reader = Reader::new(bytes);
        let count = reader.varint()?;
        if count > PART_RANGES_MAX as u64 {
            return Err(PartError::Count(count));
        }
        let count = count as usize;
        let mut ranges = Vec::with_capacity(count.min(reader.remaining() / RANGE_BYTES_MIN));
        let (mut disk, mut at) = (0u16, 0u64);
        for index in 0..count {
            let out_of_range = |what| PartError::Range { index, what };
            let head = reader.varint()?;
            if head & IS_NEXT_DISK != 0 {
                let step = reader.varint()?.saturating_add(1);
                let next = u64::from(disk).saturating_add(step);
                disk = u16::try_from(next).map_err(|_| out_of_range("no such disk"))?;
                at = 0;
            }
            let gap = (head >> 2).checked_mul(SECTOR_BYTES);
            let sectors = reader.varint()?.checked_add(1);
            let len = sectors.and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
            let offset = gap.and_then(|gap| gap.checked_add(at));
            let end = offset.and_then(|offset| offset.checked_add(len?));
            let (Some(offset), Some(len), Some(end)) = (offset, len, end) else {
                return Err(out_of_range("beyond every disk"));
            };
            let source = if head & IS_CHUNK != 0 {
                RangeSource::Chunk(ChunkId(reader.array()?))
            } else {
                RangeSource::Zero
            };
            ranges.push(Range {
                disk,
                offset,
                len,
                source,
            });
            at = end;
        }
        if reader.remaining() != 0 {
            return Err(PartError::Trailing(reader.remaining()));
        }
        Self::new(ranges, disks)
    }
}

fn check(range: &Range, before: Option<&Range>, disks: &[u64]) -> Result<(), &'static str> {
    let disk = usize::from(range.disk);
    if disk >= DISKS_MAX || disk >= disks.len() {
        return Err("no such disk");
    }
    if range.len == 0
        || !range.len.is_multiple_of(SECTOR_BYTES)
        || !range.offset.is_multiple_of(SECTOR_BYTES)
    {
        return Err("not whole sectors");
    }
    let end = range.offset.checked_add(range.len);
    if end.is_none_or(|end| end > disks[disk]) {
        return Err("outside the disk");
    }
    if matches!(range.source, RangeSource::Chunk(_)) && range.len > CHUNK_BYTES_MAX as u64 {
        return Err("longer than a chunk");
    }
    if let Some(before) = before {
        let follows = range.disk > before.disk
            || (range.disk == before.disk && range.offset >= before.offset + before.len);
        if !follows {
            return Err("not behind the range before it");
        }
    }
    Ok(())
}
