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
    /// Of worlds over QUIC; else zero.
    pub quic: QuicTally,
}

/// What QUIC met.
#[derive(Debug, Default, Clone, Copy)]
pub struct QuicTally {
    /// Packets that the ends put on the line.
    pub packets: u64,
    /// Of them, lost on the way by chance.
    pub lost: u64,
    /// Dropped by a full queue.
    pub overflowed: u64,
    /// Dropped because the line was cut.
    pub cut_off: u64,
    /// Dropped because they were larger than the line carries.
    pub oversized: u64,
    /// Overtaken by later ones.
    pub reordered: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// For a process that was dead, or a port that is no more.
    pub undeliverable: u64,
    /// Links that ended by an idle timeout, at either end.
    pub timeouts: u64,
    /// Links that ended by a stateless reset.
    pub resets: u64,
    /// Links that ended because the other end closed them.
    pub closed: u64,
    /// Links that were given a new address on the way.
    pub rebound: u64,
    /// Frames that did not fit the send window at once.
    pub blocked: u64,
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
        self.quic += other.quic;
    }
}

impl AddAssign for QuicTally {
    fn add_assign(&mut self, other: Self) {
        for (mine, theirs) in [
            (&mut self.packets, other.packets),
            (&mut self.lost, other.lost),
            (&mut self.overflowed, other.overflowed),
            (&mut self.cut_off, other.cut_off),
            (&mut self.oversized, other.oversized),
            (&mut self.reordered, other.reordered),
            (&mut self.duplicated, other.duplicated),
            (&mut self.undeliverable, other.undeliverable),
            (&mut self.timeouts, other.timeouts),
            (&mut self.resets, other.resets),
            (&mut self.closed, other.closed),
            (&mut self.rebound, other.rebound),
            (&mut self.blocked, other.blocked),
        ] {
            *mine += theirs;
        }
    }
}
