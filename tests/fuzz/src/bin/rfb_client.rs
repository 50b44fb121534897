//! What a viewer says, in pieces of any length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use splice_fuzz::script::Script;
use vmm::rfb::{MESSAGE_BYTES_MAX, Parser};

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let mut parser = Parser::default();
    while let Some(len) = script.byte() {
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
