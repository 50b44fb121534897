//! What is inside a disk: partitions, file systems, the operating system, and what boots it.
//!
//! [`inspect`] never fails and never takes long: a disk is published whatever is on it, so everything that cannot be
//! read becomes a note. Nothing is mounted or executed, and nothing found here decides what a desktop may do: it is
//! the image's own word.

mod boot;
mod config;
mod disk;
mod ext4;
mod filesystem;
mod linux;
mod partition;
mod version;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::image::DiskImage;

pub use boot::{BootArtifacts, BootSummary};
pub use filesystem::{Filesystem, FilesystemKind};
pub use partition::{Partition, PartitionTable};

use disk::Disk;

/// The largest kernel and initial RAM disk, with room for everything around them.
const READ_BYTES_MAX: u64 = 1 << 30;
const TIME_MAX: Duration = Duration::from_secs(120);
const NOTES_MAX: usize = 64;
const NOTE_CHARS_MAX: usize = 400;

/// What [`inspect`] found. Serialised, it is the summary that a catalog keeps: without the boot artifacts' bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The kind of partition table, if there is one.
    pub partition_table: Option<PartitionTable>,
    /// The partitions; one with number 0 when a file system fills the whole disk.
    pub partitions: Vec<Partition>,
    /// The operating system on an ext file system.
    pub os: Option<OperatingSystem>,
    /// What of [`Self::boot_artifacts`] is for people.
    pub boot: Option<BootSummary>,
    /// What could not be read or looks wrong, for people.
    pub notes: Vec<String>,
    /// What starts the image without its boot loader.
    #[serde(skip)]
    pub boot_artifacts: Option<BootArtifacts>,
}

/// An operating system, by its own account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatingSystem {
    /// `ID` of os-release, for example `debian`.
    pub id: Option<String>,
    /// `VERSION_ID` of os-release.
    pub version_id: Option<String>,
    /// `PRETTY_NAME` of os-release.
    pub pretty_name: Option<String>,
    /// The name in /etc/hostname.
    pub hostname: Option<String>,
    /// As `uname -m` says it, for example `x86_64`.
    pub architecture: Option<String>,
}

/// Looks into `image`. Reads at most 1 GiB and takes at most two minutes, both far more than a sane disk needs.
pub fn inspect(image: &mut dyn DiskImage) -> Inspection {
    inspect_within(image, READ_BYTES_MAX, TIME_MAX)
}

pub(crate) fn inspect_within(
    image: &mut dyn DiskImage,
    bytes_max: u64,
    time_max: Duration,
) -> Inspection {
    let mut disk = Disk::new(image, bytes_max, Instant::now() + time_max);
    let mut notes = Vec::new();
    let (partition_table, partitions) = partition::read(&mut disk, &mut notes);
    let mut inspection = Inspection {
        partition_table,
        partitions,
        ..Inspection::default()
    };

    let ext: Vec<Partition> = inspection
        .partitions
        .iter()
        .filter(|p| is_ext(p))
        .cloned()
        .collect();
    if !ext.is_empty() {
        match ext4::on_thread(&mut disk, move |handle| linux::examine(&handle, ext)) {
            Ok(found) => {
                notes.extend(found.notes);
                inspection.os = found.os;
                inspection.boot = found.boot.as_ref().map(BootArtifacts::summary);
                inspection.boot_artifacts = found.boot;
            }
            Err(why) => notes.push(why),
        }
    }
    if inspection.os.is_none() {
        notes.extend(inspection.partitions.iter().filter_map(unreadable_root));
    }
    notes.truncate(NOTES_MAX);
    inspection.notes = notes
        .iter()
        .map(|note| note.chars().map(shown).take(NOTE_CHARS_MAX).collect())
        .collect();
    inspection
}

fn is_ext(partition: &Partition) -> bool {
    let kind = partition.filesystem.as_ref().map(|f| f.kind);
    matches!(
        kind,
        Some(FilesystemKind::Ext2 | FilesystemKind::Ext3 | FilesystemKind::Ext4)
    )
}

/// Why no kernel was looked for on what may well be a system's root.
fn unreadable_root(partition: &Partition) -> Option<String> {
    let what = match partition.filesystem.as_ref()?.kind {
        FilesystemKind::Xfs => "XFS",
        FilesystemKind::Btrfs => "Btrfs",
        FilesystemKind::LvmPhysicalVolume => "LVM",
        FilesystemKind::Luks => "LUKS encryption",
        FilesystemKind::Bitlocker => "BitLocker encryption",
        _ => return None,
    };
    Some(format!(
        "partition {}: {what} is not looked into; such an image boots by its own boot loader",
        partition.number
    ))
}

/// Notes quote foreign text; a control character in it must not reach a terminal.
fn shown(c: char) -> char {
    if c.is_control() { '\u{fffd}' } else { c }
}
