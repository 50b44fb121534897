//! Manifests: the ordered extents of a disk as a Merkle tree.
//!
//! A disk is cut into leaves of [`LEAF_BYTES`] by *disk range*, never by count, so that a change stays inside the leaves it
//! touches and versions share all others. Nodes are named by their encoded bytes; the root's name fixes size, chunker parameters and
//! every byte of the disk. Leaves are cut from a straddling chunk as slices. See `docs/disk-formats/manifest.md`.
//!
//! This module does not store or fetch nodes: it takes a [`NodeSource`].

use bytes::Bytes;

use crate::chunker::{ChunkerParams, ParamsError};
use crate::codec::{CodecError, Reader, write_varint};
use crate::extent::{Extent, ExtentError, ExtentSource};
use crate::id::{ChunkId, IdKey, NodeId};

/// Disk bytes that one leaf covers (the last leaf of a disk may cover fewer).
///
/// 4 MiB holds about 256 extents of 16 KiB, 10 KB encoded: small enough that a changed block costs little, large enough
/// that a 1 TiB disk has only 262,144 leaves.
pub const LEAF_BYTES: u64 = 4 << 20;

/// Most extents in one leaf: LEAF_BYTES in pieces of 512 bytes, the smallest a disk image can cut.
pub const LEAF_EXTENTS_MAX: usize = (LEAF_BYTES / 512) as usize;

/// Children of an interior node.
pub const FANOUT: usize = 256;

/// Largest disk, in bytes: 64 TiB. Bounds what a hostile root can make a reader allocate (16 M leaf names).
pub const DISK_BYTES_MAX: u64 = 64 << 40;

const FORMAT: u8 = 1;
const NODE_LEAF: u8 = 1;
const NODE_INTERIOR: u8 = 2;
const NODE_ROOT: u8 = 3;

/// Where encoded nodes are found by name.
pub trait NodeSource {
    /// Why a node could not be had.
    type Error: std::error::Error + Send + Sync + 'static;
    /// The encoded bytes of node `id`, already verified against the name.
    fn node(&self, id: NodeId) -> Result<Bytes, Self::Error>;
}

/// Why an encoded leaf was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not an encoded leaf of this format.
    #[error("not a manifest leaf of format {FORMAT}")]
    Header,
    /// An extent is malformed.
    #[error("extent {index}: {source}")]
    Extent {
        /// Which extent of the leaf.
        index: usize,
        /// What is wrong with it.
        source: ExtentError,
    },
    /// The extents cover more or less than the leaf's range: an overlap or a gap.
    #[error("extents cover {covered} bytes of a range of {expected}")]
    Coverage {
        /// Bytes that the extents cover.
        covered: u64,
        /// Bytes that they must cover.
        expected: u64,
    },
    /// Too many extents.
    #[error("{0} extents in one leaf, at most {LEAF_EXTENTS_MAX} are allowed")]
    Count(u64),
    /// Bytes after the last extent, or ends early.
    #[error("leaf {0}")]
    Codec(#[from] CodecError),
    /// Bytes after the last extent.
    #[error("{0} bytes after the last extent")]
    Trailing(usize),
}

/// Why a tree was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError<E: std::error::Error + Send + Sync + 'static> {
    /// A node could not be had.
    #[error("manifest node {id}")]
    Node {
        /// Which node.
        id: NodeId,
        /// Why.
        source: E,
    },
    /// A node is malformed.
    #[error("manifest node {id}: {reason}")]
    Malformed {
        /// Which node.
        id: NodeId,
        /// What is wrong.
        reason: String,
    },
    /// A leaf is malformed.
    #[error("manifest leaf {id}: {source}")]
    Leaf {
        /// Which leaf.
        id: NodeId,
        /// What is wrong.
        source: LeafError,
    },
}

/// The extents of one disk range, covering it exactly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leaf {
    /// In disk order, without gaps.
    pub extents: Vec<Extent>,
}

impl Leaf {
    /// Encoded bytes, the input of the leaf's name.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.extents.len() * 36);
        out.extend_from_slice(&[FORMAT, NODE_LEAF]);
        write_varint(&mut out, self.extents.len() as u64);
        for extent in &self.extents {
            extent.encode(&mut out);
        }
        out
    }

    /// Parses foreign bytes; the extents must cover exactly `range_len` bytes.
    pub fn decode(bytes: &[u8], range_len: u64) -> Result<Self, LeafError> {
        let mut reader = Reader::new(bytes);
        if reader.take(2)? != [FORMAT, NODE_LEAF] {
            return Err(LeafError::Header);
        }
        let extents = decode_extents(&mut reader)?;
        if reader.remaining() != 0 {
            return Err(LeafError::Trailing(reader.remaining()));
        }
        let leaf = Self { extents };
        leaf.check_coverage(range_len)?;
        Ok(leaf)
    }

    /// Fails unless the extents cover exactly `range_len` bytes.
    pub fn check_coverage(&self, range_len: u64) -> Result<(), LeafError> {
        let covered = self.extents.iter().map(|e| u64::from(e.len)).sum();
        if covered != range_len {
            return Err(LeafError::Coverage {
                covered,
                expected: range_len,
            });
        }
        Ok(())
    }

    /// The chunks it shows, in disk order, each run of the same chunk once.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkId, u32)> + '_ {
        let mut last = None;
        self.extents.iter().filter_map(move |extent| {
            let ExtentSource::Chunk { id, chunk_len, .. } = extent.source else {
                return None;
            };
            (last.replace(id) != Some(id)).then_some((id, chunk_len))
        })
    }
}

/// Reads a counted list of extents, bounded by [`LEAF_EXTENTS_MAX`].
pub(crate) fn decode_extents(reader: &mut Reader<'_>) -> Result<Vec<Extent>, LeafError> {
    let count = reader.varint()?;
    if count > LEAF_EXTENTS_MAX as u64 {
        return Err(LeafError::Count(count));
    }
    // Two bytes are the shortest extent, so the claim is checked against what is there before room is made for it.
    let mut extents = Vec::with_capacity((count as usize).min(reader.remaining() / 2 + 1));
    for index in 0..count as usize {
        let extent = Extent::decode(reader, LEAF_BYTES as u32)
            .map_err(|source| LeafError::Extent { index, source })?;
        extents.push(extent);
    }
    Ok(extents)
}

/// A whole manifest, without the extents: its header and the names of its leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Disk size in bytes.
    pub size_bytes: u64,
    /// How the disk was chunked; the next version uses the same.
    pub params: ChunkerParams,
    /// Leaf names in disk order.
    pub leaves: Vec<NodeId>,
}

/// A manifest with all nodes above its leaves computed.
#[derive(Debug, Clone)]
pub struct SealedManifest {
    /// Name of the root node.
    pub root: NodeId,
    /// Root and interior nodes, to be stored beside the leaves.
    pub nodes: Vec<(NodeId, Vec<u8>)>,
}

impl Manifest {
    /// Number of leaves of a disk of `size_bytes`.
    pub fn leaf_count(size_bytes: u64) -> u64 {
        size_bytes.div_ceil(LEAF_BYTES)
    }

    /// Disk bytes that leaf `index` of a disk of `size_bytes` covers.
    pub fn leaf_len(size_bytes: u64, index: u64) -> u64 {
        LEAF_BYTES.min(size_bytes.saturating_sub(index * LEAF_BYTES))
    }

    /// Computes root and interior nodes.
    pub fn seal(&self, key: &IdKey) -> SealedManifest {
        let mut nodes = Vec::new();
        let mut level = self.leaves.clone();
        let mut depth = 0u8;
        while level.len() > FANOUT {
            let mut next = Vec::with_capacity(level.len().div_ceil(FANOUT));
            for children in level.chunks(FANOUT) {
                let mut bytes = vec![FORMAT, NODE_INTERIOR];
                write_children(&mut bytes, children);
                let id = key.node_id(&bytes);
                nodes.push((id, bytes));
                next.push(id);
            }
            level = next;
            depth += 1;
        }
        let mut bytes = vec![FORMAT, NODE_ROOT];
        write_varint(&mut bytes, self.size_bytes);
        self.params.encode(&mut bytes);
        bytes.push(depth);
        write_children(&mut bytes, &level);
        let root = key.node_id(&bytes);
        nodes.push((root, bytes));
        SealedManifest { root, nodes }
    }

    /// Reads the whole tree above the leaves.
    pub fn load<S: NodeSource>(source: &S, root: NodeId) -> Result<Self, ManifestError<S::Error>> {
        let header = Root::load(source, root)?;
        let mut level = header.children;
        for depth in (0..u32::from(header.depth)).rev() {
            let nodes = level_nodes(header.size_bytes, depth);
            let mut next = Vec::with_capacity(nodes as usize);
            for (index, id) in (0..).zip(level) {
                next.extend(load_interior(source, id, children_of(nodes, index))?);
            }
            level = next;
        }
        Ok(Self {
            size_bytes: header.size_bytes,
            params: header.params,
            leaves: level,
        })
    }

    /// Reads and checks leaf `index`.
    pub fn leaf<S: NodeSource>(
        &self,
        source: &S,
        index: usize,
    ) -> Result<Leaf, ManifestError<S::Error>> {
        let id = self.leaves[index];
        let bytes = source
            .node(id)
            .map_err(|source| ManifestError::Node { id, source })?;
        Leaf::decode(&bytes, Self::leaf_len(self.size_bytes, index as u64))
            .map_err(|source| ManifestError::Leaf { id, source })
    }
}

/// The decoded root node.
pub(crate) struct Root {
    pub(crate) size_bytes: u64,
    pub(crate) params: ChunkerParams,
    /// Interior levels between the root and the leaves.
    pub(crate) depth: u8,
    pub(crate) children: Vec<NodeId>,
}

impl Root {
    pub(crate) fn load<S: NodeSource>(
        source: &S,
        id: NodeId,
    ) -> Result<Self, ManifestError<S::Error>> {
        let bytes = source
            .node(id)
            .map_err(|source| ManifestError::Node { id, source })?;
        Self::decode(&bytes).map_err(|reason| ManifestError::Malformed { id, reason })
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let parse = || -> Result<Result<Self, ParamsError>, CodecError> {
            let mut reader = Reader::new(bytes);
            reader.take(2)?;
            let size_bytes = reader.varint()?;
            let params = match ChunkerParams::decode(&mut reader)? {
                Ok(params) => params,
                Err(error) => return Ok(Err(error)),
            };
            let depth = reader.byte()?;
            let children = read_children(&mut reader)?;
            Ok(Ok(Self {
                size_bytes,
                params,
                depth,
                children,
            }))
        };
        if bytes.get(..2) != Some(&[FORMAT, NODE_ROOT]) {
            return Err(format!("not a manifest root of format {FORMAT}"));
        }
        let root = parse()
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())?;
        if root.size_bytes > DISK_BYTES_MAX {
            return Err(format!(
                "a disk of {} bytes, at most {DISK_BYTES_MAX}",
                root.size_bytes
            ));
        }
        // The size alone decides the tree's shape: checked here and at each interior node, before anything grows by what they claim.
        let depth = depth_of(root.size_bytes);
        let children = level_nodes(root.size_bytes, depth);
        if u32::from(root.depth) != depth || root.children.len() as u64 != children {
            return Err(format!(
                "{} children over {} levels for a disk of {} bytes, which has {children} over {depth}",
                root.children.len(),
                root.depth,
                root.size_bytes
            ));
        }
        Ok(root)
    }
}

/// Interior levels between root and leaves of a disk of `size_bytes`.
fn depth_of(size_bytes: u64) -> u32 {
    let mut depth = 0;
    while level_nodes(size_bytes, depth) > FANOUT as u64 {
        depth += 1;
    }
    depth
}

/// Nodes at `level` of the tree of a disk of `size_bytes`; level 0 are the leaves.
pub(crate) fn level_nodes(size_bytes: u64, level: u32) -> u64 {
    Manifest::leaf_count(size_bytes).div_ceil((FANOUT as u64).pow(level))
}

/// Children of node `index` over a level of `nodes`: all nodes are full but the last.
pub(crate) fn children_of(nodes: u64, index: u64) -> usize {
    nodes
        .saturating_sub(index * FANOUT as u64)
        .min(FANOUT as u64) as usize
}

/// Children of the interior node `id`, which must have as many as `expected`.
pub(crate) fn load_interior<S: NodeSource>(
    source: &S,
    id: NodeId,
    expected: usize,
) -> Result<Vec<NodeId>, ManifestError<S::Error>> {
    let bytes = source
        .node(id)
        .map_err(|source| ManifestError::Node { id, source })?;
    let malformed = |reason: String| ManifestError::Malformed { id, reason };
    if bytes.get(..2) != Some(&[FORMAT, NODE_INTERIOR]) {
        return Err(malformed(format!(
            "not an interior node of format {FORMAT}"
        )));
    }
    let mut reader = Reader::new(&bytes[2..]);
    let children = read_children(&mut reader).map_err(|e| malformed(e.to_string()))?;
    if children.len() != expected {
        return Err(malformed(format!(
            "{} children, {expected} are due",
            children.len()
        )));
    }
    Ok(children)
}

fn write_children(out: &mut Vec<u8>, children: &[NodeId]) {
    write_varint(out, children.len() as u64);
    for child in children {
        out.extend_from_slice(child.as_bytes());
    }
}

/// The last field of a node: a counted list of names that ends exactly at the node's end.
fn read_children(reader: &mut Reader<'_>) -> Result<Vec<NodeId>, CodecError> {
    let count = reader.varint()?;
    if count > FANOUT as u64 || reader.remaining() as u64 != count * 32 {
        return Err(CodecError::Truncated(reader.position()));
    }
    (0..count).map(|_| Ok(NodeId(reader.array()?))).collect()
}

/// Builds a manifest from extents pushed in disk order.
#[derive(Debug)]
pub struct ManifestBuilder {
    key: IdKey,
    params: ChunkerParams,
    leaf: Leaf,
    leaf_filled: u64,
    size_bytes: u64,
    leaves: Vec<NodeId>,
    done: Vec<(NodeId, Vec<u8>)>,
}

impl ManifestBuilder {
    /// An empty disk.
    pub fn new(key: IdKey, params: ChunkerParams) -> Self {
        Self {
            key,
            params,
            leaf: Leaf::default(),
            leaf_filled: 0,
            size_bytes: 0,
            leaves: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Appends `len` zero bytes.
    pub fn push_zero(&mut self, mut len: u64) {
        while len > 0 {
            let part = len.min(LEAF_BYTES - self.leaf_filled);
            match self.leaf.extents.last_mut() {
                Some(last) if last.source == ExtentSource::Zero => last.len += part as u32,
                _ => self.leaf.extents.push(Extent::zero(part as u32)),
            }
            self.advance(part);
            len -= part;
        }
    }

    /// Appends all `chunk_len` bytes of chunk `id`, cutting it at leaf boundaries.
    pub fn push_chunk(&mut self, id: ChunkId, chunk_len: u32) {
        let mut offset = 0;
        while offset < chunk_len {
            let room = (LEAF_BYTES - self.leaf_filled).min(u64::from(u32::MAX)) as u32;
            let len = (chunk_len - offset).min(room);
            self.leaf.extents.push(Extent {
                len,
                source: ExtentSource::Chunk {
                    id,
                    chunk_len,
                    offset,
                },
            });
            self.advance(u64::from(len));
            offset += len;
        }
    }

    fn advance(&mut self, len: u64) {
        self.size_bytes += len;
        self.leaf_filled += len;
        if self.leaf_filled == LEAF_BYTES {
            self.close_leaf();
        }
    }

    fn close_leaf(&mut self) {
        let bytes = std::mem::take(&mut self.leaf).encode();
        let id = self.key.node_id(&bytes);
        self.leaves.push(id);
        self.done.push((id, bytes));
        self.leaf_filled = 0;
    }

    /// Leaves finished since the last call, to be stored.
    pub fn take_leaves(&mut self) -> Vec<(NodeId, Vec<u8>)> {
        std::mem::take(&mut self.done)
    }

    /// Closes the last leaf. The remaining leaves come with it.
    pub fn finish(mut self) -> (Manifest, Vec<(NodeId, Vec<u8>)>) {
        if self.leaf_filled > 0 {
            self.close_leaf();
        }
        let manifest = Manifest {
            size_bytes: self.size_bytes,
            params: self.params,
            leaves: self.leaves,
        };
        (manifest, self.done)
    }
}
