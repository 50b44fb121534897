//! Whether a pool's desktops boot with the WAN cut: the version's boot profile, replayed against what is resident.
//!
//! ```text
//!   files (kernel, initrd, partition table) lack something ─► no
//!   else all of the version is here ────────────────────────► yes
//!   else a profile of this version's boots ─────────────────► yes, or no: what it names and is not here
//!   else (none yet, or one carried over from the parent) ───► unknown: what the version lacks
//! ```
//!
//! Pure: a [`BootSet`] is what boots read as far as anybody knows, [`judge`] weighs what is missing of it. [`proof`] keeps that up to date
//! with the cache, [`writes`] measures how fast overlays grow. Nothing here is on a guest's path. It is as good as the profile: what only
//! few boots touch is not in one, and a carried one names what is likely, so that it proves nothing.

pub mod proof;
mod report;
#[cfg(test)]
mod tests;
pub mod writes;

use std::collections::HashSet;

use datacenter_api::{OfflineBoot, readiness};
use dedup::ChunkId;
use dedup_protocol::profile::BootProfile;

use crate::content_map::{ContentMap, Piece};
use crate::fetch::queue::TreeHandle;
use crate::profile::plan;

/// What the branch itself reads of a disk without a kernel before it starts the machine, in bytes: boot sector, a GPT's header and its
/// 128 entries.
pub const FIRMWARE_BYTES: u64 = 34 * 512;

/// Chunks, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    /// One more.
    pub fn count(&mut self, bytes: u32) {
        self.chunks += 1;
        self.bytes += u64::from(bytes);
    }

    fn plus(self, other: Self) -> Self {
        Self {
            chunks: self.chunks + other.chunks,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// What is known of how a version boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// No boot profile is here.
    None,
    /// A profile with this counter, that was made of the parent's.
    Carried(u64),
    /// A profile with this counter, made of boots of this version.
    Recorded(u64),
}

impl Evidence {
    /// Of a profile.
    pub fn of(profile: Option<&BootProfile>) -> Self {
        match profile {
            None => Self::None,
            Some(profile) if profile.carried_from.is_some() => Self::Carried(profile.counter),
            Some(profile) => Self::Recorded(profile.counter),
        }
    }

    /// The profile's counter; 0 without one.
    pub fn counter(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Carried(counter) | Self::Recorded(counter) => counter,
        }
    }
}

/// What a boot reads, as far as is known: each chunk once, with its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSet {
    /// How the second list is known.
    pub evidence: Evidence,
    /// What is read before the machine starts: certain.
    pub files: Vec<(ChunkId, u32)>,
    /// What the profile names of the disk besides.
    pub disk: Vec<(ChunkId, u32)>,
}

impl BootSet {
    /// `files` are those of kernel and initrd that still have to be read from the cache, `firmware_bytes` how much the branch reads of
    /// the disk's beginning.
    pub fn new(
        files: &[TreeHandle],
        disk: &ContentMap,
        firmware_bytes: u64,
        profile: Option<&BootProfile>,
    ) -> Self {
        let mut named = HashSet::new();
        let mut once = |map: &ContentMap, index: usize| {
            let place = map.chunk(index);
            named.insert(place.id).then_some((place.id, place.len))
        };
        let mut first = Vec::new();
        for file in files {
            first.extend((0..file.map.chunks().len()).filter_map(|index| once(&file.map, index)));
        }
        first.extend(head(disk, firmware_bytes).filter_map(|index| once(disk, index)));
        let order = profile.map(|profile| plan::order(disk, &profile.entries));
        let order = order.iter().flat_map(|order| order.iter());
        Self {
            evidence: Evidence::of(profile),
            files: first,
            disk: order
                .filter_map(|index| once(disk, *index as usize))
                .collect(),
        }
    }
}

/// Numbers of the chunks that the first bytes of a disk show.
pub fn head(disk: &ContentMap, bytes: u64) -> impl Iterator<Item = usize> + '_ {
    let pieces = disk.pieces(0, bytes.min(disk.size_bytes()));
    pieces.filter_map(|piece| match piece {
        Piece::Zero { .. } => None,
        Piece::Chunk { index, .. } => Some(index),
    })
}

/// What is not resident.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lacks {
    /// Of [`BootSet::files`].
    pub files: Amount,
    /// Of [`BootSet::disk`].
    pub disk: Amount,
    /// Of the whole version.
    pub version: Amount,
}

/// A verdict: whether it boots, what is missing for a `yes`, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it boots.
    pub boots: OfflineBoot,
    /// What is missing for a `yes`.
    pub missing: Amount,
    /// For people.
    pub reason: String,
}

impl Verdict {
    /// It cannot be started at all.
    pub fn no(reason: impl Into<String>) -> Self {
        Self {
            boots: OfflineBoot::No,
            missing: Amount::default(),
            reason: reason.into(),
        }
    }
}

/// Weighs what is missing.
pub fn judge(evidence: Evidence, lacks: &Lacks) -> Verdict {
    let verdict = |boots, missing, reason: String| Verdict {
        boots,
        missing,
        reason,
    };
    let whole = lacks.version.chunks == 0;
    match evidence {
        _ if lacks.files.chunks > 0 => {
            let missing = match evidence {
                // Without a profile that is to be relied on, all of the version is what makes it sure.
                Evidence::None | Evidence::Carried(_) => lacks.version,
                Evidence::Recorded(_) => lacks.files.plus(lacks.disk),
            };
            let reason = "kernel, initrd or partition table is not here".into();
            verdict(OfflineBoot::No, missing, reason)
        }
        _ if whole => {
            let reason = "all of the version is here".into();
            verdict(OfflineBoot::Yes, Amount::default(), reason)
        }
        Evidence::Recorded(counter) if lacks.disk.chunks == 0 => {
            let reason = format!("all that boot profile {counter} names is here");
            verdict(OfflineBoot::Yes, Amount::default(), reason)
        }
        Evidence::Recorded(counter) => {
            let reason = format!("something that boot profile {counter} names is not here");
            verdict(OfflineBoot::No, lacks.disk, reason)
        }
        Evidence::Carried(counter) => {
            let reason = format!(
                "boot profile {counter} is its parent's, no boot of this version was recorded yet, and not all of it is here"
            );
            verdict(OfflineBoot::Unknown, lacks.version, reason)
        }
        Evidence::None => {
            let reason = "no boot of it was recorded yet, and not all of it is here".into();
            verdict(OfflineBoot::Unknown, lacks.version, reason)
        }
    }
}

/// What a pool's desktops take of the disk: how many are up, and how fast one takes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolWrites {
    /// Desktops that are up.
    pub desktops: u32,
    /// Bytes that one takes in an hour, if that was measured.
    pub bytes_per_hour: Option<u64>,
}

/// Hours until overlays have filled `free_bytes`, if the branch's desktops go on as they do and at least one of pool number `pool` is
/// up. They share the disk, so all of them count; none if the pool's rate, or that of others that are up, is not known.
pub fn overlay_hours(free_bytes: u64, pools: &[PoolWrites], pool: usize) -> Option<u64> {
    pools.get(pool)?.bytes_per_hour?;
    let mut bytes_per_hour: u64 = 0;
    for (number, writes) in pools.iter().enumerate() {
        let desktops = u64::from(writes.desktops.max(u32::from(number == pool)));
        if desktops > 0 {
            let rate = writes.bytes_per_hour?.saturating_mul(desktops);
            bytes_per_hour = bytes_per_hour.saturating_add(rate);
        }
    }
    let hours = free_bytes.checked_div(bytes_per_hour);
    let most = readiness::OVERLAY_HOURS_MAX;
    Some(hours.map_or(most, |hours| hours.min(most)))
}
