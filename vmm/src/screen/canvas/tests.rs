//! What views are told.

use proptest::prelude::*;

use super::*;

fn size(width: u32, height: u32) -> Size {
    Size::shown(width, height).expect("a size")
}

fn fill(canvas: &mut Canvas, rect: Rect, value: u8) {
    let row = vec![value; usize::from(rect.width) * PIXEL_BYTES];
    canvas.draw(rect, |_| Some(row.as_slice()));
}

#[test]
fn a_view_gets_each_change_once_and_two_views_do_not_share() {
    let mut canvas = Canvas::new(size(200, 130));
    let all = canvas.size().rect();
    let (mut a, mut b) = (View::default(), View::default());
    assert!(a.take_size(&canvas) && b.take_size(&canvas));
    assert_eq!(
        a.take_pixels(&canvas, all),
        [
            Rect::new(0, 0, 200, 64),
            Rect::new(0, 64, 200, 64),
            Rect::new(0, 128, 200, 2)
        ]
    );
    assert!(!a.has_pixels(&canvas, all));
    fill(&mut canvas, Rect::new(63, 10, 2, 1), 9);
    assert_eq!(a.take_pixels(&canvas, all), [Rect::new(0, 0, 128, 64)]);
    assert!(a.take_pixels(&canvas, all).is_empty());
    assert_eq!(b.take_pixels(&canvas, all).len(), 3);
    fill(&mut canvas, Rect::new(63, 10, 2, 1), 9);
    assert!(!a.has_pixels(&canvas, all), "the same again is no change");
}

#[test]
fn a_region_leaves_the_rest_to_be_told() {
    let mut canvas = Canvas::new(size(256, 64));
    let mut view = View::default();
    view.take_size(&canvas);
    let left = Rect::new(0, 0, 1, 1);
    assert_eq!(view.take_pixels(&canvas, left), [Rect::new(0, 0, 64, 64)]);
    assert!(!view.has_pixels(&canvas, left));
    let all = canvas.size().rect();
    assert_eq!(view.take_pixels(&canvas, all), [Rect::new(64, 0, 192, 64)]);
    view.forget(&canvas, Rect::new(70, 5, 1, 1));
    assert_eq!(view.take_pixels(&canvas, all), [Rect::new(64, 0, 64, 64)]);
    fill(&mut canvas, Rect::new(250, 60, 100, 100), 1);
    assert!(view.has_pixels(&canvas, all));
    assert!(
        !view.has_pixels(&canvas, Rect::new(300, 0, 9, 9)),
        "outside"
    );
}

#[test]
fn a_new_size_is_told_and_all_is_new_and_black() {
    let mut canvas = Canvas::new(size(100, 100));
    let mut view = View::default();
    view.take_size(&canvas);
    view.take_pixels(&canvas, canvas.size().rect());
    fill(&mut canvas, Rect::new(0, 0, 100, 100), 7);
    canvas.resize(size(64, 64));
    assert!(view.has_size(&canvas) && view.take_size(&canvas) && !view.take_size(&canvas));
    let mut pixels = Vec::new();
    canvas.copy(Rect::new(0, 0, 64, 64), &mut pixels);
    assert!(pixels.iter().all(|byte| *byte == 0));
    assert_eq!(view.take_pixels(&canvas, canvas.size().rect()).len(), 1);
}

#[test]
fn the_pointer_is_told_when_it_is_another_one() {
    let mut canvas = Canvas::new(size(64, 64));
    let mut view = View::default();
    assert_eq!(view.take_cursor(&canvas), None);
    let cursor = Cursor {
        width: 1,
        height: 1,
        pixels: vec![1, 2, 3, 255],
        ..Cursor::default()
    };
    canvas.set_cursor(cursor.clone());
    assert!(view.has_cursor(&canvas));
    assert_eq!(view.take_cursor(&canvas).as_deref(), Some(&cursor));
    canvas.set_cursor(cursor);
    assert_eq!(view.take_cursor(&canvas), None);
}

#[test]
fn rows_that_are_missing_or_short_are_left_alone() {
    let mut canvas = Canvas::new(size(4, 2));
    let short = [9u8; 7];
    canvas.draw(Rect::new(0, 0, 4, 2), |row| {
        (row == 1).then_some(&short[..])
    });
    let mut pixels = Vec::new();
    canvas.copy(Rect::new(0, 0, 4, 2), &mut pixels);
    assert!(pixels.iter().all(|byte| *byte == 0));
    canvas.copy(Rect::new(2, 1, 5, 3), &mut pixels);
    assert_eq!(pixels.len(), 5 * 3 * PIXEL_BYTES, "black beside the canvas");
}

/// Rows of text: each line of 16 rows is of its own, with blank rows between.
fn text_row(line: u32, row: u32) -> Vec<u8> {
    let mixed = |column: u32| (line * 256 + column).wrapping_mul(0x9e37_79b1) >> 16;
    let ink = |column: u32| mixed(column) >> (row % 8) & 1 == 1 && row < 12;
    let pixels = (0..300).map(|column| if ink(column / 2) { 0x00c0_c0c0u32 } else { 0 });
    pixels.flat_map(u32::to_le_bytes).collect()
}

/// Shows lines of text from `first` on in `rect`.
fn text(canvas: &mut Canvas, rect: Rect, first: u32) {
    let rows = 0..u32::from(rect.height);
    let rows = rows.map(|y| text_row(first + y / 16, y % 16));
    let rows: Vec<Vec<u8>> = rows.collect();
    canvas.draw(rect, |y| rows.get(usize::from(y)).map(Vec::as_slice));
}

#[test]
fn a_scroll_is_a_move_for_a_view_that_had_what_was_there() {
    let mut canvas = Canvas::new(size(256, 320));
    let all = canvas.size().rect();
    let (mut quick, mut slow) = (View::default(), View::default());
    quick.take_size(&canvas);
    slow.take_size(&canvas);
    text(&mut canvas, all, 0);
    quick.take_pixels(&canvas, all);
    text(&mut canvas, all, 1);
    let change = quick.take_move(&canvas, all).expect("a scroll by a line");
    let to = Rect::new(0, 0, 256, 304);
    assert_eq!(change, Move { to, x: 0, y: 16 });
    let rest = quick.take_pixels(&canvas, all);
    assert_eq!(rest, [Rect::new(0, 256, 256, 64)], "the last line's tiles");
    assert_eq!(quick.take_move(&canvas, all), None, "made once");
    assert_eq!(slow.take_move(&canvas, all), None, "it had another text");
    assert_eq!(slow.take_pixels(&canvas, all).len(), 5);
    text(&mut canvas, all, 2);
    let part = Rect::new(0, 0, 256, 200);
    assert_eq!(quick.take_move(&canvas, part), None, "beyond the region");
    fill(&mut canvas, Rect::new(5, 5, 9, 9), 3);
    assert!(
        quick.take_move(&canvas, all).is_some(),
        "what follows is given"
    );
    let first = Rect::new(0, 0, 64, 64);
    assert_eq!(quick.take_pixels(&canvas, first), [first]);
}

proptest! {
    /// The same with moves, pixels that are copied late, and viewers that look at parts only.
    #[test]
    fn a_view_that_moves_has_the_canvas(
        steps in prop::collection::vec((0u8..6, 0u16..100, 0u16..120, any::<u8>(), any::<bool>(), any::<bool>()), 1..40),
    ) {
        let window = Rect::new(10, 20, 180, 240);
        let mut canvas = Canvas::new(size(210, 270));
        let mut copy = Canvas::new(size(210, 270));
        let mut view = View::default();
        view.take_size(&canvas);
        let mut line = 0;
        let whole = canvas.size().rect();
        for (what, x, y, value, looks, is_late) in steps {
            let mut step = |canvas: &mut Canvas| match what {
                0 => fill(canvas, Rect::new(x, y, 40, 30), value),
                1 => { line += u32::from(value % 4); text(canvas, whole, line) }
                2 => { line = line.saturating_sub(2); text(canvas, window, line) }
                _ => { line += 1; text(canvas, window, line) }
            };
            step(&mut canvas);
            if !looks {
                continue;
            }
            let region = if value % 5 == 0 { Rect::new(0, 0, 100, 100) } else { whole };
            let change = view.take_move(&canvas, region);
            let rects = view.take_pixels(&canvas, region);
            let mut pixels = Vec::new();
            if let Some(Move { to, x, y }) = change {
                copy.copy(Rect::new(x, y, to.width, to.height), &mut pixels);
                let row = usize::from(to.width) * PIXEL_BYTES;
                copy.draw(to, |y| pixels.get(usize::from(y) * row..));
            }
            for (index, rect) in rects.iter().enumerate() {
                if is_late && index == rects.len() / 2 {
                    step(&mut canvas);
                }
                canvas.copy(*rect, &mut pixels);
                view.gave(&canvas, *rect);
                let row = usize::from(rect.width) * PIXEL_BYTES;
                copy.draw(*rect, |y| pixels.get(usize::from(y) * row..));
            }
            if !is_late && region == whole {
                prop_assert!(canvas.pixels == copy.pixels);
            }
        }
        let change = view.take_move(&canvas, whole);
        let mut pixels = Vec::new();
        if let Some(Move { to, x, y }) = change {
            copy.copy(Rect::new(x, y, to.width, to.height), &mut pixels);
            let row = usize::from(to.width) * PIXEL_BYTES;
            copy.draw(to, |y| pixels.get(usize::from(y) * row..));
        }
        for rect in view.take_pixels(&canvas, whole) {
            canvas.copy(rect, &mut pixels);
            let row = usize::from(rect.width) * PIXEL_BYTES;
            copy.draw(rect, |y| pixels.get(usize::from(y) * row..));
        }
        prop_assert!(canvas.pixels == copy.pixels);
    }
}

proptest! {
    /// A viewer that copies what it is told has what the canvas has, whatever is drawn in between.
    #[test]
    fn a_view_that_copies_has_the_canvas(
        steps in prop::collection::vec((0u16..300, 0u16..200, 0u16..90, 0u16..90, any::<u8>(), any::<bool>()), 1..40),
    ) {
        let mut canvas = Canvas::new(size(210, 150));
        let mut copy = Canvas::new(size(210, 150));
        let mut view = View::default();
        view.take_size(&canvas);
        for (x, y, width, height, value, looks) in steps {
            fill(&mut canvas, Rect::new(x, y, width, height), value);
            if !looks {
                continue;
            }
            let mut pixels = Vec::new();
            for rect in view.take_pixels(&canvas, Rect::new(0, 0, 1000, 1000)) {
                canvas.copy(rect, &mut pixels);
                let row = usize::from(rect.width) * PIXEL_BYTES;
                copy.draw(rect, |y| pixels.get(usize::from(y) * row..));
            }
            prop_assert!(canvas.pixels == copy.pixels);
        }
    }
}
