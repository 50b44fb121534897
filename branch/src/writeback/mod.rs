//! Write-back: what desktops write here comes to the datacenter, segment by segment, under their leases.
//!
//! ```text
//!   overlay ── changes ──► make ── ranges, chunks ──► Line (Hold and Sender over their rows) ──► link, class state
//!                           └ cut                        ▲ leases, acknowledgements ◄──────────────┘
//! ```
//!
//! The machines that decide are `dedup_protocol::state`'s; why they are sound is in decisions 0038 and 0039. Here is what they leave to
//! their owner: reading what changed ([`make`]) and cutting it into chunks ([`cut`]).

pub mod cut;
pub mod make;
#[cfg(test)]
mod tests;
