//! What is wiped by the datacenter's order: one desktop, or everything.
//!
//! ```text
//!   order kept ──► keys destroyed ──► machines ended ──► files and rows removed ──► done, told until that is noted
//! ```
//!
//! Invariant: keys go before anything else, so that what is left by a stop in the middle is noise; and an order is begun again at each start and every
//! second until it is done. Nothing is sent to the datacenter for a desktop's sake first: who orders this does not want it from here. A trial is of its desktop's content: it goes
//! with it. Templates are of versions alone; they go with everything.

use std::path::Path;
use std::time::Duration;

use dedup::DesktopId;
use dedup_protocol::wipe::Target;

use super::machine::{Files, MachineError};
use super::record::DesktopRecord;
use super::{DesktopError, Desktops, VolumeError, error_line, machine};
use crate::catalog::Catalog;

/// Ends all machines, whatever their guests do, and removes what they and their guests left in the clear in `dir`.
///
/// # Errors
/// The catalog cannot be read, or the folder not removed.
pub fn end_all(catalog: &Catalog, dir: &Path) -> Result<(), DesktopError> {
    for desktop in catalog.desktops()?.into_iter().chain(catalog.trials()?) {
        let files = Files::new(dir.join(&desktop.name));
        match &desktop.machine {
            Some(found) => machine::stop(found, &files, Duration::ZERO, false),
            None => machine::end_unnoted(&files),
        }
    }
    remove_folder("all desktops", dir)
}

fn remove_folder(name: &str, folder: &Path) -> Result<(), DesktopError> {
    match std::fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(MachineError::Io {
            name: name.into(),
            what: "remove its directory".into(),
            source,
        }
        .into()),
        _ => Ok(()),
    }
}

impl Desktops {
    /// Destroys all keys of this branch, then ends all machines. `order` is kept as it was signed. The server is to end behind it.
    ///
    /// # Errors
    /// Keys could not be destroyed, or something is left in the clear; the next start goes on.
    pub fn wipe_all(&self, order: &[u8]) -> Result<(), DesktopError> {
        self.volumes.wipe_keys(order)?;
        tracing::warn!("all keys of this branch are destroyed, by the datacenter's order");
        self.volumes.stop_serving();
        if let Some(shelf) = &self.templates {
            // Whoever makes one leaves off; what lies there is noise without the keys, and goes.
            shelf.stop();
            shelf.retain(&[]);
        }
        end_all(self.versions.catalog(), &self.dir)
    }

    /// Does what orders to wipe desktops say, and has not been done. Called by several, it is done by one.
    pub fn tend_wipes(&self) {
        let Ok(_one) = self.wiping.try_lock() else {
            return;
        };
        let catalog = self.versions.catalog();
        let wipes = match catalog.wipes() {
            Ok(wipes) => wipes,
            Err(error) => {
                let error = error_line(&error);
                tracing::error!(error, "orders to wipe cannot be read");
                return;
            }
        };
        for kept in wipes.into_iter().filter(|kept| !kept.is_done) {
            let Target::Desktop { name, volumes } = &kept.wipe.target else {
                continue;
            };
            let done = self.wipe(volumes);
            let done = done.and_then(|()| Ok(catalog.wipe_is_done(kept.wipe.number)?));
            match done {
                Ok(()) => tracing::warn!(
                    desktop = name,
                    order = kept.wipe.number,
                    "wiped by the datacenter's order"
                ),
                Err(error) => {
                    let error = error_line(&error);
                    tracing::error!(desktop = name, error, "not wiped yet; it is tried again");
                }
            }
        }
    }

    /// Wipes the desktop that has one of these ids, or a volume that has; nothing happens if none has.
    fn wipe(&self, volumes: &[DesktopId]) -> Result<(), DesktopError> {
        let has = |desktop: &DesktopRecord| {
            // Its own id stays when its system becomes another volume, so it is found though it was rebased behind the order.
            let mut of_it = desktop.volumes().into_iter().chain([DesktopId(desktop.id)]);
            of_it.any(|id| volumes.contains(&id))
        };
        let desktops = self.versions.catalog().desktops()?;
        let Some(desktop) = desktops.into_iter().find(has) else {
            return Ok(());
        };
        let name = desktop.name.clone();
        // What it is tried out in reads what it has, and keeps that under keys of its own.
        self.end_trial(&name);
        if let Some(trial) = self.trial_kept(&name)? {
            self.volumes.destroy_keys(&trial)?;
        }
        // Whoever works on it: what is on the disk is noise from here on.
        self.volumes.destroy_keys(&desktop)?;
        let _turn = self.turn(&name)?;
        self.throw_away_trial_of(&desktop)?;
        // As it is now that nobody else changes it.
        let Some(mut desktop) = self.record(&name)?.filter(has) else {
            return Ok(());
        };
        match desktop.machine.take() {
            Some(found) => machine::stop(&found, &self.files(&name), Duration::ZERO, false),
            None => machine::end_unnoted(&self.files(&name)),
        }
        self.boots.forget(&name);
        desktop.served = false;
        self.versions.catalog().put_desktop(&desktop)?;
        if let Err(error @ VolumeError::InUse(_)) = self.volumes.close(&name) {
            return Err(error.into());
        }
        let volumes = desktop.volumes();
        for volume in &volumes {
            self.detach(&name, *volume)?;
        }
        self.volumes.delete(&desktop)?;
        // Before the record: what they say is no past of a desktop that may come back under these ids.
        self.forget_lines(&name, &volumes)?;
        self.remove_record(&desktop, &volumes)
    }

    /// Removes what is left of a desktop whose overlays are gone. Interrupted, it is to be done again.
    pub(super) fn remove_record(
        &self,
        desktop: &DesktopRecord,
        volumes: &[DesktopId],
    ) -> Result<(), DesktopError> {
        remove_folder(&desktop.name, &self.dir.join(&desktop.name))?;
        for volume in volumes {
            self.versions.forget_state(*volume)?;
        }
        let catalog = self.versions.catalog();
        catalog.delete_desktop(&desktop.name)?;
        self.forget_lines(&desktop.name, volumes)?;
        Ok(catalog.forget_checkout(desktop.system_volume())?)
    }
}
