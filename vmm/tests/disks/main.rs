//! Disks of a machine, driven by a guest that is the test: in process with limits, and over vhost-user with servers that come and go.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../block/tests/guest/mod.rs"]
mod guest;
mod limits;
mod machine;
mod remote;
