//! A Linux system on the ext file systems of a disk: what it is. How it boots is in [`super::boot`].

use super::config;
use super::disk::printable;
use super::ext4::{DiskHandle, Files};
use super::partition::Partition;
use super::{OperatingSystem, boot};

pub(super) const CONFIG_BYTES_MAX: u64 = 1 << 20;
const PROGRAM_BYTES_MAX: u64 = 64 << 20;

/// An ext file system that could be opened.
pub(super) struct Volume {
    pub(super) partition: Partition,
    pub(super) files: Files,
}

impl Volume {
    /// Whether `device`, as fstab or a command line writes it, is this volume.
    pub(super) fn is_named(&self, device: &str) -> bool {
        let filesystem = self.partition.filesystem.as_ref();
        let same = |mine: Option<&String>, theirs: &str| {
            mine.is_some_and(|mine| mine.eq_ignore_ascii_case(theirs))
        };
        if let Some(uuid) = device.strip_prefix("UUID=") {
            same(filesystem.and_then(|f| f.uuid.as_ref()), uuid)
        } else if let Some(uuid) = device.strip_prefix("PARTUUID=") {
            same(self.partition.part_uuid.as_ref(), uuid)
        } else if let Some(label) = device.strip_prefix("LABEL=") {
            filesystem.and_then(|f| f.label.as_deref()) == Some(label)
        } else {
            false
        }
    }
}

/// What was found of a Linux system.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) os: Option<OperatingSystem>,
    pub(super) boot: Option<super::BootArtifacts>,
    pub(super) notes: Vec<String>,
}

/// Looks for a system on `partitions`, all of which have an ext file system.
pub(super) fn examine(disk: &DiskHandle, partitions: Vec<Partition>) -> Findings {
    let mut found = Findings::default();
    let mut volumes = Vec::new();
    for partition in partitions {
        match Files::open(disk, partition.offset_bytes, partition.len_bytes) {
            Ok(files) => {
                if files.unclean {
                    found.notes.push(format!(
                        "partition {}: it was not unmounted cleanly; its latest changes were not looked at",
                        partition.number
                    ));
                }
                volumes.push(Volume { partition, files });
            }
            Err(why) => found
                .notes
                .push(format!("partition {}: {why}", partition.number)),
        }
    }
    let root = volumes.iter().position(|volume| is_root(&volume.files));
    if let Some(root) = root {
        found.os = Some(operating_system(&volumes[root].files));
    }
    found.boot = boot::find(&volumes, root, &mut found.notes);
    found
}

fn is_root(files: &Files) -> bool {
    files.is_file("/etc/os-release")
        || files.is_file("/usr/lib/os-release")
        || (files.is_file("/etc/fstab") && files.is_dir("/usr"))
}

fn operating_system(files: &Files) -> OperatingSystem {
    let release = ["/etc/os-release", "/usr/lib/os-release"]
        .into_iter()
        .find_map(|path| files.text(path, CONFIG_BYTES_MAX))
        .map(|text| config::os_release(&text))
        .unwrap_or_default();
    let hostname = files
        .text("/etc/hostname", CONFIG_BYTES_MAX)
        .and_then(|text| {
            text.lines()
                .find(|line| !line.trim_start().starts_with('#'))
                .and_then(printable)
        });
    OperatingSystem {
        id: release.id,
        version_id: release.version_id,
        pretty_name: release.pretty_name,
        hostname,
        architecture: architecture(files),
    }
}

/// The architecture of the system's own programs, as `uname -m` names it.
fn architecture(files: &Files) -> Option<String> {
    let program = [
        "/usr/bin/env",
        "/bin/sh",
        "/usr/lib/systemd/systemd",
        "/bin/busybox",
        "/sbin/init",
    ]
    .into_iter()
    .find_map(|path| {
        files
            .read(path, PROGRAM_BYTES_MAX)
            .ok()
            .filter(|bytes| bytes.starts_with(b"\x7fELF"))
    })?;
    let (class, order) = (*program.get(4)?, *program.get(5)?);
    let machine: [u8; 2] = program.get(18..20)?.try_into().ok()?;
    let machine = if order == 2 {
        u16::from_be_bytes(machine)
    } else {
        u16::from_le_bytes(machine)
    };
    let name = match (machine, class) {
        (3, _) => "i686",
        (62, 1) => "x32",
        (62, _) => "x86_64",
        (40, _) => "armv7l",
        (183, _) => "aarch64",
        (243, 2) => "riscv64",
        (21, _) => {
            if order == 2 {
                "ppc64"
            } else {
                "ppc64le"
            }
        }
        (22, _) => "s390x",
        (258, _) => "loongarch64",
        _ => return Some(format!("ELF machine {machine}")),
    };
    Some(name.to_owned())
}
