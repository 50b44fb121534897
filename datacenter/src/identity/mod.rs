//! Who calls, and what they may do: accounts, sessions, tokens, groups, entitlements, and what branches must know of them.
//!
//! Start reading at [`Caller`], which every call of the management API but a few is made by, then [`rights`] (who may do what where), [`log_in`]
//! and [`sessions`], [`accounts`], [`tokens`], [`groups`] (and who may use which pool), [`roster`] (people as a branch is told of them).
//!
//! Invariant: nothing that opens a door is kept as it is: passwords are verifiers, tokens, sessions and codes hashes, second factors sealed. Accounts prove
//! their passwords here; people of OIDC or LDAP are to be a further `AccountKind`, whose log-in ends in the same session.

pub mod accounts;
pub mod gate;
pub mod groups;
pub mod known;
pub mod log_in;
mod own;
pub mod rights;
pub mod roster;
mod seal;
pub mod sessions;
pub mod tokens;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use datacenter_api::{AuditFacts, Grant};
use tokio::sync::Semaphore;

use crate::catalog::audit::append;
use crate::catalog::people::AccountRef;
use crate::catalog::rows::SecretHash;
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use gate::Gate;
use known::Known;
use rights::{Permission, Place, gives, include};
use seal::Sealing;

/// Passwords that are stretched at once for log-ins: each takes 64 MiB and a core.
const STRETCHING_MAX: usize = 2;

/// What identity keeps in memory.
pub struct Identity {
    /// Counts up with each change that a roster may have to follow.
    revision: AtomicU64,
    gate: Mutex<Gate>,
    known: Mutex<Known>,
    stretching: Arc<Semaphore>,
    sealing: Sealing,
    /// What rosters were made of; never locked inside a transaction.
    rosters: Mutex<roster::Rosters>,
}

impl Identity {
    /// `secret` is one of the realm's, that a copy of the catalog does not have.
    pub fn new(secret: &[u8]) -> Self {
        Self {
            revision: AtomicU64::new(1),
            gate: Mutex::default(),
            known: Mutex::default(),
            stretching: Arc::new(Semaphore::new(STRETCHING_MAX)),
            sealing: Sealing::new(secret),
            rosters: Mutex::default(),
        }
    }

    /// Who may try to log in now.
    pub fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Where people logged in from; never locked inside a transaction.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Turns for stretching a password that nobody who is known asks for.
    pub fn stretching(&self) -> &Arc<Semaphore> {
        &self.stretching
    }

    fn sealing(&self) -> &Sealing {
        &self.sealing
    }

    fn rosters(&self) -> MutexGuard<'_, roster::Rosters> {
        self.rosters.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }
}

/// What a caller came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// The local root credential.
    Root,
    /// A session.
    Session(SecretHash),
    /// A token that somebody made.
    Token,
}

/// Who makes a call.
#[derive(Debug, Clone)]
pub struct Caller {
    /// As the audit log calls it.
    pub who: String,
    /// The account, unless it is nobody's.
    pub account: Option<AccountRef>,
    /// The address that the call came from.
    pub from: String,
    /// What it came with.
    pub credential: Credential,
    /// When that ends, unix seconds.
    pub expires_unix_s: Option<u64>,
    /// What the account may do, or the credential where there is none.
    grants: Vec<Grant>,
    /// What a token may do of that.
    limit: Option<Vec<Grant>>,
}

impl Caller {
    /// Whether it may do that there.
    pub fn may(&self, permission: Permission, place: &Place) -> bool {
        let any = |grants: &[Grant]| grants.iter().any(|grant| gives(grant, permission, place));
        match permission {
            Permission::Known => true,
            Permission::Own => self.credential != Credential::Token,
            _ => any(&self.grants) && self.limit.as_deref().is_none_or(any),
        }
    }

    /// Whether it may do that anywhere.
    pub fn may_somewhere(&self, permission: Permission) -> bool {
        let any = |grants: &[Grant]| grants.iter().any(|grant| permission.is_of(grant.role));
        any(&self.grants) && self.limit.as_deref().is_none_or(any)
    }

    /// As [`Self::may`], or the error that says what is lacking.
    pub fn require(&self, permission: Permission, place: &Place) -> Result<(), ManageError> {
        if self.may(permission, place) {
            return Ok(());
        }
        let message = match permission {
            Permission::Own => {
                "a token cannot do this; log in, or use the local root credential".to_owned()
            }
            _ => format!(
                "{} does not have the permission {:?} {place}",
                self.who,
                permission.name()
            ),
        };
        Err(ManageError::Forbidden { message })
    }

    /// Its roles, as far as its token goes.
    pub fn roles(&self) -> Vec<Grant> {
        match &self.limit {
            None => self.grants.clone(),
            Some(limit) => {
                let kept = limit.iter().filter(|grant| include(&self.grants, grant));
                kept.cloned().collect()
            }
        }
    }

    /// The account, for what only people with one have.
    pub(crate) fn own_account(&self) -> Result<&AccountRef, ManageError> {
        self.account.as_ref().ok_or_else(|| {
            ManageError::conflict(
                format!("{} is nobody's account", self.who),
                "log in with an account: `splice login`",
            )
        })
    }

    /// An entry of the audit log about it.
    pub(crate) fn facts(&self, event: &str, now_unix_s: u64) -> AuditFacts {
        AuditFacts {
            unix_s: now_unix_s,
            event: event.to_owned(),
            who: self.who.clone(),
            from: self.from.clone(),
            ..AuditFacts::default()
        }
    }
}

impl Datacenter {
    /// Something changed that branches' rosters may have to follow.
    pub(crate) fn people_changed(&self) {
        self.identity().revision.fetch_add(1, Ordering::AcqRel);
        self.announce_assignments();
    }

    /// Adds an entry to the audit log; answers its number. It is durable on return.
    pub fn audit(&self, facts: &AuditFacts) -> Result<u64, CatalogError> {
        self.catalog().transact(|tx: &mut Tx<'_>| append(tx, facts))
    }
}
