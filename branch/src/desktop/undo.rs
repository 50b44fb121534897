//! Taking back what is here of a desktop's system: by somebody's wish, or because a start did not come to its end.
//!
//! Invariant: the row of a desktop whose system is half made says so, from before anything of it is there until all of it is gone or whole. The user volume is never touched here. Whatever
//! is cut off here is done again by the next start of the desktop, or of the server.

use std::time::Duration;

use dedup::DesktopId;

use super::record::{DesktopRecord, THROWAWAY};
use super::{DesktopError, Desktops, error_line, machine};

impl Desktops {
    /// Closes and removes what is here of a desktop's system. The caller keeps the record, and then forgets the line of the volume that is answered:
    /// the datacenter knows it, and another one is in its place.
    pub(super) fn remove_system(
        &self,
        desktop: &mut DesktopRecord,
    ) -> Result<Option<DesktopId>, DesktopError> {
        self.volumes.close(&desktop.name)?;
        let former = desktop.system_volume();
        // A pooled desktop's is this branch's own matter.
        let was_leased = desktop.volumes().contains(&former);
        if was_leased {
            self.give_up(&desktop.name, &[former])?;
        }
        // Before the row: an overlay never lies over another version than it was made for. Interrupted, it is to be done again.
        self.volumes.delete_system(desktop)?;
        desktop.cloning = false;
        if !was_leased || self.versions.catalog().hold(former)?.is_none() {
            return Ok(None);
        }
        // What the datacenter has of the former system is no past of the one that begins.
        desktop.system = Some(rand::random());
        Ok(Some(former))
    }

    /// Takes back what a start that did not come to its end left of a desktop's system.
    pub(super) fn end_cloning(&self, desktop: &mut DesktopRecord) -> Result<(), DesktopError> {
        if !desktop.cloning {
            return Ok(());
        }
        let name = desktop.name.clone();
        let files = self.files(&name);
        match desktop.machine.take() {
            Some(machine) => machine::stop(&machine, &files, Duration::ZERO, false),
            None => machine::end_unnoted(&files),
        }
        let former = self.remove_system(desktop)?;
        self.versions.catalog().put_desktop(desktop)?;
        self.forget_lines(&name, former.as_slice())
    }

    /// Takes back what a server that ended in the midst of it was making: clones that were not themselves yet, and what a template was made of. They
    /// are not among `desktops` after that.
    pub(super) fn recover_cut_off(&self, desktops: &mut Vec<DesktopRecord>) {
        desktops.retain_mut(|desktop| {
            let ended = if desktop.name == THROWAWAY {
                self.discard_throwaway()
            } else if desktop.cloning {
                desktop.error = Some("its start was cut off; start it again".into());
                self.end_cloning(desktop)
            } else {
                return true;
            };
            if let Err(error) = ended {
                let error = error_line(&error);
                tracing::error!(desktop = desktop.name, error, "its start is not taken back");
            }
            false
        });
    }
}
