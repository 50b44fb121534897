//! Entry points for fuzzing: each takes any bytes and must neither panic nor use unbounded time or memory. They are
//! public so that the fuzz targets, which live outside the workspace, reach parsers that are private otherwise.

use std::time::Duration;

use crate::image::{DiskImage, SECTOR_BYTES};
use crate::inspect::inspect_within;
use crate::qcow2::Qcow2Image;
use crate::raw::RawImage;
use crate::source::Source;

const REGIONS_MAX: usize = 64;
const READ_BYTES: u64 = 256 << 10;
const DISK_BYTES_MAX: u64 = 1 << 40;

/// Opens `data` as a qcow2 image, walks some of its regions and reads a little of each.
pub fn fuzz_qcow2(data: &[u8]) {
    let Ok(mut image) =
        Qcow2Image::new(Source::memory("fuzz.qcow2", data.to_vec()), DISK_BYTES_MAX)
    else {
        return;
    };
    walk(&mut image);
}

/// Inspects `data` as a small raw disk: partition tables and superblocks.
pub fn fuzz_partition_table(data: &[u8]) {
    inspect_raw(data.to_vec());
}

/// Inspects a raw disk whose first sector is an MBR with one partition, and that partition holds `data`: straight to the
/// file system and the files in it.
pub fn fuzz_inspect(data: &[u8]) {
    let mut disk = vec![0; SECTOR_BYTES as usize];
    let sectors = u32::try_from(data.len() as u64 / SECTOR_BYTES).unwrap_or(u32::MAX);
    disk[450] = 0x83;
    disk[454..458].copy_from_slice(&1u32.to_le_bytes());
    disk[458..462].copy_from_slice(&sectors.to_le_bytes());
    disk[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.extend_from_slice(data);
    inspect_raw(disk);
}

fn inspect_raw(disk: Vec<u8>) {
    if let Ok(mut image) = RawImage::new(Source::memory("fuzz.raw", disk), DISK_BYTES_MAX) {
        // A thread that outlives its time is a finding too, hence no assertion on the notes.
        drop(inspect_within(
            &mut image,
            256 << 20,
            Duration::from_secs(10),
        ));
    }
}

fn walk(image: &mut dyn DiskImage) {
    let size_bytes = image.size_bytes();
    let mut offset = 0;
    let mut buf = vec![0; READ_BYTES as usize];
    for _ in 0..REGIONS_MAX {
        if offset >= size_bytes {
            break;
        }
        let Ok(region) = image.region_at(offset) else {
            // Behind a bad table the next may be good again.
            offset = offset.saturating_add(64 << 10);
            continue;
        };
        assert!(
            region.offset == offset && region.len > 0 && region.end() <= size_bytes,
            "a region off the disk"
        );
        let len = region.len.min(READ_BYTES) as usize;
        // Errors are fine; panics and endless loops are not.
        let _ = image.read_at(offset, &mut buf[..len]);
        let odd = region.len.min(700) as usize;
        let _ = image.read_at(region.end() - odd as u64, &mut buf[..odd]);
        offset = region.end();
    }
}
