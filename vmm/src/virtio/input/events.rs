//! Events as evdev numbers them (Linux, include/uapi/linux/input-event-codes.h).

use serde::{Deserialize, Serialize};

/// Marks the end of what happened at once.
pub const EV_SYN: u16 = 0;
/// A key or button.
pub const EV_KEY: u16 = 1;
/// A movement.
pub const EV_REL: u16 = 2;
/// A place.
pub const EV_ABS: u16 = 3;

/// The last key of a keyboard.
pub const KEY_LAST: u16 = 248;
/// Left, right, middle, side, extra.
pub const BUTTONS: [u16; 5] = [0x110, 0x111, 0x112, 0x113, 0x114];
/// Notches of the wheel sideways, right is positive.
pub const REL_HWHEEL: u16 = 6;
/// Notches of the wheel, up is positive.
pub const REL_WHEEL: u16 = 8;
/// Place from the left.
pub const ABS_X: u16 = 0;
/// Place from the top.
pub const ABS_Y: u16 = 1;
/// What the right and lower edges are.
pub const AXIS_MAX: u32 = 0x7fff;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its type.
    pub kind: u16,
    /// Which key or axis.
    pub code: u16,
    /// 1 pressed and 0 released, or where, or how far.
    pub value: u32,
}

impl Event {
    /// As the guest reads it.
    pub fn bytes(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.code.to_le_bytes());
        bytes[4..].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }
}
