//! Decoding a foreign batch: every length is taken from the numbering, every chunk is verified.

use bytes::Bytes;

use crate::chunk::{Chunk, ChunkMismatch};
use crate::id::{ChunkId, IdKey};
use crate::update::{
    BATCH_CHUNKS_MAX, BATCH_PLAIN_BYTES_MAX, NewChunks, PREFIX_BYTES_MAX, PREFIX_CHUNKS_MAX,
    UpdateBatch, frame,
};

/// Why a batch gave no chunks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateRefused {
    /// It names chunks that the update does not have, none, or too many.
    #[error("chunks {first} to {first}+{count} are no batch of an update of {new} new chunks")]
    Range {
        /// Its first chunk.
        first: u32,
        /// Its number of chunks.
        count: u32,
        /// New chunks of the update.
        new: usize,
    },
    /// It lists a chunk of its own, of a later batch, or an unknown one.
    #[error("its prefix lists number {0}, which does not come before it")]
    PrefixNumber(u32),
    /// The prefix is over a limit.
    #[error("a prefix of {chunks} chunks, {bytes} bytes or more, is over the limit")]
    PrefixSize {
        /// Chunks listed.
        chunks: usize,
        /// Their bytes, as far as they were added up.
        bytes: usize,
    },
    /// The batch has more plain bytes than allowed.
    #[error("a batch of {0} bytes or more, at most {BATCH_PLAIN_BYTES_MAX} are allowed")]
    PlainSize(usize),
    /// A chunk of the prefix is not here any more: fetch the batch's chunks plain.
    #[error("chunk {0} of its prefix is not here")]
    MissingPrefix(ChunkId),
    /// The frame does not unpack to what the numbering says.
    #[error("its frame does not unpack to {plain_len} bytes: {message}")]
    Frame {
        /// Bytes that the batch's chunks have.
        plain_len: usize,
        /// What zstd says.
        message: String,
    },
    /// It unpacks to other bytes.
    #[error(transparent)]
    Mismatch(#[from] ChunkMismatch),
}

/// Decodes one batch into verified chunks, in order. `read` gives a chunk of the prefix from the receiver's own store.
///
/// Holds the prefix, the plain bytes and nothing more: at most [`PREFIX_BYTES_MAX`] + [`BATCH_PLAIN_BYTES_MAX`]. The chunks share one
/// allocation of the batch's plain bytes.
pub fn decode_batch(
    batch: &UpdateBatch,
    numbering: &NewChunks,
    key: &IdKey,
    mut read: impl FnMut(ChunkId) -> Option<Bytes>,
) -> Result<Vec<Chunk>, UpdateRefused> {
    let chunks = chunks_of(batch, numbering)?;
    let plain_len = chunks.iter().map(|(_, len)| *len as usize).sum();
    if plain_len > BATCH_PLAIN_BYTES_MAX {
        return Err(UpdateRefused::PlainSize(plain_len));
    }
    let listed = prefix_of(batch, numbering)?;
    let mut prefix = Vec::with_capacity(listed.iter().map(|(_, len)| *len as usize).sum());
    for (id, len) in listed {
        let bytes = read(id).filter(|bytes| bytes.len() == len as usize);
        prefix.extend_from_slice(&bytes.ok_or(UpdateRefused::MissingPrefix(id))?);
    }
    let plain = frame::unpack(&prefix, &batch.packed, plain_len)
        .map_err(|message| UpdateRefused::Frame { plain_len, message })?;
    drop(prefix);
    let mut plain = Bytes::from(plain);
    chunks
        .iter()
        .map(|(id, len)| Ok(Chunk::verify(key, *id, plain.split_to(*len as usize))?))
        .collect()
}

fn chunks_of<'a>(
    batch: &UpdateBatch,
    numbering: &'a NewChunks,
) -> Result<&'a [(ChunkId, u32)], UpdateRefused> {
    let first = batch.first as usize;
    let chunks = numbering.new.get(first..first + batch.count as usize);
    chunks
        .filter(|_| batch.count > 0 && batch.count <= BATCH_CHUNKS_MAX)
        .ok_or(UpdateRefused::Range {
            first: batch.first,
            count: batch.count,
            new: numbering.new.len(),
        })
}

/// Names and lengths of the prefix's chunks, all of which come before the batch and fit the limits.
fn prefix_of(
    batch: &UpdateBatch,
    numbering: &NewChunks,
) -> Result<Vec<(ChunkId, u32)>, UpdateRefused> {
    let own = numbering.number_of_new(batch.first);
    let size = |bytes| UpdateRefused::PrefixSize {
        chunks: batch.prefix.len(),
        bytes,
    };
    if batch.prefix.len() > PREFIX_CHUNKS_MAX as usize {
        return Err(size(0));
    }
    let mut bytes = 0;
    let mut listed = Vec::with_capacity(batch.prefix.len());
    for number in &batch.prefix {
        let chunk = numbering.number(*number).filter(|_| *number < own);
        let chunk = chunk.ok_or(UpdateRefused::PrefixNumber(*number))?;
        bytes += chunk.1 as usize;
        if bytes > PREFIX_BYTES_MAX {
            return Err(size(bytes));
        }
        listed.push(chunk);
    }
    Ok(listed)
}
