//! Housekeeping: logs that stay short, openings that read little, indexes that stay small.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use vmm_block::BlockDevice;

use super::tests::{BUSY, KIB, SMALL, bytes_of, flip, open, segment_files};
use super::{MemBase, Overlay, OverlayError, OverlayOptions, OverlayStats, Volume};

const DISK: u64 = 1 << 20;

fn volume(overlay: &Arc<Overlay>) -> Volume {
    Volume::new(Arc::new(MemBase::default()), overlay.clone(), 0).unwrap()
}

/// A sequence of numbers without order.
fn scattered(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |bound| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    }
}

/// What the documentation says of space: twice what is live would take, and two segments.
fn bound(stats: &OverlayStats, options: &OverlayOptions) -> u64 {
    let needed = stats.live_bytes + stats.live_bytes / 64 + 160 * stats.extents;
    2 * needed + 2 * options.segment_bytes
}

#[test]
fn a_log_stays_within_its_bound_however_much_is_written() {
    let root = tempfile::tempdir().unwrap();
    let options = OverlayOptions {
        segment_bytes: 64 * KIB,
        ..SMALL
    };
    let overlay = open(root.path(), &[DISK], options).unwrap();
    let mut random = scattered(1);
    let mut oracle = vec![0; DISK as usize];
    for i in 0..6000u64 {
        // Most writes go to a tenth of the disk, as they do.
        let block = if random(10) > 0 {
            random(25)
        } else {
            random(256)
        };
        let at = block * 4096;
        if random(20) == 0 {
            overlay.zero(0, at, 4096, random(2) == 0).unwrap();
            oracle[at as usize..][..4096].fill(0);
        } else {
            let data = vec![i as u8 | 1; 4096];
            overlay.write(0, at, &data).unwrap();
            oracle[at as usize..][..4096].copy_from_slice(&data);
        }
        if i % 16 == 0 {
            overlay.tend(16 * KIB).unwrap();
            let stats = overlay.stats();
            // One segment of what came since the last step.
            let most = bound(&stats, &options) + options.segment_bytes;
            assert!(stats.log_bytes <= most, "{stats:?}");
        }
    }
    assert!(bytes_of(&volume(&overlay)) == oracle);
    let on_disk: u64 = segment_files(root.path())
        .iter()
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert!(on_disk < 4 << 20, "24 MiB were written: {on_disk}");
    drop(overlay);
    let overlay = open(root.path(), &[DISK], options).unwrap();
    assert!(bytes_of(&volume(&overlay)) == oracle);
}

#[test]
fn an_opening_reads_what_came_after_the_last_snapshot_only() {
    let root = tempfile::tempdir().unwrap();
    let options = OverlayOptions {
        snapshot_bytes: 48 * KIB,
        ..SMALL
    };
    let overlay = open(root.path(), &[DISK], options).unwrap();
    for i in 0..40u64 {
        overlay.write(0, i * 4096, &[i as u8 + 1; 4096]).unwrap();
    }
    assert!(overlay.tend(0).unwrap().snapshot_bytes > 0);
    overlay.write(0, 0, &[0xAA; 512]).unwrap();
    overlay.flush().unwrap();
    let content = bytes_of(&volume(&overlay));
    drop(overlay);
    // Rot in what was flushed long ago. Reading the log from its beginning would refuse to open.
    flip(&segment_files(root.path())[0], 128 + 96 + 48 + 1000);
    let overlay = open(root.path(), &[DISK], options).unwrap();
    let volume = volume(&overlay);
    volume.read(512, &mut [0; 512]).unwrap_err();
    let mut rest = vec![0; DISK as usize - 4096];
    volume.read(4096, &mut rest).unwrap();
    assert!(rest == content[4096..]);
    let mut first = [0; 512];
    volume.read(0, &mut first).unwrap();
    assert_eq!(first, [0xAA; 512]);
}

#[test]
fn a_snapshot_that_does_not_fit_costs_nothing_but_time() {
    let root = tempfile::tempdir().unwrap();
    let index = root.path().join("desk/overlay.index");
    let mut older = Vec::new();
    let mut random = scattered(2);
    let mut content = Vec::new();
    for life in 0..4u8 {
        let overlay = open(root.path(), &[DISK], BUSY).unwrap();
        for i in 0..120u64 {
            let data = [life ^ i as u8; 2048];
            overlay.write(0, random(500) * 2048, &data).unwrap();
            overlay.tend(8 * KIB).unwrap();
        }
        overlay.flush().unwrap();
        content = bytes_of(&volume(&overlay));
        older.push(std::fs::read(&index).unwrap());
    }
    let check = |what: &str| {
        let overlay = open(root.path(), &[DISK], BUSY).unwrap();
        assert!(bytes_of(&volume(&overlay)) == content, "{what}");
    };
    check("the newest");
    for bytes in &older {
        std::fs::write(&index, bytes).unwrap();
        check("one of an earlier day");
    }
    let newest = older.last().unwrap();
    for at in (0..newest.len()).step_by(newest.len() / 50) {
        let mut bytes = newest.clone();
        bytes[at] ^= 1;
        std::fs::write(&index, &bytes).unwrap();
        check("one with another byte");
        std::fs::write(&index, &newest[..at]).unwrap();
        check("one cut short");
    }
    std::fs::remove_file(&index).unwrap();
    check("none");
}

#[test]
fn a_full_index_refuses_writes_until_extents_are_joined() {
    let root = tempfile::tempdir().unwrap();
    let options = OverlayOptions {
        extents_max: 64,
        ..SMALL
    };
    let overlay = open(root.path(), &[DISK], options).unwrap();
    let mut sector = 0;
    let refused = loop {
        match overlay.write(0, sector * 512, &[sector as u8 + 1; 512]) {
            Ok(_) => sector += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(
        refused,
        OverlayError::IndexFull { extents: 64, .. }
    ));
    assert!(overlay.shortage().is_some());
    // What replaces whole extents is taken: a guest can give back what it wrote.
    overlay.write(0, 0, &[0xAA; 512]).unwrap();
    overlay.zero(0, 512, 1024, true).unwrap();
    assert_eq!(overlay.stats().extents, 63);
    // Reads go on, and so do writes once the neighbours are one.
    let before = bytes_of(&volume(&overlay));
    while overlay.tend(KIB).unwrap().has_more {}
    assert!(overlay.stats().extents <= 4, "{:?}", overlay.stats());
    overlay.tend(0).unwrap();
    assert_eq!(overlay.shortage(), None);
    assert!(bytes_of(&volume(&overlay)) == before);
    overlay.write(0, sector * 512, &[1; 512]).unwrap();
}

#[test]
fn a_segment_with_rot_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[DISK], SMALL).unwrap();
    overlay.write(0, 0, &[1; 4096]).unwrap();
    for round in 0..60u8 {
        for block in 1..9 {
            overlay.write(0, block * 4096, &[round; 4096]).unwrap();
        }
        if round == 2 {
            overlay.flush().unwrap();
            flip(&segment_files(root.path())[0], 128 + 96 + 48 + 9);
        }
        overlay.tend(64 * KIB).unwrap();
    }
    let files = segment_files(root.path());
    assert!(files[0].ends_with("0000000001.seg"));
    assert!(files.len() < 8, "{files:?}");
    volume(&overlay).read(0, &mut [0; 512]).unwrap_err();
    volume(&overlay).read(4096, &mut [0; 512]).unwrap();
}

#[test]
fn a_step_moves_little_more_than_its_budget() {
    const BLOCK: u64 = 64 * KIB;
    let root = tempfile::tempdir().unwrap();
    let options = OverlayOptions {
        segment_bytes: 256 * KIB,
        ..SMALL
    };
    let overlay = open(root.path(), &[64 * BLOCK], options).unwrap();
    let write = |i: u64, fill: u8| {
        let data = vec![fill; BLOCK as usize];
        overlay.write(0, i * BLOCK, &data).unwrap();
    };
    // A quarter of each of the first segments stays live.
    (0..64).for_each(|i| write(i, 1));
    (0..64).filter(|i| i % 4 != 3).for_each(|i| write(i, 2));
    overlay.flush().unwrap();
    let content = bytes_of(&volume(&overlay));
    drop(overlay);
    // Opened anew, so that nothing counts as just written.
    let overlay = open(root.path(), &[64 * BLOCK], options).unwrap();
    let (before, mut moved) = (overlay.stats().log_bytes, 0);
    loop {
        let tended = overlay.tend(32 * KIB).unwrap();
        assert!(tended.moved_bytes < 32 * KIB + BLOCK, "{tended:?}");
        moved += tended.moved_bytes;
        if !tended.has_more {
            break;
        }
    }
    let after = overlay.stats().log_bytes;
    assert!(moved > 0 && after < before, "{moved}: {before} to {after}");
    assert!(bytes_of(&volume(&overlay)) == content);
}
