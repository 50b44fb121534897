//! Who may write a persistent desktop: both ends of its lease.
//!
//! ```text
//!   datacenter, one row a desktop                     branch, one row a desktop
//!
//!    Free ──grant, generation + 1──► Held             Idle ──asks──► (asked) ──granted──► Held ──gives back──► Returning
//!     ▲                             │  ▲│renewed       ▲                                  │  ▲│renewed           │
//!     └──given back, broken, fenced─┘  └┘              └── all kept at the datacenter ────┼──┴┘                  │
//!                                                      ▲                                  └──fenced──► Fenced ◄──┤
//!                                                      └── the fork is at the datacenter ─────────────────┘      │
//!                                                      └── given back ───────────────────────────────────────────┘
//!                                                     Idle (asked), Held ──given up──► Dropped ──told──► Idle
//! ```
//!
//! Invariant: a generation is granted once, to one branch, and never becomes valid again when it has ended. A branch is fenced only if
//! IT broke the lease, or if it says, in answer to a question that was asked after everything else it said, that it is behind what it
//! was: a message that was delayed or doubled never fences anybody.
//!
//! What is *given up* was destroyed by somebody's wish: its generation ends with what the datacenter has. A desktop that is *recalled* is given back when
//! it stands still and all of it is there; until then nothing changes, and the wish is forgotten with the next lease, which comes with it if it still holds.
//!
//! Time ends a branch's right to *run* a desktop, not its right to what was written: after its end a lease is still that branch's, to be
//! renewed, until IT breaks it.

mod branch;
mod datacenter;
mod row;
mod stage;
#[cfg(test)]
mod tests;

pub use branch::Hold;
pub use datacenter::{Authority, AuthorityAction, BreakError, Broken};
pub use row::{AuthorityRow, Holder, PAST_MAX, Past, Progress, Standing, Terms};
pub use stage::{Facts, HoldAction, HoldError, HoldRow, Right, Stage};
