//! Going through the index: what is not marked is condemned, and erased when it was condemned a grace ago.
//!
//! Records are looked at in runs. What is to change in a run is looked at once more under the gate, where no put can decide that a record
//! is known, and changed in one step. Invariant: what changes is as it was seen, is not waiting for a commit, and no hold keeps it.
//! A crash may lose changes from the end of the sweep, which the next collection makes again.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::mark::{Marks, slice_bounds};
use super::{CollectOptions, CollectPhase, CollectProgress, CollectReport, Control, step};
use crate::chunk_store::Inner;
use crate::error::StoreError;
use crate::index::{ENTRY_PREFIXES, Location, State, damaged_key, entry_key, entry_name};
use crate::kv::{Batch, Durability};
use crate::pack::{PackNumber, RecordKind, RecordName};

/// Records that change in one step: under it puts wait, for some milliseconds.
const CHANGES_MAX: usize = 1024;
/// Records looked at between two calls of the control.
const SEEN_MAX: usize = 16 * 1024;

/// What is wanted of a pack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Readable entries that point into it.
    pub(super) records: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Those of them that are condemned.
    pub(super) condemned_bytes: u64,
}

enum Change {
    Revive,
    Condemn,
    Erase,
}

/// A sweep under way.
pub(super) struct Sweep<'a> {
    inner: &'a Inner,
    grace_hours: u16,
    hour: u16,
    dry_run: bool,
    wanted: BTreeMap<PackNumber, Wanted>,
    seen: u64,
    total: u64,
}

/// Hours since 1970, modulo 2¹⁶: seven years, of which the later half counts as the future.
fn hour_of(now_unix_s: u64) -> u16 {
    (now_unix_s / 3600) as u16
}

/// How long ago `hour` was. A clock that was set back makes nothing older.
fn age_hours(now: u16, hour: u16) -> u16 {
    let age = now.wrapping_sub(hour);
    if age > i16::MAX as u16 { 0 } else { age }
}

impl<'a> Sweep<'a> {
    pub(super) fn new(inner: &'a Inner, options: &CollectOptions, now_unix_s: u64) -> Self {
        let stats = *inner.stats();
        Self {
            inner,
            grace_hours: options.grace_hours,
            hour: hour_of(now_unix_s),
            dry_run: options.dry_run,
            wanted: BTreeMap::new(),
            seen: 0,
            total: stats.chunks + stats.nodes,
        }
    }

    /// Sweeps the chunks of one slice.
    pub(super) fn chunks(
        &mut self,
        marks: &Marks,
        slice: u32,
        slices: u32,
        report: &mut CollectReport,
        control: Control<'_>,
    ) -> Result<(), StoreError> {
        let (from, until) = slice_bounds(slice, slices);
        self.sweep(RecordKind::Chunk, from, until, marks, report, control)
    }

    /// Sweeps all manifest nodes.
    pub(super) fn nodes(
        &mut self,
        marks: &Marks,
        report: &mut CollectReport,
        control: Control<'_>,
    ) -> Result<(), StoreError> {
        self.sweep(RecordKind::Node, 0, 256, marks, report, control)
    }

    /// What is wanted of each pack. Everything that was erased is out of the index, if not durably.
    pub(super) fn finish(self) -> BTreeMap<PackNumber, Wanted> {
        self.wanted
    }

    fn sweep(
        &mut self,
        kind: RecordKind,
        from: u32,
        until: u32,
        marks: &Marks,
        report: &mut CollectReport,
        control: Control<'_>,
    ) -> Result<(), StoreError> {
        let prefix = ENTRY_PREFIXES
            .iter()
            .find(|(k, _)| *k == kind)
            .map(|(_, prefix)| *prefix)
            .expect("every kind has a prefix");
        let bound = |first: u32| [prefix, &[first as u8]].concat();
        let mut next = Some(bound(from));
        let end = (until < 256).then(|| bound(until));
        let inner = self.inner;
        while let Some(start) = next.take() {
            let mut changes = Vec::new();
            let mut bad = None;
            let mut looked = 0;
            inner.kv.scan(prefix, &start, &mut |key, value| {
                if end.as_ref().is_some_and(|end| key >= end.as_slice()) {
                    return ControlFlow::Break(());
                }
                let entry = entry_name(kind, key)
                    .ok_or_else(|| StoreError::BadIndex {
                        what: format!("{kind:?}"),
                        why: format!("a key of {} bytes", key.len()),
                    })
                    .and_then(|name| Ok((name, Location::parse(&name, value)?)));
                let (name, location) = match entry {
                    Ok(entry) => entry,
                    Err(e) => {
                        bad = Some(e);
                        return ControlFlow::Break(());
                    }
                };
                looked += 1;
                match self.verdict(marks.has(&name), &location, report) {
                    None => self.keep(&location),
                    Some(change) => changes.push((name, location, change)),
                }
                if changes.len() < CHANGES_MAX && looked < SEEN_MAX {
                    return ControlFlow::Continue(());
                }
                // The smallest key behind this one.
                next = Some([key, &[0u8][..]].concat());
                ControlFlow::Break(())
            })?;
            if let Some(e) = bad {
                return Err(e);
            }
            self.apply(changes, report)?;
            self.seen += looked as u64;
            let progress = CollectProgress {
                phase: CollectPhase::Sweep,
                done: self.seen,
                total: self.total.max(self.seen),
                io_bytes: 0,
            };
            step(&mut *control, progress)?;
        }
        Ok(())
    }

    /// What is to change of a record, if anything.
    fn verdict(
        &self,
        reachable: bool,
        location: &Location,
        report: &mut CollectReport,
    ) -> Option<Change> {
        match (reachable, location.state) {
            (true, State::Live) => None,
            (true, State::Condemned { .. }) => Some(Change::Revive),
            (true, State::Quarantined) => {
                report.damaged += 1;
                None
            }
            (false, State::Live) => Some(Change::Condemn),
            (false, State::Condemned { hour }) => {
                if age_hours(self.hour, hour) >= self.grace_hours {
                    return Some(Change::Erase);
                }
                report.waiting += 1;
                report.waiting_bytes += location.record_len();
                None
            }
            (false, State::Quarantined) => Some(Change::Erase),
        }
    }

    /// Counts what stays as wanted of its pack.
    fn keep(&mut self, location: &Location) {
        if !location.state.is_readable() {
            return;
        }
        let wanted = self.wanted.entry(location.pack).or_default();
        wanted.records += 1;
        wanted.bytes += location.record_len();
        if location.state != State::Live {
            wanted.condemned_bytes += location.record_len();
        }
    }

    /// Makes the changes of one run, those that still hold.
    fn apply(
        &mut self,
        changes: Vec<(RecordName, Location, Change)>,
        report: &mut CollectReport,
    ) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let inner = self.inner;
        let _gate = inner.gate_exclusive();
        inner.refuse_if_halted()?;
        let mut append = inner.append();
        append.refuse_if_closed()?;
        let held = inner.holds.all();
        let mut batch = Batch::new();
        let mut healed = Vec::new();
        for (name, seen, change) in changes {
            let pending = inner.pending().contains_key(&name);
            if pending || inner.indexed(&name)? != Some(seen) {
                // Stored again, revived or quarantined since. It counts where it was: its pack is left alone if that is not true any more.
                self.keep(&seen);
                continue;
            }
            if !matches!(change, Change::Revive) && held.keeps(&name, &seen) {
                report.held += 1;
                self.keep(&seen);
                continue;
            }
            match change {
                Change::Revive => {
                    report.revived += 1;
                    self.change(&mut batch, &name, &seen, State::Live);
                }
                Change::Condemn => {
                    report.condemned += 1;
                    report.condemned_bytes += seen.record_len();
                    let hour = self.hour;
                    self.change(&mut batch, &name, &seen, State::Condemned { hour });
                }
                Change::Erase => {
                    report.erased += 1;
                    report.erased_bytes += seen.record_len();
                    batch.delete(entry_key(&name));
                    if seen.state == State::Quarantined {
                        batch.delete(damaged_key(&name));
                        healed.push(name);
                    }
                }
            }
        }
        if self.dry_run || batch.is_empty() {
            return Ok(());
        }
        inner.kv.commit(batch, Durability::Relaxed)?;
        append.note_relaxed();
        let mut damaged = inner.damaged();
        for name in &healed {
            damaged.remove(name);
        }
        Ok(())
    }

    fn change(&mut self, batch: &mut Batch, name: &RecordName, seen: &Location, state: State) {
        let location = Location { state, ..*seen };
        batch.put(entry_key(name), location.encode());
        self.keep(&location);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hour_of_condemnation_survives_its_wrapping() {
        assert_eq!(age_hours(5, 5), 0);
        assert_eq!(age_hours(29, 5), 24);
        assert_eq!(age_hours(3, u16::MAX), 4, "over the end of the range");
        assert_eq!(age_hours(5, 6), 0, "a clock that was set back");
        assert_eq!(hour_of(3600 * 65_536 + 7200), 2);
    }
}
