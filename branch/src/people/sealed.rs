//! The roster at rest: XChaCha20-Poly1305 with a random nonce, under a key that the branch key opens.
//!
//! Version (1), nonce (24), tag (16), ciphertext; the version is authenticated. Not bound to a counter: whoever puts an older disk back has an older roster
//! until the datacenter is reached, as he has older everything.

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::keys::{Secret, system_random};

const VERSION: u8 = 1;
const HEAD: usize = 1 + 24 + 16;

pub(super) fn seal(key: &Secret, plain: &[u8]) -> Vec<u8> {
    let mut nonce = [0; 24];
    system_random(&mut nonce);
    let mut body = plain.to_vec();
    let tag: [u8; 16] = XChaCha20Poly1305::new(&(*key.bytes()).into())
        .encrypt_in_place_detached(&XNonce::from(nonce), &[VERSION], &mut body)
        .expect("a roster is far below the cipher's limit")
        .into();
    [&[VERSION][..], &nonce[..], &tag[..], &body[..]].concat()
}

/// `None` if the key is another or anything was changed.
pub(super) fn open(key: &Secret, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (head, body) = sealed.split_at_checked(HEAD)?;
    let (version, head) = head.split_first()?;
    let nonce: [u8; 24] = head[..24].try_into().ok()?;
    let tag: [u8; 16] = head[24..].try_into().ok()?;
    let mut body = Zeroizing::new(body.to_vec());
    XChaCha20Poly1305::new(&(*key.bytes()).into())
        .decrypt_in_place_detached(
            &XNonce::from(nonce),
            &[*version],
            &mut body,
            &Tag::from(tag),
        )
        .ok()?;
    (*version == VERSION).then_some(body)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_unaltered_and_under_its_key() {
        let (key, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let sealed = seal(&key, b"a roster");
        assert_eq!(&*open(&key, &sealed).unwrap(), b"a roster");
        assert!(open(&other, &sealed).is_none());
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(open(&key, &bent).is_none(), "byte {at}");
        }
        for len in 0..sealed.len() {
            assert!(open(&key, &sealed[..len]).is_none(), "{len} bytes");
        }
        assert_ne!(seal(&key, b"a roster"), sealed, "the nonce is random");
    }
}
