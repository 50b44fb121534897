//! Disks over vhost-user: a VMM hands over its guest's memory and the queues of a virtio disk, and we serve them, without a copy over a
//! socket and without the VMM seeing a chunk or a key.
//!
//! [`VhostUserServer`] is the back-end for one disk, for splice-vmm and for QEMU (`-device vhost-user-blk-pci`); [`wire`] and [`channel`]
//! are the protocol for both ends. How it works:
//!
//! ```text
//!  front-end ══ socket ══► session (one at a time) ── starts and stops ──► a thread for each queue ──► device
//!                             │ memory, rings, events                          ▲
//!                             └ memory of requests in flight ──────────────────┘  survives this process
//! ```
//!
//! A request that cannot be done for now (the WAN is cut, the branch's disk is full) waits until it can, across ends of connections and of
//! this process: see its `waiting`.
//!
//! A front-end is not trusted: it can spoil its own disk and nothing else. It never decides how much memory or how many threads are used
//! beyond the limits here, nor can it end this process (see its `memory`).
//!
//! The crates `vhost` and `vhost-user-backend` are not used: the back-end there refuses to track requests in flight and answers
//! GET_VRING_BASE while its thread still works on the queue, and its sockets retry time-outs for ever.

mod again;
pub mod channel;
mod event;
mod inflight;
mod memory;
mod queue;
mod server;
mod session;
mod waiting;
pub mod wire;

use std::sync::Arc;

pub use server::VhostUserServer;
use waiting::Held;

use crate::BlockDevice;

/// Most queues of a disk: more than a desktop has processors gains nothing.
pub const QUEUES_MAX: u16 = 16;
/// Most entries of a queue: four times what QEMU gives a disk.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Data segments of a request; with head and status a chain fits the smallest queue that VMMs give a disk.
const SEGMENTS_MAX: u32 = 126;

/// A disk that is being served.
pub(crate) struct Disk {
    device: Arc<dyn BlockDevice>,
    serial: String,
    queues: u16,
    held: Held,
}

/// A disk to be served.
#[derive(Clone)]
pub struct DiskSpec {
    /// Its bytes.
    pub device: Arc<dyn BlockDevice>,
    /// Serial number, 20 bytes at most.
    pub serial: String,
    /// Queues, one for each of the guest's processors as a rule; from 1 to [`QUEUES_MAX`].
    pub queues: u16,
}
