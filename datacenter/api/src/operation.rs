//! Long work as a resource: it is started with 202, then looked at until it is done.

use serde::{Deserialize, Serialize};

use crate::backup::BackupResult;
use crate::image::UpdateSummary;
use crate::store::{CollectResult, ExportResult, ScrubResult};

/// What kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// A disk file becomes a version.
    Publish,
    /// A version's chunks are read back and hashed.
    Verify,
    /// What a version has and another lacks is encoded for branches.
    Update,
    /// What no version refers to is removed from the store.
    Collect,
    /// Everything in the store is read again.
    Scrub,
    /// A version becomes a disk file.
    Export,
    /// The datacenter itself is backed up.
    Backup,
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// At work.
    Running,
    /// Finished; `result` tells.
    Succeeded,
    /// Stopped; `error` tells.
    Failed,
}

/// What it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Opening (and perhaps converting) the file, looking for what boots.
    #[default]
    Open,
    /// Chunking and storing.
    Import,
    /// Reading back.
    Verify,
    /// Looking for what resembles what.
    Sketch,
    /// Encoding.
    Encode,
    /// Signing and making visible.
    Publish,
    /// Looking for what is reachable; counted in trees.
    Mark,
    /// Going through the store's index; counted in records.
    Sweep,
    /// Rewriting packs.
    Compact,
    /// Reading packs again.
    Scrub,
    /// Writing a disk file.
    Export,
    /// Copying packs.
    Copy,
    /// Nothing more to do.
    Done,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// Bytes of this phase that are done.
    pub done_bytes: u64,
    /// Bytes of this phase in all.
    pub total_bytes: u64,
    /// Chunks that the store did not have.
    pub new_chunks: u64,
    /// Chunks that it had.
    pub known_chunks: u64,
    /// Compressed bytes stored.
    pub stored_bytes: u64,
}

/// What a publish made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PublishResult {
    /// The version's id.
    pub version: String,
    /// The image.
    pub image: String,
    /// The version's number.
    pub number: u32,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Bytes of it that are not zero.
    pub data_bytes: u64,
    /// Chunks that the store did not have.
    pub new_chunks: u64,
    /// Chunks that were there already, from other versions or an interrupted publish.
    pub known_chunks: u64,
    /// Compressed bytes stored.
    pub stored_bytes: u64,
    /// Bytes read back and checked.
    pub verified_bytes: u64,
    /// Operating system found in the image.
    pub os: Option<String>,
    /// Path of the kernel found in the image; without one, desktops need firmware.
    pub kernel_path: Option<String>,
    /// Why no kernel was found, where that may surprise.
    pub boot_note: Option<String>,
}

/// A chunk or manifest node that does not read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DamagedItem {
    /// Its name.
    pub id: String,
    /// First place on the disk that shows it, in bytes.
    pub disk_offset: u64,
    /// Which tree: `disk`, `kernel` or `initrd`.
    pub tree: String,
    /// What is wrong.
    pub reason: String,
}

/// What reading a version back found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VerifyResult {
    /// The version, `IMAGE@NUMBER`.
    pub version: String,
    /// Distinct chunks read.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first damaged items, at most 100.
    pub damaged: Vec<DamagedItem>,
    /// How many are damaged in all.
    pub damaged_count: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OperationResult {
    /// Of a publish.
    Publish(PublishResult),
    /// Of a verify.
    Verify(VerifyResult),
    /// Of an update.
    Update(UpdateSummary),
    /// Of a collection.
    Collect(CollectResult),
    /// Of a scrub.
    Scrub(ScrubResult),
    /// Of an export.
    Export(ExportResult),
    /// Of a backup.
    Backup(BackupResult),
}

/// Long work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Counts up.
    pub id: u64,
    /// What kind.
    pub kind: OperationKind,
    /// What it works on, for people: an image, `IMAGE@NUMBER`, `store`, or a folder.
    pub subject: String,
    /// Where it stands.
    pub state: OperationState,
    /// How far it is.
    pub progress: Progress,
    /// When it started, unix seconds.
    pub started_unix_s: u64,
    /// When it ended.
    pub finished_unix_s: Option<u64>,
    /// What came of it, once it succeeded.
    pub result: Option<OperationResult>,
    /// Why it failed.
    pub error: Option<crate::problem::Problem>,
}

/// A page of operations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OperationList {
    /// Newest first.
    pub operations: Vec<Operation>,
    /// Pass as `before` to have the next page.
    pub next: Option<u64>,
}
