//! What a daemon tells of itself for somebody who is to help: named texts, without secrets.

use serde::{Deserialize, Serialize};

/// A daemon's part of a support bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SupportReport {
    /// The program.
    pub program: String,
    /// Its software version.
    pub software: String,
    /// When this was taken, unix seconds.
    pub taken_unix_s: u64,
    /// What it tells.
    pub files: Vec<SupportFile>,
}

/// A text of a support bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SupportFile {
    /// Its name as a file: `status.json`, `log.txt`.
    pub name: String,
    /// Its text.
    pub text: String,
}
