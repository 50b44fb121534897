//! Events by virtual time.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Gives the earliest event first; of those at one time, what was added first.
pub(crate) struct Schedule<E> {
    heap: BinaryHeap<Reverse<At<E>>>,
    order: u64,
}

struct At<E> {
    ms: u64,
    order: u64,
    event: E,
}

impl<E> Schedule<E> {
    pub(crate) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            order: 0,
        }
    }

    pub(crate) fn add(&mut self, ms: u64, event: E) {
        self.order += 1;
        self.heap.push(Reverse(At {
            ms,
            order: self.order,
            event,
        }));
    }

    /// When the next event is.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(at)| at.ms)
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, E)> {
        self.heap.pop().map(|Reverse(at)| (at.ms, at.event))
    }
}

impl<E> PartialEq for At<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.ms, self.order) == (other.ms, other.order)
    }
}

impl<E> Eq for At<E> {}

impl<E> PartialOrd for At<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for At<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.ms, self.order).cmp(&(other.ms, other.order))
    }
}
