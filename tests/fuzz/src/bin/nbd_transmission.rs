//! NBD requests to a writable or a read-only export, after a handshake that the first byte stands for.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmm_block::nbd::fuzz_transmission(data));
