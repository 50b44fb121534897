//! The screen as a viewer of another make sees it: `viewer.py` beside this has nothing of ours, and must show what the screen has.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use vmm::rfb::{self, Inputs, encoding};
use vmm::screen::picture::{self, Kind};
use vmm::screen::{Rect, Screen, Size};

/// The other viewer, at work.
struct Viewer {
    process: Child,
    ask: ChildStdin,
    shown: BufReader<ChildStdout>,
}

impl Viewer {
    fn open(socket: &Path, encodings: &[i32]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/screen/viewer.py");
        let mut process = Command::new("python3")
            .arg(script)
            .arg(socket)
            .args(encodings.iter().map(i32::to_string))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3, of the Debian package python3");
        let ask = process.stdin.take().expect("piped");
        let shown = BufReader::new(process.stdout.take().expect("piped"));
        Self {
            process,
            ask,
            shown,
        }
    }

    /// What it shows after an update.
    fn look(&mut self, which: &str) -> Vec<u8> {
        writeln!(self.ask, "{which}").expect("asked");
        let mut len = String::new();
        self.shown.read_line(&mut len).expect("a length");
        let len = len.trim().parse().expect("the viewer has failed");
        let mut shown = vec![0; len];
        self.shown.read_exact(&mut shown).expect("a picture");
        shown
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Draws even parts, few colours, many, noise, and lines of text that go up with each `step`.
fn draw(screen: &Screen, step: u32) {
    let value = |x: u32, y: u32| match x / 80 {
        0 => step * 40,
        1 => (x / 9 + y / 7) % 5 * 0x0011_2233,
        2 => x / 3 % 100 * 0x0001_0203 + step,
        3 => (x * 7919 + y * 104_729 + step).wrapping_mul(0x9e37_79b1) >> 8,
        _ => {
            let (line, row) = ((y + 16 * step) / 16, (y + 16 * step) % 16);
            let glyph = (line * 64 + x / 8).wrapping_mul(0x9e37_79b1) >> 12;
            if row < 13 && glyph >> ((row * 5 + x % 8) % 19) & 1 == 1 {
                0x00c0_c0c0
            } else {
                0
            }
        }
    };
    let size = screen.look().size();
    let rows = |left: u32, right: u32| -> Vec<Vec<u8>> {
        let row = |y| {
            (left..right)
                .flat_map(|x| (value(x, y) & 0x00ff_ffff).to_le_bytes())
                .collect()
        };
        (0..size.height.into()).map(row).collect()
    };
    // Two windows: what moves is found in one that moves as a whole.
    for (left, right) in [(0, 320), (320, u32::from(size.width))] {
        let rows = rows(left, right);
        let rect = Rect::new(left as u16, 0, (right - left) as u16, size.height);
        screen.change(|canvas| canvas.draw(rect, |y| rows.get(usize::from(y)).map(Vec::as_slice)));
    }
}

fn expected(screen: &Screen) -> Vec<u8> {
    let canvas = screen.look();
    let (mut pixels, mut out) = (Vec::new(), Vec::new());
    canvas.copy(canvas.size().rect(), &mut pixels);
    picture::write(Kind::Ppm, canvas.size(), &pixels, &mut out).expect("written");
    out
}

#[test]
fn another_viewer_shows_what_the_screen_has() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("rfb");
    let screen = Screen::new(Size::new(501, 270).expect("a size"));
    let service = rfb::listen(&socket, screen.clone(), Inputs::default(), "a desktop");
    service.expect("a socket").start().expect("a thread");
    let lists: [&[i32]; 6] = [
        &[encoding::RAW],
        &[encoding::ZRLE, encoding::COPY_RECT],
        &[encoding::TIGHT, encoding::COMPRESSION_0 + 9],
        &[encoding::TIGHT, encoding::LAST_RECT, encoding::COPY_RECT],
        &[encoding::RAW, encoding::COPY_RECT, encoding::CURSOR],
        &[encoding::ZRLE, encoding::EXTENDED_DESKTOP_SIZE],
    ];
    for list in lists {
        draw(&screen, 0);
        let mut viewer = Viewer::open(&socket, list);
        for (step, which) in ["new", "more", "more", "new", "more"].iter().enumerate() {
            draw(&screen, step as u32);
            if step > 0 || *which == "new" {
                assert!(
                    viewer.look(which) == expected(&screen),
                    "{list:?}, step {step}"
                );
            }
        }
    }
}
