//! Ports of agents (virtio 1.2, section 5.3). The host's side sends a line to port 1 and gets it back, in capitals.

use crate::memory::Piece;
use crate::queue::{Queue, gives, takes};
use crate::report::{Check, Wrong, ensure};
use crate::virtio::{Device, Learns};

const KIND: u32 = 3;
const F_MULTIPORT: u64 = 1 << 1;

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// Where the configuration has the number of ports.
const PORTS_AT: usize = 4;
const CONTROL_RX: u16 = 2;
const CONTROL_TX: u16 = 3;
/// Port 1's queues.
const RX: u16 = 4;
const TX: u16 = 5;
const PORT: u32 = 1;
const NAME: &[u8] = b"splice.test";

const MESSAGE_BYTES: usize = 64;
const MESSAGES: usize = 8;
/// A line that is longer than what the device moves at a time.
const LINE_BYTES: usize = 40_000;

struct Control {
    rx: Queue,
    tx: Queue,
    buffers: Piece,
    message: Piece,
    heads: [(u16, usize); MESSAGES],
}

impl Control {
    fn say(&mut self, port: u32, event: u16, value: u16) -> Result<(), Wrong> {
        self.message.write(0, port);
        self.message.write(4, event);
        self.message.write(6, value);
        self.tx.ask(&[gives(self.message, 0, 8)]).map(drop)
    }

    fn offer(&mut self, slot: usize) {
        let head = self.rx.put(&[takes(self.buffers, slot * MESSAGE_BYTES, MESSAGE_BYTES)]);
        self.heads[slot] = (head, slot);
        self.rx.kick();
    }

    /// The next message: port, event, value, and whether the port's name is with it.
    fn hear(&mut self) -> Result<(u32, u16, u16, bool), Wrong> {
        let used = self.rx.wait()?;
        let slot = self.heads.iter().find(|(head, _)| *head == used.head);
        let slot = slot.ok_or(Wrong { what: "a message nowhere", value: used.head.into() })?.1;
        let at = slot * MESSAGE_BYTES;
        let (port, event) = (self.buffers.read(at), self.buffers.read(at + 4));
        let value = self.buffers.read(at + 6);
        let is_named = used.written as usize == 8 + NAME.len() && self.buffers.holds(at + 8, NAME);
        self.offer(slot);
        Ok((port, event, value, is_named))
    }
}

pub fn check(check: &mut Check) -> Result<(), Wrong> {
    for learns in [Learns::Polls, Learns::Interrupted] {
        let device = Device::open(KIND, 0, F_MULTIPORT, learns)?;
        let ports: u32 = device.config(PORTS_AT);
        ensure(ports == 2, "another number of ports", ports.into())?;
        let mut control = Control {
            rx: device.queue(CONTROL_RX, 16)?,
            tx: device.queue(CONTROL_TX, 4)?,
            buffers: Piece::take(MESSAGES * MESSAGE_BYTES),
            message: Piece::take(8),
            heads: [(u16::MAX, 0); MESSAGES],
        };
        let (mut rx, mut tx) = (device.queue(RX, 4)?, device.queue(TX, 4)?);
        device.begin()?;
        (0..MESSAGES).for_each(|slot| control.offer(slot));
        control.say(u32::MAX, DEVICE_READY, 1)?;
        for expected in 0..ports {
            let (port, event, ..) = control.hear()?;
            ensure((port, event) == (expected, DEVICE_ADD), "no port", event.into())?;
        }
        control.say(PORT, PORT_READY, 1)?;
        let (mut is_named, mut is_open) = (false, false);
        while !(is_named && is_open) {
            let (port, event, value, has_name) = control.hear()?;
            match (port, event, value) {
                (PORT, PORT_NAME, 1) => is_named = has_name,
                (PORT, PORT_OPEN, value) => is_open = value == 1,
                (_, event, _) => return Err(Wrong { what: "a strange message", value: event.into() }),
            }
        }
        check.done("hears of its port and of the host's client");
        control.say(PORT, PORT_OPEN, 1)?;
        let line = Piece::take(LINE_BYTES);
        let mut len = 0;
        while len < LINE_BYTES {
            let written = rx.ask(&[takes(line, len, LINE_BYTES - len)])?;
            ensure(written > 0, "nothing", 0)?;
            len += written as usize;
        }
        for at in 0..LINE_BYTES {
            line.write(at, line.read::<u8>(at).to_ascii_uppercase());
        }
        // All of it in one chain of several parts.
        let half = LINE_BYTES / 2;
        tx.ask(&[gives(line, 0, half), gives(line, half, LINE_BYTES - half)])?;
        check.done("echoes");
        control.say(PORT, PORT_OPEN, 0)?;
        device.reset()?;
    }
    Ok(())
}
