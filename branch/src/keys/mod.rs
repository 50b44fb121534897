//! The branch's keys: one branch key, and the keys of desktops and cache wrapped under it.
//!
//! ```text
//!   key file, passphrase or TPM ──opens──► branch key ──wraps──► key of each desktop's overlay
//!                                                          └───► key of the cache
//! ```
//!
//! Every desktop has a key of its own, so that destroying 128 bytes destroys the desktop's data, wherever its blocks went. Changing the branch
//! key wraps the others anew and touches no data. What opens the branch key, and which theft that survives, is [`unlock`]'s.
//!
//! It keeps out whoever has the disk and not what opens the branch key. It does not keep out root on a running branch, who has it all, or
//! somebody who can change the branch's programs.

mod error;
mod files;
mod key_file;
mod store;
#[cfg(test)]
mod tests;
mod tpm;
mod unlock;
mod wipe;
#[cfg(test)]
mod wipe_tests;
mod wrap;

pub use error::KeyError;
pub use store::{KeyStatus, KeyStore};
pub use tpm::TpmError;
pub use unlock::{Mode, Unlock, UnlockError};
pub use wipe::{wipe, wiped};
pub use wrap::{Secret, WrapError};

use zeroize::Zeroizing;

/// Fills `buf` from the system's random source, which repeats itself neither after a restart nor on a restored machine.
pub fn system_random(buf: &mut [u8]) {
    use ring::rand::SecureRandom;
    ring::rand::SystemRandom::new()
        .fill(buf)
        .expect("the system's random source works");
}

/// Longest passphrase file, in bytes.
const PASSPHRASE_BYTES_MAX: usize = 4096;

/// The passphrase in a file: its first line.
///
/// # Errors
/// [`KeyError::Passphrase`].
pub fn read_passphrase(path: &std::path::Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let error = |reason: String| KeyError::Passphrase {
        path: path.to_owned(),
        reason,
    };
    let text = Zeroizing::new(std::fs::read(path).map_err(|e| error(e.to_string()))?);
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || line.len() > PASSPHRASE_BYTES_MAX {
        return Err(error(format!(
            "its first line has {} bytes; 1 to {PASSPHRASE_BYTES_MAX} make a passphrase",
            line.len()
        )));
    }
    Ok(Zeroizing::new(line.to_vec()))
}
