//! The cipher of one desktop's log, and the checks that are no secret.
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) under a key that is derived for each log from the desktop's key. Every piece and every
//! header has 24 random bytes of nonce of its own, stored beside it. Nothing is counted, so a disk that comes back from a backup, a torn
//! tail that is written again and an append that a full disk refused never use a nonce a second time with other data.
//!
//! What a tag covers begins with the kind of thing it belongs to and the log's id, so that no part of a log passes for another.
//! Besides tags, headers have a plain checksum: replay looks for headers by it, and only where it matches is a tag worth checking.
//! It knows no layout and does no I/O.

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
use zeroize::Zeroizing;

/// Length of a nonce.
pub const NONCE_BYTES: usize = 24;
/// Length of a tag.
pub const TAG_BYTES: usize = 16;

/// A nonce.
pub type Nonce = [u8; NONCE_BYTES];
/// A tag.
pub type AuthTag = [u8; TAG_BYTES];

/// Fills a buffer from a source that never repeats itself, also not after a restart or on a restored disk: the system's.
pub type FillRandom = fn(&mut [u8]);

/// Most bytes in the clear that one tag covers besides kind and log id.
const CLEAR_BYTES_MAX: usize = 64;

/// The secret of one desktop's overlay. Without it the overlay is noise.
#[derive(Clone)]
pub struct OverlayKey {
    secret: Zeroizing<[u8; 32]>,
    random: FillRandom,
    takes_plain: bool,
}

impl std::fmt::Debug for OverlayKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OverlayKey({:016x})", u64::from_be_bytes(self.key_id()))
    }
}

impl OverlayKey {
    /// Takes a secret of 32 random bytes; `random` gives nonces.
    pub fn new(secret: [u8; 32], random: FillRandom) -> Self {
        Self {
            secret: Zeroizing::new(secret),
            random,
            takes_plain: false,
        }
    }

    /// The same, for an overlay that an earlier release left in the clear: the next opening makes it an encrypted one.
    #[must_use]
    pub fn taking_plain(self) -> Self {
        Self {
            takes_plain: true,
            ..self
        }
    }

    /// Whether the overlay may be in the clear.
    pub(super) fn takes_plain(&self) -> bool {
        self.takes_plain
    }

    /// Its public name: tells a wrong key from damage.
    pub fn key_id(&self) -> [u8; 8] {
        let name = blake3::derive_key("splice overlay key id v1", &*self.secret);
        let mut id = [0; 8];
        id.copy_from_slice(&name[..8]);
        // All zeros mean a log without encryption.
        id[0] |= 1;
        id
    }
}

/// How a segment's records are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Format version 1: in the clear, with checksums. Only read; what is live in such a segment is moved to a sealed one.
    Plain,
    /// Format version 2: encrypted and authenticated.
    Sealed,
}

impl Form {
    /// Bytes in front of each piece: checksum, or nonce and tag.
    pub const fn front_bytes(self) -> u64 {
        match self {
            Self::Plain => 16,
            Self::Sealed => 48,
        }
    }
}

/// What a tag belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// The header file.
    Meta = 1,
    /// A segment's header.
    Segment = 2,
    /// A record's header.
    Record = 3,
    /// A piece of a record.
    Piece = 4,
    /// A part of the index snapshot.
    Index = 5,
}

/// The keys of one log.
pub struct LogKey {
    /// Seeds every plain checksum of the log.
    seed: u64,
    log_id: [u8; 16],
    cipher: XChaCha20Poly1305,
    random: FillRandom,
}

impl LogKey {
    /// Derives the keys of the log `log_id`.
    pub fn new(log_id: &[u8; 16], key: &OverlayKey) -> Self {
        let mut material = Zeroizing::new([0u8; 48]);
        material[..32].copy_from_slice(&*key.secret);
        material[32..].copy_from_slice(log_id);
        let secret = Zeroizing::new(blake3::derive_key("splice overlay log v2", &*material));
        Self {
            seed: xxh3_64(log_id),
            log_id: *log_id,
            cipher: XChaCha20Poly1305::new(&(*secret).into()),
            random: key.random,
        }
    }

    /// The log's id.
    pub fn log_id(&self) -> &[u8; 16] {
        &self.log_id
    }

    /// Fills `nonces` with new ones: one call to the system for all that a record needs.
    pub fn fill_nonces(&self, nonces: &mut [Nonce]) {
        (self.random)(nonces.as_flattened_mut());
    }

    /// A new nonce.
    pub fn nonce(&self) -> Nonce {
        let mut nonce = [0; NONCE_BYTES];
        (self.random)(&mut nonce);
        nonce
    }

    /// The checksum of a header. No secret: it is made from the log's id.
    pub fn header_check(&self, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.seed)
    }

    /// Format version 1: the checksum of one piece, bound to the record (`seq`) and to the place on the disk, so that a stale or
    /// misplaced piece does not verify.
    pub fn plain_piece_check(&self, disk: u16, seq: u64, offset: u64, piece: &[u8]) -> u64 {
        let place = mix(seq ^ mix(offset ^ (u64::from(disk) << 48)));
        xxh3_64_with_seed(piece, self.seed ^ place)
    }

    /// Encrypts `body` in place; the tag covers `clear` as well.
    pub fn seal(&self, domain: Domain, nonce: &Nonce, clear: &[u8], body: &mut [u8]) -> AuthTag {
        let nonce = XNonce::from(*nonce);
        let (covered, len) = self.covered(domain, clear);
        self.cipher
            .encrypt_in_place_detached(&nonce, &covered[..len], body)
            .expect("a record is far shorter than 256 GiB")
            .into()
    }

    /// Decrypts `body` in place; false, with `body` undefined, if the tag does not match.
    #[must_use]
    pub fn open(
        &self,
        domain: Domain,
        nonce: &Nonce,
        clear: &[u8],
        body: &mut [u8],
        tag: &AuthTag,
    ) -> bool {
        let nonce = XNonce::from(*nonce);
        let (covered, len) = self.covered(domain, clear);
        self.cipher
            .decrypt_in_place_detached(&nonce, &covered[..len], body, &Tag::from(*tag))
            .is_ok()
    }

    fn covered(&self, domain: Domain, clear: &[u8]) -> ([u8; 1 + 16 + CLEAR_BYTES_MAX], usize) {
        let mut out = [0; 1 + 16 + CLEAR_BYTES_MAX];
        out[0] = domain as u8;
        out[1..17].copy_from_slice(&self.log_id);
        out[17..17 + clear.len()].copy_from_slice(clear);
        (out, 17 + clear.len())
    }
}

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014): spreads every input bit.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn key(secret: u8) -> LogKey {
        LogKey::new(&[3; 16], &OverlayKey::new([secret; 32], |buf| buf.fill(0)))
    }

    #[test]
    fn what_was_sealed_opens_only_as_what_it_is() {
        let key = key(1);
        let nonce = [7; NONCE_BYTES];
        let mut body = *b"a guest's block";
        let tag = key.seal(Domain::Piece, &nonce, b"clear", &mut body);
        assert_ne!(&body, b"a guest's block");
        let opens = |key: &LogKey, domain, nonce: &Nonce, clear: &[u8], tag: &AuthTag| {
            let mut copy = body;
            key.open(domain, nonce, clear, &mut copy, tag) && &copy == b"a guest's block"
        };
        assert!(opens(&key, Domain::Piece, &nonce, b"clear", &tag));
        assert!(!opens(&key, Domain::Index, &nonce, b"clear", &tag));
        assert!(!opens(
            &key,
            Domain::Piece,
            &[8; NONCE_BYTES],
            b"clear",
            &tag
        ));
        assert!(!opens(&key, Domain::Piece, &nonce, b"other", &tag));
        assert!(!opens(
            &key,
            Domain::Piece,
            &nonce,
            b"clear",
            &[0; TAG_BYTES]
        ));
        assert!(!opens(
            &super::tests::key(2),
            Domain::Piece,
            &nonce,
            b"clear",
            &tag
        ));
        let other_log = LogKey::new(&[4; 16], &OverlayKey::new([1; 32], |buf| buf.fill(0)));
        assert!(!opens(&other_log, Domain::Piece, &nonce, b"clear", &tag));
    }

    #[test]
    fn a_key_does_not_print_itself() {
        let key = OverlayKey::new([0xAB; 32], |buf| buf.fill(0));
        assert!(!format!("{key:?}").to_lowercase().contains("abab"));
        assert_ne!(key.key_id(), [0; 8]);
    }

    /// The vector of draft-irtf-cfrg-xchacha-03, appendix A.3.1: the library is the algorithm that the format says.
    #[test]
    fn the_cipher_is_xchacha20_poly1305() {
        let mut secret = [0; 32];
        (0..32).for_each(|i| secret[i] = 0x80 + i as u8);
        let mut nonce = [0; 24];
        (0..24).for_each(|i| nonce[i] = 0x40 + i as u8);
        let aad = [
            0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7,
        ];
        let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
        let cipher = XChaCha20Poly1305::new(&secret.into());
        let tag: AuthTag = cipher
            .encrypt_in_place_detached(&XNonce::from(nonce), &aad, &mut text)
            .unwrap()
            .into();
        assert_eq!(text[..4], [0xbd, 0x6d, 0x17, 0x9d]);
        assert_eq!(
            tag,
            [
                0xc0, 0x87, 0x59, 0x24, 0xc1, 0xc7, 0x98, 0x79, 0x47, 0xde, 0xaf, 0xd8, 0x78, 0x0a,
                0xcf, 0x49
            ]
        );
    }
}
