//! Tokens for programs. Invariant: only the hash of a token is kept; one never gives more than whoever made it had when it was made, nor more than its account
//! has when it is used; each ends, but for the local root credential.

use datacenter_api::{ApiToken, ApiTokenRequest, NewApiToken};

use super::Caller;
use super::accounts::GRANTS_MAX;
use super::rights::{Permission, Place, include};
use crate::catalog::Catalog;
use crate::catalog::CatalogError;
use crate::catalog::people::{ApiTokenRow, SessionRow, SetupCodeRow, TokenOwner};
use crate::catalog::rows::SecretHash;
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use crate::realm::random;

const PREFIX: &str = "splice-api-1.";
/// The longest that a token may be asked for, in seconds: a year.
const VALIDITY_S_MAX: u64 = 366 * 86_400;
/// Most tokens in all.
const TOKENS_MAX: usize = 10_000;
/// Bytes of its hash that name a token.
const ID_BYTES: usize = 8;

/// Makes a token's text: 256 random bits, so that a plain SHA-256 is enough to keep it.
pub fn new_api_token() -> String {
    format!("{PREFIX}{}", hex::encode(random::<32>()))
}

/// Makes `token` the local root credential, and ends all tokens, sessions and one-time codes before it; only its hash is kept.
pub fn replace_api_tokens(
    catalog: &Catalog,
    name: &str,
    token: &str,
    now_unix_s: u64,
) -> Result<(), CatalogError> {
    catalog.transact(|tx| {
        for (key, _) in tx.list::<ApiTokenRow>(&[], None, usize::MAX / 2)? {
            tx.delete::<ApiTokenRow>(&key);
        }
        for (key, _) in tx.list::<SessionRow>(&[], None, usize::MAX / 2)? {
            tx.delete::<SessionRow>(&key);
        }
        for (key, _) in tx.list::<SetupCodeRow>(&[], None, usize::MAX / 2)? {
            tx.delete::<SetupCodeRow>(&key);
        }
        let hash = SecretHash::of(token.as_bytes());
        tx.put(&hash, &ApiTokenRow::root(name, now_unix_s));
        Ok(())
    })
}

fn show(hash: &SecretHash, row: &ApiTokenRow) -> ApiToken {
    ApiToken {
        id: hex::encode(&hash.0[..ID_BYTES]),
        name: row.name.clone(),
        user: match &row.owner {
            TokenOwner::Root | TokenOwner::Realm => None,
            TokenOwner::Account(account) => Some(account.name.clone()),
        },
        roles: row.grants.clone(),
        created_unix_s: row.created_unix_s,
        expires_unix_s: row.expires_unix_s,
    }
}

/// Whether a caller may see and end a token: its own, and all of them who administers the realm.
fn is_for(caller: &Caller, row: &ApiTokenRow) -> bool {
    let owns = match (&row.owner, &caller.account) {
        (TokenOwner::Account(owner), Some(account)) => owner == account,
        _ => false,
    };
    owns || caller.may(Permission::Administer, &Place::REALM)
}

impl Datacenter {
    /// The tokens that a caller may end.
    pub fn tokens(&self, caller: &Caller) -> Result<Vec<ApiToken>, CatalogError> {
        self.catalog().read(|tx| {
            let rows = tx.list::<ApiTokenRow>(&[], None, TOKENS_MAX + 1)?;
            let rows = rows.iter().filter(|(_, row)| is_for(caller, row));
            Ok(rows.map(|(hash, row)| show(hash, row)).collect())
        })
    }

    /// Makes a token.
    pub fn create_token(
        &self,
        caller: &Caller,
        request: &ApiTokenRequest,
    ) -> Result<NewApiToken, ManageError> {
        datacenter_api::check_name("a token", &request.name)?;
        if request.expires_s == 0 || request.expires_s > VALIDITY_S_MAX {
            return Err(ManageError::invalid(format!(
                "a token cannot hold for {} seconds; between 1 second and 366 days are possible",
                request.expires_s
            )));
        }
        if request.roles.is_empty() || request.roles.len() > GRANTS_MAX {
            return Err(ManageError::invalid(format!(
                "a token has between 1 and {GRANTS_MAX} roles"
            )));
        }
        let own = caller.roles();
        if let Some(more) = request.roles.iter().find(|role| !include(&own, role)) {
            return Err(ManageError::Forbidden {
                message: format!("{} does not have the role {more}", caller.who),
            });
        }
        let now = self.now_unix_s();
        let row = ApiTokenRow {
            name: request.name.clone(),
            created_unix_s: now,
            owner: match &caller.account {
                Some(account) => TokenOwner::Account(account.clone()),
                None => TokenOwner::Realm,
            },
            expires_unix_s: Some(now + request.expires_s),
            grants: request.roles.clone(),
        };
        let secret = new_api_token();
        let hash = SecretHash::of(secret.as_bytes());
        self.catalog().transact(|tx| {
            let mut kept = 0;
            for (key, row) in tx.list::<ApiTokenRow>(&[], None, TOKENS_MAX + 1)? {
                if row.expires_unix_s.is_some_and(|end| now >= end) {
                    tx.delete::<ApiTokenRow>(&key);
                } else {
                    kept += 1;
                }
            }
            if kept >= TOKENS_MAX {
                return Err(ManageError::conflict(
                    format!("there are {TOKENS_MAX} tokens already"),
                    "end some: `splice token delete`",
                ));
            }
            tx.put(&hash, &row);
            Ok(())
        })?;
        Ok(NewApiToken {
            token: show(&hash, &row),
            secret,
        })
    }

    /// Ends a token. The local root credential is not ended so: `splice-datacenter reset-token` makes another.
    pub fn delete_token(&self, caller: &Caller, id: &str) -> Result<(), ManageError> {
        let missing = || ManageError::not_found("token", id, "`splice token list` shows them");
        let begin = hex::decode(id).map_err(|_| missing())?;
        if begin.len() != ID_BYTES {
            return Err(missing());
        }
        self.catalog().transact(|tx| {
            let found = tx.list::<ApiTokenRow>(&begin, None, 1)?;
            let found = found.into_iter().next();
            let (hash, row) = found
                .filter(|(_, row)| is_for(caller, row))
                .ok_or_else(missing)?;
            if row.owner == TokenOwner::Root {
                return Err(ManageError::conflict(
                    "this is the local root credential",
                    "`splice-datacenter reset-token` replaces it, and ends all others",
                ));
            }
            tx.delete::<ApiTokenRow>(&hash);
            Ok(())
        })
    }
}
