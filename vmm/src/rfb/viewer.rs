//! One viewer: a thread that hears it, and one that sends it what it wants.
//!
//! The sending thread may wait for its viewer as long as [`PATIENCE`]; the hearing one never waits for it, so that a viewer which types
//! while it takes nothing is still heard, and one that says more than it takes answers for is hung up on.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::hands::{Hands, Inputs};
use super::parser::{Message, ParseError, Parser, Said};
use super::pixel::PixelFormat;
use super::update::Encoder;
use super::wire::{SECURITY_NONE, VERSION, encoding};
use super::wishes::{Flood, SizeAnswer, Wishes, Work};
use crate::clipboard::Clipboard;
use crate::machine::bus::lock;
use crate::screen::{Screen, Size};
use crate::threads::{self, Role};

/// How long a viewer may take nothing of what is sent to it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to introduce itself.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// How often the sending thread looks whether its viewer is there although nothing happens.
const IDLE: Duration = Duration::from_secs(60);
/// Bytes read at a time.
const READ_BYTES: usize = 16 << 10;
/// Bytes that are encoded before they are sent. A rectangle more, 1 MiB of pixels, comes on top.
const SEND_BYTES: usize = 256 << 10;

/// Why a viewer is gone.
#[derive(Debug, thiserror::Error)]
pub(super) enum Gone {
    /// It said something that is not the protocol.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// It wants too much.
    #[error(transparent)]
    Flood(#[from] Flood),
    /// It did not take the one kind of security there is.
    #[error("security type {0} was not offered")]
    Security(u8),
    /// It hung up, or takes nothing.
    #[error("connection")]
    Io(#[from] io::Error),
}

/// Serves a viewer until it is gone.
pub(super) fn serve(
    mut stream: UnixStream,
    screen: &Screen,
    inputs: Inputs,
    name: &str,
) -> Result<(), Gone> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(HELLO_PATIENCE))?;
    let mut parser = Parser::default();
    let clipboard = inputs.clipboard.clone();
    let wishes = greet(&mut stream, &mut parser, screen, clipboard, name)?;
    stream.set_read_timeout(None)?;
    let (wishes, sending) = (Arc::new(Mutex::new(wishes)), stream.try_clone()?);
    let (wanted, shown) = (Arc::clone(&wishes), screen.clone());
    let sender = threads::spawn(Role::Screen, "rfb-send", move || {
        let sent = send(&sending, &shown, &wanted);
        // The hearing thread ends with it.
        let _ = sending.shutdown(Shutdown::Both);
        sent
    })?;
    let heard = hear(&mut stream, &mut parser, screen, &wishes, inputs);
    lock(&wishes).go();
    screen.wake();
    let _ = stream.shutdown(Shutdown::Both);
    // A panic of the sending thread has told where it was; the viewer is gone either way.
    let sent = sender.join().unwrap_or(Ok(()));
    heard.and(sent.map_err(Gone::Io))
}

/// Waits for the next thing said.
fn listen(stream: &mut UnixStream, parser: &mut Parser) -> Result<Said, Gone> {
    let mut bytes = [0; READ_BYTES];
    loop {
        if let Some(said) = parser.next()? {
            return Ok(said);
        }
        match stream.read(&mut bytes) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(len) => parser.feed(&bytes[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The beginning: version, security, and what the screen is.
fn greet(
    stream: &mut UnixStream,
    parser: &mut Parser,
    screen: &Screen,
    clipboard: Clipboard,
    name: &str,
) -> Result<Wishes, Gone> {
    stream.write_all(&VERSION)?;
    let mut confirms = false;
    loop {
        match listen(stream, parser)? {
            Said::Version { confirms: does } => {
                confirms = does;
                // One type is offered.
                stream.write_all(&[1, SECURITY_NONE])?;
            }
            Said::Security(SECURITY_NONE) => {
                if confirms {
                    stream.write_all(&0u32.to_be_bytes())?;
                }
            }
            Said::Security(other) => {
                let reason = b"only the type None is served";
                let mut refusal = 1u32.to_be_bytes().to_vec();
                refusal.extend((reason.len() as u32).to_be_bytes());
                refusal.extend(reason);
                stream.write_all(&refusal)?;
                return Err(Gone::Security(other));
            }
            // Messages come only after it.
            Said::Init | Said::Message(_) => break,
        }
    }
    let wishes = Wishes::new(&screen.look(), clipboard);
    let size = wishes.size();
    let mut init = size.width.to_be_bytes().to_vec();
    init.extend(size.height.to_be_bytes());
    init.extend(PixelFormat::NATIVE.to_wire());
    init.extend((name.len() as u32).to_be_bytes());
    init.extend(name.as_bytes());
    stream.write_all(&init)?;
    Ok(wishes)
}

/// Hears the viewer until it hangs up.
fn hear(
    stream: &mut UnixStream,
    parser: &mut Parser,
    screen: &Screen,
    wishes: &Mutex<Wishes>,
    inputs: Inputs,
) -> Result<(), Gone> {
    let mut hands = Hands::new(inputs);
    loop {
        let message = match listen(stream, parser) {
            Ok(Said::Message(message)) => message,
            Ok(_) => continue,
            Err(Gone::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(gone) => return Err(gone),
        };
        match message {
            Message::Key { down, symbol } => hands.symbol(down, symbol),
            Message::Scancode { down, symbol, code } => hands.scancode(down, symbol, code),
            Message::Pointer { buttons, x, y } => {
                let size = lock(wishes).size();
                hands.point(buttons, x, y, size);
            }
            Message::Size { width, height } => {
                let answer = match Size::new(width.into(), height.into()) {
                    Ok(size) => {
                        screen.ask(size);
                        SizeAnswer::Forwarded
                    }
                    Err(_) => SizeAnswer::Invalid,
                };
                lock(wishes).answer_size(answer);
                screen.wake();
            }
            message => {
                if let Message::Encodings(encodings) = &message
                    && encodings.contains(&encoding::MORE_BUTTONS)
                {
                    // It sends none before it is told that it may.
                    parser.expect_more_buttons();
                }
                lock(wishes).hear(message)?;
                screen.wake();
            }
        }
    }
}

/// Sends what is wanted until the viewer is gone.
fn send(mut stream: &UnixStream, screen: &Screen, wishes: &Mutex<Wishes>) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let (mut pixels, mut out) = (Vec::new(), Vec::new());
    loop {
        let work = screen.wait(IDLE, |canvas| lock(wishes).take(canvas));
        let (owed, update) = match work {
            None => continue,
            Some(Work::End) => return Ok(()),
            Some(Work::Send { owed, update }) => (owed, update),
        };
        out.clear();
        out.extend(owed);
        if let Some(update) = update {
            encoder.begin(&update, &mut out);
            for rect in &update.rects {
                {
                    // Others draw while this is encoded and sent.
                    let canvas = screen.look();
                    canvas.copy(*rect, &mut pixels);
                    lock(wishes).gave(&canvas, *rect);
                }
                encoder.rect(&update, *rect, &pixels, &mut out);
                if out.len() >= SEND_BYTES {
                    stream.write_all(&out)?;
                    out.clear();
                }
            }
            encoder.end(&update, &mut out);
        }
        stream.write_all(&out)?;
    }
}
