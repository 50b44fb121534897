//! What a client says, from bytes as they come. No socket and no clock.
//!
//! ```text
//! Version -> Security -> Init -> Messages (for ever)
//! ```
//!
//! Invariant: a message is told when all of its bytes are there, and never more than [`MESSAGE_BYTES_MAX`] bytes wait for the rest of
//! one. Text of clipboards that is longer than [`CUT_BYTES_MAX`] is passed over without being kept. After an error nothing more is told.

mod said;
#[cfg(test)]
mod tests;

use super::pixel::{FORMAT_BYTES, PixelFormat};
use super::wire::{fence, from_client};
use crate::clipboard::TEXT_BYTES_MAX;
use crate::screen::Rect;
pub use said::{Message, ParseError, Said};

/// Encodings that a client may name: known ones have about thirty.
const ENCODINGS_MAX: usize = 1024;
/// Screens that a layout may have. Ours is of one; a client that would like more gets one.
const LAYOUT_SCREENS_MAX: usize = 16;
const LAYOUT_SCREEN_BYTES: usize = 16;
/// Bytes of a clipboard's text that are taken, also when it is packed: what zlib adds to what cannot be compressed is less than 4 KiB.
const CUT_BYTES_MAX: usize = TEXT_BYTES_MAX + (4 << 10);
const CUT_HEAD_BYTES: usize = 8;
/// Bytes of the longest message.
pub const MESSAGE_BYTES_MAX: usize = CUT_HEAD_BYTES + CUT_BYTES_MAX;
const VERSION_BYTES: usize = 12;
/// In a pointer's buttons: there is a byte with more of them (ExtendedMouseButtons).
const MORE_BUTTONS: u16 = 1 << 7;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Version,
    Security,
    Init,
    Messages,
}

/// See the module.
pub struct Parser {
    phase: Phase,
    bytes: Vec<u8>,
    /// Bytes of what is told already.
    taken: usize,
    /// Bytes to be passed over.
    skip: u64,
    /// Pointers may come with a byte more.
    more_buttons: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            phase: Phase::Version,
            bytes: Vec::new(),
            taken: 0,
            skip: 0,
            more_buttons: false,
        }
    }
}

/// Big-endian fields of a message whose length is known.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        *field
    }

    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn rect(&mut self) -> Rect {
        Rect::new(self.u16(), self.u16(), self.u16(), self.u16())
    }
}

impl Parser {
    /// Takes bytes. All that can be told must be taken ([`Parser::next`]) before more are fed.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        let passed = self.skip.min(bytes.len() as u64);
        self.skip -= passed;
        bytes = &bytes[passed as usize..];
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next thing said, or none until more bytes have come.
    ///
    /// # Errors
    /// The client is to be hung up on.
    #[expect(clippy::should_implement_trait, reason = "it ends and goes on")]
    pub fn next(&mut self) -> Result<Option<Said>, ParseError> {
        loop {
            let bytes = &self.bytes[self.taken..];
            let needed = needed(self.phase, self.more_buttons, bytes)?;
            let Some(len) = needed.filter(|len| *len <= bytes.len()) else {
                return Ok(None);
            };
            let message = &bytes[..len];
            self.taken += len;
            let said = match self.phase {
                Phase::Version => {
                    self.phase = Phase::Security;
                    version(message)?
                }
                Phase::Security => {
                    self.phase = Phase::Init;
                    Said::Security(message[0])
                }
                Phase::Init => {
                    self.phase = Phase::Messages;
                    Said::Init
                }
                Phase::Messages if message[0] == from_client::CUT_TEXT => {
                    let len = cut_len(message);
                    if len > CUT_BYTES_MAX as u64 {
                        let here = (self.bytes.len() - self.taken) as u64;
                        self.taken += here.min(len) as usize;
                        self.skip = len - here.min(len);
                        continue;
                    }
                    Said::Message(parse(message)?)
                }
                Phase::Messages => Said::Message(parse(message)?),
            };
            return Ok(Some(said));
        }
    }

    /// The client has been told that its pointers may have more buttons than seven.
    pub fn expect_more_buttons(&mut self) {
        self.more_buttons = true;
    }

    /// Bytes that wait for the rest of their message.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.taken
    }
}

/// Bytes of what begins here, as far as that can be told.
fn needed(phase: Phase, more_buttons: bool, bytes: &[u8]) -> Result<Option<usize>, ParseError> {
    match phase {
        Phase::Version => return Ok(Some(VERSION_BYTES)),
        Phase::Security | Phase::Init => return Ok(Some(1)),
        Phase::Messages => {}
    }
    let Some(kind) = bytes.first().copied() else {
        return Ok(None);
    };
    // Messages whose length depends on a count: where that is, what it counts, and how many there may be.
    let counted = |head: usize, count: Option<usize>, each: usize, max: usize| match count {
        Some(count) if count > max => Err(ParseError::TooLong { kind, count, max }),
        count => Ok(count.map(|count| head + count * each)),
    };
    let byte = |at: usize| bytes.get(at).map(|byte| usize::from(*byte));
    Ok(match kind {
        from_client::SET_PIXEL_FORMAT => Some(4 + FORMAT_BYTES),
        from_client::SET_ENCODINGS => {
            let count = byte(2).zip(byte(3)).map(|(high, low)| high << 8 | low);
            counted(4, count, 4, ENCODINGS_MAX)?
        }
        from_client::UPDATE_REQUEST | from_client::CONTINUOUS_UPDATES => Some(10),
        from_client::KEY => Some(8),
        from_client::CUT_TEXT => bytes.get(..CUT_HEAD_BYTES).map(|head| {
            let len = cut_len(head);
            // What is too long is passed over behind its head.
            let kept = if len > CUT_BYTES_MAX as u64 { 0 } else { len };
            CUT_HEAD_BYTES + kept as usize
        }),
        from_client::POINTER => byte(1).map(|buttons| {
            let has_more = more_buttons && buttons & usize::from(MORE_BUTTONS) != 0;
            if has_more { 7 } else { 6 }
        }),
        from_client::FENCE => counted(9, byte(8), 1, fence::PAYLOAD_BYTES_MAX)?,
        from_client::SET_DESKTOP_SIZE => {
            counted(8, byte(6), LAYOUT_SCREEN_BYTES, LAYOUT_SCREENS_MAX)?
        }
        from_client::QEMU => match bytes.get(1) {
            Some(&from_client::QEMU_KEY) => Some(12),
            Some(_) => return Err(ParseError::Unknown(kind)),
            None => None,
        },
        _ => return Err(ParseError::Unknown(kind)),
    })
}

/// Bytes behind the head of a clipboard's message. Negative lengths are those of the extension.
fn cut_len(head: &[u8]) -> u64 {
    u64::from((Fields(&head[4..]).u32() as i32).unsigned_abs())
}

/// `RFB 003.008` and a line feed.
fn version(message: &[u8]) -> Result<Said, ParseError> {
    let number = |digits: &[u8]| {
        let is_number = digits.iter().all(u8::is_ascii_digit);
        let value = digits.iter().fold(0u16, |value, digit| {
            value * 10 + u16::from(digit.wrapping_sub(b'0') % 10)
        });
        is_number.then_some(value)
    };
    let is_framed = message.starts_with(b"RFB ") && message[7] == b'.' && message[11] == b'\n';
    let version = number(&message[4..7]).zip(number(&message[8..11]));
    match version.filter(|_| is_framed) {
        Some(version) if version >= (3, 7) => Ok(Said::Version {
            confirms: version >= (3, 8),
        }),
        _ => Err(ParseError::Version),
    }
}

/// A message all of whose bytes are there.
fn parse(message: &[u8]) -> Result<Message, ParseError> {
    let mut fields = Fields(message);
    let kind = fields.u8();
    Ok(match kind {
        from_client::SET_PIXEL_FORMAT => {
            fields.take::<3>();
            Message::Format(PixelFormat::parse(&fields.take())?)
        }
        from_client::SET_ENCODINGS => {
            let encodings = message[4..].chunks_exact(4);
            let encodings = encodings.map(|encoding| Fields(encoding).u32() as i32);
            Message::Encodings(encodings.collect())
        }
        from_client::UPDATE_REQUEST => Message::Request {
            incremental: fields.u8() != 0,
            rect: fields.rect(),
        },
        from_client::KEY => {
            let down = fields.u8() != 0;
            fields.u16();
            Message::Key {
                down,
                symbol: fields.u32(),
            }
        }
        from_client::POINTER => {
            let low = u16::from(fields.u8());
            let (x, y) = (fields.u16(), fields.u16());
            let buttons = match fields.0.first() {
                Some(high) => low & !MORE_BUTTONS | u16::from(*high) << 7,
                None => low,
            };
            Message::Pointer { buttons, x, y }
        }
        from_client::CUT_TEXT => {
            fields.take::<3>();
            let is_extended = (fields.u32() as i32) < 0;
            let content = fields.0.to_vec();
            if is_extended {
                Message::Clipboard(content)
            } else {
                Message::CutText(content)
            }
        }
        from_client::CONTINUOUS_UPDATES => Message::Continuous {
            on: fields.u8() != 0,
            rect: fields.rect(),
        },
        from_client::FENCE => {
            fields.take::<3>();
            let flags = fields.u32();
            fields.u8();
            Message::Fence {
                flags,
                payload: fields.0.to_vec(),
            }
        }
        from_client::SET_DESKTOP_SIZE => {
            fields.u8();
            Message::Size {
                width: fields.u16(),
                height: fields.u16(),
            }
        }
        from_client::QEMU => {
            fields.u8();
            Message::Scancode {
                down: fields.u16() != 0,
                symbol: fields.u32(),
                code: fields.u32(),
            }
        }
        _ => return Err(ParseError::Unknown(kind)),
    })
}
