//! Configuration space of a PCI function and its table of interrupts.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmm::virtio::hostile::configuration(data));
