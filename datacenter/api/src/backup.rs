//! Backups of the datacenter itself.

use serde::{Deserialize, Serialize};

/// Starts a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// Absolute path of a folder on the datacenter's host, which is made if it does not exist; or `s3://BUCKET/FOLDER`, by the settings in its `secrets/s3.toml`.
    pub folder: String,
    /// Read what is there already and compare it with what was written.
    #[serde(default)]
    pub verify: bool,
}

/// What a backup made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct BackupResult {
    /// The folder.
    pub folder: String,
    /// 1 for the first backup in that folder, then counting.
    pub number: u64,
    /// Packs in the backup.
    pub packs: u64,
    /// Packs that were copied now; the others were there.
    pub packs_copied: u64,
    /// Bytes in the backup.
    pub bytes: u64,
    /// Bytes of packs that were copied now.
    pub copied_bytes: u64,
    /// Bytes of the catalog.
    pub catalog_bytes: u64,
    /// Pieces of packs that are damaged in the backup, because they were in the store.
    pub damaged: u64,
    /// What an operator should know.
    pub warnings: Vec<String>,
}
