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
    let mut wishes = Wishes::new(&canvas, Clipboard::default());
    assert_eq!(wishes.take(&canvas), None, "not asked for");
    hear(&mut wishes, [request(false)]);
    let first = update(&mut wishes, &canvas).expect("all of it");
    assert_eq!(first.rects, [Rect::new(0, 0, 128, 64)]);
    assert_eq!(first.form, Form::Raw);
    assert!(first.sizes.is_empty() && first.pseudo.is_empty());
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
    let mut wishes = Wishes::new(&canvas, Clipboard::default());
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
    assert_eq!(first.sizes, std::slice::from_ref(&layout));
    assert_eq!(first.pseudo, [Pseudo::Keys]);
    assert_eq!(first.form, Form::Zrle);
    hear(&mut wishes, [Message::Encodings(encodings), request(false)]);
    let second = update(&mut wishes, &canvas).expect("all");
    assert_eq!(second.sizes, [layout], "with each whole update");
}

#[test]
fn a_new_size_comes_alone_and_the_pixels_after_it() {
    let mut canvas = canvas();
    let mut wishes = Wishes::new(&canvas, Clipboard::default());
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
    assert_eq!(told.sizes, [Pseudo::Layout { size, answer: None }]);
    assert!(told.rects.is_empty());
    assert_eq!(wishes.take(&canvas), None);
    let rect = size.rect();
    let incremental = true;
    hear(&mut wishes, [Message::Request { incremental, rect }]);
    let pixels = update(&mut wishes, &canvas).expect("all of it");
    let answer = Some(SizeAnswer::Forwarded);
    assert_eq!(pixels.sizes, [Pseudo::Layout { size, answer }]);
    assert_eq!(pixels.rects.len(), 2);
}

#[test]
fn a_viewer_that_cannot_follow_sees_what_fits() {
    let mut canvas = canvas();
    let mut wishes = Wishes::new(&canvas, Clipboard::default());
    canvas.resize(Size::shown(200, 32).expect("a size"));
    hear(&mut wishes, [request(true)]);
    let update = update(&mut wishes, &canvas).expect("pixels");
    assert_eq!(update.rects, [Rect::new(0, 0, 128, 32)]);
    assert_eq!(wishes.size().width, 128);
}

#[test]
fn with_continuous_updates_one_is_on_its_way() {
    let mut canvas = canvas();
    let mut wishes = Wishes::new(&canvas, Clipboard::default());
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
    let mut wishes = Wishes::new(&canvas, Clipboard::default());
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
    let mut wishes = Wishes::new(&canvas, Clipboard::default());
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
    let cursor = || Arc::clone(canvas.cursor());
    assert!(pseudo.contains(&Pseudo::Cursor(cursor(), CursorForm::Mask)));
    let both = Known::of(&[encoding::CURSOR, encoding::ALPHA_CURSOR]);
    assert_eq!(both.cursor, Some(CursorForm::Alpha));
}

#[test]
fn the_first_encoding_is_taken_and_levels_are_heard() {
    let of = |encodings: &[i32]| {
        let known = Known::of(encodings);
        (known.form, known.level)
    };
    assert_eq!(of(&[]), (Form::Raw, None));
    assert_eq!(of(&[1, 21, 5, 0, 16]), (Form::Raw, None));
    let tight = |quality| Form::Tight { quality };
    assert_eq!(of(&[1, 7, 16, 0]), (tight(None), None));
    assert_eq!(of(&[16, 7, -26, -254]), (Form::Zrle, Some(2)));
    assert_eq!(of(&[7, -26, -23, -256]), (tight(Some(9)), Some(0)));
    assert_eq!(
        of(&[7, -22, -33, -246, -257, i32::MIN]),
        (tight(None), None)
    );
}

#[test]
fn a_scroll_is_moved_by_those_who_can() {
    let mut canvas = Canvas::new(Size::new(128, 192).expect("a size"));
    let rect = canvas.size().rect();
    let show = |canvas: &mut Canvas, first: u32| {
        let row = |y: u32| vec![(first + y).wrapping_mul(0x9e37_79b1); 128];
        let rows = (0..192).map(|y| row(y).into_iter().flat_map(u32::to_le_bytes).collect());
        let rows: Vec<Vec<u8>> = rows.collect();
        canvas.draw(rect, |y| rows.get(usize::from(y)).map(Vec::as_slice));
    };
    show(&mut canvas, 0);
    let viewer = |encodings: &[i32]| {
        let mut wishes = Wishes::new(&canvas, Clipboard::default());
        let incremental = true;
        let wish = Message::Request { incremental, rect };
        hear(&mut wishes, [Message::Encodings(encodings.to_vec()), wish]);
        assert_eq!(update(&mut wishes, &canvas).expect("all").rects.len(), 3);
        let wish = Message::Request { incremental, rect };
        hear(&mut wishes, [wish]);
        wishes
    };
    let mut moves = viewer(&[encoding::COPY_RECT, encoding::RAW]);
    let mut plain = viewer(&[encoding::RAW]);
    show(&mut canvas, 10);
    let moved = update(&mut moves, &canvas).expect("a move");
    let to = Rect::new(0, 0, 128, 182);
    assert_eq!(moved.change, Some(Move { to, x: 0, y: 10 }));
    assert_eq!(moved.rects, [Rect::new(0, 128, 128, 64)]);
    let all = update(&mut plain, &canvas).expect("all");
    assert_eq!((all.change, all.rects.len()), (None, 3));
}

#[test]
fn clipboards_are_told_of_when_an_agent_is_there() {
    let canvas = canvas();
    let clipboard = Clipboard::default();
    let mut wishes = Wishes::new(&canvas, clipboard.clone());
    let mut plain = Wishes::new(&canvas, clipboard.clone());
    let owed = |wishes: &mut Wishes| match wishes.take(&canvas) {
        Some(Work::Send { owed, .. }) => owed,
        _ => Vec::new(),
    };
    hear(&mut wishes, [Message::Encodings(vec![encoding::CLIPBOARD])]);
    assert!(owed(&mut wishes).is_empty());
    clipboard.set_open(true);
    // What the guest's agent says: what it can do, that it has a text, and the text.
    let say = |kind: u8, body: &[u8]| {
        let mut bytes = vec![1, 0, 0, 0, 20 + body.len() as u8, 0, 0, 0];
        bytes.extend([1, 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([body.len() as u8, 0, 0, 0]);
        bytes.extend(body);
        clipboard.hear(&bytes);
    };
    say(6, &[0, 0, 0, 0, 0x60, 0, 0, 0]);
    let capabilities = [
        3, 0, 0, 0, 0xff, 0xff, 0xff, 0xf8, 0x1f, 0, 0, 1, 0, 0, 0, 0,
    ];
    assert_eq!(owed(&mut wishes), capabilities);
    assert!(owed(&mut wishes).is_empty(), "once");
    say(7, &[0, 0, 0, 0, 1, 0, 0, 0]);
    say(4, b"\0\0\0\0\x01\0\0\0text");
    assert_eq!(owed(&mut plain), b"\x03\0\0\0\0\0\0\x04text");
    let notice = [3, 0, 0, 0, 0xff, 0xff, 0xff, 0xfc, 8, 0, 0, 1];
    assert_eq!(owed(&mut wishes), notice);
    let late = Wishes::new(&canvas, clipboard.clone());
    assert!(
        owed(&mut { late }).is_empty(),
        "only what is copied while it looks"
    );
    let request = || Message::Clipboard(vec![2, 0, 0, 1]);
    hear(&mut wishes, [request(), request()]);
    let provided = owed(&mut wishes);
    assert_eq!(provided[8..12], [0x10, 0, 0, 1]);
    let len = i32::from_be_bytes([provided[4], provided[5], provided[6], provided[7]]);
    assert_eq!(provided.len() as i32, 8 - len, "one answer");
    hear(&mut wishes, [Message::Clipboard(provided[8..].to_vec())]);
    let mut room = [0; 200];
    clipboard.give(&mut room);
    assert_eq!(clipboard.give(&mut room), 0, "the guest has that already");
    hear(&mut plain, [Message::CutText(b"other".to_vec())]);
    assert!(clipboard.give(&mut room) > 0);
}
