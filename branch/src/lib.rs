//! The branch server: cache, link, volumes and desktops.

pub mod volume;
