//! Reads of many slices at once, against the chunks' own bytes: every cut, across neighbours, gaps, evictions and reuse.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dedup::Chunk;
use dedup_store::kv::MemKv;
use proptest::prelude::*;

use super::tests::{KIB, open, open_with, options, sized};
use super::{Cache, CacheError, CacheOptions, ReadOutcome, Wanted};

/// Lengths around every threshold: a byte, a block and one more or less, a few blocks, the longest.
const LENGTHS: [usize; 8] = [1, 4095, 4096, 4097, 8192, 10_000, 20_001, 65_536];

fn chunks(count: u64) -> Vec<Chunk> {
    (0..count)
        .map(|n| sized(n, LENGTHS[n as usize % LENGTHS.len()]))
        .collect()
}

/// Reads `slices` (chunk, start, end) as one; checks every byte of those that are hits. Returns the outcomes.
fn read(
    cache: &Cache,
    chunks: &[Chunk],
    slices: &[(usize, usize, usize)],
    may_wait: bool,
) -> Vec<ReadOutcome> {
    let ids: Vec<_> = slices.iter().map(|slice| chunks[slice.0].id()).collect();
    let mut bufs: Vec<_> = slices.iter().map(|s| vec![0xEE; s.2 - s.1]).collect();
    let mut wanted: Vec<_> = ids
        .iter()
        .zip(slices)
        .zip(&mut bufs)
        .map(|((id, slice), buf)| Wanted::new(id, slice.1 as u32, buf))
        .collect();
    cache.read_slices(&mut wanted, may_wait).unwrap();
    let outcomes: Vec<_> = wanted.iter().map(|wanted| wanted.outcome).collect();
    for ((outcome, buf), &(chunk, start, end)) in outcomes.iter().zip(&bufs).zip(slices) {
        if *outcome == ReadOutcome::Hit {
            assert!(
                buf[..] == chunks[chunk].bytes()[start..end],
                "{chunk}: {start}..{end}"
            );
        }
    }
    outcomes
}

/// A slice of one of `count` chunks.
fn slice(count: usize) -> impl Strategy<Value = (usize, usize, usize)> {
    (0..count, any::<u16>(), any::<u16>()).prop_map(|(chunk, from, to)| {
        let len = LENGTHS[chunk % LENGTHS.len()] + 1;
        let (from, to) = (usize::from(from) % len, usize::from(to) % len);
        (chunk, from.min(to), from.max(to))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_slices_in_any_order_are_what_was_put_in(
        slices in prop::collection::vec(slice(24), 1..100),
        run in (0usize..20, 1usize..90),
        gone in prop::collection::vec(0usize..24, 0..6),
        reopen in any::<bool>(),
    ) {
        let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
        let chunks = chunks(24);
        let mut cache = open(root.path(), &kv);
        chunks.iter().for_each(|chunk| assert!(cache.insert(chunk).unwrap()));
        if reopen {
            // The checks then come from the slab.
            cache.sync().unwrap();
            drop(cache);
            cache = open(root.path(), &kv);
            // Not at hand yet, and not worth waiting for.
            prop_assert_eq!(read(&cache, &chunks, &[(0, 0, 1)], false), [ReadOutcome::WouldWait]);
        }
        // A sequential reader: whole chunks side by side, cut at both ends.
        let mut sequence: Vec<_> = (run.0..24.min(run.0 + run.1)).map(|n| (n, 0, LENGTHS[n % 8])).collect();
        sequence[0].1 = sequence[0].2 / 3;
        let last = sequence.last_mut().unwrap();
        last.2 -= (last.2 - last.1) / 2;
        prop_assert!(read(&cache, &chunks, &sequence, true).iter().all(|o| *o == ReadOutcome::Hit));
        prop_assert!(read(&cache, &chunks, &sequence, false).iter().all(|o| *o == ReadOutcome::Hit));
        for n in &gone {
            cache.remove(&chunks[*n].id()).unwrap();
        }
        let outcomes = read(&cache, &chunks, &slices, true);
        for (outcome, slice) in outcomes.iter().zip(&slices) {
            let want = if gone.contains(&slice.0) { ReadOutcome::Absent } else { ReadOutcome::Hit };
            prop_assert_eq!(*outcome, want);
        }
        let stats = cache.stats();
        let asked = 2 * sequence.len() as u64 + slices.len() as u64 + u64::from(reopen);
        prop_assert!(stats.hits + stats.misses <= asked && stats.damaged == 0);
    }
}

/// One bad block among neighbours costs that chunk only.
#[test]
fn damage_in_a_run_is_found_and_kept_to_its_chunk() {
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let cache = open(root.path(), &kv);
    let chunks: Vec<_> = (0..8).map(|n| sized(n, 8192)).collect();
    chunks
        .iter()
        .for_each(|chunk| assert!(cache.insert(chunk).unwrap()));
    let slices: Vec<_> = (0..8).map(|n| (n, 0, 8192)).collect();
    assert_eq!(read(&cache, &chunks, &slices, false), [ReadOutcome::Hit; 8]);
    let file = std::fs::File::options()
        .write(true)
        .open(root.path().join("cache/000000.slab"))
        .unwrap();
    let at = super::format::slot_position(256, 2 * 5 + 1) + 77;
    file.write_all_at(&[!chunks[5].bytes()[4096 + 77]], at)
        .unwrap();
    let mut expected = [ReadOutcome::Hit; 8];
    expected[5] = ReadOutcome::Quarantined;
    assert_eq!(read(&cache, &chunks, &slices, true), expected);
    assert_eq!(cache.stats().quarantined, 1);
    assert!(cache.insert(&chunks[5]).unwrap());
    assert_eq!(read(&cache, &chunks, &slices, true), [ReadOutcome::Hit; 8]);
}

/// Neighbours come and go under sequential readers: they may miss, but never see other bytes nor raise a false alarm.
#[test]
fn runs_survive_fills_evictions_and_reuse() {
    const CHUNKS: usize = 160;
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let small = CacheOptions {
        capacity_bytes: 1024 * KIB,
        sync_bytes: 256 * KIB,
        ..options()
    };
    let cache = open_with(root.path(), &kv, small).unwrap();
    let chunks = chunks(CHUNKS as u64);
    let (stop, hits) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..3usize {
            let (cache, chunks, stop, hits) = (&cache, &chunks, &stop, &hits);
            scope.spawn(move || {
                let mut at = reader;
                while !stop.load(Ordering::Relaxed) {
                    at = (at * 31 + reader + 7) % (CHUNKS - 40);
                    let run: Vec<_> = (at..at + 40).map(|n| (n, 0, LENGTHS[n % 8])).collect();
                    let outcomes = read(cache, chunks, &run, reader != 0);
                    let found = outcomes.iter().filter(|o| **o == ReadOutcome::Hit).count();
                    hits.fetch_add(found as u64, Ordering::Relaxed);
                }
            });
        }
        for round in 0..1500 {
            while let Err(error) = cache.insert(&chunks[round * 7 % CHUNKS]) {
                assert!(matches!(error, CacheError::Full { .. }), "{error}");
                cache.evict(128 * KIB, &|_| false).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(cache.stats().damaged, 0);
    assert!(hits.load(Ordering::Relaxed) > 100);
}
