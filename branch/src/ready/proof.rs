//! What is missing of what boots read, kept up to date at little cost.
//!
//! Owns one [`BootSet`] per version, made anew only when its profile or its files change. Invariant: after [`Proof::weigh`] the verdict
//! is that of a whole look at the cache at some moment since the call began. While nothing leaves the cache only what was missing is looked
//! for again, and while nothing comes either, nothing is: a set has as many chunks as a profile at most, so a report costs a few
//! milliseconds a pool in the worst case.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use dedup::{ChunkId, VersionId};
use dedup_protocol::profile::BootProfile;
use dedup_protocol::records::Tree;

use super::{Amount, BootSet, Evidence, Lacks, Verdict, judge};
use crate::cache::{Cache, Churn};
use crate::fetch::queue::TreeHandle;

/// A list of chunks, and which of them are not resident.
#[derive(Debug, Default)]
pub struct Lacking {
    all: Vec<(ChunkId, u32)>,
    /// Indexes into `all`.
    missing: Vec<u32>,
    amount: Amount,
    seen: Option<Churn>,
}

impl Lacking {
    /// Of distinct chunks with their lengths.
    pub fn new(all: Vec<(ChunkId, u32)>) -> Self {
        Self {
            all,
            ..Self::default()
        }
    }

    /// Brings it up to date.
    pub fn update(&mut self, cache: &Cache) -> Amount {
        // Before the look, so that what changes during it is looked at again.
        let now = cache.churn();
        match self.seen {
            Some(seen) if seen == now => return self.amount,
            Some(seen) if seen.departures == now.departures => {}
            _ => self.missing = (0..self.all.len() as u32).collect(),
        }
        let all = &self.all;
        let mut amount = Amount::default();
        self.missing.retain(|index| {
            let (id, len) = all[*index as usize];
            let absent = !cache.contains(&id);
            if absent {
                amount.count(len);
            }
            absent
        });
        self.amount = amount;
        self.seen = Some(now);
        amount
    }
}

/// What one version's boots read.
struct Known {
    /// Those of its files that have to come from the cache.
    from_cache: Vec<Tree>,
    evidence: Evidence,
    files: Lacking,
    disk: Lacking,
}

/// What is to be weighed.
pub struct Weighed<'a> {
    /// The version's disk.
    pub disk: &'a TreeHandle,
    /// Kernel and initrd, as far as they have to be read from the cache.
    pub files: &'a [TreeHandle],
    /// How much the branch reads of the disk's beginning.
    pub firmware_bytes: u64,
    /// What is missing of the whole version.
    pub version: Amount,
}

/// See the module.
#[derive(Default)]
pub struct Proof {
    known: Mutex<HashMap<VersionId, Known>>,
}

impl Proof {
    fn known(&self) -> MutexGuard<'_, HashMap<VersionId, Known>> {
        self.known.lock().expect("no panic under this lock")
    }

    /// A version's profile changed.
    pub fn forget(&self, version: VersionId) {
        self.known().remove(&version);
    }

    /// Forgets all versions but these.
    pub fn retain(&self, keep: impl Fn(VersionId) -> bool) {
        self.known().retain(|version, _| keep(*version));
    }

    /// Weighs a version. `profile` is asked for only if nothing is known of it yet.
    pub fn weigh(
        &self,
        weighed: &Weighed<'_>,
        cache: &Cache,
        profile: impl FnOnce() -> Option<BootProfile>,
    ) -> (Evidence, Verdict) {
        let version = weighed.disk.version;
        let from_cache: Vec<Tree> = weighed.files.iter().map(|file| file.tree).collect();
        // Held while the profile is read, so that one that comes meanwhile is not forgotten too early.
        let mut known = self.known();
        if known
            .get(&version)
            .is_none_or(|known| known.from_cache != from_cache)
        {
            let set = BootSet::new(
                weighed.files,
                &weighed.disk.map,
                weighed.firmware_bytes,
                profile().as_ref(),
            );
            let fresh = Known {
                from_cache,
                evidence: set.evidence,
                files: Lacking::new(set.files),
                disk: Lacking::new(set.disk),
            };
            known.insert(version, fresh);
        }
        let Some(known) = known.get_mut(&version) else {
            unreachable!("it was there, or was just put there");
        };
        let lacks = Lacks {
            files: known.files.update(cache),
            disk: known.disk.update(cache),
            version: weighed.version,
        };
        (known.evidence, judge(known.evidence, &lacks))
    }
}
