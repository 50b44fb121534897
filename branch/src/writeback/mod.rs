//! Write-back: what desktops write here comes to the datacenter, segment by segment, under their leases.
//!
//! ```text
//!   overlay ── changes ──► make ── ranges, chunks ──► Line (Hold and Sender over their rows) ──► link, class state
//!                           └ cut                        ▲ leases, acknowledgements ◄──────────────┘
//! ```
//!
//! The machines that decide are `dedup_protocol::state`'s; why they are sound is in decisions 0038 and 0039. Here is what they leave to
//! their owner: reading what changed ([`make`]), cutting it into chunks ([`cut`]), keeping rows ([`rows`]), and doing what they say in order
//! ([`line`]). [`lines`] has the lines of all volumes here, each moved by one caller at a time; the link drives them.

pub mod cut;
pub mod line;
#[cfg(test)]
mod line_tests;
pub mod lines;
#[cfg(test)]
mod lines_tests;
pub mod make;
pub mod rows;
pub mod shown;
#[cfg(test)]
mod tests;
