//! What a generation begins with, as the branch that holds it reads it: a tree that is asked for like a version's.
//!
//! A generation that goes on behind what another one wrote has that state under its overlay. It is fetched by the requests that fetch versions, under a
//! name of 32 bytes that no version has: [`StateName`]. `GetVersion` with it is answered by a signed [`StateRecord`], which says which tree
//! the state is; all else of it is proven against that.
//!
//! Invariant: only the branch that holds a generation is told what that began with, and a state is nobody's parent in an answer.

use dedup::{DesktopId, RealmId, VersionId};
use serde::{Deserialize, Serialize};

use super::{Generation, Head};
use crate::records::TreeRef;
use crate::trust::Record;

/// What names of states begin with. A version's name is a hash: that one begins so has a chance of 2⁻⁶⁴.
const MARK: [u8; 8] = *b"splstate";

/// Names the state that a generation of a volume begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StateName {
    /// The volume.
    pub desktop: DesktopId,
    /// The generation.
    pub generation: Generation,
}

impl StateName {
    /// The name where versions are named.
    pub fn as_version(&self) -> VersionId {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&MARK);
        name[8..24].copy_from_slice(&self.desktop.0);
        name[24..].copy_from_slice(&self.generation.0.to_be_bytes());
        VersionId(name)
    }

    /// The state that such a name is of; `None`: it is a version's.
    pub fn of_version(name: VersionId) -> Option<Self> {
        let rest = name.as_bytes().strip_prefix(&MARK)?;
        let (desktop, generation) = rest.split_at_checked(DesktopId::LEN)?;
        let generation = Generation(u64::from_be_bytes(generation.try_into().ok()?));
        Some(Self {
            desktop: DesktopId::from_slice(desktop)?,
            generation,
        })
    }
}

/// Says which tree a generation begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    /// The realm.
    pub realm: RealmId,
    /// The volume.
    pub desktop: DesktopId,
    /// The generation.
    pub generation: Generation,
    /// The history up to there: the base of the generation's leases.
    pub base: Head,
    /// What the volume shows there.
    pub disk: TreeRef,
}

impl StateRecord {
    /// Its name.
    pub fn name(&self) -> StateName {
        StateName {
            desktop: self.desktop,
            generation: self.generation,
        }
    }
}

impl Record for StateRecord {
    const NAME: &'static str = "state";

    fn realm(&self) -> RealmId {
        self.realm
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use dedup::NodeId;

    use super::*;

    #[test]
    fn names_have_their_golden_bytes_and_versions_are_not_taken_for_states() {
        let name = StateName {
            desktop: DesktopId([7; 16]),
            generation: Generation(300),
        };
        let version = name.as_version();
        let golden = format!("73706c7374617465{}000000000000012c", "07".repeat(16));
        assert_eq!(hex::encode(version.as_bytes()), golden);
        assert_eq!(StateName::of_version(version), Some(name));
        assert_eq!(StateName::of_version(VersionId([0; 32])), None);
        let mut near = version;
        near.0[7] ^= 1;
        assert_eq!(StateName::of_version(near), None);
    }

    #[test]
    fn a_record_has_its_golden_bytes() {
        let record = StateRecord {
            realm: RealmId([1; 16]),
            desktop: DesktopId([2; 16]),
            generation: Generation(300),
            base: Head([3; 32]),
            disk: TreeRef {
                root: NodeId([4; 32]),
                size_bytes: 300,
            },
        };
        let bytes = record.encode(StateRecord::NAME);
        let golden = [
            "01".repeat(16),
            "02".repeat(16),
            "ac02".into(),
            "03".repeat(32),
            "04".repeat(32),
            "ac02".into(),
        ];
        assert_eq!(hex::encode(&bytes), golden.concat());
        assert_eq!(StateRecord::decode(StateRecord::NAME, &bytes), Ok(record));
    }
}
