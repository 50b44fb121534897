//! The agent inside a desktop. It gives the desktop the identity that its branch tells it, mounts the user volume before anybody logs on, and reports
//! how the desktop is.
//!
//! ```text
//!   port ──lines──► agent ──► identity   /etc, ssh-keygen
//!        ◄─────────       ├─► network    cards of a clone begin anew
//!                         ├─► volume     mkfs.ext4 on an empty disk only, fsck, mount
//!                         ├─► freeze     fsfreeze, with an end of its own
//!                         └─► sessions, health: read only
//! ```
//!
//! Everything it looks at is below a [`root::Root`] and everything it runs goes through [`tools::Tools`], so that tests give it a folder and a record of
//! commands. Without a branch it does nothing; without systemd it reports less. It holds no secret, listens on no network and takes no path,
//! program or option from the branch.
#![forbid(unsafe_code)]

pub mod agent;
pub mod health;
pub mod identity;
pub mod network;
pub mod notify;
pub mod port;
pub mod root;
pub mod sessions;
pub mod tools;
pub mod volume;

#[cfg(test)]
mod fake;

/// An error with its causes on one line, as a branch is told of it.
fn reason(error: &dyn std::error::Error) -> branch_guest::Reason {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    branch_guest::Reason::near(&line)
}
