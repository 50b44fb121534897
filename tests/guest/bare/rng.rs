//! Entropy (virtio 1.2, section 5.4).

use crate::memory::Piece;
use crate::queue::takes;
use crate::report::{Check, Wrong, ensure};
use crate::virtio::{Device, F_EVENT_IDX, Learns};

const KIND: u32 = 4;
const BYTES: usize = 64;

pub fn check(check: &mut Check) -> Result<(), Wrong> {
    for (learns, features, step) in [
        (Learns::Polls, 0, "bytes by polling"),
        (Learns::Interrupted, 0, "bytes by interrupt"),
        (Learns::Interrupted, F_EVENT_IDX, "bytes by positions that are told"),
    ] {
        let device = Device::open(KIND, 0, features, learns)?;
        let mut queue = device.queue(0, 8)?;
        device.begin()?;
        let buffer = Piece::take(BYTES);
        let mut before = [0; BYTES / 8];
        for _ in 0..4 {
            let written = queue.ask(&[takes(buffer, 0, 24), takes(buffer, 24, BYTES - 24)])?;
            ensure(written as usize == BYTES, "another length", written.into())?;
            let now: [u64; BYTES / 8] = core::array::from_fn(|at| buffer.read(at * 8));
            ensure(now.iter().zip(&before).all(|(a, b)| a != b), "bytes that do not change", now[0])?;
            before = now;
        }
        device.reset()?;
        check.done(step);
    }
    Ok(())
}
