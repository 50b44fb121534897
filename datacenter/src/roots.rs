//! What a collection of the chunk store must keep: the trees of all versions that are visible or can be had back.
//!
//! Everything that refers to content does so through a version: boot profiles name places of a version's disk, updates are between two
//! versions, assignments and grants name versions, a running desktop reads its version. A publish has its version in the catalog before
//! its hold on the store ends (decision 0035). Whoever reads a version for longer than a moment says so ([`Datacenter::use_version`]);
//! a version in use is not given up, deleted or not.
//!
//! Whatever comes to refer to content otherwise (a desktop's snapshot) adds its trees to [`Datacenter::roots`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use dedup::{NodeId, VersionId};
use dedup_protocol::records::Tree;

use crate::catalog::rows::{DeletedVersionRow, VersionRow};
use crate::datacenter::Datacenter;
use crate::images::record_of;
use crate::problem::ManageError;

/// How many use each version.
pub(crate) type InUse = Arc<Mutex<HashMap<VersionId, u32>>>;

fn lock(in_use: &InUse) -> MutexGuard<'_, HashMap<VersionId, u32>> {
    // A count is changed in one step.
    in_use.lock().unwrap_or_else(|e| e.into_inner())
}

/// Keeps a version from being given up while it lives.
pub struct VersionUse {
    in_use: InUse,
    version: VersionId,
}

impl VersionUse {
    /// Which version.
    pub fn version(&self) -> VersionId {
        self.version
    }
}

impl Drop for VersionUse {
    fn drop(&mut self) {
        let mut in_use = lock(&self.in_use);
        if let Some(count) = in_use.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                in_use.remove(&self.version);
            }
        }
    }
}

/// A tree that content is kept for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Whose it is, for people: `IMAGE@NUMBER`.
    pub name: String,
    /// Which version.
    pub version: VersionId,
    /// Which of its trees.
    pub tree: Tree,
    /// Its root node.
    pub node: NodeId,
    /// Whether branches may be told of it: not of a deleted version's.
    pub visible: bool,
}

impl Datacenter {
    /// Says that a version is going to be read. Look it up after this.
    pub fn use_version(&self, version: VersionId) -> VersionUse {
        *lock(self.in_use()).entry(version).or_insert(0) += 1;
        VersionUse {
            in_use: Arc::clone(self.in_use()),
            version,
        }
    }

    pub(crate) fn is_version_in_use(&self, version: VersionId) -> bool {
        lock(self.in_use()).contains_key(&version)
    }

    pub(crate) fn versions_in_use(&self) -> Vec<VersionId> {
        lock(self.in_use()).keys().copied().collect()
    }

    /// The trees of all versions, visible and deleted ones.
    pub fn roots(&self) -> Result<Vec<Root>, ManageError> {
        const ALL: usize = usize::MAX / 2;
        let (visible, deleted) = self.catalog().read(|tx| {
            let visible = tx.list::<VersionRow>(&[], None, ALL)?;
            let deleted = tx.list::<DeletedVersionRow>(&[], None, ALL)?;
            Ok::<_, crate::catalog::CatalogError>((visible, deleted))
        })?;
        let mut roots = Vec::new();
        let visible = visible.into_iter().map(|(id, row)| (id, row, true));
        let deleted = deleted
            .into_iter()
            .map(|(id, row)| (id, row.version, false));
        for (version, row, visible) in visible.chain(deleted) {
            // A record that cannot be read ends this: what it refers to cannot be told.
            let record = record_of(version, &row)?;
            for tree in [Tree::Disk, Tree::Kernel, Tree::Initrd] {
                roots.extend(record.tree(tree).map(|found| Root {
                    name: format!("{}@{}", row.image, row.number),
                    version,
                    tree,
                    node: found.root,
                    visible,
                }));
            }
        }
        Ok(roots)
    }
}
