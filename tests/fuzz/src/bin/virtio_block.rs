//! A disk in process, used by a driver that does what no driver should.
#![no_main]

use vmm::virtio::hostile::{Kind, run};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(Kind::Block, data));
