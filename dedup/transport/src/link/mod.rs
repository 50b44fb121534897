//! Links: QUIC connections between branch and datacenter that carry frames in four classes.
//!
//! A branch dials with [`LinkClient`], a datacenter listens with [`LinkServer`]; either end then opens a bidirectional
//! stream per request on its [`Link`] and exchanges frames through [`FrameSend`] and [`FrameRecv`]. Invariant: a
//! [`Link`] exists only after both ends have accepted each other. What is not here: retries, back-off, hours of the
//! day, and every message.

mod ahead;
mod client;
mod connection;
mod error;
mod frame;
mod gate;
mod repair;
mod server;
mod shape;
mod socket;
mod traffic;
mod tuning;
mod watch;

pub use ahead::seconds_ahead;
pub use client::LinkClient;
pub use connection::{Link, LinkStats};
pub use error::{LinkError, Party};
pub use frame::{FRAME_BYTES_MAX, FrameRecv, FrameSend};
pub use gate::Class;
pub use server::{Accepted, Incoming, LinkServer};
pub use shape::Caps;
pub use traffic::{ClassBytes, LinkTotals};
pub use tuning::{Congestion, LinkTuning, ParseCongestionError};

use std::time::Duration;

/// Longest a handshake may take, at either end, per address: four transmissions at a 600 ms satellite round trip.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// What the datacenter sends on a unidirectional stream once it has accepted the peer.
///
/// In TLS 1.3 the client's side of the handshake is over before the server has looked at the client's certificate, so
/// without this a refused branch would see a link that works and then breaks.
pub(crate) const GREETING: &[u8; 8] = b"splice/1";
