//! Kernels, which come out of images, put into memory: bzImage and ELF.
#![no_main]

use libfuzzer_sys::fuzz_target;
use splice_fuzz::script::Script;

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let (command_line, initrd) = (script.piece(), script.piece());
    vmm::virtio::hostile::boot(script.rest(), initrd, command_line);
});
