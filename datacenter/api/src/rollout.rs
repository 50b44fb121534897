//! Channels of images, and rollouts: pools that go to a version branch by branch, in waves, and go back by themselves where its desktops fail.
//!
//! This module says how they are written. What a rollout does is decided by the datacenter.

use serde::{Deserialize, Serialize};

/// A named place among an image's versions that pools follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Channel {
    /// The image.
    pub image: String,
    /// Its name, unique in the image.
    pub name: String,
    /// The version that it is at, `IMAGE@NUMBER`.
    pub version: String,
    /// That version's id.
    pub version_id: String,
    /// Since when, unix seconds.
    pub since_unix_s: u64,
    /// Pools that follow it.
    pub pools: u64,
}

/// The channels of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChannelList {
    /// In the order of their names.
    pub channels: Vec<Channel>,
}

/// Puts a channel at a version. Pools that follow it stay where they are: a rollout moves them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ChannelRequest {
    /// Number of the image's version.
    pub number: u32,
}

/// Something that a desktop shows when its version is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HealthSign {
    /// It has booted: its agent says so, or its reads have settled.
    Boot,
    /// Somebody has logged on; its agent says so.
    LogIn,
    /// Its agent answers, or it answers on the branch's network.
    Alive,
}

impl HealthSign {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::LogIn => "log_in",
            Self::Alive => "alive",
        }
    }
}

impl std::str::FromStr for HealthSign {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Boot, Self::LogIn, Self::Alive];
        let found = all.into_iter().find(|sign| sign.name() == text);
        found.ok_or_else(|| format!("unknown sign of health {text:?}; boot, log_in or alive"))
    }
}

/// What each pool at each branch must show before its wave counts as good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct HealthGate {
    /// What desktops must show.
    pub needs: Vec<HealthSign>,
    /// How many desktops, at most 100; 0: time alone.
    pub desktops: u32,
    /// A desktop that is up for so long without having booted has failed, in seconds.
    pub boot_s: u64,
    /// A branch is watched at least so long, in seconds.
    pub soak_s: u64,
    /// Without enough desktops for so long the rollout pauses, in seconds.
    pub wait_s: u64,
    /// More failed desktops of a pool at a branch than this turn the rollout back, at most 99.
    pub failures: u32,
}

impl Default for HealthGate {
    fn default() -> Self {
        Self {
            needs: vec![HealthSign::Boot],
            desktops: 1,
            boot_s: 15 * 60,
            soak_s: 30 * 60,
            wait_s: 7 * 86_400,
            failures: 0,
        }
    }
}

/// Begins a rollout, or asks what it would cost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RolloutRequest {
    /// `IMAGE` (its latest version) or `IMAGE@NUMBER`.
    pub version: String,
    /// Pools that follow this channel of the image, which is put at the version once all is done. Without it, all pools of the image.
    #[serde(default)]
    pub channel: Option<String>,
    /// Only pools of this name.
    #[serde(default)]
    pub pool: Option<String>,
    /// Only these branches; none: all.
    #[serde(default)]
    pub branches: Vec<String>,
    /// Branches that go first, as a wave of their own.
    #[serde(default)]
    pub canary: Vec<String>,
    /// How much of the other branches each wave has reached when it is done, in percent, rising; the last is 100 (default 10, 50, 100).
    #[serde(default)]
    pub waves: Vec<u32>,
    /// What each branch must show.
    #[serde(default)]
    pub gate: HealthGate,
    /// Bits a second of branches' lines that have no cap; for the price alone.
    #[serde(default)]
    pub line_bits_per_s: Option<u64>,
    /// Why; it is kept in the history.
    #[serde(default)]
    pub reason: String,
}

/// What the bytes on a branch's line are reckoned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PriceBasis {
    /// The update that is encoded already: exact, for a branch that has the version before and nothing of the new one.
    Update,
    /// Each missing chunk as it is stored, compressed by itself: more than the update will be, which is not encoded yet.
    Stored,
    /// All of it is there.
    Nothing,
}

impl PriceBasis {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Stored => "stored",
            Self::Nothing => "nothing",
        }
    }
}

/// What a rollout costs one branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BranchPrice {
    /// The branch.
    pub branch: String,
    /// Its pools that move.
    pub pools: Vec<String>,
    /// Its wave, from 1.
    pub wave: u32,
    /// Bytes that it lacks, plain: what they take in its cache.
    pub missing_bytes: u64,
    /// Bytes that cross its line.
    pub line_bytes: u64,
    /// What those are reckoned from.
    pub basis: PriceBasis,
    /// Bits a second that they may take, if that is known.
    pub bits_per_s: Option<u64>,
    /// Seconds at that pace.
    pub transfer_s: Option<u64>,
    /// When it is all there if it begins now and keeps to its hours, unix seconds.
    pub ready_unix_s: Option<u64>,
    /// Desktops of those pools.
    pub desktops: u64,
    /// Those that are up now: they go on with what they have until they start again.
    pub running: u64,
    /// Bytes that its cache must give up for it; none if it has not told how full that is.
    pub evicted_bytes: Option<u64>,
}

/// What a rollout costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutPrice {
    /// The version, `IMAGE@NUMBER`.
    pub version: String,
    /// Branch by branch, in the order of waves and names.
    pub branches: Vec<BranchPrice>,
    /// Bytes that cross all lines.
    pub line_bytes: u64,
    /// Desktops of all those pools.
    pub desktops: u64,
    /// What whoever decides should know, one line each.
    pub notes: Vec<String>,
}

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// It goes on by itself.
    Running,
    /// It waits for a person. What it has moved is watched on.
    Paused,
    /// It is being turned back.
    RollingBack,
    /// It is done.
    Done,
    /// It is turned back.
    RolledBack,
}

impl RolloutState {
    /// Each of them.
    pub const ALL: [Self; 5] = [
        Self::Running,
        Self::Paused,
        Self::RollingBack,
        Self::Done,
        Self::RolledBack,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::RollingBack => "rolling_back",
            Self::Done => "done",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Whether nothing comes of it any more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::RolledBack)
    }
}

/// Where a pool at a branch stands in a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum RolloutPoolState {
    /// Its wave is not near.
    Waiting,
    /// The version is being fetched.
    Staging,
    /// All of it is there.
    Staged,
    /// Desktops boot it from their next start on.
    Flipped,
    /// Enough desktops were seen well.
    Healthy,
    /// It is as it was.
    Returned,
    /// Somebody assigned it by hand, or it is gone: the rollout lets it be.
    Left,
}

impl RolloutPoolState {
    /// Each of them.
    pub const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Staging,
        Self::Staged,
        Self::Flipped,
        Self::Healthy,
        Self::Returned,
        Self::Left,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Staging => "staging",
            Self::Staged => "staged",
            Self::Flipped => "flipped",
            Self::Healthy => "healthy",
            Self::Returned => "returned",
            Self::Left => "left",
        }
    }
}

/// A pool at a branch that a rollout moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutPool {
    /// The branch.
    pub branch: String,
    /// The pool.
    pub pool: String,
    /// Its wave, from 1.
    pub wave: u32,
    /// The version that it comes from, `IMAGE@NUMBER`.
    pub from: String,
    /// Where it stands.
    pub state: RolloutPoolState,
    /// Since when, unix seconds.
    pub since_unix_s: u64,
    /// Desktops that were seen well, 100 at most.
    pub healthy: u64,
    /// Desktops that failed, 100 at most.
    pub failed: Vec<String>,
}

/// Something that a rollout came by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutEntry {
    /// When, unix seconds.
    pub unix_s: u64,
    /// What.
    pub text: String,
}

/// A rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rollout {
    /// Counts up.
    pub id: u64,
    /// The version that it brings, `IMAGE@NUMBER`.
    pub version: String,
    /// That version's id.
    pub version_id: String,
    /// The channel that is at the version once it is done.
    pub channel: Option<String>,
    /// Where it stands.
    pub state: RolloutState,
    /// Why it stands there, where that is not plain.
    pub why: Option<String>,
    /// The wave at work, from 1.
    pub wave: u32,
    /// How many there are.
    pub waves: u32,
    /// What each branch must show.
    pub gate: HealthGate,
    /// Who began it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When it began, unix seconds.
    pub created_unix_s: u64,
    /// When it ended.
    pub ended_unix_s: Option<u64>,
    /// What it moves; in a list of rollouts left out.
    pub pools: Vec<RolloutPool>,
    /// How it came to where it stands, oldest first; in a list left out.
    pub history: Vec<RolloutEntry>,
}

/// A page of rollouts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutList {
    /// Newest first.
    pub rollouts: Vec<Rollout>,
    /// Pass as `before` to have the next page.
    pub next: Option<u64>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_short_request_has_the_usual_gate_and_unknown_fields_are_refused() {
        let request: RolloutRequest = serde_json::from_str(r#"{"version":"debian@2"}"#).unwrap();
        assert_eq!(request.gate, HealthGate::default());
        let gate = r#"{"version":"debian","gate":{"needs":["log_in","alive"],"desktops":3}}"#;
        let request: RolloutRequest = serde_json::from_str(gate).unwrap();
        assert_eq!(request.gate.needs, [HealthSign::LogIn, HealthSign::Alive]);
        assert_eq!((request.gate.desktops, request.gate.failures), (3, 0));
        assert!(serde_json::from_str::<RolloutRequest>(r#"{"version":"d","moon":1}"#).is_err());
    }

    #[test]
    fn names_are_those_of_json() {
        for sign in [HealthSign::Boot, HealthSign::LogIn, HealthSign::Alive] {
            assert_eq!(serde_json::to_value(sign).unwrap(), sign.name());
            assert_eq!(sign.name().parse::<HealthSign>(), Ok(sign));
        }
        for state in RolloutState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
        for state in RolloutPoolState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }
}
