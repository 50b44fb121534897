//! Writing: records go to the end of the open pack, commits make them durable and then known.
//!
//! Invariants: the index is told of a record only after the pack holding it was synced; a pack is sealed and synced before the
//! next one is begun, so a crash can tear the last pack only. After any failure other than a full disk the store is closed for
//! writing: the kernel may have dropped what it could not write, and a later sync would not say so.
//!
//! Compression runs in the caller's thread, outside the lock; appending is a copy into the page cache under it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use dedup::{Chunk, NodeId};

use crate::chunk_store::{Inner, StoreStats};
use crate::disk::{DiskFile, Open};
use crate::error::StoreError;
use crate::index::{Location, META_KEY, PackState, State, encode_meta, entry_key};
use crate::kv::{Batch, Durability, KvError};
use crate::pack::{
    Encoded, HEADER_LEN, NODE_BYTES_MAX, PACK_DIR, PackHeader, PackNumber, RECORD_HEADER_LEN,
    RecordHeader, RecordKind, RecordName, SEAL_LEN, Tally, encode_seal,
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
}

impl OpenPack {
    fn state(&self, closed: bool) -> (PackNumber, PackState) {
        let state = PackState {
            indexed_len: self.len,
            closed,
            tally: self.tally,
        };
        (self.number, state)
    }
}

/// The state of writing, under one lock.
pub(crate) struct Append {
    pub(crate) open: Option<OpenPack>,
    pub(crate) next: PackNumber,
    /// Packs that were sealed since the last commit of the index.
    sealed: Vec<(PackNumber, PackState)>,
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

    fn refuse_if_closed(&self) -> Result<(), StoreError> {
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
}

impl Writer {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
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
        if self.inner.contains(&encoded.name)? {
            return Ok(Put::Known);
        }
        self.inner.append_record(encoded, generation)
    }

    fn put(&self, name: RecordName, plain: &Bytes) -> Result<Put, StoreError> {
        if plain.len() > name.kind.bytes_max() {
            return Err(StoreError::TooLong {
                name,
                len: plain.len(),
                max: name.kind.bytes_max(),
            });
        }
        let generation = self.inner.generation.load(Ordering::Acquire);
        if self.inner.contains(&name)? {
            return Ok(Put::Known);
        }
        let encoded = Encoded::new(name, plain, self.inner.options.zstd_level);
        self.inner.append_record(&encoded, generation)
    }
}

impl Inner {
    pub(crate) fn append(&self) -> MutexGuard<'_, Append> {
        self.append.lock().expect("no code panics while it appends")
    }

    /// Appends a record that was absent at `generation`.
    fn append_record(&self, encoded: &Encoded, generation: u64) -> Result<Put, StoreError> {
        let header = encoded.header();
        let record_len = header.record_len();
        let mut append = self.append();
        append.refuse_if_closed()?;
        // Another thread may have stored the same while this one compressed; and it may have been committed since.
        let known = if self.generation.load(Ordering::Acquire) == generation {
            self.pending().contains_key(&encoded.name)
        } else {
            self.contains(&encoded.name)?
        };
        if known {
            return Ok(Put::Known);
        }
        self.make_room(&mut append, record_len)?;
        let Some(open) = &mut append.open else {
            unreachable!("making room opens a pack");
        };
        let offset = open.len;
        let encoded_header = header.encode(open.number, offset);
        let mut bytes = Vec::with_capacity(RECORD_HEADER_LEN + encoded.stored.len());
        bytes.extend_from_slice(&encoded_header);
        bytes.extend_from_slice(&encoded.stored);
        if let Err(e) = open.file.write_at(offset, &bytes) {
            return Err(self.write_failed(&mut append, e));
        }
        open.len += record_len;
        open.tally.add(&header, &encoded_header);
        let location = Location {
            state: State::Live,
            encoding: header.encoding,
            pack: open.number,
            offset: u32::try_from(offset).expect("packs are shorter than 4 GiB"),
            raw_len: header.raw_len,
            stored_len: header.stored_len,
        };
        self.pending_mut().insert(encoded.name, location);
        self.stats().count(&header, record_len);
        Ok(Put::New {
            stored_bytes: record_len,
        })
    }

    /// Sees to an open pack with room for a record.
    fn make_room(&self, append: &mut Append, record_len: u64) -> Result<(), StoreError> {
        if let Some(open) = &append.open {
            let full = open.len + record_len + SEAL_LEN as u64 > self.options.pack_bytes;
            // A record longer than a whole small pack still gets one of its own.
            if !full || open.len == HEADER_LEN as u64 {
                return Ok(());
            }
            self.seal(append)?;
            // The index follows pack by pack, so that what is pending stays small. The order of commits is enough here.
            self.index_pending(append, Durability::Relaxed)?;
        }
        append.open = Some(self.begin_pack(append)?);
        Ok(())
    }

    /// Ends the open pack and makes it durable.
    fn seal(&self, append: &mut Append) -> Result<(), StoreError> {
        let Some(open) = &mut append.open else {
            return Ok(());
        };
        let seal = encode_seal(&open.tally, open.number, open.len);
        if let Err(e) = open.file.write_at(open.len, &seal) {
            return Err(self.write_failed(append, e));
        }
        if let Err(e) = open.file.sync() {
            let what = format!("sync {}", open.number);
            return Err(self.close(append, StoreError::io(what, e)));
        }
        open.len += SEAL_LEN as u64;
        let state = open.state(true);
        append.sealed.push(state);
        append.open = None;
        self.stats().pack_bytes += SEAL_LEN as u64;
        Ok(())
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
        Ok(OpenPack {
            number,
            file,
            len: HEADER_LEN as u64,
            tally: Tally::default(),
        })
    }

    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        let mut append = self.append();
        append.refuse_if_closed()?;
        if self.pending().is_empty() && append.sealed.is_empty() && !append.relaxed {
            return Ok(());
        }
        if let Some(open) = &append.open
            && let Err(e) = open.file.sync()
        {
            let what = format!("sync {}", open.number);
            return Err(self.close(&mut append, StoreError::io(what, e)));
        }
        self.index_pending(&mut append, Durability::Synced)
    }

    /// Takes all pending records into the index. Their packs are durable.
    fn index_pending(&self, append: &mut Append, durability: Durability) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for (name, location) in self.pending().iter() {
            batch.put(entry_key(name), location.encode());
        }
        let open = append.open.as_ref().map(|open| open.state(false));
        for (number, state) in append.sealed.iter().copied().chain(open) {
            batch.put(PackState::key(number), state.encode());
        }
        // Never empty, so that a synced commit always makes the relaxed ones before it durable.
        batch.put(META_KEY, encode_meta(self.realm, self.key.key_id()));
        match self.kv.commit(batch, durability) {
            Ok(()) => {}
            // Everything stays pending; a later commit tries again.
            Err(e @ KvError::NoSpace { .. }) => return Err(e.into()),
            Err(e) => return Err(self.close(append, e.into())),
        }
        append.sealed.clear();
        append.relaxed = durability == Durability::Relaxed;
        self.pending_mut().clear();
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Deals with a failed write to the open pack: a full disk costs only what was being written.
    fn write_failed(&self, append: &mut Append, error: std::io::Error) -> StoreError {
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
        self.pending_mut().clear();
        error
    }
}

impl StoreStats {
    fn count(&mut self, header: &RecordHeader, record_len: u64) {
        match header.name.kind {
            RecordKind::Chunk => self.chunks += 1,
            RecordKind::Node => self.nodes += 1,
        }
        self.raw_bytes += u64::from(header.raw_len);
        self.pack_bytes += record_len;
    }
}
