//! Accounts: making, changing, refusing and deleting them.
//!
//! Invariant: whatever makes an account's credentials doubtful (a new password, a second factor that was reset, a refusal) ends its sessions in the same
//! transaction; an account that is deleted leaves no session, token, membership or entitlement behind, and one of the same name later is another.

use datacenter_api::{AccountKind, SubjectKind, User, UserRequest, check_name};
use dedup_protocol::people::PASSWORD_BYTES_MAX;
use dedup_protocol::people::strikes::Strikes;
use dedup_protocol::people::verifier::Verifier;

use crate::catalog::people::{AccountRow, ApiTokenRow, EntitlementRow, SessionRow, TokenOwner};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use crate::realm::random;

/// Shortest password, in characters. Length is what counts; nobody is asked for special characters.
const PASSWORD_CHARS_MIN: usize = 12;
/// Longest own name, in bytes.
const DISPLAY_BYTES_MAX: usize = 200;
/// Whom the audit log calls so without an account: the local root credential, and the datacenter itself.
const RESERVED: [&str; 2] = ["root", "datacenter"];
/// Most accounts: a roster and a list of members look at all of them.
pub const ACCOUNTS_MAX: usize = 100_000;
/// Most roles of one account, or token.
pub(super) const GRANTS_MAX: usize = 64;

/// A name as it is kept: people type capitals, and mean the same account.
pub(super) fn folded(name: &str) -> String {
    name.trim().to_ascii_lowercase()
}

fn missing(name: &str) -> ManageError {
    ManageError::not_found("user", name, "`splice user list` shows the users")
}

/// Whether a password will do.
pub(super) fn check_password(name: &str, password: &str) -> Result<(), ManageError> {
    let fault = if password.chars().count() < PASSWORD_CHARS_MIN {
        "is shorter than 12 characters"
    } else if password.len() > PASSWORD_BYTES_MAX {
        "is longer than 1024 bytes"
    } else if password.to_lowercase().contains(name) && password.len() < 2 * name.len() + 8 {
        "is hardly more than the user's name"
    } else {
        return Ok(());
    };
    Err(ManageError::invalid(format!("the password {fault}")))
}

pub(super) fn verifier_of(name: &str, password: &str) -> Result<Verifier, ManageError> {
    check_password(name, password)?;
    Ok(Verifier::new(password.as_bytes(), random()))
}

pub(super) fn require(tx: &mut Tx<'_>, name: &str) -> Result<AccountRow, ManageError> {
    tx.get(&name.to_owned())?.ok_or_else(|| missing(name))
}

pub(super) fn show_user(name: &str, row: &AccountRow, now_unix_s: u64) -> User {
    User {
        name: name.to_owned(),
        display: row.display.clone(),
        kind: row.kind,
        created_unix_s: row.created_unix_s,
        disabled: row.disabled,
        has_password: row.verifier.is_some(),
        has_totp: row.totp.as_ref().is_some_and(|totp| totp.confirmed),
        locked_s: row.strikes.wait_s(now_unix_s),
        roles: row.grants.clone(),
        groups: row.groups.clone(),
    }
}

/// Takes over what a request asks for; the password was stretched before.
fn change(
    row: &mut AccountRow,
    request: &UserRequest,
    verifier: Option<Verifier>,
) -> Result<(), ManageError> {
    if let Some(display) = &request.display {
        if display.len() > DISPLAY_BYTES_MAX || display.chars().any(char::is_control) {
            return Err(ManageError::invalid(
                "the person's own name is longer than 200 bytes, or not one line",
            ));
        }
        row.display = (!display.is_empty()).then(|| display.clone());
    }
    if let Some(grants) = &request.roles {
        if grants.len() > GRANTS_MAX {
            return Err(ManageError::invalid(format!(
                "{} roles, at most {GRANTS_MAX} are possible",
                grants.len()
            )));
        }
        let parts = grants.iter().flat_map(|grant| [&grant.branch, &grant.pool]);
        for name in parts.flatten() {
            check_name("a branch or pool", name)?;
        }
        row.grants.clone_from(grants);
        row.grants.sort_unstable();
        row.grants.dedup();
    }
    if let Some(verifier) = verifier {
        row.verifier = Some(verifier);
        row.strikes.clear();
        row.epoch += 1;
    }
    if let Some(disabled) = request.disabled {
        row.epoch += u32::from(disabled && !row.disabled);
        row.disabled = disabled;
    }
    Ok(())
}

/// Whether a roster may have to follow a change: else no branch has to be looked at.
fn concerns_branches(before: &AccountRow, after: &AccountRow) -> bool {
    let factor = |row: &AccountRow| {
        let factor = row.totp.as_ref().filter(|totp| totp.confirmed);
        factor.map(|factor| factor.sealed.clone())
    };
    before.verifier != after.verifier
        || factor(before) != factor(after)
        || before.disabled != after.disabled
        || before.grants.is_empty() != after.grants.is_empty()
}

impl Datacenter {
    /// At most `limit` accounts after the name `after`.
    pub fn users(&self, after: Option<&str>, limit: usize) -> Result<Vec<User>, CatalogError> {
        let (after, now) = (after.map(str::to_owned), self.now_unix_s());
        self.catalog().read(|tx| {
            let rows = tx.list::<AccountRow>(&[], after.as_ref(), limit)?;
            let users = rows.iter().map(|(name, row)| show_user(name, row, now));
            Ok(users.collect())
        })
    }

    /// One account.
    pub fn user(&self, name: &str) -> Result<User, ManageError> {
        let now = self.now_unix_s();
        self.catalog()
            .read(|tx| Ok(show_user(name, &require(tx, name)?, now)))
    }

    /// An account that is not kept yet.
    pub(super) fn new_account(
        &self,
        name: &str,
        request: &UserRequest,
    ) -> Result<AccountRow, ManageError> {
        check_name("a user", name)?;
        if folded(name) != name {
            return Err(ManageError::invalid(format!(
                "{name:?} cannot be the name of a user: use lower-case letters, so that nobody is two people"
            )));
        }
        if RESERVED.contains(&name) {
            return Err(ManageError::invalid(format!(
                "{name:?} cannot be the name of a user: the audit log calls somebody else so"
            )));
        }
        let verifier = request.password.as_deref();
        let verifier = verifier.map(|password| verifier_of(name, password));
        let mut row = AccountRow {
            id: random(),
            kind: AccountKind::Local,
            display: None,
            created_unix_s: self.now_unix_s(),
            disabled: false,
            epoch: 0,
            grants: Vec::new(),
            groups: Vec::new(),
            verifier: None,
            totp: None,
            strikes: Strikes::default(),
        };
        change(&mut row, request, verifier.transpose()?)?;
        Ok(row)
    }

    pub(super) fn put_account(
        &self,
        tx: &mut Tx<'_>,
        name: &str,
        row: &AccountRow,
    ) -> Result<(), ManageError> {
        let key = name.to_owned();
        if tx.get::<AccountRow>(&key)?.is_some() {
            return Err(ManageError::conflict(
                format!("there is a user {name:?} already"),
                format!("`splice user show {name}` shows it"),
            ));
        }
        if tx.list::<AccountRow>(&[], None, ACCOUNTS_MAX)?.len() == ACCOUNTS_MAX {
            return Err(ManageError::conflict(
                format!("there are {ACCOUNTS_MAX} users already"),
                "delete those that are gone",
            ));
        }
        tx.put(&key, row);
        Ok(())
    }

    /// Makes an account.
    pub fn create_user(&self, name: &str, request: &UserRequest) -> Result<User, ManageError> {
        let row = self.new_account(name, request)?;
        // No roster can name it before it is in a group, or entitled.
        self.catalog()
            .transact(|tx| self.put_account(tx, name, &row))?;
        Ok(show_user(name, &row, self.now_unix_s()))
    }

    /// Changes an account.
    pub fn change_user(&self, name: &str, request: &UserRequest) -> Result<User, ManageError> {
        let verifier = match &request.password {
            Some(password) => Some(verifier_of(name, password)?),
            None => None,
        };
        self.update(name, |row| change(row, request, verifier.clone()))
    }

    /// Unlocks an account.
    pub fn unlock_user(&self, name: &str) -> Result<User, ManageError> {
        let mut account = None;
        let user = self.update(name, |row| {
            row.strikes.clear();
            account = Some(row.id);
            Ok(())
        })?;
        if let Some(account) = account {
            self.identity().known().forget(account);
        }
        Ok(user)
    }

    /// Asks an account for no second factor any more.
    pub fn reset_totp(&self, name: &str) -> Result<User, ManageError> {
        self.update(name, |row| {
            if row.totp.take().is_some() {
                row.epoch += 1;
            }
            Ok(())
        })
    }

    pub(super) fn update(
        &self,
        name: &str,
        mut change: impl FnMut(&mut AccountRow) -> Result<(), ManageError>,
    ) -> Result<User, ManageError> {
        let now = self.now_unix_s();
        let (user, concerned) = self.catalog().transact(|tx| {
            let mut row = require(tx, name)?;
            let before = row.clone();
            change(&mut row)?;
            tx.put(&name.to_owned(), &row);
            let concerned = concerns_branches(&before, &row);
            Ok::<_, ManageError>((show_user(name, &row, now), concerned))
        })?;
        if concerned {
            self.people_changed();
        }
        Ok(user)
    }

    /// Deletes an account with all that names it.
    pub fn delete_user(&self, name: &str) -> Result<(), ManageError> {
        self.catalog().transact(|tx| {
            let row = require(tx, name)?;
            tx.delete::<AccountRow>(&name.to_owned());
            for (key, session) in tx.list::<SessionRow>(&[], None, usize::MAX / 2)? {
                if session.account.id == row.id {
                    tx.delete::<SessionRow>(&key);
                }
            }
            for (key, token) in tx.list::<ApiTokenRow>(&[], None, usize::MAX / 2)? {
                if matches!(&token.owner, TokenOwner::Account(owner) if owner.id == row.id) {
                    tx.delete::<ApiTokenRow>(&key);
                }
            }
            for (key, _) in tx.list::<EntitlementRow>(&[], None, usize::MAX / 2)? {
                if key.kind == SubjectKind::User && key.subject == name {
                    tx.delete::<EntitlementRow>(&key);
                }
            }
            Ok::<_, ManageError>(())
        })?;
        self.people_changed();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn passwords_are_long_and_not_the_name() {
        for good in ["correct horse battery", "zwölf Zeichen", "aaaaaaaaaaaa"] {
            check_password("alice", good).unwrap();
        }
        let long = "x".repeat(PASSWORD_BYTES_MAX + 1);
        for bad in ["", "short", "elevenchars", "alice-alice-1", long.as_str()] {
            assert!(check_password("alice", bad).is_err(), "{bad:?}");
        }
    }
}
