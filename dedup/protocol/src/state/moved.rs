//! A desktop that was moved to a branch: what that branch is told of it, so that it can be started there.
//!
//! Invariant: it gives no right to anything. The right to write the volumes is in their leases, which the branch asks for as for any other; what they
//! go on behind is fetched under these. A branch that was told twice, or of a desktop that it has, does nothing.

use dedup::{DesktopId, VersionId};
use serde::{Deserialize, Serialize};

use super::checkout::{NAME_BYTES_MAX, UserVolume};

/// Datacenter → branch, on the control stream: a desktop is at home at this branch now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedDesktop {
    /// Its name.
    pub name: String,
    /// Its pool at this branch.
    pub pool: String,
    /// Its random id, which its agent makes the machine's.
    pub identity: DesktopId,
    /// Its system volume and the version that began with, if that was kept; else it begins anew.
    pub system: Option<(DesktopId, VersionId)>,
    /// Its user volume, if it has one.
    pub user: Option<UserVolume>,
}

impl MovedDesktop {
    /// Ids of the volumes that come, the system's first.
    pub fn volumes(&self) -> Vec<DesktopId> {
        let system = self.system.map(|(id, _)| id);
        let user = self.user.map(|user| user.id);
        system.into_iter().chain(user).collect()
    }

    /// Whether its fields make sense.
    pub fn is_valid(&self) -> bool {
        let named = |text: &str| !text.is_empty() && text.len() <= NAME_BYTES_MAX;
        let system = self.system.map(|(id, _)| id);
        let has_size = |user: UserVolume| {
            Some(user.id) != system && user.size_bytes > 0 && user.size_bytes.is_multiple_of(512)
        };
        let is_something = self.system.is_some() || self.user.is_some();
        named(&self.name) && named(&self.pool) && is_something && self.user.is_none_or(has_size)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn what_makes_no_sense_is_known_for_it() {
        let whole = MovedDesktop {
            name: "alice".into(),
            pool: "office".into(),
            identity: DesktopId([1; 16]),
            system: Some((DesktopId([2; 16]), VersionId([3; 32]))),
            user: Some(UserVolume {
                id: DesktopId([4; 16]),
                size_bytes: 1 << 30,
            }),
        };
        assert!(whole.is_valid());
        assert_eq!(whole.volumes(), [DesktopId([2; 16]), DesktopId([4; 16])]);
        let mut bent = vec![whole.clone(); 4];
        bent[0].name.clear();
        bent[1].pool = "p".repeat(NAME_BYTES_MAX + 1);
        (bent[2].system, bent[2].user) = (None, None);
        bent[3].user = Some(UserVolume {
            id: DesktopId([2; 16]),
            size_bytes: 512,
        });
        for moved in bent {
            assert!(!moved.is_valid(), "{moved:?}");
        }
    }
}
