//! The emulator measures itself: real sockets at both ends of a real link, on the machine at hand.
//!
//! The unit tests show that the model is exact; this shows what the data path and this machine's scheduler add. Results
//! are judged against a stated tolerance: statistical for losses and jitter, fixed for rate and delay.

mod path;
mod phases;
mod report;

use std::io;

use crate::profile::Profile;
use crate::tun::TunError;

pub use report::{Report, Row};

/// Which data path is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// A TUN link between two namespaces made for the purpose (root).
    Tun,
    /// A UDP proxy on loopback.
    Proxy,
}

/// Why a measurement did not come about.
#[derive(Debug, thiserror::Error)]
pub enum AccuracyError {
    /// The link could not be set up.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// A socket failed.
    #[error("measuring socket: {0}")]
    Io(#[from] io::Error),
    /// Nothing came through.
    #[error("no packet came back over profile {0}; the link does not work")]
    Silent(String),
}

/// Measures one profile; takes about half a minute.
///
/// # Errors
/// The link cannot be set up, or carries nothing.
pub fn measure(profile: &Profile, via: Via, seed: u64) -> Result<Report, AccuracyError> {
    let path = path::Path::set_up(profile, via, seed)?;
    let mut rows = Vec::new();
    phases::round_trips(&path, profile, &mut rows)?;
    phases::rates(&path, profile, &mut rows)?;
    phases::losses(&path, profile, &mut rows)?;
    Ok(Report {
        profile: profile.name.clone(),
        via,
        rows,
        unseen_drops: path.unseen_drops(),
    })
}
