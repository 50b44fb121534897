//! A branch and its datacenter on a virtual clock.
//!
//! The real cores run here: the branch's cache, catalog, queue and both protocol ends, the datacenter's chunk store and responders,
//! on disks that lose what was not flushed. What is simulated is what surrounds them: time, the line, the disk, and who is killed
//! when. A run is a pure function of its seed.
//!
//! ```text
//!   World ── events by virtual time ──► Master (store, responders) ◄── messages ──► Site (cache, catalog, queue, guests)
//!     │                                                              a Carrier
//!     │                                                 Messages: delay, loss, rate, cuts of a Line
//!     └── troubles: cuts, kills, power cuts, publishes ── until they end; then everything must become whole
//! ```
//!
//! What is not here: QUIC (see the tests of the link over the real state machine), threads, and the glue that puts the cores on them.

#![allow(clippy::unwrap_used)]

mod carrier;
mod content;
mod keys;
mod line;
mod master;
mod messages;
mod schedule;
mod site;
mod sync;
mod tally;
mod world;

pub use tally::Tally;
pub use world::run;
