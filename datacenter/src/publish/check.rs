//! Reading back: what was stored is compared with the file before anyone is told of the version.
//!
//! One thread reads the file again, leaf by leaf (holes still unread); several hash what it read, chunk by chunk as the stored leaf
//! has them, and check the chunks' records. The leaf was read from the store and proven by its name; a chunk of the file has the name
//! that the leaf gives it; and the record of that name is in its pack as it was written, which the store does only with what decodes
//! to that name (decision 0026). Of a chunk that a leaf shows a part of (it lies across two leaves, or a desktop wrote over the rest)
//! the bytes themselves are compared. So a fault of the disk, of the pipeline or a file that changed meanwhile ends the publish.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use datacenter_api::Phase;
use dedup::diff::changed_leaves;
use dedup::manifest::ManifestError;
use dedup::{ChunkId, Extent, ExtentSource, LEAF_BYTES, Leaf, Manifest, NodeId};
use dedup_image::{DiskImage, RegionKind};
use dedup_store::{RecordName, StoreError};

use super::import::Imported;
use super::queue::{Buffer, Failure, Pool, Queue, StopOnPanic};
use super::{PublishError, worker_count};
use crate::datacenter::Datacenter;
use crate::images::StoreNodes;
use crate::operations::Meter;
use crate::problem::describe;

/// Most leaves' ranges in memory.
const SPANS_MAX: usize = 44;

/// A leaf and what the file has in its place.
struct SourceLeaf {
    leaf: Leaf,
    /// Where the leaf begins on the disk, in bytes.
    start: u64,
    /// `None` if all of it is a hole and the leaf has no chunks.
    bytes: Option<Buffer>,
}

/// Compares every tree with its file; answers how many bytes were compared. With `parents`, leaves that the parent's tree in the
/// same place has are left out.
pub(crate) fn check(
    datacenter: &Datacenter,
    files: &mut [(&'static str, Box<dyn DiskImage>)],
    trees: &[Imported],
    parents: Option<&[NodeId]>,
    meter: &Meter,
) -> Result<u64, PublishError> {
    let nodes = StoreNodes(datacenter);
    let mut plans = Vec::new();
    for (i, tree) in trees.iter().enumerate() {
        let manifest = Manifest::load(&nodes, tree.tree.root)?;
        let leaves: Vec<usize> = match parents.and_then(|parents| parents.get(i)) {
            Some(parent) => changed_leaves(&nodes, *parent, tree.tree.root)?
                .iter()
                .map(|change| change.index as usize)
                .collect(),
            None => (0..manifest.leaves.len()).collect(),
        };
        plans.push((manifest, leaves));
    }
    let leaf_bytes = |manifest: &Manifest, leaves: &[usize]| -> u64 {
        let len = |i: &usize| Manifest::leaf_len(manifest.size_bytes, *i as u64);
        leaves.iter().map(len).sum()
    };
    let total = plans.iter().map(|(m, leaves)| leaf_bytes(m, leaves)).sum();
    meter.begin(Phase::Verify, total);
    let damage = Damage::default();
    for ((name, file), (manifest, leaves)) in files.iter_mut().zip(&plans) {
        check_tree(
            datacenter,
            name,
            &mut **file,
            manifest,
            leaves,
            &damage,
            meter,
        )?;
    }
    damage.into_result(datacenter)?;
    Ok(total)
}

/// One tree that is being compared.
struct Comparison<'a> {
    datacenter: &'a Datacenter,
    tree: &'static str,
    manifest: &'a Manifest,
    queue: Queue<SourceLeaf>,
    pool: Pool,
    failure: Failure,
    damage: &'a Damage,
    meter: &'a Meter,
}

fn check_tree(
    datacenter: &Datacenter,
    tree: &'static str,
    file: &mut dyn DiskImage,
    manifest: &Manifest,
    leaves: &[usize],
    damage: &Damage,
    meter: &Meter,
) -> Result<(), PublishError> {
    if file.size_bytes() != manifest.size_bytes {
        return Err(PublishError::Differs {
            tree,
            offset: file.size_bytes().min(manifest.size_bytes),
        });
    }
    let workers = worker_count(datacenter);
    let spans = (workers + 2).min(SPANS_MAX);
    let comparison = Comparison {
        datacenter,
        tree,
        manifest,
        // Leaves without data hold no buffer, so they need a limit of their own.
        queue: Queue::new(SPANS_MAX),
        pool: Pool::new(spans, LEAF_BYTES as usize),
        failure: Failure::default(),
        damage,
        meter,
    };
    std::thread::scope(|scope| {
        let comparison = &comparison;
        scope.spawn(move || comparison.read(file, leaves));
        for _ in 0..workers {
            scope.spawn(move || comparison.work());
        }
    });
    comparison.failure.into_result()
}

impl Comparison<'_> {
    fn fail(&self, error: PublishError) {
        self.failure.set(error);
        self.queue.stop();
        self.pool.stop();
    }

    fn guard(&self) -> StopOnPanic<'_, SourceLeaf> {
        StopOnPanic {
            queue: &self.queue,
            pool: &self.pool,
        }
    }

    fn read(&self, file: &mut dyn DiskImage, leaves: &[usize]) {
        let _guard = self.guard();
        match self.read_leaves(file, leaves) {
            Ok(()) => self.queue.close(),
            Err(error) => self.fail(error),
        }
    }

    fn read_leaves(&self, file: &mut dyn DiskImage, leaves: &[usize]) -> Result<(), PublishError> {
        let nodes = StoreNodes(self.datacenter);
        for &index in leaves {
            if self.meter.is_cancelled() {
                return Err(PublishError::Cancelled);
            }
            let leaf = match self.manifest.leaf(&nodes, index) {
                Ok(leaf) => leaf,
                Err(ManifestError::Node { id, source }) => {
                    self.damage.note(RecordName::node(id), source)?;
                    self.advance(index);
                    continue;
                }
                Err(other) => return Err(other.into()),
            };
            let Some(source) = self.read_leaf(file, index, leaf)? else {
                return Ok(());
            };
            if !self.queue.push(source) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// `None` if the others have stopped.
    fn read_leaf(
        &self,
        file: &mut dyn DiskImage,
        index: usize,
        leaf: Leaf,
    ) -> Result<Option<SourceLeaf>, PublishError> {
        let start = index as u64 * LEAF_BYTES;
        let end = start + Manifest::leaf_len(self.manifest.size_bytes, index as u64);
        let has_chunks = leaf.extents.iter().any(|extent| extent.chunk().is_some());
        let bytes = match self.read_span(file, start, end, has_chunks)? {
            Span::Hole => None,
            Span::Bytes(buffer) => Some(buffer),
            Span::Stopped => return Ok(None),
        };
        Ok(Some(SourceLeaf { leaf, start, bytes }))
    }

    /// The file's bytes from `from` to `to`. A hole gets no memory, unless there are chunks to compare with it.
    fn read_span(
        &self,
        file: &mut dyn DiskImage,
        from: u64,
        to: u64,
        has_chunks: bool,
    ) -> Result<Span, PublishError> {
        let mut buffer: Option<Buffer> = None;
        let mut at = from;
        while at < to {
            let region = file.region_at(at)?;
            let stop = region.end().min(to);
            let is_data = region.kind == RegionKind::Data;
            if buffer.is_none() && (is_data || has_chunks) {
                let Some(mut new) = self.pool.take() else {
                    return Ok(Span::Stopped);
                };
                new.truncate((to - from) as usize);
                new.bytes_mut()[..(at - from) as usize].fill(0);
                buffer = Some(new);
            }
            if let Some(buffer) = &mut buffer {
                let target = &mut buffer.bytes_mut()[(at - from) as usize..(stop - from) as usize];
                match is_data {
                    true => file.read_at(at, target)?,
                    false => target.fill(0),
                }
            }
            at = stop;
        }
        Ok(buffer.map_or(Span::Hole, Span::Bytes))
    }

    fn work(&self) {
        let _guard = self.guard();
        while let Some(source) = self.queue.pop() {
            let index = (source.start / LEAF_BYTES) as usize;
            if let Err(error) = self.compare(&source) {
                self.fail(error);
            }
            self.advance(index);
        }
    }

    fn advance(&self, index: usize) {
        let len = Manifest::leaf_len(self.manifest.size_bytes, index as u64);
        self.meter.advance(len);
    }

    fn differs(&self, offset: u64) -> PublishError {
        PublishError::Differs {
            tree: self.tree,
            offset,
        }
    }

    /// Whether the file has what the leaf says, and the store has what the leaf names.
    fn compare(&self, source: &SourceLeaf) -> Result<(), PublishError> {
        let bytes = source.bytes.as_ref().map_or(&[][..], Buffer::as_ref);
        let mut names = Vec::new();
        let mut at = source.start;
        for extent in &source.leaf.extents {
            let from = (at - source.start) as usize;
            // Nothing of a hole is in memory; no chunk lies there, as the reader has seen.
            let found = bytes.get(from..from + extent.len as usize);
            match extent.source {
                ExtentSource::Zero => {
                    let place = found.unwrap_or_default().iter().position(|b| *b != 0);
                    if let Some(place) = place {
                        return Err(self.differs(at + place as u64));
                    }
                }
                ExtentSource::Chunk { id, .. } => {
                    let found = found.ok_or_else(|| self.differs(at))?;
                    if self.compare_chunk(id, extent, found, at)? {
                        names.push(RecordName::chunk(id));
                    }
                }
            }
            at += u64::from(extent.len);
        }
        for (name, error) in self.datacenter.store().check_records(&names)? {
            self.damage.note(name, error)?;
        }
        Ok(())
    }

    /// Compares what the file has at `at` with what an extent shows of a chunk; answers whether the chunk's record is still to be checked.
    fn compare_chunk(
        &self,
        id: ChunkId,
        extent: &Extent,
        found: &[u8],
        at: u64,
    ) -> Result<bool, PublishError> {
        let ExtentSource::Chunk {
            chunk_len, offset, ..
        } = extent.source
        else {
            unreachable!("the caller has a chunk's extent");
        };
        let is_whole = offset == 0 && extent.len == chunk_len;
        if is_whole && self.datacenter.id_key().chunk_id(found) == id {
            return Ok(true);
        }
        // Of a whole one the name says that they differ; only the stored bytes say where.
        let chunk = match self.datacenter.store().chunk(id) {
            Ok(chunk) => chunk,
            Err(error) => {
                self.damage.note(RecordName::chunk(id), error)?;
                return Ok(false);
            }
        };
        let shown = chunk.bytes().get(offset as usize..).unwrap_or_default();
        let pairs = std::iter::zip(found, shown);
        let same = pairs.take_while(|(a, b)| a == b).count();
        match same == found.len() && !is_whole {
            true => Ok(false),
            false => Err(self.differs(at + same as u64)),
        }
    }
}

/// What a range of the file is.
enum Span {
    Hole,
    Bytes(Buffer),
    /// The others have stopped, so there is no memory to read it into.
    Stopped,
}

/// Damaged records found on the way. They are quarantined, so that the next publish stores them again.
#[derive(Default)]
struct Damage {
    count: AtomicU64,
    found: Mutex<(Option<String>, HashSet<RecordName>)>,
}

impl Damage {
    /// Notes a damaged record; any other failure is passed on.
    fn note(&self, name: RecordName, error: StoreError) -> Result<(), PublishError> {
        if !matches!(error, StoreError::Damaged { .. }) {
            return Err(error.into());
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.0.get_or_insert_with(|| describe(&error));
        if found.1.insert(name) {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn into_result(self, datacenter: &Datacenter) -> Result<(), PublishError> {
        let count = self.count.into_inner();
        let found = self.found.into_inner();
        let (first, names) = found.unwrap_or_else(PoisonError::into_inner);
        let Some(first) = first else { return Ok(()) };
        for name in names {
            datacenter.store().quarantine(name)?;
        }
        Err(PublishError::Damaged { count, first })
    }
}
