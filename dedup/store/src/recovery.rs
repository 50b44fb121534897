//! What an opening does before anything else: takes records that the index does not know into it, and cuts torn ends off.
//!
//! Packs are the truth. A pack that the index knows as closed is not touched. Any other is read from where the index ends; what
//! is whole there was put but not committed, and is kept, because the publish that was killed will ask for it again. A pack that a
//! collection emptied and did not live to remove is removed.
//!
//! Invariant: bytes found behind the index are written again before they are synced and indexed. After a sync that failed, the
//! kernel shows bytes that the medium does not have and reports no error for them a second time; only new writes make it try.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use dedup::{IdKey, RealmId};

use crate::append::{Append, OpenPack};
use crate::chunk_store::{ChunkStore, StoreStats};
use crate::disk::{Disk, DiskFile, Open};
use crate::error::StoreError;
use crate::index::{
    DAMAGED_PREFIX, ENTRY_PREFIXES, HALT_KEY, Location, META_KEY, PACK_PREFIX, PackState,
    REMOVED_KEY, State, check_meta, damaged_key, damaged_name, encode_meta, entry_key, entry_name,
};
use crate::kv::{Batch, Durability, Kv};
use crate::pack::{
    Found, HEADER_LEN, HeaderError, PACK_BYTES_MAX, PACK_DIR, PackHeader, PackNumber, RecordName,
    Records, Tally,
};

/// Longest pack file that is read: one record may reach past the limit at which a pack is sealed.
const READ_BYTES_MAX: u64 = PACK_BYTES_MAX + 2 * 1024 * 1024;

/// Bytes of a pack that are not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The pack file.
    pub pack: PackNumber,
    /// Where the damage begins, in bytes.
    pub offset: u64,
    /// How far it reaches, in bytes.
    pub len: u64,
    /// The record it hits, where that is known.
    pub name: Option<RecordName>,
    /// What does not match.
    pub why: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} offset {}+{}: ", self.pack, self.offset, self.len)?;
        if let Some(name) = &self.name {
            write!(f, "{name}: ")?;
        }
        f.write_str(&self.why)
    }
}

/// What an opening found and repaired.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Records that were in packs but not in the index.
    pub records_indexed: u64,
    /// Torn bytes that were cut off pack ends.
    pub bytes_cut: u64,
    /// Packs that the index knows and the disk does not have. Their records cannot be read.
    pub packs_missing: Vec<PackNumber>,
    /// Damage that was passed over.
    pub damaged: Vec<Damage>,
}

/// What a rebuild of the index found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// Pack files read.
    pub packs: u64,
    /// Records that are in the index now.
    pub records: u64,
    /// Torn bytes that were cut off the last pack.
    pub bytes_cut: u64,
    /// Damage that was passed over; what it hit is not in the index.
    pub damaged: Vec<Damage>,
}

/// What [`ChunkStore::open`] starts with.
pub(crate) struct Opened {
    pub(crate) append: Append,
    pub(crate) stats: StoreStats,
    pub(crate) damaged: BTreeSet<RecordName>,
    pub(crate) halted: Option<String>,
    pub(crate) recovery: Recovery,
}

/// What lies in a piece of a pack.
pub(crate) struct PackScan {
    /// Sound records, in order. Their names are proven.
    pub(crate) records: Vec<(RecordName, Location)>,
    pub(crate) tally: Tally,
    /// Where the last sound record or the seal ends.
    pub(crate) good_end: u64,
    pub(crate) sealed: bool,
    pub(crate) damaged: Vec<Damage>,
}

/// Reads the records in `bytes`, which lie at `base` of `pack` behind the records that `tally` counts.
pub(crate) fn scan(
    bytes: Bytes,
    base: u64,
    pack: PackNumber,
    key: &IdKey,
    tally: Tally,
    stop_at_damage: bool,
) -> PackScan {
    let mut scan = PackScan {
        records: Vec::new(),
        tally,
        good_end: base,
        sealed: false,
        damaged: Vec::new(),
    };
    for found in Records::new(bytes, base, pack) {
        let damage = match found {
            Found::Record {
                offset,
                header,
                encoded,
                stored,
            } => match (header.open(key, &stored), u32::try_from(offset)) {
                (Ok(_), Ok(short)) => {
                    scan.tally.add(&header, &encoded);
                    scan.good_end = offset + header.record_len();
                    scan.records.push((
                        header.name,
                        Location {
                            state: State::Live,
                            encoding: header.encoding,
                            pack,
                            offset: short,
                            raw_len: header.raw_len,
                            stored_len: header.stored_len,
                        },
                    ));
                    continue;
                }
                (opened, _) => Damage {
                    pack,
                    offset,
                    len: header.record_len(),
                    name: Some(header.name),
                    why: opened.err().unwrap_or_else(|| "it lies past 4 GiB".into()),
                },
            },
            Found::Seal { end, tally } => {
                scan.good_end = end;
                scan.sealed = true;
                // Behind skipped damage the counts differ anyway.
                if tally == scan.tally || !scan.damaged.is_empty() {
                    continue;
                }
                Damage {
                    pack,
                    offset: base,
                    len: end - base,
                    name: None,
                    why: "its seal counts other records than it holds".into(),
                }
            }
            Found::Damage { offset, len, why } => Damage {
                pack,
                offset,
                len,
                name: None,
                why,
            },
        };
        scan.damaged.push(damage);
        if stop_at_damage {
            break;
        }
    }
    scan
}

/// The pack files on the disk, in order.
pub(crate) fn pack_files(disk: &dyn Disk) -> Result<Vec<PackNumber>, StoreError> {
    let names = disk
        .list(PACK_DIR)
        .map_err(|e| StoreError::io(format!("list {PACK_DIR}"), e))?;
    let mut packs: Vec<PackNumber> = names
        .iter()
        .filter_map(|name| PackNumber::from_file_name(name))
        .collect();
    packs.sort_unstable();
    Ok(packs)
}

/// The packs that the index knows.
pub(crate) fn pack_states(kv: &dyn Kv) -> Result<BTreeMap<PackNumber, PackState>, StoreError> {
    let mut states = BTreeMap::new();
    let mut bad = None;
    kv.scan(
        PACK_PREFIX,
        PACK_PREFIX,
        &mut |key, value| match PackState::parse(key, value) {
            Ok((number, state)) => {
                states.insert(number, state);
                ControlFlow::Continue(())
            }
            Err(e) => {
                bad = Some(e);
                ControlFlow::Break(())
            }
        },
    )?;
    bad.map_or(Ok(states), Err)
}

/// Reads `[from, len)` of a pack.
pub(crate) fn read_range(
    file: &dyn DiskFile,
    pack: PackNumber,
    from: u64,
    len: u64,
) -> Result<Bytes, StoreError> {
    if len > READ_BYTES_MAX {
        return Err(StoreError::BadPack {
            pack,
            why: format!("it has {len} bytes, more than any pack"),
        });
    }
    let mut bytes = vec![0; len.saturating_sub(from) as usize];
    file.read_at(from, &mut bytes)
        .map_err(|e| StoreError::io(format!("read {pack}"), e))?;
    Ok(bytes.into())
}

/// Whether a pack's header is ours. `Ok(Err)` says what is broken in a file that may be ours all the same.
pub(crate) fn check_header(
    bytes: &[u8],
    pack: PackNumber,
    key: &IdKey,
    realm: RealmId,
) -> Result<Result<(), HeaderError>, StoreError> {
    let header = match PackHeader::parse(bytes) {
        Ok(header) => header,
        Err(e @ HeaderError::Version(_)) => {
            return Err(StoreError::BadPack {
                pack,
                why: e.to_string(),
            });
        }
        Err(e) => return Ok(Err(e)),
    };
    if header.realm != realm {
        return Err(StoreError::ForeignRealm {
            pack,
            found: header.realm,
            expected: realm,
        });
    }
    if header.key_id != key.key_id() {
        return Err(StoreError::ForeignKey {
            pack,
            found: header.key_id,
            expected: key.key_id(),
        });
    }
    if header.pack != pack {
        return Err(StoreError::BadPack {
            pack,
            why: format!("it was written as {}; give it its name back", header.pack),
        });
    }
    Ok(Ok(()))
}

/// A pack whose records the index knows all.
struct CaughtUp {
    state: PackState,
    file: Arc<dyn DiskFile>,
}

/// Opens packs and index for one owner.
struct Opener<'a> {
    disk: &'a dyn Disk,
    kv: &'a dyn Kv,
    key: &'a IdKey,
    realm: RealmId,
    recovery: Recovery,
}

pub(crate) fn open_packs(
    disk: &dyn Disk,
    kv: &dyn Kv,
    key: &IdKey,
    realm: RealmId,
) -> Result<Opened, StoreError> {
    let dir = |e| StoreError::io(PACK_DIR, e);
    disk.create_dir(PACK_DIR).map_err(dir)?;
    let mut files = pack_files(disk)?;
    match kv.get(META_KEY)? {
        Some(meta) => {
            if check_meta(&meta, realm, key.key_id())? < 2 {
                list_damage(kv, realm, key)?;
            }
        }
        None if files.is_empty() => {
            let mut batch = Batch::new();
            batch.put(META_KEY, encode_meta(realm, key.key_id()));
            kv.commit(batch, Durability::Synced)?;
        }
        None => return Err(StoreError::IndexMissing { packs: files.len() }),
    }
    // Names that a killed process left in the kernel must be as durable as the index entries to come.
    disk.sync_dir(PACK_DIR).map_err(dir)?;
    let mut opener = Opener {
        disk,
        kv,
        key,
        realm,
        recovery: Recovery::default(),
    };
    let mut states = pack_states(kv)?;
    let mut removed = removed_max(kv)?;
    for (&pack, _) in states.iter().filter(|(_, state)| state.doomed) {
        remove_doomed(disk, kv, pack)?;
        files.retain(|file| *file != pack);
        removed = removed.max(Some(pack));
    }
    states.retain(|_, state| !state.doomed);
    let mut open = None;
    for &pack in &files {
        let state = states.get(&pack).copied();
        if state.is_some_and(|s| s.closed) {
            continue;
        }
        let last = files.last() == Some(&pack);
        if let Some(CaughtUp { state, file }) = opener.catch_up(pack, state, last)? {
            states.insert(pack, state);
            if !state.closed {
                open = Some(OpenPack::new(pack, file, state.indexed_len, state.tally));
            }
        }
    }
    for pack in states.keys() {
        if files.binary_search(pack).is_err() {
            tracing::error!(%pack, "a pack file is missing; its chunks cannot be read");
            opener.recovery.packs_missing.push(*pack);
        }
    }
    let next = files.last().max(states.keys().next_back());
    let next = next.max(removed.as_ref());
    let next = PackNumber(next.map_or(1, |last| last.0 + 1));
    Ok(Opened {
        append: Append::new(open, next),
        stats: count(&states),
        damaged: listed_damage(kv)?,
        halted: kv
            .get(HALT_KEY)?
            .map(|text| String::from_utf8_lossy(&text).into_owned()),
        recovery: opener.recovery,
    })
}

/// The highest number of a pack that a collection removed.
pub(crate) fn removed_max(kv: &dyn Kv) -> Result<Option<PackNumber>, StoreError> {
    let value = kv.get(REMOVED_KEY)?;
    let number = value.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    Ok(number.map(|bytes| PackNumber(u64::from_le_bytes(bytes))))
}

/// Removes the file of a pack that nothing points into, then what the index has of it. In this order, so that a crash between the two
/// leaves work for the next opening and not a file that would be taken for an unknown pack.
pub(crate) fn remove_doomed(
    disk: &dyn Disk,
    kv: &dyn Kv,
    pack: PackNumber,
) -> Result<(), StoreError> {
    let io = |e| StoreError::io(format!("remove {pack}"), e);
    match disk.remove(&pack.path()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
        _ => disk.sync_dir(PACK_DIR).map_err(io)?,
    }
    let mut batch = Batch::new();
    batch.delete(PackState::key(pack));
    kv.commit(batch, Durability::Relaxed)?;
    Ok(())
}

fn listed_damage(kv: &dyn Kv) -> Result<BTreeSet<RecordName>, StoreError> {
    let mut damaged = BTreeSet::new();
    kv.scan(DAMAGED_PREFIX, DAMAGED_PREFIX, &mut |key, _| {
        damaged.extend(damaged_name(key));
        ControlFlow::Continue(())
    })?;
    Ok(damaged)
}

/// Makes an index of version 1, which kept no list of damaged records, one of the present version. Reads all of it, once.
fn list_damage(kv: &dyn Kv, realm: RealmId, key: &IdKey) -> Result<(), StoreError> {
    let mut batch = Batch::new();
    for (kind, prefix) in ENTRY_PREFIXES {
        kv.scan(prefix, prefix, &mut |entry, value| {
            if let Some(name) = entry_name(kind, entry)
                && Location::parse(&name, value).is_ok_and(|l| l.state == State::Quarantined)
            {
                batch.put(damaged_key(&name), [0u8; 0]);
            }
            ControlFlow::Continue(())
        })?;
    }
    batch.put(META_KEY, encode_meta(realm, key.key_id()));
    kv.commit(batch, Durability::Synced)?;
    Ok(())
}

fn count(states: &BTreeMap<PackNumber, PackState>) -> StoreStats {
    let mut stats = StoreStats::default();
    for state in states.values() {
        stats.packs += 1;
        stats.chunks += u64::from(state.tally.chunks);
        stats.nodes += u64::from(state.tally.nodes);
        stats.raw_bytes += state.tally.raw_bytes;
        stats.pack_bytes += state.indexed_len;
    }
    stats
}

impl Opener<'_> {
    /// Brings the index up to a pack that may have more than it knows. `None` if the file held nothing and was removed.
    fn catch_up(
        &mut self,
        pack: PackNumber,
        known: Option<PackState>,
        last: bool,
    ) -> Result<Option<CaughtUp>, StoreError> {
        let io = |e| StoreError::io(format!("recover {pack}"), e);
        let file = self.disk.open(&pack.path(), Open::Write).map_err(io)?;
        let len = file.len().map_err(io)?;
        let indexed = known.map_or(0, |state| state.indexed_len);
        if len < indexed {
            self.note(Damage {
                pack,
                offset: len,
                len: indexed - len,
                name: None,
                why: "the file is shorter than what was synced".into(),
            });
            let state = known.map(|state| PackState {
                closed: true,
                ..state
            });
            return Ok(state.map(|state| CaughtUp { state, file }));
        }
        let tail = read_range(&*file, pack, indexed, len)?;
        let mut header_ok = true;
        if known.is_none() {
            match check_header(&tail, pack, self.key, self.realm)? {
                Ok(()) => {}
                // The header is durable before a record follows it, so there can be none.
                Err(_) if len <= HEADER_LEN as u64 => {
                    self.disk.remove(&pack.path()).map_err(io)?;
                    self.disk.sync_dir(PACK_DIR).map_err(io)?;
                    return Ok(None);
                }
                Err(e) => {
                    header_ok = false;
                    self.note(Damage {
                        pack,
                        offset: 0,
                        len: HEADER_LEN as u64,
                        name: None,
                        why: e.to_string(),
                    });
                }
            }
        }
        let base = indexed.max(HEADER_LEN as u64);
        let body = tail.slice((base - indexed) as usize..);
        let tally = known.map_or_else(Tally::default, |state| state.tally);
        // What follows damage here was never committed, so nothing is lost that anyone was promised.
        let scan = scan(body, base, pack, self.key, tally, true);
        if len > scan.good_end {
            tracing::warn!(%pack, from = scan.good_end, to = len, "cutting a torn pack end");
            self.recovery.bytes_cut += len - scan.good_end;
            file.truncate(scan.good_end).map_err(io)?;
        }
        let state = PackState {
            indexed_len: scan.good_end,
            closed: scan.sealed || !last || !header_ok,
            doomed: false,
            tally: scan.tally,
        };
        if len != indexed || known.is_none() {
            let sound = tail.slice(..(scan.good_end - indexed) as usize);
            file.write_at(indexed, &sound).map_err(io)?;
            file.sync().map_err(io)?;
        }
        if known != Some(state) {
            self.index(pack, &scan, &state)?;
        }
        Ok(Some(CaughtUp { state, file }))
    }

    fn note(&mut self, damage: Damage) {
        tracing::error!(%damage, "damaged pack");
        self.recovery.damaged.push(damage);
    }

    fn index(
        &mut self,
        pack: PackNumber,
        scan: &PackScan,
        state: &PackState,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for (name, location) in &scan.records {
            let key = entry_key(name);
            let known = match self.kv.get(&key)? {
                Some(value) => Some(Location::parse(name, &value)?.state),
                None => None,
            };
            // An entry that is there is older, so what it points at was committed.
            if known.is_none_or(|state| !state.is_readable()) {
                batch.put(key, location.encode());
                self.recovery.records_indexed += 1;
            }
            if known == Some(State::Quarantined) {
                batch.delete(damaged_key(name));
            }
        }
        batch.put(PackState::key(pack), state.encode());
        self.kv.commit(batch, Durability::Synced)?;
        Ok(())
    }
}

impl ChunkStore {
    /// Makes a new index from the packs alone, for when the key-value store was lost or is damaged; then [`Self::open`] works
    /// again. Reads and proves every record, so it takes as long as reading the disk. Calls `progress(packs done, packs)`.
    ///
    /// Damage is passed over and reported; what was quarantined is proven anew. A rebuild that is interrupted starts over.
    pub fn rebuild_index(
        disk: &dyn Disk,
        kv: &dyn Kv,
        key: &IdKey,
        realm: RealmId,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<RebuildReport, StoreError> {
        if let Some(meta) = kv.get(META_KEY)? {
            check_meta(&meta, realm, key.key_id())?;
        }
        clear(kv)?;
        let dir = |e| StoreError::io(PACK_DIR, e);
        disk.create_dir(PACK_DIR).map_err(dir)?;
        disk.sync_dir(PACK_DIR).map_err(dir)?;
        let files = pack_files(disk)?;
        let total = files.len() as u64;
        let mut report = RebuildReport::default();
        for (done, &pack) in files.iter().enumerate() {
            progress(done as u64, total);
            let place = match files.len() - done {
                1 => Place::Last,
                2 => Place::BeforeLast,
                _ => Place::Earlier,
            };
            rebuild_pack(disk, kv, key, realm, pack, place, &mut report)?;
        }
        let mut batch = Batch::new();
        batch.put(META_KEY, encode_meta(realm, key.key_id()));
        kv.commit(batch, Durability::Synced)?;
        progress(total, total);
        Ok(report)
    }
}

/// Removes the whole index, first of all what says that it is complete. What stays is the highest number that a pack ever had, as far as the index knows: a
/// backup holds a pack of that number, and takes another one of the same for another life of this store.
fn clear(kv: &dyn Kv) -> Result<(), StoreError> {
    const KEYS_MAX: usize = 10_000;
    let mut batch = Batch::new();
    batch.delete(META_KEY);
    // It may be damaged, which is why it is made anew.
    let known = pack_states(kv).ok();
    let known = known.and_then(|states| states.last_key_value().map(|(pack, _)| *pack));
    if let Some(highest) = removed_max(kv)?.max(known) {
        batch.put(REMOVED_KEY, highest.0.to_le_bytes());
    }
    kv.commit(batch, Durability::Synced)?;
    loop {
        let mut batch = Batch::new();
        kv.scan(b"cs/", b"cs/", &mut |key, _| {
            if key == REMOVED_KEY {
                return ControlFlow::Continue(());
            }
            batch.delete(key);
            if batch.changes.len() < KEYS_MAX {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        if batch.is_empty() {
            return Ok(());
        }
        kv.commit(batch, Durability::Relaxed)?;
    }
}

/// Where a pack lies in the order of packs, which tells what a writer that died may have left of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nobody knows whether it is durable, and it may grow again.
    Last,
    /// It may have been on its way to the disk while the last one grew.
    BeforeLast,
    /// It was synced before the one before the last was sealed.
    Earlier,
}

fn rebuild_pack(
    disk: &dyn Disk,
    kv: &dyn Kv,
    key: &IdKey,
    realm: RealmId,
    pack: PackNumber,
    place: Place,
    report: &mut RebuildReport,
) -> Result<(), StoreError> {
    let io = |e| StoreError::io(format!("rebuild {pack}"), e);
    let file = disk.open(&pack.path(), Open::Write).map_err(io)?;
    let len = file.len().map_err(io)?;
    let bytes = read_range(&*file, pack, 0, len)?;
    if let Err(e) = check_header(&bytes, pack, key, realm)? {
        if len <= HEADER_LEN as u64 {
            disk.remove(&pack.path()).map_err(io)?;
            return disk.sync_dir(PACK_DIR).map_err(io);
        }
        report.damaged.push(Damage {
            pack,
            offset: 0,
            len: HEADER_LEN as u64,
            name: None,
            why: e.to_string(),
        });
    }
    let base = HEADER_LEN as u64;
    let body = bytes.slice(HEADER_LEN..);
    let mut scan = scan(body, base, pack, key, Tally::default(), false);
    let durable = place == Place::Earlier;
    if !durable && !scan.sealed && len > scan.good_end {
        // The end of a pack that was being written: torn rather than rotten.
        report.bytes_cut += len - scan.good_end;
        let good_end = scan.good_end;
        scan.damaged.retain(|damage| damage.offset < good_end);
        file.truncate(good_end).map_err(io)?;
    }
    if !durable {
        file.write_at(0, &bytes.slice(..scan.good_end as usize))
            .map_err(io)?;
        file.sync().map_err(io)?;
    }
    let state = PackState {
        indexed_len: scan.good_end,
        // Nothing is appended behind damage, so that the seal's counts stay true.
        closed: place != Place::Last || scan.sealed || !scan.damaged.is_empty(),
        doomed: false,
        tally: scan.tally,
    };
    let mut batch = Batch::new();
    for (name, location) in &scan.records {
        let entry = entry_key(name);
        if kv.get(&entry)?.is_none() {
            batch.put(entry, location.encode());
            report.records += 1;
        }
    }
    batch.put(PackState::key(pack), state.encode());
    kv.commit(batch, Durability::Relaxed)?;
    report.packs += 1;
    report.damaged.append(&mut scan.damaged);
    Ok(())
}
