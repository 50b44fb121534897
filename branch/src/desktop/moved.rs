//! Desktops that IT moved to this branch: taken in, with their volumes still at the datacenter.
//!
//! Invariant: the record and where its volumes stand are kept at once, and say that nothing of it is here; so it waits for what its leases go on behind, and
//! never begins anew by mistake. What came is asked for again and again until it is held.

use dedup_protocol::state::moved::MovedDesktop;

use super::record::{self, DesktopRecord, UserVolumeRecord};
use super::{DesktopError, Desktops};
use crate::writeback::shown::NoRight;

impl Desktops {
    /// Takes in a desktop that was moved here, and asks for its leases.
    ///
    /// # Errors
    /// Another desktop has its name, its pool is not assigned yet, or the catalog failed. The datacenter tells it again on the next connection.
    pub fn take_in(&self, moved: &MovedDesktop) -> Result<(), DesktopError> {
        record::check_name(&moved.name).map_err(DesktopError::Name)?;
        let _turn = self.turn(&moved.name)?;
        let volumes = moved.volumes();
        match self.record(&moved.name)? {
            // Told again, or it was here before.
            Some(here) if volumes.iter().all(|volume| here.volumes().contains(volume)) => {
                if here.pool != moved.pool {
                    let pool = moved.pool.clone();
                    let here = DesktopRecord { pool, ..here };
                    self.versions.catalog().put_desktop(&here)?;
                }
            }
            Some(_) => {
                return Err(DesktopError::Busy {
                    name: moved.name.clone(),
                    state: "another desktop here than the one that was moved to this branch",
                    way_out: "delete it, or have IT take the move back",
                });
            }
            None => {
                let desktop = self.record_of_moved(moved)?;
                let catalog = self.versions.catalog();
                catalog.take_in_moved(&desktop, &volumes)?;
                tracing::info!(
                    desktop = moved.name,
                    pool = moved.pool,
                    "moved to this branch"
                );
            }
        }
        for volume in &volumes {
            let wanted = self.lines().with(*volume, |line, now| {
                // Also of one that was here before: what it goes on behind has to come again.
                if matches!(line.may_run(now), Err(NoRight::NotHeld { .. })) {
                    line.want();
                }
                Ok(())
            });
            wanted.map_err(|source| Self::line_error(&moved.name, source))?;
        }
        self.lines().hurry();
        Ok(())
    }

    /// Its record here: what it is made of says its pool, what was written to it its volumes.
    fn record_of_moved(&self, moved: &MovedDesktop) -> Result<DesktopRecord, DesktopError> {
        let mut desktop = self.fresh(&moved.pool, &moved.name)?;
        desktop.id = moved.identity.0;
        if let Some((system, version)) = moved.system {
            desktop.system = (system != moved.identity).then_some(system.0);
            desktop.version = version.to_string();
            desktop.pooled = false;
        }
        desktop.user_volume = moved.user.map(|user| UserVolumeRecord {
            id: user.id.0,
            size_bytes: user.size_bytes,
            made: false,
        });
        Ok(desktop)
    }
}
