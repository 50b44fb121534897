//! The end of a log that was read back: cut where it ends, and made durable.
//!
//! Order: the torn tail goes first, from its end, so that a stop in between leaves a log that is cut at the same place; then what replay
//! accepted without proof is written again and synced. After that everything that the map says is on the medium. It decides nothing:
//! [`super::replay`] says where the log ends.

use std::collections::BTreeMap;
use std::io;

use dedup_store::disk::{Disk, DiskFile};

use super::error::OverlayError;
use super::format::SEGMENT_HEADER_BYTES;
use super::open::io_error;
use super::replay::{Cut, Found, Replayed};

/// Bytes copied at a time when the unproven tail is written again.
const REWRITE_BYTES: u64 = 1 << 20;

/// Cuts the torn tail, and makes durable what replay accepted without proof that it is.
pub fn settle_tail(
    disk: &dyn Disk,
    dir: &str,
    found: &BTreeMap<u32, Found>,
    replayed: &mut Replayed,
) -> Result<(), OverlayError> {
    if let Some(cut) = replayed.cut.take() {
        cut_tail(disk, dir, found, &cut)?;
        if cut.position == 0 {
            replayed.map.segments.remove(&cut.segment);
        }
    }
    let mut from: BTreeMap<u32, u64> = BTreeMap::new();
    for &(_, segment, position) in &replayed.unproven {
        from.entry(segment).or_insert(position);
    }
    let segments = &replayed.map.segments;
    let last = segments.keys().next_back().copied().unwrap_or(0);
    let first_unproven = from.keys().next().copied().unwrap_or(last);
    // One more: the segment before may end in the remains of an append that a full disk refused.
    let first = segments
        .range(..first_unproven)
        .next_back()
        .map_or(first_unproven, |(&number, _)| number);
    for (number, segment) in segments.range(first..) {
        let start = match from.get(number) {
            // The header of a segment is as unproven as its first record.
            Some(&start) if start == SEGMENT_HEADER_BYTES as u64 => 0,
            Some(&start) => start,
            None => segment.len,
        };
        // A failed write-back in an earlier process may have left pages that read well, count as clean and are not on the disk:
        // syncing them does nothing. Written again they are dirty, and the sync covers them.
        segment
            .file
            .truncate(segment.len)
            .and_then(|()| rewrite(&*segment.file, start, segment.len))
            .and_then(|()| segment.file.sync())
            .map_err(|e| io_error(dir, &segment.name, "make its tail durable", e))?;
    }
    disk.sync_dir(dir)
        .map_err(|e| io_error(dir, dir, "sync the directory", e))
}

fn cut_tail(
    disk: &dyn Disk,
    dir: &str,
    found: &BTreeMap<u32, Found>,
    cut: &Cut,
) -> Result<(), OverlayError> {
    if !cut.is_end {
        tracing::warn!(
            overlay = dir,
            segment = cut.segment,
            position = cut.position,
            why = cut.why,
            "cutting the log's torn tail, which no flush had covered"
        );
    }
    // From the end, so that a stop in between leaves a log that is cut at the same place.
    for (&number, segment) in found.range(cut.segment..).rev() {
        if number > cut.segment || cut.position == 0 {
            disk.remove(&segment.name)
                .map_err(|e| io_error(dir, &segment.name, "remove", e))?;
        } else {
            segment
                .file
                .truncate(cut.position)
                .and_then(|()| segment.file.sync())
                .map_err(|e| io_error(dir, &segment.name, "cut", e))?;
        }
    }
    disk.sync_dir(dir)
        .map_err(|e| io_error(dir, dir, "sync the directory", e))
}

fn rewrite(file: &dyn DiskFile, mut from: u64, end: u64) -> io::Result<()> {
    while from < end {
        let mut bytes = vec![0; (end - from).min(REWRITE_BYTES) as usize];
        file.read_at(from, &mut bytes)?;
        file.write_at(from, &bytes)?;
        from += bytes.len() as u64;
    }
    Ok(())
}
