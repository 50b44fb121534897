//! Packs that stand still while somebody copies them: what a backup takes.
//!
//! Closed packs never change, so a list of them is all that a consistent copy of the store needs. [`FrozenPacks`] keeps every pack where it
//! is for as long as it lives; puts, commits and reads go on. Invariant: what was committed before [`FrozenPacks::list`] lies in the packs
//! that it answers, and none of them goes away or moves before the value is dropped.
//!
//! It writes nothing but the seal of the open pack, and knows nothing about where copies go.

use std::sync::MutexGuard;

use bytes::Bytes;
use dedup::{IdKey, RealmId};

use crate::chunk_store::{ChunkStore, Inner};
use crate::error::StoreError;
use crate::pack::{HEADER_LEN, PACK_BYTES_MAX, PackNumber, Tally};
use crate::recovery::{check_header, pack_states, read_range, scan};

/// Longest closed pack, in bytes: one record may reach past the limit at which a pack is sealed.
pub const CLOSED_PACK_BYTES_MAX: u64 = PACK_BYTES_MAX + 2 * 1024 * 1024;

/// A closed pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedPack {
    /// Which.
    pub pack: PackNumber,
    /// Its length in bytes.
    pub len: u64,
    /// A digest over the headers of its records in their order: two packs of one number that differ in it are two packs.
    pub digest: u64,
}

/// What a whole pack's bytes prove to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackProof {
    /// Sound records, each proven by its name.
    pub records: u64,
    /// Pieces that are not what was written.
    pub damaged: u64,
    /// As in [`ClosedPack`], over the sound records.
    pub digest: u64,
}

/// Keeps packs where they are; see the module.
pub struct FrozenPacks<'a> {
    inner: &'a Inner,
    _turn: MutexGuard<'a, ()>,
}

impl ChunkStore {
    /// Keeps packs where they are until the answer is dropped; waits for the end of a collection, of a verification, or of one pack's scrub,
    /// which wait for it in turn.
    pub fn freeze_packs(&self) -> FrozenPacks<'_> {
        FrozenPacks {
            inner: &self.inner,
            _turn: self.inner.maintenance(),
        }
    }

    /// Proves the bytes of a whole pack file: its header, and every record by its name.
    ///
    /// # Errors
    /// When it is a pack of another realm, key, number or format.
    pub fn prove_pack(
        bytes: &Bytes,
        pack: PackNumber,
        key: &IdKey,
        realm: RealmId,
    ) -> Result<PackProof, StoreError> {
        if bytes.len() < HEADER_LEN {
            return Err(StoreError::BadPack {
                pack,
                why: format!("it ends after {} bytes, inside its header", bytes.len()),
            });
        }
        let bad_header = check_header(bytes, pack, key, realm)?.is_err();
        let base = HEADER_LEN as u64;
        let body = bytes.slice(HEADER_LEN..);
        let found = scan(body, base, pack, key, Tally::default(), false);
        Ok(PackProof {
            records: found.records.len() as u64,
            damaged: found.damaged.len() as u64 + u64::from(bad_header),
            digest: found.tally.digest,
        })
    }
}

impl FrozenPacks<'_> {
    /// Seals the pack that grows, makes everything put so far durable, and lists all packs that will not change any more, in order.
    pub fn list(&self) -> Result<Vec<ClosedPack>, StoreError> {
        self.inner.seal_open()?;
        let states = pack_states(&*self.inner.kv)?;
        // What a collection that died had emptied holds nothing that anybody wants, and goes at the next opening.
        let closed = states
            .into_iter()
            .filter(|(_, state)| state.closed && !state.doomed);
        Ok(closed
            .map(|(pack, state)| ClosedPack {
                pack,
                len: state.indexed_len,
                digest: state.tally.digest,
            })
            .collect())
    }

    /// Reads a pack whole and proves it.
    ///
    /// # Errors
    /// When the file is missing, shorter than it was, or cannot be read. Damage inside it is told by the proof.
    pub fn read(&self, closed: &ClosedPack) -> Result<(Bytes, PackProof), StoreError> {
        let file = self.inner.file(closed.pack)?;
        let bytes = read_range(&*file, closed.pack, 0, closed.len)?;
        let (key, realm) = (&self.inner.key, self.inner.realm);
        let proof = ChunkStore::prove_pack(&bytes, closed.pack, key, realm)?;
        Ok((bytes, proof))
    }
}
