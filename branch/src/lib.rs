//! The branch server: cache, link, volumes and desktops.
//!
//! Bytes come in one way: [`link`] fetches what [`fetch`] queues, the [`cache`] keeps it verified, a [`volume`] lays a desktop's
//! writes over it, [`exports`] shows it to guests; [`network`] is what guests reach. [`catalog`] is what the branch knows by heart while the
//! link is down, [`people`] who may log in then, [`portal`] how a user gets a desktop into a browser, [`keep`] what a full cache does not give up, [`ready`] whether pools boot without the line, [`template`] what desktops go on
//! from instead of booting, [`writeback`] how writes get to the datacenter. [`metrics`] is what it tells of all that.

pub mod cache;
pub mod catalog;
pub mod clock;
pub mod content_map;
pub mod desktop;
pub mod exports;
pub mod fetch;
pub mod guest;
pub mod http;
pub mod identity;
pub mod keep;
pub mod keys;
pub mod link;
pub mod metrics;
#[cfg(test)]
mod needs_tests;
pub mod network;
pub mod people;
pub mod portal;
pub mod profile;
pub mod ready;
pub mod server;
mod support;
pub mod tally;
pub mod template;
pub mod versions;
pub mod volume;
pub mod writeback;
