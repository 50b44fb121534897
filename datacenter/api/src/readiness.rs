//! Whether a branch's pools boot with the WAN cut, and for how long it goes on so: worked out at the branch, told in its report.
//!
//! This module owns how it is written and read. It decides nothing: a branch that cannot tell says `unknown`, one that is older says
//! nothing at all ([`crate::BranchStatus::readiness`] is none).

use serde::{Deserialize, Serialize};

use crate::units::format_size;

/// Hours of overlay space that are told at most: a year.
pub const OVERLAY_HOURS_MAX: u64 = 365 * 24;

/// Whether a desktop that is started with the WAN cut boots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OfflineBoot {
    /// All that its boots read is here.
    Yes,
    /// Something that its boots read is not here.
    No,
    /// Nobody knows yet what its boots read, and not all of the version is here.
    #[default]
    Unknown,
}

impl OfflineBoot {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// What a branch can do without its line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Readiness {
    /// In the order of the assignment.
    pub pools: Vec<PoolReadiness>,
    /// Until when fresh desktops start without the datacenter, unix seconds: the assignment's end and its offline grace.
    pub power_on_until_unix_s: Option<u64>,
    /// Until when the branch's certificate holds, unix seconds. A branch that comes back later must join anew.
    pub certificate_until_unix_s: Option<u64>,
    /// Bytes that are free for what desktops write.
    pub overlay_free_bytes: Option<u64>,
}

/// One pool's part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct PoolReadiness {
    /// The pool.
    pub pool: String,
    /// Id of the version that a fresh desktop would boot at this moment; empty if there is none.
    pub version: String,
    /// Its image.
    pub image: String,
    /// Its number in the image.
    pub number: u32,
    /// Whether it boots with the WAN cut.
    pub boots: OfflineBoot,
    /// Why, for people.
    pub reason: String,
    /// Chunks that are missing for a `yes`.
    pub missing_chunks: u64,
    /// Their bytes.
    pub missing_bytes: u64,
    /// Counter of the boot profile that it was judged by; 0 for none.
    pub profile: u64,
    /// Desktops of the pool that are up.
    pub desktops: u32,
    /// Bytes by which what one desktop of the pool has written and keeps grows in an hour, as measured here; none before that was seen for a while.
    pub written_bytes_per_hour: Option<u64>,
    /// Hours until what the branch's desktops write has filled the disk, with one desktop of this pool at least; none if not known.
    pub overlay_hours: Option<u64>,
}

impl PoolReadiness {
    /// The version for people: `IMAGE@NUMBER`.
    pub fn version_name(&self) -> String {
        if self.version.is_empty() {
            return "-".into();
        }
        format!("{}@{}", self.image, self.number)
    }

    /// What is missing, for people.
    pub fn missing(&self) -> String {
        match self.missing_chunks {
            0 => "-".into(),
            1 => format!("1 chunk, {}", format_size(self.missing_bytes)),
            n => format!("{n} chunks, {}", format_size(self.missing_bytes)),
        }
    }

    /// How long the overlays have room, for people.
    pub fn overlay_space(&self) -> String {
        match self.overlay_hours {
            None => "unknown".into(),
            Some(OVERLAY_HOURS_MAX..) => "a year".into(),
            Some(1) => "1 hour".into(),
            Some(hours) => format!("{hours} hours"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BranchStatus;

    #[test]
    fn it_reads_as_people_write() {
        let mut pool = PoolReadiness {
            pool: "office".into(),
            version: "ab".into(),
            image: "debian".into(),
            number: 3,
            missing_chunks: 1,
            missing_bytes: 16 << 10,
            ..PoolReadiness::default()
        };
        assert_eq!(pool.version_name(), "debian@3");
        assert_eq!(pool.missing(), "1 chunk, 16.0 KiB");
        assert_eq!(pool.overlay_space(), "unknown");
        (pool.missing_chunks, pool.missing_bytes) = (12, 3 << 20);
        pool.overlay_hours = Some(72);
        assert_eq!(pool.missing(), "12 chunks, 3.00 MiB");
        assert_eq!(pool.overlay_space(), "72 hours");
        pool.overlay_hours = Some(OVERLAY_HOURS_MAX);
        assert_eq!(pool.overlay_space(), "a year");
        pool = PoolReadiness::default();
        assert_eq!(
            (pool.version_name(), pool.missing()),
            ("-".into(), "-".into())
        );
    }

    /// A report of a program before readiness, and one with fields that nobody knows yet.
    #[test]
    fn older_and_newer_reports_are_read() {
        let old = r#"{"software":"0.1.0","reported_unix_s":7}"#;
        let old: BranchStatus = serde_json::from_str(old).expect("it was once written");
        assert_eq!((old.readiness, old.reported_unix_s), (None, 7));
        let new = r#"{"readiness":{"pools":[{"pool":"office","boots":"no","missing_chunks":2,"moon":"full"}],"tide":1}}"#;
        let new: BranchStatus = serde_json::from_str(new).expect("more is no error");
        let readiness = new.readiness.expect("it is there");
        assert_eq!(readiness.pools[0].boots, OfflineBoot::No);
        assert_eq!(readiness.pools[0].missing_chunks, 2);
        let words = serde_json::to_value(OfflineBoot::Unknown).expect("it is text");
        assert_eq!(words, OfflineBoot::Unknown.name());
    }
}
