//! Why something could not be done with a desktop.

use std::path::PathBuf;

use super::VolumeError;
use super::machine::MachineError;
use super::machine::files::SOCKET_PATH_BYTES_MAX;
use crate::catalog::CatalogError;
use crate::writeback::shown::NoRight;

/// Why a desktop could not be started, stopped or deleted.
#[derive(Debug, thiserror::Error)]
pub enum DesktopError {
    /// The name cannot be used.
    #[error("{0}")]
    Name(String),
    /// No such desktop.
    #[error("there is no desktop {0:?} at this branch")]
    NotFound(String),
    /// No such pool.
    #[error("there is no pool {pool:?} at this branch; it has: {known}")]
    NoPool {
        /// The pool asked for.
        pool: String,
        /// The pools there are.
        known: String,
    },
    /// A desktop of that name belongs to another pool.
    #[error("desktop {name:?} belongs to pool {pool:?}")]
    OtherPool {
        /// The desktop.
        name: String,
        /// Its pool.
        pool: String,
    },
    /// It is in a state that does not allow this.
    #[error("desktop {name:?} is {state}; {way_out}")]
    Busy {
        /// The desktop.
        name: String,
        /// What it is doing.
        state: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// The assignment has run out and so has its offline grace.
    #[error(
        "the assignment of this branch ended {since_s} s ago and its offline grace is over; \
         new desktops start again when the branch has reached the datacenter"
    )]
    AssignmentEnded {
        /// Seconds past the end of the grace.
        since_s: u64,
    },
    /// It cannot come to run another version with what was written to its system.
    #[error(
        "desktop {name:?} stays on its version: {why}; `splice desktop reset {name}` gives up what was written to its system, and its user volume stays"
    )]
    NotRebased {
        /// The desktop.
        name: String,
        /// Why.
        why: String,
    },
    /// There is no such version here.
    #[error("version {version:?} is not at this branch; it has: {known}")]
    NoVersion {
        /// As it was named.
        version: String,
        /// Those that can boot here.
        known: String,
    },
    /// It cannot be tried out.
    #[error("desktop {name:?} is not tried out: {why}")]
    NoTrial {
        /// The desktop.
        name: String,
        /// Why.
        why: String,
    },
    /// This branch may not run it.
    #[error("desktop {name:?} may not run here for its {kind}")]
    NoRight {
        /// The desktop.
        name: String,
        /// Which of its volumes it is.
        kind: &'static str,
        /// Why.
        source: NoRight,
    },
    /// The version's manifest is not here yet.
    #[error(
        "version {version} has not reached this branch yet: its manifest is still to come; try again when the link is up"
    )]
    NotHere {
        /// The version.
        version: String,
    },
    /// The manifest of what one of its volumes goes on behind was lost.
    #[error(
        "the manifest of the state under desktop {name:?} is not here, though it was; have IT break its lease: what was written here goes to the datacenter as a fork, and the state is fetched again"
    )]
    NoState {
        /// The desktop.
        name: String,
    },
    /// The data directory's path is too long.
    #[error(
        "{} is too long for a Unix socket ({SOCKET_PATH_BYTES_MAX} bytes at most); use a shorter --data directory", .0.display()
    )]
    PathTooLong(PathBuf),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The version's kernel or initrd could not be had.
    #[error("{what} of version {version} could not be read")]
    Boot {
        /// Which file.
        what: &'static str,
        /// Which version.
        version: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// An error with its causes, on one line.
pub fn error_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
