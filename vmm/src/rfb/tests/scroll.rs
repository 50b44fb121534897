//! A text console that scrolls: viewers that can move what they have show the same as others, for less.

use super::super::encoding;
use super::super::parser::Message;
use super::super::update::Encoder;
use super::super::wishes::{Wishes, Work};
use super::decode::Decoder;
use super::{Bench, encodings};
use crate::clipboard::Clipboard;
use crate::screen::{Canvas, Rect, Size};

/// Some text with lines of many lengths.
const TEXT: &str = include_str!("decode.rs");

/// Rows of a console of `width` pixels that shows the text from line `first` on, in letters of 8 by 16 pixels of their own shape each.
fn rows(width: u16, height: u16, first: usize) -> Vec<Vec<u8>> {
    let lines: Vec<&[u8]> = TEXT.lines().map(str::as_bytes).collect();
    let ink = |line: &[u8], row: usize, x: usize| match line.get(x / 8) {
        None | Some(b' ') => false,
        Some(letter) => {
            let shape = (u32::from(*letter) * 16 + row as u32).wrapping_mul(0x9e37_79b1) >> 20;
            (2..14).contains(&row) && x % 8 < 7 && shape >> (x % 8) & 1 == 1
        }
    };
    let row = |y: usize| -> Vec<u8> {
        let line = lines[(first + y / 16) % lines.len()];
        let pixels = (0..usize::from(width)).map(|x| {
            if ink(line, y % 16, x) {
                0x00aa_aaaa
            } else {
                0u32
            }
        });
        pixels.flat_map(u32::to_le_bytes).collect()
    };
    (0..height.into()).map(row).collect()
}

fn show(canvas: &mut Canvas, first: usize) {
    let Size { width, height } = canvas.size();
    let rows = rows(width, height, first);
    canvas.draw(Rect::new(0, 0, width, height), |y| {
        rows.get(usize::from(y)).map(Vec::as_slice)
    });
}

#[test]
fn a_console_that_scrolls_is_moved_and_is_the_same() {
    let bench = Bench::new(320, 400);
    let look = |list: &[i32]| {
        let mut client = bench.client();
        encodings(&mut client, list);
        let mut decoder = Decoder::new(client.size());
        for first in 0..10 {
            bench.screen.change(|canvas| show(canvas, first));
            client.request(true).expect("asked");
            decoder.update(&mut client);
            assert!(decoder.picture.pixels == bench.pixels(), "{list:?} {first}");
        }
        (decoder.moves, decoder.rects)
    };
    for form in [encoding::RAW, encoding::ZRLE, encoding::TIGHT] {
        let (moves, plain) = look(&[form]);
        assert_eq!(moves, 0);
        let (moves, rects) = look(&[encoding::COPY_RECT, form]);
        assert_eq!(moves, 9);
        assert!(rects * 2 < plain, "{rects} rectangles instead of {plain}");
    }
}

/// Bytes of updates while a console of 1280 by 800 scrolls by forty lines, one at a time.
fn bytes(list: &[i32]) -> usize {
    let mut canvas = Canvas::new(Size::default());
    let mut wishes = Wishes::new(&canvas, Clipboard::default());
    let (mut encoder, mut pixels) = (Encoder::default(), Vec::new());
    let heard = wishes.hear(Message::Encodings(list.to_vec()));
    heard.expect("no flood");
    let mut bytes = 0;
    for first in 0..41 {
        show(&mut canvas, first);
        let rect = canvas.size().rect();
        let incremental = true;
        let heard = wishes.hear(Message::Request { incremental, rect });
        heard.expect("no flood");
        let Some(Work::Send {
            update: Some(update),
            ..
        }) = wishes.take(&canvas)
        else {
            panic!("an update is due");
        };
        let mut out = Vec::new();
        encoder.begin(&update, &mut out);
        for rect in &update.rects {
            canvas.copy(*rect, &mut pixels);
            wishes.gave(&canvas, *rect);
            encoder.rect(&update, *rect, &pixels, &mut out);
        }
        encoder.end(&update, &mut out);
        // The first picture is the same for all.
        bytes += if first == 0 { 0 } else { out.len() };
    }
    bytes
}

/// The figures are those of docs/display.md.
#[test]
fn moving_a_scroll_pays() {
    for form in [encoding::ZRLE, encoding::TIGHT] {
        let list = [form, encoding::LAST_RECT];
        let plain = bytes(&list);
        let moved = bytes(&[list.as_slice(), &[encoding::COPY_RECT]].concat());
        println!(
            "encoding {form}: {} bytes a line, {} moved",
            plain / 40,
            moved / 40
        );
        assert!(moved * 4 < plain, "{moved} bytes instead of {plain}");
    }
}
