//! A desktop's overlay log.
//!
//! The replay is compiled in by its files, because its crate links RocksDB, which is neither wanted under instrumentation nor
//! needed to read a log.
#![no_main]
// The writing half of these files is not used here.
#![allow(dead_code, missing_docs)]

// The name by which the files below know the crate that the disk comes from.
extern crate self as dedup_store;

#[path = "../../../../dedup/store/src/disk.rs"]
pub mod disk;

#[path = "../../../../branch/src/volume/overlay"]
mod overlay {
    mod error;
    mod format;
    mod fuzz;
    mod index;
    mod map;
    mod packed;
    mod replay;

    pub use fuzz::fuzz_overlay;

    /// How errors call a segment.
    fn segment_name(dir: &str, number: u32) -> String {
        format!("{dir}/{number:010}.seg")
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay::fuzz_overlay(data));
