//! What a full cache gives up first, and what it does not give up: the rank of each chunk, by what needs it here.
//!
//! ```text
//!   Loose  <  Spare  <  Whole  <  Boot  <  Open       the lowest goes first, the coldest of it first
//! ```
//!
//! Invariant: while the link is down, nothing that a pool or a desktop of this branch needs is given up, for it could not be had
//! again; and fill never pushes out what is pinned. It only ranks: [`crate::cache`] evicts, [`crate::fetch`] asks for room.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use branch_api::{CacheReport, PoolCache, RankCache};
use dedup::ChunkId;
use dedup_protocol::wire::Urgency;

use crate::cache::Cache;
use crate::fetch::queue::TreeHandle;

/// Why a chunk is kept, the best reason that it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    /// Nothing here needs it.
    #[default]
    Loose,
    /// It is of a version that a pool runs and that is fetched on demand, or of one that stopped desktops alone still have.
    Spare,
    /// Pinned: it is of a version that is to be whole here, or that something is being decoded against.
    Whole,
    /// Pinned: an assigned version's boot reads it.
    Boot,
    /// Pinned: a desktop that is up has it under its overlay, and no pool runs its version any more.
    Open,
}

impl Rank {
    /// All of them, lowest first.
    pub const ALL: [Self; 5] = [
        Self::Loose,
        Self::Spare,
        Self::Whole,
        Self::Boot,
        Self::Open,
    ];

    /// Whether chunks of this rank may go to make room for one that is fetched for `urgency`. What was fetched for a guest that waits
    /// may push out anything that can be fetched again.
    pub fn gives_way(self, urgency: Urgency, connected: bool) -> bool {
        match self {
            Self::Loose => true,
            Self::Spare => connected,
            Self::Whole | Self::Boot | Self::Open => connected && urgency == Urgency::Demand,
        }
    }

    /// Whether fill leaves it alone whatever happens.
    pub fn is_pinned(self) -> bool {
        self >= Self::Whole
    }

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loose => "loose",
            Self::Spare => "spare",
            Self::Whole => "whole",
            Self::Boot => "boot",
            Self::Open => "open",
        }
    }
}

/// Chunks of a tree that something needs.
#[derive(Debug, Clone)]
pub struct Need {
    /// The tree.
    pub tree: TreeHandle,
    /// Numbers of the chunks; without them, all.
    pub only: Option<Arc<[u32]>>,
    /// How much they are needed.
    pub rank: Rank,
}

/// The rank of each chunk that something needs. About 50 bytes a chunk: made when room is wanted, and dropped after.
#[derive(Debug, Default)]
pub struct Ranks(HashMap<ChunkId, Rank>);

impl Ranks {
    /// By all that is needed; of several ranks a chunk has the highest.
    pub fn new(needs: &[Need]) -> Self {
        let mut ranks: HashMap<ChunkId, Rank> = HashMap::new();
        for need in needs {
            let mut raise = |id: ChunkId| {
                let rank = ranks.entry(id).or_default();
                *rank = need.rank.max(*rank);
            };
            match &need.only {
                Some(only) => only
                    .iter()
                    .for_each(|index| raise(need.tree.map.chunk(*index as usize).id)),
                None => need
                    .tree
                    .map
                    .chunks()
                    .iter()
                    .for_each(|place| raise(place.id)),
            }
        }
        Self(ranks)
    }

    /// The rank of a chunk.
    pub fn of(&self, id: &ChunkId) -> Rank {
        self.0.get(id).copied().unwrap_or_default()
    }
}

/// A pool and what it is to have here.
pub struct PoolTrees {
    /// The pool.
    pub pool: String,
    /// Its versions, for people.
    pub versions: Vec<String>,
    /// All trees of them whose manifests are here.
    pub trees: Vec<TreeHandle>,
}

/// What is held, by pool and by rank. Looks at every chunk here: for an operator who asks, not for a report that repeats.
pub fn report(cache: &Cache, ranks: &Ranks, pools: &[PoolTrees], connected: bool) -> CacheReport {
    let stats = cache.stats();
    let mut by_rank = Rank::ALL.map(|rank| RankCache {
        rank: rank.name().into(),
        evictable: rank.gives_way(Urgency::Fill, connected),
        ..RankCache::default()
    });
    cache.visit(&mut |id, bytes| {
        let sum = &mut by_rank[ranks.of(&id) as usize];
        sum.chunks += 1;
        sum.bytes += bytes;
    });
    CacheReport {
        bytes: stats.bytes,
        capacity_bytes: stats.capacity_bytes,
        connected,
        ranks: by_rank.into(),
        pools: pools
            .iter()
            .map(|pool| pool_report(cache, ranks, pool, connected))
            .collect(),
    }
}

fn pool_report(cache: &Cache, ranks: &Ranks, pool: &PoolTrees, connected: bool) -> PoolCache {
    let mut told = PoolCache {
        pool: pool.pool.clone(),
        versions: pool.versions.clone(),
        ..PoolCache::default()
    };
    let mut seen = HashSet::new();
    for place in pool.trees.iter().flat_map(|tree| tree.map.chunks()) {
        if !seen.insert(place.id) {
            continue;
        }
        let bytes = u64::from(place.len);
        told.total_bytes += bytes;
        if !cache.contains(&place.id) {
            continue;
        }
        let rank = ranks.of(&place.id);
        told.resident_bytes += bytes;
        if rank.is_pinned() {
            told.pinned_bytes += bytes;
        }
        if rank >= Rank::Boot {
            told.boot_bytes += bytes;
        }
        if rank.gives_way(Urgency::Fill, connected) {
            told.evictable_bytes += bytes;
        }
    }
    told
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use proptest::prelude::*;

    use super::*;
    use crate::fetch::queue::made::published;

    #[test]
    fn what_goes_depends_on_rank_urgency_and_the_line() {
        let lets = |urgency, connected| {
            let gives = Rank::ALL.map(|rank| rank.gives_way(urgency, connected));
            gives.iter().take_while(|gives| **gives).count()
        };
        for urgency in [Urgency::Demand, Urgency::Boot, Urgency::Fill] {
            assert_eq!(
                lets(urgency, false),
                1,
                "{urgency:?}: only what nothing needs"
            );
        }
        assert_eq!(lets(Urgency::Fill, true), 2);
        assert_eq!(lets(Urgency::Boot, true), 2);
        assert_eq!(lets(Urgency::Demand, true), 5);
        for rank in Rank::ALL {
            assert_eq!(rank.is_pinned(), !rank.gives_way(Urgency::Fill, true));
        }
        assert!(Rank::ALL.is_sorted());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Of every chunk the best reason that anything has for it.
        #[test]
        fn a_chunk_has_the_highest_rank_of_those_that_need_it(
            needs in prop::collection::vec((0..3usize, 0..5usize, prop::option::of(prop::collection::vec(0..40u32, 0..20))), 0..6)
        ) {
            let trees = [published(1, 40, 1), published(2, 40, 3), published(3, 40, 7)];
            let needs: Vec<Need> = needs
                .into_iter()
                .map(|(tree, rank, only)| Need {
                    tree: trees[tree].clone(),
                    only: only.map(|only| {
                        let count = trees[tree].map.chunks().len() as u32;
                        only.into_iter().map(|index| index % count).collect()
                    }),
                    rank: Rank::ALL[rank],
                })
                .collect();
            let ranks = Ranks::new(&needs);
            for tree in &trees {
                for place in tree.map.chunks() {
                    let mut best = Rank::Loose;
                    for need in &needs {
                        let all: Vec<u32> = (0..need.tree.map.chunks().len() as u32).collect();
                        let named = need.only.as_deref().unwrap_or(&all);
                        if named.iter().any(|index| need.tree.map.chunk(*index as usize).id == place.id) {
                            best = best.max(need.rank);
                        }
                    }
                    prop_assert_eq!(ranks.of(&place.id), best);
                }
            }
        }
    }
}
