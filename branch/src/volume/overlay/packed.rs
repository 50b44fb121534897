//! One extent of the index in 20 bytes.
//!
//! A record has at most [`PAYLOAD_BYTES_MAX`], so where an extent lies in its record, and how long either is, takes 11 bits each in
//! sectors. Invariant: what [`Packed::new`] took, the other methods give back.
//!
//! ```text
//!            word 0          word 1                                            word 2     word 3    word 4
//!   log   start, sectors   start >> 32 (8) kind (2) into record (11)        position    segment   seq delta (21)
//!                                                   record's length - 1 (11)                       length - 1 (11)
//!   zero  start, sectors   start >> 32 (8) kind (2)                          length     segment   length >> 32
//! ```

use std::num::NonZeroU32;

use super::format::{PAYLOAD_BYTES_MAX, RECORD_HEADER_BYTES, SECTOR_BYTES};
use super::index::{Content, LogPlace};

/// Largest disk of an overlay: 2^40 sectors, 512 TiB.
pub const DISK_BYTES_MAX: u64 = SECTOR_BYTES << 40;
/// Most records of one segment after its first.
pub const SEQ_DELTA_MAX: u64 = (1 << 21) - 1;
/// Longest segment that is full of the shortest records and still has no more of them than that.
pub const SEGMENT_BYTES_MAX: u64 = 128 << 20;

/// Length of an extent in the index snapshot.
pub const PACKED_BYTES: usize = 20;

const _: () = assert!(PAYLOAD_BYTES_MAX / SECTOR_BYTES <= 1 << 11);
const _: () = assert!(SEGMENT_BYTES_MAX / RECORD_HEADER_BYTES as u64 + 4096 < SEQ_DELTA_MAX);

const LOG: u32 = 0;
const ZERO: u32 = 1;
const HOLE: u32 = 2;
const MASK: u32 = (1 << 11) - 1;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Packed([u32; 5]);

impl Packed {
    /// The extent `start..end`, whole sectors of a disk of at most [`DISK_BYTES_MAX`].
    pub fn new(start: u64, end: u64, content: Content) -> Self {
        debug_assert!(start < end && end <= DISK_BYTES_MAX);
        debug_assert!(start.is_multiple_of(SECTOR_BYTES) && end.is_multiple_of(SECTOR_BYTES));
        let (first, len) = (start / SECTOR_BYTES, (end - start) / SECTOR_BYTES);
        let (low, high) = (first as u32, (first >> 32) as u32);
        match content {
            Content::Log(place) => {
                let into = (start - place.record_start) / SECTOR_BYTES;
                let record_len = u64::from(place.record_len.get()) / SECTOR_BYTES;
                debug_assert!(
                    into + len <= record_len && u64::from(place.seq_delta) <= SEQ_DELTA_MAX
                );
                Self([
                    low,
                    high | (LOG << 8) | ((into as u32) << 10) | ((record_len as u32 - 1) << 21),
                    place.position,
                    place.segment,
                    place.seq_delta | ((len as u32 - 1) << 21),
                ])
            }
            Content::Zero { segment, hole } => {
                let kind = if hole { HOLE } else { ZERO };
                Self([
                    low,
                    high | (kind << 8),
                    len as u32,
                    segment,
                    (len >> 32) as u32,
                ])
            }
        }
    }

    /// The words, for the index snapshot.
    pub fn to_bytes(self) -> [u8; PACKED_BYTES] {
        let mut out = [0; PACKED_BYTES];
        for (bytes, word) in out.chunks_exact_mut(4).zip(self.0) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Reads the words back; `None` if no extent has these.
    pub fn from_bytes(bytes: &[u8; PACKED_BYTES]) -> Option<Self> {
        let word =
            |i: usize| u32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().expect("four bytes"));
        let packed = Self(std::array::from_fn(word));
        let first = packed.start() / SECTOR_BYTES;
        let sectors_max = DISK_BYTES_MAX / SECTOR_BYTES;
        let sound = match packed.kind() {
            LOG => {
                let into = u64::from((packed.0[1] >> 10) & MASK);
                let record = u64::from(packed.0[1] >> 21) + 1;
                let len = u64::from(packed.0[4] >> 21) + 1;
                into + len <= record && into <= first && first + len <= sectors_max
            }
            ZERO | HOLE => {
                let len = u64::from(packed.0[2]) | (u64::from(packed.0[4]) << 32);
                let end = first.checked_add(len);
                packed.0[1] >> 10 == 0 && len > 0 && end.is_some_and(|end| end <= sectors_max)
            }
            _ => false,
        };
        sound.then_some(packed)
    }

    fn kind(&self) -> u32 {
        (self.0[1] >> 8) & 3
    }

    /// First byte.
    pub fn start(&self) -> u64 {
        (u64::from(self.0[0]) | (u64::from(self.0[1] & 0xFF) << 32)) * SECTOR_BYTES
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        let sectors = if self.kind() == LOG {
            u64::from(self.0[4] >> 21) + 1
        } else {
            u64::from(self.0[2]) | (u64::from(self.0[4]) << 32)
        };
        self.start() + sectors * SECTOR_BYTES
    }

    /// What it holds.
    pub fn content(&self) -> Content {
        let segment = self.0[3];
        if self.kind() != LOG {
            let hole = self.kind() == HOLE;
            return Content::Zero { segment, hole };
        }
        let into = u64::from((self.0[1] >> 10) & MASK) * SECTOR_BYTES;
        let sectors = NonZeroU32::MIN.saturating_add(self.0[1] >> 21);
        let record_len = sectors.saturating_mul(SECTOR_NONZERO);
        Content::Log(LogPlace {
            record_start: self.start() - into,
            record_len,
            segment,
            position: self.0[2],
            seq_delta: self.0[4] & SEQ_DELTA_MAX as u32,
        })
    }
}

const SECTOR_NONZERO: NonZeroU32 = NonZeroU32::new(SECTOR_BYTES as u32).expect("512 is not 0");
