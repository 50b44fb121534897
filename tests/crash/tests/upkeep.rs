//! Housekeeping of overlays that dies at every single operation, and disks without room.
//!
//! Compaction and index snapshots change nothing that a guest sees, whenever they end. Without room writes wait, reads go on, and what was
//! acknowledged stays.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use branch::volume::{
    MemBase, Overlay, OverlayError, OverlayIdentity, OverlayKey, OverlayOptions, Shortage, Volume,
};
use crash::{Rng, SimDisk};
use dedup::VersionId;
use vmm_block::{BlockDevice, BlockErrorKind};

const DISK: u64 = 256 << 10;

fn random(buf: &mut [u8]) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    for bytes in buf.chunks_mut(8) {
        let next = Rng::new(NEXT.fetch_add(1, Ordering::Relaxed)).bits();
        bytes.copy_from_slice(&next.to_le_bytes()[..bytes.len()]);
    }
}

fn options(room_wait: Duration) -> OverlayOptions {
    OverlayOptions {
        segment_bytes: 12 << 10,
        snapshot_bytes: 16 << 10,
        extents_max: 1600,
        room_wait,
        floor_bytes: 0,
    }
}

fn open(disk: &SimDisk, room_wait: Duration) -> Result<Arc<Overlay>, OverlayError> {
    open_with(disk, options(room_wait))
}

fn open_with(disk: &SimDisk, options: OverlayOptions) -> Result<Arc<Overlay>, OverlayError> {
    open_over(disk, VersionId([9; 32]), options)
}

fn identity(base: VersionId) -> OverlayIdentity {
    OverlayIdentity {
        desktop: [7; 16],
        base,
        disks: vec![DISK],
    }
}

fn open_over(
    disk: &SimDisk,
    base: VersionId,
    options: OverlayOptions,
) -> Result<Arc<Overlay>, OverlayError> {
    Overlay::open_or_create(
        Arc::new(disk.clone()),
        "desk",
        &identity(base),
        [3; 16],
        &OverlayKey::new([0x5A; 32], random),
        options,
    )
    .map(Arc::new)
}

fn volume(overlay: &Arc<Overlay>) -> Volume {
    Volume::new(Arc::new(MemBase::default()), overlay.clone(), 0).unwrap()
}

fn content(overlay: &Arc<Overlay>) -> Vec<u8> {
    let mut bytes = vec![0xEE; DISK as usize];
    volume(overlay).read(0, &mut bytes).unwrap();
    bytes
}

/// A flushed log with much to move, to join and to drop; and what it reads as.
fn worn(seed: u64) -> (SimDisk, Vec<u8>) {
    let disk = SimDisk::new(seed);
    let overlay = open(&disk, Duration::ZERO).unwrap();
    let mut rng = Rng::new(seed);
    for _ in 0..160 {
        let at = rng.below(DISK / 512 - 8) * 512;
        let len = 512 * (1 + rng.below(8));
        if rng.one_in(8) {
            overlay.zero(0, at, len, rng.one_in(2)).unwrap();
        } else {
            overlay.write(0, at, &rng.bytes(len as usize)).unwrap();
        }
    }
    overlay.flush().unwrap();
    let bytes = content(&overlay);
    (disk, bytes)
}

#[test]
fn every_operation_of_housekeeping_can_be_the_last() {
    let mut lengths = Vec::new();
    for seed in 1..4 {
        for operations in 0.. {
            let (disk, expected) = worn(seed);
            let overlay = open(&disk, Duration::ZERO).unwrap();
            let before = overlay.stats().log_bytes;
            disk.stop_after(operations);
            let (mut done, mut moved, mut snapshots) = (true, 0, 0);
            for _ in 0..12 {
                match overlay.tend(24 << 10) {
                    Ok(tended) => {
                        moved += tended.moved_bytes;
                        snapshots += u64::from(tended.snapshot_bytes > 0);
                    }
                    Err(_) => done = false,
                }
                done &= !disk.is_stopped();
            }
            if done {
                assert!(content(&overlay) == expected);
                assert!(moved > 0 && snapshots > 0, "{moved} {snapshots}");
                lengths.push((before, overlay.stats().log_bytes));
            }
            drop(overlay);
            let after = [
                disk.clone_live(),
                disk.crash(operations),
                disk.crash(!operations),
            ];
            for disk in after {
                let overlay = open(&disk, Duration::ZERO).unwrap();
                assert!(
                    content(&overlay) == expected,
                    "seed {seed}, stopped after {operations} operations"
                );
                // And it goes on from there.
                overlay.tend(u64::MAX / 4).unwrap();
                assert!(content(&overlay) == expected);
            }
            if done {
                break;
            }
        }
    }
    println!("log bytes before and after: {lengths:?}");
}

#[test]
fn an_overlay_lies_over_one_base_or_the_other_wherever_a_rebase_stops() {
    let (former, other) = (VersionId([9; 32]), VersionId([8; 32]));
    let key = OverlayKey::new([0x5A; 32], random);
    let lay_over = |disk: &SimDisk| Overlay::lay_over(disk, "desk", &identity(former), other, &key);
    for operations in 0.. {
        let (disk, expected) = worn(5);
        disk.stop_after(operations);
        let done = lay_over(&disk).is_ok() && !disk.is_stopped();
        let after = [
            disk.clone_live(),
            disk.crash(operations),
            disk.crash(!operations),
        ];
        for disk in after {
            // Done again it is there, and it is there at once if that was said.
            if !done {
                lay_over(&disk).unwrap();
            }
            lay_over(&disk).unwrap();
            let overlay = open_over(&disk, other, options(Duration::ZERO)).unwrap();
            assert!(
                content(&overlay) == expected,
                "after {operations} operations"
            );
            drop(overlay);
            let mismatch = open_over(&disk, former, options(Duration::ZERO));
            assert!(matches!(mismatch, Err(OverlayError::Mismatch { .. })));
        }
        if done {
            assert!(operations > 2, "each of some operations was the last");
            break;
        }
    }
}

/// Waits for something that must happen, however slow the machine is.
fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn without_room_writes_wait_and_reads_go_on() {
    let (disk, expected) = worn(9);
    let overlay = open(&disk, Duration::from_secs(600)).unwrap();
    disk.limit_space(Some(disk.used_bytes()));
    let data = vec![0xAB; 64 << 10];
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| overlay.write(0, 0, &data));
        wait_until("the write is told to wait", || overlay.shortage().is_some());
        let Some(Shortage::DiskBytes(missing)) = overlay.shortage() else {
            panic!("{:?}", overlay.shortage());
        };
        assert!(missing >= 64 << 10, "{missing}");
        // Reads do not notice, and nothing that may not wait is tried.
        assert!(content(&overlay) == expected);
        assert!(!volume(&overlay).try_write(0, &[1; 512]).unwrap());
        overlay.tend(0).unwrap();
        assert!(overlay.shortage().is_some() && !writer.is_finished());
        disk.limit_space(None);
        overlay.tend(0).unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(overlay.shortage(), None);
    overlay.flush().unwrap();
    drop(overlay);
    let overlay = open(&disk.crash(3), Duration::ZERO).unwrap();
    let found = content(&overlay);
    assert!(found[..data.len()] == data[..] && found[data.len()..] == expected[data.len()..]);
}

#[test]
fn a_guest_is_told_when_patience_ends_and_goes_on_when_there_is_room() {
    let (disk, expected) = worn(11);
    let overlay = open(&disk, Duration::ZERO).unwrap();
    disk.limit_space(Some(disk.used_bytes()));
    let volume = volume(&overlay);
    let refused = volume.write(0, &[1; 64 << 10], false).unwrap_err();
    assert_eq!(refused.kind, BlockErrorKind::NoSpace);
    assert!(content(&overlay) == expected);
    // Nothing was lost by it, and nothing is: the power goes while the disk is full.
    drop(volume);
    drop(overlay);
    let disk = disk.crash(5);
    let overlay = open(&disk, Duration::ZERO).unwrap();
    assert!(content(&overlay) == expected);
    disk.limit_space(None);
    overlay.write(0, 0, &[1; 64 << 10]).unwrap();
    assert_eq!(overlay.shortage(), None);
}

#[test]
fn what_guests_write_leaves_a_floor_and_what_makes_room_goes_below_it() {
    const FLOOR: u64 = 256 << 10;
    const WRITE: usize = 16 << 10;
    let (disk, mut expected) = worn(13);
    let options = OverlayOptions {
        floor_bytes: FLOOR,
        ..options(Duration::ZERO)
    };
    let overlay = open_with(&disk, options).unwrap();
    let above = disk.used_bytes() + (40 << 10);
    disk.limit_space(Some(above + FLOOR));
    overlay.write(0, 0, &[1; WRITE]).unwrap();
    let refused = loop {
        if let Err(error) = overlay.write(0, 0, &[1; WRITE]) {
            break error;
        }
    };
    assert!(matches!(refused, OverlayError::NoSpace { .. }), "{refused}");
    // Headers, tags and what a file's last page takes besides are not counted.
    let used = disk.used_bytes();
    assert!(used <= above + (16 << 10), "{used} of {above}");
    let Some(Shortage::DiskBytes(missing)) = overlay.shortage() else {
        panic!("{:?}", overlay.shortage());
    };
    assert!(missing > 3 << 20, "{missing}");
    expected[..WRITE].fill(1);
    assert!(content(&overlay) == expected);
    // What a guest gives back is taken, and says nothing of room for data.
    overlay.zero(0, 0, WRITE as u64, true).unwrap();
    expected[..WRITE].fill(0);
    assert!(overlay.shortage().is_some());
    overlay.flush().unwrap();
    while overlay.tend(64 << 10).unwrap().has_more {}
    assert!(content(&overlay) == expected);
    // Opened on a disk like that, it goes on waiting.
    drop(overlay);
    let overlay = open_with(&disk, options).unwrap();
    assert!(content(&overlay) == expected);
    disk.limit_space(Some(disk.used_bytes() + FLOOR));
    overlay.write(0, 0, &[2; WRITE]).unwrap_err();
    disk.limit_space(None);
    overlay.tend(0).unwrap();
    assert_eq!(overlay.shortage(), None);
    overlay.write(0, 0, &[2; WRITE]).unwrap();
}

#[test]
fn waiting_for_room_takes_none() {
    const WRITE: usize = 16 << 10;
    let (disk, _) = worn(15);
    let overlay = open(&disk, Duration::ZERO).unwrap();
    // A segment under way that cannot be dropped keeps the log longer than it need be.
    overlay.send_after(0).unwrap();
    let to = overlay.hold(0, u64::MAX);
    overlay.hold(0, to);
    for at in (0..DISK).step_by(WRITE) {
        overlay.write(0, at, &[7; WRITE]).unwrap();
    }
    overlay.flush().unwrap();
    disk.limit_space(Some(disk.used_bytes()));
    overlay.write(0, 0, &[8; 64 << 10]).unwrap_err();
    let tend = || {
        for _ in 0..64 {
            overlay.tend(64 << 10).unwrap();
        }
        (overlay.stats().log_bytes, disk.operations())
    };
    let settled = tend();
    assert!(overlay.shortage().is_some());
    assert!(settled.0 > DISK / 2 * 3, "{settled:?}");
    assert_eq!(tend(), settled, "nothing is written or synced in vain");
    assert!(content(&overlay).iter().all(|byte| *byte == 7));
}
