//! Destroying all keys at once, for good: what is done when the datacenter says that this branch is lost.
//!
//! ```text
//!   order kept in wipe.order ──► branch key, what protects it, data keys: overwritten, removed ──► the order stays
//! ```
//!
//! Invariant: once the order is durable no opening of the keys gives any, and each goes on destroying where the last one was stopped. The order stays, so
//! that it can be told again what was done. It decides nothing: whoever calls has checked who gave the order.

use dedup_store::disk::Disk;

use super::error::KeyError;
use super::files::{destroy, io_error, read, replace};
use super::key_file::UNLOCK;
use super::store::{BRANCH, DESKTOPS, NEXT, join};
use crate::volume::FillRandom;

/// The order, as it was signed.
pub const ORDER: &str = "wipe.order";

/// Keeps `order`, then destroys every key. To be called again after it failed.
///
/// # Errors
/// [`KeyError::Io`].
pub fn wipe(disk: &dyn Disk, order: &[u8], random: FillRandom) -> Result<(), KeyError> {
    disk.create_dir(DESKTOPS)
        .map_err(io_error(DESKTOPS, "create the directory"))?;
    if wiped(disk)?.is_none() {
        replace(disk, ORDER, order)?;
    }
    destroy_all(disk, random)
}

/// The order by which all keys were destroyed, or are to be; `None`: there is none.
///
/// # Errors
/// [`KeyError::Io`].
pub fn wiped(disk: &dyn Disk) -> Result<Option<Vec<u8>>, KeyError> {
    Ok(read(disk, ORDER)?.map(|order| order.to_vec()))
}

/// Destroys every key that is there, and what a write that was cut left of one.
///
/// # Errors
/// [`KeyError::Io`].
pub(super) fn destroy_all(disk: &dyn Disk, random: FillRandom) -> Result<(), KeyError> {
    // A process that died may have left the order's name where a power cut would not leave it.
    disk.sync_dir("").map_err(io_error(ORDER, "sync"))?;
    // With the branch key all others are noise, so it goes first.
    for file in [BRANCH, NEXT, UNLOCK] {
        destroy(disk, &format!("{file}.part"), random)?;
        destroy(disk, file, random)?;
    }
    for dir in [DESKTOPS, ""] {
        for name in disk.list(dir).map_err(io_error(dir, "list"))? {
            if name.ends_with(".key") || name.ends_with(".part") {
                destroy(disk, &join(dir, &name), random)?;
            }
        }
    }
    Ok(())
}
