//! Boot profiles: recorded boots of a version become one signed annotation of it, told to the branches that run it.
//!
//! The last [`BOOTS_MAX`] recordings of each version are kept, at most [`PER_BRANCH_MAX`] of one branch. Those of a branch are merged first,
//! so that each branch has one voice, and where two or more have told, two must agree on each chunk: no single branch
//! decides what others fetch. A new profile is signed when the boots reported have doubled since the last, or after a day.
//! Invariant: a profile's counter only goes up, and every place that it names shows a chunk of the version's disk.

use std::collections::BTreeMap;

use dedup::manifest::ManifestError;
use dedup::{BranchId, Manifest, VersionId};
use dedup_protocol::profile::{
    self, BOOTS_MAX, BootProfile, BootScore, Entries, PlacesError, RECORDING_BYTES_MAX,
};
use dedup_protocol::records::VersionRecord;
use dedup_protocol::trust::Signed;
use dedup_protocol::wire::{BootRecorded, ProfileAvailable};
use dedup_store::StoreError;

use datacenter_api::{BootOutcome, BootReport, ProfileSummary};

use crate::VersionError;
use crate::assign::POOLS_MAX;
use crate::catalog::rows::{
    BootProfileRow, BootRecordingRow, BootRow, NumberKey, PoolRow, RecordingKey, SignedProfileRow,
    VersionNumberRow,
};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::images::StoreNodes;
use crate::problem::describe;
use crate::restored;
use crate::update::Pair;

/// Most of the recordings kept that come from one branch.
pub const PER_BRANCH_MAX: usize = 3;

/// So many branches must have seen a chunk touched, where as many have told of boots at all.
const BRANCHES_THAT_AGREE: usize = 2;

/// A branch tells of boots of one version this often at most, in seconds; its own pace is slower.
const RECORD_EVERY_S: u64 = 2;

/// A profile is made anew after this, in seconds, if boots were reported since.
const REMAKE_AFTER_S: u64 = 24 * 3600;

/// How many last boots are remembered.
const LAST_MAX: usize = 8;

/// Why a recording was not taken, or a profile not answered.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not found, or not for this branch.
    #[error("version {0} is not readable by this branch")]
    NotReadable(VersionId),
    /// Nothing was touched.
    #[error("a recorded boot without a single touch")]
    Empty,
    /// More than a recording may have.
    #[error("a recorded boot of {bytes} bytes, at most {RECORDING_BYTES_MAX}")]
    TooLong {
        /// Its encoded bytes.
        bytes: usize,
    },
    /// It names what the disk does not have.
    #[error("recorded boot: {0}")]
    Place(String),
    /// The branch told of another boot just now.
    #[error("a boot of version {version} was told less than {RECORD_EVERY_S} s ago; tell it later")]
    TooSoon {
        /// The version.
        version: VersionId,
    },
    /// The catalog.
    #[error("the catalog does not answer")]
    Catalog(#[source] VersionError),
    /// The manifest could not be read.
    #[error("the version's manifest cannot be read")]
    Manifest(#[source] ManifestError<StoreError>),
}

impl From<CatalogError> for RecordError {
    fn from(error: CatalogError) -> Self {
        Self::Catalog(error.into())
    }
}

impl From<VersionError> for RecordError {
    fn from(error: VersionError) -> Self {
        Self::Catalog(error)
    }
}

impl From<PlacesError<StoreError>> for RecordError {
    fn from(error: PlacesError<StoreError>) -> Self {
        match error {
            PlacesError::Manifest(error) => Self::Manifest(error),
            PlacesError::NoChunk(_) => Self::Place(error.to_string()),
        }
    }
}

fn report(score: &BootScore) -> BootReport {
    let BootScore {
        profile,
        boot_ms,
        touched_chunks,
        touched_bytes,
        covered_bytes,
        waited_bytes,
        prefetched_bytes,
        wasted_bytes,
    } = *score;
    BootReport {
        profile,
        boot_ms,
        touched_chunks,
        touched_bytes,
        covered_bytes,
        waited_bytes,
        prefetched_bytes,
        wasted_bytes,
    }
}

/// What people are shown.
pub(crate) fn summary(row: &BootProfileRow) -> ProfileSummary {
    ProfileSummary {
        counter: row.counter,
        made_unix_s: row.made_unix_s,
        boots: row.boots,
        boots_reported: row.reported,
        carried_from: row.carried_from.map(|id| id.to_string()),
        chunks: row.chunks,
        bytes: row.bytes,
        last_boots: row
            .last
            .iter()
            .map(|boot| BootOutcome {
                branch: boot.branch.to_string(),
                reported_unix_s: boot.reported_unix_s,
                boot: report(&boot.score),
            })
            .collect(),
    }
}

/// Which recording makes room for one more of `branch`: its own oldest if it has its share, else the oldest of whoever has most.
/// `kept` is in the order of numbers.
fn makes_room(kept: &[(u64, BranchId)], branch: BranchId) -> Option<u64> {
    let of = |branch: BranchId| kept.iter().filter(move |(_, b)| *b == branch);
    let oldest = |branch| of(branch).next().map(|(number, _)| *number);
    if of(branch).count() >= PER_BRANCH_MAX {
        return oldest(branch);
    }
    if kept.len() < BOOTS_MAX {
        return None;
    }
    let most = kept.iter().map(|(_, b)| of(*b).count()).max()?;
    let whose = kept.iter().find(|(_, b)| of(*b).count() == most)?.1;
    oldest(whose)
}

/// Whether a new profile is worth every branch's bytes.
fn is_due(row: &BootProfileRow, now_unix_s: u64) -> bool {
    let first = row.counter == 0 || row.carried_from.is_some();
    let doubled = row.reported >= row.made_of.saturating_mul(2);
    let old = now_unix_s >= row.made_unix_s.saturating_add(REMAKE_AFTER_S);
    row.reported > row.made_of && (first || doubled || old)
}

fn recordings(
    tx: &mut Tx<'_>,
    version: VersionId,
) -> Result<Vec<(RecordingKey, BootRecordingRow)>, CatalogError> {
    tx.list(version.as_bytes(), None, BOOTS_MAX)
}

/// A profile that this process, or one before it, signed.
fn open_profile(version: VersionId, row: &SignedProfileRow) -> Result<BootProfile, VersionError> {
    Signed::<BootProfile>::from_bytes(&row.signed)
        .and_then(|signed| signed.open_own())
        .map_err(|source| VersionError::Record { version, source })
}

impl Datacenter {
    fn signed_row(
        &self,
        version: VersionId,
    ) -> Result<(BootProfileRow, Option<SignedProfileRow>), CatalogError> {
        self.catalog().read(|tx| {
            let head: Option<BootProfileRow> = tx.get(&version)?;
            Ok((head.unwrap_or_default(), tx.get(&version)?))
        })
    }

    fn record_of(&self, version: VersionId) -> Result<VersionRecord, RecordError> {
        let signed = self
            .version(version)?
            .ok_or(RecordError::NotReadable(version))?;
        signed.open_own().map_err(|source| {
            let error = VersionError::Record { version, source };
            RecordError::Catalog(error)
        })
    }

    fn disk_of(&self, version: VersionId) -> Result<Manifest, RecordError> {
        let record = self.record_of(version)?;
        Manifest::load(&StoreNodes(self), record.disk.root).map_err(RecordError::Manifest)
    }

    fn require_readable(&self, branch: BranchId, version: VersionId) -> Result<(), RecordError> {
        if self.may_read(branch, version)? {
            Ok(())
        } else {
            Err(RecordError::NotReadable(version))
        }
    }

    /// Takes what one boot touched. Answers which profile of the version is the newest now.
    pub fn record_boot(
        &self,
        branch: BranchId,
        recorded: BootRecorded,
    ) -> Result<ProfileAvailable, RecordError> {
        let BootRecorded {
            version,
            score,
            entries,
        } = recorded;
        let _use = self.use_version(version);
        self.require_readable(branch, version)?;
        let bytes = entries.encode().len();
        if entries.is_empty() {
            return Err(RecordError::Empty);
        }
        if bytes > RECORDING_BYTES_MAX {
            return Err(RecordError::TooLong { bytes });
        }
        let _turn = self.profiling();
        let now = self.now_unix_s();
        let kept = self.catalog().read(|tx| recordings(tx, version))?;
        let too_soon = |(_, row): &(RecordingKey, BootRecordingRow)| {
            // One from the future was told before the clock was set back.
            let soon = row.reported_unix_s..row.reported_unix_s.saturating_add(RECORD_EVERY_S);
            row.branch == branch && soon.contains(&now)
        };
        if kept.iter().any(too_soon) {
            return Err(RecordError::TooSoon { version });
        }
        let disk = self.disk_of(version)?;
        profile::measure(&StoreNodes(self), &disk, &entries)?;
        let owners: Vec<_> = kept.iter().map(|(k, r)| (k.number, r.branch)).collect();
        let row = BootRecordingRow {
            branch,
            reported_unix_s: now,
            entries,
        };
        let head = self.catalog().transact(|tx| {
            let mut head: BootProfileRow = tx.get(&version)?.unwrap_or_default();
            if let Some(number) = makes_room(&owners, branch) {
                tx.delete::<BootRecordingRow>(&RecordingKey { version, number });
            }
            let number = head.reported;
            tx.put(&RecordingKey { version, number }, &row);
            head.reported += 1;
            head.last.insert(
                0,
                BootRow {
                    branch,
                    reported_unix_s: now,
                    score,
                },
            );
            head.last.truncate(LAST_MAX);
            tx.put(&version, &head);
            Ok::<_, CatalogError>(head)
        })?;
        let mut counter = head.counter;
        if is_due(&head, now) {
            counter = self.remake(version, &disk)?;
        }
        Ok(ProfileAvailable { version, counter })
    }

    /// Makes a profile of the recordings that are kept. The caller holds the turn.
    fn remake(&self, version: VersionId, disk: &Manifest) -> Result<u64, RecordError> {
        let kept = self.catalog().read(|tx| recordings(tx, version))?;
        let told = kept.len();
        let mut by_branch: BTreeMap<BranchId, Vec<Entries>> = BTreeMap::new();
        for (_, row) in kept {
            by_branch.entry(row.branch).or_default().push(row.entries);
        }
        let mut boots: Vec<Entries> = by_branch
            .values()
            .map(|boots| profile::merge(boots, 1))
            .collect();
        let least = boots.len().min(BRANCHES_THAT_AGREE);
        if told < 2 {
            // The first boot may have been cut short: what was carried over counts as another, until there are two.
            let (head, row) = self.signed_row(version)?;
            if let Some(row) = row.filter(|_| head.carried_from.is_some()) {
                boots.push(open_profile(version, &row)?.entries);
            }
        }
        let merged = match &mut boots[..] {
            // How many of its boots touched each place is known already.
            [one] => std::mem::take(one),
            _ => profile::merge(&boots, least),
        };
        // What an entry's `seen` is to be compared with: boots where one branch told of all, else voices.
        let made_of = if boots.len() == 1 { told } else { boots.len() } as u32;
        let counter = self.sign_profile(version, disk, made_of, None, merged)?;
        self.carry_to_next(version);
        Ok(counter)
    }

    fn sign_profile(
        &self,
        version: VersionId,
        disk: &Manifest,
        boots: u32,
        carried_from: Option<VersionId>,
        entries: Entries,
    ) -> Result<u64, RecordError> {
        let (chunks, bytes) = profile::measure(&StoreNodes(self), disk, &entries)?;
        let made_unix_s = self.now_unix_s();
        let (counter, signed_bytes) = self.catalog().transact(|tx| {
            let mut head: BootProfileRow = tx.get(&version)?.unwrap_or_default();
            head.counter = head.counter.max(restored::counter_floor(tx)?) + 1;
            head.made_unix_s = made_unix_s;
            head.boots = boots;
            head.carried_from = carried_from;
            (head.chunks, head.bytes) = (chunks, bytes);
            head.made_of = head.reported;
            let profile = BootProfile {
                realm: self.realm(),
                version,
                counter: head.counter,
                made_unix_s,
                boots,
                carried_from,
                entries: entries.clone(),
            };
            let signed = self.publisher().sign(&profile).to_bytes();
            let signed_bytes = signed.len();
            tx.put(&version, &SignedProfileRow { signed });
            tx.put(&version, &head);
            Ok::<_, CatalogError>((head.counter, signed_bytes))
        })?;
        tracing::info!(%version, counter, boots, chunks, bytes, signed_bytes, carried = carried_from.is_some(), "boot profile");
        self.announce_assignments();
        Ok(counter)
    }

    /// The signed profile of a version, if it is newer than `have`; else which is the newest.
    pub fn profile_newer_than(
        &self,
        branch: BranchId,
        version: VersionId,
        have: u64,
    ) -> Result<Result<Vec<u8>, ProfileAvailable>, RecordError> {
        self.require_readable(branch, version)?;
        let found = self.catalog().read(|tx| {
            let head: Option<BootProfileRow> = tx.get(&version)?;
            let counter = head.map_or(0, |head| head.counter);
            if counter <= have {
                return Ok(Err(ProfileAvailable { version, counter }));
            }
            let row: Option<SignedProfileRow> = tx.get(&version)?;
            Ok::<_, CatalogError>(match row {
                Some(row) => Ok(row.signed),
                None => Err(ProfileAvailable {
                    version,
                    counter: 0,
                }),
            })
        })?;
        Ok(found)
    }

    /// The newest profiles of all versions that a branch's pools run or pin.
    pub fn profiles_of(&self, branch: BranchId) -> Result<Vec<ProfileAvailable>, CatalogError> {
        self.catalog().read(|tx| {
            let pools = tx.list::<PoolRow>(branch.as_bytes(), None, POOLS_MAX)?;
            let mut versions: Vec<VersionId> = pools
                .iter()
                .flat_map(|(_, row)| row.pinned.iter().chain([&row.version]))
                .copied()
                .collect();
            versions.sort_unstable_by_key(|id| id.0);
            versions.dedup();
            let mut profiles = Vec::new();
            for version in versions {
                if let Some(head) = tx.get::<BootProfileRow>(&version)?
                    && head.counter > 0
                {
                    let counter = head.counter;
                    profiles.push(ProfileAvailable { version, counter });
                }
            }
            Ok(profiles)
        })
    }

    /// Gives `version` the profile of its parent, as far as its disk has the same chunks, or others that took their place, or others
    /// at the same bytes, unless boots of its own are known. That it cannot is logged: the version boots without.
    pub fn carry_profile(&self, parent: VersionId, version: VersionId) {
        let _turn = self.profiling();
        self.carry_in_turn(parent, version);
    }

    fn carry_in_turn(&self, parent: VersionId, version: VersionId) {
        if let Err(error) = self.try_carry(parent, version) {
            tracing::warn!(%parent, %version, error = describe(&error), "the boot profile was not carried over");
        }
    }

    fn try_carry(&self, parent: VersionId, version: VersionId) -> Result<(), RecordError> {
        let _uses = [parent, version].map(|id| self.use_version(id));
        let (_, row) = self.signed_row(parent)?;
        let (own, _) = self.signed_row(version)?;
        let Some(row) = row.filter(|_| own.reported == 0) else {
            return Ok(());
        };
        let profile = open_profile(parent, &row)?;
        let (from, to) = (self.disk_of(parent)?, self.disk_of(version)?);
        let kin = self.kin(Pair { parent, version }, &from, &to)?;
        let carried = profile::carry(&StoreNodes(self), &from, &to, &profile.entries, &kin);
        let carried = carried.map_err(RecordError::Manifest)?;
        if carried.is_empty() {
            return Ok(());
        }
        self.sign_profile(version, &to, profile.boots, Some(parent), carried)?;
        Ok(())
    }

    /// The version after `version` in its image gets what was learned now, if it knows no better.
    fn carry_to_next(&self, version: VersionId) {
        let next = self.record_of(version).and_then(|record| {
            let key = NumberKey {
                image: record.image,
                number: record.number.saturating_add(1),
            };
            Ok(self.catalog().read(|tx| tx.get::<VersionNumberRow>(&key))?)
        });
        match next {
            Ok(Some(row)) => self.carry_in_turn(version, row.version),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%version, error = describe(&error), "the next version was not looked up");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_branch_has_more_than_its_share() {
        let branch = |n: u8| BranchId([n; 16]);
        let mut kept: Vec<(u64, BranchId)> = Vec::new();
        let mut next = 0;
        let mut push = |kept: &mut Vec<(u64, BranchId)>, n: u8| {
            if let Some(number) = makes_room(kept, branch(n)) {
                kept.retain(|(k, _)| *k != number);
            }
            kept.push((next, branch(n)));
            next += 1;
            assert!(kept.len() <= BOOTS_MAX);
        };
        for _ in 0..20 {
            push(&mut kept, 1);
        }
        assert_eq!(kept.len(), PER_BRANCH_MAX);
        assert_eq!(kept[0].0, 17, "the newest stay");
        for n in [2, 2, 2, 3, 3, 4, 5, 6, 7] {
            push(&mut kept, n);
        }
        let of = |n| kept.iter().filter(|(_, b)| *b == branch(n)).count();
        assert_eq!([4, 5, 6, 7].map(of), [1; 4]);
        assert!([1, 2, 3].map(of).iter().all(|count| *count >= 1));
    }

    #[test]
    fn profiles_are_made_at_first_when_boots_doubled_and_once_a_day() {
        let row = |counter, reported, made_of| BootProfileRow {
            counter,
            reported,
            made_of,
            made_unix_s: 1_000,
            ..BootProfileRow::default()
        };
        assert!(is_due(&row(0, 1, 0), 1_000));
        assert!(is_due(&row(1, 2, 1), 1_000));
        assert!(!is_due(&row(2, 3, 2), 1_000));
        assert!(is_due(&row(2, 3, 2), 1_000 + REMAKE_AFTER_S));
        assert!(!is_due(&row(2, 2, 2), 1_000 + REMAKE_AFTER_S));
        assert!(is_due(&row(3, 4, 2), 1_000));
        let carried = BootProfileRow {
            carried_from: Some(VersionId([1; 32])),
            ..row(1, 1, 0)
        };
        assert!(is_due(&carried, 1_000));
    }
}
