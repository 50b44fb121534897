//! What changed between two manifests, and one leaf expressed against another.
//!
//! [`changed_leaves`] walks both trees from the root and opens only nodes whose names differ, so its cost is that of the change,
//! not of the disk. [`LeafDelta`] is how a changed leaf crosses the wire: runs copied from the leaf the receiver has, and
//! new entries.

use std::collections::HashMap;

use crate::codec::{Reader, write_varint};
use crate::extent::Extent;
use crate::id::NodeId;
use crate::manifest::{
    FANOUT, LEAF_EXTENTS_MAX, Leaf, LeafError, Manifest, ManifestError, NodeSource, Root,
    children_of, decode_extents, level_nodes, load_interior,
};

/// A leaf of the new manifest that the old one does not have at that place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafChange {
    /// Leaf index in disk order.
    pub index: u64,
    /// What the old manifest has there, if its disk reaches so far.
    pub old: Option<NodeId>,
    /// What the new manifest has there.
    pub new: NodeId,
}

/// The leaves in which `new` differs from `old`, in disk order. Leaves beyond a shorter new disk are not listed.
pub fn changed_leaves<S: NodeSource>(
    source: &S,
    old: NodeId,
    new: NodeId,
) -> Result<Vec<LeafChange>, ManifestError<S::Error>> {
    let mut changes = Vec::new();
    if old == new {
        return Ok(changes);
    }
    let old_root = Root::load(source, old)?;
    let new_root = Root::load(source, new)?;
    if old_root.depth != new_root.depth {
        // The disk grew past a power of the fan-out: positions in the two trees no longer correspond level by level.
        let old = Manifest::load(source, old)?.leaves;
        let new = Manifest::load(source, new)?.leaves;
        collect(&old, &new, 0, &mut changes);
        return Ok(changes);
    }
    let sizes = (old_root.size_bytes, new_root.size_bytes);
    let depth = u32::from(new_root.depth);
    let (old, new) = (&old_root.children, &new_root.children);
    descend(source, sizes, old, new, depth, 0, &mut changes)?;
    Ok(changes)
}

/// Compares nodes `first..` of one level, and opens what differs. `sizes` are those of the old and the new disk, in bytes.
fn descend<S: NodeSource>(
    source: &S,
    sizes: (u64, u64),
    old: &[NodeId],
    new: &[NodeId],
    depth: u32,
    first: u64,
    changes: &mut Vec<LeafChange>,
) -> Result<(), ManifestError<S::Error>> {
    let Some(below) = depth.checked_sub(1) else {
        collect(old, new, first, changes);
        return Ok(());
    };
    let open = |id: NodeId, size: u64, index: u64| {
        load_interior(source, id, children_of(level_nodes(size, below), index))
    };
    for (i, id) in new.iter().enumerate() {
        if old.get(i) == Some(id) {
            continue;
        }
        let index = first + i as u64;
        let old_children = match old.get(i) {
            Some(old) => open(*old, sizes.0, index)?,
            None => Vec::new(),
        };
        let new_children = open(*id, sizes.1, index)?;
        let first_child = index * FANOUT as u64;
        descend(
            source,
            sizes,
            &old_children,
            &new_children,
            below,
            first_child,
            changes,
        )?;
    }
    Ok(())
}

fn collect(old: &[NodeId], new: &[NodeId], first_leaf: u64, changes: &mut Vec<LeafChange>) {
    for (i, id) in new.iter().enumerate() {
        let before = old.get(i).copied();
        if before != Some(*id) {
            changes.push(LeafChange {
                index: first_leaf + i as u64,
                old: before,
                new: *id,
            });
        }
    }
}

/// One leaf as edits of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafDelta {
    ops: Vec<Op>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    /// `count` extents of the old leaf from `from`.
    Copy { from: usize, count: usize },
    /// New extents.
    Insert(Vec<Extent>),
}

/// Why a delta could not be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// Malformed bytes.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// A copy reaches outside the old leaf.
    #[error("copies extents {from}..{end} of a leaf that has {len}")]
    Copy {
        /// First extent.
        from: u64,
        /// One past the last.
        end: u64,
        /// What the old leaf has.
        len: usize,
    },
}

impl LeafDelta {
    /// Expresses `new` through `old`: greedy matching of equal runs, linear in both.
    pub fn between(old: &Leaf, new: &Leaf) -> Self {
        let mut at = HashMap::with_capacity(old.extents.len());
        for (i, extent) in old.extents.iter().enumerate() {
            // Zero runs are as short as a copy and match everywhere; as anchors they would only break runs apart.
            if let Some(id) = extent.chunk() {
                at.entry((id, extent.len)).or_insert(i);
            }
        }
        let mut ops: Vec<Op> = Vec::new();
        let mut i = 0;
        while i < new.extents.len() {
            let extent = new.extents[i];
            let from = extent.chunk().and_then(|id| at.get(&(id, extent.len)));
            let run = from.map_or(0, |&from| {
                std::iter::zip(&old.extents[from..], &new.extents[i..])
                    .take_while(|(a, b)| a == b)
                    .count()
            });
            if let (Some(&from), 1..) = (from, run) {
                ops.push(Op::Copy { from, count: run });
                i += run;
            } else {
                match ops.last_mut() {
                    Some(Op::Insert(extents)) => extents.push(extent),
                    _ => ops.push(Op::Insert(vec![extent])),
                }
                i += 1;
            }
        }
        Self { ops }
    }

    /// The new leaf. The caller checks coverage and name.
    pub fn apply(&self, old: &Leaf) -> Result<Leaf, DeltaError> {
        let mut extents = Vec::new();
        for op in &self.ops {
            match op {
                Op::Copy { from, count } => {
                    let run = from
                        .checked_add(*count)
                        .and_then(|end| old.extents.get(*from..end));
                    let Some(run) = run else {
                        return Err(DeltaError::Copy {
                            from: *from as u64,
                            end: from.saturating_add(*count) as u64,
                            len: old.extents.len(),
                        });
                    };
                    extents.extend_from_slice(run);
                }
                Op::Insert(new) => extents.extend_from_slice(new),
            }
            if extents.len() > LEAF_EXTENTS_MAX {
                return Err(LeafError::Count(extents.len() as u64).into());
            }
        }
        Ok(Leaf { extents })
    }

    /// Encoded bytes: count of edits, then each as `from + 1, count` for a copy or `0` and a counted list of extents.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        write_varint(&mut out, self.ops.len() as u64);
        for op in &self.ops {
            match op {
                Op::Copy { from, count } => {
                    write_varint(&mut out, *from as u64 + 1);
                    write_varint(&mut out, *count as u64);
                }
                Op::Insert(extents) => {
                    write_varint(&mut out, 0);
                    write_varint(&mut out, extents.len() as u64);
                    for extent in extents {
                        extent.encode(&mut out);
                    }
                }
            }
        }
        out
    }

    /// Parses foreign bytes; everything is bounded by [`LEAF_EXTENTS_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DeltaError> {
        let mut reader = Reader::new(bytes);
        let mut read = || -> Result<Vec<Op>, LeafError> {
            let count = reader.varint()?;
            if count > LEAF_EXTENTS_MAX as u64 {
                return Err(LeafError::Count(count));
            }
            let mut ops = Vec::new();
            for _ in 0..count {
                let head = reader.varint()?;
                if head == 0 {
                    ops.push(Op::Insert(decode_extents(&mut reader)?));
                } else {
                    let count = reader.varint()?;
                    if head > LEAF_EXTENTS_MAX as u64 || count > LEAF_EXTENTS_MAX as u64 {
                        return Err(LeafError::Count(count.max(head)));
                    }
                    ops.push(Op::Copy {
                        from: head as usize - 1,
                        count: count as usize,
                    });
                }
            }
            if reader.remaining() != 0 {
                return Err(LeafError::Trailing(reader.remaining()));
            }
            Ok(ops)
        };
        Ok(Self { ops: read()? })
    }
}
