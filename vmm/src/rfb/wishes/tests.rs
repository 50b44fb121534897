//! Which update is due when.

use super::*;
use crate::screen::PIXEL_BYTES;

const ALL: [i32; 7] = [
    encoding::ZRLE,
    encoding::RAW,
    encoding::CURSOR,
    encoding::DESKTOP_SIZE,
    encoding::EXTENDED_DESKTOP_SIZE,
    encoding::QEMU_KEYS,
    encoding::FENCE,
];

fn canvas() -> Canvas {
    Canvas::new(Size::new(128, 64).expect("a size"))
}

fn request(incremental: bool) -> Message {
    let rect = Rect::new(0, 0, 128, 64);
    Message::Request { incremental, rect }
}

fn dot(canvas: &mut Canvas, x: u16, value: u8) {
    let row = [value; PIXEL_BYTES];
    canvas.draw(Rect::new(x, 0, 1, 1), |_| Some(&row));
}

fn update(wishes: &mut Wishes, canvas: &Canvas) -> Option<Update> {
    match wishes.take(canvas)? {
        Work::Send { update, .. } => update,
        Work::End => None,
    }
}

fn hear(wishes: &mut Wishes, messages: impl IntoIterator<Item = Message>) {
    for message in messages {
        wishes.hear(message).expect("no flood");
    }
}

#[test]
fn updates_are_asked_for_and_tell_changes_once() {
    let mut canvas = canvas();
    let mut wishes = Wishes::new(&canvas);
    assert_eq!(wishes.take(&canvas), None, "not asked for");
    hear(&mut wishes, [request(false)]);
    let first = update(&mut wishes, &canvas).expect("all of it");
    assert_eq!(first.rects, [Rect::new(0, 0, 128, 64)]);
    assert!(!first.zrle && first.pseudo.is_empty());
    dot(&mut canvas, 0, 1);
    assert_eq!(wishes.take(&canvas), None, "not asked for");
    hear(&mut wishes, [request(true)]);
    let rects = update(&mut wishes, &canvas).expect("a dot").rects;
    assert_eq!(rects, [Rect::new(0, 0, 64, 64)]);
    hear(&mut wishes, [request(true)]);
    assert_eq!(wishes.take(&canvas), None, "nothing has changed");
    dot(&mut canvas, 70, 1);
    assert!(update(&mut wishes, &canvas).is_some(), "still wanted");
    hear(&mut wishes, [request(false)]);
    let rects = update(&mut wishes, &canvas).expect("all").rects;
    assert_eq!(rects, [Rect::new(0, 0, 128, 64)], "whether changed or not");
    wishes.go();
    assert_eq!(wishes.take(&canvas), Some(Work::End));
}

#[test]
fn what_a_viewer_understands_is_announced_once() {
    let canvas = canvas();
    let mut wishes = Wishes::new(&canvas);
    let continuous = [encoding::CONTINUOUS_UPDATES];
    let encodings = [ALL.as_slice(), &continuous].concat();
    hear(&mut wishes, [Message::Encodings(encodings.clone())]);
    let Some(Work::Send { owed, update: None }) = wishes.take(&canvas) else {
        panic!("announcements");
    };
    assert_eq!(owed, [248, 0, 0, 0, 0x80, 0, 0, 0, 0, 150]);
    hear(&mut wishes, [request(false)]);
    let first = update(&mut wishes, &canvas).expect("all");
    let size = canvas.size();
    let layout = Pseudo::Layout { size, answer: None };
    assert_eq!(first.pseudo, [Pseudo::Keys, layout.clone()]);
    assert!(first.zrle);
    hear(&mut wishes, [Message::Encodings(encodings), request(false)]);
    let second = update(&mut wishes, &canvas).expect("all");
    assert_eq!(second.pseudo, [layout], "with each whole update");
}

#[test]
fn a_new_size_comes_alone_and_the_pixels_after_it() {
    let mut canvas = canvas();
    let mut wishes = Wishes::new(&canvas);
    hear(
        &mut wishes,
        [Message::Encodings(ALL.to_vec()), request(false)],
    );
    wishes.take(&canvas);
    let size = Size::new(64, 128).expect("a size");
    canvas.resize(size);
    hear(&mut wishes, [request(true)]);
    wishes.answer_size(SizeAnswer::Forwarded);
    let told = update(&mut wishes, &canvas).expect("the size");
    assert_eq!(told.pseudo, [Pseudo::Layout { size, answer: None }]);
    assert!(told.rects.is_empty());
    assert_eq!(wishes.take(&canvas), None);
    let rect = size.rect();
    let incremental = true;
    hear(&mut wishes, [Message::Request { incremental, rect }]);
    let pixels = update(&mut wishes, &canvas).expect("all of it");
    let answer = Some(SizeAnswer::Forwarded);
    assert_eq!(pixels.pseudo, [Pseudo::Layout { size, answer }]);
    assert_eq!(pixels.rects.len(), 2);
}

#[test]
fn a_viewer_that_cannot_follow_sees_what_fits() {
    let mut canvas = canvas();
    let mut wishes = Wishes::new(&canvas);
    canvas.resize(Size::shown(200, 32).expect("a size"));
    hear(&mut wishes, [request(true)]);
    let update = update(&mut wishes, &canvas).expect("pixels");
    assert_eq!(update.rects, [Rect::new(0, 0, 128, 32)]);
    assert_eq!(wishes.size().width, 128);
}

#[test]
fn with_continuous_updates_one_is_on_its_way() {
    let mut canvas = canvas();
    let mut wishes = Wishes::new(&canvas);
    let on = Message::Continuous {
        on: true,
        rect: Rect::new(0, 0, 500, 500),
    };
    hear(&mut wishes, [Message::Encodings(vec![encoding::FENCE]), on]);
    let first = update(&mut wishes, &canvas).expect("all of it");
    assert_eq!(first.fence.len(), 9 + FENCE_PAYLOAD.len());
    for value in 1..9 {
        dot(&mut canvas, 0, value);
        assert_eq!(wishes.take(&canvas), None, "the first is on its way");
    }
    let answer = |payload: &[u8]| Message::Fence {
        flags: 0,
        payload: payload.to_vec(),
    };
    hear(&mut wishes, [answer(b"")]);
    assert_eq!(wishes.take(&canvas), None, "another fence's answer");
    hear(&mut wishes, [answer(FENCE_PAYLOAD)]);
    assert_eq!(update(&mut wishes, &canvas).expect("one").rects.len(), 1);
    dot(&mut canvas, 0, 99);
    hear(&mut wishes, [request(true)]);
    assert!(update(&mut wishes, &canvas).is_some(), "it asked");
    let off = Message::Continuous {
        on: false,
        rect: Rect::default(),
    };
    hear(&mut wishes, [off]);
    let owed = vec![to_client::END_OF_CONTINUOUS_UPDATES];
    let update = None;
    assert_eq!(wishes.take(&canvas), Some(Work::Send { owed, update }));
}

#[test]
fn fences_are_answered_and_floods_are_not() {
    let canvas = canvas();
    let mut wishes = Wishes::new(&canvas);
    let fence = || Message::Fence {
        flags: 0x8000_0007,
        payload: vec![9; 64],
    };
    hear(&mut wishes, [fence()]);
    let Some(Work::Send { owed, .. }) = wishes.take(&canvas) else {
        panic!("an answer");
    };
    assert_eq!(owed[..9], [248, 0, 0, 0, 0, 0, 0, 3, 64]);
    let heard = (0..1000).map(|_| wishes.hear(fence()));
    let heard: Result<Vec<()>, Flood> = heard.collect();
    assert_eq!(heard, Err(Flood));
}

#[test]
fn pointers_are_for_those_who_draw_them() {
    let mut canvas = canvas();
    let mut wishes = Wishes::new(&canvas);
    canvas.set_cursor(Cursor {
        width: 1,
        height: 1,
        pixels: vec![0; 4],
        ..Cursor::default()
    });
    hear(&mut wishes, [request(false)]);
    assert!(update(&mut wishes, &canvas).expect("all").pseudo.is_empty());
    hear(
        &mut wishes,
        [Message::Encodings(ALL.to_vec()), request(true)],
    );
    let pseudo = update(&mut wishes, &canvas).expect("a pointer").pseudo;
    assert!(pseudo.contains(&Pseudo::Cursor(Arc::clone(canvas.cursor()))));
}
