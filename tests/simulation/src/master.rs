//! The datacenter: the real chunk store on a disk that can die, real responders, and a catalog that is taken to be durable.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use crash::{Rng, SimDisk, SimKv};
use dedup::{
    Chunk, ChunkId, Chunker, ChunkerParams, ManifestBuilder, NodeId, NodeSource, Piece, VersionId,
};
use dedup_protocol::control::{DatacenterAction, DatacenterControl};
use dedup_protocol::records::{Assignment, BootArtifacts, PoolAssignment, TreeRef, VersionRecord};
use dedup_protocol::server::{Content, PublishedVersion, Responder, StoredBytes};
use dedup_protocol::wire::{Message, PROTOCOL_MINOR, Refuse, RefuseCode, SignedBytes, Welcome};
use dedup_store::{ChunkStore, Encoding, StoreError, StoreOptions};

use crate::keys::{BEGIN_UNIX_S, BRANCH, Keys, REALM, id_key};

/// What is published, with the bytes it was made of.
#[derive(Debug, Clone)]
pub struct Published {
    pub id: VersionId,
    pub disk: Arc<Vec<u8>>,
    pub kernel: Arc<Vec<u8>>,
}

type Versions = Arc<RwLock<HashMap<VersionId, PublishedVersion>>>;

/// What responders read.
#[derive(Clone)]
pub struct Shared {
    store: Arc<ChunkStore>,
    versions: Versions,
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ReadError(#[from] StoreError);

impl NodeSource for Shared {
    type Error = ReadError;

    fn node(&self, id: NodeId) -> Result<Bytes, ReadError> {
        Ok(self.store.node(id)?)
    }
}

impl Content for Shared {
    fn version(&self, id: VersionId) -> Result<Option<PublishedVersion>, ReadError> {
        Ok(self.versions.read().unwrap().get(&id).cloned())
    }

    fn chunk(&self, id: ChunkId) -> Result<Bytes, ReadError> {
        Ok(self.store.chunk(id)?.bytes().clone())
    }

    fn stored_chunk(&self, id: ChunkId) -> Result<StoredBytes, ReadError> {
        let stored = self.store.chunk_compressed(id)?;
        Ok(StoredBytes {
            zstd: stored.encoding == Encoding::Zstd,
            bytes: stored.bytes,
        })
    }
}

/// What a stream of a connection is about.
enum Stream {
    Control(DatacenterControl),
    Answer(Box<Responder<Shared>>),
}

/// See the module.
pub struct Master {
    keys: Keys,
    disk: SimDisk,
    kv: SimKv,
    versions: Versions,
    assignment: Option<Assignment>,
    /// `None` while the process is dead.
    store: Option<Arc<ChunkStore>>,
    /// By link and stream. Of several links all but one are dead, and nobody here can know which.
    streams: BTreeMap<(u64, u64), Stream>,
    params: ChunkerParams,
}

impl Master {
    pub fn new(seed: u64, keys: Keys, chunk_bytes_min: u32) -> Self {
        let disk = SimDisk::new(seed);
        let min = chunk_bytes_min;
        let mut master = Self {
            keys,
            kv: SimKv::new(&disk),
            disk,
            versions: Versions::default(),
            assignment: None,
            store: None,
            streams: BTreeMap::new(),
            params: ChunkerParams::new(min, min * 2, min * 8).unwrap(),
        };
        master.start();
        master
    }

    pub fn start(&mut self) {
        let options = StoreOptions {
            pack_bytes: 256 << 10,
            zstd_level: 1,
            reserve_bytes: 0,
            handles_max: 8,
        };
        let (disk, kv) = (Arc::new(self.disk.clone()), Arc::new(self.kv.clone()));
        let store = ChunkStore::open(disk, kv, id_key(), REALM, options);
        self.store = Some(Arc::new(store.expect("a store opens after any death")));
    }

    /// The process, or the whole machine, is gone. What it had not committed may be gone as well.
    pub fn die(&mut self, rng: &mut Rng) {
        self.store = None;
        self.streams.clear();
        if rng.one_in(2) {
            self.disk = self.disk.clone_live();
            self.kv = self.kv.clone_live(&self.disk);
        } else {
            let seed = rng.bits();
            self.disk = self.disk.crash(seed);
            self.kv = self.kv.crash(seed, &self.disk);
        }
    }

    pub fn is_alive(&self) -> bool {
        self.store.is_some()
    }

    /// Lets the disk stop after so many more changes, as a kill in the middle of a publish does.
    pub fn stop_after(&self, changes: u64) {
        self.disk.stop_after(changes);
    }

    fn shared(&self) -> Option<Shared> {
        Some(Shared {
            store: Arc::clone(self.store.as_ref()?),
            versions: Arc::clone(&self.versions),
        })
    }

    fn put_tree(&self, bytes: &[u8]) -> Result<TreeRef, StoreError> {
        let store = self
            .store
            .as_ref()
            .expect("only a living process publishes");
        let writer = store.writer();
        let mut builder = ManifestBuilder::new(id_key(), self.params);
        let mut chunker = Chunker::new(self.params);
        let mut result = Ok(());
        let mut emit = |piece: Piece<'_>| match piece {
            Piece::Zero(len) => builder.push_zero(len),
            Piece::Data(data) => {
                let chunk = Chunk::new(&id_key(), Bytes::copy_from_slice(data));
                builder.push_chunk(chunk.id(), data.len() as u32);
                if result.is_ok() {
                    result = writer.put_chunk(&chunk).map(|_| ());
                }
            }
        };
        chunker.push_data(bytes, &mut emit);
        chunker.finish(&mut emit);
        result?;
        let (manifest, leaves) = builder.finish();
        let sealed = manifest.seal(&id_key());
        for (id, node) in leaves.into_iter().chain(sealed.nodes) {
            writer.put_node(id, &node)?;
        }
        Ok(TreeRef {
            root: sealed.root,
            size_bytes: bytes.len() as u64,
        })
    }

    /// Publishes a version; an error leaves none.
    pub fn publish(
        &mut self,
        number: u32,
        parent: Option<VersionId>,
        disk: Arc<Vec<u8>>,
        kernel: Arc<Vec<u8>>,
    ) -> Result<Published, StoreError> {
        let record = VersionRecord {
            realm: REALM,
            image: "desktop".into(),
            number,
            parent,
            created_unix_s: BEGIN_UNIX_S,
            disk: self.put_tree(&disk)?,
            params: self.params,
            boot: Some(BootArtifacts {
                kernel: self.put_tree(&kernel)?,
                initrd: None,
                root_argument: "root=UUID=0".into(),
                kernel_path: "/boot/vmlinuz".into(),
            }),
            os: None,
            data_bytes: disk.len() as u64,
        };
        self.store
            .as_ref()
            .expect("only a living process publishes")
            .commit()?;
        let signed = self.keys.publisher().sign(&record);
        let id = signed.id();
        let published = PublishedVersion {
            signed: signed.to_bytes().into(),
            record: Arc::new(record),
        };
        self.versions.write().unwrap().insert(id, published);
        Ok(Published { id, disk, kernel })
    }

    /// The branch is to run this; says it on every control stream: link, stream, message.
    pub fn assign(&mut self, pools: Vec<PoolAssignment>) -> Vec<(u64, u64, Message)> {
        let counter = self.assignment.as_ref().map_or(0, |a| a.counter) + 1;
        self.assignment = Some(Assignment {
            realm: REALM,
            branch: BRANCH,
            counter,
            issued_unix_s: BEGIN_UNIX_S,
            expires_unix_s: BEGIN_UNIX_S + 300 * 86_400,
            offline_grace_s: 86_400,
            pools,
        });
        let control = |stream: &Stream| matches!(stream, Stream::Control(_));
        self.streams
            .iter()
            .filter(|(_, stream)| control(stream))
            .map(|((link, stream), _)| (*link, *stream, self.signed()))
            .collect()
    }

    fn signed(&self) -> Message {
        let assignment = self.assignment.as_ref().expect("called after it was made");
        Message::Assign(SignedBytes {
            bytes: self.keys.publisher().sign(assignment).to_bytes(),
        })
    }

    /// A link is gone.
    pub fn hung_up(&mut self, link: u64) {
        self.streams.retain(|(of, _), _| *of != link);
    }

    /// Takes a frame; answers control frames at once. Requests are answered by [`Master::pull`].
    pub fn handle(&mut self, link: u64, stream: u64, frame: &[u8]) -> Vec<Message> {
        let stream = (link, stream);
        let Some(shared) = self.shared() else {
            return Vec::new();
        };
        let opened = self.streams.contains_key(&stream);
        if !opened && matches!(Message::decode(frame), Ok(Message::Hello(_))) {
            let control = Stream::Control(DatacenterControl::new());
            self.streams.insert(stream, control);
        }
        if let Some(Stream::Control(control)) = self.streams.get_mut(&stream) {
            let action = control
                .handle(frame)
                .expect("an honest branch's frames are due");
            let DatacenterAction::Greeted {
                assignment_counter, ..
            } = action
            else {
                return Vec::new();
            };
            let mut out = vec![self.welcome()];
            if self
                .assignment
                .as_ref()
                .is_some_and(|a| a.counter > assignment_counter)
            {
                out.push(self.signed());
            }
            return out;
        }
        assert!(!opened, "a request is one frame");
        let request = Message::decode(frame).expect("an honest branch's frames parse");
        match Responder::new(shared, &request, |_| true) {
            Ok(responder) => {
                self.streams
                    .insert(stream, Stream::Answer(Box::new(responder)));
                Vec::new()
            }
            Err(error) => panic!("an honest request was refused: {error}"),
        }
    }

    fn welcome(&self) -> Message {
        Message::Welcome(Welcome {
            minor: PROTOCOL_MINOR,
            software: "simulation".into(),
            now_unix_s: BEGIN_UNIX_S,
            endorsements: vec![self.keys.endorsement.clone()],
        })
    }

    /// The next frame of an answer: `None`, the stream is none of ours; `Some(None)`, the answer is whole.
    pub fn pull(&mut self, link: u64, stream: u64) -> Option<Option<Message>> {
        let stream = (link, stream);
        let Some(Stream::Answer(responder)) = self.streams.get_mut(&stream) else {
            return None;
        };
        let frame = match responder.next_frame() {
            Ok(frame) => frame,
            // The disk stopped under it: the process is about to die.
            Err(_) => Some(Message::Refuse(Refuse {
                code: RefuseCode::Busy,
                message: "dying".into(),
            })),
        };
        if frame.is_none() {
            self.streams.remove(&stream);
        }
        Some(frame)
    }
}
