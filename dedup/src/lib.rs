//! The content model of Splice, pure: bytes in, names and structure out.
//!
//! This crate owns what a chunk, an extent and a manifest *are*. It has no files, sockets, clocks or database; the chunk
//! store, the protocol and both daemons stand on it. Start reading at [`id`], then [`chunk`], [`chunker`], [`manifest`].

pub mod chunk;
pub mod chunker;
pub mod codec;
pub mod diff;
pub mod extent;
pub mod id;
pub mod manifest;
pub mod update;
pub mod walk;

pub use chunk::{CHUNK_BYTES_MAX, Chunk, ChunkMismatch};
pub use chunker::{Chunker, ChunkerParams, Piece};
pub use extent::{Extent, ExtentSource};
pub use id::{BranchId, ChunkId, DesktopId, IdKey, NodeId, RealmId, VersionId};
pub use manifest::{LEAF_BYTES, Leaf, Manifest, ManifestBuilder, NodeSource};
