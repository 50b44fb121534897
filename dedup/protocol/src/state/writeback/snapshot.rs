//! Snapshots of a desktop: when one is cut, and which are kept.
//!
//! A snapshot is a state that was applied, with its place in the history: manifests like a version's, which share everything with the state
//! before and behind. So cutting one is a row, and dropping one is the collector's work. Invariant: what was asked for by name or is pinned is
//! never dropped here.

use serde::{Deserialize, Serialize};

use super::super::message::Cut;
use super::super::{Line, Position};
use super::line::LineRow;
use crate::records::TreeRef;

const HOUR_S: u64 = 3600;
const DAY_S: u64 = 24 * HOUR_S;
const WEEK_S: u64 = 7 * DAY_S;

/// A desktop's state at one position, kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Snapshot {
    /// Counts the desktop's snapshots, from 1.
    pub number: u64,
    /// Of what: the desktop under the generation that wrote it, or a fork.
    pub line: Line,
    /// Where in it.
    pub at: Position,
    /// Why it was cut; [`Cut::None`]: by policy.
    pub cut: Cut,
    /// When the branch sealed what it shows, unix seconds.
    pub sealed_unix_s: u64,
    /// When it was cut, unix seconds.
    pub taken_unix_s: u64,
    /// Whether somebody wants it to be kept.
    pub is_pinned: bool,
    /// One tree for each disk.
    pub disks: Vec<TreeRef>,
}

/// When snapshots are cut, and which are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPolicy {
    /// At most one in so many seconds; 0: none by time.
    pub every_s: u64,
    /// Whether one is cut when the user logs off.
    pub at_log_off: bool,
    /// Which are kept.
    pub keep: Retention,
}

/// Which snapshots are kept: the newest of each of so many hours, days and weeks that have one, and the newest of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// So many of the newest.
    pub newest: u32,
    /// Hours.
    pub hourly: u32,
    /// Days (of UTC).
    pub daily: u32,
    /// Weeks.
    pub weekly: u32,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self {
            every_s: 15 * 60,
            at_log_off: true,
            keep: Retention {
                newest: 8,
                hourly: 24,
                daily: 14,
                weekly: 8,
            },
        }
    }
}

/// Why a snapshot of the line is cut now, when its newest segment asked for `cut`; `None` if none is.
///
/// Positions, not times, say whether there is anything new: a desktop that nobody uses gets no snapshots.
pub fn next_cut(
    policy: &SnapshotPolicy,
    newest: Option<&Snapshot>,
    line: &LineRow,
    cut: Cut,
    now_unix_s: u64,
) -> Option<Cut> {
    let is_new = newest.is_none_or(|snapshot| snapshot.at.head != line.applied.head);
    match cut {
        Cut::Asked | Cut::Frozen => Some(cut),
        Cut::LogOff if policy.at_log_off && is_new => Some(cut),
        Cut::LogOff | Cut::None => {
            // A clock that was set back does not stop them for longer than it was.
            let age = newest.map_or(u64::MAX, |s| now_unix_s.abs_diff(s.taken_unix_s));
            (is_new && policy.every_s > 0 && age >= policy.every_s).then_some(Cut::None)
        }
    }
}

/// Numbers of the snapshots that retention gives up, of all of one line's.
pub fn to_drop(snapshots: &[Snapshot], keep: &Retention) -> Vec<u64> {
    let mut newest_first: Vec<&Snapshot> = snapshots.iter().collect();
    newest_first.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.number));
    let mut spans = [
        Span::new(0, keep.newest),
        Span::new(HOUR_S, keep.hourly),
        Span::new(DAY_S, keep.daily),
        Span::new(WEEK_S, keep.weekly),
    ];
    let mut dropped = Vec::new();
    for snapshot in newest_first {
        let is_wanted = snapshot.is_pinned || matches!(snapshot.cut, Cut::Asked | Cut::Frozen);
        // Each span counts it, also if another keeps it already.
        let is_kept = spans
            .iter_mut()
            .fold(is_wanted, |is_kept, span| span.takes(snapshot) || is_kept);
        if !is_kept {
            dropped.push(snapshot.number);
        }
    }
    dropped
}

/// Keeps the first of each of so many spans of time, newest first.
struct Span {
    /// 0: each snapshot is one of its own.
    len_s: u64,
    left: u32,
    last: Option<u64>,
}

impl Span {
    fn new(len_s: u64, left: u32) -> Self {
        Self {
            len_s,
            left,
            last: None,
        }
    }

    fn takes(&mut self, snapshot: &Snapshot) -> bool {
        let span = snapshot
            .taken_unix_s
            .checked_div(self.len_s)
            .unwrap_or(snapshot.number);
        if self.left == 0 || self.last == Some(span) {
            return false;
        }
        self.left -= 1;
        self.last = Some(span);
        true
    }
}
