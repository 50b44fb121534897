//! How much of a version is resident, without looking at every chunk for every report.
//!
//! Owns one [`Tally`] per version. Invariant: after [`Tally::update`] its figures are those of a whole look at the cache at some moment
//! since the call began. Chunks that were there stay counted until something leaves the cache; while nothing does, only those that
//! were missing are looked for again. So a report costs nothing when nothing happens, and as much as is still missing during a fill.

use std::collections::HashSet;

use dedup::ChunkId;

use crate::cache::{Cache, Churn};
use crate::fetch::queue::TreeHandle;

/// Chunks and bytes of one version, each chunk counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// All its chunks.
    pub total_chunks: u64,
    /// Their bytes.
    pub total_bytes: u64,
    /// Those that are resident and sound.
    pub resident_chunks: u64,
    /// Their bytes.
    pub resident_bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many trees were counted, and what the cache had gone through by then.
    seen: Option<(usize, Churn)>,
    figures: Figures,
    /// What was missing: tree and place.
    missing: Vec<(u8, u32)>,
}

impl Tally {
    /// Brings the figures up to date. `trees` are always the same, except that more of them may become known.
    pub fn update(&mut self, trees: &[TreeHandle], cache: &Cache) -> Figures {
        // Before the look, so that what changes during it is looked at again.
        let now = cache.churn();
        match self.seen {
            Some(seen) if seen == (trees.len(), now) => return self.figures,
            Some((count, before))
                if count == trees.len() && before.departures == now.departures =>
            {
                self.look_again(trees, cache);
            }
            _ => self.look(trees, cache),
        }
        self.seen = Some((trees.len(), now));
        self.figures
    }

    fn look(&mut self, trees: &[TreeHandle], cache: &Cache) {
        self.figures = Figures::default();
        self.missing.clear();
        let mut counted: HashSet<ChunkId> = HashSet::new();
        for (tree, handle) in (0u8..).zip(trees) {
            for (index, place) in (0u32..).zip(handle.map.chunks()) {
                if !counted.insert(place.id) {
                    continue;
                }
                self.figures.total_chunks += 1;
                self.figures.total_bytes += u64::from(place.len);
                self.missing.push((tree, index));
            }
        }
        self.look_again(trees, cache);
    }

    fn look_again(&mut self, trees: &[TreeHandle], cache: &Cache) {
        let figures = &mut self.figures;
        self.missing.retain(|&(tree, index)| {
            let place = trees[usize::from(tree)].map.chunk(index as usize);
            let resident = cache.contains(&place.id);
            figures.resident_chunks += u64::from(resident);
            figures.resident_bytes += if resident { u64::from(place.len) } else { 0 };
            !resident
        });
        self.missing.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use std::collections::HashMap;
    use std::sync::Arc;

    use bytes::Bytes;
    use dedup::{
        Chunk, ChunkerParams, IdKey, ManifestBuilder, NodeId, NodeSource, RealmId, VersionId,
    };
    use dedup_protocol::records::Tree;
    use dedup_store::disk::HostDisk;
    use dedup_store::kv::MemKv;
    use proptest::prelude::*;

    use super::*;
    use crate::cache::{CacheIdentity, CacheKey, CacheOptions};
    use crate::content_map::ContentMap;

    struct Leaves(HashMap<NodeId, Vec<u8>>);

    #[derive(Debug, thiserror::Error)]
    #[error("missing")]
    struct Missing;

    impl NodeSource for Leaves {
        type Error = Missing;
        fn node(&self, id: NodeId) -> Result<Bytes, Missing> {
            self.0.get(&id).map(|b| b.clone().into()).ok_or(Missing)
        }
    }

    fn chunk(key: &IdKey, n: u32) -> Chunk {
        let bytes: Vec<u8> = (0..3000 + n * 7)
            .map(|i| (i * 31 + n * 131) as u8)
            .collect();
        Chunk::new(key, Bytes::from(bytes))
    }

    fn tree(key: &IdKey, tree: Tree, numbers: &[u32]) -> TreeHandle {
        let mut builder = ManifestBuilder::new(key.clone(), ChunkerParams::default());
        for &n in numbers {
            let chunk = chunk(key, n);
            builder.push_chunk(chunk.id(), chunk.bytes().len() as u32);
            builder.push_zero(4096);
        }
        let (manifest, leaves) = builder.finish();
        let map = ContentMap::load(&manifest, &Leaves(leaves.into_iter().collect())).unwrap();
        let (version, map) = (VersionId([1; 32]), Arc::new(map));
        TreeHandle { version, tree, map }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Whatever comes and goes, and whenever a report is asked for, the figures are those of a whole count.
        #[test]
        fn figures_are_those_of_a_whole_count(steps in prop::collection::vec((0..40u32, 0..5u8), 1..120)) {
            let key = IdKey::new([5; 32]);
            let root = tempfile::tempdir().unwrap();
            let identity = CacheIdentity { realm: RealmId([1; 16]), key_id: key.key_id() };
            let disk = Arc::new(HostDisk::new(root.path()).unwrap());
            let options = CacheOptions { capacity_bytes: 1 << 20, slab_bytes: 1 << 20, ..CacheOptions::default() };
            let cache = Cache::open(disk, "c", Arc::new(MemKv::new()), identity, [9; 16], CacheKey::new([4; 32]), options).unwrap();
            // Chunks shown twice in a tree, and by both trees.
            let all: Vec<u32> = (0..30).chain(5..10).collect();
            let trees = [tree(&key, Tree::Disk, &all), tree(&key, Tree::Kernel, &[3, 31, 32])];
            let mut tally = Tally::default();
            for (n, step) in steps {
                match step {
                    0 | 1 => { cache.insert(&chunk(&key, n)).unwrap(); }
                    2 => { cache.remove(&chunk(&key, n).id()).unwrap(); }
                    3 if n % 8 == 0 => { cache.evict(16 << 10, &|_| false).unwrap(); }
                    _ => {
                        let mut want = Figures::default();
                        for n in (0..30).chain([31, 32]) {
                            let chunk = chunk(&key, n);
                            let (len, here) = (chunk.bytes().len() as u64, cache.contains(&chunk.id()));
                            want.total_chunks += 1;
                            want.total_bytes += len;
                            want.resident_chunks += u64::from(here);
                            want.resident_bytes += if here { len } else { 0 };
                        }
                        prop_assert_eq!(tally.update(&trees, &cache), want);
                    }
                }
            }
        }
    }
}
