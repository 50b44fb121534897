//! Assignments: which version each pool at each branch is to run, as a signed record with a counter.
//!
//! Invariant: the signed assignment is renewed in the transaction that changes what it says, and its counter only goes up.
//! Assignments expire; a branch that asks gets one of which at least half the validity is left.

use std::collections::BTreeSet;

use datacenter_api::{AssignRequest, Pool, VersionRef, check_name};
use dedup::{BranchId, VersionId};
use dedup_protocol::records::{Assignment, MachineType, PoolAssignment, StartMode};
use dedup_protocol::trust::{Signed, TrustError};

use crate::branches::require_branch;
use crate::catalog::rows::{
    AheadRow, AssignmentRow, BranchRow, GrantKey, GrantRow, ImageRow, NumberKey, PoolKey, PoolRow,
    VersionNumberRow, VersionRow,
};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use crate::restored;
use crate::rollouts::channels;

/// Most pools at one branch: bounds the assignment, which every branch parses.
pub const POOLS_MAX: usize = 64;
/// Most pinned versions of one pool.
pub const PINNED_MAX: usize = 16;
/// Sizes of user volumes in MiB: a file system is to fit, and a branch's disk to be imaginable that holds a few.
const USER_VOLUME_MIB: std::ops::RangeInclusive<u32> = 64..=8 << 20;
/// Memory of a desktop unless asked otherwise, in MiB.
pub const MEMORY_MIB: u32 = 1024;

/// Why a branch's assignment could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AssignmentError {
    /// The catalog could not answer.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// What is kept cannot be read.
    #[error("the assignment of branch {branch}")]
    Record {
        /// The branch.
        branch: BranchId,
        /// Why.
        source: TrustError,
    },
}

impl Datacenter {
    /// Sets what a pool runs; the branch hears of it by its assignment.
    pub fn assign_pool(
        &self,
        branch_name: &str,
        pool: &str,
        request: &AssignRequest,
    ) -> Result<Pool, ManageError> {
        check_name("a pool", pool)?;
        let now = self.now_unix_s();
        let shown = self.catalog().transact(|tx| {
            let (branch, row) = require_branch(tx, branch_name)?;
            if row.revoked_unix_s.is_some() {
                return Err(ManageError::conflict(
                    format!("branch {branch_name:?} is revoked"),
                    format!("invite it again: `splice branch token {branch_name}`"),
                ));
            }
            let key = PoolKey {
                branch,
                pool: pool.to_owned(),
            };
            let before: Option<PoolRow> = tx.get(&key)?;
            if before.is_none()
                && tx
                    .list::<PoolRow>(branch.as_bytes(), None, POOLS_MAX)?
                    .len()
                    == POOLS_MAX
            {
                return Err(ManageError::conflict(
                    format!("branch {branch_name:?} has {POOLS_MAX} pools already"),
                    "remove one first",
                ));
            }
            let wanted = pool_row(tx, request, before.as_ref())?;
            tx.put(&key, &wanted);
            self.sign_decided(tx, branch, pool, now)?;
            show_pool(tx, &key, &wanted)
        })?;
        tracing::info!(branch = branch_name, pool, version = %shown.version, "pool assigned");
        self.announce_assignments();
        Ok(shown)
    }

    /// Removes a pool from a branch.
    pub fn remove_pool(&self, branch_name: &str, pool: &str) -> Result<(), ManageError> {
        let now = self.now_unix_s();
        self.catalog().transact(|tx| {
            let (branch, _) = require_branch(tx, branch_name)?;
            let key = PoolKey {
                branch,
                pool: pool.to_owned(),
            };
            if tx.get::<PoolRow>(&key)?.is_none() && !restored::is_lost(tx, branch, pool)? {
                return Err(ManageError::not_found(
                    "pool",
                    pool,
                    format!("`splice branch show {branch_name}` shows its pools"),
                ));
            }
            tx.delete::<PoolRow>(&key);
            self.sign_decided(tx, branch, pool, now)?;
            Ok(())
        })?;
        self.announce_assignments();
        Ok(())
    }

    /// The pools of a branch.
    pub fn pools(&self, branch_name: &str) -> Result<Vec<Pool>, ManageError> {
        self.catalog().read(|tx| {
            let (branch, _) = require_branch(tx, branch_name)?;
            self.show_pools(tx, branch)
        })
    }

    pub(crate) fn show_pools(
        &self,
        tx: &mut Tx<'_>,
        branch: BranchId,
    ) -> Result<Vec<Pool>, ManageError> {
        let rows = tx.list::<PoolRow>(branch.as_bytes(), None, POOLS_MAX)?;
        rows.iter()
            .map(|(key, row)| show_pool(tx, key, row))
            .collect()
    }

    /// The branch's current assignment; renewed when less than half of its validity is left, unless the branch follows one that is not
    /// remembered here: a renewal would replace it. `None` before the first pool.
    pub fn assignment(
        &self,
        branch: BranchId,
    ) -> Result<Option<Signed<Assignment>>, AssignmentError> {
        let now = self.now_unix_s();
        let (kept, ahead) = self.catalog().read(|tx| {
            let kept: Option<AssignmentRow> = tx.get(&branch)?;
            Ok::<_, CatalogError>((kept, tx.get::<AheadRow>(&branch)?.is_some()))
        })?;
        let Some(mut row) = kept else { return Ok(None) };
        if needs_renewal(&row, now) && !ahead {
            row = self.catalog().transact(|tx| {
                // Somebody else may have renewed it since.
                let row: Option<AssignmentRow> = tx.get(&branch)?;
                let due = row.as_ref().is_some_and(|row| needs_renewal(row, now));
                if due && tx.get::<AheadRow>(&branch)?.is_none() {
                    self.sign_assignment(tx, branch, now)?;
                }
                let row = tx.get::<AssignmentRow>(&branch)?;
                Ok::<_, CatalogError>(row.expect("assignments are never removed"))
            })?;
        }
        Signed::from_bytes(&row.signed)
            .map(Some)
            .map_err(|source| AssignmentError::Record { branch, source })
    }

    /// The versions that a branch's pools run or pin, each once.
    pub fn versions_assigned(&self, branch: BranchId) -> Result<Vec<VersionId>, CatalogError> {
        self.catalog().read(|tx| {
            let pools = tx.list::<PoolRow>(branch.as_bytes(), None, POOLS_MAX)?;
            let versions: BTreeSet<VersionId> = pools
                .iter()
                .flat_map(|(_, row)| row.pinned.iter().chain([&row.version]))
                .copied()
                .collect();
            Ok(versions.into_iter().collect())
        })
    }

    /// Whether a branch may read a version: its pools run or pin it; or they once did and a desktop there still runs it, which
    /// must not lose its disk because the pool moved on.
    pub fn may_read(&self, branch: BranchId, version: VersionId) -> Result<bool, CatalogError> {
        let granted = self.catalog().read(|tx| {
            let joined = tx
                .get::<BranchRow>(&branch)?
                .is_some_and(|row| row.revoked_unix_s.is_none() && row.joined_unix_s.is_some());
            if !joined {
                return Ok(None);
            }
            let pools = tx.list::<PoolRow>(branch.as_bytes(), None, POOLS_MAX)?;
            let assigned = pools
                .iter()
                .any(|(_, row)| row.version == version || row.pinned.contains(&version));
            if assigned {
                return Ok(Some(true));
            }
            let once = tx.get::<GrantRow>(&GrantKey { branch, version })?.is_some();
            Ok::<_, CatalogError>(once.then_some(false))
        })?;
        match granted {
            None => Ok(false),
            Some(true) => Ok(true),
            Some(false) => {
                let version = version.to_string();
                let status = self.branch_status(branch)?;
                Ok(status.is_some_and(|(_, s)| s.desktops.iter().any(|d| d.version == version)))
            }
        }
    }

    /// Whether a branch may read a version or could once: nothing about it is news to it.
    pub fn could_read(&self, branch: BranchId, version: VersionId) -> Result<bool, CatalogError> {
        if self.may_read(branch, version)? {
            return Ok(true);
        }
        self.catalog().read(|tx| {
            let joined = tx
                .get::<BranchRow>(&branch)?
                .is_some_and(|row| row.revoked_unix_s.is_none() && row.joined_unix_s.is_some());
            Ok(joined && tx.get::<GrantRow>(&GrantKey { branch, version })?.is_some())
        })
    }

    /// As [`Self::sign_assignment`] after a decision about `pool`; but a branch that is ahead is not told before each of its pools that were
    /// lost is decided, as those left would be replaced silently.
    fn sign_decided(
        &self,
        tx: &mut Tx<'_>,
        branch: BranchId,
        pool: &str,
        now_unix_s: u64,
    ) -> Result<(), CatalogError> {
        if restored::decide(tx, branch, pool)? {
            self.sign_assignment(tx, branch, now_unix_s)?;
        }
        Ok(())
    }

    /// Signs what the pools of `branch` now say. Its counter is above all that the branch may have seen.
    pub(crate) fn sign_assignment(
        &self,
        tx: &mut Tx<'_>,
        branch: BranchId,
        now_unix_s: u64,
    ) -> Result<(), CatalogError> {
        let pools = tx.list::<PoolRow>(branch.as_bytes(), None, POOLS_MAX)?;
        let before: Option<AssignmentRow> = tx.get(&branch)?;
        let ahead: Option<AheadRow> = tx.get(&branch)?;
        let told = ahead.as_ref().map_or(0, |row| row.counter);
        let highest = before.map_or(0, |row| row.counter).max(told);
        let counter = highest.max(restored::counter_floor(tx)?) + 1;
        if ahead.is_some() {
            tx.delete::<AheadRow>(&branch);
        }
        let expires_unix_s = now_unix_s + self.config().assignment_validity.as_secs();
        for (_, row) in &pools {
            for version in row.pinned.iter().chain([&row.version]).copied() {
                let granted = GrantRow {
                    assigned_unix_s: now_unix_s,
                };
                tx.put(&GrantKey { branch, version }, &granted);
            }
        }
        let assignment = Assignment {
            realm: self.realm(),
            branch,
            counter,
            issued_unix_s: now_unix_s,
            expires_unix_s,
            offline_grace_s: self.config().offline_grace.as_secs(),
            pools: pools
                .into_iter()
                .map(|(key, row)| PoolAssignment {
                    pool: key.pool,
                    image: row.image,
                    version: row.version,
                    pinned: row.pinned,
                    memory_mib: row.memory_mib,
                    vcpus: row.vcpus,
                    prestage: row.prestage,
                    machine: row.machine,
                    tpm: row.tpm,
                    user_volume_mib: row.user_volume_mib,
                    pooled: row.pooled,
                    start: row.start,
                })
                .collect(),
        };
        let row = AssignmentRow {
            counter,
            issued_unix_s: now_unix_s,
            expires_unix_s,
            signed: self.publisher().sign(&assignment).to_bytes(),
        };
        tx.put(&branch, &row);
        Ok(())
    }
}

fn needs_renewal(row: &AssignmentRow, now_unix_s: u64) -> bool {
    let validity = row.expires_unix_s.saturating_sub(row.issued_unix_s);
    row.expires_unix_s.saturating_sub(now_unix_s) < validity / 2
}

fn pool_row(
    tx: &mut Tx<'_>,
    request: &AssignRequest,
    before: Option<&PoolRow>,
) -> Result<PoolRow, ManageError> {
    let (image, version, channel) = channels::choose(tx, request, before)?;
    let pinned = match &request.pinned {
        None => before.map(|row| row.pinned.clone()).unwrap_or_default(),
        Some(names) => {
            let ids = names.iter().map(|name| Ok(resolve(tx, name)?.2));
            let distinct: BTreeSet<VersionId> = ids.collect::<Result<_, ManageError>>()?;
            distinct.into_iter().collect()
        }
    };
    if pinned.len() > PINNED_MAX {
        return Err(ManageError::invalid(format!(
            "{} pinned versions, at most {PINNED_MAX} are possible",
            pinned.len()
        )));
    }
    let memory_mib = request
        .memory_mib
        .or(before.map(|row| row.memory_mib))
        .unwrap_or(MEMORY_MIB);
    let vcpus = request.vcpus.or(before.map(|row| row.vcpus)).unwrap_or(1);
    if !(64..=1 << 20).contains(&memory_mib) {
        return Err(ManageError::invalid(format!(
            "{memory_mib} MiB of memory for a desktop; between 64 MiB and 1 TiB are possible"
        )));
    }
    if !(1..=256).contains(&vcpus) {
        return Err(ManageError::invalid(format!(
            "{vcpus} virtual CPUs for a desktop; between 1 and 256 are possible"
        )));
    }
    let machine = request
        .machine
        .map(record_type)
        .or(before.map(|row| row.machine))
        .unwrap_or_default();
    let tpm = request.tpm.or(before.map(|row| row.tpm)).unwrap_or(false);
    if tpm && machine == MachineType::Splice {
        return Err(ManageError::invalid(
            "splice-vmm has no TPM; a pool with one needs machine type qemu or auto".to_owned(),
        ));
    }
    let start = request.start.map(start_mode);
    let start = start.or(before.map(|row| row.start)).unwrap_or_default();
    let user_volume_mib = user_volume(request, before)?;
    if start == StartMode::Resume && (tpm || machine == MachineType::Qemu || user_volume_mib != 0) {
        return Err(ManageError::invalid(
            "desktops resume on splice-vmm only, and without a TPM or a user volume; assign the pool with --machine auto or splice, --no-tpm and \
             --no-user-volume, or with --start boot"
                .to_owned(),
        ));
    }
    Ok(PoolRow {
        image,
        version,
        pinned,
        memory_mib,
        vcpus,
        prestage: request
            .prestage
            .or(before.map(|row| row.prestage))
            .unwrap_or(true),
        machine,
        tpm,
        user_volume_mib,
        pooled: request
            .pooled
            .or(before.map(|row| row.pooled))
            .unwrap_or(false),
        start,
        channel,
    })
}

fn user_volume(request: &AssignRequest, before: Option<&PoolRow>) -> Result<u32, ManageError> {
    let wanted = request.user_volume_mib;
    let mib = wanted
        .or(before.map(|row| row.user_volume_mib))
        .unwrap_or(0);
    if mib != 0 && !USER_VOLUME_MIB.contains(&mib) {
        return Err(ManageError::invalid(format!(
            "a user volume of {mib} MiB; between 64 MiB and 8 TiB are possible, and 0 for none"
        )));
    }
    Ok(mib)
}

/// The version that `IMAGE` or `IMAGE@NUMBER` names: its image, number and id.
pub(crate) fn resolve(
    tx: &mut Tx<'_>,
    text: &str,
) -> Result<(String, u32, VersionId), ManageError> {
    let reference: VersionRef =
        text.parse()
            .map_err(|e: datacenter_api::reference::VersionRefError| {
                ManageError::invalid(e.to_string())
            })?;
    let image: ImageRow = tx.get(&reference.image)?.ok_or_else(|| {
        ManageError::not_found(
            "image",
            &reference.image,
            "`splice image list` shows the images",
        )
    })?;
    let missing = |help: String| ManageError::not_found("version", text, help);
    let number = reference.number.unwrap_or(image.latest);
    if number == 0 {
        return Err(missing(format!(
            "image {:?} has no version yet: `splice version publish {} FILE`",
            reference.image, reference.image
        )));
    }
    let key = NumberKey {
        image: reference.image.clone(),
        number,
    };
    let row: VersionNumberRow = tx.get(&key)?.ok_or_else(|| {
        missing(format!(
            "`splice version list {}` shows its versions",
            reference.image
        ))
    })?;
    Ok((reference.image, number, row.version))
}

fn show_pool(tx: &mut Tx<'_>, key: &PoolKey, row: &PoolRow) -> Result<Pool, ManageError> {
    let mut name = |id: &VersionId| -> Result<String, CatalogError> {
        let version: Option<VersionRow> = tx.get(id)?;
        Ok(version.map_or_else(|| id.to_string(), |v| format!("{}@{}", v.image, v.number)))
    };
    Ok(Pool {
        name: key.pool.clone(),
        version: name(&row.version)?,
        version_id: row.version.to_string(),
        pinned: row.pinned.iter().map(&mut name).collect::<Result<_, _>>()?,
        memory_mib: row.memory_mib,
        vcpus: row.vcpus,
        prestage: row.prestage,
        machine: shown_type(row.machine),
        tpm: row.tpm,
        user_volume_mib: row.user_volume_mib,
        pooled: row.pooled,
        start: shown_start(row.start),
        channel: row.channel.clone(),
    })
}

fn start_mode(shown: datacenter_api::StartMode) -> StartMode {
    match shown {
        datacenter_api::StartMode::Boot => StartMode::Boot,
        datacenter_api::StartMode::Resume => StartMode::Resume,
    }
}

fn shown_start(kept: StartMode) -> datacenter_api::StartMode {
    match kept {
        StartMode::Boot => datacenter_api::StartMode::Boot,
        StartMode::Resume => datacenter_api::StartMode::Resume,
    }
}

fn record_type(shown: datacenter_api::MachineType) -> MachineType {
    match shown {
        datacenter_api::MachineType::Auto => MachineType::Auto,
        datacenter_api::MachineType::Splice => MachineType::Splice,
        datacenter_api::MachineType::Qemu => MachineType::Qemu,
    }
}

fn shown_type(kept: MachineType) -> datacenter_api::MachineType {
    match kept {
        MachineType::Auto => datacenter_api::MachineType::Auto,
        MachineType::Splice => datacenter_api::MachineType::Splice,
        MachineType::Qemu => datacenter_api::MachineType::Qemu,
    }
}
