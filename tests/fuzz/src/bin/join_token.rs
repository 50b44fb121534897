//! Join tokens: as text, and as bytes whose check digits are made right.
#![no_main]

use dedup_protocol::join::JoinToken;
use libfuzzer_sys::fuzz_target;

fn parse(text: &str) {
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string().parse().as_ref(), Ok(&token));
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        parse(text);
    }
    let check = blake3::hash(data);
    let bytes = [data, &check.as_bytes()[..4]].concat();
    parse(&format!("splice-join-1.{}", hex::encode(bytes)));
});
