//! Branches: the sites, what they are to run, and what they report.

use serde::{Deserialize, Serialize};

use crate::policy::BranchPolicy;
use crate::readiness::Readiness;
use crate::volume::VolumeReport;

/// Where a branch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum BranchState {
    /// A join token exists, nobody has used one yet.
    Invited,
    /// It has a certificate.
    Joined,
    /// Its certificate is refused.
    Revoked,
}

/// What a branch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum BranchKind {
    /// A site with a branch server.
    #[default]
    Site,
    /// One user's machine, which desktops are checked out to.
    Laptop,
}

/// A site with a branch server, or a laptop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Branch {
    /// Its id, also in its certificate.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it is, for people.
    pub site: Option<String>,
    /// What it is.
    #[serde(default)]
    pub kind: BranchKind,
    /// Where it stands.
    pub state: BranchState,
    /// When it was first invited, unix seconds.
    pub created_unix_s: u64,
    /// When it joined.
    pub joined_unix_s: Option<u64>,
    /// When it was revoked.
    pub revoked_unix_s: Option<u64>,
    /// When its certificate ends.
    pub certificate_expires_unix_s: Option<u64>,
    /// Whether its link is up at this moment.
    pub online: bool,
    /// Where the link comes from, while it is up.
    pub remote_address: Option<String>,
    /// Its pools.
    pub pools: Vec<Pool>,
    /// Its caps and hours.
    #[serde(default)]
    pub policy: BranchPolicy,
    /// Counter of its current assignment; 0 before the first.
    pub assignment_counter: u64,
    /// That it follows an assignment which this datacenter does not remember, if so.
    #[serde(default)]
    pub ahead: Option<BranchAhead>,
    /// What it last reported about itself.
    pub status: Option<BranchStatus>,
}

/// A branch follows an assignment that its datacenter does not remember, because the datacenter was restored from a backup. It goes on
/// with it until somebody decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct BranchAhead {
    /// The assignment's counter.
    pub counter: u64,
    /// Pools that are to be assigned or removed: they run versions that are not here any more.
    pub lost_pools: Vec<String>,
}

/// Branches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BranchList {
    /// In the order of their names.
    pub branches: Vec<Branch>,
    /// Pass as `after` to have the next page.
    pub next: Option<String>,
}

/// Asks for a join token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// How long it may be used, in seconds (default one day, at most 30 days).
    #[serde(default)]
    pub expires_s: Option<u64>,
    /// Where the branch is, for people; kept if not given.
    #[serde(default)]
    pub site: Option<String>,
    /// Allow it for a branch that has joined already: the server that joins with it replaces the one that is there, whose
    /// certificate is revoked at that moment.
    #[serde(default)]
    pub replace: bool,
    /// It is a laptop: desktops can be checked out to it. Only of a branch that has not joined; what it is stays.
    #[serde(default)]
    pub laptop: bool,
}

/// A join token; it is shown once and cannot be had again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenResponse {
    /// The token, to be given to `splice-branch join`.
    pub token: String,
    /// The branch.
    pub branch: String,
    /// When it ends, unix seconds.
    pub expires_unix_s: u64,
}

impl std::fmt::Debug for TokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is a secret.
        write!(f, "TokenResponse(branch={})", self.branch)
    }
}

/// Which kind of machine runs a pool's desktops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MachineType {
    /// The branch chooses: splice-vmm where it can run the desktop, else QEMU.
    #[default]
    Auto,
    /// splice-vmm, or nothing.
    Splice,
    /// QEMU.
    Qemu,
}

impl MachineType {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Splice => "splice",
            Self::Qemu => "qemu",
        }
    }
}

impl std::str::FromStr for MachineType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Splice, Self::Qemu];
        let found = all.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("unknown machine type {text:?}; auto, splice or qemu"))
    }
}

/// How a pool's fresh desktops come to their log-in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StartMode {
    /// They boot.
    #[default]
    Boot,
    /// They go on from a desktop that has booted, where the branch can do that; else they boot.
    Resume,
}

impl StartMode {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Resume => "resume",
        }
    }
}

impl std::str::FromStr for StartMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Boot, Self::Resume];
        let found = all.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| format!("unknown start {text:?}; boot or resume"))
    }
}

/// What one pool at one branch runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pool {
    /// Its name, unique at the branch.
    pub name: String,
    /// The version that desktops started from now on boot, `IMAGE@NUMBER`.
    pub version: String,
    /// That version's id.
    pub version_id: String,
    /// Versions that are kept whole besides it, `IMAGE@NUMBER`.
    pub pinned: Vec<String>,
    /// Memory of a desktop in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs of a desktop.
    pub vcpus: u32,
    /// Whether the whole version is fetched ahead of use.
    pub prestage: bool,
    /// What runs its desktops.
    #[serde(default)]
    pub machine: MachineType,
    /// Whether its desktops have a TPM.
    #[serde(default)]
    pub tpm: bool,
    /// Size of the user volume that each of its desktops gets, in MiB; 0 for none.
    #[serde(default)]
    pub user_volume_mib: u32,
    /// Whether its desktops' systems begin anew at log-off, on the version that the pool runs then. Else they are kept.
    #[serde(default)]
    pub pooled: bool,
    /// How its fresh desktops come to their log-in.
    #[serde(default)]
    pub start: StartMode,
    /// The channel of the image's versions that it follows, if it follows one.
    #[serde(default)]
    pub channel: Option<String>,
}

/// The pools of a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolList {
    /// In the order of their names.
    pub pools: Vec<Pool>,
}

/// Sets what a pool runs. Fields left out keep what the pool has, or take the default for a new pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AssignRequest {
    /// `IMAGE` (the version that its channel is at, or without one the latest) or `IMAGE@NUMBER`.
    pub version: String,
    /// Versions to keep whole besides it.
    #[serde(default)]
    pub pinned: Option<Vec<String>>,
    /// Memory of a desktop in MiB (default 1024).
    #[serde(default)]
    pub memory_mib: Option<u32>,
    /// Virtual CPUs of a desktop (default 1).
    #[serde(default)]
    pub vcpus: Option<u32>,
    /// Whether the whole version is fetched ahead of use (default true).
    #[serde(default)]
    pub prestage: Option<bool>,
    /// What runs its desktops (default auto).
    #[serde(default)]
    pub machine: Option<MachineType>,
    /// Whether its desktops have a TPM (default false).
    #[serde(default)]
    pub tpm: Option<bool>,
    /// Size of the user volume that each of its desktops gets, in MiB; 0 for none (default 0). Desktops that have one keep theirs.
    #[serde(default)]
    pub user_volume_mib: Option<u32>,
    /// Whether its desktops' systems begin anew at log-off (default false). A desktop whose system was kept keeps it until it is reset.
    #[serde(default)]
    pub pooled: Option<bool>,
    /// How its fresh desktops come to their log-in (default boot). Resume needs machine type auto or splice, no TPM and no user volume.
    #[serde(default)]
    pub start: Option<StartMode>,
    /// The channel of the image's versions that it is to follow; empty for none. A pool that goes to another image follows none.
    #[serde(default)]
    pub channel: Option<String>,
}

/// What a branch says about itself. The same value travels over the link as JSON and stands in [`Branch::status`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct BranchStatus {
    /// The link, as the branch sees it.
    pub link: LinkReport,
    /// The cache.
    pub cache: CacheStatus,
    /// What is there of each version that is assigned or in use.
    pub versions: Vec<VersionResidency>,
    /// The desktops.
    pub desktops: Vec<DesktopStatus>,
    /// What came over the link since the branch server started.
    pub counters: TransferCounters,
    /// What it can do with the WAN cut; branch servers that are older do not tell.
    pub readiness: Option<Readiness>,
    /// Counter of the assignment that it follows, 0 before the first; branch servers that are older do not tell.
    pub assignment_counter: Option<u64>,
    /// Counter of the roster of people that it has, 0 before the first; branch servers that are older do not tell.
    pub roster_counter: Option<u64>,
    /// When this was written, unix seconds, by the branch's clock.
    pub reported_unix_s: u64,
    /// The branch server's software version.
    pub software: String,
    /// Who it is and what it follows. Told once a connection, for a datacenter that was restored from a backup; never kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub introduction: Option<BranchIntroduction>,
}

/// What a branch knows of itself that only its datacenter should have to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct BranchIntroduction {
    /// Its name.
    pub name: String,
    /// The assignment that it follows, as the datacenter signed it, in hexadecimal digits.
    pub assignment: Option<String>,
}

/// The link, as the branch sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct LinkReport {
    /// Whether it is up.
    pub connected: bool,
    /// Since when it is up or down, unix seconds.
    pub since_unix_s: Option<u64>,
    /// The datacenter's address.
    pub address: String,
    /// Round trip in milliseconds, while it is up.
    pub rtt_ms: Option<f64>,
}

/// A branch's cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct CacheStatus {
    /// Chunks held.
    pub chunks: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Bytes that may be held.
    pub capacity_bytes: u64,
    /// Reads answered from the cache since the branch server started.
    pub hits: u64,
    /// Reads that waited for the link.
    pub misses: u64,
    /// Chunks that were found damaged and have not been fetched again yet.
    pub quarantined: u64,
    /// Chunks that were found damaged since the branch server started, healed or not.
    pub quarantined_total: u64,
}

/// What a branch holds of one version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct VersionResidency {
    /// The version's id.
    pub version: String,
    /// Its image.
    pub image: String,
    /// Its number in the image.
    pub number: u32,
    /// Its chunks that are there.
    pub resident_chunks: u64,
    /// Its chunks in all.
    pub total_chunks: u64,
    /// Its bytes that are there.
    pub resident_bytes: u64,
    /// Its bytes in all, each chunk once.
    pub total_bytes: u64,
    /// Whether nothing of it is missing, manifest included.
    pub complete: bool,
}

/// A desktop at a branch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct DesktopStatus {
    /// Its id.
    pub id: String,
    /// Its random id, which its agent makes the machine's; branch servers that are older do not tell.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identity: String,
    /// Its pool.
    pub pool: String,
    /// Id of the version that it runs.
    pub version: String,
    /// What it is doing, in the branch's words: `running`, `waiting`, `stopped` …
    pub state: String,
    /// When it started, unix seconds.
    pub started_unix_s: u64,
    /// How its last boot went, once that has settled.
    pub boot: Option<BootReport>,
    /// What was seen of it since its machine started; branch servers that are older do not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signs: Option<DesktopSigns>,
    /// Its volumes; branch servers that are older do not tell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeReport>,
}

/// What was seen of a desktop since its machine started. Who is logged on is not told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct DesktopSigns {
    /// Its agent says that it has booted.
    pub booted: bool,
    /// Somebody is logged on, or has been.
    pub logged_in: bool,
    /// Its agent answers.
    pub agent: bool,
    /// It answers on the branch's network.
    pub network: bool,
}

/// How a desktop's boot went, and what the version's boot profile did for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct BootReport {
    /// Counter of the boot profile that was followed; 0 for none.
    pub profile: u64,
    /// From the machine's start to the last chunk that was read for the first time, in milliseconds.
    pub boot_ms: u64,
    /// Chunks of the disk that the boot read.
    pub touched_chunks: u64,
    /// Their bytes.
    pub touched_bytes: u64,
    /// Bytes of them that the profile names and that were here before the guest asked: the coverage.
    pub covered_bytes: u64,
    /// Bytes of them that were not here when the guest asked.
    pub waited_bytes: u64,
    /// Bytes that the profile names, that were missing at the start and came.
    pub prefetched_bytes: u64,
    /// Bytes of those that the boot did not read: the waste.
    pub wasted_bytes: u64,
}

impl BootReport {
    /// One line for people.
    pub fn line(&self) -> String {
        use crate::units::format_size;
        let percent = |part: u64, whole: u64| part * 100 / whole.max(1);
        let mut line = format!(
            "{} read in {:.1} s",
            format_size(self.touched_bytes),
            self.boot_ms as f64 / 1e3
        );
        if self.profile > 0 {
            line += &format!(
                "; profile {} covered {} %, {} fetched ahead, {} % of that for nothing",
                self.profile,
                percent(self.covered_bytes, self.touched_bytes),
                format_size(self.prefetched_bytes),
                percent(self.wasted_bytes, self.prefetched_bytes)
            );
        }
        line
    }
}

/// Times of many like things, in milliseconds. Each figure is at most 4 % above the true one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Latencies {
    /// How many.
    pub count: u64,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// Nine of ten took no longer.
    pub p90_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// None took longer.
    pub max_ms: f64,
}

/// What came over the link.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct TransferCounters {
    /// Chunks that a guest waited for.
    pub demand_chunks: u64,
    /// Milliseconds that guests waited for chunks, over all waits.
    pub demand_wait_ms: u64,
    /// Chunks fetched ahead.
    pub prefetch_chunks: u64,
    /// Bytes received, as they crossed the link.
    pub received_bytes: u64,
    /// How long guests waited for the chunks of one read.
    pub demand_wait: Latencies,
    /// How long requests for read-ahead and boots took.
    pub boot_fetch: Latencies,
    /// How long fill's requests took.
    pub fill_fetch: Latencies,
    /// Plain bytes of chunks that came by updates.
    pub update_bytes: u64,
    /// Bytes of those updates, as they crossed the link.
    pub update_packed_bytes: u64,
    /// Plain bytes of chunks that came any other way.
    pub plain_bytes: u64,
}
