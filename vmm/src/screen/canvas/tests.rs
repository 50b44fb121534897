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
