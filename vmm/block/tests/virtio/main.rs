//! The parser of virtio disk requests against an oracle, and against guests that write anything.

#![allow(clippy::unwrap_used, missing_docs)]

mod chains;
#[path = "../guest/mod.rs"]
mod guest;
mod hostile;
mod oracle;
