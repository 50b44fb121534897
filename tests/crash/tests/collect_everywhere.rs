//! Collections against one publish, at every place where it can be, and against death, at every operation.
//!
//! What `collect.rs` does at random for large worlds is done here exhaustively for small ones, on the real store: the steps of a publish
//! whose chunks a deleted version had are put at all places among those of two collections, and at all moments *inside* these steps at
//! which the collection holds no lock (before and after each look into the index, around each removal of a file); the machine stops at each
//! operation of that, and of a life of publishes, deletions and collections. Rules that are broken on purpose must be caught by this.

#![allow(clippy::unwrap_used, missing_docs)]

mod beside;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use beside::{Beside, Mutant, Places, STEPS, Watched, WatchedDisk};
use bytes::Bytes;
use crash::{SimDisk, SimKv};
use dedup::{Chunk, ChunkerParams, IdKey, ManifestBuilder, NodeId, RealmId};
use dedup_store::disk::Disk;
use dedup_store::kv::Kv;
use dedup_store::{ChunkStore, CollectOptions, RecordName, StoreError, StoreOptions, Writer};

const NOW: u64 = 1_800_000_000;

fn key() -> IdKey {
    IdKey::new([6; 32])
}

fn chunk(item: u8) -> Chunk {
    let bytes: Vec<u8> = (0..40)
        .flat_map(|part: u8| key().chunk_id(&[item, part]).0)
        .collect();
    Chunk::new(&key(), Bytes::from(bytes))
}

fn open(disk: &SimDisk, kv: &SimKv) -> Result<ChunkStore, StoreError> {
    open_on(Arc::new(disk.clone()), Arc::new(kv.clone()))
}

fn open_on(disk: Arc<dyn Disk>, kv: Arc<dyn Kv>) -> Result<ChunkStore, StoreError> {
    let options = StoreOptions {
        pack_bytes: 4 * 1024,
        reserve_bytes: 0,
        handles_max: 1,
        ..StoreOptions::default()
    };
    ChunkStore::open(disk, kv, key(), RealmId([1; 16]), options)
}

fn options() -> CollectOptions {
    CollectOptions {
        grace_hours: 0,
        compact_below_percent: 100,
        ..CollectOptions::default()
    }
}

/// Collects what the roots that are asked for do not reach.
fn collect(store: &ChunkStore, roots: &mut dyn FnMut() -> Vec<NodeId>) -> Result<(), StoreError> {
    let collection = store.begin_collection()?;
    collection.run(
        &roots(),
        &options(),
        NOW,
        &mut |_| ControlFlow::Continue(()),
    )?;
    Ok(())
}

/// Puts the manifest of a disk of `items`, all of which were put, and commits; answers its root.
fn finish(store: &ChunkStore, writer: &Writer, items: &[u8]) -> Result<NodeId, StoreError> {
    let mut builder = ManifestBuilder::new(key(), ChunkerParams::default());
    for item in items {
        let chunk = chunk(*item);
        builder.push_chunk(chunk.id(), chunk.bytes().len() as u32);
    }
    let (manifest, leaves) = builder.finish();
    let sealed = manifest.seal(&key());
    for (id, bytes) in leaves.iter().chain(&sealed.nodes) {
        writer.put_node(*id, bytes)?;
    }
    store.commit()?;
    Ok(sealed.root)
}

fn publish(store: &ChunkStore, items: &[u8]) -> Result<NodeId, StoreError> {
    let writer = store.writer();
    for item in items {
        writer.put_chunk(&chunk(*item))?;
    }
    finish(store, &writer, items)
}

fn read(store: &ChunkStore, root: NodeId, items: &[u8]) {
    store.node(root).unwrap();
    for item in items {
        assert_eq!(store.chunk(chunk(*item).id()).unwrap(), chunk(*item));
    }
    assert_eq!(store.halted(), None, "a reader met a condemned record");
}

/// What the publish beside the collections puts. A deleted version had the first two.
const ITEMS: [u8; 3] = [1, 2, 9];

/// A store with a version that stays and one that was deleted and condemned, of which one chunk is damaged, and a publish that wants
/// chunks of the latter.
struct World {
    disk: SimDisk,
    kv: SimKv,
    store: ChunkStore,
    watched: Arc<Watched>,
    beside: Beside,
    mutant: Mutant,
}

impl World {
    fn new(places: Places, inside: bool, mutant: Mutant) -> Self {
        let disk = SimDisk::new(1);
        let kv = SimKv::new(&disk);
        let beside = Beside::new(places, inside, mutant, &disk);
        let watched = Arc::new(Watched::new(&kv, &disk, &beside, mutant));
        let on = Arc::new(WatchedDisk::new(&disk, &beside));
        let store = open_on(on, watched.clone()).unwrap();
        let stays = publish(&store, &[3, 4]).unwrap();
        publish(&store, &[1, 2, 5]).unwrap();
        collect(&store, &mut || vec![stays]).unwrap();
        let damaged = RecordName::chunk(chunk(2).id());
        store.quarantine(damaged).unwrap();
        beside.begin(&store, stays);
        Self {
            disk,
            kv,
            store,
            watched,
            beside,
            mutant,
        }
    }

    /// Two collections, with the publish's steps at their places.
    fn collect_twice(&self) -> Result<(), StoreError> {
        let step = || {
            self.watched.forget();
            self.beside.step();
        };
        for _ in 0..2 {
            let mut early = None;
            if self.mutant == Mutant::RootsFirst {
                early = Some(self.beside.catalog());
                step();
            }
            let collection = self.store.begin_collection()?;
            step();
            let roots = early.unwrap_or_else(|| self.beside.catalog());
            step();
            collection.run(&roots, &options(), NOW, &mut |_| {
                step();
                ControlFlow::Continue(())
            })?;
        }
        Ok(())
    }

    /// The publish goes on to its end; then everything that is to be there is, and nothing else. Answers how many places there were.
    fn end(self) -> usize {
        let (places, catalog) = self.beside.end();
        let Self {
            disk, kv, store, ..
        } = self;
        let (stays, root) = (catalog[0], catalog[1]);
        read(&store, root, &ITEMS);
        for _ in 0..2 {
            collect(&store, &mut || catalog.clone()).unwrap();
            read(&store, root, &ITEMS);
            read(&store, stays, &[3, 4]);
        }
        assert!(!store.contains_chunk(chunk(5).id()).unwrap());
        assert!(store.verify(&mut |_| {}).unwrap().is_sound());
        drop(store);
        let store = open(&disk, &kv).unwrap();
        read(&store, root, &ITEMS);
        places
    }
}

/// Runs one world. Answers how many places its collections have.
fn interleaved(places: Places, inside: bool, mutant: Mutant) -> usize {
    let world = World::new(places, inside, mutant);
    world.collect_twice().unwrap();
    world.end()
}

/// How many places two collections have: without the publish, or with what it gives them to do, whichever are more.
fn count_places(inside: bool) -> usize {
    let without = interleaved([usize::MAX; STEPS], inside, Mutant::None);
    let with = [0, without / 4, without / 2].map(|at| {
        let places = [at, at, at, usize::MAX];
        interleaved(places, inside, Mutant::None)
    });
    with.into_iter().fold(without, usize::max)
}

#[test]
fn a_publish_is_whole_wherever_its_steps_are_among_those_of_collections() {
    let steps = count_places(false);
    assert!(steps > 8, "{steps} steps");
    let mut worlds = 0;
    for first in 0..=steps {
        for second in first..=steps {
            for third in second..=steps {
                // The hold ends at once, a step later, or after everything.
                for last in [third, third + 1, steps] {
                    interleaved([first, second, third, last], false, Mutant::None);
                    worlds += 1;
                }
            }
        }
    }
    println!("{worlds} interleavings over {steps} steps");
}

/// The hold with its first put at one moment inside the collections' steps, all other puts at that or a later one.
fn moments(moments: usize) -> impl Iterator<Item = Places> {
    (0..=moments).flat_map(move |first| {
        (first..=moments).flat_map(move |second| {
            [second, second + 1, moments].map(move |last| [first, second, second, last])
        })
    })
}

#[test]
fn a_publish_is_whole_at_every_moment_inside_the_steps_of_collections() {
    let places = count_places(true);
    assert!(places > 24, "{places} places");
    for places in moments(places) {
        interleaved(places, true, Mutant::None);
    }
}

/// A whole publish at one moment inside two collections, and the machine stops at each of their operations.
fn die_beside(place: usize, mutant: Mutant) {
    for stop in 0.. {
        let world = World::new([place; STEPS], true, mutant);
        world.disk.stop_after(stop);
        let ended = world.collect_twice();
        if !world.disk.is_stopped() {
            ended.unwrap();
            world.beside.end();
            return;
        }
        let catalog = world.beside.died();
        let seed = stop * 31 + place as u64;
        let disk = world.disk.crash(seed);
        let kv = world.kv.crash(seed, &disk);
        drop(world);
        let store = open(&disk, &kv).unwrap_or_else(|e| panic!("{place}, {stop}: {e}"));
        let items: [&[u8]; 2] = [&[3, 4], &ITEMS];
        for _ in 0..3 {
            for (root, items) in catalog.iter().zip(items) {
                read(&store, *root, items);
            }
            collect(&store, &mut || catalog.clone()).unwrap();
        }
        assert!(
            store.verify(&mut |_| {}).unwrap().is_sound(),
            "{place}, {stop}"
        );
        let wanted = |item| items[..catalog.len()].iter().any(|i| i.contains(&item));
        for item in 1..10 {
            let kept = store.contains_chunk(chunk(item).id()).unwrap();
            assert_eq!(kept, wanted(item), "item {item} after {place}, {stop}");
        }
    }
}

#[test]
fn death_beside_a_publish_loses_nothing_and_leaves_nothing() {
    let places = count_places(true);
    for place in 0..places {
        die_beside(place, Mutant::None);
    }
}

/// The places must be able to tell: each rule that is broken on purpose is caught at one of them.
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
    let places = count_places(true);
    let caught = |test: &dyn Fn()| catch_unwind(AssertUnwindSafe(test)).is_err();
    let missed: Vec<Mutant> = [
        Mutant::RootsFirst,
        Mutant::HoldEndsEarly,
        Mutant::OneLook,
        Mutant::RemovedFirst,
    ]
    .into_iter()
    .filter(|mutant| match mutant {
        // Nobody sees it as long as the machine lives.
        Mutant::RemovedFirst => !(0..places).any(|place| caught(&|| die_beside(place, *mutant))),
        _ => !moments(places).any(|at| {
            caught(&|| {
                interleaved(at, true, *mutant);
            })
        }),
    })
    .collect();
    drop(std::panic::take_hook());
    assert!(missed.is_empty(), "{missed:?}");
}

/// A life: what is in the catalog, and the items of each.
fn life(
    disk: &SimDisk,
    kv: &SimKv,
    catalog: &mut Vec<(NodeId, Vec<u8>)>,
) -> Result<(), StoreError> {
    let store = open(disk, kv)?;
    let add = |items: &[u8], catalog: &mut Vec<(NodeId, Vec<u8>)>| -> Result<(), StoreError> {
        catalog.push((publish(&store, items)?, items.to_vec()));
        Ok(())
    };
    let clean = |catalog: &Vec<(NodeId, Vec<u8>)>| {
        let mut roots = || catalog.iter().map(|(root, _)| *root).collect::<Vec<_>>();
        collect(&store, &mut roots)
    };
    add(&[1, 2, 3], catalog)?;
    add(&[2, 3, 4, 5], catalog)?;
    catalog.remove(0);
    clean(catalog)?;
    // What was condemned just now is wanted again.
    add(&[1, 6], catalog)?;
    clean(catalog)?;
    catalog.remove(0);
    clean(catalog)?;
    clean(catalog)?;
    add(&[4, 7], catalog)?;
    clean(catalog)
}

#[test]
fn death_at_any_operation_loses_nothing_and_leaves_nothing() {
    let all = {
        let disk = SimDisk::new(1);
        let kv = SimKv::new(&disk);
        life(&disk, &kv, &mut Vec::new()).unwrap();
        disk.operations()
    };
    assert!(all > 60, "{all} operations");
    for stop in 0..all {
        for seed in 0..6 {
            let disk = SimDisk::new(seed + 1);
            let kv = SimKv::new(&disk);
            let mut catalog = Vec::new();
            disk.stop_after(stop);
            let ended = life(&disk, &kv, &mut catalog);
            assert!(ended.is_err(), "the machine stops at {stop} of {all}");
            let (disk, kv) = match seed {
                0 => {
                    let disk = disk.clone_live();
                    let kv = kv.clone_live(&disk);
                    (disk, kv)
                }
                _ => {
                    let crashed = disk.crash(seed);
                    let kv = kv.crash(seed, &crashed);
                    (crashed, kv)
                }
            };
            let store = open(&disk, &kv).unwrap_or_else(|e| panic!("{stop}, {seed}: {e}"));
            for (root, items) in &catalog {
                read(&store, *root, items);
            }
            assert!(
                store.verify(&mut |_| {}).unwrap().is_sound(),
                "{stop}, {seed}"
            );
            for _ in 0..2 {
                let mut roots = || catalog.iter().map(|(root, _)| *root).collect::<Vec<_>>();
                collect(&store, &mut roots).unwrap();
            }
            for (root, items) in &catalog {
                read(&store, *root, items);
            }
            let wanted = |item| catalog.iter().any(|(_, items)| items.contains(&item));
            for item in 1..10 {
                let kept = store.contains_chunk(chunk(item).id()).unwrap();
                assert_eq!(kept, wanted(item), "item {item} after {stop}, {seed}");
            }
        }
    }
}
