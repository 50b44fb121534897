//! How a template's file is encrypted: AES-256-GCM in frames, by `ring`, each bound to its place in its file.
//!
//! Invariant: a key seals one file only, because it is made of the file's own random id, and a place in a file is sealed once: no nonce meets two
//! contents. A frame of another file, or at another place, does not open.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

/// Bytes of the body in one frame, but for the last: few calls, and little to hold while a machine waits.
pub const FRAME_BYTES: usize = 1 << 20;
/// What a frame takes in its file beyond its bytes.
pub const TAG_BYTES: usize = 16;

/// What templates' keys are made of. Without it they are noise; they are made anew then.
pub struct TemplateSecret(Zeroizing<[u8; 32]>);

impl TemplateSecret {
    /// Of the cache's key: a template is, as the cache is, a copy of what can be had again.
    pub fn new(cache_key: &[u8; 32]) -> Self {
        let secret = blake3::derive_key("splice branch templates v1", cache_key);
        Self(Zeroizing::new(secret))
    }

    /// The cipher of the file with this id.
    pub fn cipher(&self, id: &[u8; 16]) -> Cipher {
        let key = Zeroizing::new(*blake3::keyed_hash(&self.0, id).as_bytes());
        let key = UnboundKey::new(&AES_256_GCM, &*key).expect("AES-256 takes 32 bytes");
        Cipher(LessSafeKey::new(key))
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A part of the body, by number.
    Body(u64),
    /// What says how the body is to be read.
    Head,
}

impl Place {
    fn nonce(self) -> Nonce {
        let (number, kind) = match self {
            Self::Body(number) => (number, 0),
            Self::Head => (0, 1),
        };
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8] = kind;
        Nonce::assume_unique_for_key(bytes)
    }
}

/// The cipher of one file.
pub struct Cipher(LessSafeKey);

impl Cipher {
    /// Encrypts a frame in place and puts its tag behind it. `beside` is bound to it.
    pub fn seal(&self, place: Place, beside: &[u8], frame: &mut Vec<u8>) {
        let sealed = self
            .0
            .seal_in_place_append_tag(place.nonce(), Aad::from(beside), frame);
        sealed.expect("a frame is far shorter than 64 GiB");
    }

    /// Decrypts a frame in place and takes its tag away; false, with `frame` undefined, if it is not what was sealed there.
    #[must_use]
    pub fn open(&self, place: Place, beside: &[u8], frame: &mut Vec<u8>) -> bool {
        let opened = self
            .0
            .open_in_place(place.nonce(), Aad::from(beside), frame);
        let len = opened.map(|bytes| bytes.len());
        len.map(|len| frame.truncate(len)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn a_frame_opens_at_its_place_in_its_file_only() {
        let secret = TemplateSecret::new(&[1; 32]);
        let cipher = secret.cipher(&[2; 16]);
        let mut frame = b"some bytes".to_vec();
        cipher.seal(Place::Body(7), b"head", &mut frame);
        assert_eq!(frame.len(), 10 + TAG_BYTES);
        let opens = |cipher: &Cipher, place, beside: &[u8], bent: usize| {
            let mut frame = frame.clone();
            if let Some(byte) = frame.get_mut(bent) {
                *byte ^= 1;
            }
            cipher.open(place, beside, &mut frame) && frame == b"some bytes"
        };
        let whole = usize::MAX;
        assert!(opens(&cipher, Place::Body(7), b"head", whole));
        assert!(!opens(&cipher, Place::Body(8), b"head", whole));
        assert!(!opens(&cipher, Place::Head, b"head", whole));
        assert!(!opens(&cipher, Place::Body(7), b"heat", whole));
        for bent in 0..frame.len() {
            assert!(!opens(&cipher, Place::Body(7), b"head", bent), "{bent}");
        }
        let other_file = secret.cipher(&[3; 16]);
        assert!(!opens(&other_file, Place::Body(7), b"head", whole));
        let other_branch = TemplateSecret::new(&[4; 32]).cipher(&[2; 16]);
        assert!(!opens(&other_branch, Place::Body(7), b"head", whole));
        let mut short = vec![0; TAG_BYTES - 1];
        assert!(!cipher.open(Place::Head, b"", &mut short));
    }
}
