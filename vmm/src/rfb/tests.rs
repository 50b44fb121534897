//! The server as viewers see it, over its socket.

mod decode;
mod scroll;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::client::Client;
use super::*;
use crate::screen::{PIXEL_BYTES, Rect, Size, TILE};
use crate::virtio::input::events::{EV_ABS, EV_KEY};
use decode::Decoder;

struct Bench {
    screen: Screen,
    inputs: Inputs,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(width: u32, height: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let bench = Self {
            screen: Screen::new(Size::new(width, height).expect("a size")),
            inputs: Inputs::default(),
            path: dir.path().join("rfb"),
            _dir: dir,
        };
        let (screen, inputs) = (bench.screen.clone(), bench.inputs.clone());
        let service = listen(&bench.path, screen, inputs, "a desktop");
        service.expect("a socket").start().expect("a thread");
        bench
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).expect("a viewer")
    }

    /// Draws something of every kind: even parts, few colours, and noise.
    fn draw(&self, seed: u32) {
        self.screen.change(|canvas| {
            let size = canvas.size();
            let mut noise = seed;
            for y in 0..size.height {
                let mut row = Vec::new();
                for x in 0..size.width {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let value = match x / TILE % 4 {
                        0 => seed,
                        1 => u32::from(x / 9 + y / 7) % 5 * 0x0011_2233,
                        2 => u32::from(x / 5) * 0x0001_0305 + seed,
                        _ => noise >> 8,
                    };
                    row.extend((value & 0x00ff_ffff).to_le_bytes());
                }
                canvas.draw(Rect::new(0, y, size.width, 1), |_| Some(row.as_slice()));
            }
        });
    }

    fn pixels(&self) -> Vec<u8> {
        let canvas = self.screen.look();
        let mut pixels = Vec::new();
        canvas.copy(canvas.size().rect(), &mut pixels);
        pixels
    }
}

fn encodings(client: &mut Client, encodings: &[i32]) {
    let mut message = vec![2, 0, 0, encodings.len() as u8];
    message.extend(encodings.iter().flat_map(|encoding| encoding.to_be_bytes()));
    client.send(&message).expect("sent");
}

#[test]
fn a_frame_is_the_same_in_every_encoding() {
    let bench = Bench::new(333, 200);
    bench.draw(7);
    let mut raw = bench.client();
    assert_eq!(raw.size().to_string(), "333x200");
    assert_eq!(raw.picture().expect("a frame"), bench.pixels());

    let lists: [&[i32]; 6] = [
        &[encoding::RAW],
        &[encoding::ZRLE, encoding::RAW],
        &[encoding::TIGHT, encoding::ZRLE],
        &[encoding::TIGHT, encoding::LAST_RECT],
        // With the most and the least compression.
        &[
            encoding::TIGHT,
            encoding::LAST_RECT,
            encoding::COMPRESSION_0 + 9,
        ],
        &[
            encoding::COPY_RECT,
            encoding::TIGHT,
            encoding::COMPRESSION_0,
        ],
    ];
    for list in lists {
        let mut client = bench.client();
        encodings(&mut client, list);
        let mut decoder = Decoder::new(client.size());
        // The streams go on from update to update, and begin anew with another level.
        for seed in [7, 8, 0] {
            bench.draw(seed);
            if seed == 0 {
                encodings(
                    &mut client,
                    &[list, &[encoding::COMPRESSION_0 + 3]].concat(),
                );
            }
            client.request(seed == 7).expect("asked");
            decoder.update(&mut client);
            assert!(decoder.picture.pixels == bench.pixels(), "{list:?} {seed}");
        }
        assert_eq!(decoder.lossy, 0);
    }
}

#[test]
fn jpeg_is_for_pictures_only_and_near_to_what_is_shown() {
    let bench = Bench::new(320, 192);
    // A smooth picture in the middle, text around it.
    bench.screen.change(|canvas| {
        for y in 0..192u16 {
            let pixel = |x: u16| {
                if (64..256).contains(&x) && (64..128).contains(&y) {
                    u32::from(x) << 16 | u32::from(y + x / 4) << 8 | u32::from(x ^ y) & 0xf0
                } else if (x / 3 * y / 5).is_multiple_of(7) {
                    0x00ff_ffff
                } else {
                    0x0012_3456
                }
            };
            let row: Vec<u8> = (0..320).flat_map(|x| pixel(x).to_le_bytes()).collect();
            canvas.draw(Rect::new(0, y, 320, 1), |_| Some(row.as_slice()));
        }
    });
    let expected = bench.pixels();
    let mut worst = Vec::new();
    for quality in [2, 9] {
        let mut client = bench.client();
        let list = [
            encoding::TIGHT,
            encoding::LAST_RECT,
            encoding::QUALITY_0 + quality,
        ];
        encodings(&mut client, &list);
        client.request(false).expect("asked");
        let mut decoder = Decoder::new(client.size());
        decoder.update(&mut client);
        assert_eq!(decoder.lossy, 1, "one picture");
        let mut far = 0;
        for (at, (shown, is)) in decoder.picture.pixels.iter().zip(&expected).enumerate() {
            let (x, y) = (at / PIXEL_BYTES % 320, at / PIXEL_BYTES / 320);
            let difference = shown.abs_diff(*is);
            if (64..256).contains(&x) && (64..128).contains(&y) {
                far = far.max(difference);
            } else {
                assert_eq!(difference, 0, "text at {x}, {y}");
            }
        }
        worst.push(far);
    }
    assert!(worst[1] < 16 && worst[1] < worst[0], "{worst:?}");
}

#[test]
fn several_viewers_get_what_changes_each_at_its_own_pace() {
    let bench = Bench::new(320, 128);
    let mut viewers = [bench.client(), bench.client()];
    let mut pictures = [Vec::new(), Vec::new()];
    for (viewer, picture) in viewers.iter_mut().zip(&mut pictures) {
        viewer.request(true).expect("asked");
        viewer.read_raw(picture).expect("a frame");
    }
    for seed in 1..5 {
        bench.draw(seed);
        // One asks each time, the other only for the last.
        let from = usize::from(seed != 4);
        for (viewer, picture) in viewers.iter_mut().zip(&mut pictures).skip(from) {
            viewer.request(true).expect("asked");
            viewer.read_raw(picture).expect("what changed");
            assert!(*picture == bench.pixels(), "{seed}");
        }
    }
}

#[test]
fn a_wish_for_another_size_reaches_the_guest_and_the_new_size_the_viewer() {
    let bench = Bench::new(320, 128);
    let mut client = bench.client();
    encodings(&mut client, &[encoding::EXTENDED_DESKTOP_SIZE]);
    client.request(false).expect("asked");
    assert_eq!(client.read_update().expect("an update"), 1, "sizes alone");
    let layout = |client: &mut Client, expected: Rect| {
        let (rect, kind) = client.read_head().expect("a layout");
        assert_eq!((rect, kind), (expected, encoding::EXTENDED_DESKTOP_SIZE));
        let layout: [u8; 20] = client.read().expect("a layout");
        assert_eq!(layout[0], 1, "one screen");
    };
    layout(&mut client, Rect::new(0, 0, 320, 128));
    assert_eq!(client.read_update().expect("an update"), 2);
    for _ in 0..2 {
        let (rect, _) = client.read_head().expect("a rectangle");
        client
            .read_bytes(rect.pixels() * PIXEL_BYTES)
            .expect("pixels");
    }
    let mut wish = vec![251, 0, 2, 0, 1, 0, 1, 0];
    wish.extend([0; 16]);
    client.send(&wish).expect("sent");
    client.request(true).expect("asked");
    assert_eq!(client.read_update().expect("an update"), 1);
    layout(&mut client, Rect::new(1, 4, 320, 128));
    let asked = bench.screen.look().asked();
    assert_eq!(asked.to_string(), "512x256");

    client.request(true).expect("asked");
    bench.screen.change(|canvas| canvas.resize(asked));
    assert_eq!(client.read_update().expect("an update"), 1);
    layout(&mut client, Rect::new(0, 0, 512, 256));
}

#[test]
fn hands_reach_the_guest_and_let_go_when_the_viewer_does() {
    let bench = Bench::new(320, 128);
    let mut client = bench.client();
    client.send(&[4, 1, 0, 0, 0, 0, 0, b'a']).expect("a key");
    client.send(&[5, 1, 0, 0, 0, 0]).expect("a button");
    let wait = |sender: &crate::virtio::input::InputSender, kind, count: usize| {
        let end = Instant::now() + Duration::from_secs(20);
        let mut events = Vec::new();
        while events.len() < count {
            assert!(Instant::now() < end, "no event");
            events.extend(sender.take().into_iter().filter(|event| event.kind == kind));
            std::thread::yield_now();
        }
        let last = events.last().expect("an event");
        (last.code, last.value)
    };
    assert_eq!(wait(&bench.inputs.keyboard, EV_KEY, 1), (30, 1));
    assert_eq!(wait(&bench.inputs.tablet, EV_KEY, 1), (0x110, 1));
    drop(client);
    assert_eq!(wait(&bench.inputs.keyboard, EV_KEY, 1), (30, 0));
    assert_eq!(wait(&bench.inputs.tablet, EV_KEY, 1), (0x110, 0));
    assert!(
        bench
            .inputs
            .tablet
            .take()
            .iter()
            .all(|event| event.kind != EV_ABS)
    );
}

#[test]
fn viewers_that_talk_nonsense_or_are_too_many_are_hung_up_on_alone() {
    let bench = Bench::new(320, 128);
    let mut good = bench.client();
    let mut bad = bench.client();
    bad.send(&[77; 100]).expect("sent");
    assert!(bad.read::<1>().is_err(), "hung up on");
    let mut viewers: Vec<_> = Vec::new();
    let end = Instant::now() + Duration::from_secs(20);
    // The bad one's place is free again a moment after it is hung up on.
    while viewers.len() < VIEWERS_MAX - 1 {
        assert!(Instant::now() < end, "no place");
        viewers.extend(Client::connect(&bench.path));
    }
    assert!(Client::connect(&bench.path).is_err(), "too many");
    assert_eq!(good.picture().expect("a frame"), bench.pixels());
    viewers.pop();
    while Client::connect(&bench.path).is_err() {
        assert!(Instant::now() < end, "no place");
    }
}

#[test]
fn a_viewer_that_takes_nothing_holds_nobody_up() {
    let bench = Bench::new(1024, 1024);
    let mut slow = bench.client();
    let mut quick = bench.client();
    slow.request(false).expect("asked");
    for seed in 0..20 {
        bench.draw(seed);
        // More of the same wish is no more work.
        slow.request(false).expect("asked");
        assert!(quick.picture().expect("a frame") == bench.pixels());
    }
    let mut picture = Vec::new();
    slow.read_raw(&mut picture).expect("the first frame");
    slow.read_raw(&mut picture)
        .expect("one for all wishes since");
    assert!(picture == bench.pixels());
}
