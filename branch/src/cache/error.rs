//! What can go wrong with the cache. A missing or damaged chunk is no error: it is an outcome, because it can be fetched again.

use std::io;

use dedup::ChunkId;
use dedup_store::kv::KvError;

/// Why the cache cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory is the cache of another realm or of another id key.
    #[error(
        "cache {dir} belongs to {found}, not to {expected}; give this realm a directory of its own"
    )]
    OtherRealm {
        /// The cache's directory.
        dir: String,
        /// Realm and key that the caller expects.
        expected: String,
        /// Realm and key in the header.
        found: String,
    },
    /// Written by a later release, or encrypted.
    #[error("cache file {file}: {why}; this release cannot read it")]
    Unsupported {
        /// The file.
        file: String,
        /// What it needs.
        why: String,
    },
    /// The host's disk is full. Nothing that was resident is affected.
    #[error("cache {dir}: no space left on its disk")]
    NoSpace {
        /// The cache's directory.
        dir: String,
    },
    /// The cache has no run of free blocks that is long enough: evict, then try again.
    #[error(
        "cache {dir} is full at {capacity_bytes} bytes: no {needed_bytes} bytes in a row; evict first"
    )]
    Full {
        /// The cache's directory.
        dir: String,
        /// Bytes needed in a row.
        needed_bytes: u64,
        /// The configured limit.
        capacity_bytes: u64,
    },
    /// Longer than any chunk may be.
    #[error("chunk {id} has {len} bytes, more than any chunk may have")]
    TooLong {
        /// The chunk.
        id: ChunkId,
        /// Its length in bytes.
        len: usize,
    },
    /// The caller asked for bytes that the chunk does not have.
    #[error(
        "bytes {offset}..{end} of chunk {id}, which has {len}: the manifest does not fit the chunk"
    )]
    OutOfRange {
        /// The chunk.
        id: ChunkId,
        /// First byte asked for.
        offset: u64,
        /// One past the last.
        end: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// The operating system reported an error. The part of the cache that it hit takes no more chunks.
    #[error("cache file {file}: {what}")]
    Io {
        /// The file.
        file: String,
        /// What was tried.
        what: &'static str,
        /// The operating system's words.
        #[source]
        source: io::Error,
    },
    /// The residency index could not be read or written.
    #[error("cache residency index")]
    Index(#[from] KvError),
}

impl CacheError {
    /// An error of the disk, a full one told apart. By kind, because a disk may wrap the raw error.
    pub(crate) fn io(dir: &str, file: &str, what: &'static str, source: io::Error) -> Self {
        if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            return Self::NoSpace {
                dir: dir.to_owned(),
            };
        }
        Self::Io {
            file: file.to_owned(),
            what,
            source,
        }
    }
}
