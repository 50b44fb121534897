//! A whole NBD connection from its first byte: the options of the handshake and, where they choose an export, requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmm_block::nbd::fuzz_handshake(data));
