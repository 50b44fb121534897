//! What the desktops of this branch add up to: their open overlays, for metrics, and the memory of those that run.

use super::{DesktopError, Desktops, Volumes};
use crate::volume::Shortage;

/// Sums over all overlays that are open for a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OverlayFigures {
    /// How many are open.
    pub open: u64,
    /// Bytes in their logs.
    pub log_bytes: u64,
    /// Bytes that a read could still return.
    pub live_bytes: u64,
    /// Extents in their indexes.
    pub extents: u64,
    /// Those whose writes find no room.
    pub waiting: u64,
    /// Bytes that must come free on the host's disk before all of these go on.
    pub missing_bytes: u64,
    /// Those that are closed for good.
    pub failed: u64,
    /// Reads that failed because the log did not verify or could not be read.
    pub read_faults: u64,
}

impl Volumes {
    /// As they are now.
    pub fn figures(&self) -> OverlayFigures {
        let mut figures = OverlayFigures::default();
        for volume in self.all_open() {
            for overlay in volume.overlays() {
                let stats = overlay.stats();
                figures.open += 1;
                figures.log_bytes += stats.log_bytes;
                figures.live_bytes += stats.live_bytes;
                figures.extents += stats.extents;
                figures.read_faults += stats.read_faults;
                figures.failed += u64::from(overlay.failure().is_some());
                let shortage = overlay.shortage();
                figures.waiting += u64::from(shortage.is_some());
                if let Some(Shortage::DiskBytes(bytes)) = shortage {
                    // They share the disk: what the worst lacks is enough for one after the other.
                    figures.missing_bytes = figures.missing_bytes.max(bytes);
                }
            }
        }
        figures
    }
}

impl Desktops {
    /// MiB of memory that desktops have whose machines run, as far as is known.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub fn running_memory_mib(&self) -> Result<u64, DesktopError> {
        let desktops = self.versions.catalog().desktops()?;
        let running = desktops.iter().filter(|desktop| desktop.machine.is_some());
        Ok(running.map(|desktop| u64::from(desktop.memory_mib)).sum())
    }
}
