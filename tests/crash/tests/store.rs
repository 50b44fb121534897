//! The chunk store under power cuts, killed processes, failing media and full disks.
//!
//! Each case is one small world that lives and dies a few times. What a commit acknowledged must be there ever after; what the store
//! says it has must be readable; everything must verify. `SPLICE_CUTS` sets the number of cases, `SPLICE_SEED` the first one.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use crash::{Kind, Rng, SimDisk, SimKv};
use dedup::{Chunk, IdKey, RealmId};
use dedup_store::disk::{Disk, DiskFile, Open};
use dedup_store::{ChunkStore, StoreError, StoreOptions};

const CASES: u64 = 300;
/// How many different chunks and nodes a world knows. Few, so that puts meet what earlier lives left.
const ITEMS: u64 = 60;

/// Gives the simulated disk, or one that is broken on purpose, to the store.
type Fit = fn(&SimDisk) -> Arc<dyn Disk>;

fn key() -> IdKey {
    IdKey::new([5; 32])
}

fn is_node(item: u64) -> bool {
    item.is_multiple_of(6)
}

fn content(item: u64) -> Bytes {
    let mut rng = Rng::new(item);
    let noise = rng.below(1500) as usize;
    let mut bytes = rng.bytes(noise);
    bytes.resize(noise + rng.below(1500) as usize, item as u8);
    bytes.into()
}

fn put(store: &ChunkStore, item: u64) -> Result<(), StoreError> {
    let bytes = content(item);
    let writer = store.writer();
    if is_node(item) {
        writer.put_node(key().node_id(&bytes), &bytes)?;
    } else {
        writer.put_chunk(&Chunk::new(&key(), bytes))?;
    }
    Ok(())
}

fn contains(store: &ChunkStore, item: u64) -> bool {
    let bytes = content(item);
    if is_node(item) {
        store.contains_node(key().node_id(&bytes)).unwrap()
    } else {
        store.contains_chunk(key().chunk_id(&bytes)).unwrap()
    }
}

fn read(store: &ChunkStore, item: u64) -> Result<Bytes, StoreError> {
    let bytes = content(item);
    if is_node(item) {
        store.node(key().node_id(&bytes))
    } else {
        Ok(store.chunk(key().chunk_id(&bytes))?.bytes().clone())
    }
}

struct World {
    rng: Rng,
    disk: SimDisk,
    kv: SimKv,
    fit: Fit,
    /// What commits have acknowledged.
    committed: BTreeSet<u64>,
    /// Power cuts and kills so far.
    deaths: u64,
}

impl World {
    fn new(seed: u64, fit: Fit) -> Self {
        let disk = SimDisk::new(seed);
        Self {
            rng: Rng::new(seed),
            kv: SimKv::new(&disk),
            disk,
            fit,
            committed: BTreeSet::new(),
            deaths: 0,
        }
    }

    fn open(&self) -> Result<ChunkStore, StoreError> {
        let options = StoreOptions {
            pack_bytes: 12 * 1024,
            reserve_bytes: 0,
            handles_max: 2,
            ..StoreOptions::default()
        };
        let realm = RealmId([1; 16]);
        ChunkStore::open(
            (self.fit)(&self.disk),
            Arc::new(self.kv.clone()),
            key(),
            realm,
            options,
        )
    }

    /// Works until something fails or there is nothing left to do. Asserts that only what was made to fail fails.
    fn live(&mut self) {
        self.disk.stop_after(self.rng.below(140));
        let fault = self.rng.below(10);
        let nth = 1 + self.rng.below(12);
        match fault {
            0 => self.disk.fail_nth(Kind::Sync, nth),
            1 => self.disk.fail_nth(Kind::Write, 4 * nth),
            2 => self.disk.fail_nth(Kind::Commit, 1 + nth / 3),
            3 => self.disk.fail_nth(Kind::Name, 1 + nth / 4),
            4 => self.disk.fail_nth(Kind::Read, nth),
            5 | 6 => {
                let spare = self.rng.below(40_000);
                self.disk.limit_space(Some(self.disk.used_bytes() + spare));
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
        let mut uncommitted = BTreeSet::new();
        for _ in 0..self.rng.below(90) {
            let item = self.rng.below(ITEMS);
            let step = match self.rng.below(12) {
                0 => store.commit().map(|()| {
                    self.committed.append(&mut uncommitted);
                }),
                1 | 2 if self.committed.contains(&item) => {
                    read(&store, item).map(|bytes| assert_eq!(bytes, content(item)))
                }
                _ => put(&store, item).map(|()| {
                    uncommitted.insert(item);
                }),
            };
            match step {
                Ok(()) => {}
                Err(e) if e.is_no_space() => {
                    // The store goes on, with what was put before, as soon as there is space.
                    assert!(matches!(fault, 5 | 6), "{e}");
                    if self.rng.one_in(2) {
                        self.disk.limit_space(None);
                        if let Err(e) = put(&store, item).and_then(|()| store.commit()) {
                            assert!(self.disk.is_stopped(), "after freeing space: {e}");
                        } else {
                            self.committed.insert(item);
                            self.committed.append(&mut uncommitted);
                        }
                    }
                }
                // A failed read closes nothing.
                Err(e) if fault == 4 && !self.disk.is_stopped() => {
                    assert!(matches!(e, StoreError::Io { .. }), "{e}");
                }
                Err(e) => {
                    assert!(self.disk.is_stopped() || broken, "{e}");
                    let closed = store.commit();
                    assert!(
                        closed.is_err() && put(&store, ITEMS).is_err(),
                        "fails closed"
                    );
                    if !self.disk.is_stopped() {
                        for &item in &self.committed {
                            assert_eq!(read(&store, item).unwrap(), content(item));
                        }
                    }
                    return;
                }
            }
        }
    }

    fn die(&mut self) {
        let seed = self.rng.bits();
        let disk = if seed.is_multiple_of(4) {
            self.disk.clone_live()
        } else {
            self.disk.crash(seed)
        };
        self.kv = if seed.is_multiple_of(4) {
            self.kv.clone_live(&disk)
        } else {
            self.kv.crash(seed, &disk)
        };
        disk.limit_space(None);
        self.disk = disk;
        self.deaths += 1;
    }

    /// What the next boot must find.
    fn check(&self, sound: bool) {
        let store = self
            .open()
            .unwrap_or_else(|e| panic!("opening after death: {e}"));
        assert!(store.recovery().packs_missing.is_empty());
        for item in 0..ITEMS {
            if contains(&store, item) {
                assert_eq!(read(&store, item).unwrap(), content(item), "item {item}");
            } else {
                assert!(
                    !self.committed.contains(&item),
                    "committed item {item} is lost"
                );
                assert!(matches!(
                    read(&store, item),
                    Err(StoreError::NotFound { .. })
                ));
            }
        }
        let report = store.verify(&mut |_| {}).unwrap();
        assert!(report.is_sound() || !sound, "{report:?}");
        assert_eq!(report.unindexed, 0);
        // And it takes new records.
        put(&store, ITEMS + 1).unwrap();
        store.commit().unwrap();
    }

    fn lose_index(&mut self) {
        self.kv = SimKv::new(&self.disk);
        let disk = (self.fit)(&self.disk);
        let realm = RealmId([1; 16]);
        ChunkStore::rebuild_index(&*disk, &self.kv, &key(), realm, &mut |_, _| {}).unwrap();
    }
}

/// One world. Returns its deaths.
fn case(seed: u64, fit: Fit) -> u64 {
    let mut world = World::new(seed, fit);
    for _ in 0..1 + world.rng.below(4) {
        world.live();
        world.die();
        while world.rng.one_in(3) {
            // Death in the middle of the recovery from death.
            world.disk.stop_after(world.rng.below(8));
            world.open().ok();
            world.die();
        }
        if world.rng.one_in(8) {
            // The index dies with the power: what was torn in the open pack looks as rot would, and stays reported.
            world.lose_index();
            world.check(false);
            return world.deaths;
        }
        world.check(true);
        if world.rng.one_in(4) {
            world.lose_index();
            world.check(true);
        }
    }
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
        match catch_unwind(|| case(seed, |disk| Arc::new(disk.clone()))) {
            Ok(count) => deaths += count,
            Err(panic) => {
                eprintln!(
                    "seed {seed} fails; replay: SPLICE_SEED={seed} SPLICE_CUTS=1 cargo test -p crash --test store power_cuts"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{cases} worlds from seed {first} died {deaths} times");
}

/// A disk whose content or names are never made durable.
struct Lying {
    disk: SimDisk,
    content: bool,
}

struct LyingFile(Arc<dyn DiskFile>);

impl Disk for Lying {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(name, how)?;
        Ok(if self.content {
            Arc::new(LyingFile(file))
        } else {
            file
        })
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        if self.content {
            self.disk.sync_dir(dir)
        } else {
            Ok(())
        }
    }
    fn available_bytes(&self) -> io::Result<u64> {
        self.disk.available_bytes()
    }
}

impl DiskFile for LyingFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.punch_hole(offset, len)
    }
}

/// The cases must be able to fail: a store on a disk that does not do what it acknowledges is caught.
#[test]
fn a_disk_that_lies_is_caught() {
    let fits: [Fit; 2] = [
        |disk| {
            Arc::new(Lying {
                disk: disk.clone(),
                content: true,
            })
        },
        |disk| {
            Arc::new(Lying {
                disk: disk.clone(),
                content: false,
            })
        },
    ];
    // These failures are what is wanted; their messages would only look like those of other tests.
    let hook = std::panic::take_hook();
    let here = std::thread::current().id();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().id() != here {
            hook(panic);
        }
    }));
    let caught = fits.map(|fit| {
        (1..100)
            .filter(|seed| catch_unwind(AssertUnwindSafe(|| case(*seed, fit))).is_err())
            .count()
    });
    drop(std::panic::take_hook());
    assert!(caught.iter().all(|count| *count > 10), "{caught:?}");
}

/// Holds back the sync of a pack with records in it, until it is let go.
#[derive(Default)]
struct Gate {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    /// Called by the sync: says that it is here, and waits.
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 = true;
        self.changed.notify_all();
        while !state.1 {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn wait_for_someone(&self) {
        let state = self.state.lock().unwrap();
        let limit = Duration::from_secs(60);
        let waited = self.changed.wait_timeout_while(state, limit, |s| !s.0);
        assert!(!waited.unwrap().1.timed_out(), "no pack was sealed");
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

struct Gated(SimDisk, Arc<Gate>);
struct GatedFile(Arc<dyn DiskFile>, Arc<Gate>);

impl Disk for Gated {
    fn open(&self, name: &str, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(GatedFile(self.0.open(name, how)?, self.1.clone())))
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.0.create_dir(dir)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn available_bytes(&self) -> io::Result<u64> {
        self.0.available_bytes()
    }
}

impl DiskFile for GatedFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
    fn sync(&self) -> io::Result<()> {
        if self.0.len()? > 4096 {
            self.1.pass();
        }
        self.0.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.truncate(len)
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.punch_hole(offset, len)
    }
}

/// The power goes while one thread syncs a full pack and another fills the next: both may be torn, and nothing else.
#[test]
fn a_power_cut_while_one_pack_is_synced_and_the_next_one_grows() {
    for seed in 1..=60 {
        let mut world = World::new(seed, |disk| Arc::new(disk.clone()));
        let store = world.open().unwrap();
        (0..4).for_each(|item| put(&store, item).unwrap());
        store.commit().unwrap();
        world.committed.extend(0..4);
        drop(store);
        let gate = Arc::new(Gate::default());
        let store = ChunkStore::open(
            Arc::new(Gated(world.disk.clone(), gate.clone())),
            Arc::new(world.kv.clone()),
            key(),
            RealmId([1; 16]),
            StoreOptions {
                pack_bytes: 12 * 1024,
                reserve_bytes: 0,
                ..StoreOptions::default()
            },
        )
        .unwrap();
        std::thread::scope(|scope| {
            let sealing = scope.spawn(|| (4..ITEMS).try_for_each(|item| put(&store, item)));
            gate.wait_for_someone();
            for item in ITEMS / 2..ITEMS / 2 + 1 + seed % 5 {
                put(&store, item).unwrap();
                assert_eq!(read(&store, item).unwrap(), content(item));
            }
            world.die();
            gate.open();
            assert!(sealing.join().unwrap().is_err(), "the machine is off");
        });
        world.check(true);
        if seed.is_multiple_of(3) {
            world.lose_index();
            world.check(true);
        }
    }
}

/// A commit answers only when every pack that holds what was put is durable, whoever is syncing it.
#[test]
fn a_commit_waits_for_the_sync_of_another_thread() {
    let world = World::new(1, |disk| Arc::new(disk.clone()));
    let gate = Arc::new(Gate::default());
    let store = ChunkStore::open(
        Arc::new(Gated(world.disk.clone(), gate.clone())),
        Arc::new(world.kv.clone()),
        key(),
        RealmId([1; 16]),
        StoreOptions {
            pack_bytes: 12 * 1024,
            reserve_bytes: 0,
            ..StoreOptions::default()
        },
    )
    .unwrap();
    std::thread::scope(|scope| {
        let sealing = scope.spawn(|| (0..ITEMS).try_for_each(|item| put(&store, item)));
        gate.wait_for_someone();
        let commit = scope.spawn(|| store.commit());
        std::thread::sleep(Duration::from_millis(100));
        assert!(!commit.is_finished(), "what was put is not durable yet");
        gate.open();
        commit.join().unwrap().unwrap();
        sealing.join().unwrap().unwrap();
    });
    store.commit().unwrap();
    assert_eq!(store.stats().uncommitted, 0);
}
