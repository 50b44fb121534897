//! Volumes that branches tell of: the first report of a desktop says which volumes it has and what they begin with.
//!
//! Invariant: a volume is registered once, by one branch, over what that branch may read; what it begins with is durable before it is. A report that
//! says otherwise later changes nothing.

use std::collections::HashMap;

use datacenter_api::{DesktopStatus, VolumeKind as Shown, VolumeReport};
use dedup::{BranchId, DesktopId, VersionId};
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::writeback::LineRow;
use dedup_protocol::state::{Generation, Line};

use super::{StateError, build, lock};
use crate::catalog::CatalogError;
use crate::catalog::volumes::{LineKey, VolumeKind, VolumeRow};
use crate::datacenter::Datacenter;
use crate::problem::describe;

/// Most volumes that one branch may tell of. A branch has some hundred desktops.
pub(super) const VOLUMES_PER_BRANCH_MAX: usize = 4096;
/// Sizes of user volumes, in bytes, as pools may ask for them.
const USER_BYTES: std::ops::RangeInclusive<u64> = 64 << 20..=8 << 40;
/// Longest name of a desktop or pool that is kept, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Why a volume is not registered.
#[derive(Debug, thiserror::Error)]
enum NotRegistered {
    /// What the branch says of it.
    #[error("{0}")]
    Report(&'static str),
    /// The catalog or the store.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<CatalogError> for NotRegistered {
    fn from(error: CatalogError) -> Self {
        Self::State(error.into())
    }
}

impl Datacenter {
    /// Takes in the volumes that a branch tells of and nobody has told of before.
    pub(crate) fn register_volumes(&self, branch: BranchId, desktops: &[DesktopStatus]) {
        for desktop in desktops {
            for report in &desktop.volumes {
                match self.register_volume(branch, desktop, report) {
                    Ok(false) => {}
                    Ok(true) => {
                        tracing::info!(%branch, desktop = desktop.id, volume = report.id, "a volume is known from now on");
                    }
                    Err(error) => {
                        tracing::warn!(%branch, desktop = desktop.id, volume = report.id, error = describe(&error), "a volume was not registered; its branch gets no lease of it");
                    }
                }
            }
        }
    }

    fn register_volume(
        &self,
        branch: BranchId,
        desktop: &DesktopStatus,
        report: &VolumeReport,
    ) -> Result<bool, NotRegistered> {
        let id: DesktopId = report
            .id
            .parse()
            .map_err(|_| NotRegistered::Report("its id is malformed"))?;
        if self.volume_row(id)?.is_some() {
            return Ok(false);
        }
        if desktop.id.len() > NAME_BYTES_MAX || desktop.pool.len() > NAME_BYTES_MAX {
            return Err(NotRegistered::Report("a name is too long"));
        }
        let hold = self.store().hold();
        // Until the row is there, which keeps the disk from then on.
        let mut in_use = None;
        let (kind, version, began) = match report.kind {
            Shown::System => {
                let version: VersionId = desktop
                    .version
                    .parse()
                    .map_err(|_| NotRegistered::Report("its version is malformed"))?;
                in_use = Some(self.use_version(version));
                let disk = self.system_disk(branch, version)?;
                if disk.size_bytes != report.size_bytes {
                    return Err(NotRegistered::Report("it is not as large as its version"));
                }
                (VolumeKind::System, Some(version), disk)
            }
            Shown::User => {
                let size = report.size_bytes;
                if !USER_BYTES.contains(&size) || !size.is_multiple_of(512) {
                    return Err(NotRegistered::Report("no user volume has that size"));
                }
                let zeros = build::zeros(self, &hold.writer(), size).map_err(StateError::from)?;
                self.store().commit().map_err(StateError::from)?;
                (VolumeKind::User, None, zeros)
            }
        };
        let row = VolumeRow {
            kind,
            desktop: desktop.id.clone(),
            pool: desktop.pool.clone(),
            home: branch,
            version,
            began,
            known_unix_s: self.now_unix_s(),
            snapshots: 0,
        };
        let is_new = self.put_volume(id, &row).inspect_err(|error| {
            if matches!(error, NotRegistered::State(_)) {
                hold.clone().keep();
            }
        });
        drop(in_use);
        is_new
    }

    /// The disk of a version that the branch may read.
    fn system_disk(&self, branch: BranchId, version: VersionId) -> Result<TreeRef, NotRegistered> {
        if !self.may_read(branch, version)? {
            return Err(NotRegistered::Report(
                "it is over a version that the branch may not read",
            ));
        }
        let signed = self
            .version(version)
            .map_err(|_| NotRegistered::Report("its version cannot be read"))?;
        let record = signed.and_then(|signed| signed.open_own().ok());
        let record = record.ok_or(NotRegistered::Report("its version is not here"))?;
        Ok(record.disk)
    }

    fn put_volume(&self, id: DesktopId, row: &VolumeRow) -> Result<bool, NotRegistered> {
        let mut counts = lock(&self.volumes().counts);
        let counts = match &mut *counts {
            Some(counts) => counts,
            counts => counts.insert(self.count_volumes()?),
        };
        let count = counts.entry(row.home).or_default();
        if *count >= VOLUMES_PER_BRANCH_MAX {
            return Err(NotRegistered::Report(
                "the branch has told of as many volumes as it may; delete those of desktops that are gone",
            ));
        }
        let line = Line {
            desktop: id,
            generation: Generation::NONE,
            fork: None,
        };
        let is_new = self.catalog().transact(|tx| {
            if tx.get::<VolumeRow>(&id)?.is_some() {
                return Ok::<_, CatalogError>(false);
            }
            tx.raise_format()?;
            tx.put(&id, row);
            tx.put(&LineKey::own(id), &LineRow::new(line, vec![row.began]));
            Ok(true)
        })?;
        *count += usize::from(is_new);
        Ok(is_new)
    }

    fn count_volumes(&self) -> Result<HashMap<BranchId, usize>, CatalogError> {
        let rows = self
            .catalog()
            .read(|tx| tx.list::<VolumeRow>(&[], None, usize::MAX / 2))?;
        let mut counts = HashMap::new();
        for (_, row) in rows {
            *counts.entry(row.home).or_insert(0) += 1;
        }
        Ok(counts)
    }
}
