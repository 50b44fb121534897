//! People as a branch knows them: who may log in there while the datacenter cannot be asked, and to which pools.
//!
//! The datacenter signs a [`Roster`] for each branch, and the branch answers log-ins from it ([`verifier`], [`strikes`], [`totp`]), with the line
//! up or cut. It owns what both ends must agree on: the record, how passwords are proven, when an account is locked. Invariant: a roster names
//! only people who are entitled to a pool of that branch, each once, and never a password. It refuses costs of stretching that would
//! exhaust a branch, and does not know roles: who manages the realm does so at the datacenter.

pub mod gate;
pub mod strikes;
pub mod totp;
pub mod verifier;

use dedup::{BranchId, RealmId};
use serde::{Deserialize, Serialize};

use crate::trust::Record;
use totp::TotpSecret;
use verifier::Verifier;

/// Most people of one roster: a signed record is at most 1 MiB, and a branch serves hundreds of desktops.
pub const PEOPLE_MAX: usize = 4096;
/// Most pools of one person: as many as a branch has.
pub const POOLS_MAX: usize = 64;
/// Longest password, in bytes: stretching reads all of it.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Somebody who may log in at a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// The name that is typed at a log-in, in lower case.
    pub name: String,
    /// What proves the password.
    pub verifier: Verifier,
    /// The second factor, where there is one.
    pub totp: Option<TotpSecret>,
    /// Pools of the branch that the person may use, in the order of their names.
    pub pools: Vec<String>,
}

/// The people of one branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// The realm.
    pub realm: RealmId,
    /// The branch that it is for.
    pub branch: BranchId,
    /// Goes up with each roster of the branch and never back.
    pub counter: u64,
    /// When it was signed, unix seconds.
    pub issued_unix_s: u64,
    /// In the order of their names.
    pub people: Vec<Person>,
}

impl Roster {
    /// Whether it keeps to the limits and its order.
    pub fn is_valid(&self) -> bool {
        // Strictly: nobody is named twice.
        self.people.len() <= PEOPLE_MAX
            && self.people.is_sorted_by(|a, b| a.name < b.name)
            && self.people.iter().all(|person| {
                person.pools.len() <= POOLS_MAX
                    && person.pools.is_sorted_by(|a, b| a < b)
                    && person.verifier.is_affordable()
            })
    }

    /// The person of a name.
    pub fn person(&self, name: &str) -> Option<&Person> {
        let found = self
            .people
            .binary_search_by(|person| person.name.as_str().cmp(name));
        found.ok().map(|at| &self.people[at])
    }
}

impl Record for Roster {
    const NAME: &'static str = "roster";

    fn realm(&self) -> RealmId {
        self.realm
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn person(name: &str, pools: &[&str]) -> Person {
        Person {
            name: name.into(),
            verifier: Verifier {
                memory_kib: 8,
                passes: 1,
                lanes: 1,
                salt: [1; 16],
                hash: [2; 32],
            },
            totp: None,
            pools: pools.iter().map(|pool| (*pool).into()).collect(),
        }
    }

    fn roster(people: Vec<Person>) -> Roster {
        Roster {
            realm: RealmId([3; 16]),
            branch: BranchId([4; 16]),
            counter: 300,
            issued_unix_s: 5,
            people,
        }
    }

    #[test]
    fn people_are_found_by_name_and_order_is_checked() {
        let good = roster(vec![
            person("alice", &["a", "b"]),
            person("bob", &[]),
            person("carol", &["b"]),
        ]);
        assert!(good.is_valid());
        assert_eq!(good.person("bob").unwrap().name, "bob");
        assert_eq!(good.person("bo"), None);
        assert!(!roster(vec![person("bob", &[]), person("alice", &[])]).is_valid());
        assert!(!roster(vec![person("bob", &[]), person("bob", &[])]).is_valid());
        assert!(!roster(vec![person("bob", &["b", "a"])]).is_valid());
        let mut dear = person("bob", &[]);
        dear.verifier.memory_kib = 1 << 30;
        assert!(!roster(vec![dear]).is_valid());
    }

    #[test]
    fn a_record_has_its_golden_bytes() {
        let mut record = roster(vec![person("al", &["office"])]);
        record.people[0].totp = Some(TotpSecret([7; 20]));
        let bytes = record.encode(Roster::NAME);
        let golden = [
            "03".repeat(16),
            "04".repeat(16),
            "ac0205".into(),
            "01".into(),
            "02616c".into(),
            "080101".into(),
            "01".repeat(16),
            "02".repeat(32),
            "01".into(),
            "07".repeat(20),
            "01066f6666696365".into(),
        ];
        assert_eq!(hex::encode(&bytes), golden.concat());
        assert_eq!(Roster::decode(Roster::NAME, &bytes), Ok(record));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let mut one = person("al", &[]);
        one.totp = Some(TotpSecret([173; 20]));
        one.verifier.hash = [211; 32];
        let printed = format!("{one:?}");
        assert!(
            !printed.contains("173") && !printed.contains("211"),
            "{printed}"
        );
    }
}
