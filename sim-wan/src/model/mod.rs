//! The impairment model of one direction of a link: no sockets, no clock, no threads.
//!
//! ```text
//!   enqueue ─► drop-tail queue ─► rate limiter ─► loss ─► delay ± jitter ─► poll
//! ```
//!
//! Time is an argument (`Duration` since the caller's epoch, never going back) and randomness comes from a seed, so
//! the same calls give the same result, and a simulation may run it on a virtual clock. Methods come in families:
//! [`Pipe::enqueue`] puts a packet in, [`Pipe::poll`] takes the packets that have arrived, [`Pipe::next_event`]
//! says when to poll again, `cut`, `restore` and `set_shape` steer.
//!
//! What happens to a datagram when the link goes down: packets that arrive meanwhile are dropped, and so is whatever
//! is in flight at any instant of the outage. A manual cut also empties the queue; in a planned outage the
//! transmitter drains its queue into the void. A [`Mode::Stream`] pipe carries pieces of a byte stream that must not be
//! lost, so it stalls instead, and the loss, reorder and duplicate settings do not apply to it.

mod counters;
mod jitter;
mod loss;
mod pipe;
mod rng;
mod shape;

pub use counters::{DirectionStats, Tally};
pub use loss::Loss;
pub use pipe::{Mode, Pipe, Verdict};
pub use rng::Rng;
pub use shape::{FULL_PACKET_BYTES, Outage, Reorder, Shape};
