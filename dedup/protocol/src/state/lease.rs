//! The lease: the signed, bounded right of one branch to run and write one persistent desktop.
//!
//! Signed like an assignment, because a branch believes it also without the datacenter, and because who has the branch's disk must not be
//! able to prolong it. It says how long the branch may go on without hearing from the datacenter; what it may not say is that
//! somebody else has no right: that is the generation's, at the datacenter.

use dedup::{BranchId, DesktopId, RealmId};
use serde::{Deserialize, Serialize};

use super::{Generation, Head, Nonce};
use crate::trust::Record;

/// Longest term and longest grace of a lease that is believed, in seconds: ten years. More is a mistake, and sums stay clear of overflow.
pub const SPAN_S_MAX: u64 = 10 * 366 * 86_400;

/// A branch's right to a desktop. Renewed under the same generation, with a counter that goes up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The realm.
    pub realm: RealmId,
    /// The desktop.
    pub desktop: DesktopId,
    /// The branch that may run and write it.
    pub branch: BranchId,
    /// Which time it is that the desktop was given to a branch.
    pub generation: Generation,
    /// 1 for the grant, one more with each renewal.
    pub renewal: u64,
    /// The one of the question that it answers.
    pub nonce: Nonce,
    /// The history behind which the branch goes on.
    pub base: Head,
    /// When it was signed, unix seconds.
    pub issued_unix_s: u64,
    /// Until when it is to be renewed, unix seconds.
    pub expires_unix_s: u64,
    /// How long after that a branch without a link may still run the desktop, in seconds.
    pub offline_grace_s: u64,
}

impl Lease {
    /// Whether its times make sense.
    pub fn is_valid(&self) -> bool {
        self.generation > Generation::NONE
            && self.renewal > 0
            && self.expires_unix_s >= self.issued_unix_s
            && self.expires_unix_s - self.issued_unix_s <= SPAN_S_MAX
            && self.offline_grace_s <= SPAN_S_MAX
    }

    /// First second at which the branch must not run the desktop, unix seconds.
    pub fn ends_unix_s(&self) -> u64 {
        self.expires_unix_s.saturating_add(self.offline_grace_s)
    }
}

impl Record for Lease {
    const NAME: &'static str = "lease";

    fn realm(&self) -> RealmId {
        self.realm
    }
}
