//! The chunk store as a thing to look after: what it holds, collections of garbage, scrubs, and the life of versions in it.

use serde::{Deserialize, Serialize};

/// The chunk store in detail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct StoreReport {
    /// Pack files.
    pub packs: u64,
    /// Chunks in them, as often as they lie there.
    pub chunks: u64,
    /// Manifest nodes in them.
    pub nodes: u64,
    /// Plain bytes of all of them.
    pub plain_bytes: u64,
    /// Bytes of the pack files.
    pub stored_bytes: u64,
    /// Bytes free on the store's disk.
    pub free_bytes: u64,
    /// Names that are known to be damaged and are not repaired.
    pub damaged: u64,
    /// Why nothing is collected any more, if that is so.
    pub halted: Option<String>,
    /// Deleted versions that can still be had back.
    pub deleted_versions: u64,
    /// What the last collection did, if one is remembered.
    pub last_collection: Option<CollectResult>,
    /// When it ended, unix seconds.
    pub collected_unix_s: Option<u64>,
    /// The scrub that goes on all the time.
    pub scrub: ScrubStatus,
}

/// Where the scrub is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ScrubStatus {
    /// Passes that ended.
    pub passes: u64,
    /// When the present pass began, unix seconds.
    pub began_unix_s: Option<u64>,
    /// When the last pass ended, unix seconds.
    pub ended_unix_s: Option<u64>,
    /// Number of the pack that is next.
    pub next_pack: u64,
    /// Its pace in bytes a second; 0: only when it is asked for.
    pub rate_bytes_per_s: u64,
    /// When it works, `HH:MM-HH:MM` by the wall clock of `utc_offset`; none: always.
    pub hours: Option<String>,
    /// How far that wall clock is ahead of UTC.
    pub utc_offset: String,
}

/// Starts a collection of garbage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CollectRequest {
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Go on although a condemned chunk was read: somebody has looked into it.
    #[serde(default)]
    pub resume: bool,
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct CollectResult {
    /// Whether it was a rehearsal.
    pub dry_run: bool,
    /// Versions that images' retentions deleted before it.
    pub retired_versions: u64,
    /// Deleted versions that were given up for good before it.
    pub purged_versions: u64,
    /// Trees of versions that were walked: disks, kernels, initial RAM disks.
    pub roots: u64,
    /// Distinct chunks that are reachable.
    pub reachable_chunks: u64,
    /// Distinct manifest nodes that are reachable.
    pub reachable_nodes: u64,
    /// Records condemned now: nothing refers to them, they stay readable for the grace.
    pub condemned: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Records condemned earlier, whose grace is not over.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Condemned records that are reachable again.
    pub revived: u64,
    /// Records erased.
    pub erased: u64,
    /// Their bytes.
    pub erased_bytes: u64,
    /// Unreachable records that a running publish keeps.
    pub held: u64,
    /// Reachable records that are damaged.
    pub damaged: u64,
    /// Packs that had nothing wanted in them and were removed.
    pub packs_removed: u64,
    /// Packs that were rewritten.
    pub packs_rewritten: u64,
    /// Packs left alone because of damage.
    pub packs_damaged: u64,
    /// Bytes copied.
    pub moved_bytes: u64,
    /// Bytes given back to the disk.
    pub freed_bytes: u64,
    /// Bytes in the packs that are left which nothing refers to.
    pub dead_bytes: u64,
    /// Whether rewriting ended early because the disk is full.
    pub out_of_space: bool,
}

/// Starts a scrub of everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ScrubRequest {
    /// Its pace in bytes a second; none: as fast as the disk gives.
    #[serde(default)]
    pub rate_bytes_per_s: Option<u64>,
}

/// What a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ScrubResult {
    /// Packs read.
    pub packs: u64,
    /// Sound records in them.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Records that this scrub found damaged.
    pub found: u64,
    /// Damaged names that are not repaired: branches that hold them are asked, and publishing the same disk again stores them anew.
    pub damaged: u64,
    /// The first of them, at most 100, with the versions that show them.
    pub items: Vec<DamagedName>,
    /// Versions that show any of them, `IMAGE@NUMBER`.
    pub versions: Vec<String>,
}

/// A chunk or manifest node that is damaged at the datacenter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct DamagedName {
    /// `chunk` or `manifest node`.
    pub kind: String,
    /// Its name.
    pub id: String,
    /// Versions that show it, `IMAGE@NUMBER`.
    pub versions: Vec<String>,
}

/// A deleted version that can still be had back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeletedVersion {
    /// Its id.
    pub id: String,
    /// The image.
    pub image: String,
    /// Its number.
    pub number: u32,
    /// When it was deleted, unix seconds.
    pub deleted_unix_s: u64,
    /// Until when it can be had back, unix seconds.
    pub purge_unix_s: u64,
    /// Whether its image's retention did it.
    pub by_retention: bool,
}

/// Deleted versions of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeletedVersionList {
    /// In the order of their numbers.
    pub versions: Vec<DeletedVersion>,
}

/// Forbids the deletion of a version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// Why, for people.
    #[serde(default)]
    pub note: Option<String>,
}

/// That a version must not be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionPin {
    /// Since when, unix seconds.
    pub pinned_unix_s: u64,
    /// Why.
    pub note: Option<String>,
}

/// Which versions of an image are kept: those that either rule keeps, and all that are in use. Without rules all are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// So many of the newest.
    #[serde(default)]
    pub last: Option<u32>,
    /// Those published less than so many seconds ago.
    #[serde(default)]
    pub newer_s: Option<u64>,
}

/// Writes a version's disk to a file of the datacenter's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// Absolute path of the file, which must not exist.
    pub path: String,
    /// `raw` (sparse) or `qcow2`.
    pub format: String,
}

/// A version as a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ExportResult {
    /// The version, `IMAGE@NUMBER`.
    pub version: String,
    /// The file.
    pub path: String,
    /// Its format.
    pub format: String,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Bytes of it that are not zero.
    pub data_bytes: u64,
    /// Length of the file; a sparse one takes less.
    pub file_bytes: u64,
    /// Bytes that were read back from the file and compared.
    pub verified_bytes: u64,
}
