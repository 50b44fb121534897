//! Messages of a vhost-user front-end: the header, then the body with some file descriptors.
#![no_main]

use std::os::fd::OwnedFd;

use libfuzzer_sys::fuzz_target;
use vmm_block::vhost_user::wire::{BODY_BYTES_MAX, Frame, HEADER_BYTES, Header, Message};

/// More than a message may have.
const DESCRIPTORS_MAX: usize = 34;

fuzz_target!(|data: &[u8]| {
    let Some((count, rest)) = data.split_first() else {
        return;
    };
    let Some((header, body)) = rest.split_first_chunk::<HEADER_BYTES>() else {
        return;
    };
    let Ok(header) = Header::parse(*header) else {
        return;
    };
    assert!(header.size <= BODY_BYTES_MAX);
    // Its flags that nobody knows are gone.
    assert_eq!(Header::parse(header.bytes()), Ok(header));
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").expect("it is everywhere"));
    let count = usize::from(*count) % DESCRIPTORS_MAX;
    let frame = Frame {
        header,
        body: body[..body.len().min(header.size)].to_vec(),
        fds: std::iter::repeat_with(null).take(count).collect(),
    };
    let _ = Message::parse(frame);
});
