//! The cache under power cuts, killed processes, failing media and full disks.
//!
//! Whatever happened, a read gives the chunk's bytes or says that they are not there. A crash alone raises no alarm: what was
//! synced is served again, the rest is absent, nothing is quarantined. `SPLICE_CUTS` sets the number of cases, `SPLICE_SEED` the
//! first one.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use branch::cache::{Cache, CacheError, CacheIdentity, CacheKey, CacheOptions, ReadOutcome};
use bytes::Bytes;
use crash::{Kind, Rng, SimDisk, SimKv};
use dedup::{Chunk, IdKey, RealmId};

const CASES: u64 = 500;
/// How many chunks a world knows: more than fit.
const ITEMS: u64 = 60;

fn chunk(item: u64) -> Chunk {
    let mut rng = Rng::new(item);
    let len = 1 + rng.below(24_000) as usize;
    Chunk::new(&IdKey::new([5; 32]), Bytes::from(rng.bytes(len)))
}

struct World {
    rng: Rng,
    disk: SimDisk,
    kv: SimKv,
    chunks: Vec<Chunk>,
    /// Chunks that a successful sync covered and that were not evicted since.
    synced: BTreeSet<usize>,
    /// Whether bytes were damaged by hand: then quarantine is right.
    rotted: bool,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    deaths: u64,
    kept: u64,
    absent: u64,
    quarantined: u64,
    evictions: u64,
    full_disks: u64,
    failed_syncs: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        Self {
            rng: Rng::new(seed),
            kv: SimKv::new(&disk),
            disk,
            chunks: (0..ITEMS).map(chunk).collect(),
            synced: BTreeSet::new(),
            rotted: false,
            tally: Tally::default(),
        }
    }

    fn reborn(&mut self) -> Cache {
        loop {
            if self.rng.one_in(5) {
                self.disk.stop_after(self.rng.below(8));
            }
            let identity = CacheIdentity {
                realm: RealmId([1; 16]),
                key_id: [2; 8],
            };
            let options = CacheOptions {
                capacity_bytes: 400 << 10,
                slab_bytes: 256 << 10,
                sync_bytes: 100 << 10,
                ..CacheOptions::default()
            };
            let instance = self.rng.bits().to_le_bytes().repeat(2).try_into().unwrap();
            let (disk, kv) = (Arc::new(self.disk.clone()), Arc::new(self.kv.clone()));
            let key = CacheKey::new([4; 32]);
            match Cache::open(disk, "cache", kv, identity, instance, key, options) {
                Ok(cache) => {
                    self.check(&cache);
                    return cache;
                }
                Err(error) => {
                    assert!(self.disk.is_stopped(), "the cache does not open: {error}");
                    self.die();
                }
            }
        }
    }

    fn check(&mut self, cache: &Cache) {
        for item in 0..self.chunks.len() {
            match self.read_whole(cache, item) {
                ReadOutcome::Hit => self.tally.kept += 1,
                ReadOutcome::Absent => {
                    self.tally.absent += 1;
                    assert!(
                        self.rotted || !self.synced.contains(&item),
                        "chunk {item} was synced and is gone"
                    );
                }
                ReadOutcome::WouldWait => panic!("a read that may wait did not"),
                ReadOutcome::Quarantined => {
                    self.tally.quarantined += 1;
                    assert!(
                        self.rotted,
                        "chunk {item} is quarantined though nothing but a crash happened"
                    );
                }
            }
        }
    }

    fn read_whole(&self, cache: &Cache, item: usize) -> ReadOutcome {
        let bytes = self.chunks[item].bytes();
        self.read_slice(cache, item, 0, bytes.len())
    }

    /// Wrong bytes are the one thing that must never come.
    fn read_slice(&self, cache: &Cache, item: usize, from: usize, to: usize) -> ReadOutcome {
        let chunk = &self.chunks[item];
        let mut buf = vec![0xEE; to - from];
        let outcome = cache.read(&chunk.id(), from as u32, &mut buf).unwrap();
        if outcome == ReadOutcome::Hit {
            assert!(
                buf == chunk.bytes()[from..to],
                "wrong bytes of chunk {item}"
            );
        }
        outcome
    }

    fn die(&mut self) {
        self.tally.deaths += 1;
        if self.rng.one_in(3) {
            self.disk = self.disk.clone_live();
            self.kv = self.kv.clone_live(&self.disk);
        } else {
            let seed = self.rng.bits();
            self.disk = self.disk.crash(seed);
            self.kv = self.kv.crash(seed, &self.disk);
        }
        self.disk.limit_space(None);
        self.kv.set_full(false);
    }

    fn insert(&mut self, cache: &Cache, item: usize) {
        match cache.insert(&self.chunks[item]) {
            Ok(_) => {
                // A sync that failed on the way has dropped what it could not vouch for.
                let excused =
                    self.rotted || self.disk.is_stopped() || cache.stats().sync_failures > 0;
                assert!(
                    excused || self.read_whole(cache, item) == ReadOutcome::Hit,
                    "chunk {item} was taken and is not there"
                );
            }
            Err(CacheError::Full { .. }) => self.evict(cache),
            Err(CacheError::NoSpace { .. }) => {
                self.tally.full_disks += 1;
                self.disk.limit_space(None);
            }
            Err(error) => assert!(
                self.disk.is_stopped() || matches!(error, CacheError::Io { .. }),
                "{error}"
            ),
        }
    }

    fn evict(&mut self, cache: &Cache) {
        self.tally.evictions += 1;
        let pinned = self.chunks[self.rng.below(ITEMS) as usize].id();
        let had = cache.contains(&pinned);
        if cache
            .evict(self.rng.below(80 << 10), &|id| id == pinned)
            .is_err()
        {
            // Nobody knows which commits went through.
            self.synced.clear();
        }
        assert_eq!(cache.contains(&pinned), had, "a pinned chunk was evicted");
        self.synced
            .retain(|&item| cache.contains(&self.chunks[item].id()));
    }

    fn sync(&mut self, cache: &Cache) {
        match cache.sync() {
            Ok(()) => {
                let here =
                    (0..self.chunks.len()).filter(|&item| cache.contains(&self.chunks[item].id()));
                self.synced = here.collect();
            }
            Err(_) => {
                self.tally.failed_syncs += 1;
                self.synced
                    .retain(|&item| cache.contains(&self.chunks[item].id()));
            }
        }
    }

    fn rot(&mut self) {
        let names = ["cache/000000.slab", "cache/000001.slab"];
        let name = names[self.rng.below(2) as usize];
        if let Some(content) = self.disk.content(name) {
            self.rotted = true;
            let at = self.rng.below(content.len() as u64);
            let noise = self.rng.bytes(1 + self.rng.clone().below(3000) as usize);
            let room = (content.len() as u64 - at) as usize;
            self.disk.corrupt(name, at, &noise[..noise.len().min(room)]);
        }
    }

    fn life(&mut self, may_rot: bool) {
        let cache = self.reborn();
        match self.rng.below(6) {
            0..3 => self.disk.stop_after(self.rng.below(100)),
            3 => self.disk.fail_nth(Kind::Sync, 1 + self.rng.below(4)),
            4 => self.disk.fail_nth(Kind::Commit, 1 + self.rng.below(4)),
            _ => {}
        }
        for _ in 0..self.rng.below(70) {
            if self.disk.is_stopped() {
                break;
            }
            let item = self.rng.below(ITEMS) as usize;
            match self.rng.below(20) {
                0 => self.sync(&cache),
                1 => self.evict(&cache),
                2 => {
                    if cache.remove(&self.chunks[item].id()).is_ok() {
                        self.synced.remove(&item);
                    } else {
                        self.synced.clear();
                    }
                }
                3 => self
                    .disk
                    .limit_space(Some(self.disk.used_bytes() + self.rng.below(20_000))),
                4 => self.kv.set_full(self.rng.one_in(3)),
                5 if may_rot => self.rot(),
                6..12 => {
                    let len = self.chunks[item].bytes().len() as u64;
                    let from = self.rng.below(len);
                    let to = from + self.rng.below(len - from + 1);
                    // A machine that stops fails reads; that is no damage.
                    if !self.disk.is_stopped() {
                        self.read_slice(&cache, item, from as usize, to as usize);
                    }
                }
                _ => self.insert(&cache, item),
            }
        }
        self.die();
    }
}

fn world(seed: u64, may_rot: bool) -> Tally {
    let mut world = World::new(seed);
    for _ in 0..1 + world.rng.below(5) {
        world.life(may_rot);
    }
    drop(world.reborn());
    world.tally
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn run(test: &str, may_rot: bool) -> Tally {
    let first = from_env("SPLICE_SEED", 1);
    let mut sum = Tally::default();
    for seed in first..first + from_env("SPLICE_CUTS", CASES) {
        match catch_unwind(AssertUnwindSafe(|| world(seed, may_rot))) {
            Ok(tally) => {
                sum.deaths += tally.deaths;
                sum.kept += tally.kept;
                sum.absent += tally.absent;
                sum.quarantined += tally.quarantined;
                sum.evictions += tally.evictions;
                sum.full_disks += tally.full_disks;
                sum.failed_syncs += tally.failed_syncs;
            }
            Err(panic) => {
                eprintln!(
                    "seed {seed} fails; replay: SPLICE_SEED={seed} SPLICE_CUTS=1 cargo test -p crash --test cache {test}"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{sum:?}");
    sum
}

#[test]
fn power_cuts_keep_what_was_synced_and_raise_no_alarm() {
    let sum = run("power_cuts", false);
    if from_env("SPLICE_CUTS", CASES) >= 100 {
        let met = [
            sum.kept,
            sum.absent,
            sum.evictions,
            sum.full_disks,
            sum.failed_syncs,
        ];
        assert!(
            met.iter().all(|&count| count > 0),
            "the cases did not meet everything: {sum:?}"
        );
    }
}

#[test]
fn rot_is_never_served() {
    let sum = run("rot_is_never", true);
    if from_env("SPLICE_CUTS", CASES) >= 100 {
        assert!(sum.quarantined > 0, "no damage was met: {sum:?}");
    }
}
