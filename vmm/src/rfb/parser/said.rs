//! What a client may say.

use crate::rfb::pixel::{FormatError, PixelFormat};
use crate::screen::Rect;

/// Something that a client said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It speaks 3.7, which does not confirm "no security", or what came after it.
    Version {
        /// 3.8 or later.
        confirms: bool,
    },
    /// Security type that it chose.
    Security(u8),
    /// It is ready. Whether it wants to be alone is not asked: viewers share.
    Init,
    /// See [`Message`].
    Message(Message),
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// How it wants pixels from now on.
    Format(PixelFormat),
    /// What it understands, best first.
    Encodings(Vec<i32>),
    /// It wants an update.
    Request {
        /// What has changed will do.
        incremental: bool,
        /// Of this.
        rect: Rect,
    },
    /// A key, by its symbol.
    Key {
        /// Pressed.
        down: bool,
        /// X11's number of the symbol.
        symbol: u32,
    },
    /// A key, by its place.
    Scancode {
        /// Pressed.
        down: bool,
        /// X11's number of the symbol.
        symbol: u32,
        /// Its scan code (PC/XT, extended ones with bit 7).
        code: u32,
    },
    /// The pointer.
    Pointer {
        /// Which are pressed.
        buttons: u16,
        /// From the left.
        x: u16,
        /// From the top.
        y: u16,
    },
    /// It wants updates without asking, or no longer.
    Continuous {
        /// From now on.
        on: bool,
        /// Of this.
        rect: Rect,
    },
    /// A fence, or the answer to one.
    Fence {
        /// What it holds up.
        flags: u32,
        /// To be sent back.
        payload: Vec<u8>,
    },
    /// Its clipboard's text, in Latin-1.
    CutText(Vec<u8>),
    /// Something about clipboards, by the extension.
    Clipboard(Vec<u8>),
    /// It would like another size.
    Size {
        /// Pixels of a row.
        width: u16,
        /// Rows.
        height: u16,
    },
}

/// Why a client is hung up on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not this protocol, or one before 3.7.
    #[error("not RFB 3.7 or later")]
    Version,
    /// Not known, and so of unknown length.
    #[error("message {0} is not known")]
    Unknown(u8),
    /// A message that says it is longer than any that makes sense.
    #[error("message {kind} with {count} parts: {max} are possible")]
    TooLong {
        /// Its number.
        kind: u8,
        /// What it says.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// Pixels that nobody can make.
    #[error(transparent)]
    Format(#[from] FormatError),
}
