//! The moves of compaction: a task is worked on, stretch by stretch.
//!
//! Invariant: what is appended is what the range holds at that moment. A stretch is read without a lock and appended under the writer's, if
//! the range still is in the very places that were read; else it is left, and found again. It does not choose what to do
//! ([`super::compact`]).

use super::compact::{Goal, Task};
use super::error::OverlayError;
use super::format::{Kind, RECORD_HEADER_BYTES};
use super::index::Content;
use super::map::{Part, Source};
use super::packed::Packed;
use super::writer::Entry;
use super::{Overlay, lock};

/// Most bytes of one move. It is sealed and appended under the writer's lock, where 64 KiB take some 50 µs: what a guest may wait.
const MOVE_BYTES_MAX: u64 = 64 << 10;
/// Extents looked at under one hold of the map's lock.
const SCAN_EXTENTS: usize = 256;
/// Most such looks of one step: where nothing is to be moved a step must end too, because other overlays wait for theirs.
const SCANS_MAX: u32 = 16 << 10;
/// Least extents that one join replaces: fewer save little memory for what they copy.
const JOIN_EXTENTS_MIN: usize = 4;

/// A stretch of a disk to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: u64,
    end: u64,
    /// It is zeros.
    is_zero: bool,
}

impl Overlay {
    /// Goes on with a task for about `budget` bytes: how many it moved, and whether it is done.
    pub(super) fn work(&self, task: &mut Task, budget: u64) -> Result<(u64, bool), OverlayError> {
        let (mut moved, mut scans) = (0, 0);
        while usize::from(task.disk) < self.identity.disks.len() {
            if scans == SCANS_MAX {
                return Ok((moved, false));
            }
            scans += 1;
            let batch = self.map_read().disks[usize::from(task.disk)].scan(task.at, SCAN_EXTENTS);
            let Some(last) = batch.last() else {
                (task.disk, task.at) = (task.disk + 1, 0);
                continue;
            };
            let end = last.end();
            for run in runs(&batch, task.goal) {
                let mut at = run.start;
                while at < run.end {
                    // Payloads by stretches of 64 KiB on the disk's grid, a record each.
                    let stretch_end = (at / MOVE_BYTES_MAX + 1) * MOVE_BYTES_MAX;
                    let (to, more) = if run.is_zero {
                        (run.end, self.move_zeros(task, run)?)
                    } else {
                        let to = run.end.min(stretch_end);
                        (to, self.move_stretch(task, at, to)?)
                    };
                    (at, moved) = (to, moved + more);
                    if moved >= budget {
                        task.at = at;
                        return Ok((moved, false));
                    }
                }
            }
            task.at = end;
        }
        Ok((moved, true))
    }

    /// Moves what is zeros by the segment in this run.
    fn move_zeros(&self, task: &Task, run: Run) -> Result<u64, OverlayError> {
        let Goal::Empty(segment) = task.goal else {
            return Ok(0);
        };
        let mut writer = lock(&self.writer);
        let mut still = Vec::new();
        let map = self.map_read();
        map.disks[usize::from(task.disk)].lookup(run.start, run.end, &mut |start, end, content| {
            if let Some(Content::Zero { segment: of, hole }) = content
                && of == segment
            {
                still.push((start, end, hole));
            }
        });
        // Of zeros only the segment is known.
        let newest = map.segments.get(&segment).map_or(0, |home| home.last_seq);
        drop(map);
        let count = still.len() as u64;
        let origin = self.origin_of(newest);
        for (start, end, hole) in still {
            let entry = Entry {
                kind: if hole { Kind::Discard } else { Kind::Zero },
                origin,
                disk: task.disk,
                offset: start,
                len: end - start,
                data: &[],
            };
            self.append(&mut writer, &entry)?;
        }
        Ok(count * RECORD_HEADER_BYTES as u64)
    }

    /// Moves the payload of `start..end`.
    fn move_stretch(&self, task: &Task, start: u64, end: u64) -> Result<u64, OverlayError> {
        let parts = self.parts(task.disk, start, end - start)?;
        if task.goal == Goal::Join && parts.len() < JOIN_EXTENTS_MIN {
            return Ok(0);
        }
        if !parts.iter().all(|part| is_wanted(part, task.goal)) {
            // A guest wrote here since. What is left of the old is found the next time.
            return Ok(0);
        }
        let mut data = vec![0; (end - start) as usize];
        for part in &parts {
            let into = &mut data[(part.start - start) as usize..(part.end - start) as usize];
            match self.read_part(task.disk, part, into, true) {
                // Joining is for the memory only: what does not verify stays as it is, and the rest goes on.
                Err(_) if task.goal == Goal::Join => return Ok(0),
                read => read?,
            };
        }
        let mut writer = lock(&self.writer);
        if !same(&self.parts(task.disk, start, end - start)?, &parts) {
            return Ok(0);
        }
        let seqs = parts.iter().map(|part| match &part.source {
            Source::Log { seq, .. } => *seq,
            Source::Base | Source::Zero { .. } => 0,
        });
        let newest = seqs.max().unwrap_or(0);
        let entry = Entry {
            kind: Kind::Write,
            origin: self.origin_of(newest),
            disk: task.disk,
            offset: start,
            len: end - start,
            data: &data,
        };
        self.append(&mut writer, &entry)?;
        Ok(end - start)
    }
}

/// What of these extents a task moves, neighbours as one.
fn runs(batch: &[Packed], goal: Goal) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for extent in batch {
        let content = extent.content();
        let is_zero = matches!(content, Content::Zero { .. });
        let is_wanted = match goal {
            Goal::Empty(segment) => content.segment() == segment,
            Goal::Join => !is_zero,
        };
        if !is_wanted {
            continue;
        }
        match runs.last_mut() {
            Some(run) if !is_zero && !run.is_zero && run.end == extent.start() => {
                run.end = extent.end();
            }
            _ => runs.push(Run {
                start: extent.start(),
                end: extent.end(),
                is_zero,
            }),
        }
    }
    runs
}

/// Whether a task moves this part.
fn is_wanted(part: &Part, goal: Goal) -> bool {
    match (&part.source, goal) {
        (Source::Log { place, .. }, Goal::Empty(segment)) => place.segment == segment,
        (Source::Log { .. }, Goal::Join) => true,
        (Source::Base | Source::Zero { .. }, _) => false,
    }
}

/// Whether both are the very same places of the log.
fn same(a: &[Part], b: &[Part]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| match (&a.source, &b.source) {
            (Source::Log { place: of_a, .. }, Source::Log { place: of_b, .. }) => {
                (a.start, a.end, of_a) == (b.start, b.end, of_b)
            }
            _ => false,
        })
}
