//! Writing: records go to the end of the open pack, commits make them durable and then known.
//!
//! Invariants: the index is told of a record only after the pack holding it was synced, once and with success; a sealed pack never
//! grows. After any failure other than a full disk the store is closed for writing: the kernel may have dropped what it could not
//! write, and a later sync would not say so.
//!
//! Compression runs in the caller's thread, outside the lock; appending is a copy into the page cache under it. The thread that seals
//! a pack syncs it, outside the lock too, while others go on with the next pack; so a crash may tear the last two packs. One thread
//! alone does everything in one order, always the same.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use dedup::{Chunk, NodeId};

use crate::chunk_store::{Inner, StoreStats};
use crate::disk::{DiskFile, Open};
use crate::error::StoreError;
use crate::hold::Hold;
use crate::index::{Location, META_KEY, PackState, State, damaged_key, encode_meta, entry_key};
use crate::kv::{Batch, Durability, KvError};
use crate::pack::{
    Encoded, HEADER_LEN, NODE_BYTES_MAX, PACK_DIR, PackHeader, PackNumber, RecordHeader,
    RecordKind, RecordName, SEAL_LEN, Tally, encode_seal,
};

/// What a put did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The record was appended.
    New {
        /// Bytes that it takes in the pack, its header included.
        stored_bytes: u64,
    },
    /// It was there already.
    Known,
}

/// The pack that grows.
pub(crate) struct OpenPack {
    pub(crate) number: PackNumber,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Where the next record goes.
    pub(crate) len: u64,
    pub(crate) tally: Tally,
    /// Its records that the index does not have yet.
    unindexed: Vec<RecordName>,
}

impl OpenPack {
    pub(crate) fn new(number: PackNumber, file: Arc<dyn DiskFile>, len: u64, tally: Tally) -> Self {
        Self {
            number,
            file,
            len,
            tally,
            unindexed: Vec::new(),
        }
    }

    fn state(&self, closed: bool) -> PackState {
        PackState {
            indexed_len: self.len,
            closed,
            doomed: false,
            tally: self.tally,
        }
    }
}

/// A pack that will not grow any more and that the index does not know as closed.
pub(crate) struct SealedPack {
    number: PackNumber,
    file: Arc<dyn DiskFile>,
    state: PackState,
    unindexed: Vec<RecordName>,
    synced: AtomicBool,
    /// Held while it is synced; why that failed, if it did.
    sync: Mutex<Option<String>>,
}

impl SealedPack {
    /// Makes it durable. The kernel tells of a failed write once and then forgets it, so only one thread asks; the others wait for
    /// its answer.
    fn sync(&self) -> Result<(), StoreError> {
        let mut failed = self.sync.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_synced() {
            return Ok(());
        }
        if let Some(reason) = &*failed {
            return Err(StoreError::Closed {
                reason: reason.clone(),
            });
        }
        if let Err(e) = self.file.sync() {
            let error = StoreError::io(format!("sync {}", self.number), e);
            *failed = Some(error.to_string());
            return Err(error);
        }
        self.synced.store(true, Ordering::Release);
        Ok(())
    }

    fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }
}

/// The state of writing, under one lock.
pub(crate) struct Append {
    pub(crate) open: Option<OpenPack>,
    pub(crate) next: PackNumber,
    /// Packs that the index is not yet told to be closed.
    sealed: Vec<Arc<SealedPack>>,
    /// Whether an index commit has not been made durable yet.
    relaxed: bool,
    closed: Option<String>,
}

impl Append {
    pub(crate) fn new(open: Option<OpenPack>, next: PackNumber) -> Self {
        Self {
            open,
            next,
            sealed: Vec::new(),
            relaxed: false,
            closed: None,
        }
    }

    /// Something was written to the index that the next commit is to make durable.
    pub(crate) fn note_relaxed(&mut self) {
        self.relaxed = true;
    }

    pub(crate) fn refuse_if_closed(&self) -> Result<(), StoreError> {
        match &self.closed {
            None => Ok(()),
            Some(reason) => Err(StoreError::Closed {
                reason: reason.clone(),
            }),
        }
    }
}

/// Stores chunks and manifest nodes. See [`crate::ChunkStore::writer`].
#[derive(Clone)]
pub struct Writer {
    inner: Arc<Inner>,
    /// What is put, new or known, stays while this lives.
    hold: Hold,
}

impl Writer {
    pub(crate) fn new(hold: Hold) -> Self {
        Self {
            inner: Arc::clone(&hold.inner),
            hold,
        }
    }

    fn is_known(&self, name: RecordName) -> Result<bool, StoreError> {
        Ok(self.hold.known(&[name])?[0])
    }

    /// Stores a chunk, unless it is there. Durable after the next commit.
    pub fn put_chunk(&self, chunk: &Chunk) -> Result<Put, StoreError> {
        self.put(RecordName::chunk(chunk.id()), chunk.bytes())
    }

    /// Stores an encoded manifest node of at most [`NODE_BYTES_MAX`] bytes, unless it is there.
    pub fn put_node(&self, id: NodeId, bytes: &[u8]) -> Result<Put, StoreError> {
        if bytes.len() > NODE_BYTES_MAX {
            return Err(StoreError::TooLong {
                name: RecordName::node(id),
                len: bytes.len(),
                max: NODE_BYTES_MAX,
            });
        }
        let actual = self.inner.key.node_id(bytes);
        if actual != id {
            return Err(StoreError::NodeMismatch {
                expected: id,
                actual,
            });
        }
        self.put(RecordName::node(id), &Bytes::copy_from_slice(bytes))
    }

    /// Compresses a chunk for [`Self::put_encoded`], in this thread and without a look at the store.
    pub fn encode_chunk(&self, chunk: &Chunk) -> Encoded {
        Encoded::new(
            RecordName::chunk(chunk.id()),
            chunk.bytes(),
            self.inner.options.zstd_level,
        )
    }

    /// Stores what [`Self::encode_chunk`] made, unless it is there.
    pub fn put_encoded(&self, encoded: &Encoded) -> Result<Put, StoreError> {
        let generation = self.inner.generation.load(Ordering::Acquire);
        if self.is_known(encoded.name)? {
            return Ok(Put::Known);
        }
        self.append_one(encoded, generation)
    }

    /// As [`Self::put_chunk`] for each of `chunks`, in their order, with one look at the index and as few writes as possible. If it
    /// fails, some of them may be stored.
    pub fn put_chunks(&self, chunks: &[Chunk]) -> Result<Vec<Put>, StoreError> {
        let names: Vec<RecordName> = chunks.iter().map(|c| RecordName::chunk(c.id())).collect();
        for (name, chunk) in names.iter().zip(chunks) {
            check_len(name, chunk.bytes().len())?;
        }
        let generation = self.inner.generation.load(Ordering::Acquire);
        let known = self.hold.known(&names)?;
        let mut puts = vec![Put::Known; chunks.len()];
        let mut seen = HashSet::new();
        let (mut places, mut encoded) = (Vec::new(), Vec::new());
        for (place, chunk) in chunks.iter().enumerate() {
            if !known[place] && seen.insert(names[place]) {
                places.push(place);
                encoded.push(self.encode_chunk(chunk));
            }
        }
        let stored = self.inner.append_records(&encoded, generation)?;
        for (place, put) in places.into_iter().zip(stored) {
            puts[place] = put;
        }
        Ok(puts)
    }

    fn put(&self, name: RecordName, plain: &Bytes) -> Result<Put, StoreError> {
        check_len(&name, plain.len())?;
        let generation = self.inner.generation.load(Ordering::Acquire);
        if self.is_known(name)? {
            return Ok(Put::Known);
        }
        let encoded = Encoded::new(name, plain, self.inner.options.zstd_level);
        self.append_one(&encoded, generation)
    }

    fn append_one(&self, encoded: &Encoded, generation: u64) -> Result<Put, StoreError> {
        let puts = self
            .inner
            .append_records(std::slice::from_ref(encoded), generation)?;
        Ok(puts[0])
    }
}

fn check_len(name: &RecordName, len: usize) -> Result<(), StoreError> {
    if len > name.kind.bytes_max() {
        return Err(StoreError::TooLong {
            name: *name,
            len,
            max: name.kind.bytes_max(),
        });
    }
    Ok(())
}

impl Inner {
    pub(crate) fn append(&self) -> MutexGuard<'_, Append> {
        self.append.lock().expect("no code panics while it appends")
    }

    /// Appends records of different names that were absent at `generation`, and says what became of each.
    fn append_records(&self, encoded: &[Encoded], generation: u64) -> Result<Vec<Put>, StoreError> {
        let mut puts = Vec::with_capacity(encoded.len());
        while puts.len() < encoded.len() {
            let rest = &encoded[puts.len()..];
            let mut append = self.append_with_room(rest[0].header().record_len())?;
            self.append_run(&mut append, rest, generation, &mut puts)?;
        }
        Ok(puts)
    }

    /// The right to append, with an open pack that has room for a record of `record_len` bytes.
    pub(crate) fn append_with_room(
        &self,
        record_len: u64,
    ) -> Result<MutexGuard<'_, Append>, StoreError> {
        loop {
            let mut append = self.append();
            append.refuse_if_closed()?;
            if append
                .open
                .as_ref()
                .is_some_and(|open| self.is_full(open, record_len))
            {
                // One pack may be on its way to the disk while the next one grows. A second one waits: that bounds what is dirty and
                // pending, and an opening without an index has to doubt the last two packs only.
                let busy = append.sealed.iter().find(|sealed| !sealed.is_synced());
                let sealed = match busy.cloned() {
                    Some(busy) => busy,
                    None => self.seal(&mut append)?,
                };
                drop(append);
                self.settle(&sealed)?;
                continue;
            }
            if append.open.is_none() {
                append.open = Some(self.begin_pack(&mut append)?);
            }
            return Ok(append);
        }
    }

    /// Appends as many of `rest` as the open pack has room for, at least the first, in one write.
    fn append_run(
        &self,
        append: &mut Append,
        rest: &[Encoded],
        generation: u64,
        puts: &mut Vec<Put>,
    ) -> Result<(), StoreError> {
        let Some(open) = &append.open else {
            unreachable!("the caller opened a pack");
        };
        let same_generation = self.generation.load(Ordering::Acquire) == generation;
        let (mut len, mut tally) = (open.len, open.tally);
        let mut bytes = Vec::new();
        let mut records = Vec::new();
        let mut new_puts = Vec::new();
        for encoded in rest {
            // Another thread may have stored the same while this one compressed; and it may have been committed since. Either way it is
            // in a pack that was begun after our hold, which keeps it.
            let known = match same_generation {
                true => self.pending().contains_key(&encoded.name),
                false => self.contains(&encoded.name)?,
            };
            if known {
                new_puts.push(Put::Known);
                continue;
            }
            let header = encoded.header();
            let record_len = header.record_len();
            let sealed_len = len + record_len + SEAL_LEN as u64;
            if sealed_len > self.options.pack_bytes && len != HEADER_LEN as u64 {
                break;
            }
            let encoded_header = header.encode(open.number, len);
            bytes.extend_from_slice(&encoded_header);
            bytes.extend_from_slice(&encoded.stored);
            tally.add(&header, &encoded_header);
            let location = Location {
                state: State::Live,
                encoding: header.encoding,
                pack: open.number,
                offset: u32::try_from(len).expect("packs are shorter than 4 GiB"),
                raw_len: header.raw_len,
                stored_len: header.stored_len,
            };
            records.push((header, location));
            len += record_len;
            new_puts.push(Put::New {
                stored_bytes: record_len,
            });
        }
        if !bytes.is_empty()
            && let Err(e) = open.file.write_at(open.len, &bytes)
        {
            return Err(self.write_failed(append, e));
        }
        let Some(open) = &mut append.open else {
            unreachable!("it was open above");
        };
        (open.len, open.tally) = (len, tally);
        let (mut pending, mut stats) = (self.pending_mut(), self.stats());
        for (header, location) in records {
            open.unindexed.push(header.name);
            pending.insert(header.name, location);
            stats.count(&header, header.record_len());
        }
        puts.append(&mut new_puts);
        Ok(())
    }

    /// Whether a pack has no room for a record. One longer than a whole small pack still gets a pack of its own.
    fn is_full(&self, open: &OpenPack, record_len: u64) -> bool {
        let sealed_len = open.len + record_len + SEAL_LEN as u64;
        sealed_len > self.options.pack_bytes && open.len != HEADER_LEN as u64
    }

    /// Ends the open pack, which the caller has seen to be there. It is not durable yet.
    pub(crate) fn seal(&self, append: &mut Append) -> Result<Arc<SealedPack>, StoreError> {
        let Some(open) = &append.open else {
            unreachable!("the caller saw an open pack");
        };
        let seal = encode_seal(&open.tally, open.number, open.len);
        if let Err(e) = open.file.write_at(open.len, &seal) {
            return Err(self.write_failed(append, e));
        }
        let Some(mut open) = append.open.take() else {
            unreachable!("it was open above");
        };
        open.len += SEAL_LEN as u64;
        self.stats().pack_bytes += SEAL_LEN as u64;
        let sealed = Arc::new(SealedPack {
            number: open.number,
            state: open.state(true),
            file: open.file,
            unindexed: open.unindexed,
            synced: AtomicBool::new(false),
            sync: Mutex::new(None),
        });
        append.sealed.push(sealed.clone());
        Ok(sealed)
    }

    /// Makes a sealed pack durable, then known. The index follows pack by pack, so that what is pending stays small; the order of
    /// commits is enough here.
    pub(crate) fn settle(&self, sealed: &SealedPack) -> Result<(), StoreError> {
        let synced = sealed.sync();
        let mut append = self.append();
        append.refuse_if_closed()?;
        if let Err(error) = synced {
            return Err(self.close(&mut append, error));
        }
        self.index_pending(&mut append, Durability::Relaxed, Batch::new())
    }

    /// Seals the open pack, if it holds anything, and makes everything put so far durable: what was put before lies in closed packs.
    pub(crate) fn seal_open(&self) -> Result<(), StoreError> {
        loop {
            let mut append = self.append();
            append.refuse_if_closed()?;
            // As in `append_records`: never two packs on their way to the disk.
            let busy = append.sealed.iter().find(|sealed| !sealed.is_synced());
            if let Some(busy) = busy.cloned() {
                drop(append);
                self.settle(&busy)?;
                continue;
            }
            let has_records = |open: &OpenPack| open.len > HEADER_LEN as u64;
            if !append.open.as_ref().is_some_and(has_records) {
                break;
            }
            let sealed = self.seal(&mut append)?;
            drop(append);
            // Others may begin the next pack from here on; it is not ours to wait for.
            self.settle(&sealed)?;
            break;
        }
        self.commit()
    }

    /// Creates the next pack. Its name and header are durable before a record goes into it.
    fn begin_pack(&self, append: &mut Append) -> Result<OpenPack, StoreError> {
        let number = append.next;
        let io = |what: &str, e| StoreError::io(format!("{what} {number}"), e);
        let available = self
            .disk
            .available_bytes()
            .map_err(|e| io("measure free space for", e))?;
        if available
            < self
                .options
                .reserve_bytes
                .saturating_add(self.options.pack_bytes)
        {
            return Err(StoreError::NoSpace {
                what: format!("create {number}: {available} bytes are free"),
            });
        }
        // A number is never used twice, whatever becomes of the file.
        append.next = PackNumber(number.0 + 1);
        let file = match self.disk.open(&number.path(), Open::CreateNew) {
            Ok(file) => file,
            Err(e) => {
                let error = io("create", e);
                return Err(self.close_unless_full(append, error));
            }
        };
        let header = PackHeader {
            realm: self.realm,
            key_id: self.key.key_id(),
            pack: number,
        };
        if let Err(e) = file.write_at(0, &header.encode()) {
            // A file without a header holds nothing; should it stay, the next opening removes it.
            self.disk.remove(&number.path()).ok();
            let error = io("write", e);
            return Err(self.close_unless_full(append, error));
        }
        if let Err(e) = file.sync().and_then(|()| self.disk.sync_dir(PACK_DIR)) {
            return Err(self.close(append, io("sync", e)));
        }
        self.handles.insert(number, file.clone());
        let mut stats = self.stats();
        stats.packs += 1;
        stats.pack_bytes += HEADER_LEN as u64;
        Ok(OpenPack::new(
            number,
            file,
            HEADER_LEN as u64,
            Tally::default(),
        ))
    }

    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        let mut append = self.append();
        append.refuse_if_closed()?;
        if self.pending().is_empty() && append.sealed.is_empty() && !append.relaxed {
            return Ok(());
        }
        self.sync_packs(&mut append)?;
        self.index_pending(&mut append, Durability::Synced, Batch::new())
    }

    /// Makes durable what was appended so far, in whichever pack it is.
    pub(crate) fn sync_packs(&self, append: &mut Append) -> Result<(), StoreError> {
        for sealed in append.sealed.clone() {
            if let Err(error) = sealed.sync() {
                return Err(self.close(append, error));
            }
        }
        if let Some(open) = &append.open
            && let Err(e) = open.file.sync()
        {
            let what = format!("sync {}", open.number);
            return Err(self.close(append, StoreError::io(what, e)));
        }
        Ok(())
    }

    /// Takes pending records into the index: those of the sealed packs that are durable, and for a synced commit, before which the
    /// caller has synced it, those of the open pack. `batch` has what is to be written with them, in the same step.
    pub(crate) fn index_pending(
        &self,
        append: &mut Append,
        durability: Durability,
        mut batch: Batch,
    ) -> Result<(), StoreError> {
        let synced: Vec<Arc<SealedPack>> = append
            .sealed
            .iter()
            .filter(|sealed| sealed.is_synced())
            .cloned()
            .collect();
        let open = append
            .open
            .as_ref()
            .filter(|_| durability == Durability::Synced)
            .map(|open| (open.number, open.state(false), &open.unindexed));
        let packs = synced
            .iter()
            .map(|sealed| (sealed.number, sealed.state, &sealed.unindexed))
            .chain(open);
        let mut indexed = Vec::new();
        let mut healed = Vec::new();
        {
            let pending = self.pending();
            let damaged = self.damaged();
            for (number, state, names) in packs {
                for name in names {
                    // What was quarantined since is not there any more, or is in a later pack.
                    if let Some(location) = pending.get(name).filter(|l| l.pack == number) {
                        batch.put(entry_key(name), location.encode());
                        indexed.push(*name);
                        if damaged.contains(name) {
                            batch.delete(damaged_key(name));
                            healed.push(*name);
                        }
                    }
                }
                batch.put(PackState::key(number), state.encode());
            }
        }
        // Never empty, so that a synced commit always makes the relaxed ones before it durable.
        batch.put(META_KEY, encode_meta(self.realm, self.key.key_id()));
        match self.kv.commit(batch, durability) {
            Ok(()) => {}
            // Everything stays pending; a later commit tries again.
            Err(e @ KvError::NoSpace { .. }) => return Err(e.into()),
            Err(e) => return Err(self.close(append, e.into())),
        }
        let done: HashSet<PackNumber> = synced.iter().map(|sealed| sealed.number).collect();
        append
            .sealed
            .retain(|sealed| !done.contains(&sealed.number));
        append.relaxed = durability == Durability::Relaxed;
        if let (Durability::Synced, Some(open)) = (durability, &mut append.open) {
            open.unindexed.clear();
        }
        {
            let mut pending = self.pending_mut();
            for name in indexed {
                pending.remove(&name);
            }
        }
        if !healed.is_empty() {
            let mut damaged = self.damaged();
            for name in &healed {
                damaged.remove(name);
            }
            tracing::info!(records = healed.len(), "damaged records were stored again");
        }
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Deals with a failed write to the open pack: a full disk costs only what was being written.
    pub(crate) fn write_failed(&self, append: &mut Append, error: std::io::Error) -> StoreError {
        let Some(open) = &append.open else {
            unreachable!("only the open pack is written to");
        };
        let error = StoreError::io(
            format!("write {} at offset {}", open.number, open.len),
            error,
        );
        if error.is_no_space()
            && let Err(e) = open.file.truncate(open.len)
        {
            let what = format!("cut {} to {} bytes", open.number, open.len);
            return self.close(append, StoreError::io(what, e));
        }
        self.close_unless_full(append, error)
    }

    fn close_unless_full(&self, append: &mut Append, error: StoreError) -> StoreError {
        if error.is_no_space() {
            return error;
        }
        self.close(append, error)
    }

    /// Refuses all writing from now on. What was not committed is forgotten, as the disk may not have it.
    fn close(&self, append: &mut Append, error: StoreError) -> StoreError {
        tracing::error!(%error, "chunk store closed for writing");
        append.closed = Some(error.to_string());
        append.open = None;
        append.sealed.clear();
        self.pending_mut().clear();
        error
    }
}

impl StoreStats {
    pub(crate) fn count(&mut self, header: &RecordHeader, record_len: u64) {
        match header.name.kind {
            RecordKind::Chunk => self.chunks += 1,
            RecordKind::Node => self.nodes += 1,
        }
        self.raw_bytes += u64::from(header.raw_len);
        self.pack_bytes += record_len;
    }
}
