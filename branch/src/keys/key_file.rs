//! The key file beside the branch key, and what else opens that.
//!
//! 64 hexadecimal digits in `unlock.key`, mode 0600, made only where nothing else is to open the branch key. What it protects, and what not, is
//! told by [`super::unlock`].

use dedup_store::disk::Disk;
use zeroize::Zeroizing;

use super::error::KeyError;
use super::files::{read, replace};
use super::store::BRANCH;
use super::unlock::{Mode, Unlock};
use super::wrap::Secret;
use crate::volume::FillRandom;

/// Name of the file.
pub const UNLOCK: &str = "unlock.key";

/// What opens a branch key of this mode, given what the operator gave.
pub fn unlock_for(
    disk: &dyn Disk,
    mode: Mode,
    passphrase: Option<Zeroizing<Vec<u8>>>,
) -> Result<Unlock, KeyError> {
    match (mode, passphrase) {
        // Also where it is not needed, so that it is told and not passed over.
        (_, Some(passphrase)) => Ok(Unlock::Passphrase(passphrase)),
        (Mode::Tpm, None) => Ok(Unlock::Tpm),
        (Mode::Passphrase, None) => Err(KeyError::NoPassphrase),
        (Mode::KeyFile, None) => match load_key_file(disk)? {
            Some(secret) => Ok(Unlock::KeyFile(secret)),
            None => Err(KeyError::NoKeyFile { file: BRANCH }),
        },
    }
}

fn load_key_file(disk: &dyn Disk) -> Result<Option<Secret>, KeyError> {
    let Some(text) = read(disk, UNLOCK)? else {
        return Ok(None);
    };
    let digits = text.strip_suffix(b"\n").unwrap_or(&text);
    let mut bytes = Zeroizing::new([0u8; 32]);
    hex::decode_to_slice(digits, &mut *bytes).map_err(|_| KeyError::KeyFile)?;
    Ok(Some(Secret::new(*bytes)))
}

/// The key file that is there, or a new one; durable.
pub fn make_key_file(disk: &dyn Disk, random: FillRandom) -> Result<Unlock, KeyError> {
    if let Some(secret) = load_key_file(disk)? {
        return Ok(Unlock::KeyFile(secret));
    }
    let secret = Secret::random(random);
    let text = Zeroizing::new(hex::encode(secret.bytes()));
    replace(disk, UNLOCK, text.as_bytes())?;
    Ok(Unlock::KeyFile(secret))
}
