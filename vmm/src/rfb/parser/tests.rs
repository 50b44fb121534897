//! Scripts of bytes, whole and in pieces.

use proptest::prelude::*;

use super::super::pixel::FormatError;
use super::*;

const HELLO: &[u8] = b"RFB 003.008\n\x01\x01";

/// All that is said in these bytes, fed in pieces of `step`.
fn said(bytes: &[u8], step: usize) -> Result<Vec<Said>, ParseError> {
    let mut parser = Parser::default();
    let mut all = Vec::new();
    for piece in bytes.chunks(step) {
        parser.feed(piece);
        while let Some(said) = parser.next()? {
            all.push(said);
        }
    }
    Ok(all)
}

fn messages(bytes: &[u8]) -> Result<Vec<Message>, ParseError> {
    let all = said(&[HELLO, bytes].concat(), 4096)?;
    let messages = all.into_iter().filter_map(|said| match said {
        Said::Message(message) => Some(message),
        _ => None,
    });
    Ok(messages.collect())
}

/// A script with every message.
fn script() -> (Vec<u8>, Vec<Message>) {
    let mut bytes = vec![0, 9, 9, 9];
    bytes.extend(PixelFormat::NATIVE.to_wire());
    bytes.extend([2, 0, 0, 2, 0, 0, 0, 16, 0xff, 0xff, 0xfe, 0xcc]);
    bytes.extend([3, 1, 0, 1, 0, 2, 0, 3, 1, 4]);
    bytes.extend([4, 1, 0, 0, 0, 0, 0xff, 0x0d]);
    bytes.extend([5, 3, 1, 0, 0, 7]);
    bytes.extend([6, 0, 0, 0, 0, 0, 0, 5]);
    bytes.extend(b"hello");
    bytes.extend([6, 0, 0, 0, 0xff, 0xff, 0xff, 0xfc, 8, 0, 0, 1]);
    bytes.extend([150, 1, 0, 0, 0, 0, 2, 0, 1, 0]);
    bytes.extend([248, 0, 0, 0, 0x80, 0, 0, 1, 2, 7, 8]);
    bytes.extend([251, 0, 4, 0, 3, 0, 1, 0]);
    bytes.extend([0; 16]);
    bytes.extend([255, 0, 0, 1, 0, 0, 0, 0x61, 0, 0, 0, 0x1e]);
    let messages = vec![
        Message::Format(PixelFormat::NATIVE),
        Message::Encodings(vec![16, -308]),
        Message::Request {
            incremental: true,
            rect: Rect::new(1, 2, 3, 260),
        },
        Message::Key {
            down: true,
            symbol: 0xff0d,
        },
        Message::Pointer {
            buttons: 3,
            x: 256,
            y: 7,
        },
        Message::CutText(b"hello".to_vec()),
        Message::Clipboard(vec![8, 0, 0, 1]),
        Message::Continuous {
            on: true,
            rect: Rect::new(0, 0, 512, 256),
        },
        Message::Fence {
            flags: 0x8000_0001,
            payload: vec![7, 8],
        },
        Message::Size {
            width: 1024,
            height: 768,
        },
        Message::Scancode {
            down: true,
            symbol: 0x61,
            code: 0x1e,
        },
    ];
    (bytes, messages)
}

#[test]
fn a_script_says_the_same_in_any_pieces() {
    let (bytes, expected) = script();
    assert_eq!(messages(&bytes), Ok(expected));
    let bytes = [HELLO, &bytes].concat();
    let whole = said(&bytes, bytes.len()).expect("a script");
    assert_eq!(
        whole[..3],
        [
            Said::Version { confirms: true },
            Said::Security(1),
            Said::Init
        ]
    );
    for step in 1..40 {
        assert_eq!(said(&bytes, step).as_ref(), Ok(&whole), "{step}");
    }
}

#[test]
fn versions_before_three_seven_and_other_protocols_are_refused() {
    let with = |text: &str| said(text.as_bytes(), 12).map(|mut said| said.remove(0));
    let confirms = |confirms| Ok(Said::Version { confirms });
    assert_eq!(with("RFB 003.007\n"), confirms(false));
    assert_eq!(with("RFB 003.889\n"), confirms(true));
    assert_eq!(with("RFB 004.001\n"), confirms(true));
    for text in [
        "RFB 003.003\n",
        "RFB 003.00 \n",
        "RFB 003 008\n",
        "GET / HTTP/1",
    ] {
        assert_eq!(with(text), Err(ParseError::Version), "{text}");
    }
}

#[test]
fn lengths_without_sense_are_refused_and_take_no_room() {
    let too_long = |bytes: &[u8]| {
        let error = messages(bytes).expect_err("refused");
        assert!(matches!(error, ParseError::TooLong { .. }), "{error}");
    };
    too_long(&[2, 0, 0xff, 0xff]);
    too_long(&[248, 0, 0, 0, 0, 0, 0, 0, 65]);
    too_long(&[251, 0, 4, 0, 3, 0, 200, 0]);
    assert_eq!(messages(&[99]), Err(ParseError::Unknown(99)));
    assert_eq!(messages(&[255, 1]), Err(ParseError::Unknown(255)));
    let mut wire = PixelFormat::NATIVE.to_wire();
    wire[3] = 0;
    let palette = messages(&[&[0, 0, 0, 0], wire.as_slice()].concat());
    assert_eq!(palette, Err(ParseError::Format(FormatError::ColourMap)));
}

#[test]
fn four_gigabytes_of_text_are_not_kept() {
    let mut parser = Parser::default();
    parser.feed(HELLO);
    parser.feed(&[]);
    while parser.next().expect("a hello").is_some() {}
    parser.feed(&[6, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
    for _ in 0..1000 {
        assert_eq!(parser.next(), Ok(None));
        parser.feed(&[4; 5000]);
        assert_eq!(parser.waiting(), 0);
    }
}

#[test]
fn more_buttons_come_when_they_were_announced() {
    let pointer = |parser: &mut Parser, bytes: &[u8]| {
        parser.feed(bytes);
        match parser.next().expect("a pointer") {
            Some(Said::Message(Message::Pointer { buttons, x, y })) => (buttons, x, y),
            other => panic!("{other:?} is no pointer"),
        }
    };
    let mut parser = Parser::default();
    parser.feed(HELLO);
    while parser.next().expect("a hello").is_some() {}
    assert_eq!(pointer(&mut parser, &[5, 0x81, 0, 1, 0, 2]), (0x81, 1, 2));
    parser.expect_more_buttons();
    assert_eq!(pointer(&mut parser, &[5, 0x01, 0, 1, 0, 2]), (0x01, 1, 2));
    let more = pointer(&mut parser, &[5, 0x81, 0, 1, 0, 2, 0x02]);
    assert_eq!(more, (0x101, 1, 2));
}

proptest! {
    #[test]
    fn garbage_is_an_error_or_waits_within_its_bound(
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
        step in 1usize..500,
    ) {
        let mut parser = Parser::default();
        parser.feed(HELLO);
        while parser.next().expect("a hello").is_some() {}
        for piece in bytes.chunks(step) {
            parser.feed(piece);
            loop {
                match parser.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                }
            }
            prop_assert!(parser.waiting() <= MESSAGE_BYTES_MAX);
        }
    }
}
