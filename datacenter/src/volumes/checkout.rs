//! Desktops that are checked out to laptops, and come back.
//!
//! ```text
//!   (at its branch) ──check out──► Waiting ──given back there──► Out ──IT, or the laptop's user──► Returning ──given back──► (at its branch)
//!                                                                 └──────────── given back ──────────────────────────────────┘
//! ```
//!
//! A checkout is nothing but who may ask for the leases of a desktop's volumes, and until when those last: every rule of leases, forks and prefixes holds
//! as for any branch. Invariant: volumes change their home only while nobody holds any of them, all in one transaction. When the date has come
//! the laptop keeps its leases and runs no more under them: what it wrote still comes, and only IT takes it away.

mod steps;

use datacenter_api::{
    CheckInRequest, CheckOutRequest, Checkout as Shown, CheckoutStage as ShownStage, ExtendRequest,
    VolumeKind as Reported,
};
use dedup::{BranchId, DesktopId};
use dedup_protocol::records::MachineType;
use dedup_protocol::state::Generation;
use dedup_protocol::state::authority::BreakError;

use super::keep::audit;
use super::manage::{branch_name, find, reason};
use crate::assign::MEMORY_MIB;
use crate::branches::require_branch;
use crate::catalog::laptop::{CheckedVolume, CheckoutKey, CheckoutRow, CheckoutStage};
use crate::catalog::rows::{BranchKind, BranchRow, GrantKey, GrantRow, PoolKey, PoolRow};
use crate::catalog::volumes::{AuditEvent, MoveRow, VolumeEvent, VolumeKind, VolumeRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use crate::restored::counter_floor;

/// Longest checkout, in seconds: a year. A machine that nobody has seen for longer is lost.
const CHECKOUT_S_MAX: u64 = 366 * 86_400;
/// All rows of a table. There are as many checkouts as laptops, or a few more.
const ALL: usize = usize::MAX / 2;

/// A number above all that were given before, also by a datacenter that this one was restored from: records are changed far less often than
/// 65,536 times a second.
pub(super) fn next_number(
    tx: &mut Tx<'_>,
    before: u64,
    now_unix_s: u64,
) -> Result<u64, CatalogError> {
    let by_time = now_unix_s.saturating_mul(1 << 16);
    Ok(by_time.max(before + 1).max(counter_floor(tx)? + 1))
}

fn all(tx: &mut Tx<'_>) -> Result<Vec<(CheckoutKey, CheckoutRow)>, CatalogError> {
    tx.list::<CheckoutRow>(&[], None, ALL)
}

/// The checkout that a volume belongs to.
pub(super) fn of_volume(
    tx: &mut Tx<'_>,
    volume: DesktopId,
) -> Result<Option<(CheckoutKey, CheckoutRow)>, CatalogError> {
    let mut rows = all(tx)?.into_iter();
    Ok(rows.find(|(_, row)| row.has(volume)))
}

/// The checkout that `text` names, by its system volume.
fn require(tx: &mut Tx<'_>, text: &str) -> Result<(CheckoutKey, CheckoutRow), ManageError> {
    let (id, _) = find(tx, text)?;
    of_volume(tx, id)?.ok_or_else(|| {
        ManageError::not_found(
            "checkout of volume",
            text,
            "`splice laptop list` shows what is checked out",
        )
    })
}

fn until(now_unix_s: u64, for_s: u64) -> Result<u64, ManageError> {
    if for_s > CHECKOUT_S_MAX {
        return Err(ManageError::invalid(format!(
            "a checkout for {for_s} s; at most {CHECKOUT_S_MAX} are possible"
        )));
    }
    Ok(now_unix_s + for_s)
}

fn show(tx: &mut Tx<'_>, key: CheckoutKey, row: &CheckoutRow) -> Result<Shown, CatalogError> {
    Ok(Shown {
        volume: key.system.to_string(),
        user_volume: row.volumes.get(1).map(|volume| volume.id.to_string()),
        desktop: row.desktop.clone(),
        pool: row.pool.clone(),
        from: branch_name(tx, row.from)?,
        laptop: branch_name(tx, key.laptop)?,
        stage: match row.stage {
            CheckoutStage::Waiting => ShownStage::Waiting,
            CheckoutStage::Out => ShownStage::Out,
            CheckoutStage::Returning => ShownStage::Returning,
        },
        since_unix_s: row.since_unix_s,
        until_unix_s: row.until_unix_s,
    })
}

/// Names another home for a volume.
fn set_home(tx: &mut Tx<'_>, volume: DesktopId, home: BranchId) -> Result<(), CatalogError> {
    if let Some(mut row) = tx.get::<VolumeRow>(&volume)?
        && row.home != home
    {
        row.home = home;
        tx.put(&volume, &row);
    }
    Ok(())
}

impl Datacenter {
    fn checkout_entry(
        &self,
        (key, row): (CheckoutKey, &CheckoutRow),
        event: AuditEvent,
        reason: String,
    ) -> VolumeEvent {
        VolumeEvent {
            unix_s: self.now_unix_s(),
            event,
            volume: key.system,
            desktop: row.desktop.clone(),
            generation: Generation::NONE,
            branch: Some(key.laptop),
            reason,
        }
    }

    /// All checkouts.
    pub fn checkouts(&self) -> Result<Vec<Shown>, CatalogError> {
        self.catalog().read(|tx| {
            let rows = all(tx)?;
            rows.iter().map(|(key, row)| show(tx, *key, row)).collect()
        })
    }

    /// Checks a desktop out to a laptop. As long as its branch holds it, it waits for that.
    pub fn check_out(
        &self,
        branch: &str,
        desktop: &str,
        request: &CheckOutRequest,
    ) -> Result<Shown, ManageError> {
        let why = reason(&request.reason)?;
        let now = self.now_unix_s();
        let until_unix_s = until(now, request.for_s)?;
        let key = self.catalog().transact(|tx| {
            let (from, _) = require_branch(tx, branch)?;
            let laptop = require_laptop(tx, &request.to)?;
            if laptop == from {
                return Err(ManageError::conflict(
                    format!("desktop {desktop:?} is at {branch} already"),
                    "`splice branch show` lists its desktops",
                ));
            }
            let row = self.checkout_row(tx, (from, branch), desktop, until_unix_s)?;
            let key = CheckoutKey {
                laptop,
                system: row.volumes[0].id,
            };
            // Its desktop there reports the version, and so it may read it.
            let granted = GrantRow {
                assigned_unix_s: now,
            };
            let grant = GrantKey {
                branch: laptop,
                version: row.version,
            };
            tx.put(&grant, &granted);
            tx.put(&key, &row);
            let words = format!("for {} s: {why}", request.for_s);
            let entry = self.checkout_entry((key, &row), AuditEvent::CheckedOut, words);
            audit(tx, &entry)?;
            Ok(key)
        })?;
        tracing::info!(
            desktop,
            branch,
            laptop = request.to,
            "a desktop is checked out"
        );
        self.advance_checkout(key)?;
        for recall in self.checkout_recalls(key)? {
            self.notify(recall.0, recall.1);
        }
        self.show_checkout(key)
    }

    /// What is to be known of a desktop as its branch last told of it.
    fn checkout_row(
        &self,
        tx: &mut Tx<'_>,
        (from, branch): (BranchId, &str),
        desktop: &str,
        until_unix_s: u64,
    ) -> Result<CheckoutRow, ManageError> {
        let status = self.status_of(tx, from)?.map(|(_, status)| status);
        let desktops = status.map(|status| status.desktops).unwrap_or_default();
        let found = desktops.into_iter().find(|found| found.id == desktop);
        let found = found.ok_or_else(|| {
            ManageError::not_found(
                "desktop",
                desktop,
                format!("`splice branch show {branch}` lists those that it last told of"),
            )
        })?;
        let mut volumes = Vec::new();
        let mut version = None;
        for report in &found.volumes {
            let row = match report.id.parse::<DesktopId>() {
                Ok(id) => tx.get::<VolumeRow>(&id)?.map(|row| (id, row)),
                Err(_) => None,
            };
            let Some((id, row)) = row.filter(|(_, row)| row.home == from) else {
                return Err(ManageError::conflict(
                    format!(
                        "volume {} of desktop {desktop:?} is not known, or not at {branch}",
                        report.id
                    ),
                    "a branch is to be in contact once before its desktops can be checked out; `splice desktop-state list` shows what is known",
                ));
            };
            if let Some((_, other)) = of_volume(tx, id)? {
                return Err(ManageError::conflict(
                    format!("desktop {:?} is being checked out already", other.desktop),
                    "`splice laptop list` shows to where; `splice laptop check-in` ends it",
                ));
            }
            let moved = tx.get::<MoveRow>(&id)?;
            if moved.is_some_and(|moved| moved.end.is_none()) {
                return Err(ManageError::conflict(
                    format!("desktop {desktop:?} is being moved to another branch"),
                    "`splice desktop-state moves` shows how far; `splice desktop-state cancel-move` ends it",
                ));
            }
            let volume = CheckedVolume {
                id,
                size_bytes: row.began.size_bytes,
                generation: Generation::NONE,
            };
            match row.kind {
                VolumeKind::System => {
                    version = row.version;
                    volumes.insert(0, volume);
                }
                VolumeKind::User => volumes.push(volume),
            }
        }
        let systems = found.volumes.iter();
        let systems = systems.filter(|volume| volume.kind == Reported::System);
        let version = version.filter(|_| systems.count() == 1 && volumes.len() <= 2);
        let version = version.ok_or_else(|| {
            ManageError::conflict(
                format!("desktop {desktop:?} has no system volume that is kept, or several"),
                "a pooled desktop's system begins anew, so it cannot go anywhere: assign its pool with --persistent; an older branch server tells of no \
                 volumes: upgrade it",
            )
        })?;
        let pool = PoolKey {
            branch: from,
            pool: found.pool.clone(),
        };
        let pool: Option<PoolRow> = tx.get(&pool)?;
        let now = self.now_unix_s();
        Ok(CheckoutRow {
            number: next_number(tx, 0, now)?,
            stage: CheckoutStage::Waiting,
            desktop: found.id,
            pool: found.pool,
            from,
            volumes,
            version,
            memory_mib: pool.as_ref().map_or(MEMORY_MIB, |pool| pool.memory_mib),
            vcpus: pool.as_ref().map_or(1, |pool| pool.vcpus),
            machine: pool.as_ref().map_or(MachineType::Auto, |pool| pool.machine),
            tpm: pool.is_some_and(|pool| pool.tpm),
            since_unix_s: now,
            until_unix_s,
        })
    }

    fn show_checkout(&self, key: CheckoutKey) -> Result<Shown, ManageError> {
        let shown = self.catalog().read(|tx| {
            let row: Option<CheckoutRow> = tx.get(&key)?;
            row.map(|row| show(tx, key, &row)).transpose()
        })?;
        shown.ok_or_else(|| {
            ManageError::not_found(
                "checkout of volume",
                key.system.to_string(),
                "it has ended meanwhile; `splice audit` tells how",
            )
        })
    }

    /// Changes until when a desktop is checked out. Leases have the new end from their next renewal on.
    pub fn extend_checkout(
        &self,
        text: &str,
        request: &ExtendRequest,
    ) -> Result<Shown, ManageError> {
        let why = reason(&request.reason)?;
        let now = self.now_unix_s();
        let until_unix_s = until(now, request.for_s)?;
        let key = self.catalog().transact(|tx| {
            let (key, mut row) = require(tx, text)?;
            row.until_unix_s = until_unix_s;
            row.number = next_number(tx, row.number, now)?;
            tx.put(&key, &row);
            let words = format!("for {} s from now: {why}", request.for_s);
            let entry = self.checkout_entry((key, &row), AuditEvent::CheckedOut, words);
            audit(tx, &entry)?;
            Ok::<_, ManageError>(key)
        })?;
        self.announce_assignments();
        self.show_checkout(key)
    }

    /// Wants a desktop back. The laptop gives it back when it stands still and is connected; with `force` it is taken at once.
    pub fn check_in(&self, text: &str, request: &CheckInRequest) -> Result<Shown, ManageError> {
        let why = reason(&request.reason)?;
        let now = self.now_unix_s();
        let (key, row, shown) = self.catalog().transact(|tx| {
            let (key, mut row) = require(tx, text)?;
            let words = match request.force {
                true => format!("at once: {why}"),
                false => why.to_owned(),
            };
            let entry = self.checkout_entry((key, &row), AuditEvent::CheckedIn, words);
            audit(tx, &entry)?;
            if row.stage == CheckoutStage::Waiting {
                // It is at its branch still, and stays there.
                tx.delete::<CheckoutRow>(&key);
            } else {
                row.stage = CheckoutStage::Returning;
                row.number = next_number(tx, row.number, now)?;
                tx.put(&key, &row);
            }
            let shown = show(tx, key, &row)?;
            Ok::<_, ManageError>((key, row, shown))
        })?;
        if request.force {
            self.take_back(&row, why)?;
        }
        self.advance_checkout(key)?;
        self.announce_assignments();
        Ok(shown)
    }

    /// Breaks the leases of a desktop that is checked out; its branch may ask for them from then on.
    pub(super) fn take_back(&self, row: &CheckoutRow, why: &str) -> Result<(), ManageError> {
        for volume in &row.volumes {
            let known = self.volume_row(volume.id)?;
            let Some(known) = known.filter(|known| known.home != row.from) else {
                continue;
            };
            let broken = self.break_volume_lease(volume.id, &known, why, true, row.from)?;
            if let Err(error) = broken
                && error != BreakError::NotHeld
            {
                return Err(ManageError::conflict(error.to_string(), "try again"));
            }
        }
        Ok(())
    }
}

/// The laptop that has a name.
fn require_laptop(tx: &mut Tx<'_>, name: &str) -> Result<BranchId, ManageError> {
    let (id, row): (BranchId, BranchRow) = require_branch(tx, name)?;
    if row.kind != BranchKind::Laptop {
        return Err(ManageError::conflict(
            format!("branch {name:?} is no laptop"),
            "invite one: `splice branch token NAME --laptop`",
        ));
    }
    if row.joined_unix_s.is_none() || row.revoked_unix_s.is_some() {
        return Err(ManageError::conflict(
            format!("laptop {name:?} has not joined, or is revoked"),
            format!("make a token for it: `splice branch token {name}`"),
        ));
    }
    Ok(id)
}
