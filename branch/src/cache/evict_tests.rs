//! Eviction against a plain list: the lowest rank first, the coldest of it first, no more than asked for, nothing without a rank.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dedup::ChunkId;
use dedup_store::kv::MemKv;
use proptest::prelude::*;

use super::tests::{KIB, open_with, options, sized};
use super::{Cache, CacheOptions, ReadOutcome};

const CHUNKS: u64 = 24;

/// One step of a cache's life.
#[derive(Debug, Clone)]
enum Step {
    Insert(u64),
    Read(u64),
    Remove(u64),
    /// By these ranks, chunk by chunk; none is pinned.
    Evict {
        kib: u64,
        ranks: Vec<Option<u8>>,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let ranks = prop::collection::vec(prop::option::weighted(0.8, 0..4u8), CHUNKS as usize);
    prop_oneof![
        6 => (0..CHUNKS).prop_map(Step::Insert),
        4 => (0..CHUNKS).prop_map(Step::Read),
        1 => (0..CHUNKS).prop_map(Step::Remove),
        3 => (0..200u64, ranks).prop_map(|(kib, ranks)| Step::Evict { kib, ranks }),
        1 => Just(Step::Restart),
    ]
}

fn len(n: u64) -> usize {
    [100, 4096, 9000, 40_000][n as usize % 4]
}

fn slots_bytes(n: u64) -> u64 {
    (len(n) as u64).div_ceil(4096) * 4096
}

/// What is held, with the tick of its last use.
fn held(cache: &Cache) -> BTreeMap<u64, u32> {
    (0..CHUNKS)
        .filter_map(|n| Some((n, cache.map.find(&sized(n, len(n)).id())?.tick)))
        .collect()
}

fn check_eviction(
    before: &BTreeMap<u64, u32>,
    after: &BTreeMap<u64, u32>,
    ranks: &[Option<u8>],
    bytes_wanted: u64,
    freed: u64,
) -> Result<(), TestCaseError> {
    let rank = |n: &u64| ranks[*n as usize];
    let gone: Vec<u64> = before
        .keys()
        .filter(|n| !after.contains_key(*n))
        .copied()
        .collect();
    let bytes = |chunks: &[u64]| chunks.iter().map(|n| slots_bytes(*n)).sum::<u64>();
    prop_assert_eq!(freed, bytes(&gone), "what is told is what went");
    prop_assert!(after.keys().all(|n| before.contains_key(n)));
    prop_assert!(
        gone.iter().all(|n| rank(n).is_some()),
        "{gone:?} of {ranks:?}"
    );
    let most = gone.iter().map(|n| slots_bytes(*n)).max().unwrap_or(0);
    prop_assert!(
        freed < bytes_wanted.max(1) + most,
        "no more than was asked for"
    );
    let few = (bytes_wanted / 8).max(1);
    let mut lower = 0;
    for at in 0..4u8 {
        let of_rank = |n: &&u64| rank(n) == Some(at);
        let went: Vec<u64> = gone.iter().filter(of_rank).copied().collect();
        let left: Vec<u64> = after.keys().filter(of_rank).copied().collect();
        if !went.is_empty() {
            prop_assert!(lower < few, "{lower} bytes of lower ranks were enough");
        }
        lower += bytes(&went);
        // What is left of a rank is left because that was enough, or because lower ranks were.
        prop_assert!(
            left.is_empty()
                || bytes_wanted == 0
                || lower >= bytes_wanted
                || (went.is_empty() && lower >= few),
            "{lower} bytes of {bytes_wanted}, and {left:?} of rank {at} would have been left to take"
        );
        let warmest_gone = went.iter().map(|n| before[n]).max();
        let coldest_left = left.iter().map(|n| before[n]).min();
        if let (Some(gone), Some(left)) = (warmest_gone, coldest_left) {
            prop_assert!(
                gone <= left,
                "one of tick {gone} went, one of {left} stayed"
            );
        }
        if !left.is_empty() && bytes_wanted > 0 {
            let higher = gone.iter().any(|n| rank(n) > Some(at));
            prop_assert!(!higher, "something above rank {at} went before {left:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_lowest_rank_goes_first_and_the_coldest_of_it(steps in prop::collection::vec(step(), 1..80)) {
        let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
        // A tick for every 4 KiB that come in.
        let options = CacheOptions { capacity_bytes: 4096 * KIB, sync_bytes: 64 * KIB, ..options() };
        let mut cache = open_with(root.path(), &kv, options.clone()).unwrap();
        let names: HashMap<ChunkId, u64> = (0..CHUNKS).map(|n| (sized(n, len(n)).id(), n)).collect();
        for step in steps {
            match step {
                Step::Insert(n) => { cache.insert(&sized(n, len(n))).unwrap(); }
                Step::Read(n) => {
                    let was = cache.contains(&sized(n, len(n)).id());
                    let mut buf = vec![0; len(n)];
                    let read = cache.read(&sized(n, len(n)).id(), 0, &mut buf).unwrap();
                    prop_assert_eq!(read == ReadOutcome::Hit, was);
                }
                Step::Remove(n) => { cache.remove(&sized(n, len(n)).id()).unwrap(); }
                Step::Evict { kib, ranks } => {
                    let before = held(&cache);
                    let freed = cache.evict_ranked(kib * KIB, &|id| ranks[names[&id] as usize]).unwrap();
                    check_eviction(&before, &held(&cache), &ranks, kib * KIB, freed)?;
                    let mut told = BTreeMap::new();
                    cache.visit(&mut |id, bytes| { told.insert(names[&id], bytes); });
                    let held: BTreeMap<u64, u64> = held(&cache).keys().map(|n| (*n, slots_bytes(*n))).collect();
                    prop_assert_eq!(told, held);
                }
                Step::Restart => {
                    cache.sync().unwrap();
                    drop(cache);
                    cache = open_with(root.path(), &kv, options.clone()).unwrap();
                }
            }
        }
    }
}
