//! Block devices and their exports to guests.
//!
//! [`BlockDevice`] is the one interface between whatever holds a desktop's bytes (a branch volume, a plain file) and
//! whatever shows them to a guest (an NBD export, a virtio queue). This crate knows nothing of chunks, manifests or
//! the WAN: a device that has to fetch bytes simply takes longer to answer [`BlockDevice::read`].

mod device;
mod memory;
pub mod nbd;
mod raw_file;
mod seldom;
pub mod vhost_user;
pub mod virtio;

pub use device::{BlockDevice, BlockError, BlockErrorKind, Geometry, RangeStatus, check_range};
pub use memory::MemoryDevice;
pub use raw_file::RawFile;
pub use seldom::Seldom;
