//! The import pipeline: one thread reads, several cut, hash, compress and store, one puts the manifest together in order.
//!
//! ```text
//! reader ──strips──► workers: scan (zero runs, likely cuts) ──► join, in disk order: where chunks really begin
//!                    workers: BLAKE3, known?, zstd, store   ◄── batches ──┘
//!                       └──names──► manifest builder
//! ```
//!
//! Invariants: at most [`IN_FLIGHT_BYTES_MAX`] of the disk are in memory, however large it is and however slow the store; holes are
//! never read; what comes out depends on the disk alone, not on the number of workers. A failure anywhere stops all stages, and the
//! first one is what is reported. Decision 0026 has the figures.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use dedup::chunker::strips::{Joiner, Part, Scan};
use dedup::{Chunk, ChunkId, ChunkerParams, IdKey, ManifestBuilder};
use dedup_image::{DiskImage, ImageError, ImageFormat, Region, RegionKind};
use dedup_protocol::records::TreeRef;
use dedup_store::{Hold, Put, Writer};

use super::queue::{Failure, Pool, Queue, StopOnPanic};
use super::strips::{STRIP_BYTES, Strip, StripReader};
use super::{PublishError, worker_count};
use crate::datacenter::Datacenter;
use crate::operations::Meter;

/// Most workers; the store takes one writer's bytes at a time, so more would only hold memory.
pub(super) const WORKERS_MAX: usize = 64;
/// Most strips in memory: as many for workers as wait, so that neither reader nor workers wait for the other.
const STRIPS_MAX: usize = WORKERS_MAX + WORKERS_MAX / 2;
/// Most disk bytes in memory, 192 MiB (18 MiB with two workers): a publish must not starve the machine's page cache. Each worker also
/// holds what it compressed of one strip, which is less.
pub const IN_FLIGHT_BYTES_MAX: usize = STRIPS_MAX * STRIP_BYTES;
const _: () = assert!(IN_FLIGHT_BYTES_MAX <= 192 << 20);
/// Holes and strips that wait for a worker. Only strips hold memory, and their buffers are counted.
const WAITING_MAX: usize = STRIPS_MAX;
/// Named batches that wait for the builder, a few KiB each.
const NAMED_MAX: usize = 64;

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

/// What a worker does next.
enum Job {
    /// Look through the strip at this place in the sequence.
    Scan(u64, Strip),
    /// The disk ended with the strip before this place.
    End(u64),
    /// Name and store chunks.
    Store(Batch),
}

/// Chunks and zero runs of the disk, in order.
struct Batch {
    sequence: u64,
    parts: Vec<Part>,
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

/// All that the threads of one import share.
struct Import<'a> {
    key: &'a IdKey,
    params: ChunkerParams,
    meter: &'a Meter,
    queue: Queue<Job>,
    pool: Pool,
    lineup: Mutex<Lineup>,
    failure: Failure,
}

/// Strips that were scanned out of order, and the joiner that takes them in order.
struct Lineup {
    early: BTreeMap<u64, Scanned>,
    next: u64,
    /// `None` when the disk has ended.
    joiner: Option<Joiner>,
    batches: u64,
}

enum Scanned {
    Zero(u64),
    Data(Bytes, Scan),
    End,
}

/// Chunks and stores all of `source`, and its manifest. The caller commits the store, and keeps `hold` until something durable refers to
/// the manifest.
pub fn import(
    datacenter: &Datacenter,
    hold: &Hold,
    source: &mut dyn DiskImage,
    params: ChunkerParams,
    meter: &Meter,
) -> Result<Imported, PublishError> {
    let workers = worker_count(datacenter);
    let strips = (2 * workers + 2).min(STRIPS_MAX);
    let writer = hold.writer();
    let import = Import {
        key: datacenter.id_key(),
        params,
        meter,
        queue: Queue::new(WAITING_MAX),
        pool: Pool::new(strips, STRIP_BYTES),
        lineup: Mutex::new(Lineup {
            early: BTreeMap::new(),
            next: 0,
            joiner: Some(Joiner::new(params)),
            batches: 0,
        }),
        failure: Failure::default(),
    };
    let (named_in, named_out) = sync_channel(NAMED_MAX);
    let built = std::thread::scope(|scope| {
        let import = &import;
        scope.spawn(move || import.read(source));
        for _ in 0..workers {
            let (named_in, writer) = (named_in.clone(), writer.clone());
            scope.spawn(move || import.work(&writer, &named_in));
        }
        drop(named_in);
        import.build(&writer, &named_out)
    });
    import.failure.into_result()?;
    built
}

impl Import<'_> {
    fn fail(&self, error: PublishError) {
        self.failure.set(error);
        self.queue.stop();
        self.pool.stop();
    }

    fn guard(&self) -> StopOnPanic<'_, Job> {
        StopOnPanic {
            queue: &self.queue,
            pool: &self.pool,
        }
    }

    fn read(&self, source: &mut dyn DiskImage) {
        let _guard = self.guard();
        if let Err(error) = self.read_strips(source) {
            self.fail(error);
        }
    }

    fn read_strips(&self, source: &mut dyn DiskImage) -> Result<(), PublishError> {
        let mut strips = StripReader::new(source, self.pool.clone());
        let mut sequence = 0;
        loop {
            if self.meter.is_cancelled() {
                return Err(PublishError::Cancelled);
            }
            let Some(strip) = strips.next()? else { break };
            if !self.queue.push(Job::Scan(sequence, strip)) {
                return Ok(());
            }
            sequence += 1;
        }
        self.queue.push(Job::End(sequence));
        Ok(())
    }

    fn work(&self, writer: &Writer, out: &SyncSender<Named>) {
        let _guard = self.guard();
        while let Some(job) = self.queue.pop() {
            match job {
                Job::Scan(sequence, Strip::Zero(len)) => self.join(sequence, Scanned::Zero(len)),
                Job::Scan(sequence, Strip::Data(bytes)) => {
                    let scan = Scan::new(self.params, &bytes);
                    self.join(sequence, Scanned::Data(bytes, scan));
                }
                Job::End(sequence) => self.join(sequence, Scanned::End),
                Job::Store(batch) => match self.store(writer, batch) {
                    Ok(named) => {
                        // The builder takes until all workers are gone.
                        out.send(named).ok();
                    }
                    Err(error) => self.fail(error),
                },
            }
        }
    }

    /// Joins what is next in disk order. The batches that come of it are queued in disk order too.
    fn join(&self, sequence: u64, scanned: Scanned) {
        let mut lineup = self.lineup.lock().unwrap_or_else(PoisonError::into_inner);
        let lineup = &mut *lineup;
        lineup.early.insert(sequence, scanned);
        while let Some(scanned) = lineup.early.remove(&lineup.next) {
            lineup.next += 1;
            let mut parts = Vec::new();
            let mut emit = |part| parts.push(part);
            let ended = matches!(scanned, Scanned::End);
            match (&mut lineup.joiner, scanned) {
                (Some(joiner), Scanned::Zero(len)) => joiner.push_zero(len),
                (Some(joiner), Scanned::Data(bytes, scan)) => {
                    joiner.push_strip(&bytes, &scan, &mut emit);
                }
                (joiner, _) => {
                    if let Some(joiner) = joiner.take() {
                        joiner.finish(&mut emit);
                    }
                }
            }
            if !parts.is_empty() {
                let sequence = lineup.batches;
                lineup.batches += 1;
                self.queue
                    .push_urgent(Job::Store(Batch { sequence, parts }));
            }
            if ended {
                self.queue.close();
            }
        }
    }

    fn store(&self, writer: &Writer, batch: Batch) -> Result<Named, PublishError> {
        let mut pieces = Vec::with_capacity(batch.parts.len());
        let mut chunks = Vec::with_capacity(batch.parts.len());
        for part in batch.parts {
            pieces.push(match part {
                Part::Zero(len) => NamedPiece::Zero(len),
                Part::Data(bytes) => {
                    let len = u32::try_from(bytes.len()).expect("chunks are at most 256 KiB");
                    let chunk = Chunk::new(self.key, bytes);
                    let id = chunk.id();
                    chunks.push(chunk);
                    NamedPiece::Chunk(id, len)
                }
            });
        }
        let (mut new, mut known, mut stored) = (0, 0, 0);
        for put in writer.put_chunks(&chunks)? {
            match put {
                Put::New { stored_bytes } => {
                    new += 1;
                    stored += stored_bytes;
                }
                Put::Known => known += 1,
            }
        }
        let meter = self.meter;
        meter.new_chunks.fetch_add(new, Ordering::Relaxed);
        meter.known_chunks.fetch_add(known, Ordering::Relaxed);
        meter.stored_bytes.fetch_add(stored, Ordering::Relaxed);
        Ok(Named {
            sequence: batch.sequence,
            pieces,
        })
    }

    /// Puts the manifest together in disk order and stores it. Takes until all workers are gone, whatever happens.
    fn build(&self, writer: &Writer, named: &Receiver<Named>) -> Result<Imported, PublishError> {
        let mut builder = ManifestBuilder::new(self.key.clone(), self.params);
        let mut data_bytes = 0;
        let mut early = BTreeMap::new();
        let mut next = 0;
        while let Ok(batch) = named.recv() {
            if self.failure.is_set() {
                continue;
            }
            early.insert(batch.sequence, batch.pieces);
            while let Some(pieces) = early.remove(&next) {
                next += 1;
                for piece in pieces {
                    let len = match piece {
                        NamedPiece::Zero(len) => {
                            builder.push_zero(len);
                            len
                        }
                        NamedPiece::Chunk(id, len) => {
                            builder.push_chunk(id, len);
                            data_bytes += u64::from(len);
                            u64::from(len)
                        }
                    };
                    self.meter.advance(len);
                }
                for (id, bytes) in builder.take_leaves() {
                    if let Err(error) = writer.put_node(id, &bytes) {
                        self.fail(error.into());
                    }
                }
            }
        }
        if self.failure.is_set() {
            // The caller reports the failure. What is missing from the manifest makes it one of nothing, so it is not stored.
            return Err(PublishError::Cancelled);
        }
        let (manifest, leaves) = builder.finish();
        let sealed = manifest.seal(self.key);
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
}
