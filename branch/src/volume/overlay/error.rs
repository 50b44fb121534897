//! What can go wrong with an overlay, and what a guest is told about it.

use std::io;

use vmm_block::{BlockError, BlockErrorKind};

/// Why an overlay cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// There is no overlay in this directory.
    #[error("overlay {dir}: there is none; create it first")]
    Absent {
        /// Directory of the overlay.
        dir: String,
    },
    /// There is something in this directory already.
    #[error("overlay {dir}: {file} exists already; nothing was overwritten")]
    Exists {
        /// Directory of the overlay.
        dir: String,
        /// The file in the way.
        file: String,
    },
    /// The overlay belongs to another desktop, base version or disk layout than the caller expects.
    #[error("overlay {dir}: its {what} is {found}, not {expected} as expected; it was not opened")]
    Mismatch {
        /// Directory of the overlay.
        dir: String,
        /// Which property differs.
        what: &'static str,
        /// What the caller expects.
        expected: String,
        /// What the overlay says.
        found: String,
    },
    /// Written by a later release.
    #[error("overlay file {file}: {why}; this release cannot read it")]
    Unsupported {
        /// The file.
        file: String,
        /// What it needs.
        why: String,
    },
    /// Data that was flushed does not verify. The overlay stays closed: cutting it here would lose flushed writes.
    #[error(
        "overlay file {file} is damaged at byte {offset}: {why}; restore it from a snapshot or discard the overlay"
    )]
    Corrupt {
        /// The damaged file.
        file: String,
        /// Byte offset of the first bad record in it.
        offset: u64,
        /// What does not verify.
        why: String,
    },
    /// The disk is full. Nothing that was acknowledged is affected, and the write may be tried again.
    #[error("overlay {dir}: no space left on its disk")]
    NoSpace {
        /// Directory of the overlay.
        dir: String,
    },
    /// The index has as many extents as it may have. Nothing that was acknowledged is affected, and the write may be tried again.
    #[error(
        "overlay {dir}: its writes lie in {extents} extents, as many as are kept in memory; it goes on when compaction has joined some, or the guest gives back some (fstrim)"
    )]
    IndexFull {
        /// Directory of the overlay.
        dir: String,
        /// How many there are.
        extents: u64,
    },
    /// The overlay is encrypted with another key than the one at hand.
    #[error(
        "overlay {dir} is encrypted with key {found}, and the desktop's key is {expected}; put the desktop's key file back that belongs to it"
    )]
    OtherKey {
        /// Directory of the overlay.
        dir: String,
        /// The key at hand.
        expected: String,
        /// The overlay's.
        found: String,
    },
    /// The operating system reported an error.
    #[error("overlay file {file}: {what}")]
    Io {
        /// The file.
        file: String,
        /// What was tried.
        what: &'static str,
        /// The operating system's words.
        #[source]
        source: io::Error,
    },
    /// An earlier write or sync failed. Linux reports such an error once and may drop the data, so nothing is tried again.
    #[error("overlay {dir} is closed after an earlier failure: {why}")]
    Failed {
        /// Directory of the overlay.
        dir: String,
        /// The first failure.
        why: String,
    },
    /// The caller's arguments do not fit the overlay.
    #[error("overlay {dir}: {why}")]
    Invalid {
        /// Directory of the overlay.
        dir: String,
        /// What does not fit.
        why: String,
    },
}

impl OverlayError {
    pub(crate) fn io(file: &str, what: &'static str, source: io::Error) -> Self {
        Self::Io {
            file: file.to_owned(),
            what,
            source,
        }
    }

    /// Whether the same write may succeed later, when there is room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::IndexFull { .. })
    }
}

/// Whether the error says that the disk (or the user's quota) is full. By kind, because a disk may wrap the raw error.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl From<OverlayError> for BlockError {
    fn from(error: OverlayError) -> Self {
        let kind = match &error {
            OverlayError::NoSpace { .. } | OverlayError::IndexFull { .. } => {
                BlockErrorKind::NoSpace
            }
            OverlayError::Invalid { .. } => BlockErrorKind::OutOfRange,
            OverlayError::Absent { .. }
            | OverlayError::Exists { .. }
            | OverlayError::Mismatch { .. }
            | OverlayError::OtherKey { .. }
            | OverlayError::Unsupported { .. }
            | OverlayError::Corrupt { .. }
            | OverlayError::Io { .. }
            | OverlayError::Failed { .. } => BlockErrorKind::Io,
        };
        match error {
            OverlayError::Io { file, what, source } => {
                Self::with_source(kind, format!("overlay file {file}: {what}"), source)
            }
            other => Self::new(kind, other.to_string()),
        }
    }
}
