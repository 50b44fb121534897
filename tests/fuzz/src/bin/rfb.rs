//! What a viewer of a desktop's screen says, from its first byte. The first byte of the input is how many bytes come at a time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::rfb::{MESSAGE_BYTES_MAX, Parser};

fuzz_target!(|data: &[u8]| {
    let Some((step, data)) = data.split_first() else {
        return;
    };
    let mut parser = Parser::default();
    for (index, piece) in data.chunks(usize::from(*step).max(1)).enumerate() {
        if index == 7 {
            parser.expect_more_buttons();
        }
        parser.feed(piece);
        loop {
            match parser.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(parser.waiting() <= MESSAGE_BYTES_MAX);
    }
});
