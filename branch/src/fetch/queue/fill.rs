//! One tree that is being made whole in the background, or some chunks of it that are fetched in a given order.
//!
//! Invariant: a fill ends only when each of its chunks was found resident, or was answered by the datacenter, or was asked for by
//! somebody else and came to such an end. What a cut took away and what others gave up is asked for again. It is not asked for
//! again when it came and could not be cached, or was refused: that would go on for ever.

use std::collections::HashMap;
use std::sync::Arc;

use dedup::ChunkId;
use dedup_protocol::wire::Urgency;

use super::{CHUNKS_PER_REQUEST_MAX, Flight, TreeHandle, Want};

/// Most chunks that are looked at again later. Beyond it the fill waits for them before it goes on, so that a disk of equal chunks
/// does not make a list as long as itself.
const LEFT_MAX: usize = 16_384;

/// See the module.
#[derive(Debug)]
pub(super) struct Fill {
    /// Tells it from an earlier fill of the same tree, whose requests may still be in flight.
    pub(super) number: u64,
    pub(super) tree: TreeHandle,
    /// Chunk numbers in the order in which they are wanted; without it, all in disk order.
    order: Option<Arc<[u32]>>,
    /// Requests in flight.
    flying: usize,
    /// Position of the next chunk to look at.
    cursor: usize,
    /// Chunks behind the cursor that others had asked for, or that a cut took away.
    left: Vec<usize>,
    /// A cut took something away that is wanted before what comes next.
    cut: bool,
    /// What it brings was asked for by itself: nothing of the tree follows it.
    pub(super) only: bool,
}

impl Fill {
    pub(super) fn new(number: u64, tree: TreeHandle, order: Option<Arc<[u32]>>) -> Self {
        Self {
            number,
            tree,
            order,
            flying: 0,
            cursor: 0,
            left: Vec::new(),
            cut: false,
            only: false,
        }
    }

    /// How many chunks it looks at in all.
    fn len(&self) -> usize {
        let all = || self.tree.map.chunks().len();
        self.order.as_ref().map_or_else(all, |order| order.len())
    }

    /// Number of the chunk at a position.
    fn index(&self, at: usize) -> usize {
        self.order.as_ref().map_or(at, |order| order[at] as usize)
    }

    /// Takes chunks to ask for in request `request`, until they have `bytes_max` bytes or are as many as one may name. None taken: nothing can be asked for now.
    pub(super) fn take(
        &mut self,
        request: u64,
        bytes_max: u64,
        flights: &mut HashMap<ChunkId, Flight>,
        resident: &dyn Fn(&ChunkId) -> bool,
    ) -> Vec<Want> {
        let tree = self.tree.clone();
        let chunks = tree.map.chunks();
        let mut taken: Vec<Want> = Vec::new();
        let mut bytes = 0;
        let mut take = |flights: &mut HashMap<ChunkId, Flight>, index: usize| {
            let place = &chunks[index];
            bytes += u64::from(place.len);
            flights.insert(place.id, Flight::flying(request, Urgency::Fill));
            taken.push(Want {
                tree: tree.clone(),
                index,
            });
            bytes >= bytes_max || taken.len() >= CHUNKS_PER_REQUEST_MAX
        };
        let mut full = false;
        let len = self.len();
        if self.cursor == len || self.left.len() >= LEFT_MAX || std::mem::take(&mut self.cut) {
            self.left.retain(|&index| {
                let id = &chunks[index].id;
                if full || flights.contains_key(id) {
                    return true;
                }
                if !resident(id) {
                    full = take(flights, index);
                }
                false
            });
        }
        while !full && self.cursor < len && self.left.len() < LEFT_MAX {
            let index = self.index(self.cursor);
            let id = &chunks[index].id;
            if flights.contains_key(id) {
                self.left.push(index);
            } else if !resident(id) {
                full = take(flights, index);
            }
            self.cursor += 1;
        }
        self.flying += usize::from(!taken.is_empty());
        taken
    }

    /// One of its requests ended without these chunks.
    pub(super) fn ended(&mut self, lost: &[usize]) {
        self.flying -= 1;
        self.left.extend_from_slice(lost);
        self.cut |= self.order.is_some() && !lost.is_empty();
    }

    /// Whether there is nothing left to do.
    pub(super) fn is_done(&self) -> bool {
        self.cursor == self.len() && self.left.is_empty() && self.flying == 0
    }
}
