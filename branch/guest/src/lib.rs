//! What a branch and the agent inside a desktop say to each other: one JSON object a line, over a virtio-serial port.
//!
//! ```text
//!   agent   Hello ──► Report, Report, …          Done
//!   branch       ◄── Welcome or Refuse     Do ──►
//! ```
//!
//! Neither end trusts the other. A line has a limit, each list and text in it has one, and texts are printable ASCII: what a guest says may be shown on
//! a terminal. A line that is not exactly one of these messages is an error, never half understood. Whatever the branch says is one of
//! [`ToGuest`]: it cannot name a file, a program or a device node. This crate does no I/O and keeps no time; `docs/agent.md` tells the format.
#![forbid(unsafe_code)]

mod line;
mod message;
mod words;

pub use line::{LINE_BYTES_MAX, Lines, TooLong};
pub use message::{
    DISKS_MAX, DiskHealth, Done, FAILED_UNITS_MAX, FREEZE_MS_MAX, FromGuest, Health, Hello,
    Identity, MessageError, OLDEST_PROTOCOL, Order, PROTOCOL, PROTOCOL_CLONES, Refuse, Report,
    TROUBLES_MAX, ToGuest, USERS_MAX, User, UserVolume, VolumeReport, Welcome, What,
    common_protocol,
};
pub use words::{HostName, Id, Reason, Serial, Text, WordError};

/// The port's name, by which a guest finds it.
pub const PORT_NAME: &str = "splice.agent.0";
