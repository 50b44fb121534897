//! Frames of the link: what decodes has an encoding that decodes to the same.
#![no_main]

use dedup_protocol::wire::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = Message::decode(data) {
        let again = message.encode();
        assert_eq!(Message::decode(&again).as_ref(), Ok(&message));
    }
});
