//! The simulated disk must lose things, and only what it may: a disk that loses nothing would prove nothing.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::ErrorKind;

use crash::{Kind, Rng, SimDisk, SimKv};
use dedup_store::disk::{Disk, DiskFile, Open};
use dedup_store::kv::{Batch, Durability, Kv};

const CUTS: u64 = 400;

/// A disk with a durable file `f` of `len` bytes `a`.
fn disk_with_file(len: usize) -> (SimDisk, std::sync::Arc<dyn DiskFile>) {
    let disk = SimDisk::new(1);
    let file = disk.open("f", Open::CreateNew).unwrap();
    file.write_at(0, &vec![b'a'; len]).unwrap();
    file.sync().unwrap();
    disk.sync_dir("").unwrap();
    (disk, file)
}

fn outcomes(disk: &SimDisk) -> BTreeSet<Vec<u8>> {
    (0..CUTS)
        .map(|seed| disk.crash(seed).content("f").unwrap())
        .collect()
}

#[test]
fn synced_content_and_names_always_survive() {
    let (disk, file) = disk_with_file(3000);
    file.write_at(100, &[b'b'; 1000]).unwrap();
    file.sync().unwrap();
    let expected = disk.content("f").unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([expected]));
}

#[test]
fn unsynced_writes_are_lost_applied_torn_and_reordered() {
    let (disk, file) = disk_with_file(4096);
    file.write_at(0, &[b'b'; 1024]).unwrap();
    file.write_at(2048, &[b'c'; 1024]).unwrap();
    let found = outcomes(&disk);
    let seen = |first: u8, second: u8, third: u8, fourth: u8| {
        found
            .iter()
            .any(|c| [c[0], c[512], c[2048], c[2560]] == [first, second, third, fourth])
    };
    assert!(seen(b'a', b'a', b'a', b'a'), "lost");
    assert!(seen(b'b', b'b', b'c', b'c'), "applied");
    assert!(seen(b'b', b'a', b'a', b'a'), "torn");
    assert!(seen(b'a', b'a', b'c', b'c'), "the second without the first");
    for content in &found {
        assert_eq!(content.len(), 4096);
        for sector in content.chunks(512) {
            assert!(
                sector.iter().all(|b| *b == sector[0]),
                "a sector is never torn"
            );
        }
        assert!(
            content[1024..2048].iter().all(|b| *b == b'a'),
            "nobody wrote here"
        );
    }
}

#[test]
fn a_sector_never_has_a_later_write_without_an_earlier_one() {
    let (disk, file) = disk_with_file(512);
    file.write_at(0, &[b'b'; 100]).unwrap();
    file.write_at(100, &[b'c'; 100]).unwrap();
    let found = outcomes(&disk);
    assert_eq!(found.len(), 3, "none, the first, both");
    assert!(found.iter().all(|c| c[100] == b'a' || c[0] == b'b'));
}

#[test]
fn appended_lengths_may_come_without_bytes_and_bytes_without_length() {
    let (disk, file) = disk_with_file(512);
    file.write_at(512, &[b'b'; 512]).unwrap();
    let found = outcomes(&disk);
    let tails: BTreeSet<Option<u8>> = found.iter().map(|c| c.get(512).copied()).collect();
    assert_eq!(tails, BTreeSet::from([None, Some(0), Some(b'b')]));
}

#[test]
fn truncation_and_holes_are_lost_or_kept_but_never_resurrected() {
    let (disk, file) = disk_with_file(4096);
    file.truncate(1024).unwrap();
    file.write_at(2048, &[b'b'; 512]).unwrap();
    let found = outcomes(&disk);
    let lengths: BTreeSet<usize> = found.iter().map(Vec::len).collect();
    assert_eq!(lengths, BTreeSet::from([1024, 2560, 4096]));
    for content in found.iter().filter(|c| c.len() == 2560) {
        assert!(
            content[1024..2048].iter().all(|b| *b == 0),
            "what was cut stays cut"
        );
        assert_ne!(content[2048], b'a');
    }

    let (disk, file) = disk_with_file(4096);
    file.punch_hole(0, 2048).unwrap();
    let first: BTreeSet<u8> = outcomes(&disk).iter().map(|c| c[0]).collect();
    assert_eq!(first, BTreeSet::from([0, b'a']));
}

#[test]
fn a_synced_file_without_a_synced_name_may_be_gone() {
    let disk = SimDisk::new(1);
    disk.create_dir("d").unwrap();
    for name in ["d/one", "d/two"] {
        let file = disk.open(name, Open::CreateNew).unwrap();
        file.write_at(0, b"content").unwrap();
        file.sync().unwrap();
    }
    let found: BTreeSet<(bool, bool)> = (0..CUTS)
        .map(|seed| {
            let disk = disk.crash(seed);
            (
                disk.content("d/one").is_some(),
                disk.content("d/two").is_some(),
            )
        })
        .collect();
    assert_eq!(found.len(), 4, "each name has its own luck: {found:?}");
}

#[test]
fn renames_are_atomic_and_lost_until_the_directory_is_synced() {
    let (disk, _) = disk_with_file(5);
    let new = disk.open("new", Open::CreateNew).unwrap();
    new.write_at(0, b"bbbbb").unwrap();
    new.sync().unwrap();
    disk.sync_dir("").unwrap();
    disk.rename("new", "f").unwrap();
    let found: BTreeSet<(Vec<u8>, bool)> = (0..CUTS)
        .map(|seed| {
            let disk = disk.crash(seed);
            (disk.content("f").unwrap(), disk.content("new").is_some())
        })
        .collect();
    assert_eq!(
        found,
        BTreeSet::from([(b"aaaaa".to_vec(), true), (b"bbbbb".to_vec(), false)])
    );
    let disk = disk.clone_live();
    disk.sync_dir("").unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([b"bbbbb".to_vec()]));
}

#[test]
fn the_death_of_a_process_loses_nothing_but_does_not_sync_either() {
    let (disk, file) = disk_with_file(4);
    file.write_at(0, b"bbbb").unwrap();
    let disk = disk.clone_live();
    assert_eq!(disk.content("f").unwrap(), b"bbbb");
    assert_eq!(outcomes(&disk).len(), 2);
    assert!(
        file.write_at(0, b"cccc").is_err(),
        "the dead process cannot write"
    );
}

#[test]
fn a_failed_sync_forgets_and_the_next_one_lies() {
    let mut lost = 0;
    for seed in 0..CUTS {
        let disk = SimDisk::new(seed);
        let file = disk.open("f", Open::CreateNew).unwrap();
        disk.sync_dir("").unwrap();
        file.write_at(0, &[b'a'; 512]).unwrap();
        disk.fail_nth(Kind::Sync, 1);
        assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(5));
        file.sync().unwrap();
        assert_eq!(disk.content("f").unwrap(), [b'a'; 512]);
        lost += u64::from(disk.crash(seed).content("f").unwrap() != [b'a'; 512]);
    }
    assert!(lost > CUTS / 10 && lost < CUTS, "{lost} of {CUTS}");
}

#[test]
fn the_machine_stops_at_any_operation_and_stays_stopped() {
    let disk = SimDisk::new(1);
    let kv = SimKv::new(&disk);
    disk.stop_after(2);
    let file = disk.open("f", Open::CreateNew).unwrap();
    file.write_at(0, b"x").unwrap();
    assert!(!disk.is_stopped());
    assert!(file.sync().is_err());
    assert!(disk.is_stopped());
    assert!(file.read_at(0, &mut [0]).is_err());
    assert!(disk.list("").is_err());
    assert!(kv.get(b"k").is_err());
    assert!(kv.commit(Batch::new(), Durability::Synced).is_err());
}

#[test]
fn a_full_disk_takes_what_fits() {
    let disk = SimDisk::new(1);
    disk.limit_space(Some(2 * 4096));
    let file = disk.open("f", Open::CreateNew).unwrap();
    let error = file.write_at(0, &[b'a'; 3 * 4096]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 2 * 4096);
    assert_eq!(disk.available_bytes().unwrap(), 0);
    file.write_at(10, b"overwriting needs no space").unwrap();
    disk.remove("f").unwrap();
    assert_eq!(disk.available_bytes().unwrap(), 2 * 4096);
}

#[test]
fn reads_stop_at_the_end_of_the_file() {
    let (disk, file) = disk_with_file(10);
    assert_eq!(
        file.read_at(5, &mut [0; 6]).unwrap_err().kind(),
        ErrorKind::UnexpectedEof
    );
    assert!(disk.open("f", Open::CreateNew).is_err());
    assert!(disk.open("g", Open::Read).is_err());
    assert!(
        disk.open("f", Open::Read)
            .unwrap()
            .write_at(0, b"x")
            .is_err()
    );
    disk.fail_nth(Kind::Read, 2);
    file.read_at(0, &mut [0]).unwrap();
    assert_eq!(
        file.read_at(0, &mut [0]).unwrap_err().raw_os_error(),
        Some(5)
    );
    file.read_at(0, &mut [0]).unwrap();
}

/// Without cuts the sparse file must be a plain byte array.
#[test]
fn live_content_equals_a_byte_array() {
    let mut rng = Rng::new(7);
    let (disk, file) = disk_with_file(0);
    let mut oracle: Vec<u8> = Vec::new();
    for _ in 0..2000 {
        let offset = rng.below(20_000) as usize;
        let len = rng.below(9000) as usize;
        match rng.below(8) {
            0 => {
                file.truncate(offset as u64).unwrap();
                oracle.resize(offset, 0);
            }
            1 => {
                file.punch_hole(offset as u64, len as u64).unwrap();
                let end = (offset + len).min(oracle.len());
                if offset < end {
                    oracle[offset..end].fill(0);
                }
            }
            2 => file.sync().unwrap(),
            _ => {
                let data = rng.bytes(len);
                file.write_at(offset as u64, &data).unwrap();
                if len > 0 {
                    oracle.resize(oracle.len().max(offset + len), 0);
                    oracle[offset..offset + len].copy_from_slice(&data);
                }
            }
        }
        assert!(disk.content("f").unwrap() == oracle);
    }
    file.sync().unwrap();
    assert!(disk.crash(1).content("f").unwrap() == oracle);
}

#[test]
fn key_values_lose_a_suffix_of_whole_batches() {
    let disk = SimDisk::new(1);
    let kv = SimKv::new(&disk);
    let put = |n: u8, durability| {
        let mut batch = Batch::new();
        batch.put([b'x', n], [n]);
        batch.put([b'y', n], [n]);
        kv.commit(batch, durability).unwrap();
    };
    put(0, Durability::Relaxed);
    put(1, Durability::Synced);
    put(2, Durability::Relaxed);
    put(3, Durability::Relaxed);
    let sizes: BTreeSet<usize> = (0..CUTS)
        .map(|seed| {
            let found = kv.crash(seed, &SimDisk::new(0)).content();
            let count = found.len() / 2;
            assert!(
                (0..count as u8)
                    .all(|n| found.contains_key(&[b'x', n][..])
                        && found.contains_key(&[b'y', n][..]))
            );
            count
        })
        .collect();
    assert_eq!(sizes, BTreeSet::from([2, 3, 4]));
    assert_eq!(kv.clone_live(&SimDisk::new(0)).content().len(), 8);
}
