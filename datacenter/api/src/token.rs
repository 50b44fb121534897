//! Tokens for programs: what they may do, until when. Only their hash is kept.

use serde::{Deserialize, Serialize};

use crate::people::Grant;

/// Asks for a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ApiTokenRequest {
    /// What it is for, for people.
    pub name: String,
    /// What it may do; never more than whoever makes it.
    pub roles: Vec<Grant>,
    /// For how many seconds it holds.
    pub expires_s: u64,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiToken {
    /// Names it: the first 16 hexadecimal digits of its hash.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// The account that it belongs to; none if to nobody's.
    pub user: Option<String>,
    /// What it may do, as far as its account may.
    pub roles: Vec<Grant>,
    /// When it was made, unix seconds.
    pub created_unix_s: u64,
    /// When it ends, unix seconds; the local root credential does not.
    pub expires_unix_s: Option<u64>,
}

/// Tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiTokenList {
    /// In no order that means anything.
    pub tokens: Vec<ApiToken>,
}

/// A new token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewApiToken {
    /// What is kept of it.
    pub token: ApiToken,
    /// The secret. It is shown once.
    pub secret: String,
}

impl std::fmt::Debug for NewApiToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewApiToken({:?})", self.token)
    }
}
