//! Hostile images: real ones with bytes changed at random, mostly in headers and tables. Nothing may panic, loop or
//! take long. The seed is printed.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{qemu_img, random_disk, seeded};
use dedup_image::fuzz_qcow2;
use rand::Rng;
use rand::rngs::StdRng;

/// Changes a few bytes: any of them, but mostly those before `head`, and often to values at the edges.
pub fn mutate(bytes: &mut Vec<u8>, head: usize, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..8) {
        let reach = if rng.random_bool(0.8) {
            head.min(bytes.len())
        } else {
            bytes.len()
        };
        let at = rng.random_range(0..reach.max(1)).min(bytes.len() - 1);
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at..].iter_mut().take(8).for_each(|b| *b = 0xff),
            3 => bytes[at..].iter_mut().take(8).for_each(|b| *b = 0),
            4 => {
                let value = (1u64 << rng.random_range(0..64)).wrapping_sub(rng.random_range(0..3));
                let at = at & !7;
                bytes[at..]
                    .iter_mut()
                    .zip(value.to_be_bytes())
                    .for_each(|(b, v)| *b = v);
            }
            _ => {
                let from = rng.random_range(0..bytes.len());
                let len = rng
                    .random_range(1..64)
                    .min(bytes.len() - from)
                    .min(bytes.len() - at);
                bytes.copy_within(from..from + len, at);
            }
        }
    }
    if rng.random_bool(0.1) {
        bytes.truncate(rng.random_range(1..=bytes.len()));
    }
}

#[test]
fn mutated_qcow2_images_are_read_or_refused() {
    let (_, mut rng) = seeded();
    let dir = tempfile::tempdir().unwrap();
    let disk = random_disk(dir.path(), "disk.raw", &mut rng, 1 << 20);
    let mut corpus = Vec::new();
    for arguments in [
        &["-o", "compat=0.10,cluster_size=512"][..],
        &["-o", "compat=1.1,cluster_size=4096"],
        &["-o", "compat=1.1,cluster_size=16k,extended_l2=on"],
        &["-c", "-o", "compat=1.1,cluster_size=4096"],
        &[
            "-c",
            "-o",
            "compat=1.1,cluster_size=4096,compression_type=zstd",
        ],
    ] {
        let target = dir.path().join("disk.qcow2");
        let paths = [disk.path.to_str().unwrap(), target.to_str().unwrap()];
        qemu_img(
            &[
                &["convert", "-f", "raw", "-O", "qcow2"],
                arguments,
                &paths[..],
            ]
            .concat(),
        );
        corpus.push(std::fs::read(target).unwrap());
    }
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for _ in 0..6000 {
        let mut bytes = corpus[rng.random_range(0..corpus.len())].clone();
        mutate(&mut bytes, 40_000, &mut rng);
        let one = Instant::now();
        fuzz_qcow2(&bytes);
        slowest = slowest.max(one.elapsed());
    }
    println!(
        "6000 images in {:?}, the slowest took {slowest:?}",
        begun.elapsed()
    );
    assert!(slowest < Duration::from_secs(5));
}
