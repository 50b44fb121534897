//! What moves, and what keeps it from being moved: decided before anything is changed.

use datacenter_api::{DesktopStatus, MoveRequest, VolumeReport};
use dedup::{DesktopId, VersionId};

use super::super::checkout::of_volume;
use super::Named;
use crate::catalog::rows::{BranchKind, BranchRow, PoolKey, PoolRow};
use crate::catalog::volumes::{MoveRow, VolumeKind, VolumeRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use crate::realm::random;

/// The pool at the target that a desktop comes into.
fn target_pool(tx: &mut Tx<'_>, to: &Named, pool: &str) -> Result<PoolRow, ManageError> {
    let branch: Option<BranchRow> = tx.get(&to.id)?;
    if branch.is_some_and(|branch| branch.kind == BranchKind::Laptop) {
        return Err(ManageError::conflict(
            format!("branch {} is a laptop", to.name),
            "check the desktop out to it: `splice laptop check-out`",
        ));
    }
    let key = PoolKey {
        branch: to.id,
        pool: pool.to_owned(),
    };
    tx.get(&key)?.ok_or_else(|| {
        ManageError::conflict(
            format!("branch {} has no pool {pool:?}", to.name),
            format!(
                "name one of its pools with --pool, or assign it: `splice branch assign {} --pool {pool} --image IMAGE`",
                to.name
            ),
        )
    })
}

impl Datacenter {
    /// A desktop as its branch last told of it.
    pub(super) fn reported(
        &self,
        branch: &Named,
        name: &str,
    ) -> Result<DesktopStatus, ManageError> {
        let status = self.branch_status(branch.id)?;
        let mut desktops = status.into_iter().flat_map(|(_, status)| status.desktops);
        desktops.find(|desktop| desktop.id == name).ok_or_else(|| {
            ManageError::not_found(
                "desktop",
                name,
                format!(
                    "`splice branch show {}` shows what the branch told of last",
                    branch.name
                ),
            )
        })
    }

    /// What goes where, or why that cannot be.
    pub(super) fn plan(
        &self,
        desktop: &DesktopStatus,
        from: &Named,
        to: &Named,
        request: &MoveRequest,
    ) -> Result<MoveRow, ManageError> {
        let pool = request.pool.clone().unwrap_or_else(|| desktop.pool.clone());
        let mut row = MoveRow {
            desktop: desktop.id.clone(),
            pool,
            from_pool: desktop.pool.clone(),
            from: from.id,
            to: to.id,
            identity: desktop.identity.parse().unwrap_or(DesktopId([0; 16])),
            system: None,
            user: None,
            asked_unix_s: self.now_unix_s(),
            end: None,
        };
        let target = self.catalog().read(|tx| {
            for report in &desktop.volumes {
                let (id, volume) = known(tx, report, &[from, to])?;
                match volume.kind {
                    VolumeKind::System => row.system = Some((id, version_of(&volume)?)),
                    VolumeKind::User => row.user = Some((id, volume.began.size_bytes)),
                }
            }
            target_pool(tx, to, &row.pool)
        })?;
        if row.volumes().is_empty() {
            return Err(ManageError::conflict(
                format!(
                    "nothing of desktop {} outlives its log-off: it has no user volume, and its system begins anew",
                    row.desktop
                ),
                format!("start it at branch {}", to.name),
            ));
        }
        if row.identity == DesktopId([0; 16]) {
            // Older branch servers do not tell. A system that begins anew has it for its id, so it is never the user volume's.
            let system = row.system.map(|(id, _)| id);
            row.identity = system.unwrap_or_else(|| DesktopId(random()));
        }
        if let Some((_, version)) = row.system {
            if target.pooled {
                return Err(ManageError::conflict(
                    format!(
                        "the desktop's system is kept, and pool {:?} of branch {} has systems begin anew: it would be lost",
                        row.pool, to.name
                    ),
                    "name another pool with --pool; or give it up first: `splice desktop reset` at its branch",
                ));
            }
            if !self.may_read(to.id, version)? {
                return Err(ManageError::conflict(
                    format!(
                        "branch {} may not read the version under the desktop's system",
                        to.name
                    ),
                    format!(
                        "pin it there: `splice branch assign {} --pool {} --image IMAGE --pin IMAGE@N`",
                        to.name, row.pool
                    ),
                ));
            }
        }
        Ok(row)
    }

    /// Refuses a move to a branch that has another desktop of that name.
    pub(super) fn refuse_name(&self, to: &Named, row: &MoveRow) -> Result<(), ManageError> {
        if self.other_of_name(row)? {
            return Err(ManageError::conflict(
                format!("branch {} has another desktop {:?}", to.name, row.desktop),
                "delete that one first, if it is not needed",
            ));
        }
        Ok(())
    }

    /// Whether the target told of another desktop of that name.
    pub(super) fn other_of_name(&self, row: &MoveRow) -> Result<bool, CatalogError> {
        let status = self.branch_status(row.to)?;
        let mut desktops = status.into_iter().flat_map(|(_, status)| status.desktops);
        let Some(there) = desktops.find(|desktop| desktop.id == row.desktop) else {
            return Ok(false);
        };
        let ours: Vec<String> = row.volumes().iter().map(ToString::to_string).collect();
        Ok(!there.volumes.iter().any(|volume| ours.contains(&volume.id)))
    }
}

/// A volume that a branch told of, as it is known here.
fn known(
    tx: &mut Tx<'_>,
    report: &VolumeReport,
    homes: &[&Named],
) -> Result<(DesktopId, VolumeRow), ManageError> {
    let id: Option<DesktopId> = report.id.parse().ok();
    let row: Option<VolumeRow> = match id {
        Some(id) => tx.get(&id)?,
        None => None,
    };
    if let Some(id) = id
        && let Some((_, checkout)) = of_volume(tx, id)?
    {
        return Err(ManageError::conflict(
            format!(
                "desktop {} is checked out to a laptop, or about to be",
                checkout.desktop
            ),
            "have it checked in first: `splice laptop check-in`",
        ));
    }
    let found = id.zip(row.filter(|row| homes.iter().any(|home| home.id == row.home)));
    found.ok_or_else(|| {
        ManageError::conflict(
            format!(
                "volume {} of the desktop is not known here, or at home at another branch",
                report.id
            ),
            "wait for its branch's next report; `splice desktop-state list` shows what is known",
        )
    })
}

fn version_of(volume: &VolumeRow) -> Result<VersionId, ManageError> {
    volume.version.ok_or_else(|| ManageError::Manifest {
        message: format!("the system volume of {} has no version", volume.desktop),
    })
}
