//! How a desktop's writes come to the datacenter: sealed segments, in order, applied whole.
//!
//! ```text
//!   branch                                             datacenter
//!     seal: records up to `to`, durable
//!     OfferPart 0 (ranges, names of chunks) ─────►       which of them are here?
//!                                           ◄─────     WantChunks
//!     PartChunks, PartChunks …              ─────►       stored, synced; part 0 is a row
//!                                           ◄─────     PartStaged
//!     OfferPart 1, the last …               ─────►       … all parts are here: the new manifest is built, then
//!                                           ◄─────     SegmentApplied     one transaction makes it the desktop's state
//! ```
//!
//! A *segment* is the net effect of an overlay's records behind one sequence number up to another, both of them durable at the branch. It is
//! cut into *parts*, which bound memory at both ends; it counts only when it is whole. One segment of a desktop is under way at a
//! time: what is flushed meanwhile becomes the next one, with what was overwritten left out.
//!
//! Invariant: the datacenter's state of a line is what the branch's disks showed at one of its positions, and goes from position to position
//! in the order of one history ([`Head`](super::Head) names it). A branch takes for acknowledged only what is durable there.
//!
//! These machines move names and decisions ([`pack()`] packs what is to follow). Reading the overlay, chunking, the store and the manifest are their owners'.

mod branch;
mod datacenter;
mod line;
mod pack;
mod part;
mod snapshot;
#[cfg(test)]
mod tests;

pub use branch::{Lag, SealPolicy, Sealed, SendAction, SendRow, Sender};
pub use datacenter::Receiver;
pub use line::{LineRow, ReceiveAction, ReceiveError, Staged};
pub use pack::pack;
pub use part::{PART_BYTES_MAX, PART_RANGES_MAX, PARTS_MAX, Part, PartError, Range, RangeSource};
pub use snapshot::{Retention, Snapshot, SnapshotPolicy, next_cut, to_drop};
