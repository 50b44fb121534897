//! The encoded form of one batch, as it crosses the wire and lies in a file.
//!
//! Layout, all integers LEB128: first chunk, chunk count, number of runs in the prefix list, the runs, then the packed bytes to the end.
//! A run is the signed distance of its first number from the number behind the last run's end (zigzag), and its length less one.
//! Lengths in bytes are not told: both ends know every chunk's length from the numbering.

use bytes::Bytes;

use crate::codec::{CodecError, Reader, write_varint};
use crate::update::{
    BATCH_CHUNKS_MAX, BATCH_PLAIN_BYTES_MAX, BatchPlan, NUMBERS_MAX, PREFIX_CHUNKS_MAX,
};

/// Most packed bytes of a batch: what the plain ones of the largest could grow to.
const PACKED_BYTES_MAX: usize = BATCH_PLAIN_BYTES_MAX + (64 << 10);

/// One encoded batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateBatch {
    /// Index of its first chunk among the new chunks.
    pub first: u32,
    /// How many chunks.
    pub count: u32,
    /// Numbers of the chunks that form the prefix, in its order.
    pub prefix: Vec<u32>,
    /// One zstd frame over the chunks' joined bytes, made with the prefix.
    pub packed: Bytes,
}

/// Why encoded bytes are not a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Ends early, or an integer is malformed.
    #[error("a batch {0}")]
    Codec(#[from] CodecError),
    /// No chunks, or more than a batch may have.
    #[error("a batch of {0} chunks, at most {BATCH_CHUNKS_MAX} are allowed")]
    Count(u64),
    /// Chunks or prefix numbers above the limit.
    #[error("chunk number {0}, at most {NUMBERS_MAX} are allowed")]
    Number(i64),
    /// A prefix of more chunks than allowed.
    #[error("a prefix of {0} chunks, at most {PREFIX_CHUNKS_MAX} are allowed")]
    Prefix(u64),
    /// More packed bytes than a batch can have.
    #[error("{0} packed bytes, at most {PACKED_BYTES_MAX} are allowed")]
    Packed(usize),
}

impl UpdateBatch {
    /// The batch's chunks and prefix, as the planner gave them.
    pub fn plan(&self) -> BatchPlan {
        BatchPlan {
            chunks: self.first..self.first + self.count,
            prefix: self.prefix.clone(),
        }
    }

    /// Appends the encoded batch.
    pub fn encode(&self, out: &mut Vec<u8>) {
        write_varint(out, u64::from(self.first));
        write_varint(out, u64::from(self.count));
        let runs: Vec<&[u32]> = self
            .prefix
            .chunk_by(|a, b| a.checked_add(1) == Some(*b))
            .collect();
        write_varint(out, runs.len() as u64);
        let mut due = 0i64;
        for run in runs {
            let first = i64::from(run[0]);
            write_varint(out, zigzag(first - due));
            write_varint(out, run.len() as u64 - 1);
            due = first + run.len() as i64;
        }
        out.extend_from_slice(&self.packed);
    }

    /// Parses a foreign batch. Its memory is bounded by the limits here, whatever it claims.
    pub fn decode(bytes: &Bytes) -> Result<Self, BatchError> {
        let mut reader = Reader::new(bytes);
        let (first, count) = (reader.varint()?, reader.varint()?);
        if count == 0 || count > u64::from(BATCH_CHUNKS_MAX) {
            return Err(BatchError::Count(count));
        }
        if first > u64::from(NUMBERS_MAX) {
            return Err(BatchError::Number(first.min(i64::MAX as u64) as i64));
        }
        let prefix = decode_prefix(&mut reader)?;
        if reader.remaining() > PACKED_BYTES_MAX {
            return Err(BatchError::Packed(reader.remaining()));
        }
        Ok(Self {
            first: first as u32,
            count: count as u32,
            prefix,
            packed: bytes.slice(reader.position()..),
        })
    }
}

fn decode_prefix(reader: &mut Reader<'_>) -> Result<Vec<u32>, BatchError> {
    let runs = reader.varint()?;
    if runs > u64::from(PREFIX_CHUNKS_MAX) {
        return Err(BatchError::Prefix(runs));
    }
    let mut prefix = Vec::new();
    let mut due = 0i64;
    for _ in 0..runs {
        let first = due.saturating_add(unzigzag(reader.varint()?));
        let more = reader.varint()?;
        let len = more.saturating_add(1).saturating_add(prefix.len() as u64);
        if len > u64::from(PREFIX_CHUNKS_MAX) {
            return Err(BatchError::Prefix(len));
        }
        let last = first.saturating_add(more as i64);
        if first < 0 || last >= i64::from(NUMBERS_MAX) {
            return Err(BatchError::Number(if first < 0 { first } else { last }));
        }
        prefix.extend(first as u32..=last as u32);
        due = last + 1;
    }
    Ok(prefix)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
