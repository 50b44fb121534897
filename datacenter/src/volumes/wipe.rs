//! Orders to destroy keys: of one desktop at a branch, or of a whole branch that is lost.
//!
//! ```text
//!   ordered (audited; a whole branch is revoked) ──next contact──► told, signed ──done there──► leases broken, settled ──► done (audited)
//! ```
//!
//! Invariant: an order is told on every connection until the branch says that it was done, and stays in the catalog for good. A branch that is wiped whole
//! is let in for that and nothing else ([`crate::sync`]). What the branch wrote and had not sent is given up: that is what is ordered.

use std::collections::BTreeSet;

use dedup::{BranchId, DesktopId};
use dedup_protocol::state::Generation;
use dedup_protocol::state::authority::{AuthorityRow, BreakError};
use dedup_protocol::wipe::{Target, VOLUMES_MAX, Wipe};

use datacenter_api::{WipeOrder, WipeRequest};

use super::checkout::next_number;
use super::keep::audit;
use super::manage::{branch_name, reason};
use crate::branches::require_branch;
use crate::catalog::laptop::{CheckoutRow, WipeKey, WipeRow};
use crate::catalog::rows::BranchRow;
use crate::catalog::volumes::{AuditEvent, VolumeEvent, VolumeRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

/// Stands for no volume in the audit log.
const NO_VOLUME: DesktopId = DesktopId([0; 16]);
/// All rows of a table.
const ALL: usize = usize::MAX / 2;
/// Most orders of a branch that are not done.
const PENDING_MAX: usize = 256;

fn of_branch(tx: &mut Tx<'_>, branch: BranchId) -> Result<Vec<(WipeKey, WipeRow)>, CatalogError> {
    tx.list::<WipeRow>(branch.as_bytes(), None, ALL)
}

fn show(tx: &mut Tx<'_>, key: WipeKey, row: WipeRow) -> Result<WipeOrder, CatalogError> {
    Ok(WipeOrder {
        number: key.number,
        branch: branch_name(tx, key.branch)?,
        desktop: row.desktop,
        reason: row.reason,
        ordered_unix_s: row.ordered_unix_s,
        done_unix_s: row.done_unix_s,
    })
}

impl Datacenter {
    fn wipe_entry(&self, key: WipeKey, row: &WipeRow, event: AuditEvent) -> VolumeEvent {
        let desktop = row.desktop.clone();
        VolumeEvent {
            unix_s: self.now_unix_s(),
            event,
            volume: row.volumes.first().copied().unwrap_or(NO_VOLUME),
            desktop: desktop.unwrap_or_default(),
            generation: Generation::NONE,
            branch: Some(key.branch),
            reason: format!("order {}: {}", key.number, row.reason),
        }
    }

    /// Orders a branch to destroy keys at its next contact.
    pub fn order_wipe(
        &self,
        branch: &str,
        request: &WipeRequest,
    ) -> Result<WipeOrder, ManageError> {
        let why = reason(&request.reason)?;
        let now = self.now_unix_s();
        let order = self.catalog().transact(|tx| {
            let (id, mut found) = require_branch(tx, branch)?;
            if found.joined_unix_s.is_none() {
                return Err(ManageError::conflict(
                    format!("branch {branch:?} has not joined"),
                    "there is nothing to wipe",
                ));
            }
            let orders = of_branch(tx, id)?;
            let pending = orders.iter().filter(|(_, row)| row.done_unix_s.is_none());
            if pending.count() >= PENDING_MAX {
                return Err(ManageError::conflict(
                    format!("branch {branch:?} has {PENDING_MAX} orders that are not done"),
                    "wipe all of it",
                ));
            }
            let before = orders.last().map_or(0, |(key, _)| key.number);
            let key = WipeKey {
                branch: id,
                number: next_number(tx, before, now)?,
            };
            let volumes = match &request.desktop {
                Some(desktop) => self.volumes_at(tx, (id, branch), desktop)?,
                None => {
                    // So that it gets nothing else from now on.
                    found.revoked_unix_s.get_or_insert(now);
                    tx.put(&id, &found);
                    Vec::new()
                }
            };
            let row = WipeRow {
                desktop: request.desktop.clone(),
                volumes,
                reason: why.to_owned(),
                ordered_unix_s: now,
                done_unix_s: None,
            };
            tx.put(&key, &row);
            let entry = self.wipe_entry(key, &row, AuditEvent::WipeOrdered);
            audit(tx, &entry)?;
            Ok(show(tx, key, row)?)
        })?;
        tracing::warn!(
            branch,
            desktop = request.desktop,
            order = order.number,
            reason = why,
            "a wipe is ordered"
        );
        self.announce_assignments();
        Ok(order)
    }

    /// The volumes of a desktop, as its branch last told of it.
    fn volumes_at(
        &self,
        tx: &mut Tx<'_>,
        (id, branch): (BranchId, &str),
        desktop: &str,
    ) -> Result<Vec<DesktopId>, ManageError> {
        let status = self.status_of(tx, id)?.map(|(_, status)| status);
        let desktops = status.map(|status| status.desktops).unwrap_or_default();
        let found = desktops.into_iter().find(|found| found.id == desktop);
        let found = found.unwrap_or_default();
        let volumes = found.volumes.iter();
        let volumes = volumes.filter_map(|volume| volume.id.parse().ok());
        let mut volumes: Vec<DesktopId> = volumes.take(VOLUMES_MAX - 1).collect();
        // By that it is found also if its system is another volume meanwhile: it was rebased, or began anew.
        if let Ok(identity) = found.identity.parse::<DesktopId>()
            && !volumes.is_empty()
            && !volumes.contains(&identity)
        {
            volumes.push(identity);
        }
        if volumes.is_empty() {
            return Err(ManageError::not_found(
                "desktop",
                desktop,
                format!(
                    "`splice branch show {branch}` lists those that it last told of; without --desktop all of the branch is wiped"
                ),
            ));
        }
        Ok(volumes)
    }

    /// The orders to a branch, oldest first.
    pub fn wipes(&self, branch: &str) -> Result<Vec<WipeOrder>, ManageError> {
        self.catalog().read(|tx| {
            let (id, _) = require_branch(tx, branch)?;
            let rows = of_branch(tx, id)?.into_iter();
            let shown = rows.map(|(key, row)| show(tx, key, row));
            Ok(shown.collect::<Result<_, _>>()?)
        })
    }

    /// The orders to a branch that are not done, as they are signed; with `whole` those to wipe all of it, done or not.
    pub fn wipes_to_tell(
        &self,
        branch: BranchId,
        whole: bool,
    ) -> Result<Vec<(u64, Vec<u8>)>, CatalogError> {
        let rows = self.catalog().read(|tx| of_branch(tx, branch))?;
        let rows = rows.into_iter().filter(|(_, row)| match whole {
            true => row.desktop.is_none(),
            false => row.desktop.is_some() && row.done_unix_s.is_none(),
        });
        let signed = rows.map(|(key, row)| {
            let target = match row.desktop {
                None => Target::Branch,
                Some(name) => Target::Desktop {
                    name,
                    volumes: row.volumes,
                },
            };
            let wipe = Wipe {
                realm: self.realm(),
                branch,
                number: key.number,
                issued_unix_s: row.ordered_unix_s,
                target,
            };
            (key.number, self.publisher().sign(&wipe).to_bytes())
        });
        Ok(signed.collect())
    }

    /// A branch says that it has destroyed what an order named. Its leases of that are over: nothing can come of them.
    pub fn record_wiped(&self, branch: BranchId, number: u64) -> Result<(), ManageError> {
        let key = WipeKey { branch, number };
        let row = self.catalog().read(|tx| tx.get::<WipeRow>(&key))?;
        let Some(row) = row.filter(|row| row.done_unix_s.is_none()) else {
            return Ok(());
        };
        let volumes = match row.desktop {
            Some(_) => row.volumes.clone(),
            None => self.volumes_of(branch)?,
        };
        for volume in volumes {
            if let Err(error) = self.give_up_volume(branch, volume, number) {
                // IT can do it by hand; that the keys are gone is to be known all the same.
                let error = crate::problem::describe(&error);
                tracing::error!(%branch, %volume, error, "the lease of a volume that was wiped is not ended; break it with `splice desktop-state break-lease`");
            }
        }
        let now = self.now_unix_s();
        self.catalog().transact(|tx| {
            let Some(mut row) = tx.get::<WipeRow>(&key)? else {
                return Ok::<_, CatalogError>(());
            };
            if row.done_unix_s.is_none() {
                row.done_unix_s = Some(now);
                tx.put(&key, &row);
                let entry = self.wipe_entry(key, &row, AuditEvent::Wiped);
                audit(tx, &entry)?;
            }
            Ok(())
        })?;
        tracing::warn!(%branch, order = number, "a branch has destroyed keys, as ordered");
        Ok(())
    }

    /// Volumes whose home a branch is, or that it holds while they are moved away.
    fn volumes_of(&self, branch: BranchId) -> Result<Vec<DesktopId>, CatalogError> {
        self.catalog().read(|tx| {
            let homes = tx.list::<VolumeRow>(&[], None, ALL)?.into_iter();
            let homes = homes.filter(|(_, row)| row.home == branch);
            let held = tx.list::<AuthorityRow>(&[], None, ALL)?.into_iter();
            let held = held.filter(|(_, row)| {
                let holder = row.holder.as_ref();
                holder.is_some_and(|holder| holder.branch == branch)
            });
            let ids = homes.map(|(id, _)| id).chain(held.map(|(id, _)| id));
            let ids: BTreeSet<DesktopId> = ids.collect();
            Ok(ids.into_iter().collect())
        })
    }

    /// Ends the lease that a branch has of a volume, and expects nothing of it. One that was checked out goes on where it was before, and one that is
    /// being moved where it is moved to. Another branch's lease stays.
    fn give_up_volume(
        &self,
        branch: BranchId,
        volume: DesktopId,
        number: u64,
    ) -> Result<(), ManageError> {
        let Some(row) = self.volume_row(volume)? else {
            return Ok(());
        };
        let (holder, from) = self.catalog().read(|tx| {
            let authority: Option<AuthorityRow> = tx.get(&volume)?;
            let holder = authority.and_then(|row| Some((row.last, row.holder?.branch)));
            let checkouts = tx.list::<CheckoutRow>(branch.as_bytes(), None, ALL)?;
            let mut checkouts = checkouts.into_iter().map(|(_, row)| row);
            let from = checkouts.find(|row| row.has(volume)).map(|row| row.from);
            Ok::<_, CatalogError>((holder, from))
        })?;
        let held = holder.filter(|(_, by)| *by == branch).map(|(last, _)| last);
        let is_home = row.home == branch;
        if held.is_none() && (holder.is_some() || !is_home) {
            return Ok(());
        }
        let why = format!("its keys were destroyed there, by order {number}");
        let home = from.filter(|_| is_home).unwrap_or(row.home);
        let broken = self.break_volume_lease(volume, &row, &why, true, home)?;
        if let Err(error) = broken
            && error != BreakError::NotHeld
        {
            return Err(ManageError::conflict(error.to_string(), "try again"));
        }
        if let Some(generation) = held {
            self.settle_generation(&volume.to_string(), generation.0, &why)?;
        }
        self.end_checkout_of(branch, volume)?;
        self.nobody_holds(volume);
        Ok(())
    }

    /// Forgets the checkout of a volume that does not come back from a laptop.
    fn end_checkout_of(&self, laptop: BranchId, volume: DesktopId) -> Result<(), CatalogError> {
        self.catalog().transact(|tx| {
            let rows = tx.list::<CheckoutRow>(laptop.as_bytes(), None, ALL)?;
            for (key, row) in rows.into_iter().filter(|(_, row)| row.has(volume)) {
                for of_it in &row.volumes {
                    // The others follow, one by one; their home is named with the last.
                    let known: Option<VolumeRow> = tx.get(&of_it.id)?;
                    if known.is_some_and(|known| known.home == laptop) {
                        return Ok::<_, CatalogError>(());
                    }
                }
                tx.delete::<CheckoutRow>(&key);
            }
            Ok(())
        })
    }

    /// Whether a branch is refused for everything but to be told that all of it is to be wiped.
    pub fn is_wiped_whole(&self, branch: BranchId) -> Result<bool, CatalogError> {
        self.catalog().read(|tx| {
            let row: Option<BranchRow> = tx.get(&branch)?;
            let is_revoked = row.is_some_and(|row| row.revoked_unix_s.is_some());
            let orders = of_branch(tx, branch)?;
            Ok(is_revoked && orders.iter().any(|(_, row)| row.desktop.is_none()))
        })
    }
}
