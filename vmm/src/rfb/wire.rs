//! Numbers of the protocol (RFC 6143, and the community's rfbproto for what came after it).

/// What both sides say first.
pub(super) const VERSION: [u8; 12] = *b"RFB 003.008\n";
/// The only security type: none.
pub(super) const SECURITY_NONE: u8 = 1;

/// Encodings and pseudo-encodings.
pub mod encoding {
    /// Pixels as they are.
    pub const RAW: i32 = 0;
    /// What was elsewhere on the screen before.
    pub const COPY_RECT: i32 = 1;
    /// Palettes, JPEG or plain pixels, compressed by zlib.
    pub const TIGHT: i32 = 7;
    /// Tiles with palettes and runs, compressed by zlib.
    pub const ZRLE: i32 = 16;
    /// The worst of JPEG's ten qualities; the best is 9 more. Naming one allows what is lossy.
    pub const QUALITY_0: i32 = -32;
    /// The screen has another size.
    pub const DESKTOP_SIZE: i32 = -223;
    /// An update may end before its count of rectangles.
    pub const LAST_RECT: i32 = -224;
    /// The pointer's image.
    pub const CURSOR: i32 = -239;
    /// The least of zlib's ten levels; the most is 9 more.
    pub const COMPRESSION_0: i32 = -256;
    /// Keys may be told by scan code.
    pub const QEMU_KEYS: i32 = -258;
    /// The screen has another size, or would get one if the client asked.
    pub const EXTENDED_DESKTOP_SIZE: i32 = -308;
    /// Fences.
    pub const FENCE: i32 = -312;
    /// Updates that are not asked for one by one.
    pub const CONTINUOUS_UPDATES: i32 = -313;
    /// Pointers with more than seven buttons.
    pub const MORE_BUTTONS: i32 = -316;
    /// The pointer's image with its opacity.
    pub const ALPHA_CURSOR: i32 = 0x574d_5664;
    /// Clipboards with all of Unicode, told of before they are sent.
    pub const CLIPBOARD: i32 = 0xc0a1_e5ce_u32 as i32;
}

/// Messages of clients.
pub(super) mod from_client {
    pub(crate) const SET_PIXEL_FORMAT: u8 = 0;
    pub(crate) const SET_ENCODINGS: u8 = 2;
    pub(crate) const UPDATE_REQUEST: u8 = 3;
    pub(crate) const KEY: u8 = 4;
    pub(crate) const POINTER: u8 = 5;
    pub(crate) const CUT_TEXT: u8 = 6;
    pub(crate) const CONTINUOUS_UPDATES: u8 = 150;
    pub(crate) const FENCE: u8 = 248;
    pub(crate) const SET_DESKTOP_SIZE: u8 = 251;
    pub(crate) const QEMU: u8 = 255;
    /// The only message of QEMU's that is known.
    pub(crate) const QEMU_KEY: u8 = 0;
}

/// Messages to clients.
pub(super) mod to_client {
    pub(crate) const UPDATE: u8 = 0;
    pub(crate) const CUT_TEXT: u8 = 3;
    pub(crate) const END_OF_CONTINUOUS_UPDATES: u8 = 150;
    pub(crate) const FENCE: u8 = 248;
}

/// Fences.
pub(super) mod fence {
    /// What was sent before is done first. Both are so anyway: messages are worked on in order.
    pub(crate) const BLOCK_BEFORE: u32 = 1 << 0;
    /// What is sent after is done later.
    pub(crate) const BLOCK_AFTER: u32 = 1 << 1;
    /// An answer is wanted.
    pub(crate) const REQUEST: u32 = 1 << 31;
    /// Most bytes that come with one.
    pub(crate) const PAYLOAD_BYTES_MAX: usize = 64;
}

/// A fence for the client.
pub(super) fn fence_message(flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![to_client::FENCE, 0, 0, 0];
    bytes.extend(flags.to_be_bytes());
    bytes.push(payload.len() as u8);
    bytes.extend(payload);
    bytes
}
