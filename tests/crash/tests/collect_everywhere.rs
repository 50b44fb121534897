//! Collections against one publish, at every place where it can be, and against death, at every operation.
//!
//! What `collect.rs` does at random for large worlds is done here exhaustively for a small one: the steps of a publish whose chunks a
//! deleted version had are put at all places among those of two collections; and a life of publishes, deletions and collections ends at each
//! of its operations, a few ways each.

#![allow(clippy::unwrap_used, missing_docs)]

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use crash::{SimDisk, SimKv};
use dedup::{Chunk, ChunkerParams, IdKey, ManifestBuilder, NodeId, RealmId};
use dedup_store::{ChunkStore, CollectOptions, Hold, StoreError, StoreOptions};

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
    let options = StoreOptions {
        pack_bytes: 4 * 1024,
        reserve_bytes: 0,
        ..StoreOptions::default()
    };
    let (disk, kv) = (Arc::new(disk.clone()), Arc::new(kv.clone()));
    ChunkStore::open(disk, kv, key(), RealmId([1; 16]), options)
}

fn collect(
    store: &ChunkStore,
    roots: &mut dyn FnMut() -> Vec<NodeId>,
    step: &mut dyn FnMut(),
) -> Result<(), StoreError> {
    let options = CollectOptions {
        grace_hours: 0,
        compact_below_percent: 100,
        ..CollectOptions::default()
    };
    let collection = store.begin_collection()?;
    step();
    let roots = roots();
    step();
    collection.run(&roots, &options, NOW, &mut |_| {
        step();
        ControlFlow::Continue(())
    })?;
    Ok(())
}

/// Puts the manifest of a disk of `items`, all of which were put, and commits; answers its root.
fn finish(store: &ChunkStore, hold: &Hold, items: &[u8]) -> Result<NodeId, StoreError> {
    let mut builder = ManifestBuilder::new(key(), ChunkerParams::default());
    for item in items {
        let chunk = chunk(*item);
        builder.push_chunk(chunk.id(), chunk.bytes().len() as u32);
    }
    let (manifest, leaves) = builder.finish();
    let sealed = manifest.seal(&key());
    for (id, bytes) in leaves.iter().chain(&sealed.nodes) {
        hold.writer().put_node(*id, bytes)?;
    }
    store.commit()?;
    Ok(sealed.root)
}

fn publish(store: &ChunkStore, items: &[u8]) -> Result<NodeId, StoreError> {
    let hold = store.hold();
    for item in items {
        hold.writer().put_chunk(&chunk(*item))?;
    }
    finish(store, &hold, items)
}

fn read(store: &ChunkStore, root: NodeId, items: &[u8]) {
    store.node(root).unwrap();
    for item in items {
        assert_eq!(store.chunk(chunk(*item).id()).unwrap(), chunk(*item));
    }
    assert_eq!(store.halted(), None, "a reader met a condemned record");
}

/// A publish in four steps: hold and first put, second put, the rest with the manifest, and the end of the hold.
#[derive(Default)]
struct Publish {
    hold: Option<Hold>,
    root: Option<NodeId>,
    step: usize,
}

const ITEMS: [u8; 3] = [1, 2, 9];
const STEPS: usize = 4;

impl Publish {
    /// Takes the next step; after the third the version is in the catalog.
    fn go_on(&mut self, store: &ChunkStore, catalog: &mut Vec<NodeId>) {
        match self.step {
            0 => {
                let hold = store.hold();
                hold.writer().put_chunk(&chunk(ITEMS[0])).unwrap();
                self.hold = Some(hold);
            }
            1 => {
                let hold = self.hold.as_ref().unwrap();
                hold.writer().put_chunk(&chunk(ITEMS[1])).unwrap();
            }
            2 => {
                let hold = self.hold.as_ref().unwrap();
                hold.writer().put_chunk(&chunk(ITEMS[2])).unwrap();
                let root = finish(store, hold, &ITEMS).unwrap();
                catalog.push(root);
                self.root = Some(root);
            }
            _ => self.hold = None,
        }
        self.step += 1;
    }
}

/// Runs two collections with the publish's steps at `places` (ascending numbers of the collections' steps). Answers how many steps the
/// collections have.
fn interleaved(places: &[usize; STEPS]) -> usize {
    let disk = SimDisk::new(1);
    let kv = SimKv::new(&disk);
    let store = open(&disk, &kv).unwrap();
    let stays = publish(&store, &[3, 4]).unwrap();
    // The version that had the publish's chunks is deleted.
    publish(&store, &[1, 2, 5]).unwrap();
    let catalog = std::cell::RefCell::new(vec![stays]);
    let mut publish = Publish::default();
    let mut steps = 0;
    for _ in 0..2 {
        let mut step = || {
            while publish.step < STEPS && places[publish.step] <= steps {
                publish.go_on(&store, &mut catalog.borrow_mut());
            }
            if let Some(root) = publish.root {
                read(&store, root, &ITEMS);
            }
            steps += 1;
        };
        collect(&store, &mut || catalog.borrow().clone(), &mut step).unwrap();
    }
    while publish.step < STEPS {
        publish.go_on(&store, &mut catalog.borrow_mut());
    }
    let root = publish.root.unwrap();
    read(&store, root, &ITEMS);
    for _ in 0..2 {
        collect(&store, &mut || catalog.borrow().clone(), &mut || {}).unwrap();
        read(&store, root, &ITEMS);
        read(&store, stays, &[3, 4]);
    }
    assert!(!store.contains_chunk(chunk(5).id()).unwrap());
    assert!(store.verify(&mut |_| {}).unwrap().is_sound());
    drop(store);
    let store = open(&disk, &kv).unwrap();
    read(&store, root, &ITEMS);
    steps
}

#[test]
fn a_publish_is_whole_wherever_its_steps_are_among_those_of_collections() {
    let steps = interleaved(&[usize::MAX; STEPS]);
    assert!(steps > 8, "{steps} steps");
    let mut worlds = 0;
    for first in 0..=steps {
        for second in first..=steps {
            for third in second..=steps {
                // The hold ends at once, a step later, or after everything.
                for last in [third, third + 1, steps] {
                    interleaved(&[first, second, third, last]);
                    worlds += 1;
                }
            }
        }
    }
    println!("{worlds} interleavings over {steps} steps");
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
        collect(&store, &mut roots, &mut || {})
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
                collect(&store, &mut roots, &mut || {}).unwrap();
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
