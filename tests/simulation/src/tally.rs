//! What a run met: a test that met nothing has shown nothing.

use std::ops::AddAssign;

/// Counters of a run, or of many.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Links that the branch found to be gone.
    pub cuts: u64,
    /// Attempts of the branch that got no link.
    pub failed_dials: u64,
    /// Deaths of the datacenter.
    pub master_deaths: u64,
    /// Deaths of the branch.
    pub site_deaths: u64,
    /// Versions published.
    pub versions: u64,
    /// Guests' reads, and those that were given up.
    pub reads: u64,
    /// Reads that waited for longer than a guest does.
    pub read_timeouts: u64,
    /// Chunks that guests waited for.
    pub demanded: u64,
    /// Chunk requests.
    pub requests: u64,
    /// Trees compared at the end.
    pub compared: u64,
    /// Virtual milliseconds.
    pub virtual_ms: u64,
    /// Bytes of messages that the line was given.
    pub line_bytes: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        for (mine, theirs) in [
            (&mut self.cuts, other.cuts),
            (&mut self.failed_dials, other.failed_dials),
            (&mut self.master_deaths, other.master_deaths),
            (&mut self.site_deaths, other.site_deaths),
            (&mut self.versions, other.versions),
            (&mut self.reads, other.reads),
            (&mut self.read_timeouts, other.read_timeouts),
            (&mut self.demanded, other.demanded),
            (&mut self.requests, other.requests),
            (&mut self.compared, other.compared),
            (&mut self.virtual_ms, other.virtual_ms),
            (&mut self.line_bytes, other.line_bytes),
        ] {
            *mine += theirs;
        }
    }
}
