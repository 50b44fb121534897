//! Manifests from parts: the state of a line with a segment's ranges over it, leaf by leaf.
//!
//! Leaves that no range touches are shared with the state before; of each that is touched the new one is put into the store under the
//! caller's hold. Invariant: what comes out depends on the state and the ranges alone, so a build that a crash ended is simply done again.
//!
//! Bounded memory: the names of the disk's leaves (32 bytes for 4 MiB of disk), one leaf, and the ranges of it. A guest that writes sectors here
//! and there leaves ever more slices; a leaf of too many is read and cut into chunks anew, or it could not be written down.

use std::collections::HashSet;

use bytes::Bytes;
use dedup::extent::ExtentSource;
use dedup::manifest::{LEAF_EXTENTS_MAX, ManifestError};
use dedup::{Chunk, ChunkId, Chunker, Extent, LEAF_BYTES, Leaf, Manifest, ManifestBuilder, Piece};
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::writeback::{Range, RangeSource};
use dedup_store::{Hold, StoreError, Writer};

use crate::datacenter::Datacenter;
use crate::images::StoreNodes;

/// A leaf of more extents than this is cut anew. Half of what can be written down, far above what blocks of 4 KiB make (1024).
const EXTENTS_MAX: usize = LEAF_EXTENTS_MAX / 2;

/// Why a state could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The state before.
    #[error("the state before the segment")]
    Manifest(#[from] ManifestError<StoreError>),
    /// A chunk, or the store as a whole.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a run of a leaf's bytes shows from now on.
#[derive(Debug, Clone, Copy)]
struct Edit {
    /// From the leaf's start, in bytes.
    at: u64,
    extent: Extent,
}

impl Edit {
    fn end(&self) -> u64 {
        self.at + u64::from(self.extent.len)
    }
}

/// A disk's tree that is being changed.
pub(super) struct TreeEditor<'a> {
    dc: &'a Datacenter,
    hold: &'a Hold,
    writer: Writer,
    manifest: Manifest,
    /// The leaf that is being changed.
    leaf: usize,
    /// What changes in it, ascending, without overlap.
    edits: Vec<Edit>,
}

impl<'a> TreeEditor<'a> {
    pub(super) fn new(
        dc: &'a Datacenter,
        hold: &'a Hold,
        tree: &TreeRef,
    ) -> Result<Self, BuildError> {
        Ok(Self {
            dc,
            hold,
            writer: hold.writer(),
            manifest: Manifest::load(&StoreNodes(dc), tree.root)?,
            leaf: 0,
            edits: Vec::new(),
        })
    }

    /// Shows a range from now on. It lies inside the disk. Ascending ones are cheapest, and a later one goes over an earlier one.
    pub(super) fn show(&mut self, range: &Range) -> Result<(), BuildError> {
        let mut done = 0;
        while done < range.len {
            let offset = range.offset + done;
            let index = (offset / LEAF_BYTES) as usize;
            let at = offset % LEAF_BYTES;
            let len = (range.len - done).min(LEAF_BYTES - at) as u32;
            let is_behind = self.edits.last().is_none_or(|last| last.end() <= at);
            if index != self.leaf || !is_behind {
                self.close_leaf()?;
                self.leaf = index;
            }
            let extent = match range.source {
                RangeSource::Zero => Extent::zero(len),
                RangeSource::Chunk(id) => Extent {
                    len,
                    source: ExtentSource::Chunk {
                        id,
                        // A chunk is as long as its range, which is no longer than a chunk may be.
                        chunk_len: range.len as u32,
                        offset: done as u32,
                    },
                },
            };
            self.edits.push(Edit { at, extent });
            done += u64::from(len);
        }
        Ok(())
    }

    /// Puts the last leaf and what is above the leaves; answers the new tree. It is durable after the store's next commit.
    pub(super) fn finish(mut self) -> Result<TreeRef, BuildError> {
        self.close_leaf()?;
        let sealed = self.manifest.seal(self.dc.id_key());
        for (id, bytes) in &sealed.nodes {
            self.writer.put_node(*id, bytes)?;
        }
        Ok(TreeRef {
            root: sealed.root,
            size_bytes: self.manifest.size_bytes,
        })
    }

    fn close_leaf(&mut self) -> Result<(), BuildError> {
        let edits = std::mem::take(&mut self.edits);
        if edits.is_empty() {
            return Ok(());
        }
        let before = self.manifest.leaf(&StoreNodes(self.dc), self.leaf)?;
        let mut leaf = Leaf {
            extents: merge(&before.extents, &edits),
        };
        if leaf.extents.len() > EXTENTS_MAX {
            leaf = self.cut_anew(&leaf)?;
        }
        let bytes = leaf.encode();
        let id = self.dc.id_key().node_id(&bytes);
        self.writer.put_node(id, &bytes)?;
        self.manifest.leaves[self.leaf] = id;
        Ok(())
    }

    /// The same bytes in as few chunks as the disk's parameters make of them.
    fn cut_anew(&self, leaf: &Leaf) -> Result<Leaf, BuildError> {
        // The parts that brought some of them may go meanwhile, with what refers to these.
        let ids: Vec<ChunkId> = leaf.chunks().map(|(id, _)| id).collect();
        self.hold.chunk_lengths(&ids)?;
        let mut plain = Vec::with_capacity(LEAF_BYTES as usize);
        let mut last: Option<Chunk> = None;
        for extent in &leaf.extents {
            let len = extent.len as usize;
            let ExtentSource::Chunk { id, offset, .. } = extent.source else {
                plain.resize(plain.len() + len, 0);
                continue;
            };
            let chunk = match last.take() {
                Some(chunk) if chunk.id() == id => chunk,
                _ => self.dc.store().chunk(id)?,
            };
            let from = offset as usize;
            plain.extend_from_slice(&chunk.bytes()[from..from + len]);
            last = Some(chunk);
        }
        let mut extents = Vec::new();
        let mut chunks = Vec::new();
        let mut emit = |piece: Piece<'_>| match piece {
            Piece::Zero(len) => extents.push(Extent::zero(len as u32)),
            Piece::Data(data) => {
                let chunk = Chunk::new(self.dc.id_key(), Bytes::copy_from_slice(data));
                extents.push(Extent::whole(chunk.id(), data.len() as u32));
                chunks.push(chunk);
            }
        };
        let mut chunker = Chunker::new(self.manifest.params);
        chunker.push_data(&plain, &mut emit);
        chunker.finish(&mut emit);
        self.writer.put_chunks(&chunks)?;
        Ok(Leaf { extents })
    }
}

/// `before` with `edits` over it.
fn merge(before: &[Extent], edits: &[Edit]) -> Vec<Extent> {
    let mut merged = Merged(Vec::with_capacity(before.len() + 2 * edits.len()));
    let mut edits = edits.iter().peekable();
    let mut at = 0;
    for extent in before {
        let end = at + u64::from(extent.len);
        // Of this extent shows what no edit covers.
        let mut from = at;
        while let Some(edit) = edits.peek().filter(|edit| edit.at < end) {
            if edit.at > from {
                merged.push(slice(extent, from - at, edit.at - from));
            }
            if edit.at >= at {
                merged.push(edit.extent);
            }
            from = from.max(edit.end());
            if edit.end() > end {
                // It goes on over the next extent.
                break;
            }
            edits.next();
        }
        if from < end {
            merged.push(slice(extent, from - at, end - from));
        }
        at = end;
    }
    merged.0
}

/// A part of an extent, from `skip` bytes on.
fn slice(extent: &Extent, skip: u64, len: u64) -> Extent {
    let source = match extent.source {
        ExtentSource::Zero => ExtentSource::Zero,
        ExtentSource::Chunk {
            id,
            chunk_len,
            offset,
        } => ExtentSource::Chunk {
            id,
            chunk_len,
            offset: offset + skip as u32,
        },
    };
    Extent {
        len: len as u32,
        source,
    }
}

/// Extents, of which neighbours that show one run are one.
struct Merged(Vec<Extent>);

impl Merged {
    fn push(&mut self, extent: Extent) {
        if let Some(last) = self.0.last_mut()
            && goes_on(last, &extent)
        {
            last.len += extent.len;
            return;
        }
        self.0.push(extent);
    }
}

fn goes_on(last: &Extent, next: &Extent) -> bool {
    match (last.source, next.source) {
        (ExtentSource::Zero, ExtentSource::Zero) => true,
        (
            ExtentSource::Chunk { id, offset, .. },
            ExtentSource::Chunk {
                id: next_id,
                offset: next_offset,
                ..
            },
        ) => id == next_id && offset + last.len == next_offset,
        _ => false,
    }
}

/// Puts a tree of `chunks` one behind the other, for a row that refers to them before a state does. `None` if there are none.
pub(super) fn chunk_list(
    dc: &Datacenter,
    writer: &Writer,
    chunks: &[(ChunkId, u32)],
) -> Result<Option<TreeRef>, StoreError> {
    if chunks.is_empty() {
        return Ok(None);
    }
    let mut builder = ManifestBuilder::new(dc.id_key().clone(), dedup::ChunkerParams::default());
    for (id, len) in chunks {
        builder.push_chunk(*id, *len);
    }
    let (manifest, leaves) = builder.finish();
    let sealed = manifest.seal(dc.id_key());
    for (id, bytes) in leaves.iter().chain(&sealed.nodes) {
        writer.put_node(*id, bytes)?;
    }
    Ok(Some(TreeRef {
        root: sealed.root,
        size_bytes: manifest.size_bytes,
    }))
}

/// Puts the tree of a disk of zeros.
pub(super) fn zeros(
    dc: &Datacenter,
    writer: &Writer,
    size_bytes: u64,
) -> Result<TreeRef, StoreError> {
    let count = Manifest::leaf_count(size_bytes);
    let leaf = |index: u64| -> Result<_, StoreError> {
        let len = Manifest::leaf_len(size_bytes, index) as u32;
        let bytes = Leaf {
            extents: vec![Extent::zero(len)],
        }
        .encode();
        let id = dc.id_key().node_id(&bytes);
        writer.put_node(id, &bytes)?;
        Ok(id)
    };
    // All are the same one, but perhaps the last.
    let mut leaves = vec![leaf(0)?; count as usize];
    if let Some(last) = leaves.last_mut() {
        *last = leaf(count - 1)?;
    }
    let manifest = Manifest {
        size_bytes,
        params: dedup::ChunkerParams::default(),
        leaves,
    };
    let sealed = manifest.seal(dc.id_key());
    let mut put = HashSet::new();
    for (id, bytes) in sealed.nodes.iter().filter(|(id, _)| put.insert(*id)) {
        writer.put_node(*id, bytes)?;
    }
    Ok(TreeRef {
        root: sealed.root,
        size_bytes,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What each byte of extents shows: a chunk's first name byte and the place in it, or nothing.
    fn bytes_of(extents: &[Extent]) -> Vec<Option<(u8, u32)>> {
        let mut shown = Vec::new();
        for extent in extents {
            for place in 0..extent.len {
                shown.push(match extent.source {
                    ExtentSource::Zero => None,
                    ExtentSource::Chunk { id, offset, .. } => Some((id.0[0], offset + place)),
                });
            }
        }
        shown
    }

    fn extent(kind: u8, len: u32) -> Extent {
        match kind {
            0 => Extent::zero(len),
            kind => Extent::whole(ChunkId([kind; 32]), len),
        }
    }

    proptest! {
        #[test]
        fn edits_lie_over_what_was_there(
            before in prop::collection::vec((0u8..4, 1u32..40), 1..20),
            edits in prop::collection::vec((0u64..20, 4u8..8, 1u32..30), 0..12),
        ) {
            let before: Vec<Extent> = before.iter().map(|(kind, len)| extent(*kind, *len)).collect();
            let mut expected = bytes_of(&before);
            let total = expected.len() as u64;
            let (mut at, mut kept) = (0, Vec::new());
            for (gap, kind, len) in edits {
                at += gap;
                if at + u64::from(len) > total {
                    break;
                }
                let edit = Edit { at, extent: extent(kind % 5, len) };
                let shown = bytes_of(&[edit.extent]);
                drop(expected.splice(at as usize..edit.end() as usize, shown));
                at = edit.end();
                kept.push(edit);
            }
            let merged = merge(&before, &kept);
            prop_assert_eq!(bytes_of(&merged), expected);
            prop_assert!(merged.windows(2).all(|pair| !goes_on(&pair[0], &pair[1])));
        }
    }
}
