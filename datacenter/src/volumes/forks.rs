//! Forks: what a branch wrote under a lease that had ended, kept until IT decides about it; and volumes that nobody wants any more.
//!
//! A fork is discarded, or made the volume's state; that is possible while nobody holds the volume, and the state before stays as a
//! snapshot. The next lease goes on behind the fork's history, so that nobody who goes on behind the former one fits.

use std::sync::{Arc, Mutex};

use datacenter_api::VolumeState;
use dedup::DesktopId;
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::authority::{AuthorityAction, AuthorityRow};
use dedup_protocol::state::message::Cut;
use dedup_protocol::state::writeback::{LineRow, Snapshot};
use dedup_protocol::state::{Generation, Head, Nonce, Position};

use super::keep::{audit, drop_parts};
use super::manage::{find, reason, refuse_if_full};
use super::{LINES_MAX, Machines, OpenLine, StateError, fork_name, lock, parse_fork};
use crate::catalog::CatalogError;
use crate::catalog::volumes::{
    AuditEvent, BeginRow, LineKey, MoveRow, SnapshotKey, VolumeEvent, VolumeRow,
};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

fn missing(text: &str, fork: &str) -> ManageError {
    ManageError::not_found(
        "fork",
        fork,
        format!("`splice desktop-state fork list {text}` lists them"),
    )
}

/// Whoever holds all of these waits until no state of the volume is built: what it is built from would go.
pub(super) fn building_of(machines: &Mutex<Machines>) -> Vec<Arc<Mutex<()>>> {
    let machines = lock(machines);
    let lines = machines.lines.values();
    lines.map(|line| Arc::clone(&line.building)).collect()
}

/// What is made of a volume's own row when another state of its becomes the newest: its disks, the history up to there, and when it was sealed.
pub(super) fn replaced(
    own: &LineRow,
    disks: &[TreeRef],
    head: Head,
    sealed_unix_s: u64,
) -> LineRow {
    let at = Position {
        seq: own.applied.seq,
        head,
    };
    LineRow {
        line: own.line,
        applied: at,
        before: at,
        newest: Nonce::NONE,
        sealed_unix_s,
        disks: disks.to_vec(),
        staged: None,
    }
}

impl Datacenter {
    pub(super) fn find_volume(&self, text: &str) -> Result<(DesktopId, VolumeRow), ManageError> {
        self.catalog().read(|tx| find(tx, text))
    }

    /// An entry of the audit log.
    pub(super) fn entry(
        &self,
        id: DesktopId,
        volume: &VolumeRow,
        event: AuditEvent,
        generation: Generation,
        reason: String,
    ) -> VolumeEvent {
        VolumeEvent {
            unix_s: self.now_unix_s(),
            event,
            volume: id,
            desktop: volume.desktop.clone(),
            generation,
            branch: None,
            reason,
        }
    }

    /// Discards a fork: what it shows is collected.
    pub fn discard_fork(
        &self,
        text: &str,
        fork: &str,
        why: &str,
    ) -> Result<VolumeState, ManageError> {
        let why = reason(why)?;
        let (id, volume) = self.find_volume(text)?;
        let name = parse_fork(fork).ok_or_else(|| missing(text, fork))?;
        let key = LineKey {
            volume: id,
            fork: Some(name),
        };
        let entry = self.entry(
            id,
            &volume,
            AuditEvent::ForkDiscarded,
            name.0,
            format!("fork {}: {why}", fork_name(name.0, name.1)),
        );
        let machines = self.machines(id, &volume)?;
        let building = building_of(&machines);
        let _still: Vec<_> = building.iter().map(|turn| lock(turn)).collect();
        let mut machines = lock(&machines);
        let done = self.catalog().transact(|tx| {
            let row: Option<LineRow> = tx.get(&key)?;
            let row = row.ok_or_else(|| missing(text, fork))?;
            drop_parts(tx, key, &row);
            tx.delete::<LineRow>(&key);
            audit(tx, &entry)?;
            Ok::<_, ManageError>(())
        });
        if let Err(error) = done {
            self.forget_volume(id);
            return Err(error);
        }
        machines.lines.remove(&key);
        drop(machines);
        tracing::warn!(volume = %id, desktop = volume.desktop, fork, reason = why, "fork discarded");
        self.volume_state(&id.to_string())
    }

    /// Makes a fork that is whole the volume's state.
    pub fn restore_fork(
        &self,
        text: &str,
        fork: &str,
        why: &str,
    ) -> Result<VolumeState, ManageError> {
        let why = reason(why)?;
        let (id, volume) = self.find_volume(text)?;
        let name = parse_fork(fork).ok_or_else(|| missing(text, fork))?;
        let key = LineKey {
            volume: id,
            fork: Some(name),
        };
        let entry = self.entry(
            id,
            &volume,
            AuditEvent::ForkRestored,
            name.0,
            format!("fork {}: {why}", fork_name(name.0, name.1)),
        );
        let machines = self.machines(id, &volume)?;
        let building = building_of(&machines);
        let _still: Vec<_> = building.iter().map(|turn| lock(turn)).collect();
        let mut machines = lock(&machines);
        let done = self.catalog().transact(|tx| {
            let authority: Option<AuthorityRow> = tx.get(&id)?;
            if authority.is_some_and(|row| row.holder.is_some()) {
                return Err(ManageError::conflict(
                    "a branch holds the volume",
                    "have it given back, or break its lease: `splice desktop-state break-lease`",
                ));
            }
            let row: Option<LineRow> = tx.get(&key)?;
            let row = row.ok_or_else(|| missing(text, fork))?;
            if row.applied.seq == 0 || row.staged.is_some() {
                return Err(ManageError::conflict(
                    "the fork is not whole yet",
                    "wait until its branch has sent all of it",
                ));
            }
            let own_key = LineKey::own(id);
            let own: LineRow = tx.get(&own_key)?.ok_or(CatalogError::Row {
                table: crate::catalog::backend::Table::Lines,
                reason: format!("volume {id} has none"),
            })?;
            keep_former(tx, id, &own, self.now_unix_s())?;
            drop_parts(tx, own_key, &own);
            let restored = replaced(&own, &row.disks, row.applied.head, row.sealed_unix_s);
            tx.put(&own_key, &restored);
            tx.delete::<LineRow>(&key);
            audit(tx, &entry)?;
            Ok(restored)
        });
        let restored = match done {
            Ok(restored) => restored,
            Err(error) => {
                self.forget_volume(id);
                return Err(error);
            }
        };
        machines.lines.remove(&key);
        machines
            .lines
            .insert(LineKey::own(id), OpenLine::open(restored, true));
        drop(machines);
        tracing::warn!(volume = %id, desktop = volume.desktop, fork, reason = why, "fork restored");
        self.volume_state(&id.to_string())
    }

    /// Expects nothing more of a generation that has ended: what its branch still brings is refused, and what it began with is collected.
    pub fn settle_generation(
        &self,
        text: &str,
        generation: u64,
        why: &str,
    ) -> Result<VolumeState, ManageError> {
        let why = reason(why)?;
        let (id, volume) = self.find_volume(text)?;
        let generation = Generation(generation);
        let machines = self.machines(id, &volume)?;
        let mut machines = lock(&machines);
        let has_fork = |key: &LineKey| key.fork.is_some_and(|(of, _)| of == generation);
        // One of which nothing is durable is as good as none.
        machines
            .lines
            .retain(|key, line| line.kept.is_some() || !has_fork(key));
        if machines.lines.keys().any(has_fork) {
            return Err(ManageError::conflict(
                format!("{generation} has forks"),
                "restore or discard them first: `splice desktop-state fork`",
            ));
        }
        let mut authority = machines.authority.clone();
        let actions = authority.forget(generation);
        let Some(AuthorityAction::Keep(row, _)) = actions.into_iter().next() else {
            return Err(ManageError::not_found(
                "ended lease",
                generation.to_string(),
                format!("`splice desktop-state show {text}` lists them"),
            ));
        };
        let event = AuditEvent::GenerationSettled;
        let entry = self.entry(id, &volume, event, generation, why.to_owned());
        let home = volume.home;
        self.keep_authority(&mut machines, id, &volume, row, Some(entry), home)?;
        machines.authority = authority;
        drop(machines);
        tracing::warn!(volume = %id, desktop = volume.desktop, generation = generation.0, reason = why, "an ended lease is settled");
        self.volume_state(&id.to_string())
    }
}

impl Datacenter {
    /// Deletes a volume that nobody holds, with its snapshots. Generations of its id go on above those it had, should a branch tell of it again.
    pub fn delete_volume(&self, text: &str, why: &str) -> Result<(), ManageError> {
        let why = reason(why)?;
        let (id, volume) = self.find_volume(text)?;
        let event = AuditEvent::VolumeDeleted;
        let entry = self.entry(id, &volume, event, Generation::NONE, why.to_owned());
        let machines = self.machines(id, &volume)?;
        let building = building_of(&machines);
        let _still: Vec<_> = building.iter().map(|turn| lock(turn)).collect();
        // Nobody writes meanwhile; whoever comes later finds no volume.
        let _turn = lock(&machines);
        self.catalog().transact(|tx| {
            let authority: Option<AuthorityRow> = tx.get(&id)?;
            if authority.as_ref().is_some_and(|row| row.holder.is_some()) {
                return Err(ManageError::conflict(
                    "a branch holds the volume",
                    "delete the desktop there, or break its lease: `splice desktop-state break-lease`",
                ));
            }
            let lines = tx.list::<LineRow>(&id.0, None, LINES_MAX)?;
            if lines.iter().any(|(key, _)| key.fork.is_some()) {
                return Err(ManageError::conflict(
                    "the volume has forks",
                    "restore or discard them first: `splice desktop-state fork`",
                ));
            }
            for (key, row) in &lines {
                drop_parts(tx, *key, row);
                tx.delete::<LineRow>(key);
            }
            for (key, _) in tx.list::<Snapshot>(&id.0, None, usize::MAX / 2)? {
                tx.delete::<Snapshot>(&key);
            }
            for (key, _) in tx.list::<BeginRow>(&id.0, None, usize::MAX / 2)? {
                tx.delete::<BeginRow>(&key);
            }
            if let Some(mut row) = authority {
                row.past.clear();
                tx.put(&id, &row);
            }
            tx.delete::<VolumeRow>(&id);
            tx.delete::<MoveRow>(&id);
            audit(tx, &entry)?;
            Ok::<_, ManageError>(())
        })?;
        self.forget_volume(id);
        // Counted again when it matters.
        *lock(&self.volumes().counts) = None;
        tracing::warn!(volume = %id, desktop = volume.desktop, reason = why, "volume deleted");
        Ok(())
    }
}

/// Keeps a state that is replaced, as a snapshot that retention leaves alone.
pub(super) fn keep_former(
    tx: &mut crate::catalog::Tx<'_>,
    id: DesktopId,
    own: &LineRow,
    now_unix_s: u64,
) -> Result<(), ManageError> {
    let Some(mut volume) = tx.get::<VolumeRow>(&id)? else {
        return Err(StateError::Stale.into());
    };
    refuse_if_full(tx, id)?;
    volume.snapshots += 1;
    let number = volume.snapshots;
    let snapshot = Snapshot {
        number,
        line: own.line,
        at: own.applied,
        cut: Cut::None,
        sealed_unix_s: own.sealed_unix_s,
        taken_unix_s: now_unix_s,
        is_pinned: true,
        disks: own.disks.clone(),
    };
    tx.put(&id, &volume);
    tx.put(&SnapshotKey { volume: id, number }, &snapshot);
    Ok(())
}
