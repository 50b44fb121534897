//! Encrypted overlays: what a thief finds, what a forger can do, and what becomes of logs that an earlier release left in the clear.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use dedup_store::disk::{Disk, HostDisk};
use proptest::prelude::*;
use vmm_block::BlockDevice;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::tests::{BUSY, KIB, SMALL, bytes_of, identity, key, open, segment_files};
use super::{MemBase, Overlay, OverlayError, OverlayKey, Volume};

const DISK: u64 = 64 * KIB;
const LOG_ID: [u8; 16] = [3; 16];

fn volume(overlay: &Arc<Overlay>) -> Volume {
    Volume::new(Arc::new(MemBase::default()), overlay.clone(), 0).unwrap()
}

fn files(root: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(root.join("desk"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

fn contains(root: &Path, needle: &[u8]) -> bool {
    files(root).iter().any(|file| {
        let bytes = std::fs::read(file).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[test]
fn nothing_that_a_guest_wrote_lies_on_the_disk_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let secret = b"the board meets on Friday";
    let overlay = open(root.path(), &[DISK], BUSY).unwrap();
    for i in 0..40u64 {
        let mut block = vec![0; 4096];
        block[(i * 64) as usize..][..secret.len()].copy_from_slice(secret);
        overlay.write(0, i % 16 * 4096, &block).unwrap();
        overlay.tend(8 * KIB).unwrap();
    }
    overlay.flush().unwrap();
    assert!(!contains(root.path(), secret));
    // Not even as runs of equal ciphertext for equal blocks.
    let bytes = std::fs::read(&segment_files(root.path())[0]).unwrap();
    let mut blocks: Vec<_> = bytes.chunks(64).map(<[u8]>::to_vec).collect();
    let count = blocks.len();
    blocks.sort();
    blocks.dedup();
    // Zeros ahead of the log, and reserved fields, are all that may repeat.
    assert!(blocks.len() + 8 >= count, "{} of {count}", blocks.len());
}

#[test]
fn another_key_is_told_from_damage() {
    let root = tempfile::tempdir().unwrap();
    open(root.path(), &[DISK], SMALL)
        .unwrap()
        .write(0, 0, &[1; 512])
        .unwrap();
    let disk: Arc<dyn Disk> = Arc::new(HostDisk::new(root.path()).unwrap());
    let other = OverlayKey::new([0x78; 32], |buf| buf.fill(1));
    let refused = Overlay::open(disk, "desk", &identity(&[DISK]), &other, SMALL);
    let Err(error @ OverlayError::OtherKey { .. }) = refused else {
        panic!("opened");
    };
    assert!(error.to_string().contains("key file"), "{error}");
    open(root.path(), &[DISK], SMALL).unwrap();
}

/// A log with a few of everything, flushed, and what it reads as.
fn made(root: &Path) -> Vec<u8> {
    let overlay = open(root, &[DISK], BUSY).unwrap();
    for i in 0..24u64 {
        let data: Vec<u8> = (0..4096u64).map(|j| (i * 31 + j / 7) as u8).collect();
        overlay.write(0, i * 5 % 16 * 4096, &data).unwrap();
        if i % 6 == 0 {
            overlay.zero(0, (i + 3) % 16 * 4096, 512, true).unwrap();
        }
        overlay.tend(4 * KIB).unwrap();
    }
    overlay.flush().unwrap();
    bytes_of(&volume(&overlay))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any one byte of any file may change: then the overlay does not open, or a read fails, or nothing has changed for the guest.
    #[test]
    fn no_altered_byte_reaches_a_guest(file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let root = tempfile::tempdir().unwrap();
        let content = made(root.path());
        let files = files(root.path());
        let file = file.get(&files);
        let mut bytes = std::fs::read(file).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        std::fs::write(file, &bytes).unwrap();
        if let Ok(overlay) = open(root.path(), &[DISK], BUSY) {
            let volume = volume(&overlay);
            for sector in 0..DISK / 512 {
                let mut found = [0; 512];
                if volume.read(sector * 512, &mut found).is_ok() {
                    prop_assert!(found[..] == content[(sector * 512) as usize..][..512], "{} byte {at}", file.display());
                }
            }
        }
    }
}

#[test]
fn an_older_block_in_the_place_of_a_newer_one_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[DISK], SMALL).unwrap();
    overlay.write(0, 0, &[1; 4096]).unwrap();
    overlay.write(0, 0, &[2; 4096]).unwrap();
    overlay.flush().unwrap();
    let volume = volume(&overlay);
    let segment = &segment_files(root.path())[0];
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(segment)
        .unwrap();
    let mut older = vec![0; 48 + 4096];
    let record = 96 + 48 + 4096;
    file.read_exact_at(&mut older, 128 + 96).unwrap();
    file.write_all_at(&older, 128 + record + 96).unwrap();
    volume.read(0, &mut [0; 4096]).unwrap_err();
    drop(volume);
    drop(overlay);
    assert!(matches!(
        open(root.path(), &[DISK], SMALL),
        Err(OverlayError::Corrupt { .. })
    ));
    // The whole older record there, header and all, does not continue the log either.
    let mut whole = vec![0; record as usize];
    file.read_exact_at(&mut whole, 128).unwrap();
    file.write_all_at(&whole, 128 + record).unwrap();
    assert!(matches!(
        open(root.path(), &[DISK], SMALL),
        Err(OverlayError::Corrupt { .. })
    ));
}

/// Writes an overlay as version 0.1.0 did before it encrypted: the layout of format version 1, golden bytes of the release.
struct PlainLog {
    bytes: Vec<u8>,
    seq: u64,
    chain: u64,
}

impl PlainLog {
    fn new(number: u32) -> Self {
        let mut log = Self {
            bytes: Vec::new(),
            seq: 0,
            chain: 0,
        };
        let bytes = &mut log.bytes;
        bytes.extend_from_slice(b"SPLOVSEG");
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&LOG_ID);
        bytes.extend_from_slice(&1u64.to_le_bytes());
        bytes.resize(120, 0);
        let check = xxh3_64_with_seed(bytes, Self::seed());
        bytes.extend_from_slice(&check.to_le_bytes());
        log
    }

    fn seed() -> u64 {
        xxh3_64(&LOG_ID)
    }

    fn mix(value: u64) -> u64 {
        let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A record of `kind` for the range; a write's payload is one block.
    fn record(&mut self, kind: u8, offset: u64, len: u64, payload: &[u8]) {
        self.seq += 1;
        let mut header = b"SPOR".to_vec();
        header.extend_from_slice(&[kind, 0, 0, 0]);
        for word in [self.seq, self.seq - 1, offset, len, self.chain] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        header.resize(88, 0);
        self.chain = xxh3_64_with_seed(&header, Self::seed());
        header.extend_from_slice(&self.chain.to_le_bytes());
        self.bytes.extend_from_slice(&header);
        if !payload.is_empty() {
            let place = Self::mix(self.seq ^ Self::mix(offset));
            let check = xxh3_64_with_seed(payload, Self::seed() ^ place);
            self.bytes.extend_from_slice(&check.to_le_bytes());
            self.bytes.extend_from_slice(&[0; 8]);
            self.bytes.extend_from_slice(payload);
        }
    }

    fn meta() -> Vec<u8> {
        let mut out = b"SPLOVLAY".to_vec();
        out.extend_from_slice(&1u32.to_le_bytes());
        out.extend_from_slice(&1u32.to_le_bytes());
        out.extend_from_slice(&[7; 16]);
        out.extend_from_slice(&[9; 32]);
        out.extend_from_slice(&LOG_ID);
        out.extend_from_slice(&0u64.to_le_bytes());
        out.extend_from_slice(&1u32.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(&DISK.to_le_bytes());
        let check = xxh3_64(&out);
        out.extend_from_slice(&check.to_le_bytes());
        out
    }
}

const OLD_WORDS: &[u8] = b"written before there was a key";

/// An overlay of the release before, with a block of `OLD_WORDS`, a hole and a mark.
fn plain_overlay(root: &Path) {
    std::fs::create_dir_all(root.join("desk")).unwrap();
    let mut block = vec![5; 4096];
    block[..OLD_WORDS.len()].copy_from_slice(OLD_WORDS);
    let mut log = PlainLog::new(1);
    log.record(1, 8192, 4096, &block);
    log.record(3, 0, 4096, &[]);
    log.record(16, 0, 0, &[]);
    std::fs::write(root.join("desk/0000000001.seg"), &log.bytes).unwrap();
    std::fs::write(root.join("desk/overlay.meta"), PlainLog::meta()).unwrap();
}

fn open_plain(root: &Path) -> Result<Arc<Overlay>, OverlayError> {
    let disk: Arc<dyn Disk> = Arc::new(HostDisk::new(root).unwrap());
    Overlay::open(
        disk,
        "desk",
        &identity(&[DISK]),
        &key().taking_plain(),
        SMALL,
    )
    .map(Arc::new)
}

fn assert_old_content(volume: &Volume) {
    let bytes = bytes_of(volume);
    assert_eq!(&bytes[8192..8192 + OLD_WORDS.len()], OLD_WORDS);
    assert_eq!((bytes[8192 + 4095], bytes[0], bytes[4096]), (5, 0, 0));
}

#[test]
fn a_log_in_the_clear_opens_and_becomes_an_encrypted_one() {
    let root = tempfile::tempdir().unwrap();
    plain_overlay(root.path());
    let overlay = open_plain(root.path()).unwrap();
    assert_old_content(&volume(&overlay));
    assert_eq!(overlay.stats().plain_segments, 1);
    drop(overlay);
    // Half way, any number of times. The key needs not take it in the clear any more.
    for round in 0..3u8 {
        let overlay = open(root.path(), &[DISK], SMALL).unwrap();
        assert_old_content(&volume(&overlay));
        overlay.write(0, 32 * KIB, &[round; 4096]).unwrap();
        overlay.flush().unwrap();
    }
    let overlay = open(root.path(), &[DISK], SMALL).unwrap();
    while overlay.tend(KIB).unwrap().has_more {}
    overlay.tend(KIB).unwrap();
    assert_eq!(overlay.stats().plain_segments, 0);
    assert_old_content(&volume(&overlay));
    drop(overlay);
    let overlay = open(root.path(), &[DISK], SMALL).unwrap();
    assert_old_content(&volume(&overlay));
    assert!(!contains(root.path(), OLD_WORDS));
}

#[test]
fn nobody_can_put_a_log_in_the_clear_in_the_place_of_an_encrypted_one() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[DISK], SMALL).unwrap();
    overlay.write(0, 8192, &[1; 4096]).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    let keep = std::fs::read(root.path().join("desk/overlay.meta")).unwrap();
    plain_overlay(root.path());
    assert!(matches!(
        open(root.path(), &[DISK], SMALL),
        Err(OverlayError::Corrupt { .. })
    ));
    // With the true header file, the segment alone.
    std::fs::write(root.path().join("desk/overlay.meta"), keep).unwrap();
    assert!(matches!(
        open(root.path(), &[DISK], SMALL),
        Err(OverlayError::Corrupt { .. })
    ));
}
