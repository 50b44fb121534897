//! The import pipeline: one thread reads and cuts, several hash, compress and store, one puts the manifest together in order.
//!
//! ```text
//! reader + chunker ──batches──► workers (BLAKE3, zstd, store) ──names──► manifest builder
//! ```
//!
//! Invariant: at most [`IN_FLIGHT_BYTES_MAX`] of the disk are in memory, however large it is and however slow the store. Holes are
//! never read. A failure anywhere stops all stages, and the first one is what is reported.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use dedup::{Chunk, ChunkId, Chunker, ChunkerParams, IdKey, ManifestBuilder, Piece};
use dedup_image::{DiskImage, ImageError, ImageFormat, Region, RegionKind};
use dedup_protocol::records::TreeRef;
use dedup_store::{Put, Writer};

use super::{PublishError, worker_count};
use crate::datacenter::Datacenter;
use crate::operations::Meter;

/// Disk bytes read at once. Sequential reads of a megabyte keep any disk busy.
const READ_BYTES: usize = 1 << 20;
/// Bytes in one batch, the unit in which work is handed over: about 128 chunks, so that the queue's lock costs nothing.
const BATCH_BYTES: usize = 2 << 20;
/// Pieces in one batch, so that a disk of many holes does not gather them without end.
const BATCH_PIECES: usize = 4096;
/// Batches that wait for a worker.
const QUEUE_BATCHES: usize = 32;
/// Most workers; the store takes one writer's bytes at a time, so more would only hold memory.
pub(super) const WORKERS_MAX: usize = 64;
/// Most disk bytes in memory, about 220 MiB: a publish must not starve the machine's page cache. One batch is with the reader, one
/// with each worker.
pub const IN_FLIGHT_BYTES_MAX: usize =
    (QUEUE_BATCHES + WORKERS_MAX + 1) * (BATCH_BYTES + dedup::CHUNK_BYTES_MAX);
const _: () = assert!(IN_FLIGHT_BYTES_MAX <= 256 << 20);

/// A disk or file that is in the store now, though not committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its tree.
    pub tree: TreeRef,
    /// Bytes of it that are not in zero extents.
    pub data_bytes: u64,
}

/// A file in memory, seen as a disk.
pub(crate) struct MemoryFile(Bytes);

impl MemoryFile {
    pub(crate) fn boxed(bytes: Bytes) -> Box<dyn DiskImage> {
        Box::new(Self(bytes))
    }

    fn range(&self, offset: u64, len: u64) -> Result<std::ops::Range<usize>, ImageError> {
        let size_bytes = self.0.len() as u64;
        match offset.checked_add(len) {
            Some(end) if end <= size_bytes => Ok(offset as usize..end as usize),
            _ => Err(ImageError::OutOfRange {
                offset,
                len,
                size_bytes,
            }),
        }
    }
}

impl DiskImage for MemoryFile {
    fn format(&self) -> ImageFormat {
        ImageFormat::Raw
    }

    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn region_at(&mut self, offset: u64) -> Result<Region, ImageError> {
        self.range(offset, 1)?;
        Ok(Region {
            offset,
            len: self.0.len() as u64 - offset,
            kind: RegionKind::Data,
        })
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ImageError> {
        buf.copy_from_slice(&self.0[self.range(offset, buf.len() as u64)?]);
        Ok(())
    }
}

/// Pieces of the disk, in order.
struct Batch {
    sequence: u64,
    pieces: Vec<PieceLen>,
    /// The data pieces' bytes, one after the other.
    bytes: Vec<u8>,
}

enum PieceLen {
    Zero(u64),
    Data(usize),
}

/// What became of a batch.
struct Named {
    sequence: u64,
    pieces: Vec<NamedPiece>,
}

enum NamedPiece {
    Zero(u64),
    Chunk(ChunkId, u32),
}

/// The first failure of any stage; it makes all others stop.
#[derive(Default)]
pub(super) struct Failure {
    stop: AtomicBool,
    first: Mutex<Option<PublishError>>,
}

impl Failure {
    pub(super) fn set(&self, error: PublishError) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        self.stop.store(true, Ordering::Release);
    }

    pub(super) fn is_set(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn into_result(self) -> Result<(), PublishError> {
        let first = self.first.into_inner();
        match first.unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Chunks and stores all of `source`, and its manifest. The caller commits the store.
pub fn import(
    datacenter: &Datacenter,
    source: &mut dyn DiskImage,
    params: ChunkerParams,
    meter: &Meter,
) -> Result<Imported, PublishError> {
    let failure = Failure::default();
    let key = datacenter.id_key();
    let writer = datacenter.store().writer();
    let (batches_in, batches_out) = sync_channel(QUEUE_BATCHES);
    let batches_out = Mutex::new(batches_out);
    let (named_in, named_out) = sync_channel(QUEUE_BATCHES);
    let built = std::thread::scope(|scope| {
        let (failure, batches_out) = (&failure, &batches_out);
        scope.spawn(move || {
            if let Err(error) = read(source, params, batches_in, failure, meter) {
                failure.set(error);
            }
        });
        for _ in 0..worker_count(datacenter) {
            let (named_in, writer) = (named_in.clone(), writer.clone());
            scope.spawn(move || work(key, &writer, batches_out, &named_in, failure, meter));
        }
        drop(named_in);
        build(key, params, &writer, &named_out, failure, meter)
    });
    failure.into_result()?;
    built
}

/// Reads the disk region by region and cuts it into batches.
fn read(
    source: &mut dyn DiskImage,
    params: ChunkerParams,
    out: SyncSender<Batch>,
    failure: &Failure,
    meter: &Meter,
) -> Result<(), PublishError> {
    let mut batcher = Batcher {
        out,
        sequence: 0,
        pieces: Vec::new(),
        bytes: Vec::new(),
    };
    let mut chunker = Chunker::new(params);
    let mut buf = vec![0; READ_BYTES];
    let size = source.size_bytes();
    let mut at = 0;
    while at < size {
        if failure.is_set() {
            return Ok(());
        }
        if meter.is_cancelled() {
            return Err(PublishError::Cancelled);
        }
        let region = source.region_at(at)?;
        match region.kind {
            RegionKind::Zero => {
                chunker.push_zero(region.len, &mut |piece| batcher.push(piece));
                at += region.len;
            }
            RegionKind::Data => {
                let len = region.len.min(READ_BYTES as u64) as usize;
                source.read_at(at, &mut buf[..len])?;
                chunker.push_data(&buf[..len], &mut |piece| batcher.push(piece));
                at += len as u64;
            }
        }
    }
    chunker.finish(&mut |piece| batcher.push(piece));
    batcher.flush();
    Ok(())
}

struct Batcher {
    out: SyncSender<Batch>,
    sequence: u64,
    pieces: Vec<PieceLen>,
    bytes: Vec<u8>,
}

impl Batcher {
    fn push(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Zero(len) => self.pieces.push(PieceLen::Zero(len)),
            Piece::Data(data) => {
                self.pieces.push(PieceLen::Data(data.len()));
                self.bytes.extend_from_slice(data);
            }
        }
        if self.bytes.len() >= BATCH_BYTES || self.pieces.len() >= BATCH_PIECES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.pieces.is_empty() {
            return;
        }
        let batch = Batch {
            sequence: self.sequence,
            pieces: std::mem::take(&mut self.pieces),
            bytes: std::mem::replace(&mut self.bytes, Vec::with_capacity(BATCH_BYTES)),
        };
        self.sequence += 1;
        // Workers leave only when they have failed, and that is reported already.
        self.out.send(batch).ok();
    }
}

/// Names and stores batches until there are no more.
fn work(
    key: &IdKey,
    writer: &Writer,
    batches: &Mutex<Receiver<Batch>>,
    out: &SyncSender<Named>,
    failure: &Failure,
    meter: &Meter,
) {
    loop {
        let next = batches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(batch) = next else { return };
        if failure.is_set() {
            // Keeps taking, so that the reader is not stuck on a full queue.
            continue;
        }
        match store_batch(key, writer, batch, meter) {
            Ok(named) => {
                out.send(named).ok();
            }
            Err(error) => failure.set(error),
        }
    }
}

fn store_batch(
    key: &IdKey,
    writer: &Writer,
    batch: Batch,
    meter: &Meter,
) -> Result<Named, PublishError> {
    let mut bytes = Bytes::from(batch.bytes);
    let mut pieces = Vec::with_capacity(batch.pieces.len());
    for piece in batch.pieces {
        pieces.push(match piece {
            PieceLen::Zero(len) => NamedPiece::Zero(len),
            PieceLen::Data(len) => {
                let chunk = Chunk::new(key, bytes.split_to(len));
                match writer.put_chunk(&chunk)? {
                    Put::New { stored_bytes } => {
                        meter.new_chunks.fetch_add(1, Ordering::Relaxed);
                        meter
                            .stored_bytes
                            .fetch_add(stored_bytes, Ordering::Relaxed);
                    }
                    Put::Known => {
                        meter.known_chunks.fetch_add(1, Ordering::Relaxed);
                    }
                }
                let len = u32::try_from(len).expect("chunks are at most 256 KiB");
                NamedPiece::Chunk(chunk.id(), len)
            }
        });
    }
    Ok(Named {
        sequence: batch.sequence,
        pieces,
    })
}

/// Puts the manifest together in disk order and stores it.
fn build(
    key: &IdKey,
    params: ChunkerParams,
    writer: &Writer,
    named: &Receiver<Named>,
    failure: &Failure,
    meter: &Meter,
) -> Result<Imported, PublishError> {
    let mut builder = ManifestBuilder::new(key.clone(), params);
    let mut data_bytes = 0;
    let mut early = BTreeMap::new();
    let mut next = 0;
    while let Ok(batch) = named.recv() {
        if failure.is_set() {
            continue;
        }
        early.insert(batch.sequence, batch.pieces);
        while let Some(pieces) = early.remove(&next) {
            next += 1;
            for piece in pieces {
                match piece {
                    NamedPiece::Zero(len) => {
                        builder.push_zero(len);
                        meter.advance(len);
                    }
                    NamedPiece::Chunk(id, len) => {
                        builder.push_chunk(id, len);
                        data_bytes += u64::from(len);
                        meter.advance(u64::from(len));
                    }
                }
            }
            for (id, bytes) in builder.take_leaves() {
                if let Err(error) = writer.put_node(id, &bytes) {
                    failure.set(error.into());
                }
            }
        }
    }
    let (manifest, leaves) = builder.finish();
    let sealed = manifest.seal(key);
    for (id, bytes) in leaves.iter().chain(&sealed.nodes) {
        writer.put_node(*id, bytes)?;
    }
    Ok(Imported {
        tree: TreeRef {
            root: sealed.root,
            size_bytes: manifest.size_bytes,
        },
        data_bytes,
    })
}
