//! What the fuzz targets share: content to be synchronised ([`content`]), a fuzzer's bytes read as instructions ([`script`]), and
//! disk files small enough to be mutated ([`disks`]).
//!
//! Each file in `src/bin` is one target: it takes any bytes, must not panic, must not take long, and says in assertions what a
//! parser promises besides. `run.sh` builds and runs them all; `examples/seeds.rs` writes what they start from.

pub mod content;
pub mod disks;
pub mod script;
