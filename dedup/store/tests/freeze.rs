//! Packs that stand still for whoever copies them, while others go on storing.

#![allow(clippy::unwrap_used, missing_docs)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dedup::{Chunk, IdKey, RealmId};
use dedup_store::disk::HostDisk;
use dedup_store::kv::MemKv;
use dedup_store::{ChunkStore, CollectOptions, PackNumber, StoreError, StoreOptions};

const REALM: RealmId = RealmId([7; 16]);

fn key() -> IdKey {
    IdKey::new([9; 32])
}

fn open(dir: &std::path::Path) -> ChunkStore {
    let options = StoreOptions {
        pack_bytes: 16 * 1024,
        reserve_bytes: 0,
        ..StoreOptions::default()
    };
    let disk = Arc::new(HostDisk::new(dir).unwrap());
    ChunkStore::open(disk, Arc::new(MemKv::new()), key(), REALM, options).unwrap()
}

/// A chunk that no compressor makes shorter.
fn chunk(number: u64) -> Chunk {
    let mut bytes = Vec::new();
    for word in 0..250u64 {
        let seed = (number << 32) | word;
        bytes.extend_from_slice(&key().chunk_id(&seed.to_le_bytes()).0[..8]);
    }
    Chunk::new(&key(), Bytes::from(bytes))
}

#[test]
fn what_was_put_before_lies_in_the_packs_that_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let frozen = store.freeze_packs();
    assert!(frozen.list().unwrap().is_empty());
    let put = |numbers: std::ops::Range<u64>| {
        for number in numbers {
            store.writer().put_chunk(&chunk(number)).unwrap();
        }
    };
    put(0..3);
    let first = frozen.list().unwrap();
    assert_eq!(first.len(), 1, "the pack that grew is sealed");
    assert_eq!(store.stats().uncommitted, 0);
    assert_eq!(frozen.list().unwrap(), first, "nothing new, no new pack");
    put(3..40);
    let later = frozen.list().unwrap();
    assert!(later.len() > 3 && later[0] == first[0], "{later:?}");
    let mut records = 0;
    for pack in &later {
        let (bytes, proof) = frozen.read(pack).unwrap();
        assert_eq!(bytes.len() as u64, pack.len);
        assert_eq!((proof.damaged, proof.digest), (0, pack.digest));
        records += proof.records;
    }
    assert_eq!(records, 40);
    for number in 0..40 {
        assert_eq!(store.chunk(chunk(number).id()).unwrap(), chunk(number));
    }
}

#[test]
fn only_one_at_a_time_freezes_and_puts_go_on_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let frozen = store.freeze_packs();
        let second = scope.spawn(|| {
            let _frozen = store.freeze_packs();
            assert!(done.load(Ordering::SeqCst), "the first one has ended");
        });
        for number in 0..20 {
            store.writer().put_chunk(&chunk(number)).unwrap();
            store.commit().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        drop(frozen);
        second.join().unwrap();
    });
}

#[test]
fn a_collection_waits_until_packs_may_move_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for number in 0..20 {
        store.writer().put_chunk(&chunk(number)).unwrap();
    }
    let options = CollectOptions {
        grace_hours: 0,
        ..CollectOptions::default()
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let frozen = store.freeze_packs();
        let packs = frozen.list().unwrap();
        let collecting = scope.spawn(|| {
            let collection = store.begin_collection().unwrap();
            assert!(done.load(Ordering::SeqCst), "the packs were let go");
            let report = collection.run(&[], &options, 1, &mut |_| ControlFlow::Continue(()));
            report.unwrap().condemned
        });
        for pack in &packs {
            frozen.read(pack).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        drop(frozen);
        assert!(collecting.join().unwrap() > 0, "no root reaches them");
    });
}

#[test]
fn bytes_are_proven_to_be_that_pack_and_sound() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for number in 0..5 {
        store.writer().put_chunk(&chunk(number)).unwrap();
    }
    let frozen = store.freeze_packs();
    let pack = frozen.list().unwrap()[0];
    let (bytes, good) = frozen.read(&pack).unwrap();
    let prove = |bytes: &[u8], number, key: &IdKey, realm| {
        ChunkStore::prove_pack(&Bytes::copy_from_slice(bytes), number, key, realm)
    };
    assert_eq!(prove(&bytes, pack.pack, &key(), REALM).unwrap(), good);
    assert!(matches!(
        prove(&bytes, PackNumber(9), &key(), REALM),
        Err(StoreError::BadPack { .. })
    ));
    assert!(matches!(
        prove(&bytes, pack.pack, &key(), RealmId([1; 16])),
        Err(StoreError::ForeignRealm { .. })
    ));
    assert!(matches!(
        prove(&bytes, pack.pack, &IdKey::new([1; 32]), REALM),
        Err(StoreError::ForeignKey { .. })
    ));
    assert!(matches!(
        prove(&bytes[..10], pack.pack, &key(), REALM),
        Err(StoreError::BadPack { .. })
    ));
    for at in [0, 64, 200, bytes.len() - 1] {
        let mut bent = bytes.to_vec();
        bent[at] ^= 1;
        let proof = prove(&bent, pack.pack, &key(), REALM).unwrap();
        assert!(proof.damaged > 0, "byte {at}");
    }
    // A file that is shorter than it was cannot be read as that pack.
    let path = dir.path().join(pack.pack.path());
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(pack.len - 1).unwrap();
    assert!(matches!(frozen.read(&pack), Err(StoreError::Io { .. })));
}
