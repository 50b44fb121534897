//! What the tests of this crate share: random sparse disks with their oracle, and qemu-img.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use dedup_image::{DiskImage, ImageFormat, RegionKind};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The seed of a run: SPLICE_SEED, or one that is always the same. Printed, so that a failure can be replayed.
pub fn seeded() -> (u64, StdRng) {
    let seed = std::env::var("SPLICE_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20_081_114);
    println!("replay with SPLICE_SEED={seed}");
    (seed, StdRng::seed_from_u64(seed))
}

pub struct Disk {
    pub path: PathBuf,
    pub oracle: Vec<u8>,
}

/// A raw file with holes, written zeros, text and noise at random places.
pub fn random_disk(dir: &Path, name: &str, rng: &mut StdRng, size: usize) -> Disk {
    let path = dir.join(name);
    let file = File::create(&path).unwrap();
    file.set_len(size as u64).unwrap();
    let mut oracle = vec![0; size];
    for _ in 0..rng.random_range(4..40) {
        let at = if rng.random_bool(0.5) {
            rng.random_range(0..size)
        } else {
            rng.random_range(0..size) & !0xffff
        };
        let len = match rng.random_range(0..4) {
            0 => rng.random_range(1..2000),
            1 => 65536,
            2 => rng.random_range(1..300_000),
            _ => rng.random_range(1..1_500_000),
        };
        let len = len.min(size - at);
        let bytes = &mut oracle[at..at + len];
        match rng.random_range(0..4) {
            0 => rng.fill(bytes),
            1 => bytes.fill(0),
            2 => bytes
                .iter_mut()
                .enumerate()
                .for_each(|(i, b)| *b = b"lorem ipsum dolor "[i % 18] ^ (i >> 12) as u8),
            _ => bytes.fill(rng.random()),
        }
        file.write_all_at(bytes, at as u64).unwrap();
    }
    Disk { path, oracle }
}

pub fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("qemu-img runs; these tests need the Debian package qemu-utils");
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Compares all of `image` with `oracle` (zeros after its end), and, where `zero_unit` is given, checks that every
/// aligned unit of zeros is in zero regions, so that it would not be read.
pub fn verify(
    image: &mut dyn DiskImage,
    oracle: &[u8],
    zero_unit: Option<usize>,
    rng: &mut StdRng,
) {
    let size = image.size_bytes() as usize;
    assert!(
        size >= oracle.len() && size.is_multiple_of(512),
        "{size} for {}",
        oracle.len()
    );
    let mut expected = oracle.to_vec();
    expected.resize(size, 0);

    let mut is_zero_region = vec![false; size.div_ceil(512)];
    let mut at = 0;
    while at < size {
        let region = image.region_at(at as u64).unwrap();
        assert!(region.offset == at as u64 && region.len > 0);
        let end = region.end() as usize;
        assert!(end <= size);
        if region.kind == RegionKind::Zero {
            assert!(
                expected[at..end].iter().all(|&b| b == 0),
                "zero region {at}..{end} has data"
            );
            is_zero_region[at.div_ceil(512)..end / 512].fill(true);
        }
        at = end;
    }
    if let Some(unit) = zero_unit {
        // qemu-img writes the first block of a raw file that it makes, zeros or not.
        let first = usize::from(image.format() != ImageFormat::Qcow2);
        for (index, bytes) in expected.chunks_exact(unit).enumerate().skip(first) {
            if bytes.iter().all(|&b| b == 0) {
                let sectors = index * unit / 512..(index + 1) * unit / 512;
                assert!(
                    is_zero_region[sectors].iter().all(|&z| z),
                    "zeros at {} are called data",
                    index * unit
                );
            }
        }
    }

    let mut all = vec![0xaa; size];
    let mut at = 0;
    while at < size {
        let len = rng.random_range(1..700_000).min(size - at);
        image.read_at(at as u64, &mut all[at..at + len]).unwrap();
        at += len;
    }
    if let Some(wrong) = all.iter().zip(&expected).position(|(a, b)| a != b) {
        panic!("byte {wrong} differs");
    }
    for _ in 0..50 {
        let at = rng.random_range(0..size);
        let len = rng.random_range(1..9000).min(size - at);
        let mut buf = vec![0xaa; len];
        image.read_at(at as u64, &mut buf).unwrap();
        assert!(buf == expected[at..at + len], "{len} bytes at {at} differ");
    }
}
