//! A datacenter in memory, a branch in memory, and keys that are the same in every run.
//!
//! The datacenter answers through the real `Responder`, the branch believes through the real `TreeSync` and `ChunkExchange`; only
//! disks, network and clock are left out. Not every test binary uses all of it.
#![allow(dead_code)]

pub mod peak;
pub mod state;
pub mod update;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use dedup::{
    BranchId, Chunk, ChunkId, Chunker, ChunkerParams, ExtentSource, IdKey, Manifest,
    ManifestBuilder, NodeId, NodeSource, Piece, RealmId, VersionId,
};
use dedup_protocol::records::{BootArtifacts, Tree, TreeRef, VersionRecord};
use dedup_protocol::server::{AnswerError, Content, PublishedVersion, Responder, StoredBytes};
use dedup_protocol::trust::{Endorsement, SigningKey, TrustAnchor};
use dedup_protocol::wire::Message;

pub const REALM: RealmId = RealmId([0x11; 16]);
pub const BRANCH: BranchId = BranchId([0x22; 16]);

pub fn id_key() -> IdKey {
    IdKey::new([0x33; 32])
}

/// The key pairs of RFC 8032, section 7.1, tests 1 (root) and 2 (publisher): signatures are the same in every run.
fn rfc8032(secret: &str, public: &str) -> SigningKey {
    let document = format!("3051020101300506032b657004220420{secret}812100{public}");
    SigningKey::from_pkcs8(&hex::decode(document).unwrap()).unwrap()
}

pub fn root_key() -> SigningKey {
    rfc8032(
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    )
}

pub fn publisher_key() -> SigningKey {
    rfc8032(
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    )
}

pub fn anchor() -> TrustAnchor {
    TrustAnchor {
        realm: REALM,
        root: root_key().public(),
    }
}

pub fn endorsement() -> Endorsement {
    root_key().endorse(REALM, publisher_key().public(), 2_000_000_000)
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{0} is not stored")]
pub struct Missing(pub String);

/// Published content in memory.
pub struct Datacenter {
    pub key: IdKey,
    pub nodes: HashMap<NodeId, Bytes>,
    pub chunks: HashMap<ChunkId, Bytes>,
    pub versions: HashMap<VersionId, PublishedVersion>,
}

impl Default for Datacenter {
    fn default() -> Self {
        Self {
            key: id_key(),
            nodes: HashMap::new(),
            chunks: HashMap::new(),
            versions: HashMap::new(),
        }
    }
}

/// A version to publish.
pub struct NewVersion<'a> {
    pub image: &'a str,
    pub number: u32,
    pub parent: Option<VersionId>,
    pub disk: &'a [u8],
    pub kernel: Option<&'a [u8]>,
    pub params: ChunkerParams,
}

impl<'a> NewVersion<'a> {
    pub fn first(image: &'a str, disk: &'a [u8]) -> Self {
        Self {
            image,
            number: 1,
            parent: None,
            disk,
            kernel: None,
            params: ChunkerParams::default(),
        }
    }
}

impl Datacenter {
    pub fn put_tree(&mut self, bytes: &[u8], params: ChunkerParams) -> (TreeRef, Manifest) {
        let mut builder = ManifestBuilder::new(self.key.clone(), params);
        let mut chunker = Chunker::new(params);
        let mut emit = |piece: Piece<'_>| match piece {
            Piece::Zero(len) => builder.push_zero(len),
            Piece::Data(data) => {
                let chunk = Chunk::new(&self.key, Bytes::copy_from_slice(data));
                builder.push_chunk(chunk.id(), data.len() as u32);
                self.chunks.insert(chunk.id(), chunk.bytes().clone());
            }
        };
        chunker.push_data(bytes, &mut emit);
        chunker.finish(&mut emit);
        let (manifest, leaves) = builder.finish();
        let sealed = manifest.seal(&self.key);
        let nodes = leaves.into_iter().chain(sealed.nodes);
        self.nodes
            .extend(nodes.map(|(id, node)| (id, Bytes::from(node))));
        let tree = TreeRef {
            root: sealed.root,
            size_bytes: bytes.len() as u64,
        };
        (tree, manifest)
    }

    pub fn publish(&mut self, new: &NewVersion<'_>) -> VersionId {
        let (disk, _) = self.put_tree(new.disk, new.params);
        let boot = new.kernel.map(|kernel| BootArtifacts {
            kernel: self.put_tree(kernel, new.params).0,
            initrd: None,
            root_argument: "root=UUID=0".into(),
            kernel_path: "/boot/vmlinuz".into(),
        });
        let record = VersionRecord {
            realm: REALM,
            image: new.image.into(),
            number: new.number,
            parent: new.parent,
            created_unix_s: 1_700_000_000,
            disk,
            params: new.params,
            boot,
            os: None,
            data_bytes: new.disk.len() as u64,
        };
        let signed = publisher_key().sign(&record);
        let id = signed.id();
        let published = PublishedVersion {
            signed: signed.to_bytes().into(),
            record: Arc::new(record),
        };
        self.versions.insert(id, published);
        id
    }

    pub fn record(&self, id: VersionId) -> &VersionRecord {
        &self.versions[&id].record
    }

    pub fn manifest(&self, id: VersionId, tree: Tree) -> Manifest {
        let root = self.record(id).tree(tree).unwrap().root;
        Manifest::load(&self, root).unwrap()
    }

    /// All frames that answer `request` for a branch that may read everything.
    pub fn answer(&self, request: &Message) -> Result<Vec<Message>, AnswerError> {
        let mut responder = Responder::new(self, request, |_| true)?;
        let mut frames = Vec::new();
        while let Some(frame) = responder.next_frame()? {
            frames.push(frame);
        }
        Ok(frames)
    }
}

impl NodeSource for &Datacenter {
    type Error = Missing;

    fn node(&self, id: NodeId) -> Result<Bytes, Missing> {
        let node = self.nodes.get(&id).cloned();
        node.ok_or_else(|| Missing(id.to_string()))
    }
}

impl Content for &Datacenter {
    fn version(&self, id: VersionId) -> Result<Option<PublishedVersion>, Missing> {
        Ok(self.versions.get(&id).cloned())
    }

    fn chunk(&self, id: ChunkId) -> Result<Bytes, Missing> {
        let chunk = self.chunks.get(&id).cloned();
        chunk.ok_or_else(|| Missing(id.to_string()))
    }

    fn stored_chunk(&self, id: ChunkId) -> Result<StoredBytes, Missing> {
        let plain = self.chunk(id)?;
        let packed = zstd::bulk::compress(&plain, 1).unwrap();
        let zstd = packed.len() < plain.len();
        let bytes = if zstd { packed.into() } else { plain };
        Ok(StoredBytes { zstd, bytes })
    }
}

/// What a branch holds.
#[derive(Default)]
pub struct Branch {
    pub leaves: HashMap<NodeId, Bytes>,
    pub manifests: HashMap<NodeId, Manifest>,
    pub chunks: HashMap<ChunkId, Bytes>,
}

impl NodeSource for &Branch {
    type Error = Missing;

    fn node(&self, id: NodeId) -> Result<Bytes, Missing> {
        let leaf = self.leaves.get(&id).cloned();
        leaf.ok_or_else(|| Missing(id.to_string()))
    }
}

impl Branch {
    /// A tree's bytes, from manifest and chunks that are held here.
    pub fn read_back(&self, root: NodeId) -> Vec<u8> {
        let manifest = &self.manifests[&root];
        let mut bytes = Vec::with_capacity(manifest.size_bytes as usize);
        for index in 0..manifest.leaves.len() {
            for extent in manifest.leaf(&self, index).unwrap().extents {
                let len = extent.len as usize;
                match extent.source {
                    ExtentSource::Zero => bytes.resize(bytes.len() + len, 0),
                    ExtentSource::Chunk { id, offset, .. } => {
                        let chunk = &self.chunks[&id];
                        bytes.extend_from_slice(&chunk[offset as usize..offset as usize + len]);
                    }
                }
            }
        }
        bytes
    }
}

/// Bytes that look random and are the same in every run and release.
pub fn noise(name: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}
