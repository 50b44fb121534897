//! What can go wrong with keys, and the way out.

use std::io;
use std::path::PathBuf;

use super::unlock::UnlockError;
use super::wrap::WrapError;

/// Why a key could not be had, made or destroyed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The branch key does not open.
    #[error("branch key keys/{file}")]
    Unlock {
        /// Its file.
        file: &'static str,
        /// Why.
        source: UnlockError,
    },
    /// What opens the branch key is not there.
    #[error(
        "branch key keys/{file} is there, and the key file keys/unlock.key that opens it is not; put that back from a copy: without it desktops' data cannot be read"
    )]
    NoKeyFile {
        /// The branch key's file.
        file: &'static str,
    },
    /// The branch key needs a passphrase.
    #[error("the branch key is protected by a passphrase; name its file with --passphrase-file")]
    NoPassphrase,
    /// There are data keys, and no branch key.
    #[error(
        "keys/{file} is there, and the branch key keys/branch.key that it is wrapped under is not; put that back from a copy: without it desktops' data cannot be read"
    )]
    NoBranchKey {
        /// A key that is there.
        file: String,
    },
    /// A data key is damaged or wrapped under a branch key that is gone.
    #[error("key keys/{file}")]
    Data {
        /// Its file.
        file: String,
        /// Why.
        source: WrapError,
    },
    /// An encrypted overlay without its key.
    #[error(
        "the key of desktop {name} (keys/{file}) is not there: its data was destroyed with it, or the file must be put back from a copy; {way_out}"
    )]
    Destroyed {
        /// The desktop.
        name: String,
        /// Where its key would be.
        file: String,
        /// What else can be done.
        way_out: String,
    },
    /// An overlay in the clear without a key, after the first start.
    #[error(
        "the overlay of desktop {name} is in the clear, as releases before encryption wrote it, and this branch encrypts: either its key (keys/{file}) was removed and its overlay replaced, then put both back from a copy; or it came from elsewhere, then {way_out}"
    )]
    InTheClear {
        /// The desktop.
        name: String,
        /// Where its key would be.
        file: String,
        /// What else can be done.
        way_out: String,
    },
    /// They were destroyed.
    #[error(
        "the keys of this branch were destroyed by its datacenter's order: nothing that lies here can be read again; to use this machine anew, remove its data directory and join with another token"
    )]
    Wiped,
    /// The key there is another desktop's.
    #[error(
        "key keys/{file} belongs to another desktop than {name}; put the right one back from a copy"
    )]
    OtherDesktop {
        /// The desktop.
        name: String,
        /// The key's file.
        file: String,
    },
    /// The key file is malformed.
    #[error("key file keys/unlock.key is not 64 hexadecimal digits; put it back from a copy")]
    KeyFile,
    /// A passphrase file cannot be used.
    #[error("passphrase file {}: {reason}", path.display())]
    Passphrase {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The operating system reported an error.
    #[error("keys/{file}: {what}")]
    Io {
        /// The file.
        file: String,
        /// What was tried.
        what: &'static str,
        /// The operating system's words.
        #[source]
        source: io::Error,
    },
}
