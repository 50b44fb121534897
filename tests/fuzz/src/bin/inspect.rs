//! A partition: its file system, and the files that tell what boots from it.
#![no_main]

use splice_fuzz::disks::contain_reader_panics;

libfuzzer_sys::fuzz_target!(init: contain_reader_panics(), |data: &[u8]| {
    dedup_image::fuzz_inspect(data);
});
