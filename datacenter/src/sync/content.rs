//! What links read: versions from the catalog, nodes and chunks from the store, with the nodes that are read again and again kept in
//! memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dedup::{ChunkId, NodeId, NodeSource, VersionId};
use dedup_protocol::server::{Content, PublishedVersion, StoredBytes};
use dedup_protocol::state::began::StateName;
use dedup_protocol::trust::TrustError;
use dedup_store::{Encoding, StoreError};

use crate::Datacenter;

/// Manifest nodes kept in memory, in bytes: a 10 GiB image has 8 MB of them, and many branches ask for the same.
const NODE_CACHE_BYTES: usize = 128 << 20;

/// Why content could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog.
    #[error("catalog")]
    Catalog(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A record in it.
    #[error(transparent)]
    Record(#[from] TrustError),
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct SharedContent {
    dc: Arc<Datacenter>,
    nodes: Arc<Mutex<NodeCache>>,
}

/// Two generations: when the young one is full it becomes the old one. What is asked for moves back to the young.
#[derive(Default)]
struct NodeCache {
    young: HashMap<NodeId, Bytes>,
    old: HashMap<NodeId, Bytes>,
    young_bytes: usize,
}

impl NodeCache {
    fn find(&mut self, id: &NodeId) -> Option<Bytes> {
        if let Some(bytes) = self.young.get(id) {
            return Some(bytes.clone());
        }
        let bytes = self.old.remove(id)?;
        self.keep(*id, bytes.clone());
        Some(bytes)
    }

    fn keep(&mut self, id: NodeId, bytes: Bytes) {
        self.young_bytes += bytes.len();
        self.young.insert(id, bytes);
        if self.young_bytes > NODE_CACHE_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }
}

impl SharedContent {
    /// Reads from `dc`.
    pub fn new(dc: Arc<Datacenter>) -> Self {
        Self {
            dc,
            nodes: Arc::default(),
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, NodeCache> {
        self.nodes.lock().expect("no panic under this lock")
    }
}

impl NodeSource for SharedContent {
    type Error = ContentError;

    fn node(&self, id: NodeId) -> Result<Bytes, ContentError> {
        if let Some(bytes) = self.cache().find(&id) {
            return Ok(bytes);
        }
        let bytes = self.dc.store().node(id)?;
        self.cache().keep(id, bytes.clone());
        Ok(bytes)
    }
}

impl Content for SharedContent {
    fn version(&self, id: VersionId) -> Result<Option<PublishedVersion>, ContentError> {
        if let Some(state) = StateName::of_version(id) {
            let found = self.dc.state_as_version(state);
            return found.map_err(|e| ContentError::Catalog(Box::new(e)));
        }
        let signed = self
            .dc
            .version(id)
            .map_err(|e| ContentError::Catalog(Box::new(e)))?;
        let Some(signed) = signed else {
            return Ok(None);
        };
        Ok(Some(PublishedVersion {
            signed: signed.to_bytes().into(),
            record: Arc::new(signed.open_own()?),
        }))
    }

    fn chunk(&self, id: ChunkId) -> Result<Bytes, ContentError> {
        let chunk = self.dc.store().chunk(id).map_err(alarmed)?;
        Ok(chunk.bytes().clone())
    }

    fn stored_chunk(&self, id: ChunkId) -> Result<StoredBytes, ContentError> {
        let stored = self.dc.store().chunk_compressed(id).map_err(alarmed)?;
        Ok(StoredBytes {
            zstd: stored.encoding == Encoding::Zstd,
            bytes: stored.bytes,
        })
    }
}

/// A published chunk that cannot be read is for IT to know, whoever asked for it.
fn alarmed(error: StoreError) -> ContentError {
    tracing::error!(error = %error, "a published chunk cannot be read; run `splice version verify`, and publish its disk again");
    error.into()
}
