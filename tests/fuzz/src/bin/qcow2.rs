//! A qcow2 image: its header and tables, and a little of each region that they describe.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dedup_image::fuzz_qcow2(data));
