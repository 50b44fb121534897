//! Packs into a backup's folder: each is copied once in its life, and proven whenever it is taken over instead.
//!
//! Invariant: an entry is answered only for a pack that lies whole in the folder, under the hash that the entry has. What the former backup
//! names is never written over with anything else.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use datacenter_api::Phase;
use dedup_store::{ChunkStore, ClosedPack, FrozenPacks, PACK_DIR};

use super::folder::{Folder, Sum};
use super::manifest::{Manifest, PackEntry};
use super::{BackupError, Source};
use crate::operations::Meter;

/// No pack that the former backup names is ever written over with another one. That would be asked for by a datacenter that was restored from an
/// older backup than this one.
pub(super) fn refuse_diverged(
    folder: &Folder,
    former: &Manifest,
    closed: &[ClosedPack],
) -> Result<(), BackupError> {
    let differs = |pack: &&ClosedPack| {
        let entry = former.pack(pack.pack);
        entry.is_some_and(|entry| entry.digest != pack.digest)
    };
    match closed.iter().find(differs) {
        Some(pack) => Err(BackupError::Diverged {
            folder: folder.shown().into(),
            pack: pack.pack,
        }),
        None => Ok(()),
    }
}

/// What came of it.
pub(super) struct Packs {
    /// All of them.
    pub(super) entries: Vec<PackEntry>,
    /// Those that were copied now.
    pub(super) copied: u64,
    /// Their bytes.
    pub(super) copied_bytes: u64,
}

/// Brings every closed pack into the folder, unless it is there.
pub(super) fn copy_packs(
    source: &Source<'_>,
    folder: &Folder,
    former: Option<&Manifest>,
    frozen: &FrozenPacks<'_>,
    closed: &[ClosedPack],
    verify: bool,
    meter: &Meter,
) -> Result<Packs, BackupError> {
    meter.begin(Phase::Copy, closed.iter().map(|pack| pack.len).sum());
    let names = folder.list(PACK_DIR)?;
    let there: HashSet<&str> = names.iter().map(String::as_str).collect();
    let mut packs = Packs {
        entries: Vec::with_capacity(closed.len()),
        copied: 0,
        copied_bytes: 0,
    };
    for pack in closed {
        if meter.is_cancelled() {
            return Err(BackupError::Cancelled);
        }
        let path = pack.pack.path();
        let known = former
            .and_then(|former| former.pack(pack.pack))
            .filter(|entry| entry.digest == pack.digest && entry.sum.bytes == pack.len);
        let is_there = path
            .strip_prefix(PACK_DIR)
            .is_some_and(|name| there.contains(name.trim_start_matches('/')));
        let kept = match (known, is_there) {
            (_, false) => None,
            (Some(entry), true) => kept_pack(folder, entry, verify)?,
            (None, true) => left_over_pack(source, folder, pack)?,
        };
        let entry = match kept {
            Some(entry) => entry,
            None => {
                let entry = copy_pack(folder, frozen, pack)?;
                packs.copied += 1;
                packs.copied_bytes += entry.sum.bytes;
                meter
                    .stored_bytes
                    .fetch_add(entry.sum.bytes, Ordering::Relaxed);
                entry
            }
        };
        packs.entries.push(entry);
        meter.advance(pack.len);
    }
    Ok(packs)
}

/// A pack that the former backup has: as it is, unless it must be copied again. With `verify` its bytes are proven.
fn kept_pack(
    folder: &Folder,
    entry: &PackEntry,
    verify: bool,
) -> Result<Option<PackEntry>, BackupError> {
    let path = entry.pack.path();
    if folder.len(&path)? != Some(entry.sum.bytes) {
        tracing::warn!(pack = %entry.pack, "a pack in the backup has another length than was written; it is copied again");
        return Ok(None);
    }
    if verify && folder.stream(&path, &mut |_| {})? != Some(entry.sum) {
        tracing::warn!(pack = %entry.pack, "a pack in the backup is damaged; it is copied again");
        return Ok(None);
    }
    Ok(Some(*entry))
}

/// A pack that a backup left which did not come to its end: taken over if it proves to be the one in the store, sound in every record.
fn left_over_pack(
    source: &Source<'_>,
    folder: &Folder,
    pack: &ClosedPack,
) -> Result<Option<PackEntry>, BackupError> {
    let Some(Ok(bytes)) = folder.get(&pack.pack.path(), pack.len)? else {
        return Ok(None);
    };
    let sum = Sum::of(&bytes);
    let bytes = Bytes::from(bytes);
    // Another realm's or a torn one is as good as none.
    let proof = ChunkStore::prove_pack(&bytes, pack.pack, source.id_key, source.realm).ok();
    let same = proof.is_some_and(|proof| proof.damaged == 0 && proof.digest == pack.digest);
    Ok((same && sum.bytes == pack.len).then_some(PackEntry {
        pack: pack.pack,
        sum,
        digest: pack.digest,
        damaged: 0,
    }))
}

fn copy_pack(
    folder: &Folder,
    frozen: &FrozenPacks<'_>,
    pack: &ClosedPack,
) -> Result<PackEntry, BackupError> {
    let (bytes, proof) = frozen.read(pack)?;
    if proof.damaged > 0 {
        tracing::error!(pack = %pack.pack, damaged = proof.damaged, "a pack is damaged in the store; it is backed up as it is");
    }
    Ok(PackEntry {
        pack: pack.pack,
        sum: folder.put(&pack.pack.path(), &bytes)?,
        digest: pack.digest,
        damaged: proof.damaged,
    })
}
