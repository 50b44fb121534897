//! Versions as the branch uses them: which are wanted, which can boot, how much of each is resident.
//!
//! A version *can boot* when the manifests of all its trees are here; its chunks may still be away. Content maps are loaded once and
//! shared by everything that reads the version. States that volumes' overlays lie over are read as versions are, under names of their own
//! ([`StateName`]); they have a disk only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, RwLock};

use datacenter_api::VersionResidency;
use dedup::{DesktopId, NodeId, VersionId};
use dedup_protocol::records::{Assignment, Tree, VersionRecord};
use dedup_protocol::state::began::StateName;

use crate::cache::Cache;
use crate::catalog::{Catalog, CatalogError};
use crate::content_map::ContentMap;
use crate::fetch::queue::TreeHandle;
use crate::keep::{Need, Rank, Ranks};
use crate::profile::plan;
use crate::ready::{FIRMWARE_BYTES, head};
use crate::tally::Tally;

/// Every tree a version can have, in the order in which a boot needs them.
pub const TREES: [Tree; 3] = [Tree::Kernel, Tree::Initrd, Tree::Disk];

/// See the module.
pub struct Versions {
    catalog: Catalog,
    maps: Mutex<HashMap<(VersionId, Tree), Arc<ContentMap>>>,
    assignment: RwLock<Option<Arc<Assignment>>>,
    tallies: Mutex<HashMap<VersionId, Tally>>,
    /// Versions that something is being decoded against.
    held: Mutex<Vec<VersionId>>,
}

/// Keeps a version's chunks from eviction as if it were assigned, for as long as it lives.
pub struct Held {
    versions: Arc<Versions>,
    version: VersionId,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.versions.held.lock().expect("no panic under this lock");
        if let Some(at) = held.iter().position(|id| *id == self.version) {
            held.swap_remove(at);
        }
    }
}

impl Versions {
    /// Takes up what the catalog knows.
    pub fn open(catalog: Catalog) -> Result<Self, CatalogError> {
        let assignment = catalog.assignment()?.map(Arc::new);
        Ok(Self {
            catalog,
            maps: Mutex::default(),
            assignment: RwLock::new(assignment),
            tallies: Mutex::default(),
            held: Mutex::default(),
        })
    }

    /// Keeps a version's chunks from eviction until the answer is dropped.
    pub fn hold(self: &Arc<Self>, version: VersionId) -> Held {
        let mut held = self.held.lock().expect("no panic under this lock");
        held.push(version);
        Held {
            versions: Arc::clone(self),
            version,
        }
    }

    /// The catalog under it.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The assignment being followed.
    pub fn assignment(&self) -> Option<Arc<Assignment>> {
        self.assignment
            .read()
            .expect("no panic under this lock")
            .clone()
    }

    /// The assignment changed.
    pub fn set_assignment(&self, assignment: Assignment) {
        *self.assignment.write().expect("no panic under this lock") = Some(Arc::new(assignment));
    }

    /// Versions that the assignment names, each once: current ones first. The flag says whether it is to be made whole here.
    pub fn wanted(&self) -> Vec<(VersionId, bool)> {
        let Some(assignment) = self.assignment() else {
            return Vec::new();
        };
        let mut wanted: Vec<(VersionId, bool)> = Vec::new();
        let mut add = |id: VersionId, whole: bool| match wanted.iter_mut().find(|(w, _)| *w == id) {
            Some((_, was_whole)) => *was_whole |= whole,
            None => wanted.push((id, whole)),
        };
        for pool in &assignment.pools {
            add(pool.version, pool.prestage);
        }
        for pool in &assignment.pools {
            for pinned in &pool.pinned {
                add(*pinned, true);
            }
        }
        wanted
    }

    /// Versions that desktops which are checked out to this branch began with. What cannot be read is as good as none: it is looked at again.
    pub fn checked_out(&self) -> Vec<VersionId> {
        let kept = self.catalog.checkouts().unwrap_or_default();
        kept.iter().map(|kept| kept.checkout.version).collect()
    }

    /// Whether all manifests of `record` are here.
    pub fn can_boot(&self, record: &VersionRecord) -> Result<bool, CatalogError> {
        for tree in TREES.iter().filter_map(|t| record.tree(*t)) {
            if self.catalog.manifest(tree.root)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A tree of a version that can boot; `None` if the version lacks it or its manifest is not here.
    pub fn tree(&self, version: VersionId, tree: Tree) -> Result<Option<TreeHandle>, CatalogError> {
        let handle = |map| TreeHandle { version, tree, map };
        let mut maps = self.maps.lock().expect("no panic under this lock");
        if let Some(map) = maps.get(&(version, tree)) {
            return Ok(Some(handle(Arc::clone(map))));
        }
        let Some(root) = self.root(version, tree)? else {
            return Ok(None);
        };
        let Some(manifest) = self.catalog.manifest(root)? else {
            return Ok(None);
        };
        let map = ContentMap::load(&manifest, &self.catalog).map_err(|e| CatalogError::Row {
            key: format!("manifest {root}"),
            reason: e.to_string(),
        })?;
        let map = Arc::new(map);
        maps.insert((version, tree), Arc::clone(&map));
        Ok(Some(handle(map)))
    }

    /// The root of a tree of a version, or of a state.
    fn root(&self, version: VersionId, tree: Tree) -> Result<Option<NodeId>, CatalogError> {
        let Some(name) = StateName::of_version(version) else {
            let record = self.catalog.version(version)?;
            let found = record.and_then(|record| record.tree(tree));
            return Ok(found.map(|found| found.root));
        };
        let state = self.catalog.state(name.desktop)?;
        let state = state.filter(|state| state.name() == name && tree == Tree::Disk);
        Ok(state.map(|state| state.disk.root))
    }

    /// Forgets what a volume's overlay lay over, which is removed.
    pub fn forget_state(&self, volume: DesktopId) -> Result<(), CatalogError> {
        self.catalog.forget_state(volume)?;
        let mut maps = self.maps.lock().expect("no panic under this lock");
        maps.retain(|(version, _), _| {
            StateName::of_version(*version).is_none_or(|state| state.desktop != volume)
        });
        Ok(())
    }

    /// All trees of a version whose manifests are here.
    pub fn trees(&self, version: VersionId) -> Result<Vec<TreeHandle>, CatalogError> {
        let mut trees = Vec::new();
        for tree in TREES {
            trees.extend(self.tree(version, tree)?);
        }
        Ok(trees)
    }

    /// What of the cache is needed here, and how much: by the assignment, by what is being decoded, and by desktops.
    ///
    /// # Errors
    /// When the desktops cannot be read. A version that cannot be read needs nothing: it is fetched again later.
    pub fn needs(&self) -> Result<Vec<Need>, CatalogError> {
        let mut needs = Vec::new();
        let wanted = self.wanted();
        for (version, whole) in &wanted {
            let rank = if *whole { Rank::Whole } else { Rank::Spare };
            self.need_all(*version, rank, &mut needs);
            self.need_boot(*version, &mut needs);
        }
        let held = self.held.lock().expect("no panic under this lock").clone();
        for version in held {
            self.need_all(version, Rank::Whole, &mut needs);
        }
        let checkouts = self.catalog.checkouts().unwrap_or_default();
        let mut under: HashMap<VersionId, Rank> = HashMap::new();
        let trials = self.catalog.trials()?;
        for desktop in self.catalog.desktops()?.into_iter().chain(trials) {
            let Ok(version) = desktop.version.parse::<VersionId>() else {
                continue;
            };
            let system = desktop.system_volume();
            let mut checkouts = checkouts.iter();
            let rank = if desktop.is_up() || desktop.trial {
                Rank::Open
            } else if checkouts.any(|kept| kept.checkout.system == system) {
                // It is to start where there is no line.
                Rank::Whole
            } else {
                Rank::Spare
            };
            for volume in desktop.volumes() {
                // One that cannot be read needs nothing, as a version.
                let state = self.catalog.state_under(volume).unwrap_or_default();
                if let Some(state) = state {
                    self.need_all(state.name().as_version(), rank, &mut needs);
                }
            }
            let known = under.entry(version).or_insert(rank);
            *known = rank.max(*known);
        }
        for (version, rank) in under {
            if wanted.iter().all(|(assigned, _)| *assigned != version) {
                self.need_all(version, rank, &mut needs);
            }
        }
        Ok(needs)
    }

    fn need_all(&self, version: VersionId, rank: Rank, needs: &mut Vec<Need>) {
        for tree in self.trees(version).unwrap_or_default() {
            let only = None;
            needs.push(Need { tree, only, rank });
        }
    }

    /// What boots of an assigned version read: kernel and initrd, the partition table, and what its profile names.
    fn need_boot(&self, version: VersionId, needs: &mut Vec<Need>) {
        // A profile that cannot be read is a hint less.
        let profile = self.catalog.profile(version).unwrap_or_default();
        let rank = Rank::Boot;
        for tree in self.trees(version).unwrap_or_default() {
            if tree.tree != Tree::Disk {
                let only = None;
                needs.push(Need { tree, only, rank });
                continue;
            }
            let mut order: Vec<u32> = head(&tree.map, FIRMWARE_BYTES)
                .map(|index| index as u32)
                .collect();
            if let Some(profile) = &profile {
                order.extend(plan::order(&tree.map, &profile.entries).iter());
            }
            let only = Some(order.into());
            needs.push(Need { tree, only, rank });
        }
    }

    /// The ranks of what is needed. What cannot be read is told, and needs nothing.
    pub fn ranks(&self) -> Ranks {
        let needs = self.needs().unwrap_or_else(|error| {
            tracing::error!(
                error = crate::desktop::error_line(&error),
                "what is needed cannot be read: the cache evicts the coldest"
            );
            Vec::new()
        });
        Ranks::new(&needs)
    }

    /// How much of a version is resident.
    pub fn residency(
        &self,
        version: VersionId,
        record: &VersionRecord,
        cache: &Cache,
    ) -> Result<VersionResidency, CatalogError> {
        let mut residency = VersionResidency {
            version: version.to_string(),
            image: record.image.clone(),
            number: record.number,
            ..VersionResidency::default()
        };
        let trees = self.trees(version)?;
        let figures = {
            let mut tallies = self.tallies.lock().expect("no panic under this lock");
            tallies.entry(version).or_default().update(&trees, cache)
        };
        residency.total_chunks = figures.total_chunks;
        residency.total_bytes = figures.total_bytes;
        residency.resident_chunks = figures.resident_chunks;
        residency.resident_bytes = figures.resident_bytes;
        residency.complete =
            residency.resident_chunks == residency.total_chunks && self.can_boot(record)?;
        Ok(residency)
    }
}
