//! Batches of updates as fill: they take their turn by the same rules, but leave single flight alone.
//!
//! An update's chunks are not in the queue's flights: a guest that wants one asks for it at once, as if no update were on its way, and
//! whichever comes second is dropped.

use dedup_protocol::wire::Urgency;

use super::{Queue, slot};

/// Batches that may be in flight whatever the path holds: with one alone, the line would rest for a round trip after each.
const UPDATES_FLYING_MIN: usize = 2;

impl Queue {
    /// Whether a batch of an update may be asked for now; if so, it counts as in flight until [`Self::update_landed`]. `bytes` are
    /// about what plain fill would send in the same time.
    pub fn update_departs(&mut self, now_ms: u64, fill_flight_bytes: u64, bytes: u64) -> bool {
        let few = self.updates_flying < UPDATES_FLYING_MIN;
        let allowed = self.fill_allowed(now_ms, fill_flight_bytes)
            || (few && self.fill_is_open(now_ms) && !self.fill_yields(now_ms));
        if allowed {
            self.last_fill_ms = now_ms;
            self.flying[slot(Urgency::Fill)] += 1;
            self.fill_bytes_flying += bytes;
            self.updates_flying += 1;
        }
        allowed
    }

    /// A batch that departed with `bytes` has come, or will not.
    pub fn update_landed(&mut self, bytes: u64) {
        self.flying[slot(Urgency::Fill)] -= 1;
        self.fill_bytes_flying -= bytes;
        self.updates_flying -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn two_batches_fly_on_any_path_and_more_on_a_long_one() {
        let mut queue = Queue::new();
        assert!(queue.update_departs(0, 0, 5 * MIB));
        assert!(queue.update_departs(0, 0, 5 * MIB));
        assert!(!queue.update_departs(0, 0, 5 * MIB), "a short path is full");
        assert!(queue.update_departs(0, 20 * MIB, 5 * MIB));
        queue.update_landed(5 * MIB);
        queue.update_landed(5 * MIB);
        assert!(queue.update_departs(0, 0, 5 * MIB));
    }

    #[test]
    fn batches_yield_to_a_booting_desktop_but_for_the_reserved_share() {
        let mut queue = Queue::new();
        queue.boot_begins(0);
        // Nothing went out for long, so the first is the reserved share's.
        assert!(queue.update_departs(6_000, 48 * MIB, MIB));
        assert!(!queue.update_departs(6_000, 48 * MIB, MIB));
        assert!(
            !queue.update_departs(12_000, 48 * MIB, MIB),
            "one at a time"
        );
        queue.update_landed(MIB);
        assert!(queue.update_departs(12_000, 48 * MIB, MIB));
        queue.update_landed(MIB);
        assert!(
            !queue.update_departs(13_000, 48 * MIB, MIB),
            "one in five seconds"
        );
        // Nobody waited for fifteen seconds: the boot has settled.
        assert!(queue.update_departs(15_001, 48 * MIB, MIB));
        assert!(queue.update_departs(15_001, 48 * MIB, MIB));
    }

    #[test]
    fn no_batch_departs_outside_of_the_hours_or_into_a_full_cache() {
        let mut queue = Queue::new();
        queue.set_fill_hour(false);
        assert!(!queue.update_departs(60_000, 48 * MIB, MIB));
        queue.set_fill_hour(true);
        queue.cache_is_full(60_000);
        assert!(!queue.update_departs(60_001, 48 * MIB, MIB));
        assert!(queue.update_departs(90_000, 48 * MIB, MIB));
    }
}
