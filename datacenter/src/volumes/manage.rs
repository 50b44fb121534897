//! What people see of volumes and do to them: lists, snapshots by hand, leases broken.

use std::sync::Arc;

use datacenter_api::{
    BreakLeaseRequest, EndedLease, SnapshotCause, Volume, VolumeFork, VolumeKind as Shown,
    VolumeLease, VolumeSnapshot, VolumeState,
};
use dedup::{BranchId, DesktopId};
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::authority::AuthorityRow;
use dedup_protocol::state::message::Cut;
use dedup_protocol::state::writeback::{LineRow, Snapshot};

use super::keep::{SNAPSHOTS_MAX, audit};
use super::{LINES_MAX, StateError, Told, fork_name};
use crate::branches::require_branch;
use crate::catalog::rows::{BranchRow, VersionRow};
use crate::catalog::volumes::{
    AuditEvent, LineKey, SnapshotKey, VolumeEvent, VolumeKind, VolumeRow,
};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::identity::rights::Place;
use crate::problem::{ManageError, describe};

/// Fewest digits of an id that name a volume.
const DIGITS_MIN: usize = 8;
/// Longest reason, in bytes.
const REASON_BYTES_MAX: usize = 500;

impl From<StateError> for ManageError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Catalog(e) => e.into(),
            StateError::Store(e) => e.into(),
            StateError::Build(e) => Self::Manifest {
                message: describe(&*e),
            },
            other => Self::conflict(describe(&other), "try again"),
        }
    }
}

/// Checks a reason that is kept in the audit log.
pub(super) fn reason(text: &str) -> Result<&str, ManageError> {
    let text = text.trim();
    if text.is_empty() || text.len() > REASON_BYTES_MAX {
        return Err(ManageError::invalid(format!(
            "say who does it and why, in 1 to {REASON_BYTES_MAX} bytes; it is kept in the audit log"
        )));
    }
    Ok(text)
}

/// The volume that `text` names: its id, or a beginning of it that no other has.
pub(super) fn find(tx: &mut Tx<'_>, text: &str) -> Result<(DesktopId, VolumeRow), ManageError> {
    let text = text.to_ascii_lowercase();
    let missing = || {
        ManageError::not_found(
            "volume",
            text.as_str(),
            "`splice desktop-state list` shows the volumes; name one by its id, or by 8 or more digits that begin it",
        )
    };
    if text.len() < DIGITS_MIN || text.len() > 2 * DesktopId::LEN {
        return Err(missing());
    }
    // Whole bytes are what the catalog finds by; the digit behind them is looked at here.
    let whole = text.len() / 2 * 2;
    let prefix = text.get(..whole).and_then(|whole| hex::decode(whole).ok());
    let rows = tx.list::<VolumeRow>(&prefix.ok_or_else(missing)?, None, 64)?;
    let mut found = rows
        .into_iter()
        .filter(|(id, _)| id.to_string().starts_with(&text));
    let first = found.next().ok_or_else(missing)?;
    match found.next() {
        None => Ok(first),
        Some(_) => Err(ManageError::invalid(format!(
            "several volumes begin with {text}; give more digits"
        ))),
    }
}

pub(super) fn branch_name(tx: &mut Tx<'_>, id: BranchId) -> Result<String, CatalogError> {
    let row: Option<BranchRow> = tx.get(&id)?;
    Ok(row.map_or_else(|| id.to_string(), |row| row.name))
}

fn show_cause(cut: Cut) -> SnapshotCause {
    match cut {
        Cut::None => SnapshotCause::Policy,
        Cut::LogOff => SnapshotCause::LogOff,
        Cut::Asked => SnapshotCause::Asked,
        Cut::Frozen => SnapshotCause::Frozen,
    }
}

fn show_snapshot(snapshot: &Snapshot) -> VolumeSnapshot {
    VolumeSnapshot {
        number: snapshot.number,
        cause: show_cause(snapshot.cut),
        generation: snapshot.line.generation.0,
        sealed_unix_s: snapshot.sealed_unix_s,
        taken_unix_s: snapshot.taken_unix_s,
        pinned: snapshot.is_pinned,
    }
}

fn forks_of(lines: &[(LineKey, LineRow)]) -> Vec<VolumeFork> {
    let forks = lines.iter().filter_map(|(key, row)| {
        let (generation, name) = key.fork?;
        Some(VolumeFork {
            name: fork_name(generation, name),
            generation: generation.0,
            whole: row.applied.seq > 0,
            sealed_unix_s: row.sealed_unix_s,
        })
    });
    forks.collect()
}

impl Datacenter {
    /// At most `limit` volumes after `after`, in the order of their ids; with `branch` only those whose home it is.
    pub fn volume_list(
        &self,
        after: Option<&str>,
        branch: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Volume>, ManageError> {
        let after: Option<DesktopId> = match after {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| {
                ManageError::invalid("`after` is to be the id of a volume, from the page before")
            })?),
        };
        self.catalog().read(|tx| {
            let home = match branch {
                None => None,
                Some(name) => Some(require_branch(tx, name)?.0),
            };
            let mut volumes = Vec::new();
            let mut after = after;
            while volumes.len() < limit {
                let rows = tx.list::<VolumeRow>(&[], after.as_ref(), limit.max(64))?;
                let Some((last, _)) = rows.last() else { break };
                after = Some(*last);
                for (id, row) in &rows {
                    let is_wanted = home.is_none_or(|home| row.home == home);
                    if is_wanted && volumes.len() < limit {
                        let lines = tx.list::<LineRow>(&id.0, None, LINES_MAX)?;
                        volumes.push(self.show_volume(tx, *id, row, &lines)?);
                    }
                }
            }
            Ok(volumes)
        })
    }

    /// A volume with all that is kept of it.
    pub fn volume_state(&self, text: &str) -> Result<VolumeState, ManageError> {
        self.catalog().read(|tx| {
            let (id, row) = find(tx, text)?;
            let lines = tx.list::<LineRow>(&id.0, None, LINES_MAX)?;
            let snapshots = tx.list::<Snapshot>(&id.0, None, SNAPSHOTS_MAX)?;
            let authority: Option<AuthorityRow> = tx.get(&id)?;
            let mut ended = Vec::new();
            for past in authority.iter().flat_map(|row| &row.past) {
                ended.push(EndedLease {
                    generation: past.generation.0,
                    branch: branch_name(tx, past.branch)?,
                    reason: past.ended.reason().to_owned(),
                    ended_unix_s: past.ended_unix_s,
                });
            }
            Ok(VolumeState {
                volume: self.show_volume(tx, id, &row, &lines)?,
                snapshots: snapshots.iter().map(|(_, s)| show_snapshot(s)).collect(),
                forks: forks_of(&lines),
                ended,
            })
        })
    }

    fn show_volume(
        &self,
        tx: &mut Tx<'_>,
        id: DesktopId,
        row: &VolumeRow,
        lines: &[(LineKey, LineRow)],
    ) -> Result<Volume, CatalogError> {
        let now = self.now_unix_s();
        let own = lines.iter().find(|(key, _)| key.fork.is_none());
        let own = own.map(|(_, line)| line);
        let authority: Option<AuthorityRow> = tx.get(&id)?;
        let lease = authority.and_then(|row| Some((row.last, row.holder?)));
        let told = self.told_of(id);
        let told = told.filter(|told| lease.as_ref().is_some_and(|(g, _)| *g == told.generation));
        let lag = told.zip(own).map(|(told, line)| {
            let applied = line.progress(told.generation).applied.seq;
            told.flushed.saturating_sub(applied)
        });
        let applied = own.map(|line| line.sealed_unix_s).filter(|at| *at > 0);
        // While it said that nothing was behind, nothing was.
        let whole_at = told.filter(|_| lag == Some(0)).map(|told| told.unix_s);
        let granted = lease.as_ref().map(|(_, holder)| holder.issued_unix_s);
        let covered = applied.max(whole_at).or(granted);
        let lease = match lease {
            None => None,
            Some((generation, holder)) => Some(VolumeLease {
                branch: branch_name(tx, holder.branch)?,
                generation: generation.0,
                renewal: holder.renewal,
                issued_unix_s: holder.issued_unix_s,
                expires_unix_s: holder.expires_unix_s,
                ends_unix_s: holder.expires_unix_s.saturating_add(holder.offline_grace_s),
            }),
        };
        let version = match row.version {
            None => None,
            Some(version) => {
                let found: Option<VersionRow> = tx.get(&version)?;
                Some(found.map_or_else(
                    || version.to_string(),
                    |found| format!("{}@{}", found.image, found.number),
                ))
            }
        };
        Ok(Volume {
            id: id.to_string(),
            desktop: row.desktop.clone(),
            kind: match row.kind {
                VolumeKind::System => Shown::System,
                VolumeKind::User => Shown::User,
            },
            pool: row.pool.clone(),
            home: branch_name(tx, row.home)?,
            size_bytes: row.began.size_bytes,
            version,
            rpo_s: covered
                .filter(|_| lease.is_some())
                .map(|at| now.saturating_sub(at)),
            lease,
            applied_unix_s: applied,
            lag_records: lag,
            snapshots: tx.list::<Snapshot>(&id.0, None, SNAPSHOTS_MAX)?.len() as u64,
            forks: forks_of(lines).len() as u64,
        })
    }

    /// What the volume's holder last said, if it is worked with. Nothing is waited for: whoever has the machines may wait for the transaction
    /// that this is called in.
    pub(super) fn told_of(&self, id: DesktopId) -> Option<Told> {
        let open = self.volumes().open.try_lock().ok()?;
        let machines = Arc::clone(&open.get(&id)?.machines);
        drop(open);
        machines.try_lock().ok()?.told
    }

    /// Cuts a snapshot of what is here of a volume now. It stays until somebody deletes it.
    pub fn snapshot_volume(&self, text: &str) -> Result<VolumeSnapshot, ManageError> {
        let now = self.now_unix_s();
        let snapshot = self.catalog().transact(|tx| {
            let (id, mut row) = find(tx, text)?;
            let line: Option<LineRow> = tx.get(&LineKey::own(id))?;
            let line = line.ok_or_else(|| {
                ManageError::not_found(
                    "line of volume",
                    text,
                    "report this: the catalog is damaged",
                )
            })?;
            refuse_if_full(tx, id)?;
            row.snapshots += 1;
            let snapshot = Snapshot {
                number: row.snapshots,
                line: line.line,
                at: line.applied,
                cut: Cut::Asked,
                sealed_unix_s: line.sealed_unix_s,
                taken_unix_s: now,
                is_pinned: false,
                disks: line.disks,
            };
            tx.put(&id, &row);
            let key = SnapshotKey {
                volume: id,
                number: snapshot.number,
            };
            tx.put(&key, &snapshot);
            Ok::<_, ManageError>(snapshot)
        })?;
        Ok(show_snapshot(&snapshot))
    }

    /// The part of the realm that a volume is in.
    pub(crate) fn volume_place(&self, text: &str) -> Result<Place, ManageError> {
        self.catalog().read(|tx| {
            let (_, row) = find(tx, text)?;
            Ok(Place {
                branch: Some(branch_name(tx, row.home)?),
                pool: Some(row.pool),
            })
        })
    }

    /// Deletes a snapshot.
    pub fn drop_snapshot(&self, text: &str, number: u64, why: &str) -> Result<(), ManageError> {
        let why = reason(why)?;
        let now = self.now_unix_s();
        self.catalog().transact(|tx| {
            let (id, row) = find(tx, text)?;
            let snapshot = require_snapshot(tx, id, text, number)?;
            tx.delete::<Snapshot>(&SnapshotKey { volume: id, number });
            let entry = VolumeEvent {
                unix_s: now,
                event: AuditEvent::SnapshotDeleted,
                volume: id,
                desktop: row.desktop,
                generation: snapshot.line.generation,
                branch: None,
                reason: format!("snapshot {number}: {why}"),
            };
            audit(tx, &entry)?;
            Ok(())
        })
    }

    /// A snapshot's name for people and its disk.
    pub fn snapshot_disk(&self, text: &str, number: u64) -> Result<(String, TreeRef), ManageError> {
        self.catalog().read(|tx| {
            let (id, row) = find(tx, text)?;
            let snapshot = require_snapshot(tx, id, text, number)?;
            let disk = snapshot.disks.first().copied();
            let disk = disk.ok_or_else(|| ManageError::Manifest {
                message: format!("snapshot {number} of {id} has no disk"),
            })?;
            Ok((format!("{} ({id}), snapshot {number}", row.desktop), disk))
        })
    }

    /// Breaks a lease.
    pub fn break_lease(
        &self,
        text: &str,
        request: &BreakLeaseRequest,
    ) -> Result<VolumeState, ManageError> {
        let why = reason(&request.reason)?;
        let (id, row, home) = self.catalog().read(|tx| {
            let (id, row) = find(tx, text)?;
            let home = match &request.home {
                None => row.home,
                Some(name) => require_branch(tx, name)?.0,
            };
            Ok::<_, ManageError>((id, row, home))
        })?;
        self.break_volume_lease(id, &row, why, request.force, home)?
            .map_err(|error| {
                ManageError::conflict(
                    error.to_string(),
                    "`splice desktop-state show` tells who holds it; add --force to break it nevertheless",
                )
            })?;
        self.nobody_holds(id);
        self.volume_state(&id.to_string())
    }

    /// Nobody holds a volume any more, by IT's word: a checkout or a move that waits for its branch to give it back waits no more.
    pub(super) fn nobody_holds(&self, volume: DesktopId) {
        self.advance_checkout_of(volume);
        self.advance_move(volume);
    }
}

/// Fails if a volume has as many snapshots as are kept.
pub(super) fn refuse_if_full(tx: &mut Tx<'_>, id: DesktopId) -> Result<(), ManageError> {
    if tx.list::<Snapshot>(&id.0, None, SNAPSHOTS_MAX)?.len() < SNAPSHOTS_MAX {
        return Ok(());
    }
    Err(ManageError::conflict(
        format!("the volume has {SNAPSHOTS_MAX} snapshots already"),
        "delete some: `splice desktop-state drop-snapshot`",
    ))
}

pub(super) fn require_snapshot(
    tx: &mut Tx<'_>,
    id: DesktopId,
    text: &str,
    number: u64,
) -> Result<Snapshot, ManageError> {
    tx.get(&SnapshotKey { volume: id, number })?.ok_or_else(|| {
        ManageError::not_found(
            "snapshot",
            number.to_string(),
            format!("`splice desktop-state show {text}` lists them"),
        )
    })
}
