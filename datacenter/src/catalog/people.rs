//! The rows of people, their rights, sessions and tokens. Secrets are kept as what cannot be turned back into them: passwords as verifiers, tokens,
//! sessions and codes as hashes; second factors, which must be had back, sealed ([`crate::identity`] knows under what).

use datacenter_api::{AccountKind, Grant, Role, SubjectKind};
use dedup::BranchId;
use dedup_protocol::people::strikes::Strikes;
use dedup_protocol::people::verifier::Verifier;
use serde::{Deserialize, Serialize};

use super::backend::Table;
use super::rows::{Row, RowKey, SecretHash};

/// A second factor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotpRow {
    /// Its secret, sealed.
    pub sealed: Vec<u8>,
    /// Whether it is asked for: a code of it was shown once.
    pub confirmed: bool,
    /// Step of the last code that was taken.
    pub last_step: u64,
}

/// A person's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRow {
    /// Random: an account that was made anew under the same name has another one, and nothing of the former.
    pub id: [u8; 16],
    /// Where its password is proven.
    pub kind: AccountKind,
    /// The person's own name.
    pub display: Option<String>,
    /// When it was made, unix seconds.
    pub created_unix_s: u64,
    /// Whether it is refused.
    pub disabled: bool,
    /// Counts up whenever all of its sessions end.
    pub epoch: u32,
    /// Its roles.
    pub grants: Vec<Grant>,
    /// Its groups.
    pub groups: Vec<String>,
    /// What proves its password, if it has one.
    pub verifier: Option<Verifier>,
    /// Its second factor.
    pub totp: Option<TotpRow>,
    /// Its wrong passwords.
    pub strikes: Strikes,
}

/// A group of people. Who is in it is told by the accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// When it was made, unix seconds.
    pub created_unix_s: u64,
}

/// Who may use which pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntitlementKey {
    /// The pool's name.
    pub pool: String,
    /// Only at this branch, by name.
    pub branch: Option<String>,
    /// A person or a group.
    pub kind: SubjectKind,
    /// The person or group.
    pub subject: String,
}

impl RowKey for EntitlementKey {
    /// Names have no zero byte, and a branch's is never empty.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.pool.as_bytes().to_vec();
        bytes.push(0);
        bytes.extend_from_slice(self.branch.as_deref().unwrap_or_default().as_bytes());
        bytes.push(0);
        bytes.push(match self.kind {
            SubjectKind::User => b'u',
            SubjectKind::Group => b'g',
        });
        bytes.extend_from_slice(self.subject.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = bytes.splitn(3, |byte| *byte == 0);
        let mut part = || String::decode(parts.next()?);
        let (pool, branch, subject) = (part()?, part()?, part()?);
        let kind = match subject.as_bytes().first()? {
            b'u' => SubjectKind::User,
            b'g' => SubjectKind::Group,
            _ => return None,
        };
        Some(Self {
            pool,
            branch: (!branch.is_empty()).then_some(branch),
            kind,
            subject: subject[1..].to_owned(),
        })
    }
}

/// That somebody may use a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntitlementRow {
    /// Since when, unix seconds.
    pub since_unix_s: u64,
}

/// An account as sessions and tokens name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRef {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: [u8; 16],
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Whose.
    pub account: AccountRef,
    /// The account's epoch when it began.
    pub epoch: u32,
    /// When it began, unix seconds.
    pub created_unix_s: u64,
    /// When it was last used, to the minute.
    pub seen_unix_s: u64,
    /// When it ends at the latest, unix seconds.
    pub expires_unix_s: u64,
}

/// Whose a token is. The tags are on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenOwner {
    /// The local root credential, in `cli.toml` of the data folder.
    Root,
    /// Made by that, and nobody's account.
    Realm,
    /// An account's: it may do what both may.
    Account(AccountRef),
}

/// A token of the management API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiTokenRow {
    /// What it is for, for people.
    pub name: String,
    /// When it was made, unix seconds.
    pub created_unix_s: u64,
    /// Whose it is.
    pub owner: TokenOwner,
    /// When it ends, unix seconds.
    pub expires_unix_s: Option<u64>,
    /// What it may do.
    pub grants: Vec<Grant>,
}

impl ApiTokenRow {
    /// The local root credential.
    pub fn root(name: &str, now_unix_s: u64) -> Self {
        Self {
            name: name.to_owned(),
            created_unix_s: now_unix_s,
            owner: TokenOwner::Root,
            expires_unix_s: None,
            grants: vec![Grant {
                role: Role::Admin,
                branch: None,
                pool: None,
            }],
        }
    }
}

impl Row for ApiTokenRow {
    const TABLE: Table = Table::ApiTokens;
    const FORMAT: u8 = 2;
    type Key = SecretHash;

    fn upgrade(format: u8, bytes: &[u8]) -> Option<Self> {
        // Before there were people, the only token was the local root credential.
        let (name, created) = match format {
            1 => postcard::from_bytes::<(String, u64)>(bytes).ok()?,
            _ => return None,
        };
        Some(Self::root(&name, created))
    }
}

/// A one-time code for an administrator's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupCodeRow {
    /// When it ends, unix seconds.
    pub expires_unix_s: u64,
}

/// The current signed roster of a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterRow {
    /// Its counter.
    pub counter: u64,
    /// BLAKE3 of its people: another one is signed when that changes.
    pub people: [u8; 32],
    /// `Signed<Roster>` as bytes.
    pub signed: Vec<u8>,
}

macro_rules! rows {
    ($($row:ty, $key:ty, $table:ident;)*) => {
        $(impl Row for $row {
            const TABLE: Table = Table::$table;
            type Key = $key;
        })*
    };
}

rows! {
    AccountRow, String, Accounts;
    GroupRow, String, Groups;
    EntitlementRow, EntitlementKey, Entitlements;
    SessionRow, SecretHash, Sessions;
    SetupCodeRow, SecretHash, SetupCodes;
    RosterRow, BranchId, Rosters;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::rows::{decode, encode};
    use super::*;

    fn hex_of<R: Row>(row: &R) -> String {
        hex::encode(encode(row))
    }

    fn plain(text: &str) -> String {
        text.replace(' ', "")
    }

    #[test]
    fn keys_are_read_as_they_were_written() {
        for branch in [None, Some("ny".to_owned())] {
            for kind in [SubjectKind::User, SubjectKind::Group] {
                let key = EntitlementKey {
                    pool: "office".into(),
                    branch: branch.clone(),
                    kind,
                    subject: "alice".into(),
                };
                assert_eq!(EntitlementKey::decode(&key.encode()), Some(key));
            }
        }
        for bad in [
            &b""[..],
            b"office",
            b"office\0",
            b"office\0\0",
            b"office\0\0xalice",
        ] {
            assert_eq!(EntitlementKey::decode(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn golden_rows_of_people() {
        let row = AccountRow {
            id: [0xaa; 16],
            kind: AccountKind::Local,
            display: Some("Al".into()),
            created_unix_s: 1,
            disabled: false,
            epoch: 2,
            grants: vec![Grant {
                role: Role::Operator,
                branch: Some("ny".into()),
                pool: None,
            }],
            groups: vec!["g".into()],
            verifier: Some(Verifier {
                memory_kib: 65_536,
                passes: 3,
                lanes: 1,
                salt: [1; 16],
                hash: [2; 32],
            }),
            totp: Some(TotpRow {
                sealed: vec![9, 9],
                confirmed: true,
                last_step: 300,
            }),
            strikes: Strikes {
                failures: 5,
                until_unix_s: 6,
            },
        };
        let (aa, salt, hash) = ("aa".repeat(16), "01".repeat(16), "02".repeat(32));
        let golden = format!(
            "01 {aa} 00 01 02416c 01 00 02 01 02 01026e79 00 01 0167 01 808004 03 01 {salt} {hash} 01 020909 01 ac02 05 06"
        );
        assert_eq!(hex_of(&row), plain(&golden));
        let account = AccountRef {
            name: "al".into(),
            id: [0xaa; 16],
        };
        let row = SessionRow {
            account: account.clone(),
            epoch: 2,
            created_unix_s: 3,
            seen_unix_s: 4,
            expires_unix_s: 5,
        };
        assert_eq!(hex_of(&row), plain(&format!("01 02616c {aa} 02 03 04 05")));
        assert_eq!(hex_of(&GroupRow { created_unix_s: 1 }), "0101");
        assert_eq!(hex_of(&EntitlementRow { since_unix_s: 1 }), "0101");
        assert_eq!(hex_of(&SetupCodeRow { expires_unix_s: 1 }), "0101");
        let row = RosterRow {
            counter: 300,
            people: [2; 32],
            signed: vec![7],
        };
        assert_eq!(hex_of(&row), plain(&format!("01 ac02 {hash} 0107")));
        let row = ApiTokenRow {
            owner: TokenOwner::Account(account),
            expires_unix_s: Some(300),
            ..ApiTokenRow::root("ci", 1)
        };
        let golden = format!("02 026369 01 02 02616c {aa} 01ac02 01 000000");
        assert_eq!(hex_of(&row), plain(&golden));
    }

    #[test]
    fn a_token_from_before_there_were_people_is_the_local_root_credential() {
        let bytes = hex::decode("0104696e697401").unwrap();
        let row: ApiTokenRow = decode(&bytes).unwrap();
        assert_eq!(row, ApiTokenRow::root("init", 1));
    }
}
