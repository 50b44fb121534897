//! Two small published versions of one image and one of another, always the same, as a datacenter would answer from them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use dedup::manifest::LEAF_BYTES;
use dedup::{
    Chunk, ChunkId, ChunkerParams, IdKey, Manifest, ManifestBuilder, NodeId, NodeSource, RealmId,
    VersionId,
};
use dedup_protocol::records::{BootArtifacts, TreeRef, VersionRecord};
use dedup_protocol::server::{Content, PublishedVersion, StoredBytes};
use dedup_protocol::trust::SigningKey;

/// The realm of all of it.
pub const REALM: RealmId = RealmId(*b"realm of fuzzing");

/// What was asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error("not among the fixed content")]
pub struct Absent;

/// A published version with its disk.
#[derive(Debug)]
pub struct Version {
    /// Its name.
    pub id: VersionId,
    /// As a catalog has it.
    pub published: PublishedVersion,
    /// Its disk.
    pub disk: Manifest,
}

/// The content.
#[derive(Debug)]
pub struct Fixed {
    /// Under which everything is named.
    pub key: IdKey,
    /// The base, what follows it, and a version of another image.
    pub versions: Vec<Version>,
    nodes: HashMap<NodeId, Bytes>,
    chunks: HashMap<ChunkId, Bytes>,
}

impl Fixed {
    /// The one there is.
    pub fn content() -> &'static Self {
        static FIXED: OnceLock<Fixed> = OnceLock::new();
        FIXED.get_or_init(Self::make)
    }

    /// Encoded manifest node `id`.
    pub fn node(&self, id: NodeId) -> Option<Bytes> {
        self.nodes.get(&id).cloned()
    }

    /// Plain bytes of chunk `id`.
    pub fn chunk(&self, id: ChunkId) -> Option<Bytes> {
        self.chunks.get(&id).cloned()
    }

    fn make() -> Self {
        let mut fixed = Self {
            key: IdKey::new(*b"the key of the realm of fuzzing."),
            versions: Vec::new(),
            nodes: HashMap::new(),
            chunks: HashMap::new(),
        };
        let (signing, _) = SigningKey::generate();
        let base = fixed.disk(&[(0, 40), (40, 40), (80, 20)]);
        let next = fixed.disk(&[(0, 40), (140, 40), (80, 20), (200, 5)]);
        let other = fixed.disk(&[(300, 10)]);
        let kernel = fixed.tree(&[(400, 3)]);
        for (image, number, disk) in [
            ("desktop", 1, base),
            ("desktop", 2, next),
            ("kiosk", 1, other),
        ] {
            let parent = fixed.versions.last().filter(|_| number > 1).map(|v| v.id);
            let record = VersionRecord {
                realm: REALM,
                image: image.into(),
                number,
                parent,
                created_unix_s: 1_780_000_000,
                disk: fixed.seal(&disk),
                params: disk.params,
                boot: (number > 1).then(|| BootArtifacts {
                    kernel,
                    initrd: None,
                    root_argument: "root=UUID=1".into(),
                    kernel_path: "/boot/vmlinuz".into(),
                }),
                os: None,
                data_bytes: 1,
            };
            let signed = signing.sign(&record);
            fixed.versions.push(Version {
                id: signed.id(),
                published: PublishedVersion {
                    signed: signed.to_bytes().into(),
                    record: Arc::new(record),
                },
                disk,
            });
        }
        fixed
    }

    /// One leaf for each of `leaves`: (first chunk's seed, number of chunks), a gap of zeros, and one chunk across its end.
    fn disk(&mut self, leaves: &[(u32, u32)]) -> Manifest {
        let mut builder = ManifestBuilder::new(self.key.clone(), ChunkerParams::default());
        for (index, &(first, count)) in (1..).zip(leaves) {
            let mut filled = 0;
            for seed in first..first + count {
                let chunk = self.make_chunk(seed);
                builder.push_chunk(chunk.id(), chunk.bytes().len() as u32);
                filled += chunk.bytes().len() as u64;
            }
            if index < leaves.len() as u64 {
                let across = self.make_chunk(1000);
                // What the last chunk spilled into this leaf, 100 bytes, is already there.
                let spilled = if index > 1 {
                    across.bytes().len() as u64 - 100
                } else {
                    0
                };
                builder.push_zero(LEAF_BYTES - 100 - filled - spilled);
                builder.push_chunk(across.id(), across.bytes().len() as u32);
            }
        }
        let (disk, nodes) = builder.finish();
        self.keep(nodes);
        disk
    }

    fn tree(&mut self, leaves: &[(u32, u32)]) -> TreeRef {
        let disk = self.disk(leaves);
        self.seal(&disk)
    }

    fn seal(&mut self, disk: &Manifest) -> TreeRef {
        let sealed = disk.seal(&self.key);
        self.keep(sealed.nodes);
        TreeRef {
            root: sealed.root,
            size_bytes: disk.size_bytes,
        }
    }

    fn keep(&mut self, nodes: Vec<(NodeId, Vec<u8>)>) {
        let nodes = nodes.into_iter().map(|(id, bytes)| (id, bytes.into()));
        self.nodes.extend(nodes);
    }

    /// 300 to 4,395 bytes; every third does not shrink.
    fn make_chunk(&mut self, seed: u32) -> Chunk {
        let len = 300 + seed.wrapping_mul(2_654_435_761) as usize % 4096;
        let bytes = if seed.is_multiple_of(3) {
            let mut noise = vec![0; len];
            blake3::Hasher::new()
                .update(&seed.to_le_bytes())
                .finalize_xof()
                .fill(&mut noise);
            noise
        } else {
            format!("chunk {seed} ").into_bytes().repeat(500)[..len].to_vec()
        };
        let chunk = Chunk::new(&self.key, bytes.into());
        self.chunks.insert(chunk.id(), chunk.bytes().clone());
        chunk
    }
}

impl NodeSource for &Fixed {
    type Error = Absent;

    fn node(&self, id: NodeId) -> Result<Bytes, Absent> {
        Fixed::node(self, id).ok_or(Absent)
    }
}

impl Content for &Fixed {
    fn version(&self, id: VersionId) -> Result<Option<PublishedVersion>, Absent> {
        let found = self.versions.iter().find(|version| version.id == id);
        Ok(found.map(|version| version.published.clone()))
    }

    fn chunk(&self, id: ChunkId) -> Result<Bytes, Absent> {
        Fixed::chunk(self, id).ok_or(Absent)
    }

    fn stored_chunk(&self, id: ChunkId) -> Result<StoredBytes, Absent> {
        let plain = Content::chunk(self, id)?;
        let packed = zstd::bulk::compress(&plain, 1).map_err(|_| Absent)?;
        Ok(match packed.len() < plain.len() {
            true => StoredBytes {
                zstd: true,
                bytes: packed.into(),
            },
            false => StoredBytes {
                zstd: false,
                bytes: plain,
            },
        })
    }
}
