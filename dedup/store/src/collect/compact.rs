//! Giving space back: packs of which little is wanted are emptied into the open pack and removed.
//!
//! The order of one pack: its wanted records are copied to the end of the open pack, that pack is synced, then one durable step points
//! the index at the copies and dooms the pack, then the file is removed, then the index forgets it. A crash before the step leaves copies
//! that nothing points at, one behind it a doomed pack that the next opening removes. Packs with nothing wanted go first: they free space
//! without needing any.
//!
//! Invariant: a pack is doomed only if it was closed before the sweep looked at the index, and as many wanted records were found in it,
//! whole, as the sweep counted. So nothing readable points into it, and nothing can come to.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::sweep::Wanted;
use super::{CollectOptions, CollectPhase, CollectProgress, CollectReport, Control, step};
use crate::chunk_store::Inner;
use crate::error::StoreError;
use crate::index::{Location, PackState, REMOVED_KEY, entry_key};
use crate::kv::{Batch, Durability};
use crate::pack::{Found, HEADER_LEN, PackNumber, RecordHeader, RecordName, Records, SEAL_LEN};
use crate::recovery::{pack_states, read_range, remove_doomed, removed_max};

/// Bytes copied between two calls of the control.
const RUN_BYTES_MAX: u64 = 1 << 20;

/// A wanted record of a pack that is emptied.
struct Copied {
    header: RecordHeader,
    stored: Bytes,
    from: Location,
}

/// Empties and removes what is due. `closed` are the packs as they were before the sweep, `wanted` is what it found.
pub(super) fn compact(
    inner: &Inner,
    closed: &BTreeMap<PackNumber, PackState>,
    wanted: &BTreeMap<PackNumber, Wanted>,
    options: &CollectOptions,
    report: &mut CollectReport,
    control: Control<'_>,
) -> Result<(), StoreError> {
    let of = |pack: PackNumber| wanted.get(&pack).copied().unwrap_or_default();
    let mut due = Vec::new();
    for (&pack, &state) in closed {
        if state.closed && !state.doomed && is_due(&state, of(pack), options) {
            due.push((pack, state));
        }
    }
    due.sort_by_key(|(pack, _)| (of(*pack).bytes, *pack));
    let mut progress = CollectProgress {
        phase: CollectPhase::Compact,
        done: 0,
        total: due.iter().map(|(_, state)| state.indexed_len).sum(),
        io_bytes: 0,
    };
    for (pack, state) in due {
        step(&mut *control, progress)?;
        inner.refuse_if_halted()?;
        progress.io_bytes = 0;
        let expected = of(pack);
        let emptied = if options.dry_run {
            let rewritten = u64::from(expected.records > 0);
            report.packs_rewritten += rewritten;
            report.packs_removed += 1 - rewritten;
            report.moved_bytes += expected.bytes;
            report.freed_bytes += state.indexed_len.saturating_sub(expected.bytes);
            Ok(())
        } else if expected.records == 0 {
            doom(inner, pack, &state, &[]).map(|()| {
                report.packs_removed += 1;
                report.freed_bytes += state.indexed_len;
            })
        } else {
            let at = &mut progress;
            empty(inner, pack, &state, expected, report, at, &mut *control)
        };
        match emptied {
            Ok(()) => {}
            Err(e) if e.is_no_space() => {
                tracing::warn!(error = %e, "rewriting packs ends early; free space and collect again");
                report.out_of_space = true;
                break;
            }
            Err(e) => return Err(e),
        }
        progress.done += state.indexed_len;
    }
    step(&mut *control, progress)?;
    if !options.dry_run {
        match close_open_pack(inner, closed, wanted, options) {
            Err(e) if e.is_no_space() => report.out_of_space = true,
            other => other?,
        }
        remove_left_over(inner)?;
    }
    let left = pack_states(&*inner.kv)?;
    report.dead_bytes = left
        .iter()
        .filter(|(pack, _)| closed.contains_key(pack))
        .map(|(pack, state)| state.indexed_len.saturating_sub(of(*pack).bytes))
        .sum();
    Ok(())
}

/// Whether so little of a pack is wanted that rewriting it pays. One without anything is not worth its file either.
fn is_due(state: &PackState, wanted: Wanted, options: &CollectOptions) -> bool {
    let room = state
        .indexed_len
        .saturating_sub((HEADER_LEN + SEAL_LEN) as u64);
    wanted.records == 0 || wanted.bytes * 100 < room * u64::from(options.compact_below_percent)
}

/// Moves what is wanted of a pack and removes it.
fn empty(
    inner: &Inner,
    pack: PackNumber,
    state: &PackState,
    expected: Wanted,
    report: &mut CollectReport,
    progress: &mut CollectProgress,
    control: Control<'_>,
) -> Result<(), StoreError> {
    let found = match find_wanted(inner, pack, state) {
        // A pack that cannot be read keeps nothing from the others.
        Err(StoreError::Io { .. }) => Vec::new(),
        other => other?,
    };
    if found.len() as u64 != expected.records {
        tracing::warn!(
            %pack,
            found = found.len(),
            expected = expected.records,
            "a pack is not rewritten: not all that is wanted in it was found whole; a scrub tells more"
        );
        report.packs_damaged += 1;
        return Ok(());
    }
    let mut moved = Vec::with_capacity(found.len());
    progress.io_bytes = state.indexed_len;
    let mut rest = &found[..];
    while !rest.is_empty() {
        step(&mut *control, *progress)?;
        let places = copy_run(inner, rest)?;
        let (done, later) = rest.split_at(places.len());
        progress.io_bytes = 0;
        for (copied, to) in done.iter().zip(places) {
            progress.io_bytes += to.record_len();
            moved.push((copied.header.name, copied.from, to));
        }
        report.moved_bytes += progress.io_bytes;
        rest = later;
    }
    drop(found);
    let moved_bytes: u64 = moved.iter().map(|(_, _, to)| to.record_len()).sum();
    doom(inner, pack, state, &moved)?;
    report.packs_rewritten += 1;
    report.freed_bytes += state.indexed_len.saturating_sub(moved_bytes);
    Ok(())
}

/// The whole records of a pack that the index points at.
fn find_wanted(
    inner: &Inner,
    pack: PackNumber,
    state: &PackState,
) -> Result<Vec<Copied>, StoreError> {
    let file = inner.file(pack)?;
    let bytes = read_range(&*file, pack, 0, state.indexed_len)?;
    let body = bytes.slice(HEADER_LEN.min(bytes.len())..);
    let mut wanted = Vec::new();
    for found in Records::new(body, HEADER_LEN as u64, pack) {
        let Found::Record {
            offset,
            header,
            stored,
            ..
        } = found
        else {
            continue;
        };
        let Some(from) = inner.indexed(&header.name)? else {
            continue;
        };
        let here = from.pack == pack && u64::from(from.offset) == offset;
        if here && from.state.is_readable() && header.check_stored(&stored).is_ok() {
            wanted.push(Copied {
                header,
                stored,
                from,
            });
        }
    }
    Ok(wanted)
}

/// Copies as many of `rest` as belong into one write, at least the first. Nothing points at the copies yet.
fn copy_run(inner: &Inner, rest: &[Copied]) -> Result<Vec<Location>, StoreError> {
    let mut append = inner.append_with_room(rest[0].header.record_len())?;
    let Some(open) = &append.open else {
        unreachable!("there is room in it");
    };
    let (start, mut len, mut tally) = (open.len, open.len, open.tally);
    let mut bytes = Vec::new();
    let mut places = Vec::new();
    for copied in rest {
        let record_len = copied.header.record_len();
        let sealed_len = len + record_len + SEAL_LEN as u64;
        let full = sealed_len > inner.options.pack_bytes && len != HEADER_LEN as u64;
        if full || (len + record_len - start > RUN_BYTES_MAX && !places.is_empty()) {
            break;
        }
        let encoded = copied.header.encode(open.number, len);
        bytes.extend_from_slice(&encoded);
        bytes.extend_from_slice(&copied.stored);
        tally.add(&copied.header, &encoded);
        places.push(Location {
            pack: open.number,
            offset: u32::try_from(len).expect("packs are shorter than 4 GiB"),
            ..copied.from
        });
        len += record_len;
    }
    if let Err(e) = open.file.write_at(start, &bytes) {
        return Err(inner.write_failed(&mut append, e));
    }
    let Some(open) = &mut append.open else {
        unreachable!("it was open above");
    };
    (open.len, open.tally) = (len, tally);
    let mut stats = inner.stats();
    for copied in &rest[..places.len()] {
        stats.count(&copied.header, copied.header.record_len());
    }
    Ok(places)
}

/// Points the index at the copies and dooms the pack in one durable step, then removes it.
fn doom(
    inner: &Inner,
    pack: PackNumber,
    state: &PackState,
    moved: &[(RecordName, Location, Location)],
) -> Result<(), StoreError> {
    {
        let mut append = inner.append();
        append.refuse_if_closed()?;
        inner.sync_packs(&mut append)?;
        let mut batch = Batch::new();
        for (name, from, to) in moved {
            // Quarantined or stored again elsewhere since: then nothing points at the copy. Its state may have changed too.
            if let Some(now) = inner.indexed(name)?
                && now.is_at(from)
                && now.state.is_readable()
            {
                let location = Location {
                    state: now.state,
                    ..*to
                };
                batch.put(entry_key(name), location.encode());
            }
        }
        let doomed = PackState {
            closed: true,
            doomed: true,
            ..*state
        };
        batch.put(PackState::key(pack), doomed.encode());
        let highest = removed_max(&*inner.kv)?.max(Some(pack)).unwrap_or(pack);
        batch.put(REMOVED_KEY, highest.0.to_le_bytes());
        inner.index_pending(&mut append, Durability::Synced, batch)?;
    }
    {
        let mut stats = inner.stats();
        stats.packs = stats.packs.saturating_sub(1);
        stats.chunks = stats.chunks.saturating_sub(state.tally.chunks.into());
        stats.nodes = stats.nodes.saturating_sub(state.tally.nodes.into());
        stats.raw_bytes = stats.raw_bytes.saturating_sub(state.tally.raw_bytes);
        stats.pack_bytes = stats.pack_bytes.saturating_sub(state.indexed_len);
    }
    let removed = remove_doomed(&*inner.disk, &*inner.kv, pack);
    // Readers that have it open go on with what they have; nobody else gets it from here.
    inner.handles.forget(pack);
    removed?;
    tracing::debug!(%pack, moved = moved.len(), "a pack is removed");
    Ok(())
}

/// Removes packs that an earlier collection doomed and whose files could not be removed then.
fn remove_left_over(inner: &Inner) -> Result<(), StoreError> {
    for (pack, state) in pack_states(&*inner.kv)? {
        if state.doomed {
            remove_doomed(&*inner.disk, &*inner.kv, pack)?;
        }
    }
    Ok(())
}

/// Ends the pack that grows, if little of what was in it before the sweep will be wanted when what was condemned is erased: only closed
/// packs are rewritten, by the next collection.
fn close_open_pack(
    inner: &Inner,
    before: &BTreeMap<PackNumber, PackState>,
    wanted: &BTreeMap<PackNumber, Wanted>,
    options: &CollectOptions,
) -> Result<(), StoreError> {
    let sealed = {
        let mut append = inner.append();
        append.refuse_if_closed()?;
        let Some(number) = append.open.as_ref().map(|open| open.number) else {
            return Ok(());
        };
        let Some(state) = before.get(&number) else {
            return Ok(());
        };
        let room = state.indexed_len.saturating_sub(HEADER_LEN as u64);
        let wanted = wanted.get(&number).copied().unwrap_or_default();
        let lasting = wanted.bytes - wanted.condemned_bytes;
        if room == 0 || lasting * 100 >= room * u64::from(options.compact_below_percent) {
            return Ok(());
        }
        inner.seal(&mut append)?
    };
    inner.settle(&sealed)
}
