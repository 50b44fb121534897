//! A snapshot's files as anybody may have written them: the state's head, its parts, and what devices make of theirs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::snapshot::Saved;
use vmm::snapshot::sealed::{Kind, seal, unseal};
use vmm::virtio::hostile::take_up;

fuzz_target!(|data: &[u8]| {
    let Some((what, body)) = data.split_first() else {
        return;
    };
    match what % 3 {
        0 => {
            if let Ok(inner) = unseal(Kind::State, body) {
                assert_eq!(seal(Kind::State, inner), body);
            }
        }
        1 => {
            if let Ok((saved, blocks)) = Saved::parse(body) {
                let bytes = saved.bytes(&blocks).expect("what was read can be written");
                let (again, blocks) = Saved::parse(&bytes).expect("what was written can be read");
                assert_eq!(again.bytes(&blocks).expect("as before"), bytes);
            }
        }
        _ => take_up(body),
    }
});
