//! Desktops whose writes find no room: what is told of it, and who makes room.
//!
//! Waiting itself is the overlay's. Here templates and the cache give up what they can spare, once for each time that the disk runs full, and once more when the
//! link comes back, because more can be fetched again then.

use super::{Desktops, error_line};
use crate::volume::Shortage;

/// What the cache gives up beyond what is missing when the disk is full, so that desktops do not stand still again at once.
const SPARE_BYTES: u64 = 256 << 20;

impl Desktops {
    /// Gives templates, and then what the cache can spare, of the host's disk to desktops that have no room to write, and not again and again while they have
    /// none: a cache on another disk would be emptied in vain.
    pub(super) fn make_room(&self) {
        let missing = self.volumes.missing_bytes();
        let is_up = self.fetcher.is_connected();
        {
            let mut made = self.made_room.lock().expect("no panic under this lock");
            if missing == 0 {
                *made = None;
                return;
            }
            if made.is_some_and(|was_up| was_up || !is_up) {
                return;
            }
            *made = Some(is_up);
        }
        let mut missing = missing.saturating_add(SPARE_BYTES);
        // Before chunks, which have to come over the line again.
        if let Some(shelf) = &self.templates {
            let freed = shelf.give_room();
            if freed > 0 {
                tracing::warn!(
                    freed,
                    "the disk is full: desktops wait for room, and templates are given up"
                );
            }
            missing = missing.saturating_sub(freed);
        }
        if missing == 0 {
            return;
        }
        match self.fetcher.give_room(missing) {
            Ok(freed) => tracing::warn!(
                missing,
                freed,
                "the disk is full: desktops wait for room, and the cache gave up what it can spare"
            ),
            Err(error) => tracing::error!(
                error = error_line(&error),
                "the disk is full, and the cache could give nothing up"
            ),
        }
    }
}

/// Why a desktop's writes wait, and what ends that.
pub(super) fn shortage_line(shortage: Shortage) -> String {
    match shortage {
        Shortage::DiskBytes(bytes) => format!(
            "no room: {bytes} bytes are missing on the branch's disk; it goes on by itself when they come free"
        ),
        Shortage::IndexFull => {
            "no room: its writes are scattered over more places than are kept in memory; it goes on by itself when some are joined, \
             or the guest gives back what it does not need (fstrim)"
                .to_owned()
        }
    }
}
