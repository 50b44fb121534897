//! A planned qcow2 file is one that qemu-img finds nothing wrong with and that our own reader reads back.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{qemu_img, random_disk, seeded, verify};
use dedup_image::{ImageFormat, OpenOptions, QCOW2_CLUSTER_BYTES, Qcow2Layout, open};
use rand::Rng;

fn write(path: &Path, oracle: &[u8]) {
    let cluster_bytes = QCOW2_CLUSTER_BYTES as usize;
    let clusters = || (0u64..).zip(oracle.chunks(cluster_bytes));
    let data = clusters()
        .filter(|(_, bytes)| bytes.iter().any(|b| *b != 0))
        .map(|(cluster, _)| cluster);
    let layout = Qcow2Layout::new(oracle.len() as u64, data.collect());
    let file = File::create(path).unwrap();
    file.set_len(layout.file_bytes()).unwrap();
    for part in layout.metadata() {
        file.write_all_at(&part.bytes, part.offset).unwrap();
    }
    for (cluster, bytes) in clusters() {
        if let Some(place) = layout.place(cluster) {
            file.write_all_at(bytes, place).unwrap();
        }
    }
}

#[test]
fn planned_files_read_as_the_disk_they_were_made_from() {
    let (_, mut rng) = seeded();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("planned.qcow2");
    for round in 0..4 {
        let size = match round {
            0 => 512,
            _ => rng.random_range(1..40_000) * 1024,
        };
        let disk = match round {
            0 => vec![0; size],
            _ => random_disk(dir.path(), "disk.raw", &mut rng, size).oracle,
        };
        write(&path, &disk);
        qemu_img(&["check", path.to_str().unwrap()]);
        let mut image = open(&path, &OpenOptions::new()).unwrap();
        assert_eq!(image.format(), ImageFormat::Qcow2);
        assert_eq!(image.size_bytes(), size as u64);
        verify(image.as_mut(), &disk, Some(65_536), &mut rng);
        let raw = dir.path().join("back.raw");
        let arguments = ["convert", "-f", "qcow2", "-O", "raw"];
        let paths = [path.to_str().unwrap(), raw.to_str().unwrap()];
        qemu_img(&[&arguments[..], &paths[..]].concat());
        assert!(std::fs::read(&raw).unwrap() == disk);
    }
}
