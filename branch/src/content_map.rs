//! Where a tree's bytes are: its extents as one flat, sorted table, shared by all desktops of a version.
//!
//! Built once from the leaves, then only read. A lookup is one step to the leaf and a binary search among its few hundred extents;
//! nothing here waits or does I/O. A chunk also knows the place (leaf, extent) by which it is asked for on the wire. It costs 16
//! bytes an extent and 44 a chunk, once for a version, however many desktops read it.

use dedup::{
    ChunkId, ExtentSource, LEAF_BYTES, Leaf, Manifest, NodeSource, manifest::ManifestError,
};

/// Extents of a tree in disk order.
#[derive(Debug, Default)]
pub struct ContentMap {
    size_bytes: u64,
    /// First byte of each extent, ascending; the extent ends where the next begins.
    starts: Vec<u64>,
    /// The extent that shows each leaf's first byte.
    firsts: Vec<u32>,
    /// What each extent shows.
    sources: Vec<Source>,
    /// Each place where a chunk is shown for the first time in a run.
    chunks: Vec<ChunkPlace>,
}

#[derive(Debug, Clone, Copy)]
struct Source {
    /// Index into `chunks`, or [`ZERO`].
    chunk: u32,
    /// Where in the chunk the extent begins, in bytes.
    offset: u32,
}

const ZERO: u32 = u32::MAX;

/// A chunk and the place by which it can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// The chunk.
    pub id: ChunkId,
    /// Its length in bytes.
    pub len: u32,
    /// Leaf that shows it.
    pub leaf: u32,
    /// Extent in that leaf.
    pub extent: u16,
}

/// A part of a looked-up range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// This many zero bytes.
    Zero {
        /// Bytes.
        len: u64,
    },
    /// Bytes of a chunk.
    Chunk {
        /// Index for [`ContentMap::chunk`].
        index: usize,
        /// Where in the chunk, in bytes.
        offset: u32,
        /// Bytes.
        len: u64,
    },
}

impl ContentMap {
    /// Reads all leaves of `manifest`.
    pub fn load<S: NodeSource>(
        manifest: &Manifest,
        source: &S,
    ) -> Result<Self, ManifestError<S::Error>> {
        let mut map = Self {
            size_bytes: manifest.size_bytes,
            ..Self::default()
        };
        for index in 0..manifest.leaves.len() {
            map.push_leaf(index as u32, &manifest.leaf(source, index)?);
        }
        map.starts.shrink_to_fit();
        map.firsts.shrink_to_fit();
        map.sources.shrink_to_fit();
        map.chunks.shrink_to_fit();
        Ok(map)
    }

    fn push_leaf(&mut self, leaf_index: u32, leaf: &Leaf) {
        let mut at = u64::from(leaf_index) * LEAF_BYTES;
        for (extent_index, extent) in leaf.extents.iter().enumerate() {
            let source = match extent.source {
                ExtentSource::Zero => Source {
                    chunk: ZERO,
                    offset: 0,
                },
                ExtentSource::Chunk {
                    id,
                    chunk_len,
                    offset,
                } => {
                    if self.chunks.last().is_none_or(|last| last.id != id) {
                        self.chunks.push(ChunkPlace {
                            id,
                            len: chunk_len,
                            leaf: leaf_index,
                            extent: extent_index as u16,
                        });
                    }
                    Source {
                        chunk: self.chunks.len() as u32 - 1,
                        offset,
                    }
                }
            };
            // Zero runs join across leaves; chunk slices do not need to.
            if source.chunk != ZERO || self.sources.last().is_none_or(|last| last.chunk != ZERO) {
                self.starts.push(at);
                self.sources.push(source);
            }
            if extent_index == 0 {
                self.firsts.push(self.starts.len() as u32 - 1);
            }
            at += u64::from(extent.len);
        }
    }

    /// Size of the tree in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Chunks in disk order; a chunk that the disk shows at several places is there several times.
    pub fn chunks(&self) -> &[ChunkPlace] {
        &self.chunks
    }

    /// Chunk number `index` in disk order.
    pub fn chunk(&self, index: usize) -> &ChunkPlace {
        &self.chunks[index]
    }

    /// The extent that shows byte `offset`; past the end there is none.
    fn extent_at(&self, offset: u64) -> usize {
        let leaf = (offset / LEAF_BYTES) as usize;
        let Some(&first) = self.firsts.get(leaf) else {
            return self.starts.len();
        };
        let first = first as usize;
        let last = self
            .firsts
            .get(leaf + 1)
            .map_or(self.starts.len(), |next| *next as usize + 1);
        first + self.starts[first..last].partition_point(|start| *start <= offset) - 1
    }

    /// The pieces of `offset..offset + len`, in order. The range must lie inside the tree.
    pub fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + '_ {
        let end = (offset + len).min(self.size_bytes);
        let mut index = self.extent_at(offset);
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let start = *self.starts.get(index)?;
            let source = self.sources[index];
            let extent_end = self
                .starts
                .get(index + 1)
                .copied()
                .unwrap_or(self.size_bytes);
            let len = extent_end.min(end) - at;
            let piece = if source.chunk == ZERO {
                Piece::Zero { len }
            } else {
                Piece::Chunk {
                    index: source.chunk as usize,
                    offset: source.offset + (at - start) as u32,
                    len,
                }
            };
            at += len;
            index += 1;
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use dedup::{ChunkerParams, IdKey, ManifestBuilder, NodeId};

    use super::*;

    struct Leaves(std::collections::HashMap<NodeId, Vec<u8>>);

    #[derive(Debug, thiserror::Error)]
    #[error("missing")]
    struct Missing;

    impl NodeSource for Leaves {
        type Error = Missing;
        fn node(&self, id: NodeId) -> Result<bytes::Bytes, Missing> {
            self.0.get(&id).map(|b| b.clone().into()).ok_or(Missing)
        }
    }

    /// Every byte of a disk with zero runs and chunks across leaf boundaries is found where it was put.
    #[test]
    fn pieces_cover_every_range() {
        let key = IdKey::new([1; 32]);
        let mut builder = ManifestBuilder::new(key.clone(), ChunkerParams::default());
        let mut expected: Vec<Option<(ChunkId, u32)>> = Vec::new();
        let mut number = 0u32;
        while expected.len() < 9 << 20 {
            number += 1;
            let len = 1000 + (number * 7919) % 60_000;
            if number.is_multiple_of(5) {
                builder.push_zero(u64::from(len) * 20);
                expected.resize(expected.len() + len as usize * 20, None);
            } else {
                let id = key.chunk_id(&number.to_le_bytes());
                builder.push_chunk(id, len);
                expected.extend((0..len).map(|at| Some((id, at))));
            }
        }
        let (manifest, leaves) = builder.finish();
        let map = ContentMap::load(&manifest, &Leaves(leaves.into_iter().collect()))
            .expect("all leaves are there");
        assert_eq!(map.size_bytes(), expected.len() as u64);
        for start in (0..expected.len()).step_by(99_991) {
            let len = (start * 31 % 300_000).min(expected.len() - start);
            let mut at = start;
            for piece in map.pieces(start as u64, len as u64) {
                match piece {
                    Piece::Zero { len } => {
                        assert!(expected[at..at + len as usize].iter().all(Option::is_none));
                        at += len as usize;
                    }
                    Piece::Chunk { index, offset, len } => {
                        let id = map.chunk(index).id;
                        assert_eq!(expected[at], Some((id, offset)));
                        assert_eq!(
                            expected[at + len as usize - 1],
                            Some((id, offset + len as u32 - 1))
                        );
                        at += len as usize;
                    }
                }
            }
            assert_eq!(at, start + len);
        }
    }
}
