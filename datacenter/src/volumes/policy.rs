//! How long a pool's volumes are leased, and which snapshots of them are kept.

use datacenter_api::{StatePolicy, StatePolicyRequest};
use dedup::BranchId;
use dedup_protocol::state::lease::SPAN_S_MAX;
use dedup_protocol::state::writeback::{Retention, SnapshotPolicy};

use crate::branches::require_branch;
use crate::catalog::rows::{PoolKey, PoolRow};
use crate::catalog::volumes::StatePolicyRow;
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

/// Shortest lease: a renewal is asked for several times before it ends.
const LEASE_S_MIN: u64 = 300;
/// Most snapshots that each rule of a retention keeps.
const KEEP_MAX: u32 = 100;

/// The policy of a pool at a branch.
pub(super) fn policy_of(
    tx: &mut Tx<'_>,
    branch: BranchId,
    pool: &str,
) -> Result<StatePolicyRow, CatalogError> {
    let key = PoolKey {
        branch,
        pool: pool.to_owned(),
    };
    Ok(tx.get::<StatePolicyRow>(&key)?.unwrap_or_default())
}

fn shown(row: &StatePolicyRow) -> StatePolicy {
    let SnapshotPolicy {
        every_s,
        at_log_off,
        keep,
    } = row.snapshots;
    StatePolicy {
        lease_s: row.lease_s,
        offline_grace_s: row.offline_grace_s,
        snapshot_every_s: every_s,
        snapshot_at_log_off: at_log_off,
        keep_newest: keep.newest,
        keep_hourly: keep.hourly,
        keep_daily: keep.daily,
        keep_weekly: keep.weekly,
    }
}

fn changed(
    row: &StatePolicyRow,
    asked: &StatePolicyRequest,
) -> Result<StatePolicyRow, ManageError> {
    let keep = row.snapshots.keep;
    let changed = StatePolicyRow {
        lease_s: asked.lease_s.unwrap_or(row.lease_s),
        offline_grace_s: asked.offline_grace_s.unwrap_or(row.offline_grace_s),
        snapshots: SnapshotPolicy {
            every_s: asked.snapshot_every_s.unwrap_or(row.snapshots.every_s),
            at_log_off: asked
                .snapshot_at_log_off
                .unwrap_or(row.snapshots.at_log_off),
            keep: Retention {
                newest: asked.keep_newest.unwrap_or(keep.newest),
                hourly: asked.keep_hourly.unwrap_or(keep.hourly),
                daily: asked.keep_daily.unwrap_or(keep.daily),
                weekly: asked.keep_weekly.unwrap_or(keep.weekly),
            },
        },
    };
    if !(LEASE_S_MIN..=SPAN_S_MAX).contains(&changed.lease_s) {
        return Err(ManageError::invalid(format!(
            "a lease of {} s; between {LEASE_S_MIN} and {SPAN_S_MAX} are possible",
            changed.lease_s
        )));
    }
    if changed.offline_grace_s > SPAN_S_MAX {
        return Err(ManageError::invalid(format!(
            "an offline grace of {} s; at most {SPAN_S_MAX} are possible",
            changed.offline_grace_s
        )));
    }
    let Retention {
        newest,
        hourly,
        daily,
        weekly,
    } = changed.snapshots.keep;
    if newest == 0
        || [newest, hourly, daily, weekly]
            .iter()
            .any(|n| *n > KEEP_MAX)
    {
        return Err(ManageError::invalid(format!(
            "each rule keeps at most {KEEP_MAX} snapshots, and the newest is always kept"
        )));
    }
    Ok(changed)
}

/// The pool's key, if the branch has such a pool.
fn require_pool(tx: &mut Tx<'_>, branch_name: &str, pool: &str) -> Result<PoolKey, ManageError> {
    let (branch, _) = require_branch(tx, branch_name)?;
    let key = PoolKey {
        branch,
        pool: pool.to_owned(),
    };
    if tx.get::<PoolRow>(&key)?.is_none() {
        return Err(ManageError::not_found(
            "pool",
            pool,
            format!("`splice branch show {branch_name}` shows its pools"),
        ));
    }
    Ok(key)
}

impl Datacenter {
    /// How a pool's volumes are leased and kept.
    pub fn state_policy(&self, branch: &str, pool: &str) -> Result<StatePolicy, ManageError> {
        self.catalog().read(|tx| {
            let key = require_pool(tx, branch, pool)?;
            Ok(shown(&policy_of(tx, key.branch, pool)?))
        })
    }

    /// Changes it. Leases have the new terms from their next renewal on; snapshots are dropped by the new retention when the next is cut.
    pub fn set_state_policy(
        &self,
        branch: &str,
        pool: &str,
        asked: &StatePolicyRequest,
    ) -> Result<StatePolicy, ManageError> {
        let row = self.catalog().transact(|tx| {
            let key = require_pool(tx, branch, pool)?;
            let row = changed(&policy_of(tx, key.branch, pool)?, asked)?;
            if row == StatePolicyRow::default() {
                tx.delete::<StatePolicyRow>(&key);
            } else {
                tx.put(&key, &row);
            }
            Ok::<_, ManageError>(row)
        })?;
        tracing::info!(branch, pool, "leases and snapshots of a pool set");
        Ok(shown(&row))
    }
}
