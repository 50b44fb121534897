//! The chunk store as its users see it, on a directory of the host and a map in memory.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use dedup::{Chunk, ChunkId, IdKey, NodeId, RealmId};
use dedup_store::disk::{Disk, DiskFile, HostDisk, Open};
use dedup_store::kv::{Kv, MemKv};
use dedup_store::{
    ChunkStore, Encoding, NODE_BYTES_MAX, Put, RecordName, StoreError, StoreOptions, codec,
};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::Config;
use tempfile::TempDir;

const REALM: RealmId = RealmId([7; 16]);

fn key() -> IdKey {
    IdKey::new([9; 32])
}

/// A store that can be opened again, with its index kept or lost.
struct Lab {
    dir: TempDir,
    kv: Arc<MemKv>,
    options: StoreOptions,
}

impl Lab {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            kv: Arc::new(MemKv::new()),
            options: StoreOptions {
                pack_bytes: 16 * 1024,
                reserve_bytes: 0,
                handles_max: 3,
                ..StoreOptions::default()
            },
        }
    }

    fn disk(&self) -> Arc<HostDisk> {
        Arc::new(HostDisk::new(self.dir.path()).unwrap())
    }

    fn open_as(&self, key: IdKey, realm: RealmId) -> Result<ChunkStore, StoreError> {
        ChunkStore::open(
            self.disk(),
            self.kv.clone(),
            key,
            realm,
            self.options.clone(),
        )
    }

    fn try_open(&self) -> Result<ChunkStore, StoreError> {
        self.open_as(key(), REALM)
    }

    fn open(&self) -> ChunkStore {
        self.try_open().unwrap()
    }

    fn packs(&self) -> Vec<String> {
        let mut names = self.disk().list("packs").unwrap();
        names.sort();
        names.iter().map(|name| format!("packs/{name}")).collect()
    }

    fn file(&self, name: &str) -> Arc<dyn DiskFile> {
        self.disk().open(name, Open::Write).unwrap()
    }

    fn flip(&self, name: &str, offset: u64) {
        let mut byte = [0];
        let file = self.file(name);
        file.read_at(offset, &mut byte).unwrap();
        file.write_at(offset, &[byte[0] ^ 0x10]).unwrap();
    }
}

fn chunk(n: u32) -> Chunk {
    // Half noise, half text: compressible, and different for each number.
    let mut bytes = blake3_noise(n, 1500);
    bytes.resize(3000, b'.');
    Chunk::new(&key(), bytes.into())
}

fn blake3_noise(n: u32, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut round = 0u32;
    while bytes.len() < len {
        let seed = [n.to_le_bytes(), round.to_le_bytes()].concat();
        bytes.extend(key().chunk_id(&seed).0);
        round += 1;
    }
    bytes.truncate(len);
    bytes
}

fn verify(store: &ChunkStore) -> dedup_store::VerifyReport {
    store.verify(&mut |_| {}).unwrap()
}

fn rebuild(lab: &Lab) -> Result<dedup_store::RebuildReport, StoreError> {
    ChunkStore::rebuild_index(&*lab.disk(), &*lab.kv, &key(), REALM, &mut |_, _| {})
}

#[test]
fn what_is_put_is_found_now_and_after_a_reopening() {
    let lab = Lab::new();
    let store = lab.open();
    let writer = store.writer();
    let node = Bytes::from_static(b"an encoded manifest node");
    let node_id = key().node_id(&node);
    assert!(!store.contains_chunk(chunk(1).id()).unwrap());
    assert!(matches!(
        store.chunk(chunk(1).id()),
        Err(StoreError::NotFound { .. })
    ));
    for n in 0..36 {
        let put = writer.put_chunk(&chunk(n)).unwrap();
        assert!(
            matches!(put, Put::New { stored_bytes } if stored_bytes < 2000),
            "{put:?}"
        );
    }
    assert_eq!(writer.put_chunk(&chunk(3)).unwrap(), Put::Known);
    writer.put_node(node_id, &node).unwrap();
    assert_eq!(
        store.chunk(chunk(35).id()).unwrap(),
        chunk(35),
        "before the commit"
    );
    store.commit().unwrap();
    assert_eq!(writer.put_chunk(&chunk(3)).unwrap(), Put::Known);
    let check = |store: &ChunkStore| {
        for n in 0..36 {
            assert_eq!(store.chunk(chunk(n).id()).unwrap(), chunk(n));
        }
        assert_eq!(store.node(node_id).unwrap(), node);
        assert!(store.contains_node(node_id).unwrap());
        // A node is no chunk, whatever its name.
        assert!(!store.contains_chunk(ChunkId(node_id.0)).unwrap());
        let stats = store.stats();
        assert_eq!((stats.chunks, stats.nodes, stats.uncommitted), (36, 1, 0));
        assert_eq!(stats.raw_bytes, 36 * 3000 + node.len() as u64);
        assert_eq!(stats.packs as usize, lab.packs().len());
        let on_disk: u64 = lab.packs().iter().map(|p| lab.file(p).len().unwrap()).sum();
        assert_eq!(stats.pack_bytes, on_disk);
        let report = verify(store);
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(
            (report.records, report.unindexed, report.duplicates),
            (37, 0, 0)
        );
    };
    check(&store);
    assert!(lab.packs().len() > 3, "packs are sealed on the way");
    drop((store, writer));
    let store = lab.open();
    check(&store);
    assert_eq!(*store.recovery(), dedup_store::Recovery::default());
    // The last pack goes on growing.
    let packs = lab.packs().len();
    store.writer().put_chunk(&chunk(100)).unwrap();
    store.commit().unwrap();
    assert_eq!(lab.packs().len(), packs);
    drop(store);
    assert_eq!(lab.open().chunk(chunk(100).id()).unwrap(), chunk(100));
}

#[test]
fn stored_bytes_can_be_sent_on_as_they_are() {
    let lab = Lab::new();
    let store = lab.open();
    let hard = Chunk::new(&key(), blake3_noise(5, 2000).into());
    let writer = store.writer();
    writer.put_encoded(&writer.encode_chunk(&chunk(1))).unwrap();
    writer.put_chunk(&hard).unwrap();
    let soft = store.chunk_compressed(chunk(1).id()).unwrap();
    assert_eq!((soft.encoding, soft.raw_len), (Encoding::Zstd, 3000));
    assert_eq!(
        codec::decode(soft.encoding, &soft.bytes, 3000).unwrap(),
        chunk(1).bytes()
    );
    let hard_stored = store.chunk_compressed(hard.id()).unwrap();
    assert_eq!(hard_stored.encoding, Encoding::Raw);
    assert_eq!(hard_stored.bytes, hard.bytes());
}

#[test]
fn every_size_around_a_threshold_is_stored() {
    let mut lab = Lab::new();
    lab.options.pack_bytes = 4096;
    let store = lab.open();
    let max = dedup::CHUNK_BYTES_MAX;
    let sizes = [
        0,
        1,
        2,
        63,
        64,
        65,
        3903,
        3904,
        3905,
        4095,
        4096,
        4097,
        max - 1,
        max,
    ];
    for (n, size) in sizes.into_iter().enumerate() {
        let chunk = Chunk::new(&key(), blake3_noise(n as u32, size).into());
        store.writer().put_chunk(&chunk).unwrap();
        assert_eq!(store.chunk(chunk.id()).unwrap(), chunk);
    }
    let too_long = Chunk::new(&key(), vec![0; max + 1].into());
    assert!(matches!(
        store.writer().put_chunk(&too_long),
        Err(StoreError::TooLong { .. })
    ));
    let node = vec![3; NODE_BYTES_MAX];
    store
        .writer()
        .put_node(key().node_id(&node), &node)
        .unwrap();
    let too_long = vec![3; NODE_BYTES_MAX + 1];
    assert!(matches!(
        store.writer().put_node(key().node_id(&too_long), &too_long),
        Err(StoreError::TooLong { .. })
    ));
    assert!(matches!(
        store.writer().put_node(NodeId([0; 32]), b"other"),
        Err(StoreError::NodeMismatch { .. })
    ));
    store.commit().unwrap();
    assert!(verify(&store).is_sound());
    drop(store);
    assert_eq!(verify(&lab.open()).records, sizes.len() as u64 + 1);
}

#[test]
fn many_threads_store_each_chunk_once_and_read_beside_it() {
    let lab = Lab::new();
    let store = lab.open();
    let new: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8u32)
            .map(|thread| {
                let store = store.clone();
                scope.spawn(move || {
                    let writer = store.writer();
                    let mut new = 0;
                    for n in 0..200 {
                        let n = (n * 7 + thread * 31) % 200;
                        let put = writer.put_chunk(&chunk(n)).unwrap();
                        new += u64::from(put != Put::Known);
                        assert_eq!(store.chunk(chunk(n).id()).unwrap(), chunk(n));
                        if n % 50 == thread {
                            store.commit().unwrap();
                        }
                    }
                    new
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(new, 200);
    store.commit().unwrap();
    let report = verify(&store);
    assert_eq!(
        (report.records, report.duplicates, report.damaged_total),
        (200, 0, 0)
    );
}

#[test]
fn records_of_a_killed_writer_are_kept_and_a_torn_end_is_cut() {
    let lab = Lab::new();
    let store = lab.open();
    store.writer().put_chunk(&chunk(1)).unwrap();
    store.commit().unwrap();
    store.writer().put_chunk(&chunk(2)).unwrap();
    drop(store);
    let pack = lab.packs().pop().unwrap();
    let end = lab.file(&pack).len().unwrap();
    lab.file(&pack).write_at(end, b"SREC torn").unwrap();
    let store = lab.open();
    assert_eq!(store.recovery().records_indexed, 1);
    assert_eq!(store.recovery().bytes_cut, 9);
    assert_eq!(lab.file(&pack).len().unwrap(), end);
    assert_eq!(store.writer().put_chunk(&chunk(2)).unwrap(), Put::Known);
    store.writer().put_chunk(&chunk(3)).unwrap();
    store.commit().unwrap();
    assert!(verify(&store).is_sound());
    drop(store);
    let store = lab.open();
    for n in 1..4 {
        assert_eq!(store.chunk(chunk(n).id()).unwrap(), chunk(n));
    }
}

#[test]
fn a_damaged_record_is_refused_reported_quarantined_and_healed() {
    let lab = Lab::new();
    let store = lab.open();
    for n in 0..5 {
        store.writer().put_chunk(&chunk(n)).unwrap();
    }
    store.commit().unwrap();
    let len = lab.file(&lab.packs()[0]).len().unwrap();
    let record = (len - 64) / 5;
    let third = 64 + 2 * record;
    lab.flip(&lab.packs()[0], third + 100);
    let error = store.chunk(chunk(2).id()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Damaged { .. }), "{text}");
    for part in [
        chunk(2).id().to_string(),
        lab.packs()[0].clone(),
        format!("offset {third}"),
    ] {
        assert!(text.contains(&part), "{text} names {part}");
    }
    assert!(store.chunk_compressed(chunk(2).id()).is_err());
    assert_eq!(store.chunk(chunk(3).id()).unwrap(), chunk(3));
    let report = verify(&store);
    assert_eq!((report.records, report.damaged_total), (4, 1), "{report:?}");
    let name = report.damaged[0].name.unwrap();
    assert_eq!(name, RecordName::chunk(chunk(2).id()));

    assert_eq!(store.writer().put_chunk(&chunk(2)).unwrap(), Put::Known);
    store.quarantine(name).unwrap();
    assert!(!store.contains_chunk(chunk(2).id()).unwrap());
    assert!(store.chunk(chunk(2).id()).is_err());
    assert!(matches!(
        store.writer().put_chunk(&chunk(2)).unwrap(),
        Put::New { .. }
    ));
    store.commit().unwrap();
    assert_eq!(store.chunk(chunk(2).id()).unwrap(), chunk(2));
    // The rotten bytes are still there, and still said to be.
    assert_eq!(verify(&store).damaged_total, 1);
}

#[test]
fn damage_in_a_header_hides_one_record_and_not_those_behind_it() {
    let lab = Lab::new();
    let store = lab.open();
    for n in 0..5 {
        store.writer().put_chunk(&chunk(n)).unwrap();
    }
    store.commit().unwrap();
    let len = lab.file(&lab.packs()[0]).len().unwrap();
    let second = 64 + (len - 64) / 5;
    lab.flip(&lab.packs()[0], second + 44);
    let report = verify(&store);
    assert_eq!(report.records, 4);
    // The gap in the pack, and the index entry that points into it.
    assert_eq!(report.damaged_total, 2, "{report:?}");
    assert!(
        report
            .damaged
            .iter()
            .any(|d| d.name == Some(RecordName::chunk(chunk(1).id())))
    );
}

#[test]
fn the_index_is_rebuilt_from_the_packs_alone() {
    let mut lab = Lab::new();
    let store = lab.open();
    for n in 0..40 {
        store.writer().put_chunk(&chunk(n)).unwrap();
    }
    store.commit().unwrap();
    let stats = store.stats();
    drop(store);
    lab.kv = Arc::new(MemKv::new());
    assert!(matches!(lab.try_open(), Err(StoreError::IndexMissing { packs }) if packs > 3));
    let report = rebuild(&lab).unwrap();
    assert_eq!((report.records, report.damaged.len()), (40, 0));
    let store = lab.open();
    assert_eq!(store.stats(), stats);
    for n in 0..40 {
        assert_eq!(store.chunk(chunk(n).id()).unwrap(), chunk(n));
    }
    store.writer().put_chunk(&chunk(50)).unwrap();
    store.commit().unwrap();
    drop(store);

    // Damage in the middle, a broken pack header, and a torn end: everything else comes back.
    lab.flip(&lab.packs()[0], 64 + 70);
    lab.flip(&lab.packs()[1], 60);
    let last = lab.file(lab.packs().last().unwrap());
    last.truncate(last.len().unwrap() - 1).unwrap();
    lab.kv = Arc::new(MemKv::new());
    let report = rebuild(&lab).unwrap();
    assert_eq!(report.records, 39, "{report:?}");
    assert!(report.bytes_cut > 0);
    assert_eq!(report.damaged.len(), 2, "{report:?}");
    let store = lab.open();
    assert!(!store.contains_chunk(chunk(0).id()).unwrap());
    assert!(!store.contains_chunk(chunk(50).id()).unwrap());
    assert_eq!(store.chunk(chunk(1).id()).unwrap(), chunk(1));
    assert_eq!(store.chunk(chunk(39).id()).unwrap(), chunk(39));
}

#[test]
fn what_is_of_another_realm_or_key_is_refused() {
    let lab = Lab::new();
    let store = lab.open();
    store.writer().put_chunk(&chunk(1)).unwrap();
    store.commit().unwrap();
    drop(store);
    assert!(matches!(
        lab.open_as(key(), RealmId([8; 16])),
        Err(StoreError::ForeignIndex { .. })
    ));
    assert!(matches!(
        lab.open_as(IdKey::new([1; 32]), REALM),
        Err(StoreError::ForeignIndex { .. })
    ));

    // A pack of theirs among ours.
    for (theirs, foreign) in [
        ((key(), RealmId([8; 16])), "belongs to realm 0808"),
        ((IdKey::new([1; 32]), REALM), "under id key"),
    ] {
        let other = Lab::new();
        let store = other.open_as(theirs.0.clone(), theirs.1).unwrap();
        let content = Chunk::new(&theirs.0, Bytes::from_static(b"theirs"));
        store.writer().put_chunk(&content).unwrap();
        store.commit().unwrap();
        let from = other.dir.path().join(&other.packs()[0]);
        let to = lab.dir.path().join("packs/0000000000000009.pack");
        std::fs::copy(from, &to).unwrap();
        let error = lab.try_open().map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains(foreign) && error.contains("0009.pack"),
            "{error}"
        );
        std::fs::remove_file(to).unwrap();
    }
    lab.open();

    // One of ours under a wrong name.
    let from = lab.dir.path().join(&lab.packs()[0]);
    std::fs::copy(from, lab.dir.path().join("packs/0000000000000009.pack")).unwrap();
    let error = lab.try_open().map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("0001.pack; give it its name back"),
        "{error}"
    );
}

#[test]
fn a_missing_pack_is_said_and_the_others_are_read() {
    let lab = Lab::new();
    let store = lab.open();
    for n in 0..40 {
        store.writer().put_chunk(&chunk(n)).unwrap();
    }
    store.commit().unwrap();
    drop(store);
    lab.disk().remove(&lab.packs()[0]).unwrap();
    let store = lab.open();
    assert_eq!(store.recovery().packs_missing.len(), 1);
    let error = store.chunk(chunk(0).id()).unwrap_err().to_string();
    assert!(error.contains("0001.pack"), "{error}");
    assert_eq!(store.chunk(chunk(39).id()).unwrap(), chunk(39));
    assert!(!verify(&store).is_sound());
}

#[test]
fn options_that_cannot_work_are_named() {
    let mut lab = Lab::new();
    lab.options.pack_bytes = 1 << 40;
    let error = lab.try_open().map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("pack_bytes"), "{error}");
}

#[derive(Debug, Clone)]
enum Act {
    PutChunk(u8),
    PutNode(u8),
    Commit,
    /// Close and open again.
    Reopen,
    /// Lose the index and rebuild it.
    Rebuild,
}

/// Content `n`, of a length and a softness of its own.
fn content(n: u8) -> Bytes {
    let mut bytes = blake3_noise(u32::from(n), usize::from(n) * 37);
    bytes.extend(vec![n; usize::from(n % 16) * 300]);
    bytes.into()
}

#[test]
fn puts_and_gets_equal_a_map() {
    let act = prop_oneof![
        8 => any::<u8>().prop_map(Act::PutChunk),
        2 => any::<u8>().prop_map(Act::PutNode),
        1 => Just(Act::Commit),
        1 => Just(Act::Reopen),
        1 => Just(Act::Rebuild),
    ];
    let acts = proptest::collection::vec(act, 1..80);
    let mut runner = proptest::test_runner::TestRunner::new(Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&acts, |acts| {
            let mut lab = Lab::new();
            let mut store = lab.open();
            let mut oracle: HashMap<(bool, u8), Bytes> = HashMap::new();
            for act in acts {
                match act {
                    Act::PutChunk(n) => {
                        let chunk = Chunk::new(&key(), content(n));
                        let put = store.writer().put_chunk(&chunk).unwrap();
                        assert_eq!(put == Put::Known, oracle.contains_key(&(true, n)));
                        oracle.insert((true, n), content(n));
                    }
                    Act::PutNode(n) => {
                        let bytes = content(n);
                        let put = store
                            .writer()
                            .put_node(key().node_id(&bytes), &bytes)
                            .unwrap();
                        assert_eq!(put == Put::Known, oracle.contains_key(&(false, n)));
                        oracle.insert((false, n), bytes);
                    }
                    Act::Commit => store.commit().unwrap(),
                    Act::Reopen => {
                        drop(store);
                        store = lab.open();
                    }
                    Act::Rebuild => {
                        drop(store);
                        lab.kv = Arc::new(MemKv::new());
                        rebuild(&lab).unwrap();
                        store = lab.open();
                    }
                }
            }
            store.commit().unwrap();
            for (&(is_chunk, n), bytes) in &oracle {
                let found = if is_chunk {
                    store.chunk(key().chunk_id(bytes)).unwrap().bytes().clone()
                } else {
                    store.node(key().node_id(bytes)).unwrap()
                };
                assert_eq!(&found, bytes, "{n}");
            }
            let report = verify(&store);
            assert!(report.is_sound(), "{report:?}");
            assert_eq!(report.records, oracle.len() as u64);
            assert_eq!((report.unindexed, report.duplicates), (0, 0));
            Ok(())
        })
        .unwrap();
}

#[test]
fn other_state_in_the_same_key_value_store_is_left_alone() {
    let lab = Lab::new();
    let mut batch = dedup_store::kv::Batch::new();
    batch.put(*b"catalog/x", *b"1");
    lab.kv
        .commit(batch, dedup_store::kv::Durability::Synced)
        .unwrap();
    let store = lab.open();
    store.writer().put_chunk(&chunk(1)).unwrap();
    store.commit().unwrap();
    drop(store);
    rebuild(&lab).unwrap();
    assert_eq!(lab.kv.get(b"catalog/x").unwrap().unwrap(), b"1");
    assert_eq!(lab.open().chunk(chunk(1).id()).unwrap(), chunk(1));
}

#[test]
fn a_batch_stores_each_chunk_once_and_answers_in_order() {
    let lab = Lab::new();
    let store = lab.open();
    let writer = store.writer();
    writer.put_chunk(&chunk(2)).unwrap();
    let chunks: Vec<Chunk> = [0, 1, 2, 1, 0, 3].map(chunk).into();
    let puts = writer.put_chunks(&chunks).unwrap();
    let new: Vec<bool> = puts.iter().map(|put| *put != Put::Known).collect();
    assert_eq!(new, [true, true, false, false, false, true]);
    assert_eq!(writer.put_chunks(&[]).unwrap(), []);
    // More than a pack at once.
    let many: Vec<Chunk> = (0..64).map(chunk).collect();
    writer.put_chunks(&many).unwrap();
    store.commit().unwrap();
    assert!(lab.packs().len() > 2);
    assert_eq!(store.stats().chunks, 64);
    assert!(verify(&store).is_sound());
    drop(store);
    let again = lab.open();
    let puts = again.writer().put_chunks(&many).unwrap();
    assert!(puts.iter().all(|put| *put == Put::Known));
}

#[test]
fn checked_records_are_sound_or_named() {
    let lab = Lab::new();
    let store = lab.open();
    let chunks: Vec<Chunk> = (0..40).map(chunk).collect();
    let names: Vec<RecordName> = chunks.iter().map(|c| RecordName::chunk(c.id())).collect();
    store.writer().put_chunks(&chunks).unwrap();
    assert!(
        store.check_records(&names).unwrap().is_empty(),
        "before the commit"
    );
    store.commit().unwrap();
    assert!(store.check_records(&names).unwrap().is_empty());
    assert!(store.check_records(&[]).unwrap().is_empty());
    // A stored byte, a header, an end that is gone, one in quarantine, and one that never was.
    let packs = lab.packs();
    lab.flip(&packs[0], 64 + 64 + 700);
    lab.flip(&packs[1], 64 + 8);
    let last = lab.file(packs.last().unwrap());
    last.truncate(last.len().unwrap() - 1).unwrap();
    store.quarantine(names[20]).unwrap();
    let absent = RecordName::chunk(ChunkId([1; 32]));
    let mut asked = names.clone();
    asked.extend([absent, names[0]]);
    let unsound = store.check_records(&asked).unwrap();
    let found: Vec<RecordName> = unsound.iter().map(|(name, _)| *name).collect();
    assert_eq!(unsound.len(), 5, "{unsound:?}");
    assert!(found.contains(&names[0]) && found.contains(&names[20]) && found.contains(&names[39]));
    for (name, error) in unsound {
        match name == absent {
            true => assert!(matches!(error, StoreError::NotFound { .. })),
            false => assert!(matches!(error, StoreError::Damaged { .. }), "{error}"),
        }
    }
}
