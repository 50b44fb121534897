//! What a desktop is given of the host that no other desktop has, for as long as it is there: the user of its machine, and its address.
//!
//! Invariant: it is kept in the catalog before a machine starts with it, and given by one call at a time.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::machine::{self, MachineError, uids};
use super::record::DesktopRecord;
use super::{DesktopError, Desktops};
use crate::network::{Card, Choice, NetworkError, Owner};

/// What `network` of a machine's record begins with behind the NAT.
const BEHIND_NAT: &str = "nat";

impl Desktops {
    /// What other desktops have.
    fn of_others<T: Ord>(
        &self,
        name: &str,
        has: impl Fn(&DesktopRecord) -> Option<T>,
    ) -> Result<BTreeSet<T>, DesktopError> {
        let catalog = self.versions.catalog();
        let (desktops, trials) = (catalog.desktops()?, catalog.trials()?);
        let all = desktops.iter().chain(&trials);
        let others = all.filter(|other| other.name != name);
        Ok(others.filter_map(has).collect())
    }

    /// Gives the desktop's machine a user, if machines have such here.
    pub(super) fn give_user(&self, desktop: &mut DesktopRecord) -> Result<(), DesktopError> {
        let Some(range) = self.host.confinement.uids else {
            desktop.uid = None;
            return Ok(());
        };
        let _alone = self.giving.lock().expect("no panic under this lock");
        let others = self.of_others(&desktop.name, |other| other.uid)?;
        let given = uids::running().and_then(|running| range.give(desktop.uid, &others, &running));
        let given = given.map_err(|source| MachineError::NoUser {
            name: desktop.name.clone(),
            source,
        })?;
        desktop.uid = Some(given);
        self.keep(desktop)
    }

    /// A card for the desktop's machine, as its pool has it here.
    pub(super) fn plug(&self, desktop: &mut DesktopRecord) -> Result<Option<Card>, DesktopError> {
        let choice = self.network.choice(&desktop.pool);
        let failed = |source: NetworkError| MachineError::Network {
            name: desktop.name.clone(),
            source,
        };
        if *choice == Choice::Nat {
            let _alone = self.giving.lock().expect("no panic under this lock");
            let others: BTreeSet<Ipv4Addr> =
                self.of_others(&desktop.name, |other| other.address)?;
            let given = self.network.address(desktop.address, &others);
            let given = given.map_err(failed)?;
            desktop.address = Some(given);
            self.versions.catalog().put_desktop(desktop)?;
        }
        let owner = Owner {
            id: desktop.id,
            address: desktop.address,
        };
        let plugged = self.network.plug(choice, owner);
        plugged.map_err(|source| {
            let name = desktop.name.clone();
            MachineError::Network { name, source }.into()
        })
    }

    /// Has the network of desktops ready, or taken away if none is to have it. Where that fails, the next start of a desktop tries again.
    pub fn prepare_network(&self) {
        let desktops = self.versions.catalog().desktops().unwrap_or_default();
        let in_use = desktops.iter().any(|desktop| {
            let machine = desktop.machine.as_ref();
            machine.is_some_and(|machine| {
                let network = machine.network.as_deref().unwrap_or_default();
                network.starts_with(BEHIND_NAT) && machine::is_alive(machine)
            })
        });
        if let Err(error) = self.network.prepare(in_use) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the network of desktops is not ready");
        }
    }
}
