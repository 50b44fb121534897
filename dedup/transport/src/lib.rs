//! The link's plumbing: who a peer is, how it is reached, and in which order bytes leave.
//!
//! This crate owns the realm's certificates ([`identity`]), the TLS rules built on them ([`tls`]), and QUIC connections
//! that carry length-prefixed frames in four classes ([`link`]). It knows no message of the protocol: frames are opaque.
//!
//! Invariant: a [`link::Link`] in the hands of a caller has passed mutual authentication (or is a join link, which says
//! so by its type). Nothing here retries, caps bandwidth or keeps state between links; `branch` and `datacenter` do.
//! `docs/transport.md` tells the same byte by byte.

pub mod congestion;
pub mod identity;
pub mod link;
pub mod tls;

mod verify;

#[cfg(test)]
mod tests;
