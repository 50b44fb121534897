//! Requests of a virtio disk (virtio 1.2, section 5.2), read from guest memory and answered from a [`crate::BlockDevice`].
//!
//! Shared by the VMM's own disk and by the vhost-user server, so that one parser of hostile bytes is tested and fuzzed. It knows no
//! transport and no threads. Guest memory changes while it is read: every field is read once, and data is copied.

mod config;
mod request;

pub use config::{CONFIG_BYTES, CONFIG_QUEUES_AT, config_of, features_of};
pub use request::{Next, Parsed, Patience, Request, SECTOR_BYTES, Served, Status, Unusable};

/// A chain of descriptors in guest memory.
pub type Chain<'a> = virtio_queue::DescriptorChain<&'a vm_memory::GuestMemoryMmap<()>>;

/// Features of a disk that this serves.
pub mod features {
    /// At most so many segments a request.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Writes are refused.
    pub const RO: u64 = 1 << 5;
    /// Has a best block size.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Has a write cache that is flushed when asked.
    pub const FLUSH: u64 = 1 << 9;
    /// Tells alignment and best sizes.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// Discards.
    pub const DISCARD: u64 = 1 << 13;
    /// Zeroes without data.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}
