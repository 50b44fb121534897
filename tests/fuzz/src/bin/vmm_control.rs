//! Lines of a machine's control socket, of either side.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_api::{Answer, Command};

fuzz_target!(|data: &[u8]| {
    if let Ok(command) = serde_json::from_slice::<Command>(data) {
        let text = serde_json::to_vec(&command).expect("a command is JSON");
        let again: Command = serde_json::from_slice(&text).expect("what was written can be read");
        assert_eq!(again, command);
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(data) {
        let text = serde_json::to_vec(&answer).expect("an answer is JSON");
        let again: Answer = serde_json::from_slice(&text).expect("what was written can be read");
        assert_eq!(again, answer);
    }
});
