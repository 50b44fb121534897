//! Moving a desktop: another branch becomes the home of its volumes, and whoever holds them is asked to give them back.
//!
//! ```text
//!   asked: the homes are changed, one transaction ──► the source is told (RecallLease) ──► it stands still, sends the rest, gives back
//!                                                                                                      │ nobody holds any
//!   done: the target holds all of them ◄── it asks, fetches manifests, then chunks on demand ◄── the target is told (Moved)
//! ```
//!
//! Invariant: the owner of a volume is who holds it, else its home; there is one at every step, because both are rows that change in transactions. What a move
//! waits for follows from these rows, so nothing of it is lost in a crash: both branches are told again on their next connection.

mod plan;
mod shown;

use datacenter_api::{Move, MoveRequest};
use dedup::{BranchId, DesktopId};
use dedup_protocol::state::authority::{AuthorityRow, BreakError};
use dedup_protocol::state::checkout::UserVolume;
use dedup_protocol::state::message::RecallLease;
use dedup_protocol::state::moved::MovedDesktop;
use dedup_protocol::wire::Message;

use super::checkout::of_volume;
use super::keep::audit;
use super::lock;
use super::manage::{find, reason};
use crate::branches::require_branch;
use crate::catalog::rows::BranchRow;
use crate::catalog::volumes::{AuditEvent, MoveEnd, MoveRow, VolumeEvent, VolumeRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::{ManageError, describe};

/// Most moves that are listed. One for each desktop that was ever moved is kept.
const MOVES_MAX: usize = 100_000;

/// A branch, as a request names it.
struct Named {
    id: BranchId,
    name: String,
}

/// The branch that holds a volume, if one does.
fn holder(tx: &mut Tx<'_>, volume: DesktopId) -> Result<Option<BranchId>, CatalogError> {
    let row: Option<AuthorityRow> = tx.get(&volume)?;
    Ok(row.and_then(|row| row.holder).map(|holder| holder.branch))
}

/// Who holds each of a move's volumes.
fn holders(tx: &mut Tx<'_>, row: &MoveRow) -> Result<Vec<Option<BranchId>>, CatalogError> {
    let volumes = row.volumes();
    volumes.iter().map(|volume| holder(tx, *volume)).collect()
}

fn told(row: &MoveRow) -> MovedDesktop {
    MovedDesktop {
        name: row.desktop.clone(),
        pool: row.pool.clone(),
        identity: row.identity,
        system: row.system,
        user: row
            .user
            .map(|(id, size_bytes)| UserVolume { id, size_bytes }),
    }
}

impl Datacenter {
    /// Moves a desktop to another branch. Asked again, it goes on with the same move.
    pub fn move_desktop(&self, request: &MoveRequest) -> Result<Move, ManageError> {
        let why = reason(&request.reason)?;
        let (from, to) = self.catalog().read(|tx| {
            let from = named(tx, &request.from)?;
            Ok::<_, ManageError>((from, named(tx, &request.to)?))
        })?;
        if from.id == to.id {
            return Err(ManageError::invalid("a desktop is moved to another branch"));
        }
        let desktop = self.reported(&from, &request.desktop)?;
        if self.link_remote(to.id).is_none() {
            return Err(ManageError::conflict(
                format!(
                    "branch {} is not reachable, so nobody could run the desktop",
                    to.name
                ),
                "wait until its link is up",
            ));
        }
        let row = self.plan(&desktop, &from, &to, request)?;
        self.refuse_name(&to, &row)?;
        let is_held = self.catalog().read(|tx| {
            let held = holders(tx, &row)?;
            Ok::<_, CatalogError>(held.contains(&Some(from.id)))
        })?;
        if is_held && self.link_remote(from.id).is_none() && !request.break_lease {
            return Err(ManageError::conflict(
                format!(
                    "branch {} holds the desktop and is not reachable: what it wrote and has not sent is only there",
                    from.name
                ),
                "wait until its link is up; or move it without that by --break-lease: what the branch brings later becomes a fork",
            ));
        }
        self.begin_move(&row, why)?;
        if request.break_lease {
            self.break_leases(&row, why)?;
        }
        tracing::warn!(
            desktop = row.desktop,
            from = from.name,
            to = to.name,
            reason = why,
            "a desktop is moved"
        );
        let first = row.volumes()[0];
        self.recall(&row);
        self.advance_move(first);
        self.show_move(first)
    }

    /// From here on the target may ask for the volumes, and nobody else.
    fn begin_move(&self, row: &MoveRow, why: &str) -> Result<(), ManageError> {
        let now = self.now_unix_s();
        self.catalog().transact(|tx| {
            for volume in row.volumes() {
                // What was planned was looked up before this transaction.
                if of_volume(tx, volume)?.is_some() {
                    return Err(ManageError::conflict(
                        "the desktop was checked out to a laptop meanwhile",
                        "have it checked in first: `splice laptop check-in`",
                    ));
                }
                let known: Option<VolumeRow> = tx.get(&volume)?;
                let known = known.filter(|known| known.home == row.from || known.home == row.to);
                let Some(mut known) = known else {
                    return Err(ManageError::conflict(
                        "a volume of the desktop was moved or deleted meanwhile",
                        "look again: `splice desktop-state list`",
                    ));
                };
                known.home = row.to;
                known.pool.clone_from(&row.pool);
                tx.put(&volume, &known);
                tx.put(&volume, row);
                audit(tx, &entry(row, volume, AuditEvent::Moved, why, now))?;
            }
            Ok(())
        })?;
        self.homes_changed(row);
        Ok(())
    }

    /// Machines are loaded under a volume's home, and counted by it.
    fn homes_changed(&self, row: &MoveRow) {
        for volume in row.volumes() {
            self.forget_volume(volume);
        }
        // Counted again when it matters.
        *lock(&self.volumes().counts) = None;
    }

    /// Breaks the leases of a move's source. What it has not sent becomes a fork.
    fn break_leases(&self, row: &MoveRow, why: &str) -> Result<(), ManageError> {
        for id in row.volumes() {
            let volume = self.volume_row(id)?;
            let held = self.catalog().read(|tx| holder(tx, id))?;
            let Some(volume) = volume.filter(|_| held == Some(row.from)) else {
                continue;
            };
            let broken = self.break_volume_lease(id, &volume, why, true, row.to)?;
            match broken {
                Ok(()) | Err(BreakError::NotHeld) => {}
                Err(error) => return Err(ManageError::conflict(error.to_string(), "try again")),
            }
        }
        Ok(())
    }

    /// Tells the source that it is to give the volumes back.
    fn recall(&self, row: &MoveRow) {
        for message in self.recalls(row) {
            self.notify(row.from, message);
        }
    }

    fn recalls(&self, row: &MoveRow) -> Vec<Message> {
        let found = self.catalog().read(|tx| {
            let mut recalls = Vec::new();
            for desktop in row.volumes() {
                let authority: Option<AuthorityRow> = tx.get(&desktop)?;
                let held = authority.filter(|authority| {
                    let holder = authority.holder.as_ref();
                    holder.is_some_and(|holder| holder.branch == row.from)
                });
                recalls.extend(held.map(|authority| {
                    Message::RecallLease(RecallLease {
                        desktop,
                        generation: authority.last,
                    })
                }));
            }
            Ok::<_, CatalogError>(recalls)
        });
        found.unwrap_or_else(|error| {
            tracing::error!(
                desktop = row.desktop,
                error = describe(&error),
                "leases cannot be recalled now; it is done when its branch asks for the next ones"
            );
            Vec::new()
        })
    }

    /// What a branch that has just connected is to be told of moves.
    pub(crate) fn moves_to_tell(&self, branch: BranchId) -> Vec<Message> {
        let found = self.catalog().read(|tx| {
            let mut open = Vec::new();
            for (volume, row) in tx.list::<MoveRow>(&[], None, MOVES_MAX)? {
                let is_first = row.volumes().first() == Some(&volume);
                if row.end.is_none() && is_first && (row.from == branch || row.to == branch) {
                    open.push((volume, holders(tx, &row)?, row));
                }
            }
            Ok::<_, CatalogError>(open)
        });
        let open = found.unwrap_or_else(|error| {
            tracing::error!(%branch, error = describe(&error), "moves of desktops cannot be read");
            Vec::new()
        });
        let messages = open.into_iter().flat_map(|(first, held, row)| {
            if held.iter().all(|held| *held == Some(row.to)) {
                // That it is done could not be kept when it was.
                self.advance_move(first);
                return Vec::new();
            }
            if row.from == branch {
                return self.recalls(&row);
            }
            let is_free = held.iter().all(|held| held.is_none_or(|b| b == row.to));
            let moved = is_free.then(|| Message::Moved(told(&row)));
            moved.into_iter().collect()
        });
        messages.collect()
    }

    /// A lease of a volume was given or has ended: if it is being moved, that goes on.
    pub(super) fn advance_move(&self, volume: DesktopId) {
        if let Err(error) = self.try_advance_move(volume) {
            tracing::error!(%volume, error = describe(&error), "a move of a desktop goes on when one of its branches connects again");
        }
    }

    fn try_advance_move(&self, volume: DesktopId) -> Result<(), CatalogError> {
        let now = self.now_unix_s();
        let found = self.catalog().read(|tx| {
            let row: Option<MoveRow> = tx.get(&volume)?;
            let Some(row) = row.filter(|row| row.end.is_none()) else {
                return Ok::<_, CatalogError>(None);
            };
            let held = holders(tx, &row)?;
            Ok(Some((row, held)))
        })?;
        let Some((row, held)) = found else {
            return Ok(());
        };
        if held.iter().all(|held| *held == Some(row.to)) {
            self.catalog()
                .transact(|tx| end(tx, &row, MoveEnd::Done { unix_s: now }))?;
            tracing::info!(desktop = row.desktop, branch = %row.to, "a desktop was moved");
        } else if held
            .iter()
            .all(|held| held.is_none_or(|branch| branch == row.to))
        {
            self.notify(row.to, Message::Moved(told(&row)));
        }
        Ok(())
    }

    /// Takes a move back, as long as the target holds nothing.
    pub fn cancel_move(&self, text: &str, why: &str) -> Result<Move, ManageError> {
        let why = reason(why)?;
        let now = self.now_unix_s();
        let (first, row) = self.catalog().transact(|tx| {
            let (first, row) = require_move(tx, text)?;
            if row.end.is_some() {
                return Err(ManageError::conflict(
                    "the move is over",
                    "`splice desktop-state moves` shows how",
                ));
            }
            if holders(tx, &row)?.contains(&Some(row.to)) {
                return Err(ManageError::conflict(
                    "its new branch holds a part of the desktop already",
                    "wait until it is there, then move it back",
                ));
            }
            for volume in row.volumes() {
                if let Some(mut known) = tx.get::<VolumeRow>(&volume)? {
                    known.home = row.from;
                    known.pool.clone_from(&row.from_pool);
                    tx.put(&volume, &known);
                }
                audit(
                    tx,
                    &entry(&row, volume, AuditEvent::MoveCancelled, why, now),
                )?;
            }
            end(tx, &row, MoveEnd::Cancelled { unix_s: now })?;
            Ok((first, row))
        })?;
        self.homes_changed(&row);
        tracing::warn!(
            desktop = row.desktop,
            reason = why,
            "a move of a desktop was taken back"
        );
        self.show_move(first)
    }
}

fn named(tx: &mut Tx<'_>, name: &str) -> Result<Named, ManageError> {
    let (id, row): (BranchId, BranchRow) = require_branch(tx, name)?;
    Ok(Named { id, name: row.name })
}

fn entry(
    row: &MoveRow,
    volume: DesktopId,
    event: AuditEvent,
    why: &str,
    unix_s: u64,
) -> VolumeEvent {
    VolumeEvent {
        unix_s,
        event,
        volume,
        desktop: row.desktop.clone(),
        generation: dedup_protocol::state::Generation::NONE,
        branch: Some(row.from),
        reason: why.to_owned(),
    }
}

/// Notes how a move ended, unless a later one took its place.
fn end(tx: &mut Tx<'_>, row: &MoveRow, end: MoveEnd) -> Result<(), CatalogError> {
    for volume in row.volumes() {
        if tx.get::<MoveRow>(&volume)?.as_ref() == Some(row) {
            let ended = MoveRow {
                end: Some(end),
                ..row.clone()
            };
            tx.put(&volume, &ended);
        }
    }
    Ok(())
}

/// The move of the desktop that a volume is of, and its first volume.
fn require_move(tx: &mut Tx<'_>, text: &str) -> Result<(DesktopId, MoveRow), ManageError> {
    let (id, _) = find(tx, text)?;
    let row: Option<MoveRow> = tx.get(&id)?;
    let found = row.and_then(|row| Some((*row.volumes().first()?, row)));
    found.ok_or_else(|| {
        ManageError::not_found(
            "move of volume",
            text,
            "`splice desktop-state moves` lists the moves",
        )
    })
}
