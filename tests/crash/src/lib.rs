//! A disk that loses what was not flushed, and the power-cut tests that use it.
//!
//! [`SimDisk`] and [`SimKv`] stand in for [`dedup_store::disk::HostDisk`] and RocksDB under the real code; the tests of this crate
//! cut the power at seeded moments and look at what the next boot finds.

mod content;
mod power;
mod rng;
mod sim_disk;
mod sim_kv;

pub use power::Kind;
pub use rng::Rng;
pub use sim_disk::SimDisk;
pub use sim_kv::SimKv;
