//! A desktop's overlay log, and its index snapshot: the first byte chooses.
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
    mod meta;
    mod packed;
    mod replay;
    mod seal;
    mod snapshot;

    pub use fuzz::{fuzz_index_snapshot, fuzz_overlay};

    /// How errors call a segment.
    fn segment_name(dir: &str, number: u32) -> String {
        format!("{dir}/{number:010}.seg")
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if data.first().is_some_and(|choice| *choice >= 128) {
        overlay::fuzz_index_snapshot(data);
    } else {
        overlay::fuzz_overlay(data);
    }
});
