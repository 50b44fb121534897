//! The NBD server against real clients (qemu-io, qemu-img, nbdinfo, nbdcopy, fio), against hostile ones, and against
//! a byte array that knows what should be on the disk. Everything goes through real sockets.
#![allow(clippy::unwrap_used, missing_docs)]

mod client;
mod clients;
mod exports;
mod hostile;
mod lab;
mod oracle;
mod protocol;
mod tls;
