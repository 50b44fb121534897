//! A desktop that is checked out to a laptop: what the laptop is told of it, signed.
//!
//! The datacenter names the laptop the home of the desktop's volumes, and this record says to the laptop that there is such a desktop and how to run it;
//! the right to run it is in the leases of its volumes, which the laptop asks for as any branch does, and which end when the checkout does. A newer
//! record of the same desktop has a higher number: another date, or that the desktop is wanted back.

use dedup::{BranchId, DesktopId, RealmId, VersionId};
use serde::{Deserialize, Serialize};

use crate::records::MachineType;
use crate::trust::Record;

/// Longest name of a desktop or pool in a record, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// A desktop's user volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserVolume {
    /// Its id.
    pub id: DesktopId,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// What a laptop is told of a desktop that is checked out to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkout {
    /// The realm.
    pub realm: RealmId,
    /// The laptop.
    pub branch: BranchId,
    /// Counts up with every record of the realm.
    pub number: u64,
    /// The desktop's name.
    pub name: String,
    /// Its pool where it was before.
    pub pool: String,
    /// Id of its system volume.
    pub system: DesktopId,
    /// Its user volume, if it has one.
    pub user: Option<UserVolume>,
    /// The version that its system volume began with.
    pub version: VersionId,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// What runs it.
    pub machine: MachineType,
    /// Whether it has a TPM.
    pub tpm: bool,
    /// Until when it may be run without the datacenter's word, unix seconds. For people: what bounds it are its leases.
    pub until_unix_s: u64,
    /// It is wanted back: as soon as it stands still, all of it goes to the datacenter and away from the laptop.
    pub is_recalled: bool,
}

impl Checkout {
    /// Ids of its volumes, the system's first.
    pub fn volumes(&self) -> Vec<DesktopId> {
        let user = self.user.map(|user| user.id);
        std::iter::once(self.system).chain(user).collect()
    }

    /// Whether its fields make sense.
    pub fn is_valid(&self) -> bool {
        let named = |text: &str| !text.is_empty() && text.len() <= NAME_BYTES_MAX;
        let has_size = |user: UserVolume| {
            user.id != self.system && user.size_bytes > 0 && user.size_bytes.is_multiple_of(512)
        };
        named(&self.name) && named(&self.pool) && self.user.is_none_or(has_size)
    }
}

impl Record for Checkout {
    const NAME: &'static str = "checkout";

    fn realm(&self) -> RealmId {
        self.realm
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn checkout() -> Checkout {
        Checkout {
            realm: RealmId([1; 16]),
            branch: BranchId([2; 16]),
            number: 300,
            name: "alice".into(),
            pool: "office".into(),
            system: DesktopId([3; 16]),
            user: Some(UserVolume {
                id: DesktopId([4; 16]),
                size_bytes: 1 << 30,
            }),
            version: VersionId([5; 32]),
            memory_mib: 2048,
            vcpus: 2,
            machine: MachineType::Qemu,
            tpm: true,
            until_unix_s: 300,
            is_recalled: true,
        }
    }

    #[test]
    fn a_record_has_its_golden_bytes() {
        let record = checkout();
        let bytes = record.encode(Checkout::NAME);
        let golden = [
            "01".repeat(16),
            "02".repeat(16),
            "ac02".into(),
            "05616c696365".into(),
            "066f6666696365".into(),
            "03".repeat(16),
            format!("01{}8080808004", "04".repeat(16)),
            "05".repeat(32),
            "8010".into(),
            "02".into(),
            "02".into(),
            "01".into(),
            "ac02".into(),
            "01".into(),
        ];
        assert_eq!(hex::encode(&bytes), golden.concat());
        assert_eq!(Checkout::decode(Checkout::NAME, &bytes), Ok(record));
    }

    #[test]
    fn what_makes_no_sense_is_known_for_it() {
        assert!(checkout().is_valid());
        let mut bent = [checkout(), checkout(), checkout(), checkout()];
        bent[0].name.clear();
        bent[1].pool = "p".repeat(NAME_BYTES_MAX + 1);
        bent[2].user = Some(UserVolume {
            id: DesktopId([3; 16]),
            size_bytes: 512,
        });
        bent[3].user = Some(UserVolume {
            id: DesktopId([4; 16]),
            size_bytes: 513,
        });
        for record in bent {
            assert!(!record.is_valid(), "{record:?}");
        }
    }
}
