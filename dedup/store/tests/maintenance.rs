//! Scrubbing and collecting on a directory of the host: what is found, what is moved, what readers and writers notice of it.

#![allow(clippy::unwrap_used, missing_docs)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dedup::{Chunk, ChunkerParams, IdKey, ManifestBuilder, NodeId, RealmId};
use dedup_store::disk::{Disk, HostDisk, Open};
use dedup_store::kv::{Batch, Durability, Kv, MemKv};
use dedup_store::{
    ChunkStore, CollectOptions, CollectPhase, CollectReport, PackNumber, Put, RecordName,
    StoreError, StoreOptions,
};

const NOW: u64 = 1_800_000_000;

fn key() -> IdKey {
    IdKey::new([9; 32])
}

/// About 3 KB that do not compress.
fn chunk(n: u32) -> Chunk {
    let mut bytes = Vec::new();
    for part in 0..90u32 {
        bytes.extend(
            key()
                .chunk_id(&[n.to_le_bytes(), part.to_le_bytes()].concat())
                .0,
        );
    }
    Chunk::new(&key(), Bytes::from(bytes))
}

struct Lab {
    dir: tempfile::TempDir,
    kv: Arc<MemKv>,
}

impl Lab {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            kv: Arc::new(MemKv::new()),
        }
    }

    fn disk(&self) -> Arc<HostDisk> {
        Arc::new(HostDisk::new(self.dir.path()).unwrap())
    }

    fn open(&self) -> ChunkStore {
        let options = StoreOptions {
            pack_bytes: 16 * 1024,
            reserve_bytes: 0,
            handles_max: 3,
            ..StoreOptions::default()
        };
        ChunkStore::open(
            self.disk(),
            self.kv.clone(),
            key(),
            RealmId([7; 16]),
            options,
        )
        .unwrap()
    }

    fn packs(&self) -> Vec<String> {
        let mut names = self.disk().list("packs").unwrap();
        names.sort();
        names
    }

    fn flip(&self, pack: &str, offset: u64) {
        let file = self
            .disk()
            .open(&format!("packs/{pack}"), Open::Write)
            .unwrap();
        let mut byte = [0];
        file.read_at(offset, &mut byte).unwrap();
        file.write_at(offset, &[byte[0] ^ 0x40]).unwrap();
    }
}

/// Stores a disk of the chunks `items`; answers its root.
fn publish(store: &ChunkStore, items: impl IntoIterator<Item = u32>) -> NodeId {
    let writer = store.writer();
    let mut builder = ManifestBuilder::new(key(), ChunkerParams::default());
    for item in items {
        let chunk = chunk(item);
        writer.put_chunk(&chunk).unwrap();
        builder.push_chunk(chunk.id(), chunk.bytes().len() as u32);
    }
    let (manifest, leaves) = builder.finish();
    let sealed = manifest.seal(&key());
    for (id, bytes) in leaves.iter().chain(&sealed.nodes) {
        writer.put_node(*id, bytes).unwrap();
    }
    store.commit().unwrap();
    sealed.root
}

fn collect(store: &ChunkStore, roots: &[NodeId], grace: u16, percent: u8) -> CollectReport {
    let options = CollectOptions {
        grace_hours: grace,
        compact_below_percent: percent,
        ..CollectOptions::default()
    };
    let collection = store.begin_collection().unwrap();
    collection
        .run(roots, &options, NOW, &mut |_| ControlFlow::Continue(()))
        .unwrap()
}

fn passes(store: &ChunkStore) -> Vec<RecordName> {
    let mut damaged = Vec::new();
    while let Some(pack) = store.scrub_next(NOW).unwrap() {
        damaged.extend(pack.damaged);
    }
    damaged
}

#[test]
fn a_deleted_version_gives_its_space_back_and_what_is_shared_stays() {
    let lab = Lab::new();
    let store = lab.open();
    let first = publish(&store, 0..40);
    let second = publish(&store, 20..60);
    let before = store.stats();
    assert_eq!(collect(&store, &[first, second], 0, 100).condemned, 0);

    // A rehearsal says what would happen and changes nothing.
    let options = CollectOptions {
        dry_run: true,
        grace_hours: 0,
        ..CollectOptions::default()
    };
    let rehearsal = store
        .begin_collection()
        .unwrap()
        .run(&[second], &options, NOW, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    assert!(
        rehearsal.condemned > 20,
        "20 chunks and the first version's nodes"
    );
    assert_eq!(store.stats(), before);

    let condemned = collect(&store, &[second], 0, 100);
    assert_eq!(condemned.condemned, rehearsal.condemned);
    assert_eq!(condemned.erased, 0);
    assert!(
        store.contains_chunk(chunk(0).id()).unwrap(),
        "still readable"
    );
    let erased = collect(&store, &[second], 0, 100);
    assert_eq!(erased.erased, condemned.condemned);
    assert!(
        erased.packs_removed + erased.packs_rewritten > 0,
        "{erased:?}"
    );
    assert!(erased.freed_bytes > 20 * 2880, "{erased:?}");
    assert!(store.stats().pack_bytes < before.pack_bytes - 20 * 2880);
    assert_eq!(lab.packs().len() as u64, store.stats().packs);
    assert!(!store.contains_chunk(chunk(0).id()).unwrap());
    for n in 20..60 {
        assert_eq!(store.chunk(chunk(n).id()).unwrap(), chunk(n));
    }
    assert!(store.verify(&mut |_| {}).unwrap().is_sound());
    let after = store.stats();
    drop(store);
    let store = lab.open();
    assert_eq!(store.stats(), after, "an opening counts the same");
    assert!(matches!(
        store.writer().put_chunk(&chunk(0)),
        Ok(Put::New { .. })
    ));
}

#[test]
fn numbers_of_removed_packs_are_not_used_again() {
    let lab = Lab::new();
    let store = lab.open();
    publish(&store, 0..30);
    let highest = lab.packs().last().unwrap().clone();
    collect(&store, &[], 0, 100);
    collect(&store, &[], 0, 100);
    assert!(lab.packs().is_empty());
    drop(store);
    let store = lab.open();
    publish(&store, 0..1);
    assert!(
        lab.packs()[0] > highest,
        "{:?} after {highest}",
        lab.packs()
    );
}

/// A backup that holds a removed pack must not find another one under its number.
#[test]
fn numbers_of_removed_packs_are_not_used_again_after_a_rebuild_of_the_index() {
    let lab = Lab::new();
    let store = lab.open();
    publish(&store, 0..30);
    let highest = lab.packs().last().unwrap().clone();
    collect(&store, &[], 0, 100);
    collect(&store, &[], 0, 100);
    drop(store);
    for _ in 0..2 {
        let realm = RealmId([7; 16]);
        ChunkStore::rebuild_index(&*lab.disk(), &*lab.kv, &key(), realm, &mut |_, _| {}).unwrap();
    }
    let store = lab.open();
    let root = publish(&store, 40..41);
    let lowest = lab.packs()[0].clone();
    assert!(lowest > highest, "{lowest} after {highest}");
    // Nor that of one whose file is lost.
    drop(store);
    for pack in lab.packs() {
        lab.disk().remove(&format!("packs/{pack}")).unwrap();
    }
    let realm = RealmId([7; 16]);
    ChunkStore::rebuild_index(&*lab.disk(), &*lab.kv, &key(), realm, &mut |_, _| {}).unwrap();
    let store = lab.open();
    assert!(!store.contains_node(root).unwrap());
    publish(&store, 50..51);
    assert!(lab.packs()[0] > lowest, "{:?} after {lowest}", lab.packs());
}

#[test]
fn publishes_and_reads_go_on_beside_collections() {
    let lab = Lab::new();
    let store = lab.open();
    let stay = publish(&store, 1000..1040);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3u32 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                for round in 0..25 {
                    // What one publishes another has condemned, and the next wants again.
                    let hold = store.hold();
                    let writer = hold.writer();
                    for n in 0..20 {
                        writer.put_chunk(&chunk(n + thread * 5)).unwrap();
                    }
                    for n in 0..20 {
                        let expected = chunk(n + thread * 5);
                        assert_eq!(store.chunk(expected.id()).unwrap(), expected, "{round}");
                    }
                }
                done.store(true, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for n in 1000..1040 {
                    assert_eq!(store.chunk(chunk(n).id()).unwrap(), chunk(n));
                }
            }
        });
        while !done.load(Ordering::Relaxed) {
            collect(&store, &[stay], 0, 100);
        }
    });
    assert_eq!(store.halted(), None, "nobody met a condemned record");
    collect(&store, &[stay], 0, 100);
    collect(&store, &[stay], 0, 100);
    for n in 0..30 {
        assert!(!store.contains_chunk(chunk(n).id()).unwrap());
    }
    assert!(store.verify(&mut |_| {}).unwrap().is_sound());
}

#[test]
fn a_collection_can_be_stopped_and_tells_what_it_does() {
    let lab = Lab::new();
    let store = lab.open();
    let root = publish(&store, 0..40);
    publish(&store, 40..80);
    let mut phases = Vec::new();
    let collection = store.begin_collection().unwrap();
    let options = CollectOptions {
        grace_hours: 0,
        ..CollectOptions::default()
    };
    collection
        .run(&[root], &options, NOW, &mut |progress| {
            assert!(progress.done <= progress.total);
            if phases.last() != Some(&progress.phase) {
                phases.push(progress.phase);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        phases,
        [
            CollectPhase::Mark,
            CollectPhase::Sweep,
            CollectPhase::Compact
        ]
    );
    for stop_after in 0..6 {
        let mut calls = 0;
        let collection = store.begin_collection().unwrap();
        let ended = collection.run(&[root], &options, NOW, &mut |_| {
            calls += 1;
            match calls > stop_after {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        assert!(matches!(ended, Err(StoreError::Stopped) | Ok(_)));
        for n in 0..40 {
            assert_eq!(store.chunk(chunk(n).id()).unwrap(), chunk(n));
        }
    }
}

#[test]
fn a_damaged_pack_is_not_rewritten_before_a_scrub_has_looked() {
    let lab = Lab::new();
    let store = lab.open();
    publish(&store, 0..40);
    let root = publish(&store, (0..40).step_by(2));
    drop(store);
    // In the first record's bytes.
    lab.flip(&lab.packs()[0], 64 + 70);
    let store = lab.open();
    collect(&store, &[root], 0, 100);
    let report = collect(&store, &[root], 0, 100);
    assert_eq!(report.packs_damaged, 1, "{report:?}");
    assert_eq!(passes(&store), [RecordName::chunk(chunk(0).id())]);
    let report = collect(&store, &[root], 0, 100);
    assert_eq!((report.packs_damaged, report.damaged), (0, 1), "{report:?}");
    for n in (2..40).step_by(2) {
        assert_eq!(store.chunk(chunk(n).id()).unwrap(), chunk(n));
    }
    assert_eq!(store.damaged(), [RecordName::chunk(chunk(0).id())]);
    store.writer().put_chunk(&chunk(0)).unwrap();
    store.commit().unwrap();
    assert!(store.damaged().is_empty());
    assert_eq!(store.chunk(chunk(0).id()).unwrap(), chunk(0));
}

#[test]
fn a_scrub_finds_every_flipped_byte_and_goes_on_where_it_was() {
    let lab = Lab::new();
    let store = lab.open();
    publish(&store, 0..40);
    assert!(passes(&store).is_empty());
    assert_eq!(store.scrub_state().unwrap().passes, 1);
    drop(store);
    let packs = lab.packs();
    lab.flip(&packs[0], 64 + 70); // bytes of the first record
    lab.flip(&packs[1], 64 + 10); // its header: the id
    lab.flip(&packs[2], 20); // the pack's header: no record is lost
    std::fs::remove_file(lab.dir.path().join(format!("packs/{}", packs[3]))).unwrap();
    let store = lab.open();
    let first = store.scrub_next(NOW).unwrap().unwrap();
    assert_eq!((first.pack, first.damaged.len()), (PackNumber(1), 1));
    drop(store);

    let store = lab.open();
    assert_eq!(store.damaged(), first.damaged, "kept over a restart");
    let second = store.scrub_next(NOW).unwrap().unwrap();
    assert_eq!((second.pack, second.damaged.len()), (PackNumber(2), 1));
    let third = store.scrub_next(NOW).unwrap().unwrap();
    assert!(third.damaged.is_empty());
    let fourth = store.scrub_next(NOW).unwrap().unwrap();
    assert!(
        fourth.damaged.len() >= 4,
        "all of a pack that is gone: {fourth:?}"
    );
    assert!(passes(&store).is_empty());
    assert_eq!(store.scrub_state().unwrap().passes, 2);
    assert!(
        passes(&store).is_empty(),
        "what is known to be damaged is told once"
    );

    // The same bytes again, whoever has them, and all is well.
    publish(&store, 0..40);
    assert!(store.damaged().is_empty());
    for n in 0..40 {
        assert_eq!(store.chunk(chunk(n).id()).unwrap(), chunk(n));
    }
}

/// An index of the first release: no list of damage, another version.
#[test]
fn an_index_of_version_1_is_taken_over() {
    let lab = Lab::new();
    let store = lab.open();
    publish(&store, 0..5);
    let name = RecordName::chunk(chunk(2).id());
    store.quarantine(name).unwrap();
    drop(store);
    let mut meta = lab.kv.get(b"cs/m").unwrap().unwrap();
    assert_eq!(meta[..2], [2, 0]);
    meta[0] = 1;
    let mut batch = Batch::new();
    batch.put(&b"cs/m"[..], meta);
    batch.delete([&b"cs/d\x01"[..], &name.id].concat());
    lab.kv.commit(batch, Durability::Synced).unwrap();
    let store = lab.open();
    assert_eq!(store.damaged(), [name]);
    assert_eq!(lab.kv.get(b"cs/m").unwrap().unwrap()[..2], [2, 0]);
}
