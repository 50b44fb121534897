//! A keyboard (virtio 1.2, section 5.8). The host has pressed and released the key of this number before we began.

use crate::memory::Piece;
use crate::queue::takes;
use crate::report::{Check, Wrong, ensure};
use crate::virtio::{Device, Learns};

const KIND: u32 = 18;
const EVENT_BYTES: usize = 8;
const KEY: u64 = 30;
const NAME: &[u8] = b"Splice keyboard";

/// Of the configuration: what is asked for, and where the answer is.
const SELECT_AT: usize = 0;
const SUB_SELECT_AT: usize = 1;
const LEN_AT: usize = 2;
const ANSWER_AT: usize = 8;
const SELECT_NAME: u8 = 1;

/// Type, code and value of what the host has sent, as one number: pressed, a report's end, released, a report's end.
const EVENTS: [u64; 4] = [1 | KEY << 16 | 1 << 32, 0, 1 | KEY << 16, 0];

pub fn check(check: &mut Check) -> Result<(), Wrong> {
    let device = Device::open(KIND, 0, 0, Learns::Interrupted)?;
    device.set_config(SELECT_AT, SELECT_NAME);
    device.set_config(SUB_SELECT_AT, 0u8);
    let len = device.config::<u8>(LEN_AT);
    ensure(usize::from(len) == NAME.len(), "a name of another length", len.into())?;
    let is_named = (0..).zip(NAME).all(|(at, byte)| device.config::<u8>(ANSWER_AT + at) == *byte);
    ensure(is_named, "another name", 0)?;
    check.done("tells its name");
    let (mut events, _status) = (device.queue(0, 16)?, device.queue(1, 4)?);
    device.begin()?;
    let buffer = Piece::take(EVENT_BYTES);
    for expected in EVENTS {
        let written = events.ask(&[takes(buffer, 0, EVENT_BYTES)])?;
        ensure(written as usize == EVENT_BYTES, "another length", written.into())?;
        let event: u64 = buffer.read(0);
        ensure(event == expected, "another event", event)?;
    }
    check.done("tells of a key");
    device.reset()
}
