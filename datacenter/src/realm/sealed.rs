//! Secrets at rest: sealed under a key stretched from a passphrase.
//!
//! argon2id (RFC 9106) makes the key, AES-256-GCM (by `ring`) seals; the header with the stretching costs is authenticated
//! with the content. Whoever copies the file without the passphrase has nothing; whoever copies both has everything. The format is
//! told byte by byte in `docs/disk-formats/catalog.md`.

use argon2::{Algorithm, Argon2, Params, Version};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"SPLSEAL\0";
const FORMAT: u16 = 1;
const SALT_LEN: usize = 16;
const NONCE_LEN: usize = 12;
const HEADER_LEN: usize = 8 + 2 + 4 + 4 + 4 + SALT_LEN + NONCE_LEN;

/// Largest sealed file, in bytes: keys, never data.
pub const SEALED_BYTES_MAX: usize = 64 * 1024;

/// Memory and passes of the stretching: 64 MiB and 3, RFC 9106's second recommendation with one lane. About 0.2 s once per start.
const COST: Cost = Cost {
    memory_kib: 64 * 1024,
    passes: 3,
    lanes: 1,
};

/// The most that a file may ask of us, so that a damaged header cannot exhaust memory.
const COST_MAX: Cost = Cost {
    memory_kib: 1024 * 1024,
    passes: 16,
    lanes: 16,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// Why sealed bytes were not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not a sealed file, or of a newer format.
    #[error("not a sealed file of format {FORMAT}")]
    Header,
    /// Wrong passphrase or altered bytes; the two cannot be told apart.
    #[error("the passphrase does not fit, or the file is damaged")]
    Closed,
}

/// Seals `plain` under `passphrase`.
pub fn seal(passphrase: &[u8], plain: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let mut salt = [0; SALT_LEN];
    let mut nonce = [0; NONCE_LEN];
    random
        .fill(&mut salt)
        .expect("the system's random source works");
    random
        .fill(&mut nonce)
        .expect("the system's random source works");
    let mut out = Vec::with_capacity(HEADER_LEN + plain.len() + 16);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    for cost in [COST.memory_kib, COST.passes, COST.lanes] {
        out.extend_from_slice(&cost.to_le_bytes());
    }
    out.extend_from_slice(&salt);
    out.extend_from_slice(&nonce);
    let key = stretch(passphrase, &salt, COST).expect("our own costs are in range");
    let mut body = Zeroizing::new(plain.to_vec());
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(&out),
            &mut body,
        )
        .expect("far below the limit of GCM");
    out.extend_from_slice(&body);
    out.extend_from_slice(tag.as_ref());
    out
}

/// Opens what [`seal`] made.
pub fn open(passphrase: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (header, body) = sealed
        .split_at_checked(HEADER_LEN)
        .ok_or(SealError::Header)?;
    if &header[..8] != MAGIC || header[8..10] != FORMAT.to_le_bytes() {
        return Err(SealError::Header);
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let cost = Cost {
        memory_kib: word(10),
        passes: word(14),
        lanes: word(18),
    };
    let key = stretch(passphrase, &header[22..22 + SALT_LEN], cost).ok_or(SealError::Header)?;
    let nonce = header[22 + SALT_LEN..].try_into().expect("twelve bytes");
    let mut body = Zeroizing::new(body.to_vec());
    let len = key
        .open_in_place(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(header),
            &mut body,
        )
        .map_err(|_| SealError::Closed)?
        .len();
    body.truncate(len);
    Ok(body)
}

fn stretch(passphrase: &[u8], salt: &[u8], cost: Cost) -> Option<LessSafeKey> {
    let in_range = cost.memory_kib <= COST_MAX.memory_kib
        && cost.passes <= COST_MAX.passes
        && cost.lanes <= COST_MAX.lanes;
    in_range.then_some(())?;
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase, salt, &mut *key)
        .ok()?;
    UnboundKey::new(&AES_256_GCM, &*key)
        .ok()
        .map(LessSafeKey::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_open_only_with_their_passphrase_and_unaltered() {
        let sealed = seal(b"correct horse", b"the realm's keys");
        assert!(!sealed.windows(5).any(|w| w == b"realm"));
        assert_eq!(
            open(b"correct horse", &sealed)
                .as_deref()
                .map(|v| v.as_slice()),
            Ok(b"the realm's keys".as_slice())
        );
        assert_eq!(open(b"wrong", &sealed), Err(SealError::Closed));
        for at in [10, 25, 40, HEADER_LEN, sealed.len() - 1] {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(open(b"correct horse", &bent).is_err(), "byte {at}");
        }
        assert_eq!(
            open(b"correct horse", &sealed[..20]),
            Err(SealError::Header)
        );
        assert_ne!(seal(b"x", b"y"), seal(b"x", b"y"));
    }

    #[test]
    fn a_header_cannot_ask_for_all_memory() {
        let mut sealed = seal(b"x", b"y");
        sealed[10..14].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(open(b"x", &sealed), Err(SealError::Header));
    }
}
