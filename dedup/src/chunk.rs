//! The `Chunk` value: bytes that match their name, by construction.
//!
//! Invariant: a `Chunk` exists only verified. Both constructors hash; nothing else can make one.

use bytes::Bytes;

use crate::id::{ChunkId, IdKey};

/// Largest chunk that any realm may use, in bytes. Decoders allocate no more than this for one chunk.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// Content-defined bytes together with the name that was computed from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    id: ChunkId,
    bytes: Bytes,
}

/// The bytes do not have the expected name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chunk {expected} does not match its name: its {len} bytes hash to {actual}")]
pub struct ChunkMismatch {
    /// The name that was asked for.
    pub expected: ChunkId,
    /// The name of what came.
    pub actual: ChunkId,
    /// Length of what came, in bytes.
    pub len: usize,
}

impl Chunk {
    /// Names `bytes`.
    pub fn new(key: &IdKey, bytes: Bytes) -> Self {
        Self {
            id: key.chunk_id(&bytes),
            bytes,
        }
    }

    /// Accepts `bytes` as the chunk `expected` only if they hash to it.
    pub fn verify(key: &IdKey, expected: ChunkId, bytes: Bytes) -> Result<Self, ChunkMismatch> {
        let actual = key.chunk_id(&bytes);
        if actual != expected {
            return Err(ChunkMismatch {
                expected,
                actual,
                len: bytes.len(),
            });
        }
        Ok(Self {
            id: expected,
            bytes,
        })
    }

    /// The chunk's name.
    pub fn id(&self) -> ChunkId {
        self.id
    }

    /// The chunk's bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}
