//! Images and versions.

use serde::{Deserialize, Serialize};

use crate::branch::BootReport;
use crate::store::VersionPin;

/// Chunk sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChunkSizes {
    /// No chunk is shorter, except the last of a run of data.
    pub min: u32,
    /// The size aimed at.
    pub avg: u32,
    /// No chunk is longer.
    pub max: u32,
}

/// A named lineage of a golden disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Image {
    /// Its name.
    pub name: String,
    /// How its versions are chunked.
    pub chunk_sizes: ChunkSizes,
    /// When it was created, unix seconds.
    pub created_unix_s: u64,
    /// Number of its latest version; none before the first publish.
    pub latest: Option<u32>,
}

/// A page of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageList {
    /// In the order of their names.
    pub images: Vec<Image>,
    /// Pass as `after` to have the next page.
    pub next: Option<String>,
}

/// Creates an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateImage {
    /// Its name.
    pub name: String,
    /// Average chunk size in bytes (default 16384); the smallest is a quarter of it, the largest four times it.
    #[serde(default)]
    pub chunk_avg_bytes: Option<u64>,
}

/// How much a publish reads back before the version becomes visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum VerifyMode {
    /// The whole tree is read back and compared with the source, byte by byte.
    #[default]
    Full,
    /// Only the parts of the tree that the parent version does not have, every newly stored chunk among them.
    Changed,
}

/// Publishes a disk file of the datacenter's host as the image's next version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// Absolute path of the disk file on the datacenter's host.
    pub path: String,
    /// The file's format (`raw`, `qcow2`, …); by default it is told from its content.
    #[serde(default)]
    pub format: Option<String>,
    /// A line for people.
    #[serde(default)]
    pub note: Option<String>,
    /// Publish even if nothing changed since the parent.
    #[serde(default)]
    pub allow_same: bool,
    /// How much is read back.
    #[serde(default)]
    pub verify: VerifyMode,
}

/// One tree of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TreeSummary {
    /// Name of the root node.
    pub root: String,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// What a desktop of this version boots without firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BootSummary {
    /// The kernel's path inside the image.
    pub kernel_path: String,
    /// The kernel.
    pub kernel: TreeSummary,
    /// The initial RAM disk.
    pub initrd: Option<TreeSummary>,
    /// `root=…`.
    pub root_argument: String,
}

/// A published revision of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Version {
    /// Its id: the hash of its signed record.
    pub id: String,
    /// The image.
    pub image: String,
    /// 1 for the first, then counting.
    pub number: u32,
    /// The version that it follows.
    pub parent: Option<String>,
    /// When it was published, unix seconds.
    pub created_unix_s: u64,
    /// The disk.
    pub disk: TreeSummary,
    /// Bytes of the disk that are not zero.
    pub data_bytes: u64,
    /// How it was chunked.
    pub chunk_sizes: ChunkSizes,
    /// What it boots without firmware, where the image has that.
    pub boot: Option<BootSummary>,
    /// Operating system, as the image names it.
    pub os: Option<String>,
    /// What its publisher noted.
    pub note: Option<String>,
    /// Chunks that were new to the store when it was published.
    pub new_chunks: u64,
    /// Compressed bytes that it added to the store.
    pub stored_bytes: u64,
    /// What is known of how it boots; only told of one version, not in lists.
    #[serde(default)]
    pub profile: Option<ProfileSummary>,
    /// That it must not be deleted, if so.
    #[serde(default)]
    pub pinned: Option<VersionPin>,
}

/// A version's boot profile: what its boots touch, so that branches fetch it ahead of their guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProfileSummary {
    /// Counts up with every profile of this version; 0 while boots were reported but none is signed.
    pub counter: u64,
    /// When it was made, unix seconds.
    pub made_unix_s: u64,
    /// Boots that it is made of.
    pub boots: u32,
    /// Boots of this version that branches reported, in all.
    pub boots_reported: u64,
    /// Id of the version whose profile it was carried over from, while no boot of this version was reported.
    pub carried_from: Option<String>,
    /// Chunks that it names.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How the last boots went, newest first.
    pub last_boots: Vec<BootOutcome>,
}

/// How one boot of a version went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BootOutcome {
    /// Id of the branch.
    pub branch: String,
    /// When it was reported, unix seconds.
    pub reported_unix_s: u64,
    /// How it went.
    pub boot: BootReport,
}

/// A page of versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionList {
    /// Newest first.
    pub versions: Vec<Version>,
    /// Pass as `before` to have the next page.
    pub next: Option<u32>,
}

/// What a branch that has one version needs for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionDiff {
    /// The version that is there, `IMAGE@NUMBER`.
    pub from: String,
    /// The version that is wanted.
    pub to: String,
    /// Leaves of the disk that differ.
    pub changed_leaves: u64,
    /// Leaves of the wanted version's disk.
    pub total_leaves: u64,
    /// Distinct chunks of changed leaves that the other version's leaves at the same places do not have.
    pub new_chunks: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// Their bytes as the store compresses them: an upper bound of what crosses the link.
    pub stored_bytes: u64,
    /// The encoded update, if there is one or one is being made: what crosses the link to a branch that has `from` whole.
    #[serde(default)]
    pub update: Option<UpdateSummary>,
}

/// What a version's disk has and another's lacks, encoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateSummary {
    /// The version that a branch has, `IMAGE@NUMBER`.
    pub from: String,
    /// The version that it gets.
    pub to: String,
    /// Whether all of it is encoded.
    pub whole: bool,
    /// Batches in it.
    pub batches: u64,
    /// Batches that are encoded.
    pub encoded_batches: u64,
    /// Distinct chunks in it.
    pub new_chunks: u64,
    /// Their bytes.
    pub plain_bytes: u64,
    /// Bytes of the encoded batches.
    pub packed_bytes: u64,
}

/// Starts to encode an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// The version that branches have: `IMAGE` or `IMAGE@NUMBER`.
    pub from: String,
    /// The version that they are to get.
    pub to: String,
}
