//! Disks as the kernel shows them: found by serial number, and whether anything uses them.

use std::path::PathBuf;

use crate::root::Root;

const BLOCK: &str = "/sys/block";
const MOUNTS: &str = "/proc/self/mountinfo";

/// A whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDisk {
    /// Its name, such as `vdb`.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// `MAJOR:MINOR`.
    pub number: String,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `MAJOR:MINOR` of what is mounted.
    pub number: String,
    /// Where.
    pub place: String,
}

/// The disks that say that they have this serial number: one, if all is well.
pub fn with_serial(root: &Root, serial: &str) -> Vec<BlockDisk> {
    let names = root.names(BLOCK).into_iter();
    let named = names
        .filter(|name| root.line(&format!("{BLOCK}/{name}/serial")).as_deref() == Some(serial));
    named
        .filter_map(|name| {
            let sectors: u64 = root.line(&format!("{BLOCK}/{name}/size"))?.parse().ok()?;
            Some(BlockDisk {
                size_bytes: sectors.checked_mul(512)?,
                number: root.line(&format!("{BLOCK}/{name}/dev"))?,
                name,
            })
        })
        .collect()
}

impl BlockDisk {
    /// Its device node, for us to open.
    pub fn node(&self, root: &Root) -> PathBuf {
        root.path(&self.node_name())
    }

    /// Its device node, for programs.
    pub fn node_name(&self) -> String {
        format!("/dev/{}", self.name)
    }

    /// What the kernel knows of it that a disk which nobody ever used has not.
    pub fn use_known_to_kernel(&self, root: &Root) -> Option<&'static str> {
        let folder = format!("{BLOCK}/{}", self.name);
        let is_partition = |name: &String| root.exists(&format!("{folder}/{name}/partition"));
        if root.names(&folder).iter().any(is_partition) {
            return Some("it has partitions");
        }
        if !root.names(&format!("{folder}/holders")).is_empty() {
            return Some("another block device lies on it");
        }
        if root.line(&format!("{folder}/ro")).as_deref() != Some("0") {
            return Some("it is read-only");
        }
        None
    }
}

/// All mounts; none if they cannot be read, which is to be taken for an error.
pub fn mounts(root: &Root) -> Option<Vec<Mount>> {
    let text = root.text(MOUNTS)?;
    let mounts = text.lines().filter_map(|line| {
        // ID PARENT MAJOR:MINOR ROOT PLACE …, with spaces in places written as \040 (proc(5)).
        let mut fields = line.split(' ').skip(2);
        let number = fields.next()?.to_owned();
        let place = fields.nth(1)?.replace("\\040", " ");
        Some(Mount { number, place })
    });
    Some(mounts.collect())
}
