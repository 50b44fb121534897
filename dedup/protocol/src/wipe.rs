//! The order to destroy keys: of a whole branch that is lost, or of one desktop there.
//!
//! Signed as what branches run is, because it is as final: whoever can speak for the datacenter on a link cannot give it. It is believed whatever the
//! branch's clock says, since a thief sets that. A desktop is named by the ids of its volumes and by its own, which are random and never used
//! again, so that an order that is played again finds nothing. Its own id stays when its system becomes another volume, by a rebase or a reset that the datacenter
//! had not heard of.

use dedup::{BranchId, DesktopId, RealmId};
use serde::{Deserialize, Serialize};

use crate::trust::Record;

/// Most ids that name one desktop.
pub const VOLUMES_MAX: usize = 8;
/// Longest name of a desktop, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// What is wiped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// All that the branch has.
    Branch,
    /// One desktop.
    Desktop {
        /// Its name there, for people.
        name: String,
        /// Ids of its volumes and, if the datacenter knows it, its own: the desktop that has one of them.
        volumes: Vec<DesktopId>,
    },
}

/// An order to destroy keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wipe {
    /// The realm.
    pub realm: RealmId,
    /// The branch that is to do it.
    pub branch: BranchId,
    /// Names the order; counts up in the realm.
    pub number: u64,
    /// When it was given, unix seconds.
    pub issued_unix_s: u64,
    /// What goes.
    pub target: Target,
}

impl Wipe {
    /// Whether its fields are within their limits.
    pub fn is_valid(&self) -> bool {
        match &self.target {
            Target::Branch => true,
            Target::Desktop { name, volumes } => {
                name.len() <= NAME_BYTES_MAX && (1..=VOLUMES_MAX).contains(&volumes.len())
            }
        }
    }
}

impl Record for Wipe {
    const NAME: &'static str = "wipe";

    fn realm(&self) -> RealmId {
        self.realm
    }
}

/// Branch → datacenter: the keys are destroyed. Datacenter → branch: that is noted, and need not be said again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiped {
    /// The order's number.
    pub number: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn wipe(target: Target) -> Wipe {
        Wipe {
            realm: RealmId([1; 16]),
            branch: BranchId([2; 16]),
            number: 300,
            issued_unix_s: 5,
            target,
        }
    }

    #[test]
    fn orders_have_their_golden_bytes() {
        let head = format!("{}{}ac0205", "01".repeat(16), "02".repeat(16));
        let whole = wipe(Target::Branch);
        let bytes = whole.encode(Wipe::NAME);
        assert_eq!(hex::encode(&bytes), format!("{head}00"));
        assert_eq!(Wipe::decode(Wipe::NAME, &bytes), Ok(whole));
        let one = wipe(Target::Desktop {
            name: "alice".into(),
            volumes: vec![DesktopId([3; 16])],
        });
        let bytes = one.encode(Wipe::NAME);
        let golden = format!("{head}0105616c69636501{}", "03".repeat(16));
        assert_eq!(hex::encode(&bytes), golden);
        assert_eq!(Wipe::decode(Wipe::NAME, &bytes), Ok(one));
    }

    #[test]
    fn an_order_for_no_volume_or_too_many_is_none() {
        assert!(wipe(Target::Branch).is_valid());
        for (count, valid) in [(0, false), (1, true), (VOLUMES_MAX, true), (9, false)] {
            let volumes = vec![DesktopId([3; 16]); count];
            let name = "alice".to_owned();
            let order = wipe(Target::Desktop { name, volumes });
            assert_eq!(order.is_valid(), valid, "{count}");
        }
    }
}
