//! Desktops that are checked out to this branch, which is a laptop: taken in, made whole for the time without a line, and given back.
//!
//! ```text
//!   signed checkout ──► record, volumes "gone" ──► leases asked for ──► states fetched, filled ──► runs until the leases end
//!                                                                                        │ check-in, here or by IT
//!                                                     record removed ◄── given back ◄────┘ as soon as it stands still
//! ```
//!
//! Invariant: what was written here goes nowhere before it is at the datacenter (the lines see to that), and the record is removed when nothing of the
//! desktop is here. A checkout gives no right to run anything: leases do.

use std::collections::HashSet;

use branch_api::CheckedOut;
use dedup::{DesktopId, VersionId};
use dedup_protocol::records::Tree;
use dedup_protocol::state::authority::HoldRow;
use dedup_protocol::state::checkout::Checkout;
use dedup_protocol::trust::Signed;

use super::record::{self, DesktopRecord, UserVolumeRecord};
use super::{DesktopError, Desktops, error_line, refuse_if_up};
use crate::catalog::laptop::KeptCheckout;
use crate::fetch::queue::TreeHandle;
use crate::writeback::rows::{KeptHold, OverlayOf};

/// Trees that are being made whole, or were since the server started.
pub(super) type Filled = HashSet<(VersionId, Tree)>;

/// What the catalog keeps of a desktop that comes.
fn record_of(checkout: &Checkout, now_unix_ms: u64) -> DesktopRecord {
    DesktopRecord {
        name: checkout.name.clone(),
        pool: checkout.pool.clone(),
        id: checkout.system.0,
        version: checkout.version.to_string(),
        memory_mib: checkout.memory_mib,
        vcpus: checkout.vcpus,
        wanted: checkout.machine,
        tpm: checkout.tpm,
        system: None,
        user_volume: checkout.user.map(|user| UserVolumeRecord {
            id: user.id.0,
            size_bytes: user.size_bytes,
            made: false,
        }),
        // What comes from elsewhere is kept, and goes back as it came.
        pooled: false,
        chosen: None,
        kept_back: None,
        rebasing: None,
        trial: false,
        cloning: false,
        uid: None,
        address: None,
        created_unix_ms: now_unix_ms,
        served: false,
        machine: None,
        error: None,
        boot: None,
    }
}

impl Desktops {
    /// Takes word of a checkout.
    ///
    /// # Errors
    /// A desktop of that name is here, or the catalog failed. It is told again on the next connection.
    pub fn check_out(
        &self,
        checkout: &Checkout,
        signed: &Signed<Checkout>,
    ) -> Result<(), DesktopError> {
        record::check_name(&checkout.name).map_err(DesktopError::Name)?;
        let catalog = self.versions.catalog();
        let _turn = self.turn(&checkout.name)?;
        if let Some(kept) = catalog.checkout(checkout.system)? {
            if checkout.number > kept.checkout.number {
                let is_ending = kept.is_ending || checkout.is_recalled;
                catalog.put_checkout(checkout.system, signed, is_ending)?;
                tracing::info!(
                    desktop = checkout.name,
                    until_unix_s = checkout.until_unix_s,
                    recalled = checkout.is_recalled,
                    "its checkout was changed"
                );
                self.lines().hurry();
            }
            return Ok(());
        }
        if checkout.is_recalled {
            // It has gone back.
            return Ok(());
        }
        match self.record(&checkout.name)? {
            Some(here) if here.system_volume() == checkout.system => {
                catalog.put_checkout(checkout.system, signed, false)?;
            }
            Some(_) => {
                return Err(DesktopError::Busy {
                    name: checkout.name.clone(),
                    state: "another desktop here than the one that is checked out under its name",
                    way_out: "delete it, or have the other one checked in again",
                });
            }
            None => {
                let mut holds = Vec::new();
                for volume in checkout.volumes() {
                    if catalog.hold(volume)?.is_none() {
                        holds.push(KeptHold {
                            row: HoldRow::new(volume),
                            lease: None,
                            // It is somewhere else: what it goes on behind is fetched.
                            overlay: OverlayOf::Gone,
                        });
                    }
                }
                let desktop = record_of(checkout, self.clock.now_unix_ms());
                catalog.take_in(signed, &desktop, &holds)?;
            }
        }
        tracing::info!(
            desktop = checkout.name,
            until_unix_s = checkout.until_unix_s,
            "checked out to this laptop"
        );
        self.tend_checkout(&KeptCheckout {
            checkout: checkout.clone(),
            is_ending: false,
        })
    }

    /// Has a stopped desktop go back to where it was checked out from, when all of it is at the datacenter.
    ///
    /// # Errors
    /// There is no such desktop, it runs, or it is not checked out.
    pub fn check_in(&self, name: &str) -> Result<branch_api::Desktop, DesktopError> {
        let _turn = self.turn(name)?;
        let desktop = self.record(name)?;
        let desktop = desktop.ok_or_else(|| DesktopError::NotFound(name.into()))?;
        refuse_if_up(&desktop)?;
        let catalog = self.versions.catalog();
        let Some(mut kept) = catalog.checkout(desktop.system_volume())? else {
            return Err(DesktopError::Busy {
                name: name.into(),
                state: "not checked out to this branch",
                way_out: "`splice desktop list` shows which are",
            });
        };
        catalog.end_checkout(desktop.system_volume())?;
        kept.is_ending = true;
        tracing::info!(desktop = name, "its check-in begins");
        self.tend_checkout(&kept)?;
        Ok(self.describe(&desktop, false))
    }

    /// Refuses to run a desktop that is on its way back.
    pub(super) fn refuse_if_ending(&self, desktop: &DesktopRecord) -> Result<(), DesktopError> {
        let kept = self.versions.catalog().checkout(desktop.system_volume())?;
        match kept {
            Some(kept) if kept.is_ending => Err(DesktopError::Busy {
                name: desktop.name.clone(),
                state: "being checked in",
                way_out: "it is to be started where it was checked out from",
            }),
            _ => Ok(()),
        }
    }

    /// Refuses to change or delete a desktop that is checked out: what was written to it is not this laptop's to throw away.
    pub(super) fn refuse_if_checked_out(
        &self,
        desktop: &DesktopRecord,
    ) -> Result<(), DesktopError> {
        let kept = self.versions.catalog().checkout(desktop.system_volume())?;
        match kept {
            Some(_) => Err(DesktopError::Busy {
                name: desktop.name.clone(),
                state: "checked out to this branch",
                way_out: "check it in: `splice desktop check-in`",
            }),
            None => Ok(()),
        }
    }

    /// Has checkouts go on: asks for leases, fills what is to be here, gives back and removes what goes. To be called about every second.
    pub(super) fn tend_checkouts(&self) {
        let kept = match self.versions.catalog().checkouts() {
            Ok(kept) => kept,
            Err(error) => {
                let error = error_line(&error);
                tracing::error!(error, "checkouts cannot be read");
                return;
            }
        };
        for kept in &kept {
            let Some(_turn) = self.try_turn(&kept.checkout.name) else {
                continue;
            };
            if let Err(error) = self.tend_checkout(kept) {
                let error = error_line(&error);
                tracing::warn!(desktop = kept.checkout.name, error, "its checkout");
            }
        }
    }

    /// One of them. The caller has the desktop's turn.
    fn tend_checkout(&self, kept: &KeptCheckout) -> Result<(), DesktopError> {
        let name = &kept.checkout.name;
        let volumes = kept.checkout.volumes();
        let Some(desktop) = self.record(name)? else {
            // It was removed, and this is left.
            return Ok(self
                .versions
                .catalog()
                .forget_checkout(kept.checkout.system)?);
        };
        if !kept.is_ending {
            return self.prepare_checkout(name, &volumes, &kept.checkout);
        }
        if desktop.is_up() {
            // When it stands still. Nobody's work is interrupted for it: that the lease ends does.
            return Ok(());
        }
        let mut is_away = true;
        for volume in &volumes {
            let away = self.lines().with(*volume, |line, now| {
                line.hand_back();
                line.want_no_more(now)?;
                Ok(line.is_away())
            });
            is_away &= away.map_err(|source| Self::line_error(name, source))?;
        }
        if !is_away {
            return Ok(());
        }
        self.remove_record(&desktop, &volumes)?;
        tracing::info!(desktop = name, "checked in: nothing of it is here any more");
        Ok(())
    }

    /// Asks for the leases, and begins to make whole what the desktop stands on.
    fn prepare_checkout(
        &self,
        name: &str,
        volumes: &[DesktopId],
        checkout: &Checkout,
    ) -> Result<(), DesktopError> {
        let mut is_news = false;
        for volume in volumes {
            let wanted = self.lines().with(*volume, |line, _| {
                let is_idle = line.is_away() && !line.is_wanted();
                if is_idle {
                    line.want();
                }
                Ok(is_idle)
            });
            is_news |= wanted.map_err(|source| Self::line_error(name, source))?;
        }
        if is_news {
            self.lines().hurry();
        }
        for tree in self.trees_of(checkout)? {
            let mut filled = self.filled.lock().expect("no panic under this lock");
            if filled.insert((tree.version, tree.tree)) {
                self.fetcher.fill(tree);
            }
        }
        Ok(())
    }

    /// Whether a volume's overlay lies here, under a lease: before that nobody knows what it stands on.
    fn has_begun(&self, volume: DesktopId) -> bool {
        let held = self.versions.catalog().hold(volume);
        let overlay = held.ok().flatten().map(|held| held.overlay);
        matches!(overlay, Some(OverlayOf::Under(_)))
    }

    /// Whether a desktop is checked out to this branch.
    pub(super) fn is_checked_out(&self, desktop: &DesktopRecord) -> bool {
        let kept = self.versions.catalog().checkout(desktop.system_volume());
        kept.ok().flatten().is_some()
    }

    /// Whether all manifests of what a desktop needs are here: before that nobody knows what else is missing.
    fn is_known(&self, checkout: &Checkout) -> Result<bool, DesktopError> {
        let Some(record) = self.versions.catalog().version(checkout.version)? else {
            return Ok(false);
        };
        if !self.versions.can_boot(&record)? {
            return Ok(false);
        }
        for volume in checkout.volumes() {
            if !self.has_begun(volume) {
                return Ok(false);
            }
            if let Some((state, _)) = self.state_under(volume)?
                && self.versions.tree(state, Tree::Disk)?.is_none()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a desktop needs to be here to run without a line: kernel and initrd, and what lies under its volumes, as far as that is known.
    fn trees_of(&self, checkout: &Checkout) -> Result<Vec<TreeHandle>, DesktopError> {
        let mut trees = Vec::new();
        for tree in [Tree::Kernel, Tree::Initrd] {
            trees.extend(self.versions.tree(checkout.version, tree)?);
        }
        for volume in checkout.volumes() {
            if !self.has_begun(volume) {
                continue;
            }
            if let Some((state, _)) = self.state_under(volume)? {
                trees.extend(self.versions.tree(state, Tree::Disk)?);
            } else if volume == checkout.system {
                trees.extend(self.versions.tree(checkout.version, Tree::Disk)?);
            }
        }
        Ok(trees)
    }

    /// How a desktop's checkout stands, for people.
    pub(super) fn described_checkout(&self, desktop: &DesktopRecord) -> Option<CheckedOut> {
        let system = desktop.system_volume();
        let kept = self.versions.catalog().checkout(system).ok()??;
        let mut missing_bytes = None;
        if self.is_known(&kept.checkout).unwrap_or_default() {
            let trees = self.trees_of(&kept.checkout).unwrap_or_default();
            let cache = self.fetcher.cache();
            let mut seen = HashSet::new();
            let places = trees.iter().flat_map(|tree| tree.map.chunks());
            let missing =
                places.filter(|place| seen.insert(place.id) && !cache.contains(&place.id));
            missing_bytes = Some(missing.map(|place| u64::from(place.len)).sum());
        }
        Some(CheckedOut {
            until_unix_s: kept.checkout.until_unix_s,
            ending: kept.is_ending,
            missing_bytes,
        })
    }
}
