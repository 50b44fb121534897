//! The vhost-user server against a front-end that is written here, good and bad.

#![allow(clippy::unwrap_used, missing_docs)]

mod client;
mod devices;
#[path = "../guest/mod.rs"]
mod guest;
mod hostile;
mod qemu;
mod restart;
mod serve;
mod waiting;
