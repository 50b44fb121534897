//! People: accounts and their roles, groups, entitlements, sessions and tokens. Passwords and secrets travel in requests and answers of
//! the moment they are made, and never again.

use serde::{Deserialize, Serialize};

/// What somebody may do in a realm or a part of it. The order is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything.
    Admin,
    /// Images and their versions.
    ImageAuthor,
    /// Branches, pools, entitlements, the store, and what desktops have written.
    Operator,
    /// What people call for: snapshots and roll-backs of their desktops, locked accounts.
    HelpDesk,
    /// Reads everything, the audit log too, and changes nothing.
    Auditor,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Admin,
        Self::ImageAuthor,
        Self::Operator,
        Self::HelpDesk,
        Self::Auditor,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ImageAuthor => "image-author",
            Self::Operator => "operator",
            Self::HelpDesk => "help-desk",
            Self::Auditor => "auditor",
        }
    }
}

/// A role, and the part of the realm that it holds in: all of it without branch and pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// Only at this branch.
    #[serde(default)]
    pub branch: Option<String>,
    /// Only for pools of this name.
    #[serde(default)]
    pub pool: Option<String>,
}

impl std::fmt::Display for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.role.name())?;
        if let Some(branch) = &self.branch {
            write!(f, ":branch={branch}")?;
        }
        if let Some(pool) = &self.pool {
            write!(f, ":pool={pool}")?;
        }
        Ok(())
    }
}

/// Text that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a role; write it like admin, image-author, operator, help-desk or auditor, and for a part of the realm like operator:branch=new-york or help-desk:pool=office"
)]
pub struct GrantError(String);

impl std::str::FromStr for Grant {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        let bad = || GrantError(text.chars().take(160).collect());
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let role = Role::ALL.into_iter().find(|role| role.name() == name);
        let mut grant = Self {
            role: role.ok_or_else(bad)?,
            branch: None,
            pool: None,
        };
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(bad)?;
            let place = match key {
                "branch" => &mut grant.branch,
                "pool" => &mut grant.pool,
                _ => return Err(bad()),
            };
            crate::check_name("a branch or pool", value).map_err(|_| bad())?;
            if place.replace(value.to_owned()).is_some() {
                return Err(bad());
            }
        }
        Ok(grant)
    }
}

/// Where an account's password is proven. Other kinds follow with OIDC and LDAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AccountKind {
    /// Here.
    Local,
}

/// A person's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct User {
    /// The name that is typed at a log-in.
    pub name: String,
    /// The person's own name, for people.
    pub display: Option<String>,
    /// Where the password is proven.
    pub kind: AccountKind,
    /// When it was made, unix seconds.
    pub created_unix_s: u64,
    /// Whether it is refused.
    pub disabled: bool,
    /// Whether it has a password; without one nobody can log in.
    pub has_password: bool,
    /// Whether a second factor is asked for.
    pub has_totp: bool,
    /// For how many seconds it is locked, because of wrong passwords.
    pub locked_s: u64,
    /// Its roles.
    pub roles: Vec<Grant>,
    /// Its groups.
    pub groups: Vec<String>,
}

/// A page of accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UserList {
    /// In the order of their names.
    pub users: Vec<User>,
    /// Pass as `after` to have the next page.
    pub next: Option<String>,
}

/// Makes an account, or changes one; fields left out keep what it has.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UserRequest {
    /// The person's own name; an empty text removes it.
    #[serde(default)]
    pub display: Option<String>,
    /// A password.
    #[serde(default)]
    pub password: Option<String>,
    /// All of its roles from now on.
    #[serde(default)]
    pub roles: Option<Vec<Grant>>,
    /// Whether it is refused from now on.
    #[serde(default)]
    pub disabled: Option<bool>,
}

impl std::fmt::Debug for UserRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password is a secret.
        write!(f, "UserRequest(roles={:?})", self.roles)
    }
}

/// A group of people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Group {
    /// Its name.
    pub name: String,
    /// When it was made, unix seconds.
    pub created_unix_s: u64,
    /// Its members, in the order of their names.
    pub members: Vec<String>,
}

/// All groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupList {
    /// In the order of their names.
    pub groups: Vec<Group>,
}

/// Who is entitled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    /// A person.
    User,
    /// All members of a group.
    Group,
}

/// That somebody may use a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Entitlement {
    /// The pool's name.
    pub pool: String,
    /// Only at this branch; otherwise wherever a pool has that name.
    pub branch: Option<String>,
    /// Whether a person or a group.
    pub kind: SubjectKind,
    /// The person or group.
    pub subject: String,
    /// Since when, unix seconds.
    pub since_unix_s: u64,
}

/// All entitlements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EntitlementList {
    /// By pool, branch and subject.
    pub entitlements: Vec<Entitlement>,
}

/// Asks for a session.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LogInRequest {
    /// The account.
    pub name: String,
    /// Its password.
    pub password: String,
    /// The code of its second factor, where it has one.
    #[serde(default)]
    pub code: Option<String>,
    /// Answer with the session as a bearer token instead of a cookie, for programs.
    #[serde(default)]
    pub bearer: bool,
}

impl std::fmt::Debug for LogInRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogInRequest(name={:?})", self.name)
    }
}

/// Who calls, and until when.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Session {
    /// The account; none for a credential that belongs to nobody's.
    pub user: Option<String>,
    /// As the audit log calls it.
    pub who: String,
    /// What it may do: roles that a token lacks are left out.
    pub roles: Vec<Grant>,
    /// When it ends, unix seconds; none if it does not.
    pub expires_unix_s: Option<u64>,
    /// What requests that change something must send as `X-Splice-Csrf`, if the session came as a cookie.
    pub csrf: Option<String>,
    /// The session as a bearer token; only in the answer to a log-in that asked for it.
    pub token: Option<String>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Two of its fields are secrets.
        write!(f, "Session(who={:?}, roles={:?})", self.who, self.roles)
    }
}

/// Changes one's own password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PasswordRequest {
    /// The one before.
    pub old: String,
    /// The one from now on.
    pub new: String,
}

impl std::fmt::Debug for PasswordRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordRequest(…)")
    }
}

/// A second factor that is not asked for yet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TotpSetup {
    /// The secret, for typing.
    pub secret: String,
    /// The same for a picture.
    pub uri: String,
}

impl std::fmt::Debug for TotpSetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TotpSetup(…)")
    }
}

/// The password where a second factor is made or given up; a code of it where it is confirmed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ProofRequest {
    /// It.
    pub proof: String,
}

impl std::fmt::Debug for ProofRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProofRequest(…)")
    }
}

/// Makes an administrator with a one-time code.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SetupRequest {
    /// The code.
    pub code: String,
    /// The account's name.
    pub name: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for SetupRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SetupRequest(name={:?})", self.name)
    }
}

/// A one-time code.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetupCode {
    /// It.
    pub code: String,
    /// When it ends, unix seconds.
    pub expires_unix_s: u64,
}

impl std::fmt::Debug for SetupCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SetupCode(until={})", self.expires_unix_s)
    }
}
