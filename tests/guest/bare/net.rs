//! A network card (virtio 1.2, section 5.1). Its host sends frames of our own type back, with the addresses exchanged.

use crate::memory::Piece;
use crate::queue::{gives, takes};
use crate::report::{Check, Wrong, ensure};
use crate::virtio::{Device, F_EVENT_IDX, Learns};

const KIND: u32 = 1;
const F_MAC: u64 = 1 << 5;
const HEADER_BYTES: usize = 12;
const FRAME_BYTES: usize = 1000;
/// For experiments on one's own network (IEEE 802).
const TYPE: [u8; 2] = [0x88, 0xb5];
const BUFFERS: usize = 8;
const BUFFER_BYTES: usize = 2048;
const FRAMES: usize = 20;
/// Frames that the host's kernel may send by itself.
const OTHERS_MAX: usize = 200;

pub fn check(check: &mut Check) -> Result<(), Wrong> {
    for (learns, features, step) in [
        (Learns::Polls, 0, "frames come back, by polling"),
        (Learns::Interrupted, 0, "frames come back, by interrupt"),
        (Learns::Interrupted, F_EVENT_IDX, "frames come back, by positions that are told"),
    ] {
        let device = Device::open(KIND, 0, features | F_MAC, learns)?;
        let mac: [u8; 6] = core::array::from_fn(|at| device.config(at));
        ensure(mac == [0x52, 0x54, 0, 1, 2, 3], "another address", mac[5].into())?;
        let (mut rx, mut tx) = (device.queue(0, 16)?, device.queue(1, 16)?);
        device.begin()?;
        let buffers = Piece::take(BUFFERS * BUFFER_BYTES);
        let mut heads = [(u16::MAX, 0); BUFFERS];
        for (slot, head) in heads.iter_mut().enumerate() {
            let at = slot * BUFFER_BYTES;
            *head = (rx.put(&[takes(buffers, at, BUFFER_BYTES)]), slot);
        }
        rx.kick();
        let frame = Piece::take(HEADER_BYTES + FRAME_BYTES);
        for number in 0..FRAMES {
            let body = |at: usize| (at * 3 + number) as u8;
            frame.fill(0);
            // To a neighbour who is not there: only who listens to everything hears it.
            frame.put(HEADER_BYTES, &[0x52, 0x54, 0, 9, 9, 9]);
            frame.put(HEADER_BYTES + 6, &mac);
            frame.put(HEADER_BYTES + 12, &TYPE);
            for at in 14..FRAME_BYTES {
                frame.write(HEADER_BYTES + at, body(at));
            }
            let header = gives(frame, 0, HEADER_BYTES);
            tx.ask(&[header, gives(frame, HEADER_BYTES, FRAME_BYTES)])?;
            let mut came = false;
            for _ in 0..OTHERS_MAX {
                let used = rx.wait()?;
                let found = heads.iter_mut().find(|(head, _)| *head == used.head);
                let found = found.ok_or(Wrong { what: "a frame nowhere", value: used.head.into() })?;
                let at = found.1 * BUFFER_BYTES;
                let ours = buffers.holds(at + HEADER_BYTES, &mac)
                    && buffers.holds(at + HEADER_BYTES + 12, &TYPE);
                if ours {
                    ensure(used.written as usize == HEADER_BYTES + FRAME_BYTES, "another length", used.written.into())?;
                    ensure(buffers.read::<u16>(at + 10) == 1, "several buffers", 0)?;
                    let wrong = buffers.differs(at + HEADER_BYTES + 14, FRAME_BYTES - 14, |at| body(at + 14));
                    ensure(wrong.is_none(), "other bytes", wrong.unwrap_or(0) as u64)?;
                }
                *found = (rx.put(&[takes(buffers, at, BUFFER_BYTES)]), found.1);
                rx.kick();
                if ours {
                    came = true;
                    break;
                }
            }
            ensure(came, "no frame among many", number as u64)?;
        }
        device.reset()?;
        check.done(step);
    }
    Ok(())
}
