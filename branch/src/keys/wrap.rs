//! One key encrypted under another: the cipher, and the layout of a file that holds one data key.
//!
//! XChaCha20-Poly1305 with a random nonce for each wrapping. The tag covers everything that the file says in the clear, so that the key of
//! one desktop does not pass for another's. Layouts are those of `docs/disk-formats/keys.md`. It does no I/O.

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use xxhash_rust::xxh3::xxh3_64;
use zeroize::Zeroizing;

use crate::volume::FillRandom;

/// 32 secret bytes, overwritten when they are dropped, and never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// Takes 32 bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new one.
    pub fn random(random: FillRandom) -> Self {
        let mut bytes = Zeroizing::new([0u8; 32]);
        random(&mut *bytes);
        Self(bytes)
    }

    /// Another secret, which tells nothing of this one. `purpose` is a constant of the program.
    pub fn derive(&self, purpose: &str) -> Self {
        Self(Zeroizing::new(blake3::derive_key(purpose, &*self.0)))
    }

    /// Its public name.
    pub fn id(&self) -> [u8; 8] {
        let name = self.derive("splice key id v1");
        let mut id = [0; 8];
        id.copy_from_slice(&name.0[..8]);
        id
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A secret, encrypted: nonce, tag, ciphertext.
pub const WRAPPED_BYTES: usize = 24 + 16 + 32;

/// Encrypts `secret` under `key`; `clear` must be the same when it is opened.
pub fn wrap(
    key: &Secret,
    secret: &Secret,
    clear: &[u8],
    random: FillRandom,
) -> [u8; WRAPPED_BYTES] {
    let mut nonce = [0; 24];
    random(&mut nonce);
    let mut body = Zeroizing::new(*secret.bytes());
    let tag: [u8; 16] = XChaCha20Poly1305::new(&(*key.bytes()).into())
        .encrypt_in_place_detached(&XNonce::from(nonce), clear, &mut *body)
        .expect("32 bytes are far below the cipher's limit")
        .into();
    let mut out = [0; WRAPPED_BYTES];
    out[..24].copy_from_slice(&nonce);
    out[24..40].copy_from_slice(&tag);
    out[40..].copy_from_slice(&*body);
    out
}

/// Decrypts what [`wrap`] made; `None` if the key is another or anything was changed.
pub fn unwrap(key: &Secret, wrapped: &[u8; WRAPPED_BYTES], clear: &[u8]) -> Option<Secret> {
    let nonce: [u8; 24] = wrapped[..24].try_into().expect("24 bytes");
    let tag: [u8; 16] = wrapped[24..40].try_into().expect("16 bytes");
    let mut body = Zeroizing::new([0u8; 32]);
    body.copy_from_slice(&wrapped[40..]);
    XChaCha20Poly1305::new(&(*key.bytes()).into())
        .decrypt_in_place_detached(&XNonce::from(nonce), clear, &mut *body, &Tag::from(tag))
        .ok()?;
    Some(Secret(body))
}

/// What a data key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A desktop's overlay.
    Desktop,
    /// The cache.
    Cache,
    /// Nothing: while its file is there, overlays that an earlier release left in the clear are taken.
    Adoption,
}

const MAGIC: [u8; 8] = *b"SPLWRKEY";
const VERSION: u32 = 1;
/// Bytes in the clear, which the tag covers.
const CLEAR_BYTES: usize = 48;
/// Length of the file of a data key.
pub const DATA_KEY_BYTES: usize = CLEAR_BYTES + WRAPPED_BYTES + 8;
/// Flag: the desktop's overlay may be in the clear, because an earlier release wrote it.
const TAKES_PLAIN: u32 = 1;

/// The file of a data key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataKey {
    /// What it is for.
    pub purpose: Purpose,
    /// The desktop's id; zeros for the others.
    pub owner: [u8; 16],
    /// The branch key that it is wrapped under.
    pub branch_key: [u8; 8],
    /// Whether the desktop's overlay may be in the clear.
    pub takes_plain: bool,
    wrapped: [u8; WRAPPED_BYTES],
}

/// Why bytes are no data key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// Not such a file, torn or damaged.
    #[error(
        "it is not a key file, or damaged; put back a copy of it, or delete the desktop whose data is lost with it"
    )]
    Damaged,
    /// Of a later release.
    #[error("it has format version {0}; this release cannot read it")]
    Version(u32),
    /// Wrapped under another key, or changed.
    #[error(
        "it does not open with the branch key {0:016x}; put back the copy of it that was made last, together with that branch key"
    )]
    Closed(u64),
}

impl DataKey {
    /// Wraps `secret` under the branch key.
    pub fn seal(
        secret: &Secret,
        (purpose, owner): (Purpose, [u8; 16]),
        takes_plain: bool,
        branch_key: &Secret,
        random: FillRandom,
    ) -> Self {
        let mut key = Self {
            purpose,
            owner,
            branch_key: branch_key.id(),
            takes_plain,
            wrapped: [0; WRAPPED_BYTES],
        };
        key.wrapped = wrap(&wrapping(branch_key), secret, &key.clear(), random);
        key
    }

    /// The data key itself.
    pub fn open(&self, branch_key: &Secret) -> Result<Secret, WrapError> {
        unwrap(&wrapping(branch_key), &self.wrapped, &self.clear())
            .ok_or(WrapError::Closed(u64::from_be_bytes(branch_key.id())))
    }

    fn clear(&self) -> [u8; CLEAR_BYTES] {
        let mut out = [0; CLEAR_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let purpose: u32 = match self.purpose {
            Purpose::Desktop => 1,
            Purpose::Cache => 2,
            Purpose::Adoption => 3,
        };
        out[12..16].copy_from_slice(&purpose.to_le_bytes());
        out[16..32].copy_from_slice(&self.owner);
        out[32..40].copy_from_slice(&self.branch_key);
        let flags = if self.takes_plain { TAKES_PLAIN } else { 0 };
        out[40..44].copy_from_slice(&flags.to_le_bytes());
        out
    }

    /// The bytes of the file.
    pub fn encode(&self) -> [u8; DATA_KEY_BYTES] {
        let mut out = [0; DATA_KEY_BYTES];
        out[..CLEAR_BYTES].copy_from_slice(&self.clear());
        out[CLEAR_BYTES..DATA_KEY_BYTES - 8].copy_from_slice(&self.wrapped);
        let check = xxh3_64(&out[..DATA_KEY_BYTES - 8]);
        out[DATA_KEY_BYTES - 8..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, WrapError> {
        let bytes: &[u8; DATA_KEY_BYTES] = bytes.try_into().map_err(|_| WrapError::Damaged)?;
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let (content, check) = bytes.split_at(DATA_KEY_BYTES - 8);
        if bytes[..8] != MAGIC || xxh3_64(content).to_le_bytes() != *check {
            return Err(WrapError::Damaged);
        }
        if word(8) != VERSION || word(40) > TAKES_PLAIN || word(44) != 0 {
            return Err(WrapError::Version(word(8)));
        }
        Ok(Self {
            purpose: match word(12) {
                1 => Purpose::Desktop,
                2 => Purpose::Cache,
                3 => Purpose::Adoption,
                _ => return Err(WrapError::Damaged),
            },
            owner: bytes[16..32].try_into().expect("16 bytes"),
            branch_key: bytes[32..40].try_into().expect("eight bytes"),
            takes_plain: word(40) == TAKES_PLAIN,
            wrapped: content[CLEAR_BYTES..].try_into().expect("what is left"),
        })
    }
}

/// What data keys are encrypted with, so that the branch key itself encrypts nothing.
fn wrapping(branch_key: &Secret) -> Secret {
    branch_key.derive("splice branch key wraps data keys v1")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn fill(buf: &mut [u8]) {
        buf.fill(3);
    }

    #[test]
    fn a_data_key_opens_only_unaltered_and_under_its_branch_key() {
        let (branch, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let secret = Secret::new([7; 32]);
        let key = DataKey::seal(&secret, (Purpose::Desktop, [9; 16]), true, &branch, fill);
        let bytes = key.encode();
        assert!(!bytes.windows(8).any(|w| w == [7; 8]));
        let read = DataKey::decode(&bytes).unwrap();
        assert_eq!(read, key);
        assert_eq!(read.open(&branch).unwrap().bytes(), &[7; 32]);
        assert!(matches!(read.open(&other), Err(WrapError::Closed(_))));
        for at in 0..bytes.len() {
            let mut bent = bytes;
            bent[at] ^= 1;
            assert!(DataKey::decode(&bent).is_err(), "byte {at}");
            // With the checksum made right, the tag still covers it.
            let end = DATA_KEY_BYTES - 8;
            let check = xxh3_64(&bent[..end]);
            bent[end..].copy_from_slice(&check.to_le_bytes());
            if at < end
                && let Ok(key) = DataKey::decode(&bent)
            {
                assert!(key.open(&branch).is_err(), "byte {at}");
            }
        }
        assert!(!format!("{secret:?}").contains('7'));
    }

    /// Computed by another implementation (BLAKE3 and HChaCha20 in Python), from what `docs/disk-formats/keys.md` says.
    #[test]
    fn golden_values() {
        let (branch, secret) = (Secret::new([1; 32]), Secret::new([7; 32]));
        let key = DataKey::seal(&secret, (Purpose::Desktop, [9; 16]), true, &branch, fill);
        let bytes = key.encode();
        assert_eq!(hex::encode(branch.id()), "3c636e12e20fdc2b");
        assert_eq!(
            hex::encode(&bytes[..48]),
            "53504c57524b4559010000000100000009090909090909090909090909090909\
             3c636e12e20fdc2b0100000000000000"
        );
        assert_eq!(bytes[48..72], [3; 24]);
        assert_eq!(
            hex::encode(&bytes[72..120]),
            "914c5912fb3ff0c66f1373d3396ef1d3\
             5d2a078974955b7e825594525197f4836569b2a93adf7d5464662697ea9f21bb"
        );
    }
}
