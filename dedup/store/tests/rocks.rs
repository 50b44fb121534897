//! The real disk and the real database: what a crash test in memory cannot show.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use dedup::{Chunk, IdKey, RealmId};
use dedup_store::disk::HostDisk;
use dedup_store::kv::{Batch, Durability, Kv, KvError, RocksKv, RocksOptions};
use dedup_store::{ChunkStore, StoreError, StoreOptions};

const DIR: &str = "SPLICE_TEST_STORE";

fn small() -> RocksOptions {
    RocksOptions {
        block_cache_bytes: 1 << 20,
        write_buffer_bytes: 1 << 20,
        open_files_max: 32,
    }
}

fn key() -> IdKey {
    IdKey::new([4; 32])
}

fn chunk(n: u64) -> Chunk {
    let mut bytes = Vec::new();
    for part in 0..100u64 {
        bytes.extend(
            key()
                .chunk_id(&[n.to_le_bytes(), part.to_le_bytes()].concat())
                .0,
        );
    }
    Chunk::new(&key(), Bytes::from(bytes))
}

fn open(dir: &Path) -> Result<ChunkStore, StoreError> {
    let kv = Arc::new(RocksKv::open(dir.join("index"), &small())?);
    let disk = Arc::new(HostDisk::new(dir.join("chunks")).unwrap());
    let options = StoreOptions {
        pack_bytes: 256 * 1024,
        reserve_bytes: 0,
        ..StoreOptions::default()
    };
    ChunkStore::open(disk, kv, key(), RealmId([2; 16]), options)
}

#[test]
fn an_ordered_map_that_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let kv = RocksKv::open(dir.path().join("deep/er"), &small()).unwrap();
    let mut batch = Batch::new();
    for name in ["a1", "a3", "a2", "b1"] {
        batch.put(name, name.to_uppercase());
    }
    batch.delete("a1");
    kv.commit(batch, Durability::Synced).unwrap();
    let mut batch = Batch::new();
    batch.put("a4", "A4");
    kv.commit(batch, Durability::Relaxed).unwrap();
    let error = RocksKv::open(dir.path().join("deep/er"), &small())
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, KvError::InUse { .. }), "{error}");
    drop(kv);
    let kv = RocksKv::open(dir.path().join("deep/er"), &small()).unwrap();
    assert_eq!(kv.get(b"a1").unwrap(), None);
    assert_eq!(kv.get(b"b1").unwrap().unwrap(), b"B1");
    let keys = |prefix: &[u8], from: &[u8], max: usize| {
        let mut keys = Vec::new();
        kv.scan(prefix, from, &mut |key, value| {
            assert_eq!(key.to_ascii_uppercase(), value);
            keys.push(String::from_utf8(key.to_vec()).unwrap());
            if keys.len() == max {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        keys
    };
    assert_eq!(keys(b"a", b"a", 9), ["a2", "a3", "a4"]);
    assert_eq!(keys(b"a", b"a3", 9), ["a3", "a4"]);
    assert_eq!(keys(b"a", b"a3", 1), ["a3"]);
    assert_eq!(keys(b"", b"", 9), ["a2", "a3", "a4", "b1"]);
    assert_eq!(keys(b"c", b"", 9), [""; 0]);
}

#[test]
fn a_file_in_the_way_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, b"").unwrap();
    let error = RocksKv::open(&path, &small()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("/file"), "{error}");
}

#[test]
fn the_index_is_lost_and_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for n in 0..300 {
        store.writer().put_chunk(&chunk(n)).unwrap();
    }
    store.commit().unwrap();
    let stats = store.stats();
    drop(store);
    let store = open(dir.path()).unwrap();
    assert_eq!(store.stats(), stats);
    assert_eq!(store.chunk(chunk(299).id()).unwrap(), chunk(299));
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    assert!(matches!(
        open(dir.path()),
        Err(StoreError::IndexMissing { packs: 4.. })
    ));
    let kv = RocksKv::open(dir.path().join("index"), &small()).unwrap();
    let disk = HostDisk::new(dir.path().join("chunks")).unwrap();
    let report =
        ChunkStore::rebuild_index(&disk, &kv, &key(), RealmId([2; 16]), &mut |_, _| {}).unwrap();
    assert_eq!((report.records, report.damaged.len()), (300, 0));
    drop(kv);
    let store = open(dir.path()).unwrap();
    assert_eq!(store.stats(), stats);
    let report = store.verify(&mut |_| {}).unwrap();
    assert!(report.is_sound() && report.records == 300, "{report:?}");
}

/// Not a test by itself: the process that [`a_killed_writer_loses_nothing_that_it_committed`] kills.
#[test]
fn writer_process() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let store = open(Path::new(&dir)).unwrap();
    for n in 0.. {
        store.writer().put_chunk(&chunk(n)).unwrap();
        if n % 7 == 0 {
            store.commit().unwrap();
            println!("committed {n}");
        }
    }
}

fn start_writer(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer_process", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_writer_loses_nothing_that_it_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut committed = 0;
    for round in 1..=4u64 {
        let mut child = start_writer(dir.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = round * 90;
        let mut said = |until: u64| {
            for line in &mut lines {
                let line = line.unwrap();
                if let Some(n) = line.strip_prefix("committed ") {
                    committed = committed.max(n.parse::<u64>().unwrap());
                    if committed >= until {
                        break;
                    }
                }
            }
        };
        said(wanted);
        if round == 2 {
            let error = open(dir.path()).map(|_| ()).unwrap_err();
            assert!(
                matches!(error, StoreError::Kv(KvError::InUse { .. })),
                "{error}"
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said between our last look and its end.
        said(u64::MAX);
        let store = open(dir.path()).unwrap();
        for n in 0..=committed {
            assert_eq!(
                store.chunk(chunk(n).id()).unwrap(),
                chunk(n),
                "round {round}"
            );
        }
        let report = store.verify(&mut |_| {}).unwrap();
        assert!(
            report.is_sound() && report.records > committed,
            "{report:?}"
        );
        assert_eq!((report.duplicates, report.unindexed), (0, 0));
    }
}
