//! Trees of snapshots and states that are being read: a snapshot may be dropped meanwhile, a generation forgotten; the content must stay.
//!
//! Invariant: whoever reads says so first and looks the row up second; a collection looks into the catalog first and here second. So a tree that
//! somebody reads is in one of the two looks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dedup::NodeId;
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::began::StateName;

use super::began::begin_key;
use super::lock;
use crate::catalog::CatalogError;
use crate::catalog::volumes::BeginRow;
use crate::datacenter::Datacenter;
use crate::problem::ManageError;

/// How many read each tree.
pub(super) type Reading = Arc<Mutex<HashMap<NodeId, u32>>>;

/// Keeps a tree from being collected while it lives.
pub struct TreeUse {
    reading: Reading,
    root: NodeId,
}

impl Drop for TreeUse {
    fn drop(&mut self) {
        let mut reading = lock(&self.reading);
        if let Some(count) = reading.get_mut(&self.root) {
            *count -= 1;
            if *count == 0 {
                reading.remove(&self.root);
            }
        }
    }
}

impl Datacenter {
    /// A snapshot's name for people and its disk, which stays while the answer's first part lives.
    pub(crate) fn use_snapshot(
        &self,
        volume: &str,
        number: u64,
    ) -> Result<(TreeUse, String, TreeRef), ManageError> {
        let (_, disk) = self.snapshot_disk(volume, number)?;
        let reading = Arc::clone(&self.volumes().reading);
        *lock(&reading).entry(disk.root).or_insert(0) += 1;
        let in_use = TreeUse {
            reading,
            root: disk.root,
        };
        // It might have been dropped before it was in use. Numbers are never given again, so it is the same one.
        let (name, disk) = self.snapshot_disk(volume, number)?;
        Ok((in_use, name, disk))
    }

    /// Has the tree that a generation began with stay while the answer lives. The row of it is to be looked up behind this; it never changes.
    pub(crate) fn use_state(&self, state: StateName) -> Result<Option<TreeUse>, CatalogError> {
        let key = begin_key(state);
        let begin: Option<BeginRow> = self.catalog().read(|tx| tx.get(&key))?;
        let Some(BeginRow { tree, .. }) = begin else {
            return Ok(None);
        };
        let reading = Arc::clone(&self.volumes().reading);
        *lock(&reading).entry(tree.root).or_insert(0) += 1;
        Ok(Some(TreeUse {
            reading,
            root: tree.root,
        }))
    }

    /// The trees that are being read. To be looked at behind the catalog.
    pub(crate) fn trees_in_use(&self) -> Vec<NodeId> {
        lock(&self.volumes().reading).keys().copied().collect()
    }
}
