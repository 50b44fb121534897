//! What a desktop is given of the host that no other desktop has, for as long as it is there: the user of its machine.
//!
//! Invariant: it is kept in the catalog before a machine starts with it, and given by one call at a time.

use std::collections::BTreeSet;

use super::machine::{MachineError, uids};
use super::record::DesktopRecord;
use super::{DesktopError, Desktops};

impl Desktops {
    /// Gives the desktop's machine a user, if machines have such here.
    pub(super) fn give_user(&self, desktop: &mut DesktopRecord) -> Result<(), DesktopError> {
        let Some(range) = self.host.confinement.uids else {
            desktop.uid = None;
            return Ok(());
        };
        let _alone = self.giving.lock().expect("no panic under this lock");
        let others = self.versions.catalog().desktops()?.into_iter();
        let others = others.filter(|other| other.name != desktop.name);
        let others: BTreeSet<u32> = others.filter_map(|other| other.uid).collect();
        let given = uids::running().and_then(|running| range.give(desktop.uid, &others, &running));
        let given = given.map_err(|source| MachineError::NoUser {
            name: desktop.name.clone(),
            source,
        })?;
        desktop.uid = Some(given);
        Ok(self.versions.catalog().put_desktop(desktop)?)
    }
}
