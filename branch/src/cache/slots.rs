//! Which slots of the slabs are free.
//!
//! Invariant: the free runs of a slab are disjoint, never empty and never adjacent. Next-fit with a roving slab keeps neighbours
//! in insertion order, which is disk order, together. It is rebuilt from the residency index at each start.

use std::collections::BTreeMap;

/// A run of slots in one slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// The slab.
    pub slab: u32,
    /// First slot.
    pub slot: u32,
    /// Number of slots, at least 1.
    pub count: u32,
}

#[derive(Debug)]
struct Slab {
    slots: u32,
    /// First slot → length of the run.
    free: BTreeMap<u32, u32>,
    free_slots: u32,
    /// A slab that failed takes nothing any more.
    closed: bool,
    /// Where the next search begins.
    rover: u32,
    /// End of the highest slot that was ever taken: below it the file has blocks, beyond it the disk may have no room for them.
    written: u32,
}

/// The free slots of all slabs.
#[derive(Debug, Default)]
pub struct Slots {
    slabs: BTreeMap<u32, Slab>,
    current: u32,
    used: u64,
}

impl Slots {
    /// Adds an empty slab.
    pub fn add_slab(&mut self, slab: u32, slots: u32) {
        let free = BTreeMap::from([(0, slots)]);
        self.slabs.insert(
            slab,
            Slab {
                slots,
                free,
                free_slots: slots,
                closed: false,
                rover: 0,
                written: 0,
            },
        );
    }

    /// Slots in use, in all slabs.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Slots that are used or can be: the free ones of closed slabs do not count.
    pub fn total(&self) -> u64 {
        let usable = |slab: &Slab| slab.slots - if slab.closed { slab.free_slots } else { 0 };
        self.slabs
            .values()
            .map(|slab| u64::from(usable(slab)))
            .sum()
    }

    /// Whether slab number `slab` exists.
    pub fn has_slab(&self, slab: u32) -> bool {
        self.slabs.contains_key(&slab)
    }

    /// Takes no more slots from `slab`.
    pub fn close_slab(&mut self, slab: u32) {
        if let Some(slab) = self.slabs.get_mut(&slab) {
            slab.closed = true;
        }
    }

    /// Takes `count` slots in a row, from the slab used last if it has them.
    pub fn take(&mut self, count: u32) -> Option<Run> {
        let order = self
            .slabs
            .range(self.current..)
            .chain(self.slabs.range(..self.current));
        let candidates: Vec<u32> = order
            .filter(|(_, slab)| !slab.closed && slab.free_slots >= count)
            .map(|(&number, _)| number)
            .collect();
        for number in candidates {
            let slab = self.slabs.get_mut(&number).expect("listed from this map");
            let fits = |(_, len): &(&u32, &u32)| **len >= count;
            let found = slab
                .free
                .range(slab.rover..)
                .find(fits)
                .or_else(|| slab.free.range(..slab.rover).find(fits));
            if let Some((&slot, &len)) = found {
                slab.cut(slot, len, slot, count);
                slab.rover = slot + count;
                self.used += u64::from(count);
                self.current = number;
                return Some(Run {
                    slab: number,
                    slot,
                    count,
                });
            }
        }
        None
    }

    /// Takes `count` slots in a row that held something before: a disk without room still takes what is written over.
    pub fn take_written(&mut self, count: u32) -> Option<Run> {
        for (&number, slab) in &mut self.slabs {
            if slab.closed || slab.free_slots < count {
                continue;
            }
            let written = slab.written;
            let mut below = slab.free.range(..written);
            let fits = |(slot, len): &(&u32, &u32)| (**slot + **len).min(written) - **slot >= count;
            if let Some((&slot, &len)) = below.find(fits) {
                slab.cut(slot, len, slot, count);
                self.used += u64::from(count);
                return Some(Run {
                    slab: number,
                    slot,
                    count,
                });
            }
        }
        None
    }

    /// Takes exactly this run; false if a part of it is not free or does not exist.
    pub fn take_exactly(&mut self, run: Run) -> bool {
        let Some(slab) = self.slabs.get_mut(&run.slab) else {
            return false;
        };
        let Some(end) = run.slot.checked_add(run.count) else {
            return false;
        };
        match slab.free.range(..=run.slot).next_back() {
            Some((&slot, &len)) if end <= slot + len => {
                slab.cut(slot, len, run.slot, run.count);
                self.used += u64::from(run.count);
                true
            }
            _ => false,
        }
    }

    /// Gives a run back, joining it with its neighbours.
    pub fn give(&mut self, run: Run) {
        let slab = self
            .slabs
            .get_mut(&run.slab)
            .expect("runs are given back to slabs that exist");
        self.used -= u64::from(run.count);
        slab.free_slots += run.count;
        let (mut slot, mut len) = (run.slot, run.count);
        if let Some((&before, &before_len)) = slab.free.range(..slot).next_back() {
            debug_assert!(before + before_len <= slot, "a run is given back once");
            if before + before_len == slot {
                slab.free.remove(&before);
                (slot, len) = (before, len + before_len);
            }
        }
        if let Some(after_len) = slab.free.remove(&(slot + len)) {
            len += after_len;
        }
        slab.free.insert(slot, len);
    }

    /// Every free run.
    pub fn free_runs(&self) -> Vec<Run> {
        let runs = |(&slab, s): (&u32, &Slab)| {
            let runs: Vec<Run> = s
                .free
                .iter()
                .map(|(&slot, &count)| Run { slab, slot, count })
                .collect();
            runs
        };
        self.slabs.iter().flat_map(runs).collect()
    }
}

impl Slab {
    /// Takes `count` slots at `slot` out of the free run `run..run + len`.
    fn cut(&mut self, run: u32, len: u32, slot: u32, count: u32) {
        self.free.remove(&run);
        if slot > run {
            self.free.insert(run, slot - run);
        }
        let (end, run_end) = (slot + count, run + len);
        if end < run_end {
            self.free.insert(end, run_end - end);
        }
        self.free_slots -= count;
        self.written = self.written.max(end);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_come_back(steps in prop::collection::vec((1..64u32, any::<bool>()), 1..300)) {
            let mut slots = Slots::default();
            slots.add_slab(0, 200);
            slots.add_slab(1, 300);
            let mut held: Vec<Run> = Vec::new();
            for (n, take) in steps {
                if take {
                    match slots.take(n) {
                        Some(run) => {
                            prop_assert_eq!(run.count, n);
                            let clash = |h: &Run| h.slab == run.slab && h.slot < run.slot + n && run.slot < h.slot + h.count;
                            prop_assert!(!held.iter().any(clash));
                            held.push(run);
                        }
                        None => prop_assert!(slots.free_runs().iter().all(|free| free.count < n)),
                    }
                } else if !held.is_empty() {
                    slots.give(held.swap_remove(n as usize % held.len()));
                }
                let used: u64 = held.iter().map(|h| u64::from(h.count)).sum();
                prop_assert_eq!(slots.used(), used);
                let mut again = Slots::default();
                again.add_slab(0, 200);
                again.add_slab(1, 300);
                prop_assert!(held.iter().all(|run| again.take_exactly(*run)));
                prop_assert_eq!(again.free_runs(), slots.free_runs());
            }
            held.drain(..).for_each(|run| slots.give(run));
            prop_assert_eq!(slots.free_runs().len(), 2);
        }
    }

    #[test]
    fn closed_slabs_and_false_claims() {
        let mut slots = Slots::default();
        slots.add_slab(3, 10);
        let run = |slot, count| Run {
            slab: 3,
            slot,
            count,
        };
        assert!(!slots.take_exactly(run(8, 3)));
        assert!(!slots.take_exactly(run(u32::MAX, 2)));
        assert!(!slots.take_exactly(Run {
            slab: 4,
            slot: 0,
            count: 1
        }));
        assert!(slots.take_exactly(run(2, 3)) && !slots.take_exactly(run(4, 1)));
        slots.close_slab(3);
        assert_eq!(slots.take(1), None);
    }
}
