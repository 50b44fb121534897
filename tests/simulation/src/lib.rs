//! A branch and its datacenter on a virtual clock.
//!
//! The real cores run here: the branch's cache, catalog, queue and both protocol ends, the datacenter's chunk store and responders,
//! on disks that lose what was not flushed. What is simulated is what surrounds them: time, the line, the disk, and who is killed
//! when. A run is a pure function of its seed.
//!
//! ```text
//!   World ── events by virtual time ──► Master (store, responders) ◄── a Carrier ──► Site (cache, catalog, queue, guests)
//!     │                                                                 │
//!     │                                 Messages: one event each, over a Line that delays, loses and is cut
//!     │                                 Quic: real connections, over packets that are lost, overtaken, doubled
//!     └── troubles: cuts, kills, power cuts, publishes ── until they end; then everything must become whole
//! ```
//!
//! A world of [`run`] is small, and there are ten thousand of them; one of [`run_over_quic`] has larger disks and more trouble, each of
//! its packets costs, and there are two hundred.
//!
//! What is not here: threads and sockets, and the glue that puts the cores on them; of the transport, whatever lies above QUIC's own
//! state machine and needs a running link (its send gate, its repair datagrams, mutual certificates).

#![allow(clippy::unwrap_used)]

mod carrier;
mod content;
mod keys;
mod line;
mod master;
mod messages;
mod quic;
mod schedule;
mod site;
mod sync;
mod tally;
mod world;

pub use tally::{QuicTally, Tally};
pub use world::{run, run_over_quic};
