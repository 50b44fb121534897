//! The branch server: everything at a branch, put together.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use datacenter_api::{
    BranchIntroduction, BranchStatus, CacheStatus, DesktopStatus, TransferCounters,
};
use dedup_protocol::policy::Policy;
use dedup_transport::link::Caps;

use crate::clock::Clock;
use crate::desktop::{DesktopError, Desktops};
use crate::fetch::Fetcher;
use crate::identity::Identity;
use crate::link::LinkState;
use crate::metrics::Observed;
use crate::people::People;
use crate::ready::proof::Proof;
use crate::versions::Versions;

/// Everything at a branch.
pub struct Branch {
    /// Who it is.
    pub identity: Identity,
    /// Its versions and catalog.
    pub versions: Arc<Versions>,
    /// What fetches chunks into its cache.
    pub fetcher: Arc<Fetcher>,
    /// Its desktops.
    pub desktops: Arc<Desktops>,
    /// Who may log in here.
    pub people: People,
    /// Whether its pools boot without the line.
    pub proof: Proof,
    /// Its link.
    pub link: LinkState,
    /// What is kept for metrics, health and support.
    pub observed: Observed,
    /// The file with the passphrase of its keys, if there is one: what is in it must not be told.
    pub passphrase_file: Option<PathBuf>,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
}

impl Branch {
    /// Keeps to caps and hours from now on.
    pub fn follow_policy(&self, policy: Policy) {
        self.link.set_caps(Caps {
            link_bytes_per_s: policy.link_cap(),
            background_bytes_per_s: policy.fill_cap(),
        });
        self.fetcher.follow_policy(policy);
    }

    /// What it tells of itself.
    ///
    /// # Errors
    /// When the catalog cannot be read: an empty list would say that there are no versions or desktops.
    pub fn status(&self) -> Result<BranchStatus, DesktopError> {
        let cache = self.fetcher.cache();
        let stats = cache.stats();
        let counters = &self.fetcher.counters;
        let mut versions = Vec::new();
        for (id, record) in self.versions.catalog().versions()? {
            versions.extend(self.versions.residency(id, &record, cache));
        }
        let desktops = self.desktops.list()?;
        let mut volumes_by_name = self.desktops.volume_reports()?;
        Ok(BranchStatus {
            link: self.link.report(),
            cache: CacheStatus {
                chunks: stats.chunks,
                bytes: stats.bytes,
                capacity_bytes: stats.capacity_bytes,
                hits: stats.hits,
                misses: stats.misses,
                quarantined: stats.quarantined,
                quarantined_total: stats.damaged,
            },
            versions,
            desktops: desktops
                .into_iter()
                .map(|d| {
                    let signs = self.desktops.signs(&d);
                    DesktopStatus {
                        state: serde_json::to_value(d.state)
                            .ok()
                            .and_then(|v| v.as_str().map(str::to_owned))
                            .unwrap_or_default(),
                        identity: d.identity,
                        pool: d.pool,
                        version: d.version,
                        started_unix_s: d.started_unix_ms.unwrap_or(0) / 1000,
                        boot: d.boot,
                        signs,
                        volumes: volumes_by_name.remove(&d.name).unwrap_or_default(),
                        id: d.name,
                    }
                })
                .collect(),
            counters: TransferCounters {
                demand_chunks: counters.demand_chunks.load(Ordering::Relaxed),
                demand_wait_ms: counters.demand_wait_ms.load(Ordering::Relaxed),
                prefetch_chunks: counters.prefetch_chunks.load(Ordering::Relaxed),
                received_bytes: self.link.received_bytes(),
                demand_wait: counters.demand_wait.figures(),
                boot_fetch: counters.boot_fetch.figures(),
                fill_fetch: counters.fill_fetch.figures(),
                update_bytes: counters.update_bytes.load(Ordering::Relaxed),
                update_packed_bytes: counters.update_packed_bytes.load(Ordering::Relaxed),
                plain_bytes: counters
                    .chunk_bytes
                    .load(Ordering::Relaxed)
                    .saturating_sub(counters.update_bytes.load(Ordering::Relaxed)),
            },
            readiness: Some(self.readiness()?),
            assignment_counter: Some(self.versions.assignment().map_or(0, |a| a.counter)),
            roster_counter: Some(self.people.counter()),
            reported_unix_s: self.clock.now_unix_s(),
            software: env!("CARGO_PKG_VERSION").into(),
            introduction: None,
        })
    }

    /// The same, for the wire. With `introduce` it says who it is and what it follows, which a datacenter that was restored from a backup
    /// may not know.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn status_json(&self, introduce: bool) -> Result<String, DesktopError> {
        let mut status = self.status()?;
        if introduce {
            let followed = self.versions.catalog().signed_assignment()?;
            status.introduction = Some(BranchIntroduction {
                name: self.identity.name.clone(),
                assignment: followed.map(hex::encode),
            });
        }
        Ok(serde_json::to_string(&status).expect("a status serialises without failing"))
    }
}
