//! What is on a partition, told from the superblocks' magic numbers. Offsets are those of each format's own
//! documentation; nothing is mounted and nothing is followed.

use serde::{Deserialize, Serialize};

use super::disk::{Disk, le16, le32, le64, text, uuid};

/// A file system, or what else may fill a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilesystemKind {
    /// Second extended file system.
    Ext2,
    /// ext2 with a journal.
    Ext3,
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// Windows NTFS.
    Ntfs,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// exFAT.
    Exfat,
    /// Linux swap space.
    Swap,
    /// A physical volume of LVM 2.
    LvmPhysicalVolume,
    /// LUKS encryption, version 1 or 2.
    Luks,
    /// BitLocker encryption.
    Bitlocker,
}

/// What a partition's superblock says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filesystem {
    /// What it is.
    pub kind: FilesystemKind,
    /// Its label, without control characters.
    pub label: Option<String>,
    /// Its identity as blkid prints it.
    pub uuid: Option<String>,
}

/// Enough for the superblock that lies furthest in: btrfs's, at 64 KiB.
const HEAD_BYTES: usize = 68 << 10;

/// Names what is on the `len` bytes of disk at `offset`.
pub(super) fn probe(
    disk: &mut Disk<'_>,
    offset: u64,
    len: u64,
) -> Result<Option<Filesystem>, String> {
    let len = len.min(HEAD_BYTES as u64) as usize;
    let mut head = disk.read_up_to(offset, len)?;
    head.resize(HEAD_BYTES, 0);
    Ok(identify(&head))
}

/// Whether a first sector is that of a file system rather than an MBR, though it ends like one.
pub(super) fn is_boot_sector(sector: &[u8]) -> bool {
    &sector[3..11] == b"NTFS    "
        || &sector[3..11] == b"EXFAT   "
        || &sector[3..11] == b"-FVE-FS-"
        || ((&sector[82..87] == b"FAT32" || &sector[54..57] == b"FAT")
            && matches!(le16(sector, 11), 512 | 1024 | 2048 | 4096))
}

fn identify(head: &[u8]) -> Option<Filesystem> {
    let found =
        |kind, label: Option<String>, uuid: Option<String>| Some(Filesystem { kind, label, uuid });
    let serial = |at: usize| Some(format!("{:04X}-{:04X}", le16(head, at + 2), le16(head, at)));

    if head.starts_with(b"LUKS\xba\xbe") {
        let label = if head[7] >= 2 {
            text(&head[24..72])
        } else {
            None
        };
        return found(FilesystemKind::Luks, label, text(&head[168..208]));
    }
    if head.starts_with(b"XFSB") {
        return found(
            FilesystemKind::Xfs,
            text(&head[108..120]),
            uuid(&head[32..48]),
        );
    }
    if &head[3..11] == b"-FVE-FS-" {
        return found(FilesystemKind::Bitlocker, None, None);
    }
    if &head[3..11] == b"NTFS    " {
        return found(
            FilesystemKind::Ntfs,
            None,
            Some(format!("{:016X}", le64(head, 72))),
        );
    }
    if &head[3..11] == b"EXFAT   " {
        return found(FilesystemKind::Exfat, None, serial(100));
    }
    if &head[65_600..65_608] == b"_BHRfS_M" {
        return found(
            FilesystemKind::Btrfs,
            text(&head[65_835..66_091]),
            uuid(&head[65_568..65_584]),
        );
    }
    if head[1080..1082] == [0x53, 0xef] {
        return found(
            ext_kind(&head[1024..2048]),
            text(&head[1144..1160]),
            uuid(&head[1128..1144]),
        );
    }
    if &head[4086..4096] == b"SWAPSPACE2" {
        return found(
            FilesystemKind::Swap,
            text(&head[1052..1068]),
            uuid(&head[1036..1052]),
        );
    }
    for sector in 0..4 {
        let label = &head[sector * 512..];
        if label.starts_with(b"LABELONE") && &label[24..32] == b"LVM2 001" {
            return found(
                FilesystemKind::LvmPhysicalVolume,
                None,
                text(&label[32..64]),
            );
        }
    }
    if head[510..512] == [0x55, 0xaa] && is_boot_sector(head) {
        let no_name = |label: Option<String>| label.filter(|l| l != "NO NAME");
        return if &head[82..87] == b"FAT32" {
            found(
                FilesystemKind::Fat,
                no_name(text(&head[71..82])),
                serial(67),
            )
        } else {
            found(
                FilesystemKind::Fat,
                no_name(text(&head[43..54])),
                serial(39),
            )
        };
    }
    None
}

fn ext_kind(superblock: &[u8]) -> FilesystemKind {
    const HAS_JOURNAL: u32 = 0x4;
    /// Extents, 64-bit, multi-mount protection, flexible groups and what came later.
    const INCOMPATIBLE_EXT4: u32 = !0x1f;
    /// Huge files, group checksums, many links, large inodes and what came later.
    const READ_ONLY_EXT4: u32 = !0x7;
    let (compatible, incompatible, read_only) = (
        le32(superblock, 92),
        le32(superblock, 96),
        le32(superblock, 100),
    );
    if incompatible & INCOMPATIBLE_EXT4 != 0 || read_only & READ_ONLY_EXT4 != 0 {
        FilesystemKind::Ext4
    } else if compatible & HAS_JOURNAL != 0 {
        FilesystemKind::Ext3
    } else {
        FilesystemKind::Ext2
    }
}
