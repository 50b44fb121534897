//! The branch server: cache, link, volumes and desktops.
//!
//! Bytes come in one way: [`link`] fetches what [`fetch`] queues, the [`cache`] keeps it verified, a [`volume`] lays a desktop's
//! writes over it, [`exports`] shows it to guests; [`network`] is what guests reach. [`catalog`] is what the branch knows by heart while the link is down.

pub mod cache;
pub mod catalog;
pub mod clock;
pub mod content_map;
pub mod desktop;
pub mod exports;
pub mod fetch;
pub mod http;
pub mod identity;
pub mod link;
pub mod network;
pub mod profile;
pub mod server;
pub mod tally;
pub mod versions;
pub mod volume;
