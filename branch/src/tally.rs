//! How much of a version is resident, without looking at every chunk for every report.
//!
//! Owns one [`Tally`] per version. Invariant: after [`Tally::update`] its figures are those of a whole look at the cache at some moment
//! since the call began. Chunks that were there stay counted until something leaves the cache; while nothing does, only those that
//! were missing are looked for again. So a report costs nothing when nothing happens, and as much as is still missing during a fill.

use std::collections::HashSet;

use dedup::ChunkId;

use crate::cache::{Cache, Churn};
use crate::fetch::queue::TreeHandle;

/// Chunks and bytes of one version, each chunk counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// All its chunks.
    pub total_chunks: u64,
    /// Their bytes.
    pub total_bytes: u64,
    /// Those that are resident and sound.
    pub resident_chunks: u64,
    /// Their bytes.
    pub resident_bytes: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many trees were counted, and what the cache had gone through by then.
    seen: Option<(usize, Churn)>,
    figures: Figures,
    /// What was missing: tree and place.
    missing: Vec<(u8, u32)>,
}

impl Tally {
    /// Brings the figures up to date. `trees` are always the same, except that more of them may become known.
    pub fn update(&mut self, trees: &[TreeHandle], cache: &Cache) -> Figures {
        // Before the look, so that what changes during it is looked at again.
        let now = cache.churn();
        match self.seen {
            Some(seen) if seen == (trees.len(), now) => return self.figures,
            Some((count, before)) if count == trees.len() && before.departures == now.departures => {
                self.look_again(trees, cache);
            }
            _ => self.look(trees, cache),
        }
        self.seen = Some((trees.len(), now));
        self.figures
    }

    fn look(&mut self, trees: &[TreeHandle], cache: &Cache) {
        self.figures = Figures::default();
        self.missing.clear();
        let mut counted: HashSet<ChunkId> = HashSet::new();
        for (tree, handle) in (0u8..).zip(trees) {
            for (index, place) in (0u32..).zip(handle.map.chunks()) {
                if !counted.insert(place.id) {
                    continue;
                }
                self.figures.total_chunks += 1;
                self.figures.total_bytes += u64::from(place.len);
                self.missing.push((tree, index));
            }
        }
        self.look_again(trees, cache);
    }

    fn look_again(&mut self, trees: &[TreeHandle], cache: &Cache) {
        let figures = &mut self.figures;
        self.missing.retain(|&(tree, index)| {
            let place = trees[usize::from(tree)].map.chunk(index as usize);
            let resident = cache.contains(&place.id);
            figures.resident_chunks += u64::from(resident);
            figures.resident_bytes += if resident { u64::from(place.len) } else { 0 };
            !resident
        });
        self.missing.shrink_to_fit();
    }
}
