//! The chunk store: content-named records in pack files, found through an index in a key-value store.
//!
//! Invariants: an index entry is committed only after the bytes it points at are durable; what a reader gets matches its name;
//! packs alone are enough to rebuild the index. Writing is in [`crate::append`], what an opening repairs in [`crate::recovery`],
//! re-reading everything in [`crate::verify`], piece by piece in [`crate::scrub`], removing what nothing refers to in
//! [`crate::collect`], what is kept from that in [`crate::hold`], and what is known to be wrong in [`crate::trouble`].
//!
//! One process may have a store open at a time; the key-value store's lock sees to that. Locks are taken in this order: maintenance,
//! gate, append, pending, statistics; the list of damage and the holds last, each alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use dedup::{Chunk, ChunkId, IdKey, NodeId, RealmId};

use crate::append::{Append, Writer};
use crate::codec::Encoding;
use crate::disk::{Disk, DiskFile, Open};
use crate::error::StoreError;
use crate::handles::Handles;
use crate::hold::Holds;
use crate::index::{Location, State, entry_key};
use crate::kv::Kv;
use crate::pack::{PACK_BYTES_MAX, PackNumber, RECORD_HEADER_LEN, RecordHeader, RecordName};
use crate::recovery::{self, Recovery};

/// How a store is run. Nothing here is recorded on disk, so it may change between openings.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Where a pack is sealed and the next one begun, in bytes; at most [`PACK_BYTES_MAX`].
    pub pack_bytes: u64,
    /// zstd level of new records, 1 to 19.
    pub zstd_level: i32,
    /// Pack files that readers keep open at once.
    pub handles_max: usize,
    /// Free space that a new pack leaves to the index and to everything else on the disk, in bytes.
    pub reserve_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            pack_bytes: 64 * 1024 * 1024,
            zstd_level: 3,
            handles_max: 256,
            reserve_bytes: 64 * 1024 * 1024,
        }
    }
}

impl StoreOptions {
    pub(crate) fn validate(&self) -> Result<(), StoreError> {
        let bad = |option, why: String| Err(StoreError::BadOption { option, why });
        if !(4096..=PACK_BYTES_MAX).contains(&self.pack_bytes) {
            return bad(
                "pack_bytes",
                format!("{} is not within 4096..={PACK_BYTES_MAX}", self.pack_bytes),
            );
        }
        if !(1..=19).contains(&self.zstd_level) {
            return bad(
                "zstd_level",
                format!("{} is not within 1..=19", self.zstd_level),
            );
        }
        if self.handles_max == 0 {
            return bad("handles_max", "0 files cannot be read".into());
        }
        Ok(())
    }
}

/// A chunk as it is stored, for sending on without compressing it again. Its stored bytes match the checksum they were written
/// with; whoever decodes it proves it by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    /// Length of the plain bytes.
    pub raw_len: u32,
    /// What [`Self::bytes`] are.
    pub encoding: Encoding,
    /// The stored bytes.
    pub bytes: Bytes,
}

/// What a store holds. Records that were stored twice or quarantined are counted as they lie in the packs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Pack files.
    pub packs: u64,
    /// Chunk records.
    pub chunks: u64,
    /// Manifest node records.
    pub nodes: u64,
    /// Plain bytes of all records.
    pub raw_bytes: u64,
    /// Bytes of all pack files.
    pub pack_bytes: u64,
    /// Records that wait for a commit.
    pub uncommitted: u64,
    /// Names that are known to be damaged and were not stored again.
    pub damaged: u64,
}

/// A chunk store. Clones are handles of the same store; all methods may be called from many threads.
#[derive(Clone)]
pub struct ChunkStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) kv: Arc<dyn Kv>,
    pub(crate) key: IdKey,
    pub(crate) realm: RealmId,
    pub(crate) options: StoreOptions,
    pub(crate) handles: Handles,
    /// Records in the packs that the index does not have yet.
    pending: RwLock<HashMap<RecordName, Location>>,
    pub(crate) append: Mutex<Append>,
    /// How many times `pending` went to the index.
    pub(crate) generation: AtomicU64,
    pub(crate) stats: Mutex<StoreStats>,
    pub(crate) holds: Holds,
    /// Held for writing while a collection takes records away, for reading while a put decides that a record is known: neither sees
    /// the other half done.
    gate: RwLock<()>,
    /// Held by what moves or removes packs, or counts on their staying: one collection, one verification or one pack's scrub at a time.
    maintenance: Mutex<()>,
    /// As in the index, under `cs/d`.
    damaged: Mutex<BTreeSet<RecordName>>,
    /// As in the index, under `cs/h`.
    halted: Mutex<Option<String>>,
    recovery: Recovery,
}

impl ChunkStore {
    /// Opens the store on `disk` (pack files in `packs/`) and `kv` (keys under `cs/`), creating it where both are empty.
    ///
    /// Records that a killed writer left behind the index are taken into it, and a torn end is cut off; [`Self::recovery`] tells.
    /// Fails if packs are there without an index ([`StoreError::IndexMissing`], then [`Self::rebuild_index`]), or if anything is
    /// of another realm or key.
    pub fn open(
        disk: Arc<dyn Disk>,
        kv: Arc<dyn Kv>,
        key: IdKey,
        realm: RealmId,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        options.validate()?;
        let found = recovery::open_packs(&*disk, &*kv, &key, realm)?;
        Ok(Self {
            inner: Arc::new(Inner {
                handles: Handles::new(options.handles_max),
                pending: RwLock::default(),
                append: Mutex::new(found.append),
                generation: AtomicU64::new(0),
                stats: Mutex::new(found.stats),
                holds: Holds::default(),
                gate: RwLock::default(),
                maintenance: Mutex::default(),
                damaged: Mutex::new(found.damaged),
                halted: Mutex::new(found.halted),
                recovery: found.recovery,
                disk,
                kv,
                key,
                realm,
                options,
            }),
        })
    }

    /// What this opening had to repair.
    pub fn recovery(&self) -> &Recovery {
        &self.inner.recovery
    }

    /// A handle for storing, with a [hold](crate::Hold) of its own: what is put is safe from collections while the handle or a clone
    /// of it lives. Any number of them may work at once; [`Self::commit`] covers what all of them put.
    pub fn writer(&self) -> Writer {
        self.hold().writer()
    }

    /// Makes everything put so far durable: pack bytes first, then their index entries in one step.
    pub fn commit(&self) -> Result<(), StoreError> {
        self.inner.commit()
    }

    /// Whether a chunk is stored, or put and waiting for a commit. Only a commit that succeeds afterwards makes sure of the latter.
    pub fn contains_chunk(&self, id: ChunkId) -> Result<bool, StoreError> {
        self.inner.contains(&RecordName::chunk(id))
    }

    /// As [`Self::contains_chunk`], for a manifest node.
    pub fn contains_node(&self, id: NodeId) -> Result<bool, StoreError> {
        self.inner.contains(&RecordName::node(id))
    }

    /// Reads a chunk and proves it by name.
    pub fn chunk(&self, id: ChunkId) -> Result<Chunk, StoreError> {
        let name = RecordName::chunk(id);
        let record = self.inner.record(&name)?;
        let plain = record.decoded()?;
        Chunk::verify(&self.inner.key, id, plain).map_err(|e| record.damaged(e.to_string()))
    }

    /// Reads a chunk as it is stored, its checksum verified.
    pub fn chunk_compressed(&self, id: ChunkId) -> Result<StoredChunk, StoreError> {
        let record = self.inner.record(&RecordName::chunk(id))?;
        Ok(StoredChunk {
            raw_len: record.header.raw_len,
            encoding: record.header.encoding,
            bytes: record.stored,
        })
    }

    /// Reads an encoded manifest node and proves it by name.
    pub fn node(&self, id: NodeId) -> Result<Bytes, StoreError> {
        let record = self.inner.record(&RecordName::node(id))?;
        let plain = record.decoded()?;
        let actual = self.inner.key.node_id(&plain);
        if actual != id {
            return Err(record.damaged(format!("its bytes are those of manifest node {actual}")));
        }
        Ok(plain)
    }

    /// What the store holds.
    pub fn stats(&self) -> StoreStats {
        let mut stats = *self.inner.stats();
        stats.uncommitted = self.inner.pending().len() as u64;
        stats.damaged = self.inner.damaged().len() as u64;
        stats
    }
}

/// A record as read from its pack: header and checksum hold.
pub(crate) struct Record {
    pub(crate) header: RecordHeader,
    pub(crate) stored: Bytes,
    pack: PackNumber,
    offset: u64,
}

impl Record {
    pub(crate) fn decoded(&self) -> Result<Bytes, StoreError> {
        crate::codec::decode(
            self.header.encoding,
            &self.stored,
            self.header.raw_len as usize,
        )
        .map_err(|e| self.damaged(e.to_string()))
    }

    pub(crate) fn damaged(&self, why: String) -> StoreError {
        StoreError::Damaged {
            name: self.header.name,
            pack: self.pack,
            offset: self.offset,
            why,
        }
    }
}

impl Location {
    /// Whether `bytes` are the whole record of `name` that is expected here: its header, and stored bytes that match their checksum.
    pub(crate) fn check_record(
        &self,
        name: &RecordName,
        bytes: &[u8],
    ) -> Result<RecordHeader, String> {
        let header = RecordHeader::parse(bytes, self.pack, u64::from(self.offset))?;
        let matches = header.name == *name
            && header.encoding == self.encoding
            && header.raw_len == self.raw_len
            && header.stored_len == self.stored_len;
        if !matches {
            return Err(format!(
                "the index expects another record than {} there",
                header.name
            ));
        }
        header.check_stored(&bytes[RECORD_HEADER_LEN..])?;
        Ok(header)
    }
}

impl Inner {
    pub(crate) fn pending(&self) -> RwLockReadGuard<'_, HashMap<RecordName, Location>> {
        self.pending
            .read()
            .expect("no code panics while it holds the pending records")
    }

    pub(crate) fn pending_mut(&self) -> RwLockWriteGuard<'_, HashMap<RecordName, Location>> {
        self.pending
            .write()
            .expect("no code panics while it holds the pending records")
    }

    pub(crate) fn stats(&self) -> MutexGuard<'_, StoreStats> {
        self.stats
            .lock()
            .expect("no code panics while it holds the statistics")
    }

    pub(crate) fn damaged(&self) -> MutexGuard<'_, BTreeSet<RecordName>> {
        self.damaged
            .lock()
            .expect("no code panics while it holds the list of damage")
    }

    pub(crate) fn halted(&self) -> MutexGuard<'_, Option<String>> {
        self.halted
            .lock()
            .expect("no code panics while it holds the halt")
    }

    // The next two guard no data, so a panic under them leaves nothing half done.

    pub(crate) fn maintenance(&self) -> MutexGuard<'_, ()> {
        self.maintenance.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn gate_shared(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn gate_exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(|e| e.into_inner())
    }

    /// The entry in the index, whatever its state.
    pub(crate) fn indexed(&self, name: &RecordName) -> Result<Option<Location>, StoreError> {
        match self.kv.get(&entry_key(name))? {
            Some(value) => Location::parse(name, &value).map(Some),
            None => Ok(None),
        }
    }

    /// Where a record is, committed or not, whatever its state.
    fn locate(&self, name: &RecordName) -> Result<Option<Location>, StoreError> {
        // Pending first: a commit writes the index before it clears the pending records, so nothing falls between.
        let pending = self.pending().get(name).copied();
        match pending {
            Some(location) => Ok(Some(location)),
            None => self.indexed(name),
        }
    }

    pub(crate) fn contains(&self, name: &RecordName) -> Result<bool, StoreError> {
        Ok(self
            .locate(name)?
            .is_some_and(|location| location.state.is_readable()))
    }

    /// Where each of `names` is, committed or not, whatever its state.
    pub(crate) fn locate_many(
        &self,
        names: &[RecordName],
    ) -> Result<Vec<Option<Location>>, StoreError> {
        let mut found: Vec<Option<Location>> = {
            let pending = self.pending();
            names
                .iter()
                .map(|name| pending.get(name).copied())
                .collect()
        };
        let absent = || found.iter().enumerate().filter(|(_, f)| f.is_none());
        let places: Vec<usize> = absent().map(|(place, _)| place).collect();
        let keys: Vec<Vec<u8>> = places.iter().map(|p| entry_key(&names[*p])).collect();
        for (place, value) in places.into_iter().zip(self.kv.get_many(&keys)?) {
            if let Some(value) = value {
                found[place] = Some(Location::parse(&names[place], &value)?);
            }
        }
        Ok(found)
    }

    pub(crate) fn file(&self, pack: PackNumber) -> Result<Arc<dyn DiskFile>, StoreError> {
        self.handles.file(pack, || {
            self.disk
                .open(&pack.path(), Open::Read)
                .map_err(|e| StoreError::io(format!("open {pack}"), e))
        })
    }

    /// Reads a record for somebody who refers to it. That it is condemned is an alarm.
    pub(crate) fn record(&self, name: &RecordName) -> Result<Record, StoreError> {
        let (record, state) = self.record_for_collection(name)?;
        if matches!(state, State::Condemned { .. }) {
            self.alarm(name);
        }
        Ok(record)
    }

    /// Reads a record, condemned or not.
    pub(crate) fn record_for_collection(
        &self,
        name: &RecordName,
    ) -> Result<(Record, State), StoreError> {
        let mut gone: Option<Location> = None;
        loop {
            let location = self
                .locate(name)?
                .ok_or(StoreError::NotFound { name: *name })?;
            match self.record_at(name, &location) {
                // A collection moved it and removed the pack between the look and the read; if nothing moved, it is missing.
                Err(StoreError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound
                        && gone.is_none_or(|before| !before.is_at(&location)) =>
                {
                    gone = Some(location);
                }
                other => return Ok((other?, location.state)),
            }
        }
    }

    fn record_at(&self, name: &RecordName, location: &Location) -> Result<Record, StoreError> {
        let offset = u64::from(location.offset);
        let damaged = |why: String| StoreError::Damaged {
            name: *name,
            pack: location.pack,
            offset,
            why,
        };
        if location.state == State::Quarantined {
            return Err(damaged("it is in quarantine".into()));
        }
        let mut bytes = vec![0; RECORD_HEADER_LEN + location.stored_len as usize];
        let file = self.file(location.pack)?;
        match file.read_at(offset, &mut bytes) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(damaged("the pack file ends before it does".into()));
            }
            Err(e) => {
                return Err(StoreError::io(
                    format!("read {name} at {} offset {offset}", location.pack),
                    e,
                ));
            }
        }
        let header = location.check_record(name, &bytes).map_err(damaged)?;
        let stored = Bytes::from(bytes).slice(RECORD_HEADER_LEN..);
        Ok(Record {
            header,
            stored,
            pack: location.pack,
            offset,
        })
    }
}
