//! Entries as bytes: runs of consecutive extents that are touched at one time, as differences from the run before.
//!
//! ```text
//!   count   varint   entries in all
//!   until count entries are told:
//!     later   varint   milliseconds after the run before
//!     where   varint   place minus the place behind the run before, zigzag; a place is leaf × 8192 + extent
//!     run     varint   (entries − 1) × 2 + (1 if `seen` follows, else it is that of the run before; 1 at first)
//!     seen    varint   in how many boots
//! ```
//!
//! A boot of 26,000 chunks takes about two bytes an entry. The decoder refuses what is out of order, named twice, out of range or
//! above a limit, and makes room only for what the bytes can hold.

use std::collections::HashSet;

use dedup::codec::{CodecError, Reader, write_varint};
use dedup::manifest::{DISK_BYTES_MAX, LEAF_BYTES, LEAF_EXTENTS_MAX};

use super::{AT_MS_MAX, ENTRIES_MAX, Entries, Entry, Place};

/// Extents that a leaf's numbers are apart.
const LEAF_STEP: u64 = LEAF_EXTENTS_MAX as u64;
/// Behind the last place of the largest disk.
const PLACE_END: u64 = DISK_BYTES_MAX / LEAF_BYTES * LEAF_STEP;
/// Most entries in one run: a leaf's.
const RUN_MAX: u64 = LEAF_STEP;

/// Why encoded entries were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntriesError {
    /// Bytes end early, or an integer is malformed.
    #[error("boot profile {0}")]
    Codec(#[from] CodecError),
    /// Too many entries.
    #[error("boot profile of {0} entries, at most {ENTRIES_MAX} are allowed")]
    Count(u64),
    /// A value is out of its range.
    #[error("entry {index} of a boot profile: {what} is out of range")]
    Range {
        /// Which entry.
        index: usize,
        /// Which value.
        what: &'static str,
    },
    /// Not in the order of times and places.
    #[error("entry {0} of a boot profile is out of order")]
    Order(usize),
    /// A place is named twice.
    #[error("entry {0} of a boot profile names a place again")]
    Twice(usize),
    /// Bytes after the last entry.
    #[error("{0} bytes after the last entry of a boot profile")]
    Trailing(usize),
}

fn number(place: Place) -> u64 {
    u64::from(place.leaf) * LEAF_STEP + u64::from(place.extent)
}

fn zigzag(delta: i64) -> u64 {
    (delta << 1 ^ delta >> 63) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Where the run before ended; both ends begin alike.
struct Cursor {
    at_ms: u32,
    place: u64,
    seen: u16,
}

const START: Cursor = Cursor {
    at_ms: 0,
    place: 0,
    seen: 1,
};

/// Entries from `first` that go into one run.
fn run_len(entries: &[Entry]) -> usize {
    let first = entries[0];
    let goes_on = |(index, entry): (usize, &Entry)| {
        entry.at_ms == first.at_ms
            && entry.seen == first.seen
            && entry.place.leaf == first.place.leaf
            && number(entry.place) == number(first.place) + index as u64
    };
    entries
        .iter()
        .enumerate()
        .take_while(|(index, entry)| goes_on((*index, entry)))
        .count()
}

fn write_run(out: &mut Vec<u8>, cursor: &mut Cursor, run: &[Entry]) {
    let first = run[0];
    write_varint(out, u64::from(first.at_ms - cursor.at_ms));
    let delta = number(first.place) as i64 - cursor.place as i64;
    write_varint(out, zigzag(delta));
    let seen_changes = first.seen != cursor.seen;
    write_varint(out, (run.len() as u64 - 1) << 1 | u64::from(seen_changes));
    if seen_changes {
        write_varint(out, u64::from(first.seen));
    }
    *cursor = Cursor {
        at_ms: first.at_ms,
        place: number(first.place) + run.len() as u64,
        seen: first.seen,
    };
}

/// How many of the first entries encode into `bytes_max` bytes. Whole runs only.
pub(super) fn entries_within(entries: &Entries, bytes_max: usize) -> usize {
    // The count before the runs takes three bytes at most.
    let room = bytes_max.saturating_sub(3);
    let mut out = Vec::new();
    let mut cursor = START;
    let mut fits = 0;
    while fits < entries.len() {
        let rest = &entries.as_slice()[fits..];
        let run = run_len(rest);
        write_run(&mut out, &mut cursor, &rest[..run]);
        if out.len() > room {
            break;
        }
        fits += run;
    }
    fits
}

impl Entries {
    /// The bytes of these entries.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.len() * 3);
        write_varint(&mut out, self.len() as u64);
        let mut cursor = START;
        let mut rest = self.as_slice();
        while !rest.is_empty() {
            let (run, behind) = rest.split_at(run_len(rest));
            write_run(&mut out, &mut cursor, run);
            rest = behind;
        }
        out
    }

    /// Parses foreign bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntriesError> {
        let mut reader = Reader::new(bytes);
        let count = reader.varint()?;
        if count > ENTRIES_MAX as u64 {
            return Err(EntriesError::Count(count));
        }
        let count = count as usize;
        let mut entries: Vec<Entry> = Vec::new();
        let mut named = HashSet::new();
        let mut cursor = START;
        while entries.len() < count {
            read_run(&mut reader, &mut cursor, count, &mut entries, &mut named)?;
        }
        if reader.remaining() != 0 {
            return Err(EntriesError::Trailing(reader.remaining()));
        }
        Ok(Self(entries))
    }
}

fn read_run(
    reader: &mut Reader<'_>,
    cursor: &mut Cursor,
    count: usize,
    entries: &mut Vec<Entry>,
    named: &mut HashSet<u64>,
) -> Result<(), EntriesError> {
    let index = entries.len();
    let range = |what| EntriesError::Range { index, what };
    let at_ms = u64::from(cursor.at_ms).checked_add(reader.varint()?);
    let at_ms = at_ms.filter(|at| *at <= u64::from(AT_MS_MAX));
    let at_ms = at_ms.ok_or(range("time"))? as u32;
    let first = cursor.place.checked_add_signed(unzigzag(reader.varint()?));
    let first = first.filter(|place| *place < PLACE_END);
    let first = first.ok_or(range("place"))?;
    let head = reader.varint()?;
    let len = (head >> 1) + 1;
    let room = (count - index) as u64;
    if len > RUN_MAX || len > room || first % LEAF_STEP + len > LEAF_STEP {
        return Err(range("run"));
    }
    let mut seen = cursor.seen;
    if head & 1 == 1 {
        let told = u16::try_from(reader.varint()?).ok();
        seen = told.filter(|s| *s > 0).ok_or(range("count of boots"))?;
    }
    for place in first..first + len {
        let entry = Entry {
            place: Place {
                leaf: (place / LEAF_STEP) as u32,
                extent: (place % LEAF_STEP) as u16,
            },
            at_ms,
            seen,
        };
        let ordered = entries
            .last()
            .is_none_or(|last| (last.at_ms, last.place) < (at_ms, entry.place));
        if !ordered {
            return Err(EntriesError::Order(entries.len()));
        }
        if !named.insert(place) {
            return Err(EntriesError::Twice(entries.len()));
        }
        entries.push(entry);
    }
    *cursor = Cursor {
        at_ms,
        place: first + len,
        seen,
    };
    Ok(())
}
