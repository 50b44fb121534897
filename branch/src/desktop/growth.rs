//! How much desktops write and keep, to their systems and user volumes, and how many desktops of each pool are up.

use std::collections::BTreeMap;
use std::time::Instant;

use super::record::{DesktopRecord, THROWAWAY};
use super::{DesktopError, Desktops, error_line, machine};
use crate::ready::writes::{OpenOverlay, WriteHistory, Writes};
use crate::versions::Versions;

/// Goes on with what the catalog kept. Without it the rates are measured anew.
pub(super) fn resume(versions: &Versions) -> Writes {
    let kept = versions.catalog().writes().unwrap_or_else(|error| {
        tracing::warn!(
            error = error_line(&error),
            "what desktops wrote is measured anew"
        );
        Vec::new()
    });
    Writes::resume(kept)
}

impl Desktops {
    /// How fast desktops write.
    pub fn writes(&self) -> &Writes {
        &self.writes
    }

    /// Desktops that are up, by pool.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn up_by_pool(&self) -> Result<BTreeMap<String, u32>, DesktopError> {
        let mut up = BTreeMap::new();
        for desktop in self.versions.catalog().desktops()? {
            let runs = desktop.machine.as_ref().is_some_and(machine::is_alive);
            if (runs || desktop.served) && desktop.name != THROWAWAY {
                *up.entry(desktop.pool).or_default() += 1;
            }
        }
        Ok(up)
    }

    /// Looks at how much more the open overlays hold, if it is time.
    pub(super) fn tend_writes(&self, desktops: &[DesktopRecord], now: Instant) {
        if !self.writes.is_due(now) {
            return;
        }
        let open = desktops.iter().filter_map(|desktop| {
            let volume = self.volumes.find(&desktop.name)?;
            Some(OpenOverlay {
                desktop: &desktop.name,
                pool: &desktop.pool,
                bytes: volume.held_bytes(),
            })
        });
        let changed: Vec<(String, WriteHistory)> = self.writes.sample(now, open);
        if let Err(error) = self.versions.catalog().put_writes(&changed) {
            tracing::warn!(
                error = error_line(&error),
                "what desktops wrote was not kept"
            );
        }
    }
}
