//! What is damaged in the store, and which versions show it where.
//!
//! The store knows names; branches and people know versions. A trace walks the trees of all versions, each distinct leaf once. Where a
//! visible version shows a damaged chunk, a branch that may read that version can be asked for it by its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use datacenter_api::DamagedName;
use dedup::manifest::ManifestError;
use dedup::{ChunkId, Manifest, NodeId, VersionId};
use dedup_protocol::records::Tree;
use dedup_protocol::wire::{RESTORE_CHUNKS_MAX, Run, Wanted};
use dedup_store::{RecordKind, RecordName};

use crate::datacenter::Datacenter;
use crate::images::StoreNodes;
use crate::problem::{ManageError, describe};
use crate::roots::Root;

/// Damaged names shown one by one.
const SHOWN_MAX: usize = 100;
/// Places remembered of one version; with more damage than that, more is asked for when these are repaired.
const PLACES_MAX: usize = 4096;

/// Where a version shows a damaged chunk: leaf and extent.
type Place = (u32, u16);

/// What is damaged, and where it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// Damaged names and the versions that show them, `IMAGE@NUMBER`.
    names: BTreeMap<RecordName, BTreeSet<String>>,
    /// Places of damaged chunks in visible versions.
    places: BTreeMap<(VersionId, Tree), BTreeMap<Place, ChunkId>>,
}

impl Damage {
    /// How many names are damaged.
    pub fn count(&self) -> u64 {
        self.names.len() as u64
    }

    /// The first of them, for people.
    pub fn shown(&self) -> Vec<DamagedName> {
        self.names
            .iter()
            .take(SHOWN_MAX)
            .map(|(name, versions)| {
                let (kind, id) = match name.kind {
                    RecordKind::Chunk => ("chunk", ChunkId(name.id).to_string()),
                    RecordKind::Node => ("manifest node", NodeId(name.id).to_string()),
                };
                DamagedName {
                    kind: kind.into(),
                    id,
                    versions: versions.iter().cloned().collect(),
                }
            })
            .collect()
    }

    /// All versions that show any of them, `IMAGE@NUMBER`.
    pub fn versions(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.names.values().flatten().collect();
        all.into_iter().cloned().collect()
    }

    /// What a branch that may read `versions` is asked for, each chunk once.
    pub fn wanted(&self, versions: &[VersionId]) -> Vec<Wanted> {
        let mut asked = BTreeSet::new();
        let mut wanted = Vec::new();
        for ((version, tree), places) in &self.places {
            if !versions.contains(version) {
                continue;
            }
            let new = places.iter().filter(|(_, id)| asked.insert(**id));
            let runs: Vec<Run> = new
                .map(|((leaf, first), _)| Run {
                    leaf: *leaf,
                    first: *first,
                    count: 1,
                })
                .take(RESTORE_CHUNKS_MAX)
                .collect();
            if !runs.is_empty() {
                wanted.push(Wanted {
                    version: *version,
                    tree: *tree,
                    runs,
                });
            }
        }
        wanted
    }
}

/// Damaged chunks that a leaf shows, by extent.
type Hits = Arc<[(u16, ChunkId)]>;

struct Tracer<'a> {
    dc: &'a Datacenter,
    damage: Damage,
    leaves: HashMap<NodeId, Hits>,
}

impl Tracer<'_> {
    fn is_damaged(&self, name: &RecordName) -> bool {
        self.damage.names.contains_key(name)
    }

    fn note(&mut self, name: RecordName, root: &Root) {
        if let Some(versions) = self.damage.names.get_mut(&name) {
            versions.insert(root.name.clone());
        }
    }

    fn trace(&mut self, root: &Root) {
        let nodes = StoreNodes(self.dc);
        let manifest = match Manifest::load(&nodes, root.node) {
            Ok(manifest) => manifest,
            Err(ManifestError::Node { id, .. }) => return self.note(RecordName::node(id), root),
            Err(error) => {
                tracing::error!(
                    version = root.name,
                    error = describe(&error),
                    "a manifest cannot be read"
                );
                return;
            }
        };
        for (index, id) in manifest.leaves.iter().enumerate() {
            let name = RecordName::node(*id);
            if self.is_damaged(&name) {
                self.note(name, root);
                continue;
            }
            let hits = match self.leaves.get(id) {
                Some(hits) => Arc::clone(hits),
                None => {
                    let hits = self.hits(&manifest, index);
                    self.leaves.insert(*id, Arc::clone(&hits));
                    hits
                }
            };
            for (extent, chunk) in hits.iter() {
                self.note(RecordName::chunk(*chunk), root);
                // What only a volume shows no branch can be asked for by its place in a version.
                if let Some(key) = root.version.filter(|_| root.visible) {
                    let places = self.damage.places.entry(key).or_default();
                    if places.len() < PLACES_MAX {
                        places.insert((index as u32, *extent), *chunk);
                    }
                }
            }
        }
    }

    fn hits(&self, manifest: &Manifest, index: usize) -> Hits {
        let leaf = match manifest.leaf(&StoreNodes(self.dc), index) {
            Ok(leaf) => leaf,
            Err(error) => {
                tracing::error!(error = describe(&error), "a manifest leaf cannot be read");
                return Arc::from(Vec::new());
            }
        };
        let chunks = leaf.extents.iter().enumerate();
        let hits: Vec<(u16, ChunkId)> = chunks
            .filter_map(|(extent, e)| Some((u16::try_from(extent).ok()?, e.chunk()?)))
            .filter(|(_, id)| self.is_damaged(&RecordName::chunk(*id)))
            .collect();
        Arc::from(hits)
    }
}

impl Datacenter {
    /// Finds out which versions show what is damaged.
    pub fn trace_damage(&self) -> Result<Arc<Damage>, ManageError> {
        let names = self.store().damaged();
        let mut tracer = Tracer {
            dc: self,
            damage: Damage::default(),
            leaves: HashMap::new(),
        };
        if !names.is_empty() {
            // What these roots reach stays until all of it is walked, whoever is given up meanwhile.
            let _alone = self.upkeep().walking();
            tracer.damage.names = names
                .into_iter()
                .map(|name| (name, BTreeSet::new()))
                .collect();
            for root in self.roots()? {
                tracer.trace(&root);
            }
            tracing::error!(
                damaged = tracer.damage.count(),
                versions = tracer.damage.versions().join(", "),
                "stored chunks or manifest nodes are damaged; branches that hold them are asked, publishing the same disks again stores them anew"
            );
        }
        Ok(self.upkeep().set_damage(tracer.damage))
    }

    /// Traces the damage again if other names are damaged than those of the last trace; whether it did.
    pub(super) fn trace_damage_if_changed(&self) -> Result<bool, ManageError> {
        let traced = self.upkeep().damage();
        if traced.names.keys().eq(self.store().damaged().iter()) {
            return Ok(false);
        }
        self.trace_damage()?;
        Ok(true)
    }
}
