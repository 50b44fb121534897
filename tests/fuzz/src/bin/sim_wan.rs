//! The emulator's inputs: profile files, whose profiles must then carry packets, and the control socket's lines.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sim_wan::Profiles;
use sim_wan::control::{Request, Response};
use sim_wan::model::{Mode, Pipe, Shape};

fn carry(shape: Shape, mode: Mode) {
    let mut pipe = Pipe::new(Duration::ZERO, shape, mode, 1);
    let mut now = Duration::ZERO;
    for packet in 0..20u32 {
        if mode == Mode::Datagram || pipe.has_room(now, 1500) {
            pipe.enqueue(now, packet, 1500);
        }
        match packet {
            8 => pipe.cut(now),
            10 => pipe.restore(now),
            _ => {}
        }
        now = pipe.next_event().unwrap_or(now).max(now) + Duration::from_millis(1);
        while pipe.poll(now).is_some() {}
    }
    assert!(
        pipe.stats(now).is_conserved(),
        "a packet was lost from the books"
    );
}

fn control(line: &str) {
    if let Ok(request) = serde_json::from_str::<Request>(line) {
        let text = serde_json::to_string(&request).expect("requests serialise");
        assert_eq!(serde_json::from_str::<Request>(&text).ok(), Some(request));
    }
    if let Ok(response) = serde_json::from_str::<Response>(line) {
        let text = serde_json::to_string(&response).expect("answers serialise");
        assert_eq!(serde_json::from_str::<Response>(&text).ok(), Some(response));
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    control(text);
    let Ok(profiles) = Profiles::parse(text) else {
        return;
    };
    for profile in profiles.iter().take(4) {
        assert_eq!(profiles.find(&profile.name).ok(), Some(profile));
        for mode in [Mode::Datagram, Mode::Stream] {
            carry(profile.down.clone(), mode);
            carry(profile.up.clone(), mode);
        }
    }
});
