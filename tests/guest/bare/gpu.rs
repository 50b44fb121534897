//! The graphics adapter (virtio 1.2, section 5.7): a picture is shown, and stays until the device is reset.

use crate::memory::Piece;
use crate::queue::{Queue, gives, takes};
use crate::report::{Check, Wrong, ensure};
use crate::virtio::{Device, Learns};

const KIND: u32 = 16;
const WIDTH: u32 = 320;
const HEIGHT: u32 = 200;
const PIXEL: usize = 4;
const PICTURE_BYTES: usize = WIDTH as usize * HEIGHT as usize * PIXEL;

const OK: u32 = 0x1100;
const OK_DISPLAY: u32 = 0x1101;
const NO_SUCH_RESOURCE: u32 = 0x1203;
const HEADER_BYTES: usize = 24;
const ANSWER_BYTES: usize = 408;

struct Adapter {
    control: Queue,
    command: Piece,
    answer: Piece,
}

impl Adapter {
    /// Does a command; the kind of the answer.
    fn ask(&mut self, kind: u32, fields: &[u32]) -> Result<u32, Wrong> {
        self.command.fill(0);
        self.command.write(0, kind);
        for (number, field) in fields.iter().enumerate() {
            self.command.write(HEADER_BYTES + 4 * number, *field);
        }
        let len = HEADER_BYTES + 4 * fields.len();
        self.control.ask(&[gives(self.command, 0, len), takes(self.answer, 0, ANSWER_BYTES)])?;
        Ok(self.answer.read(0))
    }

    fn must(&mut self, kind: u32, fields: &[u32]) -> Result<(), Wrong> {
        let answer = self.ask(kind, fields)?;
        ensure(answer == OK, "a command is refused", u64::from(kind) << 32 | u64::from(answer))
    }
}

pub fn check(check: &mut Check) -> Result<(), Wrong> {
    for learns in [Learns::Polls, Learns::Interrupted] {
        let device = Device::open(KIND, 0, 0, learns)?;
        let mut adapter = Adapter {
            control: device.queue(0, 16)?,
            command: Piece::take(256),
            answer: Piece::take(ANSWER_BYTES),
        };
        let _cursor = device.queue(1, 16)?;
        device.begin()?;
        let answer = adapter.ask(0x0100, &[])?;
        ensure(answer == OK_DISPLAY, "no display", answer.into())?;
        let (width, height) = (adapter.answer.read::<u32>(32), adapter.answer.read::<u32>(36));
        ensure((width, height) == (640, 480), "another display", width.into())?;
        check.done("has a display");
        let picture = Piece::take(PICTURE_BYTES);
        for at in 0..PICTURE_BYTES / PIXEL {
            // Blue counts columns, green rows, red both.
            let (x, y) = (at as u32 % WIDTH, at as u32 / WIDTH);
            picture.write(at * PIXEL, x & 0xff | (y & 0xff) << 8 | ((x + y) & 0xff) << 16);
        }
        let at = picture.address();
        adapter.must(0x0101, &[1, 2, WIDTH, HEIGHT])?;
        adapter.must(0x0106, &[1, 1, at as u32, (at >> 32) as u32, PICTURE_BYTES as u32, 0])?;
        adapter.must(0x0103, &[0, 0, WIDTH, HEIGHT, 0, 1])?;
        adapter.must(0x0105, &[0, 0, WIDTH, HEIGHT, 0, 0, 1, 0])?;
        adapter.must(0x0104, &[0, 0, WIDTH, HEIGHT, 1, 0])?;
        let answer = adapter.ask(0x0102, &[9, 0])?;
        ensure(answer == NO_SUCH_RESOURCE, "what is not there is forgotten", answer.into())?;
        check.done("shows a picture");
        if learns == Learns::Polls {
            device.reset()?;
        }
    }
    Ok(())
}
