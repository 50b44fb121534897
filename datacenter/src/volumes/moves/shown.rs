//! What people see of moves: where each volume is, and what is waited for.

use std::collections::HashMap;

use datacenter_api::{Move, MoveState, MoveVolume, VolumeKind as Shown};
use dedup::DesktopId;
use dedup_protocol::state::authority::AuthorityRow;
use dedup_protocol::state::writeback::LineRow;

use super::super::manage::branch_name;
use super::{MOVES_MAX, require_move};
use crate::catalog::CatalogError;
use crate::catalog::volumes::{LineKey, MoveEnd, MoveRow};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

impl Datacenter {
    /// All moves that were not replaced by later ones of the same desktops.
    pub fn moves(&self) -> Result<Vec<Move>, ManageError> {
        let firsts = self.catalog().read(|tx| {
            let rows = tx.list::<MoveRow>(&[], None, MOVES_MAX)?;
            let firsts = rows
                .into_iter()
                .filter(|(id, row)| row.volumes().first() == Some(id));
            Ok::<_, CatalogError>(firsts.map(|(id, _)| id).collect::<Vec<_>>())
        })?;
        firsts
            .into_iter()
            .map(|first| self.show_move(first))
            .collect()
    }

    /// The last move of the desktop that a volume is of.
    pub fn move_of(&self, text: &str) -> Result<Move, ManageError> {
        let (first, _) = self.catalog().read(|tx| require_move(tx, text))?;
        self.show_move(first)
    }

    pub(super) fn show_move(&self, first: DesktopId) -> Result<Move, ManageError> {
        let (row, names, volumes) = self.catalog().read(|tx| {
            let row: Option<MoveRow> = tx.get(&first)?;
            let row = row.ok_or_else(|| {
                ManageError::not_found(
                    "move of volume",
                    first.to_string(),
                    "it was deleted meanwhile",
                )
            })?;
            let names = HashMap::from([
                (row.from, branch_name(tx, row.from)?),
                (row.to, branch_name(tx, row.to)?),
            ]);
            let mut volumes = Vec::new();
            for id in row.volumes() {
                let authority: Option<AuthorityRow> = tx.get(&id)?;
                let held = authority.and_then(|row| Some((row.last, row.holder?.branch)));
                let line: Option<LineRow> = tx.get(&LineKey::own(id))?;
                let told = self
                    .told_of(id)
                    .zip(held)
                    .filter(|(told, (last, _))| told.generation == *last);
                let lag_records = told.zip(line).map(|((told, _), line)| {
                    let applied = line.progress(told.generation).applied.seq;
                    told.flushed.saturating_sub(applied)
                });
                let holder = match held {
                    Some((_, branch)) => Some((branch, branch_name(tx, branch)?)),
                    None => None,
                };
                volumes.push((id, holder, lag_records));
            }
            Ok::<_, ManageError>((row, names, volumes))
        })?;
        let (from, to) = (&names[&row.from], &names[&row.to]);
        let is_at_source = volumes.iter().any(|(_, holder, _)| {
            holder
                .as_ref()
                .is_some_and(|(branch, _)| *branch == row.from)
        });
        let (state, ended_unix_s) = match row.end {
            Some(MoveEnd::Done { unix_s }) => (MoveState::Done, Some(unix_s)),
            Some(MoveEnd::Cancelled { unix_s }) => (MoveState::Cancelled, Some(unix_s)),
            None if is_at_source => (MoveState::Leaving, None),
            None => (MoveState::Arriving, None),
        };
        let says = match state {
            MoveState::Done => format!("branch {to} holds it"),
            MoveState::Cancelled => format!("it stays at branch {from}"),
            MoveState::Leaving => self.leaving(&row, from)?,
            MoveState::Arriving => self.arriving(&row, to)?,
        };
        let system = row.system.map(|(id, _)| id);
        let volumes = volumes
            .into_iter()
            .map(|(id, holder, lag_records)| MoveVolume {
                id: id.to_string(),
                kind: if system == Some(id) {
                    Shown::System
                } else {
                    Shown::User
                },
                held_by: holder.map(|(_, name)| name),
                lag_records,
            });
        Ok(Move {
            id: first.to_string(),
            desktop: row.desktop.clone(),
            from: from.clone(),
            to: to.clone(),
            pool: row.pool.clone(),
            state,
            says,
            volumes: volumes.collect(),
            asked_unix_s: row.asked_unix_s,
            ended_unix_s,
        })
    }

    /// What a move waits for whose source still holds something.
    fn leaving(&self, row: &MoveRow, from: &str) -> Result<String, CatalogError> {
        if self.link_remote(row.from).is_none() {
            return Ok(format!(
                "waits for branch {from}, which is not reachable; asked again with --break-lease it goes on without what that has not sent"
            ));
        }
        let status = self.branch_status(row.from)?;
        let mut desktops = status.into_iter().flat_map(|(_, status)| status.desktops);
        let there = desktops.find(|desktop| desktop.id == row.desktop);
        Ok(match there.map(|desktop| desktop.state) {
            Some(state) if !matches!(state.as_str(), "stopped" | "failed") => {
                format!("waits until the desktop is stopped at branch {from}, where it is {state}")
            }
            _ => format!("branch {from} sends what is not here yet"),
        })
    }

    /// What a move waits for whose source has given everything back.
    fn arriving(&self, row: &MoveRow, to: &str) -> Result<String, CatalogError> {
        if self.link_remote(row.to).is_none() {
            return Ok(format!(
                "waits for branch {to}, which is not reachable; until it has it the move can be cancelled"
            ));
        }
        if self.other_of_name(row)? {
            return Ok(format!(
                "branch {to} has another desktop {:?}: delete that one there, or cancel the move",
                row.desktop
            ));
        }
        Ok(format!("branch {to} takes it in"))
    }
}
