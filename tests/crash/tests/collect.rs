//! Collections of garbage under power cuts, killed processes, failing media and full disks, beside publishes that begin, go on and end at any step.
//!
//! Each case is one small world: a catalog of versions (durable, as the datacenter's is), a store, publishes in flight. Between any two
//! steps of a collection others publish and delete; the machine may stop at any operation. Whatever happened, every version in the
//! catalog reads back as it was published and no reader ever meets a condemned record; and two collections later nothing is left that
//! no version shows. `SPLICE_CUTS` sets the number of cases, `SPLICE_SEED` the first one.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use crash::{Kind, Rng, SimDisk, SimKv};
use dedup::walk::{Visitor, walk};
use dedup::{Chunk, ChunkerParams, IdKey, Leaf, ManifestBuilder, NodeId, NodeSource, RealmId};
use dedup_store::kv::{Batch, Durability, Kv, KvError};
use dedup_store::{
    ChunkStore, CollectOptions, CollectReport, Hold, RecordName, StoreError, StoreOptions,
};

const CASES: u64 = 300;
/// How many different chunks a world knows. Few, so that versions share them and puts meet what was condemned.
const ITEMS: u64 = 24;
const VERSIONS_MAX: usize = 4;
const FLIGHTS_MAX: usize = 2;

/// What is wrong on purpose, to see that it is caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    /// Roots are read before the collection begins.
    RootsBeforeTheBeginning,
    /// A publish lets its hold go before its version is in the catalog.
    HoldEndsEarly,
    /// The index never makes anything durable.
    LazyIndex,
}

fn key() -> IdKey {
    IdKey::new([5; 32])
}

fn content(item: u64) -> Bytes {
    let mut rng = Rng::new(item);
    let noise = 200 + rng.below(900) as usize;
    let mut bytes = rng.bytes(noise);
    bytes.resize(noise + rng.below(500) as usize, item as u8);
    bytes.into()
}

fn chunk(item: u64) -> Chunk {
    Chunk::new(&key(), content(item))
}

#[derive(Clone)]
struct Version {
    root: NodeId,
    items: Vec<u64>,
}

/// A publish that has begun.
struct Flight {
    /// `None` where it ended too early.
    hold: Option<Hold>,
    items: Vec<u64>,
    put: usize,
}

struct Lazy(SimKv);

impl Kv for Lazy {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.0.get(key)
    }
    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError> {
        self.0.scan(prefix, from, visit)
    }
    fn commit(&self, batch: Batch, _: Durability) -> Result<(), KvError> {
        self.0.commit(batch, Durability::Relaxed)
    }
}

struct World {
    rng: Rng,
    disk: SimDisk,
    kv: SimKv,
    mutant: Mutant,
    versions: Vec<Version>,
    now_unix_s: u64,
    deaths: u64,
}

struct Nodes<'a>(&'a ChunkStore);

impl NodeSource for Nodes<'_> {
    type Error = StoreError;
    fn node(&self, id: NodeId) -> Result<Bytes, StoreError> {
        self.0.node(id)
    }
}

/// The names of all that a tree reaches, read on the way.
struct Reached<'a> {
    store: &'a ChunkStore,
    names: &'a mut BTreeSet<RecordName>,
}

impl Visitor for Reached<'_> {
    fn enter(&mut self, id: NodeId) -> bool {
        self.names.insert(RecordName::node(id))
    }
    fn leaf(&mut self, _: u64, leaf: &Leaf) {
        for (id, len) in leaf.chunks() {
            assert_eq!(self.store.chunk(id).unwrap().bytes().len(), len as usize);
            self.names.insert(RecordName::chunk(id));
        }
    }
}

impl World {
    fn new(seed: u64, mutant: Mutant) -> Self {
        let disk = SimDisk::new(seed);
        Self {
            rng: Rng::new(seed),
            kv: SimKv::new(&disk),
            disk,
            mutant,
            versions: Vec::new(),
            now_unix_s: 1_800_000_000,
            deaths: 0,
        }
    }

    fn open(&self) -> Result<ChunkStore, StoreError> {
        let options = StoreOptions {
            pack_bytes: 6 * 1024,
            reserve_bytes: 0,
            handles_max: 2,
            ..StoreOptions::default()
        };
        let kv: Arc<dyn Kv> = match self.mutant {
            Mutant::LazyIndex => Arc::new(Lazy(self.kv.clone())),
            _ => Arc::new(self.kv.clone()),
        };
        let disk = Arc::new(self.disk.clone());
        ChunkStore::open(disk, kv, key(), RealmId([1; 16]), options)
    }

    /// One thing that somebody does: a publish begins, goes on or ends, a version is deleted, one is read.
    fn step(&mut self, store: &ChunkStore, flights: &mut Vec<Flight>) -> Result<(), StoreError> {
        match self.rng.below(10) {
            0 | 1 if flights.len() < FLIGHTS_MAX => {
                let count = 1 + self.rng.below(8);
                let items = (0..count).map(|_| self.rng.below(ITEMS)).collect();
                let hold = (self.mutant != Mutant::HoldEndsEarly).then(|| store.hold());
                flights.push(Flight {
                    hold,
                    items,
                    put: 0,
                });
                Ok(())
            }
            2 | 3 if !self.versions.is_empty() => {
                let which = self.rng.below(self.versions.len() as u64) as usize;
                self.versions.swap_remove(which);
                Ok(())
            }
            4 => self.read_all(store).map(|_| ()),
            _ if !flights.is_empty() => {
                let which = self.rng.below(flights.len() as u64) as usize;
                self.go_on(store, flights, which)
            }
            _ => Ok(()),
        }
    }

    /// Puts the next item of a publish, or ends it.
    fn go_on(
        &mut self,
        store: &ChunkStore,
        flights: &mut Vec<Flight>,
        which: usize,
    ) -> Result<(), StoreError> {
        let flight = &mut flights[which];
        let writer = match &flight.hold {
            Some(hold) => hold.writer(),
            None => store.writer(),
        };
        if let Some(item) = flight.items.get(flight.put) {
            writer.put_chunk(&chunk(*item))?;
            flight.put += 1;
            return Ok(());
        }
        let mut builder = ManifestBuilder::new(key(), ChunkerParams::default());
        for (place, item) in flight.items.iter().enumerate() {
            let chunk = chunk(*item);
            builder.push_chunk(chunk.id(), chunk.bytes().len() as u32);
            if place == flight.items.len() / 2 {
                builder.push_zero(dedup::LEAF_BYTES);
            }
        }
        let (manifest, leaves) = builder.finish();
        let sealed = manifest.seal(&key());
        for (id, bytes) in leaves.iter().chain(&sealed.nodes) {
            writer.put_node(*id, bytes)?;
        }
        store.commit()?;
        let flight = flights.swap_remove(which);
        if self.versions.len() < VERSIONS_MAX {
            self.versions.push(Version {
                root: sealed.root,
                items: flight.items,
            });
        }
        // The hold ends here, after the catalog has the version.
        Ok(())
    }

    fn collect(
        &mut self,
        store: &ChunkStore,
        flights: &mut Vec<Flight>,
        quiet: bool,
    ) -> Result<CollectReport, StoreError> {
        let roots = |world: &Self| world.versions.iter().map(|v| v.root).collect::<Vec<_>>();
        let mut early = Vec::new();
        if self.mutant == Mutant::RootsBeforeTheBeginning {
            early = roots(&*self);
            for _ in 0..20 {
                self.step(store, flights)?;
            }
        }
        let collection = store.begin_collection()?;
        if early.is_empty() {
            early = roots(&*self);
        }
        let options = CollectOptions {
            grace_hours: if quiet { 0 } else { self.rng.below(3) as u16 },
            compact_below_percent: if quiet {
                100
            } else {
                [30, 60, 100][self.rng.below(3) as usize]
            },
            dry_run: !quiet && self.rng.one_in(8),
            // One slice, or a few.
            mark_bytes_max: 1 << self.rng.below(12),
        };
        self.now_unix_s += 1800;
        let now = self.now_unix_s;
        collection.run(&early, &options, now, &mut |_| {
            while !quiet && self.rng.one_in(2) {
                if self.step(store, flights).is_err() {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })
    }

    /// Reads every version; answers the names of all that they reach.
    fn read_all(&self, store: &ChunkStore) -> Result<BTreeSet<RecordName>, StoreError> {
        let mut names = BTreeSet::new();
        for version in &self.versions {
            for item in &version.items {
                assert_eq!(store.chunk(chunk(*item).id())?.bytes(), &content(*item));
            }
            let mut reached = Reached {
                store,
                names: &mut names,
            };
            walk(&Nodes(store), version.root, &mut reached).unwrap();
        }
        assert_eq!(store.halted(), None, "a reader met a condemned record");
        Ok(names)
    }

    /// Works until something fails or there is nothing left to do. Asserts that only what was made to fail fails.
    fn live(&mut self) {
        self.disk.stop_after(self.rng.below(300));
        let fault = self.rng.below(12);
        let nth = 1 + self.rng.below(20);
        match fault {
            0 => self.disk.fail_nth(Kind::Sync, nth),
            1 => self.disk.fail_nth(Kind::Write, 2 * nth),
            2 => self.disk.fail_nth(Kind::Commit, nth),
            3 => self.disk.fail_nth(Kind::Name, 1 + nth / 4),
            4 => {
                let room = 4096 * self.rng.below(8);
                self.disk.limit_space(Some(self.disk.used_bytes() + room));
            }
            _ => {}
        }
        let broken = fault <= 4;
        let store = match self.open() {
            Ok(store) => store,
            Err(e) => {
                assert!(self.disk.is_stopped() || broken, "opening: {e}");
                return;
            }
        };
        let mut flights = Vec::new();
        for _ in 0..self.rng.below(120) {
            let step = match self.rng.below(12) {
                0 => self.collect(&store, &mut flights, false).map(|_| ()),
                1 => store.commit(),
                2 => {
                    self.now_unix_s += 3600 * self.rng.below(3);
                    Ok(())
                }
                _ => self.step(&store, &mut flights),
            };
            match step {
                Ok(()) => {}
                Err(e) => {
                    assert!(self.disk.is_stopped() || broken, "{e}");
                    return;
                }
            }
        }
    }

    fn die(&mut self) {
        let seed = self.rng.bits();
        let live = seed.is_multiple_of(4);
        let disk = match live {
            true => self.disk.clone_live(),
            false => self.disk.crash(seed),
        };
        self.kv = match live {
            true => self.kv.clone_live(&disk),
            false => self.kv.crash(seed, &disk),
        };
        // Whoever starts the machine again has made room.
        disk.limit_space(None);
        self.disk = disk;
        self.deaths += 1;
    }

    /// What the next boot must find.
    fn check(&self) {
        let store = self
            .open()
            .unwrap_or_else(|e| panic!("opening after death: {e}"));
        assert!(store.recovery().packs_missing.is_empty());
        self.read_all(&store).unwrap();
        let report = store.verify(&mut |_| {}).unwrap();
        assert!(report.is_sound(), "{report:?}");
    }

    /// Nobody works any more: three collections, and nothing is left that no version shows. What the first moves while it is condemned is
    /// dead in the second, which closes the pack that it lies in; only closed packs are rewritten, by the third.
    fn settle(&mut self) {
        let store = self.open().unwrap();
        let mut flights = Vec::new();
        for _ in 0..3 {
            self.collect(&store, &mut flights, true).unwrap();
        }
        let reached = self.read_all(&store).unwrap();
        let mut indexed = BTreeSet::new();
        for (key, _) in self.kv.content() {
            if let [b'c', b's', b'/', kind @ (b'c' | b'n'), id @ ..] = &key[..] {
                let id: [u8; 32] = id.try_into().unwrap();
                indexed.insert(match kind {
                    b'c' => RecordName::chunk(dedup::ChunkId(id)),
                    _ => RecordName::node(NodeId(id)),
                });
            }
        }
        assert_eq!(
            indexed, reached,
            "the index has what is reachable and nothing else"
        );
        let fourth = self.collect(&store, &mut flights, true).unwrap();
        let work = (
            fourth.condemned,
            fourth.erased,
            fourth.packs_removed,
            fourth.packs_rewritten,
        );
        assert_eq!(work, (0, 0, 0, 0), "{fourth:?}");
        let stats = store.stats();
        // Header and seal of each pack.
        assert!(
            fourth.dead_bytes <= 128 * stats.packs,
            "{fourth:?} {stats:?}"
        );
        let report = store.verify(&mut |_| {}).unwrap();
        assert!(
            report.is_sound() && report.unindexed == 0 && report.duplicates == 0,
            "{report:?}"
        );
        drop(store);
        self.check();
    }
}

/// One world. Returns its deaths.
fn case(seed: u64, mutant: Mutant) -> u64 {
    let mut world = World::new(seed, mutant);
    for _ in 0..1 + world.rng.below(4) {
        world.live();
        world.die();
        while world.rng.one_in(3) {
            // Death in the middle of the recovery from death.
            world.disk.stop_after(world.rng.below(8));
            world.open().ok();
            world.die();
        }
        world.check();
    }
    world.settle();
    world.deaths
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn power_cuts() {
    let first = from_env("SPLICE_SEED", 1);
    let cases = from_env("SPLICE_CUTS", CASES);
    let mut deaths = 0;
    for seed in first..first + cases {
        match catch_unwind(|| case(seed, Mutant::None)) {
            Ok(count) => deaths += count,
            Err(panic) => {
                eprintln!(
                    "seed {seed} fails; replay: SPLICE_SEED={seed} SPLICE_CUTS=1 cargo test -p crash --test collect power_cuts"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{cases} worlds from seed {first} died {deaths} times");
}

/// The cases must be able to fail: whoever breaks a rule of collections is caught.
#[test]
fn broken_rules_are_caught() {
    // These failures are what is wanted; their messages would only look like those of other tests.
    let hook = std::panic::take_hook();
    let here = std::thread::current().id();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() != here {
            hook(panic);
        }
    }));
    let mutants = [
        Mutant::RootsBeforeTheBeginning,
        Mutant::HoldEndsEarly,
        Mutant::LazyIndex,
    ];
    let caught = mutants.map(|mutant| {
        (1..150)
            .filter(|seed| catch_unwind(AssertUnwindSafe(|| case(*seed, mutant))).is_err())
            .count()
    });
    drop(std::panic::take_hook());
    assert!(caught.iter().all(|count| *count > 5), "{caught:?}");
}

/// A record that is condemned and put again is live, and stays.
#[test]
fn what_is_put_again_is_live_again() {
    let world = World::new(7, Mutant::None);
    let store = world.open().unwrap();
    store.writer().put_chunk(&chunk(1)).unwrap();
    let options = CollectOptions {
        grace_hours: 5,
        ..CollectOptions::default()
    };
    let collect = |hours: u64| {
        let now = 1_800_000_000 + hours * 3600;
        let collection = store.begin_collection().unwrap();
        collection
            .run(&[], &options, now, &mut |_| ControlFlow::Continue(()))
            .unwrap()
    };
    assert_eq!(collect(0).condemned, 1);
    let waiting = collect(4);
    assert_eq!((waiting.waiting, waiting.erased), (1, 0));
    let hold = store.hold();
    assert_eq!(
        hold.writer().put_chunk(&chunk(1)).unwrap(),
        dedup_store::Put::Known
    );
    assert_eq!(store.chunk(chunk(1).id()).unwrap(), chunk(1));
    assert_eq!(store.halted(), None);
    let held = collect(20);
    assert_eq!((held.held, held.condemned, held.erased), (1, 0, 0));
    drop(hold);
    assert_eq!(collect(20).condemned, 1);
    assert_eq!(collect(25).erased, 1);
    assert!(!store.contains_chunk(chunk(1).id()).unwrap());
}

/// Who cannot tell whether what refers to it is durable leaves it to the next process.
#[test]
fn what_a_hold_leaves_to_the_process_stays_until_that_ends() {
    let world = World::new(10, Mutant::None);
    let collect = |store: &ChunkStore| {
        let options = CollectOptions::default();
        let collection = store.begin_collection().unwrap();
        collection
            .run(&[], &options, 1_800_000_000, &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap()
    };
    let store = world.open().unwrap();
    let hold = store.hold();
    hold.writer().put_chunk(&chunk(1)).unwrap();
    hold.keep();
    for _ in 0..2 {
        let report = collect(&store);
        assert_eq!((report.held, report.condemned), (1, 0));
    }
    drop(store);
    assert_eq!(collect(&world.open().unwrap()).condemned, 1);
}

/// Whoever reads a condemned record has a defect of ours to thank for: nothing is taken away until somebody has looked.
#[test]
fn reading_a_condemned_record_halts_collections_for_good() {
    let world = World::new(8, Mutant::None);
    let store = world.open().unwrap();
    store.writer().put_chunk(&chunk(1)).unwrap();
    let options = CollectOptions::default();
    let collect = |store: &ChunkStore| {
        let collection = store.begin_collection()?;
        collection.run(&[], &options, 1_800_000_000, &mut |_| {
            ControlFlow::Continue(())
        })
    };
    assert_eq!(collect(&store).unwrap().condemned, 1);
    assert_eq!(store.chunk(chunk(1).id()).unwrap(), chunk(1));
    assert!(store.halted().unwrap().contains("chunk"));
    assert!(matches!(collect(&store), Err(StoreError::Halted { .. })));
    drop(store);
    let store = world.open().unwrap();
    assert!(matches!(collect(&store), Err(StoreError::Halted { .. })));
    store.resume_collections().unwrap();
    assert_eq!(collect(&store).unwrap().condemned, 1, "it was live again");
}

/// What is reachable cannot be told: nothing is condemned.
#[test]
fn an_unreadable_manifest_ends_the_collection() {
    let world = World::new(9, Mutant::None);
    let store = world.open().unwrap();
    store.writer().put_chunk(&chunk(1)).unwrap();
    let collection = store.begin_collection().unwrap();
    let ended = collection.run(
        &[NodeId([3; 32])],
        &CollectOptions::default(),
        1_800_000_000,
        &mut |_| ControlFlow::Continue(()),
    );
    assert!(matches!(ended, Err(StoreError::Unmarked { .. })));
    assert_eq!(store.chunk(chunk(1).id()).unwrap(), chunk(1));
    assert_eq!(store.halted(), None);
}
