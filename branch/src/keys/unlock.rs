//! What opens the branch key at start, and the layout of its file.
//!
//! | mode | what opens it | protects | does not protect |
//! |---|---|---|---|
//! | key file | 32 random bytes in a file beside it, mode 0600 | desktops that are deleted; a disk of which the key's sectors are gone | a stolen server, a stolen or copied disk |
//! | passphrase | a file that the operator keeps elsewhere (a stick, a credential of the service manager), stretched by argon2id | a stolen server or disk, as long as that file is not on it | a thief who has both |
//! | TPM | the machine's TPM 2.0, while its secure-boot state (PCR 7) is the same | a disk without its machine | a stolen server that boots as it did |
//!
//! Invariant: the branch key is never on a disk in the clear. It does no I/O but that of the TPM's programs.

use argon2::{Algorithm, Argon2, Params, Version};
use xxhash_rust::xxh3::xxh3_64;
use zeroize::Zeroizing;

use super::tpm::{self, Sealed, TpmError};
use super::wrap::{Secret, WRAPPED_BYTES, unwrap, wrap};
use crate::volume::FillRandom;

const MAGIC: [u8; 8] = *b"SPLBRKEY";
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 32;
/// Most bytes of parameters: what a TPM hands out for one sealed secret is some hundred.
const PARAMETERS_BYTES_MAX: usize = 8 << 10;
/// Longest file of a branch key.
pub const BRANCH_KEY_BYTES_MAX: usize = FIXED_BYTES + WRAPPED_BYTES + PARAMETERS_BYTES_MAX + 8;
const SALT_BYTES: usize = 16;

/// Memory and passes of the stretching: 64 MiB and 3, RFC 9106's second recommendation with one lane. About 0.2 s once per start.
const COST: [u32; 3] = [64 * 1024, 3, 1];
/// The most that a file may ask of us, so that a damaged header cannot exhaust memory.
const COST_MAX: [u32; 3] = [1024 * 1024, 16, 16];

/// How the branch key is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By a key file beside it.
    KeyFile,
    /// By a passphrase.
    Passphrase,
    /// By the machine's TPM.
    Tpm,
}

impl Mode {
    /// What this protects, and what not, in a line for operators.
    pub fn protects(self) -> &'static str {
        match self {
            Self::KeyFile => {
                "a key file on the same disk: deleted desktops are gone for good, but whoever takes this server or its disk reads everything"
            }
            Self::Passphrase => {
                "a passphrase: a stolen server or disk is noise, as long as the passphrase file is not on it"
            }
            Self::Tpm => {
                "this machine's TPM: a disk without the machine is noise, but a stolen machine that boots unchanged opens it"
            }
        }
    }

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyFile => "key_file",
            Self::Passphrase => "passphrase",
            Self::Tpm => "tpm",
        }
    }

    fn code(self) -> u32 {
        match self {
            Self::KeyFile => 1,
            Self::Passphrase => 2,
            Self::Tpm => 3,
        }
    }
}

/// What is at hand to open it with.
pub enum Unlock {
    /// The content of the key file.
    KeyFile(Secret),
    /// A passphrase.
    Passphrase(Zeroizing<Vec<u8>>),
    /// The TPM.
    Tpm,
}

impl Unlock {
    /// Which mode this is for.
    pub fn mode(&self) -> Mode {
        match self {
            Self::KeyFile(_) => Mode::KeyFile,
            Self::Passphrase(_) => Mode::Passphrase,
            Self::Tpm => Mode::Tpm,
        }
    }
}

/// Why a branch key did not open.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    /// Not such a file, torn or damaged.
    #[error("it is not a branch key file, or damaged; put back a copy of it")]
    Damaged,
    /// Of a later release.
    #[error("it has format version {0}; this release cannot read it")]
    Version(u32),
    /// Something else opens it.
    #[error("it is protected by {needed}, not by {given}; {way_out}")]
    OtherMode {
        /// What it needs.
        needed: &'static str,
        /// What was given.
        given: &'static str,
        /// What to do.
        way_out: &'static str,
    },
    /// What was given is not the right one, or the file was changed; the two cannot be told apart.
    #[error(
        "{0} does not fit, or the file was changed; give the right one, or put back a copy of the file"
    )]
    Closed(&'static str),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::KeyFile => "the key file",
        Mode::Passphrase => "the passphrase",
        Mode::Tpm => "the TPM",
    }
}

/// The file of a branch key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchKeyFile {
    /// How it is protected.
    pub mode: Mode,
    /// Public name of the branch key.
    pub key_id: [u8; 8],
    /// What its mode needs to know: costs and salt, or what the TPM sealed.
    parameters: Vec<u8>,
    wrapped: [u8; WRAPPED_BYTES],
}

impl BranchKeyFile {
    /// Protects `branch_key` by `unlock`.
    pub fn seal(
        branch_key: &Secret,
        unlock: &Unlock,
        random: FillRandom,
    ) -> Result<Self, UnlockError> {
        let (parameters, key) = match unlock {
            Unlock::KeyFile(secret) => (Vec::new(), secret.derive(BY_KEY_FILE)),
            Unlock::Passphrase(passphrase) => {
                let mut parameters = COST.map(u32::to_le_bytes).concat();
                let mut salt = [0; SALT_BYTES];
                random(&mut salt);
                parameters.extend_from_slice(&salt);
                let key = stretch(passphrase, &salt, COST).expect("our own costs are in range");
                (parameters, key)
            }
            Unlock::Tpm => {
                let secret = Secret::random(random);
                let sealed = tpm::seal(secret.bytes())?;
                (sealed.encode(), secret.derive(BY_TPM))
            }
        };
        let mut file = Self {
            mode: unlock.mode(),
            key_id: branch_key.id(),
            parameters,
            wrapped: [0; WRAPPED_BYTES],
        };
        file.wrapped = wrap(&key, branch_key, &file.clear(), random);
        Ok(file)
    }

    /// The branch key.
    pub fn open(&self, unlock: &Unlock) -> Result<Secret, UnlockError> {
        let key = match (self.mode, unlock) {
            (Mode::KeyFile, Unlock::KeyFile(secret)) => secret.derive(BY_KEY_FILE),
            (Mode::Passphrase, Unlock::Passphrase(passphrase)) => {
                let sound = self.parameters.len() == 12 + SALT_BYTES;
                let (costs, salt) = self
                    .parameters
                    .split_at_checked(12)
                    .filter(|_| sound)
                    .ok_or(UnlockError::Damaged)?;
                let cost = |i: usize| {
                    u32::from_le_bytes(costs[4 * i..4 * i + 4].try_into().expect("four bytes"))
                };
                stretch(passphrase, salt, [cost(0), cost(1), cost(2)])
                    .ok_or(UnlockError::Damaged)?
            }
            (Mode::Tpm, Unlock::Tpm) => {
                let sealed = Sealed::decode(&self.parameters).ok_or(UnlockError::Damaged)?;
                Secret::new(*tpm::unseal(&sealed)?).derive(BY_TPM)
            }
            (needed, given) => {
                return Err(UnlockError::OtherMode {
                    needed: mode_name(needed),
                    given: mode_name(given.mode()),
                    way_out: match needed {
                        Mode::Passphrase => "name its file with --passphrase-file",
                        Mode::KeyFile | Mode::Tpm => {
                            "leave --passphrase-file out, or change it with `splice-branch key protect`"
                        }
                    },
                });
            }
        };
        let secret = unwrap(&key, &self.wrapped, &self.clear())
            .ok_or(UnlockError::Closed(mode_name(self.mode)))?;
        if secret.id() != self.key_id {
            return Err(UnlockError::Damaged);
        }
        Ok(secret)
    }

    /// What the tag covers: everything but itself.
    fn clear(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.mode.code().to_le_bytes());
        out.extend_from_slice(&self.key_id);
        out.extend_from_slice(&(self.parameters.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        debug_assert_eq!(out.len(), FIXED_BYTES);
        out.extend_from_slice(&self.parameters);
        out
    }

    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.clear();
        out.extend_from_slice(&self.wrapped);
        let check = xxh3_64(&out);
        out.extend_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnlockError> {
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes.len() < FIXED_BYTES + WRAPPED_BYTES + 8 || bytes[..8] != MAGIC {
            return Err(UnlockError::Damaged);
        }
        if word(8) != VERSION || word(28) != 0 {
            return Err(UnlockError::Version(word(8)));
        }
        let (content, check) = bytes.split_at(bytes.len() - 8);
        let parameters = bytes.len() - FIXED_BYTES - WRAPPED_BYTES - 8;
        let whole = xxh3_64(content).to_le_bytes() == *check
            && word(24) as usize == parameters
            && parameters <= PARAMETERS_BYTES_MAX;
        if !whole {
            return Err(UnlockError::Damaged);
        }
        let (clear, wrapped) = content.split_at(FIXED_BYTES + parameters);
        Ok(Self {
            mode: match word(12) {
                1 => Mode::KeyFile,
                2 => Mode::Passphrase,
                3 => Mode::Tpm,
                _ => return Err(UnlockError::Damaged),
            },
            key_id: bytes[16..24].try_into().expect("eight bytes"),
            parameters: clear[FIXED_BYTES..].to_vec(),
            wrapped: wrapped.try_into().expect("what is left"),
        })
    }
}

const BY_KEY_FILE: &str = "splice branch key by key file v1";
const BY_TPM: &str = "splice branch key by TPM v1";

fn stretch(passphrase: &[u8], salt: &[u8], cost: [u32; 3]) -> Option<Secret> {
    if cost.iter().zip(COST_MAX).any(|(cost, most)| *cost > most) {
        return None;
    }
    let params = Params::new(cost[0], cost[1], cost[2], Some(32)).ok()?;
    let mut key = Zeroizing::new([0u8; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase, salt, &mut *key)
        .ok()?;
    Some(Secret::new(*key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn fill(buf: &mut [u8]) {
        buf.fill(3);
    }

    fn passphrase(text: &str) -> Unlock {
        Unlock::Passphrase(Zeroizing::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_passphrase_opens_what_it_protects_and_nothing_else_does() {
        let key = Secret::new([1; 32]);
        let file = BranchKeyFile::seal(&key, &passphrase("correct horse"), fill).unwrap();
        let read = BranchKeyFile::decode(&file.encode()).unwrap();
        assert_eq!(read, file);
        let opened = read.open(&passphrase("correct horse")).unwrap();
        assert_eq!(opened.bytes(), &[1; 32]);
        assert!(matches!(
            read.open(&passphrase("wrong")),
            Err(UnlockError::Closed("the passphrase"))
        ));
        let other = read.open(&Unlock::KeyFile(Secret::new([5; 32])));
        let Err(error @ UnlockError::OtherMode { .. }) = other else {
            panic!("opened");
        };
        assert!(error.to_string().contains("--passphrase-file"), "{error}");
    }

    /// Computed by another implementation (BLAKE3 and HChaCha20 in Python), from what `docs/disk-formats/keys.md` says.
    #[test]
    fn golden_values() {
        let unlock = Unlock::KeyFile(Secret::new([4; 32]));
        let file = BranchKeyFile::seal(&Secret::new([1; 32]), &unlock, fill).unwrap();
        let bytes = file.encode();
        assert_eq!(
            hex::encode(&bytes[..32]),
            "53504c42524b455901000000010000003c636e12e20fdc2b0000000000000000"
        );
        assert_eq!(
            hex::encode(&bytes[56..104]),
            "43cee46a411b1c477e437a76b05c675a\
             c39d9fab549f8dd6ad5f68038847bdf90b5993e3e3fc1bdfd93e12b59b74d245"
        );
    }

    #[test]
    fn an_altered_file_is_noticed_and_cannot_ask_for_all_memory() {
        let unlock = Unlock::KeyFile(Secret::new([4; 32]));
        let file = BranchKeyFile::seal(&Secret::new([1; 32]), &unlock, fill).unwrap();
        let bytes = file.encode();
        assert_eq!(file.open(&unlock).unwrap().bytes(), &[1; 32]);
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            assert!(BranchKeyFile::decode(&bent).is_err(), "byte {at}");
            let end = bent.len() - 8;
            let check = xxh3_64(&bent[..end]);
            bent[end..].copy_from_slice(&check.to_le_bytes());
            if at < end
                && let Ok(file) = BranchKeyFile::decode(&bent)
            {
                assert!(file.open(&unlock).is_err(), "byte {at}");
            }
        }
        let mut greedy =
            BranchKeyFile::seal(&Secret::new([1; 32]), &passphrase("x"), fill).unwrap();
        greedy.parameters[..4].fill(0xFF);
        assert!(matches!(
            greedy.open(&passphrase("x")),
            Err(UnlockError::Damaged)
        ));
        for len in 0..bytes.len() {
            assert!(BranchKeyFile::decode(&bytes[..len]).is_err());
        }
    }
}
