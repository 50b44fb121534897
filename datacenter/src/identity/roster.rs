//! Rosters: what each branch is told of the people that it serves, so that they can log in there with the line cut.
//!
//! Invariant: a branch is told of those who are entitled to a pool that it has, and of nobody who manages the realm: what it has can be stolen with it. A
//! roster is signed when its people changed, with a counter that only goes up, also after a restore; one that became empty is signed too, as it
//! takes rights away. It decides nothing about when a branch is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dedup::BranchId;
use dedup_protocol::people::{PEOPLE_MAX, Person, Roster};

use super::accounts::ACCOUNTS_MAX;
use super::groups::ENTITLEMENTS_MAX;
use super::seal::Sealing;
use crate::assign::POOLS_MAX;
use crate::catalog::people::{AccountRow, EntitlementRow, RosterRow};
use crate::catalog::rows::{BranchRow, PoolRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::restored;

/// Most bytes of a roster's people: a signed record is at most 1 MiB.
const BYTES_MAX: usize = 900 * 1024;

/// What rosters were made of when they were looked at last.
#[derive(Default)]
pub(super) struct Rosters {
    /// All accounts, as of a revision: read once for all branches.
    accounts: Option<(u64, Vec<(String, AccountRow)>)>,
    /// Of each branch the revision, its pools, and the counter of what came of them.
    made: HashMap<BranchId, (u64, BTreeSet<String>, u64)>,
}

impl Datacenter {
    /// The counter of a branch's current roster, which is signed anew if its people changed; 0: it never had anybody.
    pub fn roster_counter(&self, branch: BranchId) -> Result<u64, CatalogError> {
        // Held until it is signed, so that nobody signs what he read earlier behind it.
        let mut rosters = self.identity().rosters();
        // Before anything is read: what changes meanwhile is looked at the next time.
        let revision = self.identity().revision();
        let pools = self.catalog().read(|tx| pools_of(tx, branch))?;
        if let Some((made_at, of, counter)) = rosters.made.get(&branch)
            && *made_at == revision
            && *of == pools
        {
            return Ok(*counter);
        }
        let accounts = match rosters.accounts.take() {
            Some((read_at, accounts)) if read_at == revision => accounts,
            _ => self
                .catalog()
                .read(|tx| tx.list::<AccountRow>(&[], None, ACCOUNTS_MAX))?,
        };
        let sealing = self.identity().sealing();
        let people = self
            .catalog()
            .read(|tx| people_of(sealing, &accounts, &pools, tx, branch))?;
        rosters.accounts = Some((revision, accounts));
        let counter = self.sign_roster(branch, people)?;
        rosters.made.insert(branch, (revision, pools, counter));
        Ok(counter)
    }

    /// A branch's current roster, signed; `None`: it never had anybody.
    pub fn signed_roster(&self, branch: BranchId) -> Result<Option<Vec<u8>>, CatalogError> {
        let row: Option<RosterRow> = self.catalog().read(|tx| tx.get(&branch))?;
        Ok(row.map(|row| row.signed))
    }

    /// Signs a branch's people, unless the roster that it has says the same; answers the counter.
    fn sign_roster(&self, branch: BranchId, people: Vec<Person>) -> Result<u64, CatalogError> {
        let bytes = postcard::to_stdvec(&people).expect("people serialise without failing");
        let hash = *blake3::hash(&bytes).as_bytes();
        let (before, floor) = self.catalog().read(|tx| {
            let before: Option<RosterRow> = tx.get(&branch)?;
            Ok::<_, CatalogError>((before, restored::counter_floor(tx)?))
        })?;
        match &before {
            None if people.is_empty() => return Ok(0),
            // After a restore the branch may have a later one, which this one must replace.
            Some(row) if row.people == hash && row.counter > floor => return Ok(row.counter),
            _ => {}
        }
        let counter = before.map_or(0, |row| row.counter).max(floor) + 1;
        let roster = Roster {
            realm: self.realm(),
            branch,
            counter,
            issued_unix_s: self.now_unix_s(),
            people,
        };
        let row = RosterRow {
            counter,
            people: hash,
            signed: self.publisher().sign(&roster).to_bytes(),
        };
        self.catalog().transact(|tx| {
            tx.put(&branch, &row);
            Ok::<_, CatalogError>(())
        })?;
        Ok(counter)
    }
}

fn pools_of(tx: &mut Tx<'_>, branch: BranchId) -> Result<BTreeSet<String>, CatalogError> {
    let rows = tx.list::<PoolRow>(branch.as_bytes(), None, POOLS_MAX)?;
    Ok(rows.into_iter().map(|(key, _)| key.pool).collect())
}

/// Who may use which of a branch's pools, in the order of their names.
fn people_of(
    sealing: &Sealing,
    accounts: &[(String, AccountRow)],
    pools: &BTreeSet<String>,
    tx: &mut Tx<'_>,
    branch: BranchId,
) -> Result<Vec<Person>, CatalogError> {
    let Some(BranchRow { name, .. }) = tx.get(&branch)? else {
        return Ok(Vec::new());
    };
    let mut of_users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut of_groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pool in pools {
        let mut prefix = pool.as_bytes().to_vec();
        prefix.push(0);
        for (key, _) in tx.list::<EntitlementRow>(&prefix, None, ENTITLEMENTS_MAX)? {
            if key.branch.is_some_and(|at| at != name) {
                continue;
            }
            let subjects = match key.kind {
                datacenter_api::SubjectKind::User => &mut of_users,
                datacenter_api::SubjectKind::Group => &mut of_groups,
            };
            subjects
                .entry(key.subject)
                .or_default()
                .insert(pool.clone());
        }
    }
    if of_users.is_empty() && of_groups.is_empty() {
        return Ok(Vec::new());
    }
    let mut people = Vec::new();
    let mut bytes = 0;
    for (name, row) in accounts {
        let direct = of_users.get(name);
        let by_group = row.groups.iter().filter_map(|group| of_groups.get(group));
        let pools: BTreeSet<&String> = direct.into_iter().chain(by_group).flatten().collect();
        if pools.is_empty() || row.disabled || !row.grants.is_empty() {
            continue;
        }
        let Some(verifier) = row.verifier.clone() else {
            continue;
        };
        let factor = row.totp.as_ref().filter(|totp| totp.confirmed);
        let totp = match factor.map(|factor| sealing.open(&row.id, &factor.sealed)) {
            None => None,
            Some(Some(secret)) => Some(secret),
            // Nobody logs in with less than at the datacenter.
            Some(None) => {
                tracing::error!(
                    user = name,
                    "a second factor cannot be opened; the user is kept from branches"
                );
                continue;
            }
        };
        let person = Person {
            verifier,
            totp,
            pools: pools.into_iter().cloned().collect(),
            name: name.clone(),
        };
        let person_bytes = postcard::to_stdvec(&person).map_or(0, |bytes| bytes.len());
        bytes += person_bytes;
        if people.len() == PEOPLE_MAX || bytes > BYTES_MAX {
            tracing::error!(%branch, people = people.len(), "more people are entitled at a branch than a roster holds; those whose names come last cannot log in there");
            break;
        }
        people.push(person);
    }
    Ok(people)
}
