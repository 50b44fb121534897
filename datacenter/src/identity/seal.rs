//! Second factors at rest: sealed, so that a copy of the catalog (a backup, say) makes nobody's codes.
//!
//! AES-256-GCM by `ring` with a random nonce; the key is derived from a secret of the realm that only the passphrase opens, and the account's id is
//! authenticated with it, so that one account's factor does not pass for another's. Sealed: nonce (12), ciphertext (20), tag (16).

use dedup_protocol::people::totp::TotpSecret;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::realm::random;

const NONCE_LEN: usize = 12;
const PURPOSE: &str = "splice datacenter seals second factors v1";

/// See the module.
pub(super) struct Sealing(LessSafeKey);

impl Sealing {
    pub(super) fn new(secret: &[u8]) -> Self {
        let key = blake3::derive_key(PURPOSE, secret);
        let key = UnboundKey::new(&AES_256_GCM, &key).expect("a key of 32 bytes");
        Self(LessSafeKey::new(key))
    }

    pub(super) fn seal(&self, account: &[u8; 16], secret: &TotpSecret) -> Vec<u8> {
        let nonce = random::<NONCE_LEN>();
        let mut body = secret.0;
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(account),
                &mut body,
            )
            .expect("far below the limit of GCM");
        [&nonce[..], &body[..], tag.as_ref()].concat()
    }

    /// `None` if it was sealed for another account or realm, or damaged.
    pub(super) fn open(&self, account: &[u8; 16], sealed: &[u8]) -> Option<TotpSecret> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN)?;
        let mut body = body.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self
            .0
            .open_in_place(nonce, Aad::from(account), &mut body)
            .ok()?;
        Some(TotpSecret((&*plain).try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_realm_opens_it_and_only_for_the_account() {
        let (sealing, other) = (Sealing::new(b"realm"), Sealing::new(b"other"));
        let secret = TotpSecret([7; 20]);
        let sealed = sealing.seal(&[1; 16], &secret);
        assert_eq!(sealed.len(), 48);
        assert_eq!(sealing.open(&[1; 16], &sealed), Some(secret));
        assert_eq!(sealing.open(&[2; 16], &sealed), None);
        assert_eq!(other.open(&[1; 16], &sealed), None);
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert_eq!(sealing.open(&[1; 16], &bent), None, "byte {at}");
        }
        assert_eq!(sealing.open(&[1; 16], &sealed[..11]), None);
        assert_eq!(sealing.open(&[1; 16], &[]), None);
    }
}
