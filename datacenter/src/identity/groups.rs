//! Groups of people, and who may use which pool.
//!
//! An entitlement names a pool by its name: at one branch, or wherever a pool has that name, so that somebody who travels has a desktop there too. Invariant:
//! what is entitled exists when it is entitled, and an entitlement goes with its person or group. A pool need not exist yet.

use datacenter_api::{Entitlement, Group, SubjectKind, check_name};

use super::accounts::{ACCOUNTS_MAX, require};
use crate::branches::require_branch;
use crate::catalog::people::{AccountRow, EntitlementKey, EntitlementRow, GroupRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

/// Most groups.
const GROUPS_MAX: usize = 10_000;
/// Most groups of one person.
const MEMBERSHIPS_MAX: usize = 256;
/// Most entitlements.
pub(super) const ENTITLEMENTS_MAX: usize = 100_000;

fn require_group(tx: &mut Tx<'_>, name: &str) -> Result<GroupRow, ManageError> {
    tx.get(&name.to_owned())?.ok_or_else(|| {
        ManageError::not_found("group", name, "`splice group list` shows the groups")
    })
}

impl Datacenter {
    /// All groups, with their members.
    pub fn groups(&self) -> Result<Vec<Group>, CatalogError> {
        self.catalog().read(|tx| {
            let rows = tx.list::<GroupRow>(&[], None, GROUPS_MAX)?;
            let group = |(name, row): (String, GroupRow)| Group {
                name,
                created_unix_s: row.created_unix_s,
                members: Vec::new(),
            };
            let mut groups: Vec<Group> = rows.into_iter().map(group).collect();
            for (name, account) in tx.list::<AccountRow>(&[], None, ACCOUNTS_MAX)? {
                for member_of in &account.groups {
                    if let Ok(at) = groups.binary_search_by(|group| group.name.cmp(member_of)) {
                        groups[at].members.push(name.clone());
                    }
                }
            }
            Ok(groups)
        })
    }

    /// Makes a group.
    pub fn create_group(&self, name: &str) -> Result<Group, ManageError> {
        check_name("a group", name)?;
        let row = GroupRow {
            created_unix_s: self.now_unix_s(),
        };
        self.catalog().transact(|tx| {
            if tx.get::<GroupRow>(&name.to_owned())?.is_some() {
                return Err(ManageError::conflict(
                    format!("there is a group {name:?} already"),
                    "`splice group list` shows the groups",
                ));
            }
            if tx.list::<GroupRow>(&[], None, GROUPS_MAX)?.len() == GROUPS_MAX {
                return Err(ManageError::conflict(
                    format!("there are {GROUPS_MAX} groups already"),
                    "delete those that nobody needs",
                ));
            }
            tx.put(&name.to_owned(), &row);
            Ok(())
        })?;
        Ok(Group {
            name: name.to_owned(),
            created_unix_s: row.created_unix_s,
            members: Vec::new(),
        })
    }

    /// Deletes a group with its entitlements; its members stay.
    pub fn delete_group(&self, name: &str) -> Result<(), ManageError> {
        self.catalog().transact(|tx| {
            require_group(tx, name)?;
            tx.delete::<GroupRow>(&name.to_owned());
            for (user, mut row) in tx.list::<AccountRow>(&[], None, ACCOUNTS_MAX)? {
                let before = row.groups.len();
                row.groups.retain(|group| group != name);
                if row.groups.len() != before {
                    tx.put(&user, &row);
                }
            }
            for (key, _) in tx.list::<EntitlementRow>(&[], None, ENTITLEMENTS_MAX)? {
                if key.kind == SubjectKind::Group && key.subject == name {
                    tx.delete::<EntitlementRow>(&key);
                }
            }
            Ok::<_, ManageError>(())
        })?;
        self.people_changed();
        Ok(())
    }

    /// Adds a person to a group, or takes one out.
    pub fn set_member(&self, group: &str, user: &str, member: bool) -> Result<(), ManageError> {
        self.catalog().transact(|tx| {
            require_group(tx, group)?;
            let mut row = require(tx, user)?;
            row.groups.retain(|one| one != group);
            if member {
                if row.groups.len() == MEMBERSHIPS_MAX {
                    return Err(ManageError::conflict(
                        format!("user {user:?} is in {MEMBERSHIPS_MAX} groups already"),
                        "take the user out of some",
                    ));
                }
                row.groups.push(group.to_owned());
                row.groups.sort_unstable();
            }
            tx.put(&user.to_owned(), &row);
            Ok(())
        })?;
        self.people_changed();
        Ok(())
    }

    /// All entitlements.
    pub fn entitlements(&self) -> Result<Vec<Entitlement>, CatalogError> {
        self.catalog().read(|tx| {
            let rows = tx.list::<EntitlementRow>(&[], None, ENTITLEMENTS_MAX)?;
            let shown = rows.into_iter().map(|(key, row)| Entitlement {
                pool: key.pool,
                branch: key.branch,
                kind: key.kind,
                subject: key.subject,
                since_unix_s: row.since_unix_s,
            });
            Ok(shown.collect())
        })
    }

    /// Entitles somebody to a pool, or no more.
    pub fn set_entitled(&self, key: &EntitlementKey, entitled: bool) -> Result<(), ManageError> {
        check_name("a pool", &key.pool)?;
        let now = self.now_unix_s();
        self.catalog().transact(|tx| {
            let before: Option<EntitlementRow> = tx.get(key)?;
            match (entitled, before) {
                (true, Some(_)) => {}
                (true, None) => {
                    if let Some(branch) = &key.branch {
                        require_branch(tx, branch)?;
                    }
                    match key.kind {
                        SubjectKind::User => {
                            check_replicated(&key.subject, &require(tx, &key.subject)?)?;
                        }
                        SubjectKind::Group => {
                            require_group(tx, &key.subject)?;
                        }
                    }
                    tx.put(key, &EntitlementRow { since_unix_s: now });
                }
                (false, Some(_)) => tx.delete::<EntitlementRow>(key),
                (false, None) => {
                    return Err(ManageError::not_found(
                        "entitlement",
                        format!("{} of {}", key.pool, key.subject),
                        "`splice entitle list` shows them",
                    ));
                }
            }
            Ok(())
        })?;
        self.people_changed();
        Ok(())
    }
}

/// Branches are given what proves the passwords of whom they serve, and a branch can be stolen: nobody who manages the realm is among those.
fn check_replicated(name: &str, row: &AccountRow) -> Result<(), ManageError> {
    if row.grants.is_empty() {
        return Ok(());
    }
    Err(ManageError::conflict(
        format!(
            "user {name:?} has roles, and what proves such a password is not given to branches"
        ),
        "give the person a second account, without roles, for desktops",
    ))
}
