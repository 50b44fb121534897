//! A raw disk: its partition table, and the file systems in it.
#![no_main]

use splice_fuzz::disks::contain_reader_panics;

libfuzzer_sys::fuzz_target!(init: contain_reader_panics(), |data: &[u8]| {
    dedup_image::fuzz_partition_table(data);
});
