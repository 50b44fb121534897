//! Sessions, and how a call's credential becomes a [`Caller`].
//!
//! ```text
//!   log-in ──► session ──unused for an hour, 12 hours old, logged out, password changed, account disabled──► gone
//! ```
//!
//! Invariant: a session is as good as its account is at the moment of the call: it names the account's id and epoch, and what it may do is looked up each
//! time. A browser has it as a cookie that scripts cannot read, and must repeat a value derived from it in each request that changes something,
//! which another site cannot know; a program has it as a bearer token.

use datacenter_api::Session;

use super::{Caller, Credential};
use crate::catalog::people::{AccountRef, AccountRow, ApiTokenRow, SessionRow, TokenOwner};
use crate::catalog::rows::SecretHash;
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use crate::realm::random;

/// How long a session holds at most, in seconds: a long day's work.
pub const SESSION_S: u64 = 12 * 3600;
/// How long it holds unused.
pub const IDLE_S: u64 = 3600;
/// How often its use is noted.
const SEEN_EVERY_S: u64 = 60;
/// Most sessions of one account: who logs in with a script and never out.
const SESSIONS_MAX: usize = 64;
/// What a session's bearer token begins with.
const PREFIX: &str = "splice-session-1.";

/// A session that has just begun.
#[derive(Clone, PartialEq, Eq)]
pub struct NewSession {
    /// Its secret.
    pub secret: String,
    /// Whose.
    pub account: AccountRef,
    /// What that may do.
    pub roles: Vec<datacenter_api::Grant>,
    /// When it ends at the latest, unix seconds.
    pub expires_unix_s: u64,
}

impl std::fmt::Debug for NewSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewSession({:?})", self.account.name)
    }
}

impl NewSession {
    /// As a program sends it.
    pub fn bearer(&self) -> String {
        format!("{PREFIX}{}", self.secret)
    }
}

/// What a request that changes something repeats, beside the cookie.
pub fn csrf_of(secret: &str) -> String {
    let derived = blake3::derive_key(
        "splice datacenter cross-site requests v1",
        secret.as_bytes(),
    );
    hex::encode(derived)
}

/// Begins a session in the transaction that proved the password; those that have ended go.
pub(super) fn begin_session(
    tx: &mut Tx<'_>,
    name: &str,
    row: &AccountRow,
    now_unix_s: u64,
) -> Result<NewSession, CatalogError> {
    let mut own = Vec::new();
    for (key, session) in tx.list::<SessionRow>(&[], None, usize::MAX / 2)? {
        if !is_alive(&session, now_unix_s) {
            tx.delete::<SessionRow>(&key);
        } else if session.account.id == row.id {
            own.push((session.seen_unix_s, key));
        }
    }
    own.sort_unstable_by_key(|(seen, _)| *seen);
    let excess = (own.len() + 1).saturating_sub(SESSIONS_MAX);
    for (_, key) in own.iter().take(excess) {
        tx.delete::<SessionRow>(key);
    }
    let account = AccountRef {
        name: name.to_owned(),
        id: row.id,
    };
    let secret = hex::encode(random::<32>());
    let expires_unix_s = now_unix_s + SESSION_S;
    tx.put(
        &SecretHash::of(secret.as_bytes()),
        &SessionRow {
            account: account.clone(),
            epoch: row.epoch,
            created_unix_s: now_unix_s,
            seen_unix_s: now_unix_s,
            expires_unix_s,
        },
    );
    Ok(NewSession {
        secret,
        account,
        roles: row.grants.clone(),
        expires_unix_s,
    })
}

fn is_alive(session: &SessionRow, now_unix_s: u64) -> bool {
    now_unix_s < session.expires_unix_s && now_unix_s < session.seen_unix_s + IDLE_S
}

/// The account that a credential belongs to, as it is now.
fn account_of(tx: &mut Tx<'_>, account: &AccountRef) -> Result<Option<AccountRow>, CatalogError> {
    let row: Option<AccountRow> = tx.get(&account.name)?;
    Ok(row.filter(|row| row.id == account.id && !row.disabled))
}

impl Datacenter {
    /// Who calls with a bearer token, that of a session or another.
    pub fn caller_of_bearer(&self, token: &str, from: &str) -> Result<Caller, ManageError> {
        match token.strip_prefix(PREFIX) {
            Some(secret) => self.caller_of_session(secret, from),
            None => self.caller_of_token(token, from),
        }
    }

    /// Who calls with the secret of a session.
    pub fn caller_of_session(&self, secret: &str, from: &str) -> Result<Caller, ManageError> {
        let ended = || ManageError::Unauthenticated {
            message: "the session has ended".into(),
            help: "log in again: `splice login`".into(),
        };
        let hash = SecretHash::of(secret.as_bytes());
        let now = self.now_unix_s();
        let found = self.catalog().read(|tx| {
            let Some(session) = tx.get::<SessionRow>(&hash)? else {
                return Ok(None);
            };
            let row = account_of(tx, &session.account)?;
            let row = row.filter(|row| row.epoch == session.epoch && is_alive(&session, now));
            Ok::<_, CatalogError>(row.map(|row| (session, row)))
        })?;
        let (session, row) = found.ok_or_else(ended)?;
        if now >= session.seen_unix_s + SEEN_EVERY_S {
            // A crash may lose it: the session ends a little earlier then.
            self.catalog().transact_relaxed(|tx| {
                if let Some(mut session) = tx.get::<SessionRow>(&hash)? {
                    session.seen_unix_s = now;
                    tx.put(&hash, &session);
                }
                Ok::<_, CatalogError>(())
            })?;
        }
        Ok(Caller {
            who: session.account.name.clone(),
            account: Some(session.account),
            from: from.to_owned(),
            credential: Credential::Session(hash),
            expires_unix_s: Some(session.expires_unix_s),
            grants: row.grants,
            limit: None,
        })
    }

    fn caller_of_token(&self, token: &str, from: &str) -> Result<Caller, ManageError> {
        let unknown = || {
            ManageError::Unauthenticated {
            message: "the token is not known here, or has expired".into(),
            help: "log in: `splice login`; on the datacenter's machine, cli.toml in the data folder has a token".into(),
        }
        };
        // What an attacker could time depends on the hash, which he cannot choose.
        let hash = SecretHash::of(token.as_bytes());
        let now = self.now_unix_s();
        let found = self.catalog().read(|tx| {
            let Some(row) = tx.get::<ApiTokenRow>(&hash)? else {
                return Ok(None);
            };
            let account = match &row.owner {
                TokenOwner::Root | TokenOwner::Realm => None,
                TokenOwner::Account(account) => match account_of(tx, account)? {
                    Some(found) => Some(found),
                    None => return Ok(None),
                },
            };
            Ok::<_, CatalogError>(Some((row, account)))
        })?;
        let (row, account) = found.ok_or_else(unknown)?;
        if row.expires_unix_s.is_some_and(|end| now >= end) {
            return Err(unknown());
        }
        let caller = |who: String, account, grants, limit| Caller {
            who,
            account,
            from: from.to_owned(),
            credential: match row.owner {
                TokenOwner::Root => Credential::Root,
                TokenOwner::Realm | TokenOwner::Account(_) => Credential::Token,
            },
            expires_unix_s: row.expires_unix_s,
            grants,
            limit,
        };
        let grants = row.grants.clone();
        Ok(match (&row.owner, account) {
            (TokenOwner::Account(owner), Some(account)) => caller(
                format!("{} (token {})", owner.name, row.name),
                Some(owner.clone()),
                account.grants,
                Some(grants),
            ),
            (TokenOwner::Realm, _) => caller(format!("token {}", row.name), None, grants, None),
            _ => caller("root".into(), None, grants, None),
        })
    }

    /// Ends the session that a call came with.
    pub fn log_out(&self, caller: &Caller) -> Result<(), ManageError> {
        let Credential::Session(hash) = caller.credential else {
            return Err(ManageError::conflict(
                "there is no session to end",
                "a token is ended with `splice token delete`",
            ));
        };
        let facts = caller.facts("log_out", self.now_unix_s());
        self.catalog().transact(|tx| {
            tx.delete::<SessionRow>(&hash);
            crate::catalog::audit::append(tx, &facts)?;
            Ok(())
        })
    }
}

impl Caller {
    /// As the API shows it.
    pub fn show(&self) -> Session {
        Session {
            user: self.account.as_ref().map(|account| account.name.clone()),
            who: self.who.clone(),
            roles: self.roles(),
            expires_unix_s: self.expires_unix_s,
            csrf: None,
            token: None,
        }
    }
}
