//! Room in a full cache, as deliveries make it: by rank, never what is pinned for fill, never what is needed while the line is down.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use dedup::{ChunkerParams, IdKey, ManifestBuilder, NodeId, NodeSource, RealmId, VersionId};
use dedup_store::disk::HostDisk;
use dedup_store::kv::MemKv;
use proptest::prelude::*;

use super::*;
use crate::cache::{CacheIdentity, CacheKey, CacheOptions};
use crate::content_map::ContentMap;
use crate::keep::{Need, Rank};

const CHUNK_BYTES: usize = 16 << 10;
/// Chunks of each rank; the cache holds a third of all.
const EACH: u32 = 18;
const FIT: u64 = 30;

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

fn key() -> IdKey {
    IdKey::new([5; 32])
}

fn chunk(n: u32) -> Chunk {
    let bytes: Vec<u8> = (0..CHUNK_BYTES as u32)
        .map(|i| (i.wrapping_mul(31) ^ (i >> 8).wrapping_mul(n + 7)) as u8)
        .collect();
    Chunk::new(&key(), [&n.to_le_bytes()[..], &bytes[4..]].concat().into())
}

fn rank_of(n: u32) -> Rank {
    Rank::ALL[(n / EACH) as usize]
}

/// A tree of the chunks of one rank.
fn need(rank: Rank) -> Need {
    let mut builder = ManifestBuilder::new(key(), ChunkerParams::default());
    for n in (0..EACH * 5).filter(|n| rank_of(*n) == rank) {
        builder.push_chunk(chunk(n).id(), CHUNK_BYTES as u32);
    }
    let (manifest, leaves) = builder.finish();
    let map = ContentMap::load(&manifest, &Leaves(leaves.into_iter().collect())).unwrap();
    let tree = TreeHandle {
        version: VersionId([rank as u8; 32]),
        tree: Tree::Disk,
        map: Arc::new(map),
    };
    Need {
        tree,
        only: None,
        rank,
    }
}

fn fetcher(root: &std::path::Path) -> Fetcher {
    let identity = CacheIdentity {
        realm: RealmId([1; 16]),
        key_id: key().key_id(),
    };
    let options = CacheOptions {
        capacity_bytes: FIT * CHUNK_BYTES as u64,
        slab_bytes: FIT * CHUNK_BYTES as u64,
        ..CacheOptions::default()
    };
    let disk = Arc::new(HostDisk::new(root).unwrap());
    let kv = Arc::new(MemKv::new());
    let sealed = CacheKey::new([4; 32]);
    let cache = Cache::open(disk, "c", kv, identity, [9; 16], sealed, options).unwrap();
    let fetcher = Fetcher::new(Arc::new(cache), Duration::from_secs(1));
    // What is loose is what no need names.
    let needs: Vec<Need> = Rank::ALL[1..].iter().map(|rank| need(*rank)).collect();
    fetcher.set_needs(Box::new(move || Ranks::new(&needs)));
    fetcher
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn room_is_made_by_rank(steps in prop::collection::vec((0..EACH * 5, 0..3u8, prop::bool::weighted(0.7)), 1..160)) {
        let root = tempfile::tempdir().unwrap();
        let fetcher = fetcher(root.path());
        let chunks: Vec<Chunk> = (0..EACH * 5).map(chunk).collect();
        let held = || -> Vec<u32> {
            (0..EACH * 5).filter(|n| fetcher.cache().contains(&chunks[*n as usize].id())).collect()
        };
        for (n, urgency, connected) in steps {
            let urgency = [Urgency::Demand, Urgency::Boot, Urgency::Fill][usize::from(urgency)];
            fetcher.set_connected(connected);
            let before = held();
            let result = fetcher.deliver(urgency, std::slice::from_ref(&chunks[n as usize]));
            let after = held();
            let gone: Vec<u32> = before.iter().filter(|b| !after.contains(b)).copied().collect();
            let may_go = |n: &u32| rank_of(*n).gives_way(urgency, connected);
            let lowest = before.iter().filter(|n| may_go(n)).map(|n| rank_of(*n)).min();
            for gone in &gone {
                prop_assert!(may_go(gone), "{:?} went for {urgency:?}, link up: {connected}", rank_of(*gone));
                prop_assert_eq!(Some(rank_of(*gone)), lowest, "the lowest rank goes alone");
                prop_assert!(connected || rank_of(*gone) == Rank::Loose);
                prop_assert!(urgency == Urgency::Demand || !rank_of(*gone).is_pinned());
            }
            prop_assert!(gone.is_empty() || before.len() as u64 == FIT, "nothing goes before it is full");
            match result {
                Ok(()) => prop_assert!(after.contains(&n)),
                Err(error) => {
                    prop_assert!(is_full(&error), "{error}");
                    prop_assert_eq!(lowest, None, "something could have gone");
                    prop_assert_eq!(before, after);
                }
            }
        }
    }
}

#[test]
fn a_host_without_room_gets_what_a_fill_may_push_out() {
    for (connected, gone) in [(true, 8), (false, 2)] {
        let root = tempfile::tempdir().unwrap();
        let fetcher = fetcher(root.path());
        fetcher.set_connected(connected);
        // Loose, spare, and whole.
        let numbers = (0..2).chain(EACH..EACH + 6).chain(2 * EACH..2 * EACH + 6);
        let chunks: Vec<Chunk> = numbers.map(chunk).collect();
        fetcher.deliver(Urgency::Demand, &chunks).unwrap();
        // One pass would end with the loose ones: they are a quarter of this.
        fetcher.give_room(8 * CHUNK_BYTES as u64).unwrap();
        let held = chunks.iter().map(|c| fetcher.cache().contains(&c.id()));
        let held: Vec<bool> = held.collect();
        let expected = [vec![false; gone], vec![true; chunks.len() - gone]].concat();
        assert_eq!(held, expected, "link up: {connected}");
    }
}
