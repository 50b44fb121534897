//! What a collection of the chunk store must keep: the trees of all versions that are visible or can be had back, and all that is kept of
//! desktops' volumes.
//!
//! Of versions everything that refers to content does so through them: boot profiles name places of a version's disk, updates are between two
//! versions, assignments and grants name versions, a running desktop reads its version. A publish has its version in the catalog before
//! its hold on the store ends (decision 0035). Whoever reads a version for longer than a moment says so ([`Datacenter::use_version`]);
//! a version in use is not given up, deleted or not.
//!
//! Of volumes these are states (a volume's own and its forks'), the chunks of parts that are staged, snapshots, and what generations began with of
//! which a fork may come. A state's row is written while a hold keeps what it names, and a row that goes had a tree that another row of the same
//! transaction has, or that nobody wants: so rows that are read in one look, behind the collection's beginning, are enough.
//!
//! Whatever comes to refer to content otherwise adds its trees to [`Datacenter::roots`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use dedup::{DesktopId, NodeId, VersionId};
use dedup_protocol::records::Tree;
use dedup_protocol::state::writeback::{LineRow, Snapshot};

use crate::catalog::rows::{DeletedVersionRow, VersionRow};
use crate::catalog::volumes::{BeginRow, PartRow, VolumeRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::images::record_of;
use crate::problem::ManageError;

/// All rows of a table.
const ALL: usize = usize::MAX / 2;
/// Parts of segments that are looked at at once: 32 MiB of ranges.
const PARTS_PAGE: usize = 256;

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
    /// Whose it is, for people: `IMAGE@NUMBER`, or a desktop's name and its volume's id.
    pub name: String,
    /// Which version, and which of its trees; none of what a volume refers to.
    pub version: Option<(VersionId, Tree)>,
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

    /// The trees of all versions, visible and deleted ones, and of all volumes.
    pub fn roots(&self) -> Result<Vec<Root>, ManageError> {
        let (visible, deleted, mut roots) = self.catalog().read(|tx| {
            let visible = tx.list::<VersionRow>(&[], None, ALL)?;
            let deleted = tx.list::<DeletedVersionRow>(&[], None, ALL)?;
            Ok::<_, CatalogError>((visible, deleted, volume_roots(tx)?))
        })?;
        // Behind the catalog: what is read is in one of the two looks.
        roots.extend(self.trees_in_use().into_iter().map(|node| Root {
            name: "a snapshot that is being read".into(),
            version: None,
            node,
            visible: false,
        }));
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
                    version: Some((version, tree)),
                    node: found.root,
                    visible,
                }));
            }
        }
        Ok(roots)
    }
}

/// The trees that rows of volumes refer to, each once.
pub(crate) fn volume_roots(tx: &mut Tx<'_>) -> Result<Vec<Root>, CatalogError> {
    let mut names = HashMap::new();
    for (id, row) in tx.list::<VolumeRow>(&[], None, ALL)? {
        names.insert(id, row.desktop);
    }
    let mut trees: HashMap<NodeId, DesktopId> = HashMap::new();
    for (key, row) in tx.list::<LineRow>(&[], None, ALL)? {
        trees.extend(row.disks.iter().map(|tree| (tree.root, key.volume)));
    }
    // Parts are many and long; a page at a time is in memory.
    let mut after = None;
    loop {
        let page = tx.list::<PartRow>(&[], after.as_ref(), PARTS_PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        let chunks = page.iter().filter_map(|(key, row)| {
            let tree = row.chunks?;
            Some((tree.root, key.line.volume))
        });
        trees.extend(chunks);
    }
    for (key, row) in tx.list::<Snapshot>(&[], None, ALL)? {
        trees.extend(row.disks.iter().map(|tree| (tree.root, key.volume)));
    }
    for (key, row) in tx.list::<BeginRow>(&[], None, ALL)? {
        trees.insert(row.tree.root, key.volume);
    }
    let roots = trees.into_iter().map(|(node, volume)| {
        let desktop = names.get(&volume).map_or("a desktop", String::as_str);
        Root {
            name: format!("{desktop} (volume {volume})"),
            version: None,
            node,
            visible: false,
        }
    });
    Ok(roots.collect())
}
