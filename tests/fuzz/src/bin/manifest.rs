//! Manifest trees out of hostile nodes: the bytes are pieces, each a node. A name is believed to be that of a node by its
//! first byte alone, so that trees can refer to themselves, which names that are hashes could not.
#![no_main]

use bytes::Bytes;
use dedup::diff::changed_leaves;
use dedup::{IdKey, Manifest, NodeId, NodeSource};
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::Absent;
use splice_fuzz::script::Script;

/// Leaves of a tree that is looked at closer; what hostile nodes can make of two levels is 16 million.
const LEAVES_LOOKED_AT: usize = 64;

struct Nodes(Vec<Bytes>);

impl NodeSource for Nodes {
    type Error = Absent;

    fn node(&self, id: NodeId) -> Result<Bytes, Absent> {
        self.0.get(usize::from(id.0[0])).cloned().ok_or(Absent)
    }
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let mut nodes = Vec::new();
    for _ in 0..=u8::MAX {
        match script.piece() {
            [] => break,
            node => nodes.push(Bytes::copy_from_slice(node)),
        }
    }
    let nodes = Nodes(nodes);
    let (old, new) = (NodeId([0; 32]), NodeId([1; 32]));
    let loaded = Manifest::load(&nodes, old);
    if let Ok(manifest) = &loaded {
        let count = Manifest::leaf_count(manifest.size_bytes);
        assert_eq!(manifest.leaves.len() as u64, count);
        for index in 0..manifest.leaves.len().min(LEAVES_LOOKED_AT) {
            let _ = manifest.leaf(&nodes, index);
        }
        let sealed = manifest.seal(&IdKey::new([0; 32]));
        let found = sealed.nodes.last().map(|(id, _)| *id);
        assert_eq!(found, Some(sealed.root), "the root is the last node");
    }
    if let Ok(changes) = changed_leaves(&nodes, old, new) {
        let ascending = changes.windows(2).all(|pair| pair[0].index < pair[1].index);
        assert!(ascending, "changes are in disk order");
        if let (Ok(before), Ok(after)) = (loaded, Manifest::load(&nodes, new)) {
            for change in &changes {
                let index = change.index as usize;
                assert_eq!(after.leaves.get(index), Some(&change.new));
                assert_eq!(before.leaves.get(index).copied(), change.old);
            }
        }
    }
});
