//! The cache on a real directory: damage, lost parts, eviction, readers against evictions.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use dedup::{Chunk, ChunkId, IdKey, RealmId};
use dedup_store::disk::HostDisk;
use dedup_store::kv::{Kv, MemKv};

use super::format::slot_position;
use super::{Cache, CacheError, CacheIdentity, CacheKey, CacheOptions, ReadOutcome};

pub(super) const KIB: u64 = 1024;
const SLAB_SLOTS: u32 = 256;

fn key() -> IdKey {
    IdKey::new([5; 32])
}

fn identity() -> CacheIdentity {
    CacheIdentity {
        realm: RealmId([1; 16]),
        key_id: key().key_id(),
    }
}

pub(super) fn options() -> CacheOptions {
    CacheOptions {
        capacity_bytes: 4096 * KIB,
        slab_bytes: u64::from(SLAB_SLOTS) * 4096,
        sync_bytes: 1 << 40,
        ..CacheOptions::default()
    }
}

pub(super) fn open_with(
    root: &Path,
    kv: &Arc<MemKv>,
    options: CacheOptions,
) -> Result<Cache, CacheError> {
    let disk = Arc::new(HostDisk::new(root).unwrap());
    open_under(disk, kv, CacheKey::new([4; 32]), options)
}

fn open_under(
    disk: Arc<HostDisk>,
    kv: &Arc<MemKv>,
    key: CacheKey,
    options: CacheOptions,
) -> Result<Cache, CacheError> {
    Cache::open(disk, "cache", kv.clone(), identity(), [9; 16], key, options)
}

pub(super) fn open(root: &Path, kv: &Arc<MemKv>) -> Cache {
    open_with(root, kv, options()).unwrap()
}

/// Chunk number `n`, of a length of its own.
fn chunk(n: u64) -> Chunk {
    let len = [1, 4095, 4096, 4097, 10_000, 16_384, 65_536, 20_001][n as usize % 8];
    sized(n, len)
}

pub(super) fn sized(n: u64, len: usize) -> Chunk {
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let bytes: Vec<u8> = (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    Chunk::new(&key(), Bytes::from(bytes))
}

fn whole(cache: &Cache, chunk: &Chunk) -> ReadOutcome {
    let mut buf = vec![0xEE; chunk.bytes().len()];
    let outcome = cache.read(&chunk.id(), 0, &mut buf).unwrap();
    if outcome == ReadOutcome::Hit {
        assert!(buf == chunk.bytes()[..]);
    }
    outcome
}

/// Damages byte `at` of the slots at `slot` in slab 0.
fn flip(root: &Path, slot: u32, at: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(root.join("cache/000000.slab"))
        .unwrap();
    let at = slot_position(SLAB_SLOTS, slot) + at;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn every_slice_of_a_chunk_reads_back() {
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let cache = open(root.path(), &kv);
    for n in 0..8 {
        let chunk = chunk(n);
        assert!(cache.insert(&chunk).unwrap() && !cache.insert(&chunk).unwrap());
        let len = chunk.bytes().len();
        for (from, to) in [
            (0, len),
            (len / 3, len),
            (0, len / 2),
            (len / 3, len / 2),
            (len, len),
            (len - 1, len),
        ] {
            let mut buf = vec![0xEE; to - from];
            assert_eq!(
                cache.read(&chunk.id(), from as u32, &mut buf).unwrap(),
                ReadOutcome::Hit
            );
            assert!(buf == chunk.bytes()[from..to], "{from}..{to} of {len}");
        }
        let past = cache.read(&chunk.id(), 0, &mut vec![0; len + 1]);
        assert!(matches!(past, Err(CacheError::OutOfRange { .. })));
        assert_eq!(cache.len_of(&chunk.id()), Some(len as u32));
    }
    let empty = sized(1, 0);
    assert!(cache.insert(&empty).unwrap());
    assert_eq!(whole(&cache, &empty), ReadOutcome::Hit);
    assert_eq!(whole(&cache, &sized(99, 5)), ReadOutcome::Absent);
    assert_eq!((cache.stats().chunks, cache.stats().misses), (9, 1));
    let huge = sized(3, dedup::CHUNK_BYTES_MAX + 1);
    assert!(matches!(
        cache.insert(&huge),
        Err(CacheError::TooLong { .. })
    ));
}

#[test]
fn what_was_synced_is_there_after_reopening_and_the_rest_is_absent() {
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let cache = open(root.path(), &kv);
    (0..20).for_each(|n| assert!(cache.insert(&chunk(n)).unwrap()));
    cache.sync().unwrap();
    let synced = cache.stats().bytes;
    (20..30).for_each(|n| assert!(cache.insert(&chunk(n)).unwrap()));
    drop(cache);
    let cache = open(root.path(), &kv);
    assert_eq!((cache.stats().chunks, cache.stats().bytes), (20, synced));
    (0..20).for_each(|n| assert_eq!(whole(&cache, &chunk(n)), ReadOutcome::Hit));
    (20..30).for_each(|n| assert_eq!(whole(&cache, &chunk(n)), ReadOutcome::Absent));
    // New chunks go where the unrecorded ones lay, not over the recorded ones.
    (30..60).for_each(|n| assert!(cache.insert(&chunk(n)).unwrap()));
    (0..20).for_each(|n| assert_eq!(whole(&cache, &chunk(n)), ReadOutcome::Hit));
}

#[test]
fn a_damaged_chunk_is_quarantined_and_healed_by_a_reinsert() {
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let cache = open(root.path(), &kv);
    let (victim, neighbour) = (sized(1, 20_000), sized(2, 20_000));
    cache.insert(&victim).unwrap();
    cache.insert(&neighbour).unwrap();
    cache.sync().unwrap();
    let clean = cache.stats().bytes;
    flip(root.path(), 4, 100);
    let mut buf = [0; 4096];
    assert_eq!(
        cache.read(&victim.id(), 0, &mut buf).unwrap(),
        ReadOutcome::Hit,
        "its other blocks are sound"
    );
    assert_eq!(whole(&cache, &victim), ReadOutcome::Quarantined);
    assert_eq!(
        cache.read(&victim.id(), 0, &mut buf).unwrap(),
        ReadOutcome::Quarantined
    );
    assert!(!cache.contains(&victim.id()));
    assert_eq!(whole(&cache, &neighbour), ReadOutcome::Hit);
    assert_eq!((cache.stats().quarantined, cache.stats().damaged), (1, 1));
    cache.sync().unwrap();
    drop(cache);

    let cache = open(root.path(), &kv);
    assert_eq!(
        whole(&cache, &victim),
        ReadOutcome::Quarantined,
        "it is remembered"
    );
    assert!(cache.insert(&victim).unwrap());
    assert_eq!(whole(&cache, &victim), ReadOutcome::Hit);
    assert_eq!(cache.stats().quarantined, 0);
    cache.sync().unwrap();
    drop(cache);

    let cache = open(root.path(), &kv);
    assert_eq!(whole(&cache, &victim), ReadOutcome::Hit);
    assert_eq!(
        cache.stats().bytes,
        clean + 20 * KIB,
        "the bad slots are not used"
    );
    assert_eq!(cache.reuse_bad_slots().unwrap(), 20 * KIB);
    assert_eq!(cache.stats().bytes, clean);
}

#[test]
fn a_block_in_another_place_does_not_verify() {
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let cache = open(root.path(), &kv);
    // Two chunks of the same blocks in another order: the tags still differ, by name and by place.
    let mut bytes = sized(1, 8192).bytes().to_vec();
    let (first, second) = (Chunk::new(&key(), Bytes::from(bytes.clone())), {
        bytes.rotate_left(4096);
        Chunk::new(&key(), Bytes::from(bytes))
    });
    cache.insert(&first).unwrap();
    cache.insert(&second).unwrap();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(root.path().join("cache/000000.slab"))
        .unwrap();
    // The disk writes the second chunk, tags and all, over the first: a misdirected write.
    let (mut data, mut checks) = ([0; 8192], [0; 32]);
    file.read_exact_at(&mut data, slot_position(SLAB_SLOTS, 2))
        .unwrap();
    file.read_exact_at(&mut checks, super::format::tag_position(2))
        .unwrap();
    file.write_all_at(&data, slot_position(SLAB_SLOTS, 0))
        .unwrap();
    file.write_all_at(&checks, super::format::tag_position(0))
        .unwrap();
    assert_eq!(whole(&cache, &first), ReadOutcome::Quarantined);
    assert_eq!(whole(&cache, &second), ReadOutcome::Hit);
}

#[test]
fn lost_parts_make_a_smaller_cache_not_an_error() {
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let cache = open(root.path(), &kv);
    let chunks: Vec<_> = (0..30).map(|n| sized(n, 65_536)).collect();
    chunks
        .iter()
        .for_each(|chunk| assert!(cache.insert(chunk).unwrap()));
    cache.sync().unwrap();
    drop(cache);
    let hits = |cache: &Cache| {
        chunks
            .iter()
            .filter(|c| whole(cache, c) == ReadOutcome::Hit)
            .count()
    };

    std::fs::remove_file(root.path().join("cache/000000.slab")).unwrap();
    let cache = open(root.path(), &kv);
    assert_eq!(hits(&cache), 30 - 16, "one slab of 1 MiB holds 16 of them");
    assert_eq!(cache.stats().quarantined, 0, "they are absent, not damaged");
    for chunk in &chunks {
        cache.insert(chunk).unwrap();
    }
    cache.sync().unwrap();
    drop(cache);
    assert_eq!(hits(&open(root.path(), &kv)), 30);

    std::fs::write(root.path().join("cache/000001.slab"), b"scribble").unwrap();
    assert_eq!(hits(&open(root.path(), &kv)), 14, "the other slab is whole");
    std::fs::write(root.path().join("cache/cache.meta"), b"scribble").unwrap();
    let cache = open_with(root.path(), &kv, options()).unwrap();
    // A new header with the same instance: what is left of the slabs is still ours.
    assert_eq!(hits(&cache), 14);
    drop(cache);
    let other_index = Arc::new(MemKv::new());
    let cache = open(root.path(), &other_index);
    assert_eq!(hits(&cache), 0, "a lost index is an empty cache");
    chunks
        .iter()
        .for_each(|chunk| assert!(cache.insert(chunk).unwrap()));
    assert_eq!(hits(&cache), 30);
}

#[test]
fn what_is_cached_lies_on_the_disk_encrypted_and_is_lost_without_its_key() {
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let disk = || Arc::new(HostDisk::new(root.path()).unwrap());
    let chunk = Chunk::new(&key(), Bytes::from_static(&[0x5A; 9000]));
    let cache = open(root.path(), &kv);
    cache.insert(&chunk).unwrap();
    cache.sync().unwrap();
    drop(cache);
    let slab = std::fs::read(root.path().join("cache/000000.slab")).unwrap();
    assert!(!slab.windows(16).any(|window| window == [0x5A; 16]));
    assert_eq!(whole(&open(root.path(), &kv), &chunk), ReadOutcome::Hit);

    let other = open_under(disk(), &kv, CacheKey::new([5; 32]), options()).unwrap();
    assert_eq!(whole(&other, &chunk), ReadOutcome::Absent);
    other.insert(&chunk).unwrap();
    other.sync().unwrap();
    drop(other);
    // A cache of version 1, which was not encrypted.
    let path = root.path().join("cache/cache.meta");
    let mut header = std::fs::read(&path).unwrap();
    header[8] = 1;
    header[40..48].fill(0);
    let check = xxhash_rust::xxh3::xxh3_64(&header[..72]);
    header[72..].copy_from_slice(&check.to_le_bytes());
    std::fs::write(&path, header).unwrap();
    let cache = open(root.path(), &kv);
    assert_eq!(cache.stats().chunks, 0);
    cache.insert(&chunk).unwrap();
    assert_eq!(whole(&cache, &chunk), ReadOutcome::Hit);
}

#[test]
fn another_realm_is_refused() {
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    drop(open(root.path(), &kv));
    let disk = Arc::new(HostDisk::new(root.path()).unwrap());
    let other = CacheIdentity {
        realm: RealmId([2; 16]),
        ..identity()
    };
    let sealed = CacheKey::new([4; 32]);
    let refused = Cache::open(disk, "cache", kv, other, [9; 16], sealed, options());
    assert!(matches!(refused, Err(CacheError::OtherRealm { .. })));
}

#[test]
fn a_full_cache_says_so_and_evicts_cold_unpinned_chunks() {
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let cache = open(root.path(), &kv);
    let chunks: Vec<_> = (0..64).map(|n| sized(n, 65_536)).collect();
    chunks
        .iter()
        .for_each(|chunk| assert!(cache.insert(chunk).unwrap()));
    let more = sized(100, 65_536);
    assert!(matches!(cache.insert(&more), Err(CacheError::Full { .. })));
    cache.sync().unwrap();
    // Warm the first eight again; pin the next eight.
    chunks[..8]
        .iter()
        .for_each(|chunk| assert_eq!(whole(&cache, chunk), ReadOutcome::Hit));
    let pinned: Vec<ChunkId> = chunks[8..16].iter().map(Chunk::id).collect();
    assert_eq!(
        cache
            .evict(16 * 65_536, &|id| pinned.contains(&id))
            .unwrap(),
        16 * 65_536
    );
    let here = |range: std::ops::Range<usize>| {
        chunks[range]
            .iter()
            .filter(|c| cache.contains(&c.id()))
            .count()
    };
    assert_eq!(
        (here(0..8), here(8..16), here(16..32), here(32..64)),
        (8, 8, 0, 32)
    );
    assert!(cache.insert(&more).unwrap());
    assert_eq!(cache.give_back_space().unwrap(), 15 * 65_536);
    chunks[32..]
        .iter()
        .for_each(|chunk| assert_eq!(whole(&cache, chunk), ReadOutcome::Hit));
    drop(cache);
    let cache = open(root.path(), &kv);
    assert_eq!(
        cache.stats().chunks,
        48,
        "evictions are durable, the last insert was not"
    );
    assert_eq!(cache.evict(u64::MAX, &|_| false).unwrap(), 48 * 65_536);
    assert_eq!((cache.stats().chunks, cache.stats().bytes), (0, 0));
    assert_eq!(kv.get(b"cache/i").unwrap().unwrap(), [9; 16]);
    assert!(!cache.remove(&more.id()).unwrap());
}

#[test]
fn a_scrub_finds_damage_and_can_be_stopped() {
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let cache = open(root.path(), &kv);
    (0..40).for_each(|n| assert!(cache.insert(&sized(n, 10_000)).unwrap()));
    flip(root.path(), 7, 5);
    let report = cache.scrub(&mut |_| false).unwrap();
    assert_eq!((report.chunks, report.finished), (1, false));
    let report = cache.scrub(&mut |_| true).unwrap();
    assert!(report.finished && report.damaged <= 1);
    assert_eq!(cache.stats().damaged, 1);
    assert_eq!(
        (cache.stats().hits, cache.stats().misses),
        (0, 0),
        "a scrub is no use of the cache"
    );
    assert!(cache.remove(&sized(2, 10_000).id()).unwrap());
    assert_eq!((cache.stats().quarantined, cache.stats().chunks), (0, 39));
}

/// Slots are reused all the time under the readers: they may miss, but never see other bytes or raise a false alarm.
#[test]
fn readers_survive_evictions_and_reuse() {
    const CHUNKS: u64 = 200;
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let small = CacheOptions {
        capacity_bytes: 1024 * KIB,
        sync_bytes: 256 * KIB,
        ..options()
    };
    let cache = open_with(root.path(), &kv, small).unwrap();
    let chunks: Vec<_> = (0..CHUNKS).map(chunk).collect();
    let (stop, hits) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..3u64 {
            let (cache, chunks, stop, hits) = (&cache, &chunks, &stop, &hits);
            scope.spawn(move || {
                let mut n = reader;
                while !stop.load(Ordering::Relaxed) {
                    n = n
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(reader + 1);
                    if whole(cache, &chunks[(n >> 40) as usize % chunks.len()]) == ReadOutcome::Hit
                    {
                        hits.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for round in 0..1500 {
            let chunk = &chunks[(round * 7 % CHUNKS) as usize];
            while let Err(error) = cache.insert(chunk) {
                assert!(matches!(error, CacheError::Full { .. }), "{error}");
                cache.evict(128 * KIB, &|_| false).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(cache.stats().damaged, 0);
    assert!(hits.load(Ordering::Relaxed) > 100);
}

/// `cargo test -p branch --lib hit_path -- --ignored --nocapture` prints the rate of 4 KiB reads from the page cache.
#[test]
#[ignore = "a measurement"]
fn hit_path_rate() {
    const READS: u64 = 1_000_000;
    let (root, kv) = (tempfile::tempdir().unwrap(), Arc::new(MemKv::new()));
    let room = CacheOptions {
        capacity_bytes: 1 << 30,
        slab_bytes: 256 << 20,
        ..options()
    };
    let cache = open_with(root.path(), &kv, room).unwrap();
    let chunks: Vec<_> = (0..4096).map(|n| sized(n, 16_384)).collect();
    chunks
        .iter()
        .for_each(|chunk| assert!(cache.insert(chunk).unwrap()));
    for (name, shift) in [("aligned", 0), ("across two blocks", 1000)] {
        let start = std::time::Instant::now();
        let (mut buf, mut n) = ([0; 4096], 1u64);
        for _ in 0..READS {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = chunks[(n >> 40) as usize % chunks.len()].id();
            let offset = (n >> 33) as u32 % 3 * 4096 + shift;
            assert_eq!(cache.read(&id, offset, &mut buf).unwrap(), ReadOutcome::Hit);
        }
        println!(
            "{name}: {:.0} reads/s",
            READS as f64 / start.elapsed().as_secs_f64()
        );
    }
}
