//! The pack format: golden bytes that every release must read and write, and hostile files that none may trip over.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use bytes::Bytes;
use dedup::{Chunk, IdKey, RealmId};
use dedup_store::disk::{Disk, HostDisk, Open};
use dedup_store::kv::MemKv;
use dedup_store::{ChunkStore, Encoding, StoreError, StoreOptions, fuzz_pack};
use proptest::prelude::{any, proptest};
use proptest::test_runner::Config;

/// A sealed pack of format version 1: a plain chunk, a plain node and a compressed chunk, 32 bytes a line.
const GOLDEN: &str = include_str!("golden/pack-v1.hex");
const PACK: &str = "packs/0000000000000001.pack";
const REALM: RealmId = RealmId(*b"golden realm 01.");

fn key() -> IdKey {
    IdKey::new(*b"golden id key secret, 32 bytes..")
}

fn golden() -> Vec<u8> {
    let digits: Vec<u8> = GOLDEN.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |d: u8| (d as char).to_digit(16).unwrap() as u8;
    digits
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn plain_chunk() -> Chunk {
    Chunk::new(&key(), Bytes::from_static(b"a chunk that does not shrink"))
}

fn soft_chunk() -> Chunk {
    Chunk::new(&key(), vec![b'z'; 5000].into())
}

const NODE: &[u8] = b"a manifest node";

fn options() -> StoreOptions {
    StoreOptions {
        pack_bytes: 4096,
        reserve_bytes: 0,
        ..StoreOptions::default()
    }
}

fn write_pack() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(HostDisk::new(dir.path()).unwrap());
    let kv = Arc::new(MemKv::new());
    let store = ChunkStore::open(disk, kv, key(), REALM, options()).unwrap();
    let writer = store.writer();
    writer.put_chunk(&plain_chunk()).unwrap();
    writer.put_node(key().node_id(NODE), NODE).unwrap();
    writer.put_chunk(&soft_chunk()).unwrap();
    // Too long for what is left of the pack, which is sealed.
    let mut noise = Vec::new();
    for n in 0..130u8 {
        noise.extend(key().chunk_id(&[n]).0);
    }
    writer.put_chunk(&Chunk::new(&key(), noise.into())).unwrap();
    std::fs::read(dir.path().join(PACK)).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(32)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
        .collect()
}

/// Where the compressed record begins. What follows depends on the release of zstd.
fn compressed_at() -> usize {
    64 + 64 + plain_chunk().bytes().len() + 64 + NODE.len()
}

#[test]
fn what_is_written_is_the_golden_pack() {
    let written = write_pack();
    let at = compressed_at();
    assert!(
        Some(&written[..at]) == golden().get(..at),
        "the format changed; this release writes\n{}",
        hex(&written)
    );
    let seal = &written[written.len() - 64..];
    assert_eq!(seal[..4], *b"SEAL");
    assert_eq!(
        seal[16..24],
        [2, 0, 0, 0, 1, 0, 0, 0],
        "two chunks, one node"
    );
}

/// A store on a disk that holds just the file `pack`.
fn rebuilt(pack: &[u8]) -> Result<(tempfile::TempDir, ChunkStore), StoreError> {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(HostDisk::new(dir.path()).unwrap());
    disk.create_dir("packs").unwrap();
    disk.open(PACK, Open::CreateNew)
        .unwrap()
        .write_at(0, pack)
        .unwrap();
    let kv = Arc::new(MemKv::new());
    ChunkStore::rebuild_index(&*disk, &*kv, &key(), REALM, &mut |_, _| {})?;
    Ok((dir, ChunkStore::open(disk, kv, key(), REALM, options())?))
}

#[test]
fn the_golden_pack_is_read() {
    let (_dir, store) = rebuilt(&golden()).unwrap();
    assert_eq!(store.chunk(plain_chunk().id()).unwrap(), plain_chunk());
    assert_eq!(store.chunk(soft_chunk().id()).unwrap(), soft_chunk());
    assert_eq!(store.node(key().node_id(NODE)).unwrap(), NODE);
    assert!(store.verify(&mut |_| {}).unwrap().is_sound());
}

/// Any single damaged byte costs at most the record it is in, and is always noticed.
#[test]
fn a_changed_byte_anywhere_is_noticed_and_contained() {
    let golden = golden();
    assert!(golden.len() > compressed_at() + 128);
    let records = [
        key().chunk_id(plain_chunk().bytes()),
        key().chunk_id(soft_chunk().bytes()),
    ];
    for at in 0..golden.len() {
        let mut pack = golden.clone();
        pack[at] ^= 0x41;
        let (_dir, store) = match rebuilt(&pack) {
            Ok(rebuilt) => rebuilt,
            Err(e) => {
                assert!(
                    (8..10).contains(&at),
                    "only an unknown version is refused: {at}: {e}"
                );
                continue;
            }
        };
        let readable = records.map(|id| store.chunk(id).is_ok());
        let node = store.node(key().node_id(NODE)).is_ok();
        let lost = [readable[0], readable[1], node]
            .iter()
            .filter(|ok| !**ok)
            .count();
        let inside = (64..golden.len() - 64).contains(&at);
        assert_eq!(lost, usize::from(inside), "byte {at}");
    }
}

#[test]
fn a_pack_of_a_later_version_is_refused_whole() {
    let mut pack = golden();
    pack[8] = 2;
    let error = rebuilt(&pack).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("version is 2"), "{error}");
}

/// A guest may keep packs of ours in its disk: stored as a chunk, they must not be read as records of the pack around them.
#[test]
fn a_pack_inside_a_chunk_is_content() {
    let noise: Vec<u8> = (0..1500u16)
        .flat_map(|n| key().chunk_id(&n.to_le_bytes()).0)
        .collect();
    let noise = Chunk::new(&key(), noise.into());
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(HostDisk::new(dir.path()).unwrap());
    let open = |kv| ChunkStore::open(disk.clone(), kv, key(), REALM, options()).unwrap();
    let pack_of = |chunk: &Chunk| {
        let store = open(Arc::new(MemKv::new()));
        store.writer().put_chunk(chunk).unwrap();
        store.commit().unwrap();
        // Noise is stored as it is, so the bytes of an inner pack are there to be mistaken.
        let stored = store.chunk_compressed(chunk.id()).unwrap();
        assert_eq!(stored.encoding, Encoding::Raw);
        std::fs::read(dir.path().join(PACK)).unwrap()
    };
    let inner = Chunk::new(&key(), pack_of(&noise).into());
    disk.remove(PACK).unwrap();
    pack_of(&inner);
    // The outer record's header is broken, so that a reader looks for the next record inside its bytes.
    let file = disk.open(PACK, Open::Write).unwrap();
    file.write_at(64 + 50, &[0xFF; 6]).unwrap();
    let len = file.len().unwrap();
    file.write_at(len, &[0; 100]).unwrap();
    let kv = Arc::new(MemKv::new());
    let report = ChunkStore::rebuild_index(&*disk, &*kv, &key(), REALM, &mut |_, _| {}).unwrap();
    assert_eq!(report.records, 0);
    assert!(!open(kv).contains_chunk(noise.id()).unwrap());
}

proptest! {
    #![proptest_config(Config { cases: 256, failure_persistence: None, ..Config::default() })]

    #[test]
    fn random_bytes_do_not_trip_the_reader(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
        fuzz_pack(&data);
    }

    #[test]
    fn mutated_packs_do_not_trip_the_reader(
        edits in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..8),
        cut in any::<u16>(),
    ) {
        let mut pack = golden();
        let len = pack.len();
        for (at, byte) in edits {
            pack[usize::from(at) % len] = byte;
        }
        pack.truncate(usize::from(cut) % (2 * len));
        fuzz_pack(&pack);
    }
}
