//! What is on a disk, as far as it matters here: nothing, an ext4 file system, or something else.
//!
//! Whether a disk is empty is found out without believing anybody. Everything that puts a name on a disk does so at its ends: partition tables (first
//! sectors; GPT also the last 33), file systems (ext4 at 1 KiB, xfs, NTFS and FAT in the first sector, btrfs at 64 KiB and 64 MiB, ZFS in the first and
//! last 512 KiB), swap, LUKS (first 4 MiB), LVM, RAID (first or last 64 KiB). So both ends are read whole, for [`EDGE_BYTES`], and between them a
//! block at each [`STEP_BYTES`], which meets every backup of an ext4 superblock and the second of btrfs. One byte that is not zero is something.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much of either end is read whole.
pub const EDGE_BYTES: u64 = 16 << 20;
/// Between two blocks that are read in between.
pub const STEP_BYTES: u64 = 16 << 20;
const BLOCK_BYTES: u64 = 4 << 10;
/// Read at a time.
const READ_BYTES: u64 = 1 << 20;

/// Where an ext4 superblock has its magic number, and that (ext4's on-disk format, "The Super Block").
const EXT_MAGIC_AT: u64 = 1024 + 0x38;
const EXT_MAGIC: [u8; 2] = [0x53, 0xEF];

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing was found where anything would be.
    Nothing,
    /// An ext2, ext3 or ext4 file system, by its magic number.
    Ext4,
    /// Something else.
    Unknown,
}

/// Looks at a disk of `size_bytes`.
///
/// # Errors
/// It cannot be read.
pub fn look(disk: &File, size_bytes: u64) -> io::Result<Content> {
    if size_bytes >= EXT_MAGIC_AT + 2 {
        let mut magic = [0; 2];
        disk.read_exact_at(&mut magic, EXT_MAGIC_AT)?;
        if magic == EXT_MAGIC {
            return Ok(Content::Ext4);
        }
    }
    let is_empty = all_zero(disk, 0, size_bytes.min(EDGE_BYTES))?
        && all_zero(disk, size_bytes.saturating_sub(EDGE_BYTES), size_bytes)?
        && steps_are_zero(disk, size_bytes)?;
    Ok(if is_empty {
        Content::Nothing
    } else {
        Content::Unknown
    })
}

fn steps_are_zero(disk: &File, size_bytes: u64) -> io::Result<bool> {
    let mut at = STEP_BYTES;
    while at < size_bytes {
        if !all_zero(disk, at, (at + BLOCK_BYTES).min(size_bytes))? {
            return Ok(false);
        }
        at += STEP_BYTES;
    }
    Ok(true)
}

fn all_zero(disk: &File, from: u64, until: u64) -> io::Result<bool> {
    let mut buf = vec![0; READ_BYTES.min(until.saturating_sub(from)) as usize];
    let mut at = from;
    while at < until {
        let len = (until - at).min(READ_BYTES);
        let part = &mut buf[..len as usize];
        disk.read_exact_at(part, at)?;
        if part.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += len;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    const SIZE: u64 = 200 << 20;

    fn with(size: u64, at: u64, bytes: &[u8]) -> Content {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(size).unwrap();
        disk.write_all_at(bytes, at).unwrap();
        look(&disk, size).unwrap()
    }

    #[test]
    fn nothing_is_zero_and_ext4_has_its_magic_number() {
        assert_eq!(with(SIZE, 0, &[]), Content::Nothing);
        assert_eq!(with(SIZE, EXT_MAGIC_AT, &EXT_MAGIC), Content::Ext4);
        assert_eq!(with(0, 0, &[]), Content::Nothing);
    }

    #[test]
    fn one_byte_where_anything_leaves_its_name_is_something() {
        for (what, at) in [
            ("the first byte", 0),
            ("a partition table", 510),
            ("an interrupted mkfs", EXT_MAGIC_AT + 1),
            ("swap", 4086),
            ("btrfs", 65_600),
            ("the end of the first edge", EDGE_BYTES - 1),
            ("btrfs's second superblock", (64 << 20) + 64),
            ("a backup of ext4's superblock", 128 << 20),
            ("the beginning of the last edge", SIZE - EDGE_BYTES),
            ("the last byte", SIZE - 1),
        ] {
            assert_eq!(with(SIZE, at, &[1]), Content::Unknown, "{what}");
        }
        assert_eq!(with(512, 511, &[1]), Content::Unknown, "a tiny disk");
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_not_empty() {
        let disk = tempfile::tempfile().unwrap();
        assert!(look(&disk, SIZE).is_err());
    }
}
