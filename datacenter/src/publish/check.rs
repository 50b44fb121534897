//! Reading back: what was stored is compared with the file, byte by byte, before anyone is told of the version.
//!
//! One thread reads the file again, leaf by leaf (holes still unread); several load the stored leaf and its chunks, each proved by
//! its name, and compare. So a fault of the disk, of the pipeline or a file that changed meanwhile ends the publish.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};

use datacenter_api::Phase;
use dedup::diff::changed_leaves;
use dedup::{Chunk, ExtentSource, LEAF_BYTES, Leaf, Manifest, NodeId};
use dedup_image::{DiskImage, RegionKind};
use dedup_store::{RecordName, StoreError};

use super::import::{Failure, Imported};
use super::{PublishError, worker_count};
use crate::datacenter::Datacenter;
use crate::images::StoreNodes;
use crate::operations::Meter;
use crate::problem::describe;

/// Leaves that wait for a worker: 8 of 4 MiB.
const QUEUE_LEAVES: usize = 8;

/// A leaf's range of the file.
struct SourceLeaf {
    index: usize,
    /// Its bytes; `None` if all of it is a hole.
    bytes: Option<Vec<u8>>,
}

/// Compares every tree with its file; answers how many bytes were compared. With `parents`, leaves that the parent's tree in the
/// same place has are left out.
pub(super) fn check(
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
    let failure = Failure::default();
    let (queue_in, queue_out) = sync_channel::<SourceLeaf>(QUEUE_LEAVES);
    let queue_out = Mutex::new(queue_out);
    std::thread::scope(|scope| {
        let (failure, queue_out) = (&failure, &queue_out);
        scope.spawn(move || {
            for &index in leaves {
                if failure.is_set() {
                    return;
                }
                if meter.is_cancelled() {
                    return failure.set(PublishError::Cancelled);
                }
                match read_leaf(file, manifest, index) {
                    Ok(leaf) => {
                        queue_in.send(leaf).ok();
                    }
                    Err(error) => return failure.set(error),
                }
            }
        });
        for _ in 0..worker_count(datacenter) {
            scope.spawn(move || {
                work(
                    datacenter, tree, manifest, queue_out, damage, failure, meter,
                );
            });
        }
    });
    failure.into_result()
}

fn read_leaf(
    file: &mut dyn DiskImage,
    manifest: &Manifest,
    index: usize,
) -> Result<SourceLeaf, PublishError> {
    let start = index as u64 * LEAF_BYTES;
    let end = start + Manifest::leaf_len(manifest.size_bytes, index as u64);
    let mut bytes: Option<Vec<u8>> = None;
    let mut at = start;
    while at < end {
        let region = file.region_at(at)?;
        let stop = region.end().min(end);
        if region.kind == RegionKind::Data {
            let bytes = bytes.get_or_insert_with(|| vec![0; (end - start) as usize]);
            file.read_at(
                at,
                &mut bytes[(at - start) as usize..(stop - start) as usize],
            )?;
        }
        at = stop;
    }
    Ok(SourceLeaf { index, bytes })
}

fn work(
    datacenter: &Datacenter,
    tree: &'static str,
    manifest: &Manifest,
    queue: &Mutex<Receiver<SourceLeaf>>,
    damage: &Damage,
    failure: &Failure,
    meter: &Meter,
) {
    let nodes = StoreNodes(datacenter);
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(source) = next else { return };
        if failure.is_set() {
            continue;
        }
        let start = source.index as u64 * LEAF_BYTES;
        let compared = match manifest.leaf(&nodes, source.index) {
            Ok(leaf) => compare(datacenter, &leaf, source.bytes.as_deref(), damage),
            Err(dedup::manifest::ManifestError::Node { id, source }) => {
                damage.note(RecordName::node(id), source).map(|()| None)
            }
            Err(other) => Err(other.into()),
        };
        match compared {
            Ok(None) => {}
            Ok(Some(at)) => failure.set(PublishError::Differs {
                tree,
                offset: start + at,
            }),
            Err(error) => failure.set(error),
        }
        meter.advance(Manifest::leaf_len(manifest.size_bytes, source.index as u64));
    }
}

/// The first byte of the leaf at which the store and the file differ.
fn compare(
    datacenter: &Datacenter,
    leaf: &Leaf,
    source: Option<&[u8]>,
    damage: &Damage,
) -> Result<Option<u64>, PublishError> {
    let mut at = 0;
    let mut last: Option<Chunk> = None;
    for extent in &leaf.extents {
        let len = extent.len as usize;
        let range = source.map(|bytes| &bytes[at..at + len]);
        let differs = match extent.source {
            ExtentSource::Zero => range.and_then(|bytes| bytes.iter().position(|b| *b != 0)),
            ExtentSource::Chunk { id, offset, .. } => {
                if last.as_ref().is_none_or(|chunk| chunk.id() != id) {
                    match datacenter.store().chunk(id) {
                        Ok(chunk) => last = Some(chunk),
                        Err(error) => {
                            damage.note(RecordName::chunk(id), error)?;
                            at += len;
                            continue;
                        }
                    }
                }
                let chunk = last.as_ref().expect("set just above");
                let offset = offset as usize;
                match chunk.bytes().get(offset..offset + len) {
                    None => Some(0),
                    Some(stored) => match range {
                        Some(bytes) if bytes == stored => None,
                        Some(bytes) => std::iter::zip(bytes, stored).position(|(a, b)| a != b),
                        None => stored.iter().position(|b| *b != 0),
                    },
                }
            }
        };
        if let Some(position) = differs {
            return Ok(Some((at + position) as u64));
        }
        at += len;
    }
    Ok(None)
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
