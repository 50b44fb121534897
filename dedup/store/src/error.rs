//! Why the chunk store could not do what it was asked.
//!
//! Each message names the pack file, the place in it and the record, and says what to do where there is something to do.

use std::fmt;
use std::io;

use dedup::{NodeId, RealmId};

use crate::kv::KvError;
use crate::pack::{PackNumber, RecordName};

/// Why the chunk store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full. What was committed is intact and the store stays usable: free space, then commit or put again.
    #[error("{what}: no space left; free space and try again")]
    NoSpace {
        /// The file or store that could not grow.
        what: String,
    },
    /// The operating system refused; a write that fails like this closes the store for writing.
    #[error("{what}: {source}")]
    Io {
        /// The file and what was done to it.
        what: String,
        /// The error itself.
        source: io::Error,
    },
    /// The index could not answer.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// An earlier write failed, so what the kernel holds may differ from what the disk holds.
    #[error(
        "the chunk store is closed for writing since {reason}; check the disk, then open the store again"
    )]
    Closed {
        /// The failure that closed it.
        reason: String,
    },
    /// Nothing is stored under this name.
    #[error("{name} is not in the store")]
    NotFound {
        /// What was asked for.
        name: RecordName,
    },
    /// A record is there but its bytes are not what was written.
    #[error(
        "{name} at {pack} offset {offset} is damaged: {why}; it must be quarantined and stored again"
    )]
    Damaged {
        /// What was asked for.
        name: RecordName,
        /// The pack file.
        pack: PackNumber,
        /// Where the record begins, in bytes.
        offset: u64,
        /// What does not match.
        why: String,
    },
    /// A pack file cannot be used as a whole.
    #[error("{pack} is unusable: {why}")]
    BadPack {
        /// The pack file.
        pack: PackNumber,
        /// What does not match.
        why: String,
    },
    /// A pack file of another realm lies among ours.
    #[error(
        "{pack} belongs to realm {found}, this store to realm {expected}; move the file to its own store"
    )]
    ForeignRealm {
        /// The pack file.
        pack: PackNumber,
        /// The realm that wrote it.
        found: RealmId,
        /// Our realm.
        expected: RealmId,
    },
    /// A pack file was named under another id key.
    #[error(
        "{pack} was written under id key {}, this store uses {}; open it with the realm's own key",
        Hex(found),
        Hex(expected)
    )]
    ForeignKey {
        /// The pack file.
        pack: PackNumber,
        /// The name of the key that was used.
        found: [u8; 8],
        /// The name of our key.
        expected: [u8; 8],
    },
    /// The key-value store indexes the packs of another realm or key.
    #[error(
        "the index belongs to realm {realm} and id key {}; use the key-value store of this realm",
        Hex(key_id)
    )]
    ForeignIndex {
        /// The realm it was made for.
        realm: RealmId,
        /// The name of the key it was made for.
        key_id: [u8; 8],
    },
    /// There are packs but no index: the key-value store was lost or is another one.
    #[error(
        "the index of {packs} pack files is missing or its rebuild was interrupted; rebuild it from the packs"
    )]
    IndexMissing {
        /// How many pack files there are.
        packs: usize,
    },
    /// An index entry makes no sense, or was written by a later release.
    #[error("the index entry of {what} is unreadable: {why}; rebuild the index from the packs")]
    BadIndex {
        /// Whose entry.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A chunk or a manifest node is longer than any may be.
    #[error("{name} has {len} bytes, more than {max}")]
    TooLong {
        /// Its name.
        name: RecordName,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The bytes given for a manifest node do not have its name.
    #[error("manifest node {expected} does not match its name: its bytes hash to {actual}")]
    NodeMismatch {
        /// The name that was given.
        expected: NodeId,
        /// The name that the bytes have.
        actual: NodeId,
    },
    /// Part of a manifest cannot be read, so nobody knows what is reachable.
    #[error(
        "nothing is collected: what is reachable from manifest {root} cannot be told: {why}; repair it, publish the same disk again, or delete what shows it"
    )]
    Unmarked {
        /// The tree's root.
        root: NodeId,
        /// What cannot be read.
        why: String,
    },
    /// A condemned record was read.
    #[error("collections are halted: {reason}; look into it, then resume them")]
    Halted {
        /// Which.
        reason: String,
    },
    /// The caller wanted no more.
    #[error("it was asked to stop")]
    Stopped,
    /// An option has a value that cannot work.
    #[error("store option {option}: {why}")]
    BadOption {
        /// The option's name.
        option: &'static str,
        /// What is wrong with its value.
        why: String,
    },
}

impl StoreError {
    /// Whether the disk is full, in the packs or in the index.
    pub fn is_no_space(&self) -> bool {
        matches!(
            self,
            StoreError::NoSpace { .. } | StoreError::Kv(KvError::NoSpace { .. })
        )
    }

    /// An I/O error while doing `what`.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        if is_full(&source) {
            return StoreError::NoSpace { what };
        }
        StoreError::Io { what, source }
    }
}

/// Whether an I/O error says that space or quota is used up.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
