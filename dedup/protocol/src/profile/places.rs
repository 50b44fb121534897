//! What places mean: checked against a version's manifest, and carried over to the version that follows it.

use std::collections::{BTreeMap, HashMap, HashSet};

use dedup::manifest::ManifestError;
use dedup::{ChunkId, ExtentSource, Leaf, Manifest, NodeSource};

use super::{Entries, Entry, Place};

/// Why a recording was refused.
#[derive(Debug, thiserror::Error)]
pub enum PlacesError<E: std::error::Error + Send + Sync + 'static> {
    /// It names a place that the disk does not have, or that shows zeros.
    #[error("extent {} of leaf {} shows no chunk of this disk", .0.extent, .0.leaf)]
    NoChunk(Place),
    /// The manifest could not be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError<E>),
}

/// Chunks of one version, and for each the chunks of the next one that took its place.
pub type Kin = HashMap<ChunkId, Vec<ChunkId>>;

fn by_leaf(entries: &Entries) -> BTreeMap<u32, Vec<Entry>> {
    let mut leaves: BTreeMap<u32, Vec<Entry>> = BTreeMap::new();
    for entry in entries.as_slice() {
        leaves.entry(entry.place.leaf).or_default().push(*entry);
    }
    leaves
}

/// Chunks that the places of `entries` show, each counted once, and their bytes. Every place must show one. Opens each leaf that is
/// named once.
pub fn measure<S: NodeSource>(
    source: &S,
    disk: &Manifest,
    entries: &Entries,
) -> Result<(u64, u64), PlacesError<S::Error>> {
    let mut chunks = HashSet::new();
    let mut bytes = 0;
    for (index, entries) in by_leaf(entries) {
        let no_chunk = PlacesError::NoChunk(entries[0].place);
        if index as usize >= disk.leaves.len() {
            return Err(no_chunk);
        }
        let leaf = disk.leaf(source, index as usize)?;
        for entry in entries {
            let extent = leaf.extents.get(usize::from(entry.place.extent));
            match extent.map(|e| e.source) {
                Some(ExtentSource::Chunk { id, chunk_len, .. }) => {
                    if chunks.insert(id) {
                        bytes += u64::from(chunk_len);
                    }
                }
                _ => return Err(PlacesError::NoChunk(entry.place)),
            }
        }
    }
    Ok((chunks.len() as u64, bytes))
}

/// What a boot of the version with disk `to` will probably touch, judged by `entries` of one with disk `from`.
///
/// Places in leaves that both share stay. Of the others, a chunk that the new disk shows somewhere in its changed leaves is named
/// there, and so are those that `kin` says took its place; if there is none of these, whatever the new disk has at the same bytes.
/// Opens changed leaves only.
pub fn carry<S: NodeSource>(
    source: &S,
    from: &Manifest,
    to: &Manifest,
    entries: &Entries,
    kin: &Kin,
) -> Result<Entries, ManifestError<S::Error>> {
    let same = |index: usize| {
        let old = from.leaves.get(index);
        old.is_some() && old == to.leaves.get(index)
    };
    let mut carried = Vec::with_capacity(entries.len());
    // Entries whose leaf changed, with the chunk and the bytes of the leaf that each showed.
    let mut open: Vec<(Entry, ChunkId, std::ops::Range<u64>)> = Vec::new();
    for (index, entries) in by_leaf(entries) {
        if same(index as usize) {
            carried.extend(entries);
        } else if (index as usize) < from.leaves.len() {
            let leaf = from.leaf(source, index as usize)?;
            open.extend(shown(&leaf, &entries));
        }
    }
    let heirs = |id: &ChunkId| kin.get(id).map_or(&[][..], Vec::as_slice);
    let wanted: HashSet<ChunkId> = open
        .iter()
        .flat_map(|(_, id, _)| heirs(id).iter().chain([id]))
        .copied()
        .collect();
    let found = find(source, to, &same, &wanted)?;
    let mut gone: BTreeMap<u32, Vec<(Entry, std::ops::Range<u64>)>> = BTreeMap::new();
    for (entry, id, bytes) in open {
        let at = |place: &Place| Entry {
            place: *place,
            ..entry
        };
        // A chunk that stayed in one file may have been replaced in another.
        let shown = std::iter::once(&id).chain(heirs(&id));
        let before = carried.len();
        carried.extend(shown.filter_map(|id| found.get(id)).map(at));
        if carried.len() == before {
            gone.entry(entry.place.leaf)
                .or_default()
                .push((entry, bytes));
        }
    }
    for (index, gone) in gone {
        if index as usize >= to.leaves.len() {
            continue;
        }
        let leaf = to.leaf(source, index as usize)?;
        for (entry, bytes) in gone {
            carried.extend(overlapping(&leaf, &bytes).map(|extent| Entry {
                place: Place {
                    leaf: index,
                    extent,
                },
                ..entry
            }));
        }
    }
    Ok(Entries::new(carried))
}

/// Extents of a leaf with the bytes of it that they cover.
fn ranges(leaf: &Leaf) -> impl Iterator<Item = (u16, std::ops::Range<u64>, ExtentSource)> + '_ {
    let mut at = 0;
    (0..).zip(&leaf.extents).map(move |(index, extent)| {
        let start = at;
        at += u64::from(extent.len);
        (index, start..at, extent.source)
    })
}

fn shown(leaf: &Leaf, entries: &[Entry]) -> Vec<(Entry, ChunkId, std::ops::Range<u64>)> {
    let wanted: HashMap<u16, Entry> = entries.iter().map(|e| (e.place.extent, *e)).collect();
    ranges(leaf)
        .filter_map(|(index, bytes, source)| match source {
            ExtentSource::Chunk { id, .. } => Some((*wanted.get(&index)?, id, bytes)),
            ExtentSource::Zero => None,
        })
        .collect()
}

/// Where the changed leaves of `to` show the chunks of `wanted` first.
fn find<S: NodeSource>(
    source: &S,
    to: &Manifest,
    same: &impl Fn(usize) -> bool,
    wanted: &HashSet<ChunkId>,
) -> Result<HashMap<ChunkId, Place>, ManifestError<S::Error>> {
    let mut found = HashMap::new();
    for index in 0..to.leaves.len() {
        if found.len() == wanted.len() {
            break;
        }
        if same(index) {
            continue;
        }
        let leaf = to.leaf(source, index)?;
        for (extent, _, shows) in ranges(&leaf) {
            if let ExtentSource::Chunk { id, .. } = shows
                && wanted.contains(&id)
            {
                found.entry(id).or_insert(Place {
                    leaf: index as u32,
                    extent,
                });
            }
        }
    }
    Ok(found)
}

fn overlapping<'a>(
    leaf: &'a Leaf,
    bytes: &'a std::ops::Range<u64>,
) -> impl Iterator<Item = u16> + 'a {
    ranges(leaf).filter_map(|(index, range, source)| {
        let overlaps = range.start < bytes.end && bytes.start < range.end;
        (overlaps && source != ExtentSource::Zero).then_some(index)
    })
}
