//! What a guest's agent says of its clipboard, with viewers' texts in between: each step's first byte says which of them, its second how
//! many bytes. At any moment it may be saved and go on in another machine.
#![no_main]

use libfuzzer_sys::fuzz_target;
use splice_fuzz::script::Script;
use vmm::clipboard::{Clipboard, TEXT_BYTES_MAX};

fuzz_target!(|data: &[u8]| {
    let mut clipboard = Clipboard::default();
    let mut is_open = true;
    clipboard.set_open(is_open);
    let mut script = Script::new(data);
    let mut room = [0; 4096];
    while let Some(step) = script.byte() {
        let len = script.byte().unwrap_or(0);
        match step % 8 {
            0 => {
                is_open = len & 1 == 1;
                clipboard.set_open(is_open);
            }
            1 => clipboard.paste(&"x".repeat(usize::from(len))),
            2 => assert!(clipboard.give(&mut room) <= room.len()),
            7 => {
                let saved = clipboard.save();
                clipboard = Clipboard::default();
                clipboard.set_open(is_open);
                let taken_up = clipboard.restore(saved.clone());
                taken_up.expect("what was saved is taken up");
                assert_eq!(clipboard.save(), saved);
            }
            _ => clipboard.hear(script.take(len.into())),
        }
        let copied = clipboard.copied();
        assert!(copied.text.is_none_or(|text| text.len() <= TEXT_BYTES_MAX));
    }
});
