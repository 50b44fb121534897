//! The branch server: cache, link, volumes and desktops.

pub mod cache;
pub mod volume;
