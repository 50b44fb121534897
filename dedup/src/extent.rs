//! Extents: which bytes a range of the disk shows.
//!
//! An extent has a length and a source but no position: extents are always kept in a sequence that covers its range without gaps,
//! so that overlapping, unsorted or missing extents cannot be written down at all.

use crate::chunk::CHUNK_BYTES_MAX;
use crate::codec::{CodecError, Reader, write_varint};
use crate::id::ChunkId;

/// Where an extent's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentSource {
    /// All zero; nothing is stored.
    Zero,
    /// `len` bytes of chunk `id` from `offset`.
    Chunk {
        /// The chunk.
        id: ChunkId,
        /// The whole chunk's length in bytes, so that a reader can reserve room before it has it.
        chunk_len: u32,
        /// Where in the chunk the extent begins, in bytes.
        offset: u32,
    },
}

/// A run of disk bytes with one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, never zero.
    pub len: u32,
    /// What the run shows.
    pub source: ExtentSource,
}

/// Why an encoded extent was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExtentError {
    /// Not an encoded extent.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Unknown kind of extent, or the wrong one for what it shows.
    #[error("extent kind {0} is unknown or not the one to use here")]
    Kind(u64),
    /// A length of zero or above the limit.
    #[error("extent of {0} bytes")]
    Length(u64),
    /// A slice that does not lie inside its chunk, or a chunk above the size limit.
    #[error("slice of {len} bytes at {offset} does not fit a chunk of {chunk_len} bytes")]
    Slice {
        /// Extent length.
        len: u64,
        /// Offset inside the chunk.
        offset: u64,
        /// Stated chunk length.
        chunk_len: u64,
    },
}

const KIND_ZERO: u64 = 0;
const KIND_WHOLE: u64 = 1;
const KIND_SLICE: u64 = 2;

impl Extent {
    /// A run of `len` zero bytes.
    pub fn zero(len: u32) -> Self {
        Self {
            len,
            source: ExtentSource::Zero,
        }
    }

    /// All of a chunk of `len` bytes.
    pub fn whole(id: ChunkId, len: u32) -> Self {
        Self {
            len,
            source: ExtentSource::Chunk {
                id,
                chunk_len: len,
                offset: 0,
            },
        }
    }

    /// The chunk this extent shows a part of.
    pub fn chunk(&self) -> Option<ChunkId> {
        match self.source {
            ExtentSource::Zero => None,
            ExtentSource::Chunk { id, .. } => Some(id),
        }
    }

    /// Appends the encoded extent: LEB128 of `len << 2 | kind`, then for chunks the id, for slices also offset and chunk length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let len = u64::from(self.len) << 2;
        match self.source {
            ExtentSource::Zero => write_varint(out, len | KIND_ZERO),
            ExtentSource::Chunk {
                id,
                chunk_len,
                offset,
            } => {
                let whole = offset == 0 && chunk_len == self.len;
                write_varint(out, len | if whole { KIND_WHOLE } else { KIND_SLICE });
                out.extend_from_slice(id.as_bytes());
                if !whole {
                    write_varint(out, u64::from(offset));
                    write_varint(out, u64::from(chunk_len));
                }
            }
        }
    }

    /// Reads one extent of at most `len_max` bytes.
    pub fn decode(reader: &mut Reader<'_>, len_max: u32) -> Result<Self, ExtentError> {
        let head = reader.varint()?;
        let (len, kind) = (head >> 2, head & 3);
        if len == 0 || len > u64::from(len_max) {
            return Err(ExtentError::Length(len));
        }
        if kind == KIND_ZERO {
            return Ok(Self::zero(len as u32));
        }
        if kind > KIND_SLICE {
            return Err(ExtentError::Kind(kind));
        }
        let id = ChunkId(reader.array()?);
        let (offset, chunk_len) = if kind == KIND_WHOLE {
            (0, len)
        } else {
            let (offset, chunk_len) = (reader.varint()?, reader.varint()?);
            // A whole chunk spelt as a slice would be a second name for the same leaf.
            if offset == 0 && chunk_len == len {
                return Err(ExtentError::Kind(kind));
            }
            (offset, chunk_len)
        };
        let fits = offset.checked_add(len).is_some_and(|end| end <= chunk_len);
        if !fits || chunk_len > CHUNK_BYTES_MAX as u64 {
            return Err(ExtentError::Slice {
                len,
                offset,
                chunk_len,
            });
        }
        Ok(Self {
            len: len as u32,
            source: ExtentSource::Chunk {
                id,
                chunk_len: chunk_len as u32,
                offset: offset as u32,
            },
        })
    }
}
