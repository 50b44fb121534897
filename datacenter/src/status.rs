//! The datacenter as a whole: what an operator sees first, and what needs attention.

use datacenter_api::{Branch, BranchState, DatacenterStatus, OfflineBoot, Readiness, StoreStatus};

use crate::datacenter::Datacenter;
use crate::problem::ManageError;

/// Days before the end of an endorsement at which operators are told.
const ENDORSEMENT_WARNING_S: u64 = 30 * 86_400;
/// Free space below which operators are told, in bytes.
const FREE_WARNING_BYTES: u64 = 10 << 30;

impl Datacenter {
    /// The datacenter as a whole.
    ///
    /// # Errors
    /// When the catalog cannot answer.
    pub fn status(&self) -> Result<DatacenterStatus, ManageError> {
        self.status_with(&self.branches(None, usize::MAX / 2)?)
    }

    /// The same for who has looked up all branches already.
    pub(crate) fn status_with(&self, branches: &[Branch]) -> Result<DatacenterStatus, ManageError> {
        let now = self.now_unix_s();
        let (images, versions) = self.image_counts()?;
        let joined = branches.iter().filter(|b| b.state == BranchState::Joined);
        let with_pools = joined.clone().filter(|b| !b.pools.is_empty());
        let (ready, not_ready): (Vec<&Branch>, Vec<&Branch>) =
            with_pools.partition(|b| is_ready(b));
        let store = self.store_status()?;
        let endorsement_expires_unix_s = self
            .endorsements()
            .iter()
            .map(|e| e.until_unix_s)
            .max()
            .unwrap_or(0);
        let mut warnings = Vec::new();
        if endorsement_expires_unix_s < now + ENDORSEMENT_WARNING_S {
            warnings.push(format!(
                "the publisher key's endorsement ends in {} days; renew it with the root key: splice-datacenter endorse",
                endorsement_expires_unix_s.saturating_sub(now) / 86_400
            ));
        }
        if store.free_bytes < FREE_WARNING_BYTES {
            warnings.push(format!(
                "only {} bytes are free on the store's disk",
                store.free_bytes
            ));
        }
        warnings.extend(self.restore_warnings()?);
        if let Some(reason) = self.store().halted() {
            warnings.push(format!(
                "collections of garbage are halted: {reason}; look into it, then `splice store gc --resume`"
            ));
        }
        let damaged = self.store().stats().damaged;
        if damaged > 0 {
            let versions = self.upkeep().damage().versions();
            let shown = match versions.is_empty() {
                true => "versions are being looked up".to_owned(),
                false => format!("shown by {}", versions.join(", ")),
            };
            warnings.push(format!(
                "{damaged} stored chunks or manifest nodes are damaged, {shown}; branches that hold them are asked, publishing the same disk again stores them anew"
            ));
        }
        if self.root_key_present() {
            warnings.push(
                "the root signing key is still in the data folder; move root.key to offline storage".into(),
            );
        }
        Ok(DatacenterStatus {
            realm: self.realm().to_string(),
            name: self.realm_name().to_owned(),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: now.saturating_sub(self.started_unix_s()),
            link_address: self.config().address.clone(),
            store,
            images,
            versions,
            branches: joined.count() as u64,
            branches_online: self.online_count(),
            branches_ready: ready.len() as u64,
            not_ready: not_ready.into_iter().map(not_ready_line).collect(),
            operations_running: self.operations().running_count(),
            endorsement_expires_unix_s,
            warnings,
        })
    }

    fn store_status(&self) -> Result<StoreStatus, ManageError> {
        let stats = self.store().stats();
        Ok(StoreStatus {
            chunks: stats.chunks,
            nodes: stats.nodes,
            plain_bytes: stats.raw_bytes,
            stored_bytes: stats.pack_bytes,
            packs: stats.packs,
            free_bytes: self.free_bytes(),
        })
    }
}

/// What a branch said of a pool that it was assigned.
fn told<'a>(readiness: &'a Readiness, pool: &str) -> Option<&'a datacenter_api::PoolReadiness> {
    readiness.pools.iter().find(|told| told.pool == pool)
}

/// Whether a branch said of each pool that it has now that it boots with the WAN cut, and of the version that the pool runs now.
pub(crate) fn is_ready(branch: &Branch) -> bool {
    let readiness = branch.status.as_ref().and_then(|s| s.readiness.as_ref());
    readiness.is_some_and(|readiness| {
        branch.pools.iter().all(|pool| {
            told(readiness, &pool.name).is_some_and(|told| {
                told.boots == OfflineBoot::Yes && told.version == pool.version_id
            })
        })
    })
}

/// A branch that is not ready, and which of its pools are why.
fn not_ready_line(branch: &Branch) -> String {
    let readiness = branch.status.as_ref().and_then(|s| s.readiness.as_ref());
    let Some(readiness) = readiness else {
        return format!("{}: has not told", branch.name);
    };
    let pools = branch.pools.iter().filter_map(|pool| {
        let said = match told(readiness, &pool.name) {
            None => "not told yet",
            Some(told) if told.version != pool.version_id => "does not have the version yet",
            Some(told) if told.boots == OfflineBoot::Yes => return None,
            Some(told) => told.boots.name(),
        };
        Some(format!("{} {said}", pool.name))
    });
    format!("{}: {}", branch.name, pools.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use datacenter_api::{BranchPolicy, BranchStatus, MachineType, Pool, PoolReadiness, StartMode};

    use super::*;

    fn branch(pools: &[&str], readiness: Option<&[(&str, &str, OfflineBoot)]>) -> Branch {
        let pool = |name: &&str| Pool {
            name: (*name).into(),
            version: "debian@2".into(),
            version_id: "v2".into(),
            pinned: Vec::new(),
            memory_mib: 1024,
            vcpus: 1,
            prestage: true,
            machine: MachineType::Auto,
            tpm: false,
            user_volume_mib: 0,
            pooled: false,
            start: StartMode::Boot,
            channel: None,
        };
        let told = |(pool, version, boots): &(&str, &str, OfflineBoot)| PoolReadiness {
            pool: (*pool).into(),
            version: (*version).into(),
            boots: *boots,
            ..PoolReadiness::default()
        };
        Branch {
            id: "01".into(),
            name: "ny".into(),
            site: None,
            kind: datacenter_api::BranchKind::Site,
            state: BranchState::Joined,
            created_unix_s: 1,
            joined_unix_s: Some(2),
            revoked_unix_s: None,
            certificate_expires_unix_s: None,
            online: true,
            remote_address: None,
            pools: pools.iter().map(pool).collect(),
            policy: BranchPolicy::default(),
            assignment_counter: 1,
            ahead: None,
            status: Some(BranchStatus {
                readiness: readiness.map(|pools| Readiness {
                    pools: pools.iter().map(told).collect(),
                    ..Readiness::default()
                }),
                ..BranchStatus::default()
            }),
        }
    }

    #[test]
    fn a_branch_is_ready_when_it_said_so_of_what_its_pools_run_now() {
        use OfflineBoot::{No, Unknown, Yes};
        let old = branch(&["a"], None);
        assert!(!is_ready(&old));
        assert_eq!(not_ready_line(&old), "ny: has not told");
        assert!(is_ready(&branch(&["a"], Some(&[("a", "v2", Yes)]))));
        // A pool that was taken away since does not count.
        let gone = branch(&["a"], Some(&[("a", "v2", Yes), ("b", "v2", No)]));
        assert!(is_ready(&gone));
        let mixed = branch(
            &["a", "b", "c", "d"],
            Some(&[("a", "v2", Yes), ("b", "v1", Yes), ("c", "v2", Unknown)]),
        );
        assert!(!is_ready(&mixed));
        assert_eq!(
            not_ready_line(&mixed),
            "ny: b does not have the version yet, c unknown, d not told yet"
        );
    }
}
