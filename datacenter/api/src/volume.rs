//! Volumes of desktops: who may write them, how far they are, what is kept of them.
//!
//! A volume is a desktop's system volume or its user volume. It is named by its id, 32 hexadecimal digits; the API also takes any beginning of that
//! with at least 8 of them which no other volume has.

use serde::{Deserialize, Serialize};

/// Which of a desktop's volumes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// Its system volume, over a version. Its id is the desktop's.
    #[default]
    System,
    /// Its user volume.
    User,
}

/// A volume, as a branch tells of it. The datacenter knows a volume from the first report on that has it, and gives no lease of others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct VolumeReport {
    /// Its id.
    pub id: String,
    /// Which of the desktop's.
    pub kind: VolumeKind,
    /// Its size; of a system volume that of the version's disk.
    pub size_bytes: u64,
}

/// The lease that a branch holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeLease {
    /// The branch's name.
    pub branch: String,
    /// Which time it is that the volume was given to a branch, after a restore far above that.
    pub generation: u64,
    /// Number of its newest renewal.
    pub renewal: u64,
    /// When that was signed, unix seconds.
    pub issued_unix_s: u64,
    /// Until when it is to be renewed, unix seconds.
    pub expires_unix_s: u64,
    /// Until when the branch may run the desktop offline, unix seconds.
    pub ends_unix_s: u64,
}

/// A volume in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Volume {
    /// Its id.
    pub id: String,
    /// The desktop's name at its branch.
    pub desktop: String,
    /// Which of the desktop's.
    pub kind: VolumeKind,
    /// Its pool.
    pub pool: String,
    /// Name of the branch that may ask for it.
    pub home: String,
    /// Its size.
    pub size_bytes: u64,
    /// The version that it began with; user volumes have none.
    pub version: Option<String>,
    /// Who holds it.
    pub lease: Option<VolumeLease>,
    /// When the branch sealed the newest of what is here, unix seconds; none: nothing was written back.
    pub applied_unix_s: Option<u64>,
    /// Durable records that are not here, as its branch last said; none: it has not since the datacenter started or its link was last up.
    pub lag_records: Option<u64>,
    /// What the loss of the branch now would cost at most, in seconds of work; none while nobody holds it.
    pub rpo_s: Option<u64>,
    /// How many snapshots there are.
    pub snapshots: u64,
    /// How many forks wait for somebody to decide about them.
    pub forks: u64,
}

/// A page of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeList {
    /// In the order of their ids.
    pub volumes: Vec<Volume>,
    /// Pass as `after` to have the next page.
    pub next: Option<String>,
}

/// Why a snapshot was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SnapshotCause {
    /// By its pool's policy.
    Policy,
    /// The user logged off.
    LogOff,
    /// Somebody asked for it.
    Asked,
    /// Somebody asked for it, and the guest's file systems were frozen meanwhile.
    Frozen,
}

/// A volume's state at one moment, kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeSnapshot {
    /// Counts the volume's snapshots.
    pub number: u64,
    /// Why it was cut.
    pub cause: SnapshotCause,
    /// Under which generation what it shows was written.
    pub generation: u64,
    /// When the branch sealed what it shows, unix seconds; 0: what the volume began with.
    pub sealed_unix_s: u64,
    /// When it was cut, unix seconds.
    pub taken_unix_s: u64,
    /// Whether retention leaves it alone.
    pub pinned: bool,
}

/// Writes that arrived under a lease that had ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeFork {
    /// Its name: the generation, `-`, and what the branch drew.
    pub name: String,
    /// Under which generation it was written.
    pub generation: u64,
    /// Whether all of it is here. Until then it shows what its generation began with.
    pub whole: bool,
    /// When the branch sealed it, unix seconds; 0: it is on its way.
    pub sealed_unix_s: u64,
}

/// A lease that has ended and may still come back as a fork.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndedLease {
    /// Which generation.
    pub generation: u64,
    /// Whose it was.
    pub branch: String,
    /// Why it ended.
    pub reason: String,
    /// When, unix seconds.
    pub ended_unix_s: u64,
}

/// A volume with all that is kept of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeState {
    /// It in short.
    pub volume: Volume,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<VolumeSnapshot>,
    /// Its forks.
    pub forks: Vec<VolumeFork>,
    /// Leases that have ended and may still come back, oldest first.
    pub ended: Vec<EndedLease>,
}

/// Breaks a lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BreakLeaseRequest {
    /// Who does it and why; kept in the audit log.
    pub reason: String,
    /// Also while the branch may still run the desktop: what it writes until it hears of it becomes a fork.
    #[serde(default)]
    pub force: bool,
    /// The branch that may ask for the volume from now on; none: the same. If nobody holds the volume, that is all that is changed.
    #[serde(default)]
    pub home: Option<String>,
}

/// Makes a snapshot the state that a volume goes on behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RollBackRequest {
    /// Who does it and why; kept in the audit log.
    pub reason: String,
    /// Also while a branch may run the desktop: its lease is broken and the desktop stopped; all that it wrote becomes a fork.
    #[serde(default)]
    pub force: bool,
}

/// Says why something is done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ReasonRequest {
    /// Who does it and why; kept in the audit log.
    pub reason: String,
}

/// How a pool's volumes are leased, and which snapshots of them are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StatePolicy {
    /// From a lease's signature to its expiry, in seconds.
    pub lease_s: u64,
    /// How long a branch may run a desktop offline after that, in seconds.
    pub offline_grace_s: u64,
    /// At most one snapshot in so many seconds; 0: none by time.
    pub snapshot_every_s: u64,
    /// Whether one is cut when a user logs off.
    pub snapshot_at_log_off: bool,
    /// So many of the newest snapshots are kept,
    pub keep_newest: u32,
    /// the newest of each of so many hours,
    pub keep_hourly: u32,
    /// days (of UTC),
    pub keep_daily: u32,
    /// and weeks.
    pub keep_weekly: u32,
}

/// Changes a policy. Fields left out keep what the pool has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StatePolicyRequest {
    /// From a lease's signature to its expiry, in seconds.
    pub lease_s: Option<u64>,
    /// How long a branch may run a desktop offline after that, in seconds.
    pub offline_grace_s: Option<u64>,
    /// At most one snapshot in so many seconds; 0: none by time.
    pub snapshot_every_s: Option<u64>,
    /// Whether one is cut when a user logs off.
    pub snapshot_at_log_off: Option<bool>,
    /// So many of the newest snapshots are kept.
    pub keep_newest: Option<u32>,
    /// The newest of each of so many hours.
    pub keep_hourly: Option<u32>,
    /// The newest of each of so many days.
    pub keep_daily: Option<u32>,
    /// The newest of each of so many weeks.
    pub keep_weekly: Option<u32>,
}

/// Moves a desktop to another branch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// The desktop's name at the branch where it is.
    pub desktop: String,
    /// That branch.
    pub from: String,
    /// The branch that it comes to.
    pub to: String,
    /// Its pool there; none: one of the same name.
    #[serde(default)]
    pub pool: Option<String>,
    /// Who does it and why; kept in the audit log.
    pub reason: String,
    /// Without waiting for the branch where it is: its leases are broken, and what it has not sent becomes a fork.
    #[serde(default)]
    pub break_lease: bool,
}

/// Where a move stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MoveState {
    /// The former branch holds some of it.
    Leaving,
    /// The former branch has given all of it back, and the new one does not have all of it yet.
    Arriving,
    /// The new branch holds it.
    Done,
    /// It was taken back.
    Cancelled,
}

/// A volume that is moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveVolume {
    /// Its id.
    pub id: String,
    /// Which of the desktop's.
    pub kind: VolumeKind,
    /// The branch that holds it, if one does.
    pub held_by: Option<String>,
    /// Durable records there that are not here, as that branch last said.
    pub lag_records: Option<u64>,
}

/// A desktop that is moved, or was moved last, to another branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Move {
    /// Id of its first volume, which names the move.
    pub id: String,
    /// The desktop's name.
    pub desktop: String,
    /// The branch that it leaves.
    pub from: String,
    /// The branch that it comes to.
    pub to: String,
    /// Its pool there.
    pub pool: String,
    /// Where it stands.
    pub state: MoveState,
    /// What it waits for, or how it ended.
    pub says: String,
    /// What moves. A system that begins anew at log-off does not.
    pub volumes: Vec<MoveVolume>,
    /// When it was asked for, unix seconds.
    pub asked_unix_s: u64,
    /// When it ended, unix seconds.
    pub ended_unix_s: Option<u64>,
}

/// Moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveList {
    /// One for each desktop that was ever moved, in the order of their ids.
    pub moves: Vec<Move>,
}
