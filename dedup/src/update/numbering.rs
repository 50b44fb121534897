//! The numbering of an update's chunks, computed alike on both ends.
//!
//! The parent's distinct chunks are 0..p in order of first appearance on its disk; the version's distinct chunks that the parent does
//! not have are p..p+n in order of first appearance on the version's disk. Nothing else goes in: the same two manifests always give the
//! same numbers.

use std::collections::HashSet;

use crate::id::ChunkId;
use crate::manifest::{Manifest, ManifestError, NodeSource};
use crate::update::NUMBERS_MAX;

/// The chunks of an update, by number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewChunks {
    /// The parent's chunks: name and length in bytes. Numbers 0..p.
    pub parent: Vec<(ChunkId, u32)>,
    /// The chunks that the parent lacks: name and length in bytes. Numbers p..p+n.
    pub new: Vec<(ChunkId, u32)>,
}

/// Two versions show more distinct chunks than an update may number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the versions show more than {NUMBERS_MAX} chunks; such an update goes without deltas")]
pub struct TooManyChunks;

/// Why no numbering could be made of two manifests.
#[derive(Debug, thiserror::Error)]
pub enum NumberingError<E: std::error::Error + Send + Sync + 'static> {
    /// A manifest could not be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError<E>),
    /// Too many chunks.
    #[error(transparent)]
    TooMany(#[from] TooManyChunks),
}

impl NewChunks {
    /// Numbers the chunks that two disks show; both iterators give each disk's chunks in disk order, repeated ones as often as they
    /// come ([`crate::Leaf::chunks`]).
    pub fn between(
        parent: impl IntoIterator<Item = (ChunkId, u32)>,
        version: impl IntoIterator<Item = (ChunkId, u32)>,
    ) -> Result<Self, TooManyChunks> {
        let mut builder = Builder::default();
        for (id, len) in parent {
            builder.push_parent(id, len)?;
        }
        for (id, len) in version {
            builder.push_version(id, len)?;
        }
        Ok(builder.numbering)
    }

    /// [`Self::between`] for two manifests whose leaves are in `source`.
    pub fn of_manifests<S: NodeSource>(
        source: &S,
        parent: &Manifest,
        version: &Manifest,
    ) -> Result<Self, NumberingError<S::Error>> {
        let mut builder = Builder::default();
        for index in 0..parent.leaves.len() {
            for (id, len) in parent.leaf(source, index)?.chunks() {
                builder.push_parent(id, len)?;
            }
        }
        for (index, name) in version.leaves.iter().enumerate() {
            // A shared leaf shows nothing new.
            if parent.leaves.get(index) == Some(name) {
                continue;
            }
            for (id, len) in version.leaf(source, index)?.chunks() {
                builder.push_version(id, len)?;
            }
        }
        Ok(builder.numbering)
    }

    /// Name and length of chunk `number`.
    pub fn number(&self, number: u32) -> Option<(ChunkId, u32)> {
        let number = number as usize;
        match number.checked_sub(self.parent.len()) {
            None => self.parent.get(number).copied(),
            Some(index) => self.new.get(index).copied(),
        }
    }

    /// The number of new chunk `index`.
    pub fn number_of_new(&self, index: u32) -> u32 {
        self.parent.len() as u32 + index
    }

    /// Plain bytes of the new chunks.
    pub fn new_bytes(&self) -> u64 {
        self.new.iter().map(|(_, len)| u64::from(*len)).sum()
    }
}

#[derive(Default)]
struct Builder {
    numbering: NewChunks,
    seen: HashSet<ChunkId>,
}

impl Builder {
    fn push_parent(&mut self, id: ChunkId, len: u32) -> Result<(), TooManyChunks> {
        if self.is_first(id)? {
            self.numbering.parent.push((id, len));
        }
        Ok(())
    }

    fn push_version(&mut self, id: ChunkId, len: u32) -> Result<(), TooManyChunks> {
        if self.is_first(id)? {
            self.numbering.new.push((id, len));
        }
        Ok(())
    }

    fn is_first(&mut self, id: ChunkId) -> Result<bool, TooManyChunks> {
        let first = self.seen.insert(id);
        if self.seen.len() > NUMBERS_MAX as usize {
            return Err(TooManyChunks);
        }
        Ok(first)
    }
}
