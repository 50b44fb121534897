//! An update from the branch's side, without the link: from which version, which batches, and what becomes of their chunks.
//!
//! Invariant: a chunk enters the cache only as a verified [`Chunk`]; a batch that cannot be decoded changes nothing. It decides, reads
//! the cache and fills it; asking the datacenter is [`crate::link`]'s.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use dedup::update::{NewChunks, TooManyChunks, UpdateBatch, UpdateRefused, decode_batch};
use dedup::{Chunk, ChunkId, IdKey, VersionId};
use dedup_protocol::records::Tree;
use dedup_protocol::update::UpdateShape;
use dedup_protocol::wire::Urgency;

use super::Fetcher;
use super::queue::TreeHandle;
use crate::cache::{Cache, CacheError, ReadOutcome};
use crate::catalog::CatalogError;
use crate::content_map::ContentMap;
use crate::versions::Versions;

/// Less than this to fetch, in plain bytes, is not worth an update.
const MISSING_BYTES_MIN: u64 = 1 << 20;

/// A parent may lack one byte in so many: the few batches that a missing chunk spoils come plain.
const PARENT_LACKS_MAX: u64 = 1000;

/// A batch of whose bytes more than this many percent are resident comes plain: the rest costs less without what is here already.
const RESIDENT_PERCENT_MAX: u64 = 60;

/// The version that an update to `version` should start from: the newest of the same image whose disk is here. `None`: so little is
/// missing that plain fill is better, or there is no such version.
pub fn parent_of(
    versions: &Versions,
    cache: &Cache,
    version: VersionId,
) -> Result<Option<VersionId>, CatalogError> {
    let Some(record) = versions.catalog().version(version)? else {
        return Ok(None);
    };
    let Some(tree) = versions.tree(version, Tree::Disk)? else {
        return Ok(None);
    };
    if missing_bytes(&tree.map, cache).0 < MISSING_BYTES_MIN {
        return Ok(None);
    }
    let mut kin = versions.catalog().versions()?;
    kin.retain(|(id, other)| other.image == record.image && *id != version);
    kin.sort_by_key(|(_, other)| std::cmp::Reverse(other.number));
    for (id, _) in kin {
        if let Some(tree) = versions.tree(id, Tree::Disk)? {
            let (missing, total) = missing_bytes(&tree.map, cache);
            if total > 0 && missing * PARENT_LACKS_MAX <= total {
                return Ok(Some(id));
            }
        }
    }
    Ok(None)
}

/// Bytes of distinct chunks that are not resident, and of all.
fn missing_bytes(map: &ContentMap, cache: &Cache) -> (u64, u64) {
    let mut seen = HashSet::with_capacity(map.chunks().len());
    let (mut missing, mut total) = (0, 0);
    for place in map.chunks() {
        if seen.insert(place.id) {
            total += u64::from(place.len);
            missing += u64::from(place.len) * u64::from(!cache.contains(&place.id));
        }
    }
    (missing, total)
}

/// What to do about a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// All of it is here.
    Nothing,
    /// Ask for it.
    Update,
    /// Ask for the chunks that are missing, plain. It has to come first: later batches may be made with these chunks.
    Plain,
}

/// An update that a branch follows: the chunks of two versions' disks.
pub struct Following {
    /// What the branch has.
    pub parent: VersionId,
    /// The disk that is to become whole.
    pub tree: TreeHandle,
    /// The chunks, as both ends number them.
    pub numbering: NewChunks,
    /// For each new chunk, its first place in the disk's map.
    places: Vec<u32>,
}

impl Following {
    /// From one disk to another.
    pub fn new(parent: &TreeHandle, tree: TreeHandle) -> Result<Self, TooManyChunks> {
        let shown = |map: &ContentMap| -> Vec<(ChunkId, u32)> {
            map.chunks()
                .iter()
                .map(|place| (place.id, place.len))
                .collect()
        };
        let numbering = NewChunks::between(shown(&parent.map), shown(&tree.map))?;
        // New chunks are in the order in which the disk shows them first.
        let mut places = Vec::with_capacity(numbering.new.len());
        for (index, place) in (0..).zip(tree.map.chunks()) {
            let due = numbering.new.get(places.len());
            if due.is_some_and(|(id, _)| *id == place.id) {
                places.push(index);
            }
        }
        Ok(Self {
            parent: parent.version,
            tree,
            numbering,
            places,
        })
    }

    /// What to do about each batch, by what is resident.
    pub fn choose(&self, shape: &UpdateShape, resident: impl Fn(&ChunkId) -> bool) -> Vec<Choice> {
        let choice = |number| {
            let (mut here, mut total) = (0, 0);
            for (id, len) in self.new_chunks(shape.chunks(number)) {
                total += u64::from(*len);
                here += u64::from(*len) * u64::from(resident(id));
            }
            if here == total {
                Choice::Nothing
            } else if here * 100 > total * RESIDENT_PERCENT_MAX {
                Choice::Plain
            } else {
                Choice::Update
            }
        };
        (0..shape.len() as u32).map(choice).collect()
    }

    /// Some of the new chunks.
    pub fn new_chunks(&self, indexes: Range<u32>) -> &[(ChunkId, u32)] {
        &self.numbering.new[indexes.start as usize..indexes.end as usize]
    }

    /// Index in the disk's map of the first place of new chunk `index`.
    pub fn place_of(&self, index: u32) -> usize {
        self.places[index as usize] as usize
    }

    /// Plain bytes of a batch.
    pub fn plain_bytes(&self, shape: &UpdateShape, number: u32) -> u64 {
        let chunks = self.new_chunks(shape.chunks(number));
        chunks.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    /// The batches whose chunks a batch was made with, among those before it.
    pub fn made_with(&self, shape: &UpdateShape, batch: &UpdateBatch) -> Vec<u32> {
        let first_new = self.numbering.number_of_new(0);
        let new = batch.prefix.iter().filter_map(|n| n.checked_sub(first_new));
        let mut batches: Vec<u32> = new
            .filter(|index| *index < batch.first)
            .filter_map(|index| shape.batch_of(index))
            .collect();
        batches.sort_unstable();
        batches.dedup();
        batches
    }

    /// Decodes a batch with chunks of the cache. Blocks on the disk.
    pub fn decode(
        &self,
        batch: &UpdateBatch,
        key: &IdKey,
        cache: &Cache,
    ) -> Result<Vec<Chunk>, UpdateRefused> {
        decode_batch(batch, &self.numbering, key, |id| {
            let mut bytes = vec![0; cache.len_of(&id)? as usize];
            // What is found damaged is fetched again by whoever reads it next; this batch goes without.
            let read = cache.read(&id, 0, &mut bytes);
            matches!(read, Ok(ReadOutcome::Hit)).then(|| Bytes::from(bytes))
        })
    }
}

/// A batch's place among what is in flight as fill; given back when it is dropped.
pub struct UpdateTicket {
    fetcher: Arc<Fetcher>,
    bytes: u64,
}

impl Drop for UpdateTicket {
    fn drop(&mut self) {
        self.fetcher.state().queue.update_landed(self.bytes);
        // Plain fill may have waited for it.
        self.fetcher.work.notify_one();
    }
}

impl Fetcher {
    /// Lets a batch of an update depart, if fill may now. `bytes` and `fill_flight_bytes` as in [`super::queue::Queue::update_departs`].
    pub fn update_departs(
        self: &Arc<Self>,
        fill_flight_bytes: u64,
        bytes: u64,
    ) -> Option<UpdateTicket> {
        let now_ms = self.now_ms();
        let fill_hour = self.is_fill_hour();
        let mut state = self.state();
        state.queue.set_fill_hour(fill_hour);
        let departs = state.queue.update_departs(now_ms, fill_flight_bytes, bytes);
        drop(state);
        departs.then(|| UpdateTicket {
            fetcher: Arc::clone(self),
            bytes,
        })
    }

    /// Caches the chunks of a batch that crossed the wire in `packed_bytes`, makes them durable, and counts them: a crash costs the
    /// batches in flight. Blocks on the disk.
    pub fn deliver_update(
        &self,
        mut chunks: Vec<Chunk>,
        packed_bytes: u64,
    ) -> Result<(), CacheError> {
        // A guest may have asked for some of them meanwhile.
        chunks.retain(|chunk| !self.cache.contains(&chunk.id()));
        let bytes = chunks.iter().map(|chunk| chunk.bytes().len() as u64).sum();
        self.deliver(Urgency::Fill, &chunks)?;
        self.cache.sync()?;
        self.counters
            .update_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        self.counters
            .update_packed_bytes
            .fetch_add(packed_bytes, Ordering::Relaxed);
        Ok(())
    }
}
