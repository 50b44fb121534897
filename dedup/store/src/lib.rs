//! Durable storage of content: the chunk store (packs and index), the small key-value store that branch and datacenter
//! keep their state in, and the disk both stand on.
//!
//! Everything takes its [`disk::Disk`] and [`kv::Kv`] as arguments, so that a simulated disk which loses what was not
//! flushed runs the very same code (`tests/crash`).

pub mod disk;
pub mod kv;
