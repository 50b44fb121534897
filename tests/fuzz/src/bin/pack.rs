//! A pack file of the chunk store.
//!
//! The reader is compiled in by its files, because its crate links RocksDB, which is neither wanted under instrumentation nor
//! needed to read a pack.
#![no_main]
// The writing half of these files is not used here.
#![allow(dead_code, missing_docs)]

#[path = "../../../../dedup/store/src/codec.rs"]
mod codec;
#[path = "../../../../dedup/store/src/fuzz.rs"]
mod fuzz;
#[path = "../../../../dedup/store/src/pack.rs"]
mod pack;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::fuzz_pack(data));
