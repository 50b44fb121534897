//! Rolling back: a snapshot becomes the state that a volume goes on behind.
//!
//! A branch that holds the volume is fenced first, so that its machine stops and all that it wrote becomes a fork. Then the volume's row says what the snapshot
//! says, and the state before stays as a snapshot that retention leaves alone. The next lease has the snapshot's history as its base, and its
//! branch fetches that state. Interrupted between the two, the lease is broken and nothing is rolled back: it is done again.

use datacenter_api::{RollBackRequest, VolumeState};
use dedup_protocol::state::authority::{AuthorityRow, BreakError};
use dedup_protocol::state::writeback::LineRow;

use super::forks::{building_of, keep_former, replaced};
use super::keep::{audit, drop_parts};
use super::manage::{reason, refuse_if_full, require_snapshot};
use super::{OpenLine, lock};
use crate::catalog::CatalogError;
use crate::catalog::volumes::{AuditEvent, LineKey};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

impl Datacenter {
    /// Makes a snapshot the state that a volume goes on behind.
    pub fn roll_back(
        &self,
        text: &str,
        number: u64,
        request: &RollBackRequest,
    ) -> Result<VolumeState, ManageError> {
        let why = reason(&request.reason)?;
        let (id, volume) = self.find_volume(text)?;
        let snapshot = self.catalog().read(|tx| {
            // Before a lease is broken for nothing: the state before has to be kept.
            refuse_if_full(tx, id)?;
            require_snapshot(tx, id, text, number)
        })?;
        let why = format!("to snapshot {number}: {why}");
        let broken = self.break_volume_lease(id, &volume, &why, request.force, volume.home)?;
        match broken {
            Ok(()) | Err(BreakError::NotHeld) => {}
            Err(error) => {
                return Err(ManageError::conflict(
                    error.to_string(),
                    "stop the desktop and wait until all of it is here, then add --force: its lease is broken, and what is not here becomes a fork",
                ));
            }
        }
        let event = AuditEvent::RolledBack;
        let entry = self.entry(id, &volume, event, snapshot.line.generation, why);
        let machines = self.machines(id, &volume)?;
        let building = building_of(&machines);
        let _still: Vec<_> = building.iter().map(|turn| lock(turn)).collect();
        let mut machines = lock(&machines);
        let key = LineKey::own(id);
        let done = self.catalog().transact(|tx| {
            let authority: Option<AuthorityRow> = tx.get(&id)?;
            if authority.is_some_and(|row| row.holder.is_some()) {
                return Err(ManageError::conflict(
                    "a branch was given the volume meanwhile",
                    "do it again",
                ));
            }
            // It might have been dropped.
            let snapshot = require_snapshot(tx, id, text, number)?;
            let own: LineRow = tx.get(&key)?.ok_or(CatalogError::Row {
                table: crate::catalog::backend::Table::Lines,
                reason: format!("volume {id} has none"),
            })?;
            keep_former(tx, id, &own, self.now_unix_s())?;
            drop_parts(tx, key, &own);
            let (disks, head) = (&snapshot.disks, snapshot.at.head);
            let back = replaced(&own, disks, head, snapshot.sealed_unix_s);
            tx.put(&key, &back);
            audit(tx, &entry)?;
            Ok(back)
        });
        let back = match done {
            Ok(back) => back,
            Err(error) => {
                self.forget_volume(id);
                drop(machines);
                self.nobody_holds(id);
                return Err(error);
            }
        };
        machines.lines.insert(key, OpenLine::open(back, true));
        drop(machines);
        // Not before: whoever is given it next goes on behind the snapshot.
        self.nobody_holds(id);
        tracing::warn!(volume = %id, desktop = volume.desktop, snapshot = number, reason = request.reason, "volume rolled back");
        self.volume_state(&id.to_string())
    }
}
