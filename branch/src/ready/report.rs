//! The branch's readiness as it is told, the step that brings what is missing, and what the cache holds.

use std::sync::Arc;

use branch_api::{CacheReport, Prepared};
use datacenter_api::{OfflineBoot, PoolReadiness, Readiness};
use dedup::VersionId;
use dedup_protocol::profile::BootProfile;
use dedup_protocol::records::{PoolAssignment, Tree, VersionRecord};

use super::proof::Weighed;
use super::{Amount, Evidence, FIRMWARE_BYTES, PoolWrites, Verdict, head, overlay_hours};
use crate::desktop::{DesktopError, error_line};
use crate::keep::{self, PoolTrees, Ranks};
use crate::profile::plan;
use crate::server::Branch;

/// How much the branch reads of a version's disk before it starts a machine.
fn firmware_bytes(record: &VersionRecord) -> u64 {
    match record.boot {
        Some(_) => 0,
        None => FIRMWARE_BYTES,
    }
}

/// What overlays take of the disk at most that hold so many bytes, by what compaction leaves in their logs.
fn on_disk(held_bytes: u64) -> u64 {
    held_bytes.saturating_mul(2)
}

impl Branch {
    /// What the branch can do without its line.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn readiness(&self) -> Result<Readiness, DesktopError> {
        let assignment = self.versions.assignment();
        let assigned = assignment.iter().flat_map(|a| &a.pools);
        let mut pools = Vec::new();
        for pool in assigned {
            pools.push(self.pool_readiness(pool)?);
        }
        self.proof.retain(|version| {
            let version = version.to_string();
            pools.iter().any(|pool| pool.version == version)
        });
        let free_bytes = self.desktops.volumes().free_bytes();
        self.tell_overlay_space(&mut pools, free_bytes)?;
        Ok(Readiness {
            pools,
            power_on_until_unix_s: assignment
                .map(|a| a.expires_unix_s.saturating_add(a.offline_grace_s)),
            certificate_until_unix_s: self.identity.certificate_until_unix_s(),
            overlay_free_bytes: free_bytes,
        })
    }

    /// Who writes how fast, and how long that goes well. Desktops of pools that are gone write to the same disk.
    fn tell_overlay_space(
        &self,
        pools: &mut [PoolReadiness],
        free_bytes: Option<u64>,
    ) -> Result<(), DesktopError> {
        let mut up = self.desktops.up_by_pool()?;
        let kept = |pool: &str| self.desktops.writes().of(pool).bytes_per_hour();
        let writes_of = |pool: &str, desktops| PoolWrites {
            desktops,
            bytes_per_hour: kept(pool).map(on_disk),
        };
        let mut writes: Vec<PoolWrites> = pools
            .iter()
            .map(|pool| writes_of(&pool.pool, up.remove(&pool.pool).unwrap_or(0)))
            .collect();
        writes.extend(up.iter().map(|(pool, desktops)| writes_of(pool, *desktops)));
        for (number, pool) in pools.iter_mut().enumerate() {
            pool.desktops = writes[number].desktops;
            pool.written_bytes_per_hour = kept(&pool.pool);
            pool.overlay_hours = free_bytes.and_then(|free| overlay_hours(free, &writes, number));
        }
        Ok(())
    }

    fn pool_readiness(&self, pool: &PoolAssignment) -> Result<PoolReadiness, DesktopError> {
        let mut told = PoolReadiness {
            pool: pool.pool.clone(),
            ..PoolReadiness::default()
        };
        let (evidence, verdict) = match self.desktops.pool_version(&pool.pool) {
            Ok((_, version)) => {
                let record = self.versions.catalog().version(version)?;
                let weighed = match &record {
                    Some(record) => self.weigh(version, record)?,
                    None => None,
                };
                if let Some(record) = record {
                    told.version = version.to_string();
                    (told.image, told.number) = (record.image, record.number);
                }
                weighed.unwrap_or_else(|| {
                    let verdict = Verdict::no("its manifest is still to come");
                    (Evidence::None, verdict)
                })
            }
            Err(DesktopError::Catalog(error)) => return Err(error.into()),
            // A desktop that is started now would be refused with these words.
            Err(error) => (Evidence::None, Verdict::no(error_line(&error))),
        };
        told.boots = verdict.boots;
        told.missing_chunks = verdict.missing.chunks;
        told.missing_bytes = verdict.missing.bytes;
        told.reason = verdict.reason;
        told.profile = evidence.counter();
        if !told.version.is_empty() && told.version != pool.version.to_string() {
            told.reason +=
                "; this is an earlier version: the manifest of the assigned one is still to come";
        }
        Ok(told)
    }

    /// Weighs a version; none if its manifests are not here.
    fn weigh(
        &self,
        version: VersionId,
        record: &VersionRecord,
    ) -> Result<Option<(Evidence, Verdict)>, DesktopError> {
        let Some(disk) = self.versions.tree(version, Tree::Disk)? else {
            return Ok(None);
        };
        let cache = self.fetcher.cache();
        let residency = self.versions.residency(version, record, cache)?;
        let files = self.desktops.absent_boot_files(version, record)?;
        let weighed = Weighed {
            disk: &disk,
            files: &files,
            firmware_bytes: firmware_bytes(record),
            version: Amount {
                chunks: residency.total_chunks - residency.resident_chunks,
                bytes: residency.total_bytes - residency.resident_bytes,
            },
        };
        let profile = || self.profile(version);
        Ok(Some(self.proof.weigh(&weighed, cache, profile)))
    }

    /// A version's boot profile. One that cannot be read is as good as none, and no reason to tell nothing at all.
    fn profile(&self, version: VersionId) -> Option<BootProfile> {
        let read = self.versions.catalog().profile(version);
        read.unwrap_or_else(|error| {
            tracing::warn!(%version, error = error_line(&error), "the boot profile here cannot be read");
            None
        })
    }

    /// Begins to fetch what one pool, or every pool, lacks to boot with the WAN cut; answers how they stood.
    ///
    /// # Errors
    /// [`DesktopError::NoPool`]; for one pool also why it has nothing to boot.
    pub fn prepare(&self, pool: Option<&str>) -> Result<Prepared, DesktopError> {
        if let Some(pool) = pool {
            self.desktops.pool_version(pool)?;
        }
        let mut pools = self.readiness()?.pools;
        pools.retain(|told| pool.is_none_or(|pool| told.pool == pool));
        for told in pools.iter().filter(|p| p.boots != OfflineBoot::Yes) {
            if let Ok(version) = told.version.parse::<VersionId>() {
                self.fetch_boot(version)?;
            }
        }
        Ok(Prepared {
            pools,
            connected: self.link.is_connected(),
            fill_hour: self.fetcher.is_fill_hour(),
        })
    }

    /// Asks for what makes a version boot for sure: with a profile of its own boots what that names, else all of it, the likely first.
    fn fetch_boot(&self, version: VersionId) -> Result<(), DesktopError> {
        let catalog = self.versions.catalog();
        let Some(record) = catalog.version(version)? else {
            return Ok(());
        };
        for file in self.desktops.absent_boot_files(version, &record)? {
            let all: Arc<[u32]> = (0..file.map.chunks().len() as u32).collect();
            self.fetcher.fill_only(file, all);
        }
        let Some(disk) = self.versions.tree(version, Tree::Disk)? else {
            return Ok(());
        };
        let profile = self.profile(version);
        let mut order: Vec<u32> = head(&disk.map, firmware_bytes(&record))
            .map(|index| index as u32)
            .collect();
        if let Some(profile) = &profile {
            order.extend(plan::order(&disk.map, &profile.entries).iter());
        }
        if !matches!(Evidence::of(profile.as_ref()), Evidence::Recorded(_)) {
            order.extend(0..disk.map.chunks().len() as u32);
        }
        self.fetcher.fill_only(disk, order.into());
        Ok(())
    }

    /// What the cache holds, by pool and by rank.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn cache_report(&self) -> Result<CacheReport, DesktopError> {
        let ranks = Ranks::new(&self.versions.needs()?);
        let assignment = self.versions.assignment();
        let mut pools = Vec::new();
        for pool in assignment.iter().flat_map(|a| &a.pools) {
            let mut told = PoolTrees {
                pool: pool.pool.clone(),
                versions: Vec::new(),
                trees: Vec::new(),
            };
            let pinned = pool.pinned.iter().filter(|id| **id != pool.version);
            for version in std::iter::once(&pool.version).chain(pinned) {
                let record = self.versions.catalog().version(*version)?;
                told.versions.push(record.map_or_else(
                    || version.to_string(),
                    |record| format!("{}@{}", record.image, record.number),
                ));
                told.trees.extend(self.versions.trees(*version)?);
            }
            pools.push(told);
        }
        let connected = self.link.is_connected();
        let cache = self.fetcher.cache();
        Ok(keep::report(cache, &ranks, &pools, connected))
    }
}
