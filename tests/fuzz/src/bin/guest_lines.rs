//! The stream between a branch and the agent inside a desktop, of either direction. The first byte says how it is cut; what parses is written back
//! and is the same.
#![no_main]

use branch_guest::{FromGuest, LINE_BYTES_MAX, Lines, ToGuest};
use libfuzzer_sys::fuzz_target;

fn lines(parts: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
    let mut lines = Lines::default();
    let mut found = Vec::new();
    for part in parts {
        lines.push(part, |line| found.push(line.ok().map(<[u8]>::to_vec)));
    }
    found
}

fuzz_target!(|data: &[u8]| {
    let Some((&cut, stream)) = data.split_first() else {
        return;
    };
    let parts: Vec<&[u8]> = stream.chunks(usize::from(cut).max(1)).collect();
    let found = lines(&parts);
    assert_eq!(found, lines(&[stream]));
    for line in found.into_iter().flatten() {
        if let Ok(message) = FromGuest::decode(&line) {
            let again = message.encode();
            assert!(again.len() <= LINE_BYTES_MAX);
            assert_eq!(
                FromGuest::decode(again.trim_ascii_end()).expect("what was written can be read"),
                message
            );
        }
        if let Ok(message) = ToGuest::decode(&line) {
            let again = message.encode();
            assert_eq!(
                ToGuest::decode(again.trim_ascii_end()).expect("what was written can be read"),
                message
            );
        }
    }
});
