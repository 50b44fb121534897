//! Volumes against a byte array, and overlays against damage and full disks, on a real directory.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dedup::VersionId;
use dedup_store::disk::{Disk, DiskFile, HostDisk, Open};
use proptest::prelude::*;
use vmm_block::{BlockDevice, BlockErrorKind, RangeStatus};

use super::{MemBase, Overlay, OverlayError, OverlayIdentity, OverlayKey, OverlayOptions, Volume};

pub(super) const KIB: u64 = 1024;
pub(super) const SMALL: OverlayOptions = OverlayOptions {
    segment_bytes: 32 * KIB,
    snapshot_bytes: 1 << 40,
    extents_max: 1 << 20,
    room_wait: Duration::ZERO,
    floor_bytes: 0,
};
/// Everything that housekeeping does happens within a few writes.
pub(super) const BUSY: OverlayOptions = OverlayOptions {
    segment_bytes: 16 * KIB,
    snapshot_bytes: 24 * KIB,
    extents_max: 960,
    room_wait: Duration::ZERO,
    floor_bytes: 0,
};

pub(super) fn key() -> OverlayKey {
    OverlayKey::new([0x77; 32], |buf| {
        rand::RngCore::fill_bytes(&mut rand::rng(), buf);
    })
}

pub(super) fn identity(disks: &[u64]) -> OverlayIdentity {
    OverlayIdentity {
        desktop: [7; 16],
        base: VersionId([9; 32]),
        disks: disks.to_vec(),
    }
}

pub(super) fn open(
    root: &Path,
    disks: &[u64],
    options: OverlayOptions,
) -> Result<Arc<Overlay>, OverlayError> {
    let disk = Arc::new(HostDisk::new(root).unwrap());
    Overlay::open_or_create(disk, "desk", &identity(disks), [3; 16], &key(), options).map(Arc::new)
}

pub(super) fn base_bytes(len: u64) -> Vec<u8> {
    (0..len).map(|i| (i / 512 % 251 + 1) as u8).collect()
}

pub(super) fn segment_files(root: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(root.join("desk"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect();
    files.sort();
    files
}

pub(super) fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

pub(super) fn bytes_of(volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0xEE; volume.geometry().size_bytes as usize];
    volume.read(0, &mut bytes).unwrap();
    bytes
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        at: u64,
        len: u64,
        fill: u8,
        fua: bool,
    },
    Zero {
        at: u64,
        len: u64,
        unmap: bool,
    },
    Discard {
        at: u64,
        len: u64,
    },
    Read {
        at: u64,
        len: u64,
    },
    Flush,
    Tend {
        budget: u64,
    },
    Reopen,
}

const SECTORS: u64 = 400;
const BASE_SECTORS: u64 = 300;

fn step() -> impl Strategy<Value = (usize, Step)> {
    let range = || {
        (0..SECTORS, prop_oneof![4 => 1..24u64, 1 => 1..SECTORS])
            .prop_map(|(at, len)| (at, len.min(SECTORS - at)))
    };
    let step = prop_oneof![
        6 => (range(), any::<u8>(), any::<bool>()).prop_map(|((at, len), fill, fua)| Step::Write { at, len, fill, fua }),
        2 => (range(), any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero { at, len, unmap }),
        1 => range().prop_map(|(at, len)| Step::Discard { at, len }),
        4 => range().prop_map(|(at, len)| Step::Read { at, len }),
        1 => Just(Step::Flush),
        2 => (0..64 * KIB).prop_map(|budget| Step::Tend { budget }),
        1 => Just(Step::Reopen),
    ];
    (0..2usize, step)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn volumes_are_byte_arrays(steps in prop::collection::vec(step(), 1..120)) {
        let root = tempfile::tempdir().unwrap();
        let size = SECTORS * 512;
        let make = || {
            let overlay = open(root.path(), &[size, size], BUSY).unwrap();
            [0, 1].map(|disk| {
                let base = MemBase::new(base_bytes(BASE_SECTORS * 512)).with_zero(64 * KIB..80 * KIB);
                Volume::new(Arc::new(base), overlay.clone(), disk).unwrap()
            })
        };
        let mut volumes = make();
        let mut oracles = [(); 2].map(|()| bytes_of(&volumes[0]));
        prop_assert_eq!(oracles[0][64 * 1024], 0);
        for (i, (disk, step)) in steps.into_iter().enumerate() {
            let (volume, oracle) = (&volumes[disk], &mut oracles[disk]);
            let span = |at: u64, len: u64| (at * 512) as usize..((at + len) * 512) as usize;
            match step {
                Step::Write { at, len, fill, fua } => {
                    let data: Vec<u8> = (0..len * 512).map(|j| fill ^ (i as u8) ^ (j / 97) as u8).collect();
                    volume.write(at * 512, &data, fua).unwrap();
                    oracle[span(at, len)].copy_from_slice(&data);
                    if fua {
                        prop_assert!(volume.flushed_seq() > 0);
                    }
                }
                Step::Zero { at, len, unmap } => {
                    volume.write_zeroes(at * 512, len * 512, unmap, false).unwrap();
                    oracle[span(at, len)].fill(0);
                }
                Step::Discard { at, len } => {
                    volume.discard(at * 512, len * 512).unwrap();
                    oracle[span(at, len)].fill(0);
                }
                Step::Read { at, len } => {
                    let mut buf = vec![0xEE; (len * 512) as usize];
                    prop_assert!(volume.try_read(at * 512, &mut buf).unwrap());
                    prop_assert_eq!(&buf[..], &oracle[span(at, len)]);
                }
                Step::Flush => volume.flush().unwrap(),
                Step::Tend { budget } => {
                    volume.overlay().tend(budget).unwrap();
                }
                Step::Reopen => {
                    drop(volumes);
                    volumes = make();
                }
            }
        }
        for (volume, oracle) in volumes.iter().zip(&oracles) {
            prop_assert!(&bytes_of(volume) == oracle);
            let status = volume.block_status(0, size).unwrap();
            prop_assert_eq!(status.iter().map(|r| r.len).sum::<u64>(), size);
            let mut at = 0;
            for range in status {
                if range.zero {
                    prop_assert!(oracle[at..at + range.len as usize].iter().all(|&b| b == 0));
                }
                at += range.len as usize;
            }
        }
    }
}

#[test]
fn a_read_that_needs_the_wan_is_declined_unless_the_overlay_covers_it() {
    let root = tempfile::tempdir().unwrap();
    let base = MemBase::new(base_bytes(64 * KIB)).with_away(8 * KIB..16 * KIB);
    let overlay = open(root.path(), &[64 * KIB], SMALL).unwrap();
    let volume = Volume::new(Arc::new(base), overlay, 0).unwrap();
    let mut buf = vec![0; 4096];
    assert!(volume.try_read(0, &mut buf).unwrap());
    assert!(!volume.try_read(12 * KIB, &mut buf).unwrap());
    volume.write(12 * KIB, &[5; 4096], false).unwrap();
    assert!(volume.try_read(12 * KIB, &mut buf).unwrap());
    assert_eq!(buf, [5; 4096]);
}

#[test]
fn status_tells_zeros_holes_and_data_apart() {
    let root = tempfile::tempdir().unwrap();
    let base = MemBase::new(base_bytes(32 * KIB)).with_zero(0..8 * KIB);
    let volume = Volume::new(
        Arc::new(base),
        open(root.path(), &[64 * KIB], SMALL).unwrap(),
        0,
    )
    .unwrap();
    volume.write(4 * KIB, &[1; 1024], false).unwrap();
    volume.write_zeroes(16 * KIB, 4096, false, false).unwrap();
    volume.discard(24 * KIB, 4096).unwrap();
    let range = |len, hole, zero| RangeStatus {
        len: len * KIB,
        hole,
        zero,
    };
    assert_eq!(
        volume.block_status(0, 64 * KIB).unwrap(),
        [
            range(4, true, true),
            range(1, false, false),
            range(3, true, true),
            range(8, false, false),
            range(4, false, true),
            range(4, false, false),
            range(4, true, true),
            range(4, false, false),
            range(32, true, true)
        ]
    );
    assert_eq!(
        volume.block_status(0, 0).unwrap_err().kind,
        BlockErrorKind::OutOfRange
    );
}

#[test]
fn requests_off_the_grid_or_the_disk_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[64 * KIB], SMALL).unwrap();
    let base = Arc::new(MemBase::new(base_bytes(64 * KIB)));
    assert!(matches!(
        Volume::new(base.clone(), overlay.clone(), 1),
        Err(OverlayError::Invalid { .. })
    ));
    let volume = Volume::new(base, overlay.clone(), 0).unwrap();
    for refused in [
        volume.write(100, &[0; 512], false),
        volume.write(0, &[0; 100], false),
        volume.write(64 * KIB, &[0; 512], false),
        volume.discard(u64::MAX - 511, 512),
        volume.write_zeroes(0, 65 * KIB, true, false),
        volume.read(63 * KIB, &mut [0; 2048]),
    ] {
        assert_eq!(refused.unwrap_err().kind, BlockErrorKind::OutOfRange);
    }
    assert_eq!(overlay.stats().seq, 0, "nothing was logged");
    let long = Arc::new(MemBase::new(base_bytes(65 * KIB)));
    assert!(matches!(
        Volume::new(long, overlay, 0),
        Err(OverlayError::Invalid { .. })
    ));
}

#[test]
fn another_desktop_version_or_layout_is_refused() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path(), &[64 * KIB], SMALL).unwrap());
    let disk: Arc<dyn Disk> = Arc::new(HostDisk::new(root.path()).unwrap());
    let right = identity(&[64 * KIB]);
    let cases = [
        (
            "desktop",
            OverlayIdentity {
                desktop: [8; 16],
                ..right.clone()
            },
        ),
        (
            "base version",
            OverlayIdentity {
                base: VersionId([1; 32]),
                ..right.clone()
            },
        ),
        ("disk sizes", identity(&[128 * KIB])),
    ];
    for (property, wrong) in cases {
        let refused = Overlay::open(disk.clone(), "desk", &wrong, &key(), SMALL);
        assert!(matches!(refused, Err(OverlayError::Mismatch { what, .. }) if what == property));
    }
    let again = Overlay::create(disk.clone(), "desk", &right, [4; 16], &key(), SMALL);
    assert!(matches!(again, Err(OverlayError::Exists { .. })));
    assert!(matches!(
        Overlay::open(disk, "nothing", &right, &key(), SMALL),
        Err(OverlayError::Absent { .. })
    ));
}

#[test]
fn a_damaged_record_that_was_flushed_closes_the_overlay() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[64 * KIB], SMALL).unwrap();
    for i in 0..4 {
        overlay.write(0, i * 4096, &[i as u8 + 1; 4096]).unwrap();
    }
    overlay.flush().unwrap();
    drop(overlay);
    let file = &segment_files(root.path())[0];
    // Byte 200 lies in the first record's header, 300 in its payload. The mark behind proves the flush.
    for at in [200, 300] {
        flip(file, at);
        let Err(error) = open(root.path(), &[64 * KIB], SMALL) else {
            panic!("opened")
        };
        let OverlayError::Corrupt {
            file: named,
            offset,
            ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((named.as_str(), *offset), ("desk/0000000001.seg", 128));
        flip(file, at);
    }
    open(root.path(), &[64 * KIB], SMALL).unwrap();
}

#[test]
fn a_damaged_record_that_was_not_flushed_is_a_torn_tail() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[64 * KIB], SMALL).unwrap();
    overlay.write(0, 0, &[1; 4096]).unwrap();
    overlay.flush().unwrap();
    let kept = overlay.stats().log_bytes;
    for _ in 0..20 {
        overlay.write(0, 4096, &[2; 4096]).unwrap();
    }
    assert!(overlay.stats().segments > 1, "the tail spans segments");
    drop(overlay);
    flip(&segment_files(root.path())[0], kept + 150);
    let overlay = open(root.path(), &[64 * KIB], SMALL).unwrap();
    assert_eq!(
        (overlay.stats().log_bytes, overlay.stats().segments),
        (kept, 1)
    );
    assert_eq!(segment_files(root.path()).len(), 1);
    overlay.write(0, 4096, &[3; 4096]).unwrap();
    drop(overlay);
    let base = Arc::new(MemBase::new(vec![9; 64 << 10]));
    let volume = Volume::new(base, open(root.path(), &[64 * KIB], SMALL).unwrap(), 0).unwrap();
    let bytes = bytes_of(&volume);
    assert_eq!((bytes[0], bytes[4096], bytes[8192]), (1, 3, 9));
}

#[test]
fn a_lost_segment_file_closes_the_overlay() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[640 * KIB], SMALL).unwrap();
    for i in 0..40 {
        overlay.write(0, i * 4096, &[1; 4096]).unwrap();
    }
    overlay.flush().unwrap();
    drop(overlay);
    let files = segment_files(root.path());
    for lost in [&files[1], files.last().unwrap()] {
        let aside = root.path().join("aside");
        std::fs::rename(lost, &aside).unwrap();
        let refused = open(root.path(), &[640 * KIB], SMALL);
        assert!(matches!(refused, Err(OverlayError::Corrupt { .. })));
        std::fs::rename(&aside, lost).unwrap();
    }
    open(root.path(), &[640 * KIB], SMALL).unwrap();
}

#[test]
fn rot_under_an_open_overlay_fails_the_read_and_a_rewrite_heals_it() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[64 * KIB], SMALL).unwrap();
    let volume = Volume::new(Arc::new(MemBase::default()), overlay.clone(), 0).unwrap();
    volume.write(0, &[1; 8192], true).unwrap();
    flip(&segment_files(root.path())[0], 128 + 96 + 48 + 100);
    let error = volume.read(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind, BlockErrorKind::Io);
    assert!(error.to_string().contains("desk/0000000001.seg"), "{error}");
    volume.read(4096, &mut [0; 4096]).unwrap();
    assert_eq!(overlay.stats().read_faults, 1);
    volume.write(0, &[2; 4096], false).unwrap();
    volume.read(0, &mut [0; 8192]).unwrap();
}

#[test]
fn segments_that_are_wholly_overwritten_are_dropped() {
    let root = tempfile::tempdir().unwrap();
    let mut overlay = open(root.path(), &[256 * KIB], SMALL).unwrap();
    overlay.write(0, 128 * KIB, &[0xAA; 4096]).unwrap();
    for round in 0..30u8 {
        for block in 0..16 {
            overlay.write(0, block * 4096, &[round; 4096]).unwrap();
        }
        overlay.flush().unwrap();
        if round % 7 == 0 {
            drop(overlay);
            overlay = open(root.path(), &[256 * KIB], SMALL).unwrap();
        }
    }
    overlay.flush().unwrap();
    assert!(overlay.stats().segments <= 5, "{:?}", overlay.stats());
    assert_eq!(
        segment_files(root.path()).len() as u64,
        overlay.stats().segments
    );
    drop(overlay);
    let volume = Volume::new(
        Arc::new(MemBase::default()),
        open(root.path(), &[256 * KIB], SMALL).unwrap(),
        0,
    )
    .unwrap();
    let bytes = bytes_of(&volume);
    assert!(bytes[..64 << 10].iter().all(|&b| b == 29));
    assert_eq!((bytes[128 << 10], bytes[(128 << 10) - 1]), (0xAA, 0));
}

#[test]
fn long_writes_become_several_records() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[8 << 20], OverlayOptions::default()).unwrap();
    let volume = Volume::new(Arc::new(MemBase::default()), overlay, 0).unwrap();
    let data = base_bytes(5 << 20);
    volume.write(512 * 3, &data, true).unwrap();
    assert_eq!(volume.overlay().stats().seq, 6, "five of 1 MiB and a mark");
    let mut buf = vec![0; data.len()];
    volume.read(512 * 3, &mut buf).unwrap();
    assert!(buf == data);
}

/// A disk whose syncs are counted and slow, so that flushes meet.
struct SlowSync {
    inner: HostDisk,
    syncs: Arc<AtomicU64>,
}

struct SlowFile {
    inner: Arc<dyn DiskFile>,
    syncs: Arc<AtomicU64>,
}

impl Disk for SlowSync {
    fn open(&self, name: &str, how: Open) -> std::io::Result<Arc<dyn DiskFile>> {
        let inner = self.inner.open(name, how)?;
        Ok(Arc::new(SlowFile {
            inner,
            syncs: self.syncs.clone(),
        }))
    }
    fn list(&self, dir: &str) -> std::io::Result<Vec<String>> {
        self.inner.list(dir)
    }
    fn create_dir(&self, dir: &str) -> std::io::Result<()> {
        self.inner.create_dir(dir)
    }
    fn remove(&self, name: &str) -> std::io::Result<()> {
        self.inner.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.inner.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> std::io::Result<()> {
        self.inner.sync_dir(dir)
    }
    fn available_bytes(&self) -> std::io::Result<u64> {
        self.inner.available_bytes()
    }
}

impl DiskFile for SlowFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.inner.write_at(offset, data)
    }
    fn sync(&self) -> std::io::Result<()> {
        std::thread::sleep(std::time::Duration::from_millis(5));
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.inner.sync()
    }
    fn len(&self) -> std::io::Result<u64> {
        self.inner.len()
    }
    fn truncate(&self, len: u64) -> std::io::Result<()> {
        self.inner.truncate(len)
    }
    fn punch_hole(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.punch_hole(offset, len)
    }
}

#[test]
fn flushes_at_the_same_time_share_a_sync() {
    const THREADS: u64 = 16;
    const WRITES: u64 = 10;
    let root = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let disk = SlowSync {
        inner: HostDisk::new(root.path()).unwrap(),
        syncs: syncs.clone(),
    };
    let overlay = Overlay::create(
        Arc::new(disk),
        "desk",
        &identity(&[1 << 20]),
        [1; 16],
        &key(),
        OverlayOptions::default(),
    )
    .unwrap();
    let before = syncs.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let overlay = &overlay;
            scope.spawn(move || {
                for i in 0..WRITES {
                    let seq = overlay
                        .write(0, (thread * WRITES + i) * 512, &[thread as u8; 512])
                        .unwrap();
                    overlay.flush().unwrap();
                    assert!(overlay.flushed_seq() >= seq);
                }
            });
        }
    });
    let syncs = syncs.load(Ordering::SeqCst) - before;
    assert!(
        syncs < THREADS * WRITES / 3,
        "{syncs} syncs for {} flushes",
        THREADS * WRITES
    );
}

#[test]
fn hostile_logs_do_not_panic() {
    let mut state = 1u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    for choice in 0..8u8 {
        for _ in 0..300 {
            let mut data = vec![choice];
            for _ in 0..random() {
                // Small fields, so that many records pass and reach the index.
                let mut record = [0; 96];
                record[4] = random();
                record[6] = random() & 1;
                record[25] = random() & 0xFE;
                record[26] = random() & 7;
                record[33] = random() & 0xFE;
                if random() < 4 {
                    record[usize::from(random()) % 96] = random();
                }
                data.extend_from_slice(&record);
            }
            super::fuzz_overlay(&data);
        }
    }
}

#[test]
fn hostile_index_snapshots_do_not_panic() {
    let mut random = {
        let mut state = 2u64;
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        }
    };
    for round in 0..2000u32 {
        let mut data = vec![(round % 2) as u8];
        // The first segment, as it is, so that what follows meets a map with something in it.
        data.extend_from_slice(&[1, 32, 1, 0, 0, 0, 0, 0, 0, 0]);
        data.extend_from_slice(&[1u64, 98, 60 << 10].map(u64::to_le_bytes).concat());
        for _ in 0..random() % 4 {
            let extents = random() % 6;
            data.extend_from_slice(&[2, 8 + 20 * extents, random() % 3, 0, 0, 0, 0, 0, 0, 0]);
            for at in 0..extents {
                let mut extent = [0; 20];
                extent[0] = at * 16 + random() % 16;
                extent[5] = random() & 3;
                extent[8] = random();
                extent[12] = 1 + u8::from(random() < 8);
                extent[16] = random() % 98;
                data.extend_from_slice(&extent);
            }
        }
        super::fuzz_index_snapshot(&data);
    }
}
