//! How the API says that something did not work.

use serde::{Deserialize, Serialize};

/// The kind of failure; it decides the HTTP status and the command line's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// 401: no token, or one that is not known.
    Unauthenticated,
    /// 403: known, but not allowed.
    Forbidden,
    /// 404: there is no such thing.
    NotFound,
    /// 409: it contradicts what is there.
    Conflict,
    /// 422: the request cannot be carried out as it is.
    Invalid,
    /// 413: the request is too large.
    TooLarge,
    /// 429: too many of these; try again later.
    TooMany,
    /// 500: a defect of the datacenter.
    Internal,
    /// 503: try again later.
    Unavailable,
    /// A kind that this program does not know.
    #[serde(other)]
    Unknown,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// The kind of failure.
    pub error: ProblemCode,
    /// What happened and where, one line.
    pub message: String,
    /// The way out, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}
