//! Boot profiles: which places of a version's disk a boot touches, in the order in which it does.
//!
//! A branch records one boot as [`Entries`]; the datacenter merges the recordings of many boots ([`merge`]), signs the outcome as a
//! [`BootProfile`] and tells branches of it. A version never changes, so what is learned of it later is this record of its own,
//! bound to the version's id, with a counter that only goes up. [`carry`] makes the first profile of a version out of its
//! parent's.
//!
//! Invariant: an [`Entries`] value is ordered by time, names no place twice, and is bounded. A profile is a hint: a wrong one costs
//! bytes on the line and can neither change what a guest reads nor make it wait for ever.

mod codec;
mod merge;
mod places;
#[cfg(test)]
mod tests;

use dedup::{RealmId, VersionId};
use serde::{Deserialize, Serialize};

use crate::trust::{Endorsement, Record, Signed, Trust, TrustAnchor, TrustError};

pub use codec::EntriesError;
pub use merge::merge;
pub use places::{Kin, PlacesError, carry, measure};

/// Most entries of a profile or recording: 1 GiB of average chunks. A desktop's boot was measured at 415 MB; who reads more than a
/// GiB copies a disk.
pub const ENTRIES_MAX: usize = 65_536;

/// Longest encoded recording, in bytes: at two to three bytes an entry some 45,000 of them, and a request frame of the datacenter
/// (128 KiB) holds it.
pub const RECORDING_BYTES_MAX: usize = 120 << 10;

/// Latest time of an entry, in milliseconds: a boot is recorded for ten minutes at most, and clocks of merged boots are stretched.
pub const AT_MS_MAX: u32 = 3_600_000;

/// Most boots that one profile is made of.
pub const BOOTS_MAX: usize = 8;

/// An extent of the version's disk: what it shows is the chunk meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Leaf index.
    pub leaf: u32,
    /// Extent in the leaf.
    pub extent: u16,
}

/// One chunk that boots touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where the disk shows it.
    pub place: Place,
    /// When it is touched first, in milliseconds since the machine's start.
    pub at_ms: u32,
    /// In how many of the merged boots; 1 in a recording.
    pub seen: u16,
}

/// Entries in the order of their times; those of one time in disk order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries(Vec<Entry>);

impl Entries {
    /// Orders `entries`. Of a place that is named twice the earlier entry stays; beyond [`ENTRIES_MAX`] the earliest stay.
    pub fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_unstable_by_key(|e| (e.place, e.at_ms, std::cmp::Reverse(e.seen)));
        entries.dedup_by_key(|e| e.place);
        for entry in &mut entries {
            entry.at_ms = entry.at_ms.min(AT_MS_MAX);
            entry.seen = entry.seen.max(1);
        }
        entries.sort_unstable_by_key(|e| (e.at_ms, e.place));
        entries.truncate(ENTRIES_MAX);
        Self(entries)
    }

    /// Shortened to what encodes into `bytes_max` bytes: the earliest entries stay.
    pub fn within(mut self, bytes_max: usize) -> Self {
        let fits = codec::entries_within(&self, bytes_max);
        self.0.truncate(fits);
        self
    }

    /// The entries.
    pub fn as_slice(&self) -> &[Entry] {
        &self.0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Entries {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.encode())
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: serde_bytes::ByteBuf = serde_bytes::deserialize(deserializer)?;
        Self::decode(&bytes).map_err(serde::de::Error::custom)
    }
}

/// How one boot went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootScore {
    /// Counter of the profile that was followed; 0 for none.
    pub profile: u64,
    /// From the machine's start to the last first touch, in milliseconds.
    pub boot_ms: u64,
    /// Chunks of the disk that the boot touched.
    pub touched_chunks: u64,
    /// Their bytes.
    pub touched_bytes: u64,
    /// Bytes of them that the profile names and that were here before the guest asked.
    pub covered_bytes: u64,
    /// Bytes of them that were not here when the guest asked.
    pub waited_bytes: u64,
    /// Bytes that the profile names, that were missing at the start and are here now.
    pub prefetched_bytes: u64,
    /// Bytes of those that the boot did not touch.
    pub wasted_bytes: u64,
}

/// What is known of how a version boots: an annotation of it, signed by a publisher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootProfile {
    /// The realm.
    pub realm: RealmId,
    /// The version.
    pub version: VersionId,
    /// Counts up with every profile of this version; a branch takes only a higher one than it has.
    pub counter: u64,
    /// When it was made, unix seconds.
    pub made_unix_s: u64,
    /// How many boots it is made of: what [`Entry::seen`] is to be compared with.
    pub boots: u32,
    /// The version whose profile was carried over, while no boot of this version was recorded.
    pub carried_from: Option<VersionId>,
    /// What boots touch.
    pub entries: Entries,
}

impl Record for BootProfile {
    const NAME: &'static str = "boot profile";

    fn realm(&self) -> RealmId {
        self.realm
    }
}

/// Why a profile that came was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileRefused {
    /// Not signed by a publisher that this realm endorses, or malformed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It is another version's.
    #[error("the boot profile is of version {got}, not of {asked}")]
    Version {
        /// Whose it is.
        got: VersionId,
        /// Whose was asked for.
        asked: VersionId,
    },
    /// What is here is as new or newer.
    #[error("boot profile {got} of version {version} is not newer than {have}")]
    Stale {
        /// The version.
        version: VersionId,
        /// Its counter.
        got: u64,
        /// The counter of the one that is here.
        have: u64,
    },
}

/// Takes a profile that the datacenter sent for `asked`, if it is signed, of that version and newer than the one with counter
/// `have` (0: none).
pub fn accept(
    bytes: &[u8],
    asked: VersionId,
    have: u64,
    anchor: &TrustAnchor,
    endorsements: &[Endorsement],
    now_unix_s: u64,
) -> Result<(Signed<BootProfile>, BootProfile), ProfileRefused> {
    let signed = Signed::<BootProfile>::from_bytes(bytes)?;
    let profile = signed.open(anchor, endorsements, Trust::New { now_unix_s })?;
    if profile.version != asked {
        return Err(ProfileRefused::Version {
            got: profile.version,
            asked,
        });
    }
    if profile.counter <= have {
        return Err(ProfileRefused::Stale {
            version: asked,
            got: profile.counter,
            have,
        });
    }
    Ok((signed, profile))
}
