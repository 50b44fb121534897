//! What desktops have to do with the agents inside them: where their ports are, and what they are told.

use std::sync::Arc;

use branch_guest::{HostName, Id, Identity, Serial, UserVolume};

use super::record::DesktopRecord;
use super::trial::desktop_of;
use super::{Desktops, machine};
use crate::guest::{Directory, Facts, GuestPort, Guests};

impl Desktops {
    /// The agents that are connected.
    pub fn guests(&self) -> &Arc<Guests> {
        &self.guests
    }

    /// What a desktop's agent is told of its user volume. That nothing was written holds at this moment: nobody but the guest can change it.
    fn told_user_volume(&self, desktop: &DesktopRecord) -> Option<UserVolume> {
        let record = desktop.user_volume.as_ref()?;
        let open = self.volumes.find(&desktop.name);
        let disk = open.as_ref().and_then(|volume| volume.user());
        Some(UserVolume {
            serial: Serial::try_from(record.serial()).ok()?,
            unwritten: disk.is_some_and(|disk| disk.is_unwritten()),
        })
    }
}

impl Directory for Desktops {
    /// Also of machines that somebody else runs.
    fn ports(&self) -> Option<Vec<GuestPort>> {
        let catalog = self.versions.catalog();
        let (desktops, trials) = (catalog.desktops().ok()?, catalog.trials().ok()?);
        let running = desktops.into_iter().chain(trials).filter_map(|desktop| {
            let run = match &desktop.machine {
                Some(machine) if machine::is_alive(machine) => machine.start_ticks,
                _ if desktop.served => 0,
                _ => return None,
            };
            Some(GuestPort {
                socket: self.files(&desktop.name).agent_socket(),
                name: desktop.name,
                run,
            })
        });
        Some(running.collect())
    }

    fn facts(&self, name: &str) -> Option<Facts> {
        let mut trials = self.versions.catalog().trials().ok()?.into_iter();
        let desktop = self.record(name).ok().flatten();
        let desktop = desktop.or_else(|| trials.find(|trial| trial.name == name))?;
        Some(Facts {
            identity: identity(&desktop)?,
            user_volume: self.told_user_volume(&desktop),
        })
    }

    fn now_unix_ms(&self) -> u64 {
        self.clock.now_unix_ms()
    }
}

/// Who a desktop is: its name, and its random id as the machine's.
fn identity(desktop: &DesktopRecord) -> Option<Identity> {
    // Names may end in what host names may not, and that of a throwaway has a dot.
    let name = desktop_of(&desktop.name)
        .trim_end_matches('-')
        .replace('.', "-");
    Some(Identity {
        host_name: HostName::try_from(name).ok()?,
        machine_id: Id::new(desktop.id)?,
    })
}
