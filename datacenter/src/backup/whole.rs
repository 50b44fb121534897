//! Whether catalog and packs of a restored datacenter belong together: of each version, and of all that is kept of desktops' volumes, whether all its
//! content is there.
//!
//! Each distinct leaf is read once. It changes nothing; what is lacking is for the operator to decide about.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use dedup::{Manifest, NodeId, NodeSource};
use dedup_protocol::records::{Tree, VersionRecord};
use dedup_protocol::trust::Signed;
use dedup_store::{ChunkStore, StoreError};

use super::restore::RestoreError;
use crate::catalog::Catalog;
use crate::catalog::rows::VersionRow;
use crate::roots::volume_roots;

/// Versions looked at in one transaction.
const VERSIONS_AT_ONCE: usize = 64;

/// A version or volume whose content is not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// `IMAGE@NUMBER`, or a desktop's name and its volume's id.
    pub version: String,
    /// Pieces of its trees, and chunks, that cannot be read or are not there; those behind a piece of a tree are not counted.
    pub pieces: u64,
}

struct Nodes<'a>(&'a ChunkStore);

impl NodeSource for Nodes<'_> {
    type Error = StoreError;

    fn node(&self, id: NodeId) -> Result<Bytes, StoreError> {
        self.0.node(id)
    }
}

/// Whether catalog and packs belong together: versions and volumes of which not all is in the store. Each distinct leaf is read once.
pub fn lacking(catalog: &Catalog, store: &ChunkStore) -> Result<Vec<Lacking>, RestoreError> {
    let mut lacking = Vec::new();
    let mut walk = Walk {
        store,
        whole: HashSet::new(),
    };
    let mut after = None;
    loop {
        let rows =
            catalog.read(|tx| tx.list::<VersionRow>(&[], after.as_ref(), VERSIONS_AT_ONCE))?;
        let Some((last, _)) = rows.last() else { break };
        after = Some(*last);
        for (_, row) in &rows {
            let record = Signed::<VersionRecord>::from_bytes(&row.signed)
                .and_then(|signed| signed.open_own());
            let pieces = match record {
                Ok(record) => walk.version(&record)?,
                Err(_) => 1,
            };
            if pieces > 0 {
                lacking.push(Lacking {
                    version: format!("{}@{}", row.image, row.number),
                    pieces,
                });
            }
        }
    }
    let mut volumes: BTreeMap<String, u64> = BTreeMap::new();
    for root in catalog.read(volume_roots)? {
        let pieces = walk.tree(root.node)?;
        if pieces > 0 {
            *volumes.entry(root.name).or_default() += pieces;
        }
    }
    let volumes = volumes.into_iter();
    lacking.extend(volumes.map(|(version, pieces)| Lacking { version, pieces }));
    Ok(lacking)
}

struct Walk<'a> {
    store: &'a ChunkStore,
    /// Leaves of which everything is there.
    whole: HashSet<NodeId>,
}

impl Walk<'_> {
    fn version(&mut self, record: &VersionRecord) -> Result<u64, StoreError> {
        let mut pieces = 0;
        for which in [Tree::Disk, Tree::Kernel, Tree::Initrd] {
            if let Some(tree) = record.tree(which) {
                pieces += self.tree(tree.root)?;
            }
        }
        Ok(pieces)
    }

    fn tree(&mut self, root: NodeId) -> Result<u64, StoreError> {
        let nodes = Nodes(self.store);
        let Ok(tree) = Manifest::load(&nodes, root) else {
            return Ok(1);
        };
        let mut pieces = 0;
        for (index, id) in tree.leaves.iter().enumerate() {
            if self.whole.contains(id) {
                continue;
            }
            let Ok(leaf) = tree.leaf(&nodes, index) else {
                pieces += 1;
                continue;
            };
            let before = pieces;
            for (chunk, _) in leaf.chunks() {
                pieces += u64::from(!self.store.contains_chunk(chunk)?);
            }
            if pieces == before {
                self.whole.insert(*id);
            }
        }
        Ok(pieces)
    }
}
