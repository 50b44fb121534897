//! Who uses versions, and so keeps them from being deleted.

use std::collections::{BTreeSet, HashMap};

use dedup::{BranchId, VersionId};
use dedup_protocol::records::Assignment;
use dedup_protocol::trust::Signed;
use serde::Deserialize;

use super::ALL;
use crate::catalog::rollouts::{ChannelRow, RolloutRow};
use crate::catalog::rows::{
    AssignmentRow, BranchRow, BranchStatusRow, GrantRow, ImageRow, NewestFirst, NumberKey, PoolRow,
    VersionNumberRow, VersionPinRow,
};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

/// Users that a refusal names; the others are counted.
const USERS_NAMED_MAX: usize = 5;

/// Who uses versions.
#[derive(Default)]
pub(super) struct Users(HashMap<VersionId, Vec<String>>);

impl Users {
    fn add(&mut self, version: VersionId, user: String) {
        self.0.entry(version).or_default().push(user);
    }

    pub(super) fn of(&self, version: VersionId) -> &[String] {
        match self.0.get(&version) {
            Some(users) => users,
            None => &[],
        }
    }

    /// What the catalog knows of.
    pub(super) fn add_from_catalog(&mut self, tx: &mut Tx<'_>) -> Result<(), CatalogError> {
        for (key, pool) in tx.list::<PoolRow>(&[], None, ALL)? {
            let branch: Option<BranchRow> = tx.get(&key.branch)?;
            let branch = branch.map_or_else(|| key.branch.to_string(), |row| row.name);
            let name = format!("pool {} at branch {branch}", key.pool);
            self.add(pool.version, format!("{name} runs it"));
            for pinned in pool.pinned.iter().filter(|id| **id != pool.version) {
                self.add(*pinned, format!("{name} pins it"));
            }
        }
        let mut behind: HashMap<BranchId, Option<String>> = HashMap::new();
        for (key, _) in tx.list::<GrantRow>(&[], None, ALL)? {
            let name = match behind.get(&key.branch) {
                Some(name) => name.clone(),
                None => {
                    let name = is_behind(tx, key.branch)?;
                    behind.insert(key.branch, name.clone());
                    name
                }
            };
            if let Some(name) = name {
                let user = format!(
                    "branch {name} once ran it and has not reported that it follows what its pools were assigned last"
                );
                self.add(key.version, user);
            }
        }
        for (version, pin) in tx.list::<VersionPinRow>(&[], None, ALL)? {
            self.add(
                version,
                match pin.note {
                    Some(note) => format!("it is pinned ({note})"),
                    None => "it is pinned".into(),
                },
            );
        }
        for (key, channel) in tx.list::<ChannelRow>(&[], None, ALL)? {
            let user = format!("channel {} of {} is at it", key.channel, key.image);
            self.add(channel.version, user);
        }
        for (NewestFirst(id), row) in tx.list::<RolloutRow>(&[], None, ALL)? {
            if row.rollout.stage.is_over() {
                continue;
            }
            self.add(row.rollout.target, format!("rollout {id} brings it"));
            let sites = row.rollout.sites.iter();
            let from: BTreeSet<VersionId> = sites.map(|site| site.from).collect();
            for version in from {
                self.add(version, format!("rollout {id} may go back to it"));
            }
        }
        for (name, image) in tx.list::<ImageRow>(&[], None, ALL)? {
            let key = NumberKey {
                number: image.latest,
                image: name,
            };
            if let Some(row) = tx.get::<VersionNumberRow>(&key)? {
                self.add(row.version, format!("it is the latest of {}", key.image));
            }
        }
        Ok(())
    }
}

/// The name of a branch that may not follow its present assignment, and so may start desktops of what it was assigned before.
fn is_behind(tx: &mut Tx<'_>, branch: BranchId) -> Result<Option<String>, CatalogError> {
    let row: Option<BranchRow> = tx.get(&branch)?;
    let joined = row.filter(|row| row.joined_unix_s.is_some() && row.revoked_unix_s.is_none());
    let Some(row) = joined else { return Ok(None) };
    let Some(told) = tx.get::<AssignmentRow>(&branch)? else {
        return Ok(None);
    };
    let reported: Option<BranchStatusRow> = tx.get(&branch)?;
    let follows = reported.is_some_and(|reported| follows(&told, &reported));
    Ok((!follows).then_some(row.name))
}

/// What a report says of the assignment that its branch follows.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Following {
    assignment_counter: Option<u64>,
}

fn follows(told: &AssignmentRow, reported: &BranchStatusRow) -> bool {
    let following: Following = serde_json::from_str(&reported.json).unwrap_or_default();
    match following.assignment_counter {
        Some(counter) => counter >= told.counter,
        // An older branch. What it could not read it was not sent, and goes on with what it had.
        None => {
            let assignment = Signed::<Assignment>::from_bytes(&told.signed);
            let assignment = assignment.and_then(|signed| signed.open_own());
            let any_reads_it = assignment.is_ok_and(|assignment| assignment.minor() <= 1);
            any_reads_it && reported.received_unix_s > told.issued_unix_s
        }
    }
}

impl Datacenter {
    /// Who uses versions besides what the catalog's rows say: desktops that branches reported, and what reads them here at this moment.
    pub(super) fn users_outside_the_catalog(&self) -> Result<Users, CatalogError> {
        let mut users = Users::default();
        let branches = self
            .catalog()
            .read(|tx| tx.list::<BranchRow>(&[], None, ALL))?;
        for (branch, row) in branches {
            if row.revoked_unix_s.is_some() {
                continue;
            }
            let Some((_, status)) = self.branch_status(branch)? else {
                continue;
            };
            for desktop in &status.desktops {
                if let Ok(version) = desktop.version.parse() {
                    let user = format!("desktop {} at branch {} has it", desktop.id, row.name);
                    users.add(version, user);
                }
            }
        }
        for pair in self.updates().being_made() {
            users.add(pair.parent, "an update from it is being encoded".into());
            users.add(pair.version, "an update to it is being encoded".into());
        }
        for version in self.versions_in_use() {
            users.add(version, "it is being read".into());
        }
        Ok(users)
    }
}

/// Says who uses a version.
pub(super) fn refusal(name: &str, users: &[&String]) -> ManageError {
    let named: Vec<&str> = users
        .iter()
        .take(USERS_NAMED_MAX)
        .map(|user| user.as_str())
        .collect();
    let more = match users.len() - named.len() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    ManageError::conflict(
        format!("{name} is in use: {}{more}", named.join(", ")),
        "move its pools to another version, stop its desktops, unpin it, or revoke branches that are gone for good; the latest version of an image stays until another is published",
    )
}
