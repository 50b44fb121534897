//! Images and versions: creating, listing, comparing, and reading a version back.
//!
//! Nothing here changes a version; publishing is in [`crate::publish`], deleting in [`crate::retain`].

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use datacenter_api::{
    BootSummary, ChunkSizes, DamagedItem, Image, Phase, TreeSummary, VerifyResult, Version,
    VersionDiff, check_name,
};
use dedup::diff::changed_leaves;
use dedup::manifest::ManifestError;
use dedup::{ChunkId, ChunkerParams, Leaf, Manifest, NodeSource, VersionId};
use dedup_protocol::records::{Tree, TreeRef, VersionRecord};
use dedup_protocol::trust::Signed;
use dedup_store::{RecordName, StoreError};

use crate::assign::resolve;
use crate::catalog::rows::{BootProfileRow, ImageRow, NumberKey, VersionNumberRow, VersionRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::operations::Meter;
use crate::problem::{ManageError, describe};
use crate::roots::VersionUse;
use crate::update::Pair;

/// Average chunk size unless asked otherwise, in bytes.
pub const CHUNK_AVG_BYTES: u64 = 16 << 10;

/// Damaged items listed one by one; the rest is counted.
const DAMAGED_SHOWN_MAX: usize = 100;

fn sizes(params: &ChunkerParams) -> ChunkSizes {
    ChunkSizes {
        min: params.min,
        avg: params.avg,
        max: params.max,
    }
}

fn show_image(name: &str, row: &ImageRow) -> Image {
    Image {
        name: name.to_owned(),
        chunk_sizes: sizes(&row.params),
        created_unix_s: row.created_unix_s,
        latest: (row.latest > 0).then_some(row.latest),
    }
}

fn show_tree(tree: &TreeRef) -> TreeSummary {
    TreeSummary {
        root: tree.root.to_string(),
        size_bytes: tree.size_bytes,
    }
}

fn show_version(id: VersionId, row: &VersionRow) -> Result<Version, ManageError> {
    let record = record_of(id, row)?;
    Ok(Version {
        id: id.to_string(),
        parent: record.parent.map(|p| p.to_string()),
        created_unix_s: record.created_unix_s,
        disk: show_tree(&record.disk),
        data_bytes: record.data_bytes,
        chunk_sizes: sizes(&record.params),
        boot: record.boot.as_ref().map(|boot| BootSummary {
            kernel_path: boot.kernel_path.clone(),
            kernel: show_tree(&boot.kernel),
            initrd: boot.initrd.as_ref().map(show_tree),
            root_argument: boot.root_argument.clone(),
        }),
        os: record.os,
        image: record.image,
        number: record.number,
        note: row.note.clone(),
        new_chunks: row.new_chunks,
        stored_bytes: row.stored_bytes,
        profile: None,
        pinned: None,
    })
}

/// With what is known of how it boots.
fn show_whole_version(
    tx: &mut Tx<'_>,
    id: VersionId,
    row: &VersionRow,
) -> Result<Version, ManageError> {
    let profile: Option<BootProfileRow> = tx.get(&id)?;
    Ok(Version {
        profile: profile.as_ref().map(crate::profiles::summary),
        pinned: crate::retain::show_pin(tx, id)?,
        ..show_version(id, row)?
    })
}

pub(crate) fn record_of(id: VersionId, row: &VersionRow) -> Result<VersionRecord, ManageError> {
    Signed::<VersionRecord>::from_bytes(&row.signed)
        .and_then(|signed| signed.open_own())
        .map_err(|e| ManageError::Manifest {
            message: format!("the record of version {id}: {e}"),
        })
}

fn require_image(tx: &mut Tx<'_>, name: &str) -> Result<ImageRow, ManageError> {
    tx.get(&name.to_owned())?.ok_or_else(|| {
        ManageError::not_found(
            "image",
            name,
            "`splice image list` shows the images; `splice image create NAME` makes one",
        )
    })
}

impl Datacenter {
    /// Creates an image. Its chunk sizes hold for all of its versions, so that they share chunks.
    pub fn create_image(
        &self,
        name: &str,
        chunk_avg_bytes: Option<u64>,
    ) -> Result<Image, ManageError> {
        check_name("an image", name)?;
        let avg = chunk_avg_bytes.unwrap_or(CHUNK_AVG_BYTES);
        let params = u32::try_from(avg)
            .ok()
            .filter(|avg| avg.is_power_of_two())
            .and_then(|avg| ChunkerParams::new(avg / 4, avg, avg.checked_mul(4)?).ok())
            .ok_or_else(|| {
                ManageError::invalid(format!(
                    "{avg} bytes cannot be the average chunk size; 4KiB, 8KiB, 16KiB, 32KiB and 64KiB are possible"
                ))
            })?;
        let row = ImageRow {
            params,
            created_unix_s: self.now_unix_s(),
            latest: 0,
        };
        self.catalog().transact(|tx| {
            if tx.get::<ImageRow>(&name.to_owned())?.is_some() {
                return Err(ManageError::conflict(
                    format!("there is an image {name:?} already"),
                    format!("publish into it: `splice version publish {name} FILE`"),
                ));
            }
            tx.put(&name.to_owned(), &row);
            Ok(())
        })?;
        tracing::info!(image = name, "image created");
        Ok(show_image(name, &row))
    }

    /// One image.
    pub fn image(&self, name: &str) -> Result<Image, ManageError> {
        self.catalog()
            .read(|tx| Ok(show_image(name, &require_image(tx, name)?)))
    }

    /// An image's chunk sizes and its latest version.
    pub(crate) fn image_head(
        &self,
        name: &str,
    ) -> Result<(ImageRow, Option<(VersionId, VersionRecord)>), ManageError> {
        self.catalog().read(|tx| {
            let row = require_image(tx, name)?;
            if row.latest == 0 {
                return Ok((row, None));
            }
            let key = NumberKey {
                image: name.to_owned(),
                number: row.latest,
            };
            let missing = || ManageError::Manifest {
                message: format!(
                    "the catalog lists {name}@{} but does not have it",
                    key.number
                ),
            };
            let VersionNumberRow { version } = tx.get(&key)?.ok_or_else(missing)?;
            let version_row: VersionRow = tx.get(&version)?.ok_or_else(missing)?;
            let record = record_of(version, &version_row)?;
            Ok((row, Some((version, record))))
        })
    }

    /// At most `limit` images after the name `after`.
    pub fn images(&self, after: Option<&str>, limit: usize) -> Result<Vec<Image>, ManageError> {
        let after = after.map(str::to_owned);
        let rows = self
            .catalog()
            .read(|tx| tx.list::<ImageRow>(&[], after.as_ref(), limit))?;
        Ok(rows
            .iter()
            .map(|(name, row)| show_image(name, row))
            .collect())
    }

    /// At most `limit` versions of an image below the number `before`, newest first.
    pub fn versions(
        &self,
        image: &str,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<Version>, ManageError> {
        self.catalog().read(|tx| {
            require_image(tx, image)?;
            let after = before.map(|number| NumberKey {
                image: image.to_owned(),
                number,
            });
            let prefix = NumberKey::prefix(image);
            let numbers = tx.list::<VersionNumberRow>(&prefix, after.as_ref(), limit)?;
            let mut versions = Vec::with_capacity(numbers.len());
            for (_, VersionNumberRow { version }) in numbers {
                if let Some(row) = tx.get::<VersionRow>(&version)? {
                    versions.push(Version {
                        pinned: crate::retain::show_pin(tx, version)?,
                        ..show_version(version, &row)?
                    });
                }
            }
            Ok(versions)
        })
    }

    /// The version that `IMAGE` or `IMAGE@NUMBER` names.
    pub fn version_named(&self, text: &str) -> Result<Version, ManageError> {
        self.catalog().read(|tx| {
            let (_, _, id) = resolve(tx, text)?;
            let row: Option<VersionRow> = tx.get(&id)?;
            let row = row.ok_or_else(|| {
                ManageError::not_found("version", text, "`splice version list IMAGE`")
            })?;
            show_whole_version(tx, id, &row)
        })
    }

    /// The version with an id.
    pub fn version_by_id(&self, id: VersionId) -> Result<Version, ManageError> {
        self.catalog().read(|tx| {
            let row = tx.get::<VersionRow>(&id)?.ok_or_else(|| {
                ManageError::not_found("version", id.to_string(), "`splice version list IMAGE`")
            })?;
            show_whole_version(tx, id, &row)
        })
    }

    fn record_named(&self, text: &str) -> Result<(VersionId, String, VersionRecord), ManageError> {
        self.catalog().read(|tx| {
            let (image, number, id) = resolve(tx, text)?;
            let row: Option<VersionRow> = tx.get(&id)?;
            let row = row.ok_or_else(|| {
                ManageError::not_found("version", text, "`splice version list IMAGE`")
            })?;
            Ok((id, format!("{image}@{number}"), record_of(id, &row)?))
        })
    }

    /// The version that `IMAGE` or `IMAGE@NUMBER` names, kept from being given up while the first value lives.
    pub(crate) fn use_named(
        &self,
        text: &str,
    ) -> Result<(VersionUse, String, VersionRecord), ManageError> {
        let (id, name, record) = self.record_named(text)?;
        let in_use = self.use_version(id);
        // It might have been given up before it was in use.
        self.version_by_id(id)?;
        Ok((in_use, name, record))
    }

    /// What a branch that has version `from` needs for `to`. Opens only nodes that differ.
    pub fn diff(&self, from: &str, to: &str) -> Result<VersionDiff, ManageError> {
        let (parent, from, old) = self.use_named(from)?;
        let (version, to, new) = self.use_named(to)?;
        let pair = Pair {
            parent: parent.version(),
            version: version.version(),
        };
        let nodes = StoreNodes(self);
        let manifest_error = |e: &dyn std::error::Error| ManageError::Manifest {
            message: describe(e),
        };
        let changes =
            changed_leaves(&nodes, old.disk.root, new.disk.root).map_err(|e| manifest_error(&e))?;
        let leaf = |size: u64, index: u64, id| -> Result<Leaf, ManageError> {
            let bytes = self.store().node(id)?;
            Leaf::decode(&bytes, Manifest::leaf_len(size, index)).map_err(|e| manifest_error(&e))
        };
        let mut had: HashSet<ChunkId> = HashSet::new();
        let mut wanted: HashMap<ChunkId, u32> = HashMap::new();
        for change in &changes {
            if let Some(id) = change.old {
                let leaf = leaf(old.disk.size_bytes, change.index, id)?;
                had.extend(leaf.chunks().map(|(id, _)| id));
            }
            wanted.extend(leaf(new.disk.size_bytes, change.index, change.new)?.chunks());
        }
        wanted.retain(|id, _| !had.contains(id));
        let mut stored_bytes = 0;
        for id in wanted.keys() {
            stored_bytes += self.store().chunk_compressed(*id)?.bytes.len() as u64;
        }
        Ok(VersionDiff {
            from,
            to,
            changed_leaves: changes.len() as u64,
            total_leaves: Manifest::leaf_count(new.disk.size_bytes),
            new_chunks: wanted.len() as u64,
            new_bytes: wanted.values().map(|len| u64::from(*len)).sum(),
            stored_bytes,
            update: self.updates().summary(self, pair),
        })
    }

    /// The pair that an update from one version to another is of.
    pub fn pair_named(&self, from: &str, to: &str) -> Result<Pair, ManageError> {
        self.catalog().read(|tx| {
            let (image, _, parent) = resolve(tx, from)?;
            let (other, _, version) = resolve(tx, to)?;
            if image != other || parent == version {
                return Err(ManageError::invalid(format!(
                    "{from} and {to} are not two versions of one image; an update is between such"
                )));
            }
            Ok(Pair { parent, version })
        })
    }

    /// Reads every chunk of a version back and hashes it. Damage is reported and quarantined, so that publishing the same file
    /// again stores it anew.
    pub fn verify_version(&self, text: &str, meter: &Meter) -> Result<VerifyResult, ManageError> {
        let (_use, version, record) = self.use_named(text)?;
        let trees = [
            ("disk", Tree::Disk),
            ("kernel", Tree::Kernel),
            ("initrd", Tree::Initrd),
        ]
        .into_iter()
        .filter_map(|(name, tree)| record.tree(tree).map(|tree| (name, tree)));
        let trees: Vec<_> = trees.collect();
        meter.begin(Phase::Verify, trees.iter().map(|(_, t)| t.size_bytes).sum());
        let mut result = VerifyResult {
            version,
            chunks: 0,
            bytes: 0,
            damaged: Vec::new(),
            damaged_count: 0,
        };
        let mut seen = HashSet::new();
        for (name, tree) in trees {
            self.verify_tree(name, &tree, &mut seen, &mut result, meter)?;
        }
        Ok(result)
    }

    fn verify_tree(
        &self,
        name: &str,
        tree: &TreeRef,
        seen: &mut HashSet<ChunkId>,
        result: &mut VerifyResult,
        meter: &Meter,
    ) -> Result<(), ManageError> {
        let mut damaged = |id: String, disk_offset: u64, reason: String| {
            result.damaged_count += 1;
            if result.damaged.len() < DAMAGED_SHOWN_MAX {
                result.damaged.push(DamagedItem {
                    id,
                    disk_offset,
                    tree: name.to_owned(),
                    reason,
                });
            }
        };
        let nodes = StoreNodes(self);
        let manifest = match Manifest::load(&nodes, tree.root) {
            Ok(manifest) => manifest,
            Err(error) => {
                damaged(tree.root.to_string(), 0, describe(&error));
                return self.quarantine_node(&error);
            }
        };
        for index in 0..manifest.leaves.len() {
            if meter.is_cancelled() {
                return Err(ManageError::conflict(
                    "verifying was cancelled",
                    "start it again",
                ));
            }
            let mut at = index as u64 * dedup::LEAF_BYTES;
            let len = Manifest::leaf_len(manifest.size_bytes, index as u64);
            match manifest.leaf(&nodes, index) {
                Err(error) => {
                    damaged(manifest.leaves[index].to_string(), at, describe(&error));
                    self.quarantine_node(&error)?;
                }
                Ok(leaf) => {
                    for extent in &leaf.extents {
                        let offset = at;
                        at += u64::from(extent.len);
                        let Some(id) = extent.chunk() else { continue };
                        if !seen.insert(id) {
                            continue;
                        }
                        match self.store().chunk(id) {
                            Ok(chunk) => {
                                result.chunks += 1;
                                result.bytes += chunk.bytes().len() as u64;
                                meter.known_chunks.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(e @ (StoreError::Damaged { .. } | StoreError::NotFound { .. })) => {
                                damaged(id.to_string(), offset, describe(&e));
                                self.store().quarantine(RecordName::chunk(id))?;
                            }
                            // The store as a whole does not answer: that says nothing about this version.
                            Err(other) => return Err(other.into()),
                        }
                    }
                }
            }
            meter.advance(len);
        }
        Ok(())
    }

    /// Quarantines the node that could not be read; fails if the store as a whole does not answer.
    fn quarantine_node(&self, error: &ManifestError<StoreError>) -> Result<(), ManageError> {
        match error {
            ManifestError::Node { id, source } => match source {
                StoreError::Damaged { .. } | StoreError::NotFound { .. } => {
                    Ok(self.store().quarantine(RecordName::node(*id))?)
                }
                other => Err(ManageError::Manifest {
                    message: describe(other),
                }),
            },
            // Proved by its name and still malformed: written so, and storing it again would change nothing.
            _ => Ok(()),
        }
    }

    /// How many images and visible versions there are.
    pub fn image_counts(&self) -> Result<(u64, u64), CatalogError> {
        use crate::catalog::backend::Table;
        self.catalog()
            .read(|tx| Ok((tx.count(Table::Images)?, tx.count(Table::Versions)?)))
    }
}

/// The chunk store as a source of manifest nodes.
pub(crate) struct StoreNodes<'a>(pub(crate) &'a Datacenter);

impl NodeSource for StoreNodes<'_> {
    type Error = StoreError;

    fn node(&self, id: dedup::NodeId) -> Result<bytes::Bytes, StoreError> {
        self.0.store().node(id)
    }
}
