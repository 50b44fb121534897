//! Durable storage of content: the chunk store (packs and index), the small key-value store that branch and datacenter
//! keep their state in, and the disk both stand on.
//!
//! Everything takes its [`disk::Disk`] and [`kv::Kv`] as arguments, so that a simulated disk which loses what was not
//! flushed runs the very same code (`tests/crash`). Start reading at [`ChunkStore`]; the bytes on disk are documented in
//! `docs/disk-formats/store.md`.

mod append;
mod check;
mod chunk_store;
pub mod codec;
mod collect;
pub mod disk;
mod error;
mod freeze;
mod fuzz;
mod handles;
mod hold;
mod index;
pub mod kv;
mod pack;
mod recovery;
mod scrub;
mod trouble;
mod verify;

pub use append::{Put, Writer};
pub use chunk_store::{ChunkStore, StoreOptions, StoreStats, StoredChunk};
pub use codec::Encoding;
pub use collect::{CollectOptions, CollectPhase, CollectProgress, CollectReport, Collection};
pub use error::StoreError;
pub use freeze::{CLOSED_PACK_BYTES_MAX, ClosedPack, FrozenPacks, PackProof};
pub use fuzz::fuzz_pack;
pub use hold::Hold;
pub use pack::{
    Encoded, NODE_BYTES_MAX, PACK_BYTES_MAX, PACK_DIR, PACK_VERSION, PackNumber, RecordKind,
    RecordName,
};
pub use recovery::{Damage, RebuildReport, Recovery};
pub use scrub::{ScrubState, ScrubbedPack};
pub use verify::{VerifyProgress, VerifyReport};
