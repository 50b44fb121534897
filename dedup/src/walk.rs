//! Visiting a manifest tree from its root down, passing over what was seen before.
//!
//! Versions share most of their nodes, so a walk over many trees costs what is distinct in them, as long as the visitor remembers.
//! This is how a collection of garbage finds what is reachable, and how damage is traced to the versions that show it.

use crate::id::NodeId;
use crate::manifest::{
    FANOUT, Leaf, Manifest, ManifestError, NodeSource, Root, children_of, level_nodes,
    load_interior,
};

/// What is done at each node.
pub trait Visitor {
    /// Before a node is read; false passes over it and all below it. Equal nodes have equal children, whichever tree they are in.
    fn enter(&mut self, id: NodeId) -> bool;
    /// At each leaf that was entered. `index` counts from the disk's start.
    fn leaf(&mut self, index: u64, leaf: &Leaf);
}

/// Visits the tree below `root`: first the root, then level by level, each in disk order.
pub fn walk<S: NodeSource>(
    source: &S,
    root: NodeId,
    visitor: &mut dyn Visitor,
) -> Result<(), ManifestError<S::Error>> {
    if !visitor.enter(root) {
        return Ok(());
    }
    let header = Root::load(source, root)?;
    let mut level: Vec<(u64, NodeId)> = (0..).zip(header.children).collect();
    for depth in (0..u32::from(header.depth)).rev() {
        let nodes = level_nodes(header.size_bytes, depth);
        let mut next = Vec::new();
        for (index, id) in level {
            if visitor.enter(id) {
                let children = load_interior(source, id, children_of(nodes, index))?;
                next.extend((index * FANOUT as u64..).zip(children));
            }
        }
        level = next;
    }
    for (index, id) in level {
        if !visitor.enter(id) {
            continue;
        }
        let bytes = source
            .node(id)
            .map_err(|source| ManifestError::Node { id, source })?;
        let leaf = Leaf::decode(&bytes, Manifest::leaf_len(header.size_bytes, index))
            .map_err(|source| ManifestError::Leaf { id, source })?;
        visitor.leaf(index, &leaf);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{HashMap, HashSet};

    use bytes::Bytes;

    use super::*;
    use crate::chunker::ChunkerParams;
    use crate::extent::Extent;
    use crate::id::{ChunkId, IdKey};
    use crate::manifest::LEAF_BYTES;

    #[derive(Debug, thiserror::Error)]
    #[error("absent")]
    struct Absent;

    #[derive(Default)]
    struct Nodes(HashMap<NodeId, Bytes>);

    impl NodeSource for Nodes {
        type Error = Absent;
        fn node(&self, id: NodeId) -> Result<Bytes, Absent> {
            self.0.get(&id).cloned().ok_or(Absent)
        }
    }

    #[derive(Default)]
    struct Seen {
        nodes: HashSet<NodeId>,
        entered: usize,
        leaves: Vec<u64>,
        chunks: HashSet<ChunkId>,
    }

    impl Visitor for Seen {
        fn enter(&mut self, id: NodeId) -> bool {
            let new = self.nodes.insert(id);
            self.entered += usize::from(new);
            new
        }
        fn leaf(&mut self, index: u64, leaf: &Leaf) {
            self.leaves.push(index);
            self.chunks.extend(leaf.chunks().map(|(id, _)| id));
        }
    }

    /// A tree of `leaves` whole leaves and a short one, each showing one chunk of its own; answers its root.
    fn tree(nodes: &mut Nodes, leaves: u64, changed: Option<u64>) -> NodeId {
        let key = IdKey::new([3; 32]);
        let mut ids = Vec::new();
        for index in 0..=leaves {
            let len = if index == leaves { 4096 } else { LEAF_BYTES };
            let salt = u8::from(changed == Some(index));
            let chunk = key.chunk_id(&[&index.to_le_bytes()[..], &[salt]].concat());
            let mut extents = vec![Extent::whole(chunk, 4096)];
            if len > 4096 {
                extents.push(Extent::zero((len - 4096) as u32));
            }
            let bytes = Leaf { extents }.encode();
            let id = key.node_id(&bytes);
            nodes.0.insert(id, bytes.into());
            ids.push(id);
        }
        let manifest = Manifest {
            size_bytes: leaves * LEAF_BYTES + 4096,
            params: ChunkerParams::default(),
            leaves: ids,
        };
        let sealed = manifest.seal(&key);
        let encoded = sealed.nodes.into_iter();
        nodes
            .0
            .extend(encoded.map(|(id, bytes)| (id, bytes.into())));
        sealed.root
    }

    #[test]
    fn a_second_version_costs_what_changed() {
        let mut nodes = Nodes::default();
        // 600 leaves: three interior nodes under the root.
        let first = tree(&mut nodes, 600, None);
        let second = tree(&mut nodes, 600, Some(300));
        let mut seen = Seen::default();
        walk(&nodes, first, &mut seen).unwrap();
        assert_eq!(seen.leaves, (0..=600).collect::<Vec<_>>());
        assert_eq!(seen.chunks.len(), 601);
        assert_eq!(seen.entered, 601 + 3 + 1);
        let before = seen.entered;
        walk(&nodes, second, &mut seen).unwrap();
        assert_eq!(
            seen.entered - before,
            3,
            "root, one interior node, one leaf"
        );
        assert_eq!(seen.leaves.last(), Some(&300));
        assert_eq!(seen.chunks.len(), 602);
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut nodes = Nodes::default();
        let root = tree(&mut nodes, 1, None);
        let leaf = *nodes.0.keys().find(|id| **id != root).unwrap();
        nodes.0.remove(&leaf);
        let error = walk(&nodes, root, &mut Seen::default()).unwrap_err();
        assert!(matches!(error, ManifestError::Node { id, .. } if id == leaf));
    }
}
