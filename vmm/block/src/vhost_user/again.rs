//! Requests that are to be worked on again: chains by their heads.
//!
//! `virtio_queue` makes chains only of heads that it finds in an available ring, and the guest's own may have been written over since. So
//! the heads are put into a ring of our own, in a page beside the guest's memory.

use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::memory::GUEST_END;
use crate::virtio::Chain;

/// Where the page lies: behind what any guest has.
const RING: u64 = GUEST_END;
/// Bytes of an available ring before its entries.
const RING_HEAD_BYTES: usize = 4;

/// See the module.
pub(crate) struct Again {
    /// The guest's memory and the ring; nothing if there are no heads.
    memory: Option<GuestMemoryMmap<()>>,
    descriptors: u64,
    size: u16,
}

impl Again {
    /// Chains of these heads, at most as many as the queue has entries, in the guest's `memory` as `queue` has them.
    pub(crate) fn new(memory: &GuestMemoryMmap<()>, queue: &Queue, heads: &[u16]) -> Self {
        let with_ring = (!heads.is_empty()).then(|| ring(memory, heads)).flatten();
        if with_ring.is_none() && !heads.is_empty() {
            tracing::error!(lost = heads.len(), "no memory for requests to be repeated");
        }
        Self {
            memory: with_ring,
            descriptors: queue.desc_table(),
            size: queue.size(),
        }
    }

    /// The chains, in the order of the heads.
    pub(crate) fn chains(&self) -> Vec<Chain<'_>> {
        let Some(memory) = &self.memory else {
            return Vec::new();
        };
        let Ok(mut queue) = Queue::new(self.size) else {
            return Vec::new();
        };
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let (low, high) = halves(self.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(RING);
        queue.set_avail_ring_address(low, high);
        queue.set_ready(true);
        let chains = queue.iter(memory).map(|chains| chains.collect());
        chains.unwrap_or_default()
    }
}

fn ring(memory: &GuestMemoryMmap<()>, heads: &[u16]) -> Option<GuestMemoryMmap<()>> {
    let bytes = (RING_HEAD_BYTES + 2 * heads.len()).next_multiple_of(4096);
    let region = MmapRegion::new(bytes).ok()?;
    let region = GuestRegionMmap::new(region, GuestAddress(RING))?;
    let memory = memory.insert_region(Arc::new(region)).ok()?;
    let count = u16::try_from(heads.len()).ok()?;
    let words = [0, count].into_iter().chain(heads.iter().copied());
    let ring: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
    memory.write_slice(&ring, GuestAddress(RING)).ok()?;
    Some(memory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn chains_come_in_the_order_of_their_heads() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mut queue = Queue::new(8).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        // Descriptor n: n bytes at 0x2000, without a next one.
        for head in 0..8u64 {
            let at = GuestAddress(0x1000 + 16 * head);
            memory.write_obj(0x2000u64, at).unwrap();
            memory.write_obj(head, GuestAddress(at.0 + 8)).unwrap();
        }
        let heads = [5, 0, 7, 2];
        let again = Again::new(&memory, &queue, &heads);
        let chains = again.chains();
        let found: Vec<u16> = chains.iter().map(|chain| chain.head_index()).collect();
        assert_eq!(found, heads);
        for chain in chains {
            let head = u32::from(chain.head_index());
            let lengths: Vec<u32> = chain.map(|one| one.len()).collect();
            assert_eq!(lengths, [head]);
        }
        assert!(Again::new(&memory, &queue, &[]).chains().is_empty());
    }
}
