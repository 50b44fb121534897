//! The cipher of the cache.
//!
//! AES-256-GCM for each block of 4 KiB (fewer bytes at a chunk's end), by `ring`. A chunk's key is BLAKE3, keyed with the cache's key, of
//! the chunk's name, and the nonce is the block's number. A name is the keyed hash of the content, so under one key a nonce never meets two
//! contents: it may be used as often as the chunk is written, and a disk that comes back from a backup changes nothing.
//!
//! The tag stands where the checksum stood and does its work: a block of another chunk, another place or with a damaged byte does not
//! verify. It is of the ciphertext, and is checked before anything is decrypted; that the plaintext is the chunk's follows from the key. In
//! memory it takes 16 bytes a slot.
//! It knows no layout and does no I/O.

use std::sync::atomic::{AtomicU64, Ordering};

use dedup::ChunkId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use zeroize::Zeroizing;

/// Length of a block's tag.
pub const TAG_BYTES: usize = 16;

/// A block's tag.
pub type BlockTag = [u8; TAG_BYTES];

/// The secret of a cache. Without it the cache is noise.
#[derive(Clone)]
pub struct CacheKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CacheKey({:016x})", u64::from_be_bytes(self.id()))
    }
}

impl CacheKey {
    /// Takes 32 random bytes.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(Zeroizing::new(secret))
    }

    /// Its public name.
    pub fn id(&self) -> [u8; 8] {
        let name = blake3::derive_key("splice cache key id v1", &*self.0);
        let mut id = [0; 8];
        id.copy_from_slice(&name[..8]);
        // All zeros mean a cache without encryption.
        id[0] |= 1;
        id
    }

    /// The cipher of one chunk.
    pub fn of(&self, id: &ChunkId) -> ChunkCipher {
        let secret = Zeroizing::new(*blake3::keyed_hash(&self.0, id.as_bytes()).as_bytes());
        let key = UnboundKey::new(&AES_256_GCM, &*secret).expect("AES-256 takes 32 bytes");
        ChunkCipher(LessSafeKey::new(key))
    }
}

/// The cipher of one chunk's blocks.
pub struct ChunkCipher(LessSafeKey);

impl ChunkCipher {
    /// Encrypts block `number` in place.
    pub fn seal(&self, number: u32, block: &mut [u8]) -> BlockTag {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(number), Aad::empty(), block)
            .expect("a block is far shorter than 64 GiB");
        tag.as_ref().try_into().expect("GCM's tags have 16 bytes")
    }

    /// Decrypts block `number` in place; false, with `block` undefined, if the tag does not match.
    #[must_use]
    pub fn open(&self, number: u32, block: &mut [u8], tag: BlockTag) -> bool {
        self.0
            .open_in_place_separate_tag(nonce(number), Aad::empty(), Tag::from(tag), block, 0..)
            .is_ok()
    }
}

fn nonce(number: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The tag of a slot, in memory. It may change while it is read, if its slot is given to another chunk: what is read then matches neither,
/// and the reader looks the chunk up again.
#[derive(Debug, Default)]
pub struct TagCell([AtomicU64; 2]);

impl TagCell {
    /// A cell with this tag.
    pub fn new(tag: BlockTag) -> Self {
        let cell = Self::default();
        cell.store(tag);
        cell
    }

    /// The tag.
    pub fn load(&self) -> BlockTag {
        let mut tag = [0; TAG_BYTES];
        for (bytes, word) in tag.chunks_exact_mut(8).zip(&self.0) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        tag
    }

    /// Replaces it.
    pub fn store(&self, tag: BlockTag) {
        for (bytes, word) in tag.chunks_exact(8).zip(&self.0) {
            let bytes = bytes.try_into().expect("eight bytes");
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    fn id(first: u8) -> ChunkId {
        let mut bytes = [7; 32];
        bytes[0] = first;
        ChunkId::from_slice(&bytes).unwrap()
    }

    #[test]
    fn a_block_opens_only_as_what_it_is() {
        let key = CacheKey::new([1; 32]);
        let mut block = vec![5; 4096];
        let tag = key.of(&id(1)).seal(3, &mut block);
        assert_ne!(block, [5; 4096]);
        let opens = |key: &CacheKey, id: &ChunkId, number, tag, bend: usize| {
            let mut copy = block.clone();
            if let Some(byte) = copy.get_mut(bend) {
                *byte ^= 1;
            }
            key.of(id).open(number, &mut copy, tag) && copy == [5; 4096]
        };
        assert!(opens(&key, &id(1), 3, tag, usize::MAX));
        assert!(!opens(&key, &id(2), 3, tag, usize::MAX));
        assert!(!opens(&key, &id(1), 4, tag, usize::MAX));
        assert!(!opens(&key, &id(1), 3, tag, 4095));
        assert!(!opens(&key, &id(1), 3, [0; 16], usize::MAX));
        assert!(!opens(&CacheKey::new([2; 32]), &id(1), 3, tag, usize::MAX));
        // A short block at a chunk's end is none of the whole one's.
        let mut short = block[..100].to_vec();
        assert!(!key.of(&id(1)).open(3, &mut short, tag));
        assert!(!format!("{:?}", CacheKey::new([0xAB; 32])).contains("abab"));
        assert_eq!(TagCell::new(tag).load(), tag);
    }

    /// Computed by another implementation (BLAKE3 in Python, AES-GCM of its `cryptography` package), from what
    /// `docs/disk-formats/cache.md` says. With other values caches would be fetched again after an upgrade.
    #[test]
    fn golden_values() {
        let key = CacheKey::new([1; 32]);
        let mut block = *b"sixteen bytes!!!";
        let tag = key.of(&id(7)).seal(2, &mut block);
        assert_eq!(hex::encode(block), "71f492120c4eb1bcb22143846e2d9bfd");
        assert_eq!(hex::encode(tag), "fbead79ccef5dd397c5d0345d464fe46");
        assert_eq!(hex::encode(key.id()), "5da60188f13c023d");
    }
}
