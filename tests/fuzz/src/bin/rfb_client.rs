//! What a viewer says, in pieces of any length; after some of them its pointer may have more buttons.
#![no_main]

use libfuzzer_sys::fuzz_target;
use splice_fuzz::script::Script;
use vmm::rfb::{MESSAGE_BYTES_MAX, Parser};

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let mut parser = Parser::default();
    let mut pieces = 0;
    while let Some(len) = script.byte() {
        pieces += 1;
        if pieces == 7 {
            parser.expect_more_buttons();
        }
        let piece = script.take(usize::from(len) + 1);
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
