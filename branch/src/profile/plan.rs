//! A version's profile as the order in which its chunks are fetched, a recording as entries, and how well the two agreed. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use dedup::ChunkId;
use dedup_protocol::profile::{BootScore, Entries, Entry, Place};

use super::Touch;
use crate::content_map::ContentMap;

/// What is fetched ahead of one boot.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Counter of the profile; 0 without one.
    pub profile: u64,
    /// Chunk numbers in the order in which the guest will ask, each chunk once.
    pub order: Arc<[u32]>,
    /// Those of them that were missing when the boot began.
    absent: Vec<u32>,
}

impl Plan {
    /// By the profile with counter `profile`. `resident` says what is here now.
    pub fn new(
        profile: u64,
        entries: &Entries,
        map: &ContentMap,
        resident: impl Fn(&ChunkId) -> bool,
    ) -> Self {
        let order = order(map, entries);
        let missing = |index: &&u32| !resident(&map.chunk(**index as usize).id);
        Self {
            profile,
            absent: order.iter().filter(missing).copied().collect(),
            order,
        }
    }

    /// How a boot went that followed this plan. `resident` says what is here at its end.
    pub fn score(
        &self,
        map: &ContentMap,
        touches: &[Touch],
        resident: impl Fn(&ChunkId) -> bool,
    ) -> BootScore {
        let id = |index: u32| map.chunk(index as usize).id;
        let len = |index: u32| u64::from(map.chunk(index as usize).len);
        let named: HashSet<ChunkId> = self.order.iter().map(|index| id(*index)).collect();
        let mut score = BootScore {
            profile: self.profile,
            boot_ms: touches.last().map_or(0, |t| u64::from(t.at_ms)),
            ..BootScore::default()
        };
        let mut touched = HashSet::new();
        for touch in touches {
            // A chunk that the disk shows twice is touched at the first place.
            if !touched.insert(id(touch.index)) {
                continue;
            }
            let bytes = len(touch.index);
            score.touched_chunks += 1;
            score.touched_bytes += bytes;
            if !touch.hit {
                score.waited_bytes += bytes;
            } else if named.contains(&id(touch.index)) {
                score.covered_bytes += bytes;
            }
        }
        for index in self.absent.iter().filter(|index| resident(&id(**index))) {
            score.prefetched_bytes += len(*index);
            if !touched.contains(&id(*index)) {
                score.wasted_bytes += len(*index);
            }
        }
        score
    }
}

/// Numbers of the chunks that `entries` name, in their order. A place that the map does not have is passed over.
pub fn order(map: &ContentMap, entries: &Entries) -> Arc<[u32]> {
    let mut named = HashSet::with_capacity(entries.len());
    entries
        .as_slice()
        .iter()
        .filter_map(|entry| find(map, entry.place))
        .filter(|index| named.insert(map.chunk(*index as usize).id))
        .collect()
}

fn find(map: &ContentMap, place: Place) -> Option<u32> {
    let chunks = map.chunks();
    let behind = chunks.partition_point(|c| (c.leaf, c.extent) <= (place.leaf, place.extent));
    let index = behind.checked_sub(1)?;
    let chunk = &chunks[index];
    // What a leaf begins with may be the rest of the last chunk of the leaf before.
    let meant = (chunk.leaf, chunk.extent) == (place.leaf, place.extent)
        || (place.extent == 0 && chunk.leaf + 1 == place.leaf);
    meant.then_some(index as u32)
}

/// A recording as entries.
pub fn entries(map: &ContentMap, touches: &[Touch]) -> Entries {
    let entry = |touch: &Touch| {
        let chunk = map.chunk(touch.index as usize);
        Entry {
            place: Place {
                leaf: chunk.leaf,
                extent: chunk.extent,
            },
            at_ms: touch.at_ms,
            seen: 1,
        }
    };
    Entries::new(touches.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;
    use dedup::{ChunkerParams, IdKey, ManifestBuilder, NodeId, NodeSource};

    use super::*;

    struct Nodes(HashMap<NodeId, Vec<u8>>);

    #[derive(Debug, thiserror::Error)]
    #[error("missing")]
    struct Missing;

    impl NodeSource for Nodes {
        type Error = Missing;
        fn node(&self, id: NodeId) -> Result<Bytes, Missing> {
            self.0.get(&id).map(|b| b.clone().into()).ok_or(Missing)
        }
    }

    /// Chunks of 60,000 bytes, of which every 70th straddles the end of a leaf; chunk 3 stands at two places.
    fn map() -> ContentMap {
        let key = IdKey::new([1; 32]);
        let mut builder = ManifestBuilder::new(key.clone(), ChunkerParams::default());
        for number in 0u32..200 {
            let number = if number == 150 { 3 } else { number };
            builder.push_chunk(key.chunk_id(&number.to_le_bytes()), 60_000);
        }
        let (manifest, leaves) = builder.finish();
        ContentMap::load(&manifest, &Nodes(leaves.into_iter().collect()))
            .expect("all leaves are there")
    }

    fn touch(index: u32, at_ms: u32, hit: bool) -> Touch {
        Touch { index, at_ms, hit }
    }

    #[test]
    fn a_recording_comes_back_as_the_same_order() {
        let map = map();
        let touches: Vec<_> = (0..200).map(|n| touch(n * 77 % 200, n, true)).collect();
        let entries = entries(&map, &touches);
        let expected: Vec<u32> = touches.iter().map(|t| t.index).collect();
        let told = order(&map, &entries);
        // Of the chunk that stands twice only the first touch counts.
        let second =
            if expected.iter().position(|i| *i == 3) < expected.iter().position(|i| *i == 150) {
                150
            } else {
                3
            };
        let expected: Vec<u32> = expected.into_iter().filter(|i| *i != second).collect();
        assert_eq!(&told[..], &expected[..]);
    }

    #[test]
    fn places_that_the_map_lacks_are_passed_over() {
        let map = map();
        let at = |leaf, extent| Entry {
            place: Place { leaf, extent },
            at_ms: 1,
            seen: 1,
        };
        // The first extent of leaf 1 is the rest of leaf 0's last chunk.
        let entries = Entries::new(vec![at(1, 0), at(0, 8000), at(99, 0), at(1, 1)]);
        let told = order(&map, &entries);
        assert_eq!(&told[..], [69, 70]);
    }

    #[test]
    fn scores_count_what_came_in_time_and_what_came_for_nothing() {
        let map = map();
        let id = |index: usize| map.chunk(index).id;
        let named = entries(
            &map,
            &[touch(1, 0, true), touch(2, 1, true), touch(5, 2, true)],
        );
        // 1 was here before, 2 and 5 were not; 5 came for nothing, 7 was not named, 8 was here by luck.
        let plan = Plan::new(9, &named, &map, |chunk| *chunk == id(1));
        let touches = [
            touch(1, 10, true),
            touch(2, 20, true),
            touch(7, 30, false),
            touch(8, 40, true),
            touch(3, 50, true),
            touch(150, 60, true),
        ];
        let score = plan.score(&map, &touches, |_| true);
        let expected = BootScore {
            profile: 9,
            boot_ms: 60,
            touched_chunks: 5,
            touched_bytes: 300_000,
            covered_bytes: 120_000,
            waited_bytes: 60_000,
            prefetched_bytes: 120_000,
            wasted_bytes: 60_000,
        };
        assert_eq!(score, expected);
    }
}
