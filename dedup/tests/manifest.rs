//! Manifests and their differences against a byte-array oracle.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use bytes::Bytes;
use dedup::diff::{LeafDelta, changed_leaves};
use dedup::{
    Chunk, Chunker, ChunkerParams, ExtentSource, IdKey, LEAF_BYTES, Leaf, Manifest,
    ManifestBuilder, NodeId, NodeSource, Piece,
};
use proptest::prelude::*;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

#[derive(Debug, thiserror::Error)]
#[error("no such node")]
struct Missing;

#[derive(Default)]
struct Nodes {
    map: HashMap<NodeId, Vec<u8>>,
    touched: Mutex<HashSet<NodeId>>,
}

impl NodeSource for Nodes {
    type Error = Missing;

    fn node(&self, id: NodeId) -> Result<Bytes, Missing> {
        self.touched.lock().unwrap().insert(id);
        self.map
            .get(&id)
            .map(|b| Bytes::copy_from_slice(b))
            .ok_or(Missing)
    }
}

type Chunks = HashMap<dedup::ChunkId, Bytes>;

fn publish(key: &IdKey, disk: &[u8], nodes: &mut Nodes, chunks: &mut Chunks) -> (NodeId, Manifest) {
    let mut builder = ManifestBuilder::new(key.clone(), ChunkerParams::default());
    let mut chunker = Chunker::new(ChunkerParams::default());
    let mut emit = |piece: Piece<'_>| match piece {
        Piece::Zero(len) => builder.push_zero(len),
        Piece::Data(data) => {
            let chunk = Chunk::new(key, Bytes::copy_from_slice(data));
            builder.push_chunk(chunk.id(), data.len() as u32);
            chunks.insert(chunk.id(), chunk.bytes().clone());
        }
    };
    chunker.push_data(disk, &mut emit);
    chunker.finish(&mut emit);
    let (manifest, leaves) = builder.finish();
    let sealed = manifest.seal(key);
    nodes.map.extend(leaves);
    nodes.map.extend(sealed.nodes);
    (sealed.root, manifest)
}

fn read_back(nodes: &Nodes, chunks: &Chunks, root: NodeId) -> Vec<u8> {
    let manifest = Manifest::load(nodes, root).unwrap();
    let mut disk = Vec::new();
    for index in 0..manifest.leaves.len() {
        for extent in manifest.leaf(nodes, index).unwrap().extents {
            match extent.source {
                ExtentSource::Zero => disk.resize(disk.len() + extent.len as usize, 0),
                ExtentSource::Chunk {
                    id,
                    offset,
                    chunk_len,
                } => {
                    let chunk = &chunks[&id];
                    assert_eq!(chunk.len(), chunk_len as usize);
                    disk.extend_from_slice(&chunk[offset as usize..(offset + extent.len) as usize]);
                }
            }
        }
    }
    disk
}

fn random_disk(rng: &mut StdRng, leaves: usize) -> Vec<u8> {
    let mut disk = vec![0; leaves * LEAF_BYTES as usize + rng.random_range(0..9000usize) * 512];
    for _ in 0..leaves * 3 {
        let at = rng.random_range(0..disk.len());
        let len = rng.random_range(1..900_000).min(disk.len() - at);
        rng.fill_bytes(&mut disk[at..at + len]);
    }
    disk
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn versions_read_back_and_diff_by_changed_leaves(seed in any::<u64>(), edits in 0usize..6) {
        let mut rng = StdRng::seed_from_u64(seed);
        let key = IdKey::new([7; 32]);
        let (mut nodes, mut chunks) = (Nodes::default(), Chunks::default());
        let old = random_disk(&mut rng, 5);
        let mut new = old.clone();
        for _ in 0..edits {
            let at = rng.random_range(0..new.len());
            let len = rng.random_range(1..30_000).min(new.len() - at);
            rng.fill_bytes(&mut new[at..at + len]);
        }
        let (old_root, old_manifest) = publish(&key, &old, &mut nodes, &mut chunks);
        let (new_root, new_manifest) = publish(&key, &new, &mut nodes, &mut chunks);
        prop_assert!(read_back(&nodes, &chunks, old_root) == old);
        prop_assert!(read_back(&nodes, &chunks, new_root) == new);
        prop_assert_eq!(old_root == new_root, old == new);

        // The receiver rebuilds the new manifest from its own and the changed leaves, as deltas.
        let mut rebuilt = old_manifest.clone();
        for change in changed_leaves(&nodes, old_root, new_root).unwrap() {
            let index = change.index as usize;
            let before = old_manifest.leaf(&nodes, index).unwrap();
            let after = new_manifest.leaf(&nodes, index).unwrap();
            let wire = LeafDelta::between(&before, &after).encode();
            let applied = LeafDelta::decode(&wire).unwrap().apply(&before).unwrap();
            prop_assert_eq!(&applied, &after);
            rebuilt.leaves[index] = key.node_id(&applied.encode());
        }
        rebuilt.size_bytes = new_manifest.size_bytes;
        prop_assert_eq!(rebuilt.seal(&key).root, new_root);
    }

    #[test]
    fn foreign_leaves_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut framed = vec![1, 1];
        framed.extend_from_slice(&bytes);
        let _ = Leaf::decode(&framed, LEAF_BYTES);
        let _ = LeafDelta::decode(&bytes);
    }
}

/// A diff of two large disks opens only the nodes on the way to the change.
#[test]
fn diff_touches_only_changed_subtrees() {
    let key = IdKey::new([7; 32]);
    let manifest = |special: Option<usize>| {
        let mut leaves: Vec<NodeId> = (0..1000u32)
            .map(|i| key.node_id(&i.to_le_bytes()))
            .collect();
        if let Some(i) = special {
            leaves[i] = key.node_id(b"changed");
        }
        Manifest {
            size_bytes: 1000 * LEAF_BYTES,
            params: ChunkerParams::default(),
            leaves,
        }
    };
    let mut nodes = Nodes::default();
    let old = manifest(None).seal(&key);
    let new = manifest(Some(700)).seal(&key);
    nodes.map.extend(old.nodes.clone());
    nodes.map.extend(new.nodes.clone());
    let changes = changed_leaves(&nodes, old.root, new.root).unwrap();
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].index, 700);
    // Two roots and the two interior nodes above the change.
    assert_eq!(nodes.touched.lock().unwrap().len(), 4);
}

#[test]
fn overlap_gap_and_disorder_are_refused() {
    let leaf = |lens: &[u32]| Leaf {
        extents: lens.iter().map(|l| dedup::Extent::zero(*l)).collect(),
    };
    let full = LEAF_BYTES as u32;
    let check = |leaf: Leaf| {
        Leaf::decode(&leaf.encode(), LEAF_BYTES)
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    assert_eq!(check(leaf(&[full])), Ok(()));
    assert_eq!(
        check(leaf(&[full, 512])),
        Err("extents cover 4194816 bytes of a range of 4194304".into())
    );
    assert_eq!(
        check(leaf(&[full - 512])),
        Err("extents cover 4193792 bytes of a range of 4194304".into())
    );
}

/// A tree whose shape does not follow from its size would make two readers see different disks, or one of them allocate
/// what no disk needs.
#[test]
fn trees_of_another_shape_are_refused() {
    let key = IdKey::new([7; 32]);
    let leaf = key.node_id(b"leaf");
    let node = |kind: u8, fields: &[u8], children: &[NodeId]| {
        let mut bytes = vec![1, kind];
        bytes.extend_from_slice(fields);
        dedup::codec::write_varint(&mut bytes, children.len() as u64);
        for child in children {
            bytes.extend_from_slice(child.as_bytes());
        }
        (key.node_id(&bytes), bytes)
    };
    let root = |size: u64, depth: u8, children: &[NodeId]| {
        let mut fields = Vec::new();
        for field in [size, 4 << 10, 16 << 10, 64 << 10] {
            dedup::codec::write_varint(&mut fields, field);
        }
        fields.push(depth);
        node(3, &fields, children)
    };
    let refused = |nodes: Vec<(NodeId, Vec<u8>)>, root: NodeId| {
        let mut source = Nodes::default();
        source.map.extend(nodes);
        Manifest::load(&source, root).unwrap_err().to_string()
    };
    // Two interior nodes of one child each, where one of two would do.
    let inner = node(2, &[], &[leaf]);
    let thin = root(2 * LEAF_BYTES, 1, &[inner.0, inner.0]);
    assert!(refused(vec![inner, thin.clone()], thin.0).contains("which has 2 over 0"));
    // 257 leaves, cut 1 + 256 instead of 256 + 1.
    let (first, rest) = (node(2, &[], &[leaf]), node(2, &[], &[leaf; 256]));
    let skewed = root(257 * LEAF_BYTES, 1, &[first.0, rest.0]);
    assert!(
        refused(vec![first, rest, skewed.clone()], skewed.0).contains("1 children, 256 are due")
    );
}
