//! Rows of desktops that are checked out to laptops, and of orders to wipe. `docs/disk-formats/catalog.md` tells their bytes.
//!
//! Invariant: a checkout that waits has its volumes' home where they were, one that is out has it at the laptop; both change in one transaction.

use dedup::{BranchId, DesktopId, VersionId};
use dedup_protocol::records::MachineType;
use dedup_protocol::state::Generation;
use serde::{Deserialize, Serialize};

use super::backend::Table;
use super::rows::{Row, RowKey};

/// A desktop at a laptop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CheckoutKey {
    /// The laptop.
    pub laptop: BranchId,
    /// The desktop's system volume.
    pub system: DesktopId,
}

impl RowKey for CheckoutKey {
    fn encode(&self) -> Vec<u8> {
        [self.laptop.as_bytes().as_slice(), self.system.as_bytes()].concat()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (laptop, system) = bytes.split_at_checked(BranchId::LEN)?;
        Some(Self {
            laptop: BranchId::from_slice(laptop)?,
            system: DesktopId::from_slice(system)?,
        })
    }
}

/// An order to a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WipeKey {
    /// The branch.
    pub branch: BranchId,
    /// The order's number.
    pub number: u64,
}

impl RowKey for WipeKey {
    fn encode(&self) -> Vec<u8> {
        [
            self.branch.as_bytes().as_slice(),
            &self.number.to_be_bytes(),
        ]
        .concat()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (branch, number) = bytes.split_at_checked(BranchId::LEN)?;
        Some(Self {
            branch: BranchId::from_slice(branch)?,
            number: u64::from_be_bytes(number.try_into().ok()?),
        })
    }
}

/// Where a checkout stands. The tags are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckoutStage {
    /// The branch that the desktop is at is to give it back first.
    Waiting,
    /// It is the laptop's.
    Out,
    /// IT wants it back.
    Returning,
}

/// A volume of a desktop that is checked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedVolume {
    /// Its id.
    pub id: DesktopId,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its last generation when the laptop became its home: what is granted since is the laptop's.
    pub generation: Generation,
}

/// A desktop that is checked out, or about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckoutRow {
    /// Number of the record that the laptop is told; goes up with each change.
    pub number: u64,
    /// Where it stands.
    pub stage: CheckoutStage,
    /// The desktop's name.
    pub desktop: String,
    /// Its pool where it was.
    pub pool: String,
    /// The branch that it was at, and goes back to.
    pub from: BranchId,
    /// Its volumes, the system's first; at most one more, the user's.
    pub volumes: Vec<CheckedVolume>,
    /// The version that it began with.
    pub version: VersionId,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// What runs it.
    pub machine: MachineType,
    /// Whether it has a TPM.
    pub tpm: bool,
    /// When it was ordered, unix seconds.
    pub since_unix_s: u64,
    /// Until when the laptop may run it without our word, unix seconds.
    pub until_unix_s: u64,
}

impl CheckoutRow {
    /// Whether this is one of its volumes.
    pub fn has(&self, volume: DesktopId) -> bool {
        self.volumes.iter().any(|of_it| of_it.id == volume)
    }
}

/// An order to destroy keys, kept for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WipeRow {
    /// Which desktop's; none: all of the branch.
    pub desktop: Option<String>,
    /// Its volumes.
    pub volumes: Vec<DesktopId>,
    /// Who ordered it and why.
    pub reason: String,
    /// When, unix seconds.
    pub ordered_unix_s: u64,
    /// When the branch said that it was done, unix seconds.
    pub done_unix_s: Option<u64>,
}

impl Row for CheckoutRow {
    const TABLE: Table = Table::Checkouts;
    type Key = CheckoutKey;
}

impl Row for WipeRow {
    const TABLE: Table = Table::Wipes;
    type Key = WipeKey;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::rows::{decode, encode};
    use super::*;

    const LAPTOP: BranchId = BranchId([0xbb; 16]);
    const VOLUME: DesktopId = DesktopId([0xdd; 16]);

    #[test]
    fn keys_are_read_as_they_were_written() {
        let key = CheckoutKey {
            laptop: LAPTOP,
            system: VOLUME,
        };
        assert_eq!(CheckoutKey::decode(&key.encode()), Some(key));
        assert_eq!(CheckoutKey::decode(&[0; 31]), None);
        let key = WipeKey {
            branch: LAPTOP,
            number: 300,
        };
        assert_eq!(WipeKey::decode(&key.encode()), Some(key));
        assert_eq!(WipeKey::decode(&[0; 25]), None);
    }

    #[test]
    fn golden_rows() {
        let row = CheckoutRow {
            number: 300,
            stage: CheckoutStage::Returning,
            desktop: "alice".into(),
            pool: "office".into(),
            from: LAPTOP,
            volumes: vec![CheckedVolume {
                id: VOLUME,
                size_bytes: 300,
                generation: Generation(5),
            }],
            version: VersionId([0xaa; 32]),
            memory_mib: 1,
            vcpus: 2,
            machine: MachineType::Qemu,
            tpm: true,
            since_unix_s: 3,
            until_unix_s: 4,
        };
        let golden = format!(
            "01 ac02 02 05616c696365 066f6666696365 {} 01{}ac0205 {} 01 02 02 01 03 04",
            "bb".repeat(16),
            "dd".repeat(16),
            "aa".repeat(32)
        );
        let bytes = encode(&row);
        assert_eq!(hex::encode(&bytes), golden.replace(' ', ""));
        assert_eq!(decode::<CheckoutRow>(&bytes).unwrap(), row);
        let row = WipeRow {
            desktop: Some("alice".into()),
            volumes: vec![VOLUME],
            reason: "r".into(),
            ordered_unix_s: 1,
            done_unix_s: Some(2),
        };
        let golden = format!("01 0105616c696365 01{} 0172 01 0102", "dd".repeat(16));
        let bytes = encode(&row);
        assert_eq!(hex::encode(&bytes), golden.replace(' ', ""));
        assert_eq!(decode::<WipeRow>(&bytes).unwrap(), row);
    }
}
