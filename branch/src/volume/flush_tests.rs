//! Flushes that cost little, and the zeros that are written ahead of the log for them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::FileExt;

use vmm_block::BlockDevice;

use super::tests::{open, segment_files};
use super::{MemBase, OverlayError, OverlayOptions, Volume};

const KIB: u64 = 1024;
const DISK: u64 = 1 << 20;

fn len_of(path: &std::path::Path) -> u64 {
    path.metadata().unwrap().len()
}

#[test]
fn small_flushes_write_ahead_and_large_ones_do_not() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[DISK], OverlayOptions::default()).unwrap();
    let segment = &segment_files(root.path())[0];
    for at in 0..4 {
        overlay.write(0, at * 4096, &[at as u8 + 1; 4096]).unwrap();
        overlay.flush().unwrap();
    }
    let (len, log) = (len_of(segment), overlay.stats().log_bytes);
    assert!(
        len >= log + 100 * KIB,
        "{len} bytes of file for {log} of log"
    );
    overlay.write(0, 4 * 4096, &[5; 4096]).unwrap();
    overlay.flush().unwrap();
    assert_eq!(
        len_of(segment),
        len,
        "a flush in between makes the file no longer"
    );

    for _ in 0..4 {
        overlay.write(0, 0, &vec![9; 512 << 10]).unwrap();
        overlay.flush().unwrap();
    }
    assert_eq!(len_of(segment), overlay.stats().log_bytes);
}

#[test]
fn a_log_with_zeros_ahead_is_whole_after_any_stop() {
    let root = tempfile::tempdir().unwrap();
    let options = OverlayOptions {
        segment_bytes: 24 * KIB,
        ..OverlayOptions::default()
    };
    for life in 1..6u8 {
        let overlay = open(root.path(), &[DISK], options).unwrap();
        let segments = segment_files(root.path());
        assert_eq!(
            segments.iter().map(|path| len_of(path)).sum::<u64>(),
            overlay.stats().log_bytes,
            "the zeros are cut off"
        );
        for at in 0..40 {
            let data = [life ^ at as u8; 4096];
            overlay.write(0, at * 4096, &data).unwrap();
            overlay.flush().unwrap();
        }
        let volume = Volume::new(
            std::sync::Arc::new(MemBase::new(Vec::new())),
            overlay.clone(),
            0,
        );
        let volume = volume.unwrap();
        for at in 0..40 {
            let mut data = [0; 4096];
            volume.read(at * 4096, &mut data).unwrap();
            assert_eq!(data, [life ^ at as u8; 4096]);
        }
        assert!(overlay.stats().segments > 1);
        // Nothing is closed: as after the death of the process.
        drop(volume);
    }
}

#[test]
fn a_flushed_record_that_became_zeros_is_damage_all_the_same() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[DISK], OverlayOptions::default()).unwrap();
    for at in 0..3 {
        overlay.write(0, at * 4096, &[1; 4096]).unwrap();
        overlay.flush().unwrap();
    }
    drop(overlay);
    let file = std::fs::File::options()
        .write(true)
        .open(&segment_files(root.path())[0])
        .unwrap();
    file.write_all_at(&[0; 4096], 128).unwrap();
    assert!(matches!(
        open(root.path(), &[DISK], OverlayOptions::default()),
        Err(OverlayError::Corrupt { .. })
    ));
}

#[test]
fn a_flush_that_would_take_long_is_declined() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[DISK], OverlayOptions::default()).unwrap();
    let base = std::sync::Arc::new(MemBase::new(Vec::new()));
    let volume = Volume::new(base, overlay.clone(), 0).unwrap();
    assert!(volume.try_flush().unwrap(), "nothing is to be done");
    volume.write(0, &[1; 4096], false).unwrap();
    assert!(volume.try_flush().unwrap());
    assert_eq!(overlay.flushed_seq(), 1);
    volume.write(0, &vec![2; 256 << 10], false).unwrap();
    assert!(!volume.try_flush().unwrap());
    assert!(overlay.flushed_seq() < overlay.stats().seq);
    volume.flush().unwrap();
    assert!(volume.try_flush().unwrap());
}
