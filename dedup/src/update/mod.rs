//! Updates: the chunks that a version has and its parent lacks, encoded against the chunks that a holder of the parent has.
//!
//! Both ends compute the same [`NewChunks`] from the two manifests, which numbers the parent's chunks and then the new ones. The
//! sender sketches chunks ([`sketch`]), cuts the new ones into batches with a list of similar chunks each ([`plan`]), and encodes a
//! batch as one zstd frame with those chunks as its prefix ([`encode_batch`]). The receiver reads the listed chunks back and decodes
//! ([`decode_batch`]). A batch needs the chunks that it lists and nothing else, so batches may be lost, repeated and skipped.
//!
//! Nothing here reads a store, waits or spawns: chunk bytes come from closures, one batch and its prefix at a time.

mod batch;
mod decode;
mod encode;
mod frame;
mod numbering;
mod plan;
mod sketch;

pub use batch::{BatchError, UpdateBatch};
pub use decode::{UpdateRefused, decode_batch};
pub use encode::{Effort, encode_batch};
pub use numbering::{NewChunks, NumberingError, TooManyChunks};
pub use plan::{BatchPlan, Plan, plan};
pub use sketch::{Sketch, sketch};

/// Most chunks that one update may number, parent's and new ones together: 1 TiB in chunks of 16 KiB. At 36 bytes each, the
/// numbering of the largest update takes 2.4 GB; one of 10⁷ chunks takes 360 MB.
pub const NUMBERS_MAX: u32 = 1 << 26;

/// Plain bytes after which a batch is closed: 7.5 MiB, so that one that does not compress still fits a frame of 8 MiB with its list.
pub const BATCH_PLAIN_BYTES_MAX: usize = (8 << 20) - (512 << 10);

/// Most plain bytes of a batch's prefix.
pub const PREFIX_BYTES_MAX: usize = 16 << 20;

/// Most chunks in a batch: as many of the shortest that a realm may use.
pub const BATCH_CHUNKS_MAX: u32 = (BATCH_PLAIN_BYTES_MAX / 1024) as u32;

/// Most chunks in a prefix: as many of the shortest that a realm may use.
pub const PREFIX_CHUNKS_MAX: u32 = (PREFIX_BYTES_MAX / 1024) as u32;
