//! Log-ins at the branch, with the line up or cut: the roster that the datacenter signed, and locks of its own.
//!
//! Invariant: a password is proven against a roster that was signed for this branch and is the newest that ever came; an attempt is counted, durably, before
//! the password is looked at, and a code is taken once. What proves passwords is on disk only encrypted, under what the branch key opens: a
//! stolen disk invites no guesses. Nobody logs in when the datacenter has not been heard of for longer than the branch may serve alone.
//!
//! It gives no session and starts no desktop: who asks (the portal) does. Accounts are not locked for the datacenter by what happens here, nor
//! the other way: with the line cut neither could tell the other.

mod rows;
mod sealed;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, RwLock};

use dedup_protocol::people::Roster;
use dedup_protocol::people::verifier::{COST, Verifier};
use dedup_protocol::records::Assignment;
use dedup_protocol::trust::{Signed, Trust, TrustError};
use dedup_store::kv::{Kv, KvError};
use tokio::sync::Semaphore;

use crate::catalog::{Catalog, CatalogError};
use crate::keys::Secret;

/// Passwords that are stretched at once: each takes 64 MiB and a core, which guests want too.
const STRETCHING_MAX: usize = 2;

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error)]
pub enum LogInError {
    /// Somebody else, or mistyped, or locked; which of them is not told.
    #[error(
        "the name or the password is wrong, or wrong passwords have locked the account for a while"
    )]
    Wrong,
    /// The account has a second factor.
    #[error(
        "this account has a second factor: pass the code that the authenticator application shows now"
    )]
    CodeNeeded,
    /// Its code does not fit, or was used.
    #[error("the code is wrong, or was used already")]
    WrongCode,
    /// No roster ever came.
    #[error(
        "this branch was not told of anybody yet; people are entitled to its pools with `splice entitle`, at a datacenter that is not older than this branch server"
    )]
    NobodyTold,
    /// The branch may not serve alone any longer.
    #[error(
        "this branch has not heard from its datacenter for {since_s} seconds longer than it may serve alone; nobody logs in until its link is up"
    )]
    Alone {
        /// How long ago that ended.
        since_s: u64,
    },
    /// The store under it.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// What is kept cannot be read.
    #[error("what is kept of people at this branch cannot be read ({reason})")]
    Row {
        /// Why.
        reason: String,
    },
}

/// Why a roster is not kept.
#[derive(Debug, thiserror::Error)]
enum KeptError {
    #[error("it was not encrypted by this branch, or is damaged")]
    Sealed,
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Kv(#[from] KvError),
}

/// Somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The account's name.
    pub name: String,
    /// Pools of this branch that are there for the person now.
    pub pools: Vec<String>,
}

/// See the module.
pub struct People {
    kv: Arc<dyn Kv>,
    catalog: Catalog,
    key: Secret,
    roster: RwLock<Option<Arc<Roster>>>,
    /// Held while strikes are counted, so that none is lost.
    counting: Mutex<()>,
    stretching: Arc<Semaphore>,
}

impl People {
    /// Takes up what is kept in `kv`. `secret` is one that the branch key opens. A roster that cannot be read is as good as none: the datacenter sends it again.
    pub fn open(kv: Arc<dyn Kv>, catalog: Catalog, secret: &Secret) -> Self {
        let people = Self {
            kv,
            catalog,
            key: secret.derive("splice branch roster v1"),
            roster: RwLock::default(),
            counting: Mutex::default(),
            stretching: Arc::new(Semaphore::new(STRETCHING_MAX)),
        };
        match people.kept() {
            Ok(roster) => people.set(roster),
            Err(error) => {
                let error = crate::desktop::error_line(&error);
                tracing::warn!(
                    error,
                    "nobody can log in here until the datacenter was reached: the roster is not taken up"
                );
            }
        }
        people
    }

    fn kept(&self) -> Result<Option<Roster>, KeptError> {
        let Some(row) = self.kv.get(rows::ROSTER)? else {
            return Ok(None);
        };
        let plain = sealed::open(&self.key, &row).ok_or(KeptError::Sealed)?;
        let signed = Signed::<Roster>::from_bytes(&plain)?;
        let endorsements = self.catalog.endorsements()?;
        let roster = signed.open(self.catalog.anchor(), &endorsements, Trust::Kept)?;
        Ok(Some(roster))
    }

    fn set(&self, roster: Option<Roster>) {
        *self.roster.write().expect("no panic under this lock") = roster.map(Arc::new);
    }

    fn roster(&self) -> Option<Arc<Roster>> {
        self.roster
            .read()
            .expect("no panic under this lock")
            .clone()
    }

    /// Counter of the roster that is here; 0: there is none.
    pub fn counter(&self) -> u64 {
        self.roster().map_or(0, |roster| roster.counter)
    }

    /// Keeps a roster. The caller has opened it, and found its counter higher than any before.
    pub fn admit(&self, roster: Roster, signed: &Signed<Roster>) -> Result<(), KvError> {
        let row = sealed::seal(&self.key, &signed.to_bytes());
        rows::put_roster(&*self.kv, row, &roster)?;
        self.set(Some(roster));
        Ok(())
    }

    /// Turns for [`Self::log_in`], which takes the time of stretching a password.
    pub fn stretching(&self) -> &Arc<Semaphore> {
        &self.stretching
    }

    /// Proves who somebody is. `assignment` is what the branch follows.
    pub fn log_in(
        &self,
        name: &str,
        password: &[u8],
        code: Option<&str>,
        assignment: Option<&Assignment>,
        now_unix_s: u64,
    ) -> Result<Admitted, LogInError> {
        if let Some(assignment) = assignment {
            let end = assignment
                .expires_unix_s
                .saturating_add(assignment.offline_grace_s);
            if now_unix_s > end {
                let since_s = now_unix_s - end;
                return Err(LogInError::Alone { since_s });
            }
        }
        let name = name.trim().to_ascii_lowercase();
        let roster = self.roster().ok_or(LogInError::NobodyTold)?;
        let mut person = roster.person(&name);
        if person.is_some() {
            let counted = self.count(&name, |row| {
                let counted = row.strikes.attempt(now_unix_s);
                counted.map_err(|_| LogInError::Wrong)
            });
            match counted {
                // A locked account answers as a name that nobody has.
                Err(LogInError::Wrong) => person = None,
                counted => counted?,
            }
        }
        // Of who is not here the time is spent all the same.
        let nobody = nobody();
        let verifier = person.map_or(&nobody, |person| &person.verifier);
        let fits = verifier.fits(password);
        let person = person.filter(|_| fits).ok_or(LogInError::Wrong)?;
        if person.totp.is_some() && code.is_none() {
            return Err(LogInError::CodeNeeded);
        }
        self.count(&name, |row| {
            if let Some(secret) = &person.totp {
                let step = secret.check(code.unwrap_or_default(), now_unix_s, row.last_step);
                row.last_step = step.ok_or(LogInError::WrongCode)?;
            }
            row.strikes.clear();
            Ok(())
        })?;
        let assigned: BTreeSet<&str> = assignment
            .iter()
            .flat_map(|assignment| &assignment.pools)
            .map(|pool| pool.pool.as_str())
            .collect();
        let pools = person.pools.iter();
        let pools = pools.filter(|pool| assigned.contains(pool.as_str()));
        let pools = pools.cloned().collect();
        Ok(Admitted { name, pools })
    }

    /// Changes what is kept of a person's attempts; durable when it returns, and only if `change` succeeds.
    fn count(
        &self,
        name: &str,
        change: impl FnOnce(&mut rows::AttemptsRow) -> Result<(), LogInError>,
    ) -> Result<(), LogInError> {
        let _alone = self.counting.lock().unwrap_or_else(|e| e.into_inner());
        let mut row = rows::attempts(&*self.kv, name)?;
        change(&mut row)?;
        Ok(rows::put_attempts(&*self.kv, name, &row)?)
    }
}

/// What stands for the password of somebody who is not here.
fn nobody() -> Verifier {
    let (memory_kib, passes, lanes) = COST;
    Verifier {
        memory_kib,
        passes,
        lanes,
        salt: [0; 16],
        hash: [0; 32],
    }
}
