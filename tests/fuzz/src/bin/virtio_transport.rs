//! Registers of a virtio device on PCI, MSI-X and configuration space, on this host's KVM. Where there is none, nothing is tried.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = vmm::virtio::hostile::transport(data);
});
