//! Classes of traffic, and who may fill the send buffer next.
//!
//! QUIC stream priorities order only what has been accepted into the connection's send buffer and is not yet handed to
//! the network: bytes in flight, and bytes in a bottleneck's queue, are past ordering. They do not order access to that
//! buffer either: it is one budget for all streams, so a saturating fill would make a demand answer wait for whoever
//! wins the race for each freed byte. The gate orders that access: while a higher class waits to write, lower ones stand
//! back. Invariant: a class is never shut out for ever, because a writer of a higher class may be waiting for a reader that
//! does not read; every [`SHARE_INTERVAL`] a lower writer may compete for one piece. That is the lower classes' reserved
//! share.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long a writer stands back for higher classes before it competes for one piece.
pub(super) const SHARE_INTERVAL: Duration = Duration::from_millis(500);

pub(super) const CLASSES: usize = 4;

/// Streams of one class that are told apart by age. Where the count begins anew, younger ones go first once.
const STREAMS_IN_ORDER: u64 = 1 << 24;

/// What a stream carries, lowest first. Strict between classes. Within one the oldest request is answered first, so that requests end one
/// after the other and not all together, with an empty line behind them; those that guests wait for share evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Prepopulation, in the branch's hours.
    Fill = 0,
    /// Write-back of desktops, and reports.
    State = 1,
    /// Boot profile prefetch.
    Boot = 2,
    /// A guest waits for it.
    Demand = 3,
}

impl Class {
    /// All of them, lowest first.
    pub const ALL: [Self; CLASSES] = [Self::Fill, Self::State, Self::Boot, Self::Demand];

    /// Its name, for figures and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::State => "state",
            Self::Boot => "boot",
            Self::Demand => "demand",
        }
    }

    /// quinn's stream priority for the stream that its opener opened as number `index`: larger goes first.
    pub fn priority(self, index: u64) -> i32 {
        let oldest = (self as i32 + 1) * STREAMS_IN_ORDER as i32;
        match self {
            Self::Demand => oldest,
            Self::Boot | Self::State | Self::Fill => oldest - (index % STREAMS_IN_ORDER) as i32,
        }
    }
}

/// Counts writers per class on one link.
#[derive(Debug, Default)]
pub(super) struct Gate {
    writing: [AtomicU32; CLASSES],
    changed: Notify,
}

/// A writer's presence; lower classes stand back while it lives.
pub(super) struct Writing<'a> {
    gate: &'a Gate,
    class: Class,
}

impl Gate {
    /// Announces a writer.
    pub(super) fn enter(&self, class: Class) -> Writing<'_> {
        self.writing[class as usize].fetch_add(1, Ordering::SeqCst);
        if class > Class::Fill {
            self.changed.notify_waiters();
        }
        Writing { gate: self, class }
    }

    /// Waits until no higher class is writing (`true`), or until this writer's share is due (`false`).
    pub(super) async fn turn(&self, class: Class) -> bool {
        if !self.outranked(class) {
            return true;
        }
        let share_due = sleep_until(Instant::now() + SHARE_INTERVAL);
        tokio::pin!(share_due);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the check, so that a change in between is not missed.
            changed.as_mut().enable();
            if !self.outranked(class) {
                return true;
            }
            tokio::select! {
                () = changed => {}
                () = &mut share_due => return false,
            }
        }
    }

    /// Waits until a higher class writes.
    pub(super) async fn preempted(&self, class: Class) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.outranked(class) {
                return;
            }
            changed.await;
        }
    }

    fn outranked(&self, class: Class) -> bool {
        self.writing[class as usize + 1..]
            .iter()
            .any(|writers| writers.load(Ordering::SeqCst) > 0)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.gate.writing[self.class as usize].fetch_sub(1, Ordering::SeqCst);
        if self.class > Class::Fill {
            self.gate.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_streams_go_first_within_a_class_and_no_class_passes_another() {
        let last = STREAMS_IN_ORDER - 1;
        for (lower, higher) in [
            (Class::Fill, Class::State),
            (Class::State, Class::Boot),
            (Class::Boot, Class::Demand),
        ] {
            assert!(lower.priority(0) > lower.priority(1));
            assert!(lower.priority(0) <= higher.priority(last));
        }
        assert!(Class::Boot.priority(0) < Class::Demand.priority(0));
        assert_eq!(Class::Demand.priority(7), Class::Demand.priority(8));
        assert!(
            Class::Fill.priority(last) > 0,
            "0 is a stream without a class"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn lower_classes_stand_back_but_not_for_ever() {
        let gate = Gate::default();
        assert!(gate.turn(Class::Fill).await);
        let demand = gate.enter(Class::Demand);
        assert!(gate.turn(Class::Demand).await, "equals do not wait");

        let start = Instant::now();
        assert!(!gate.turn(Class::Boot).await, "the share comes due");
        assert_eq!(start.elapsed(), SHARE_INTERVAL);

        let (turn, ()) = tokio::join!(gate.turn(Class::Fill), async { drop(demand) });
        assert!(turn, "free as soon as the higher class is done");
        assert_eq!(start.elapsed(), SHARE_INTERVAL);
    }

    /// For each pair of classes: the higher one never waits for the lower, the lower one stands back, and gets its share.
    #[tokio::test(start_paused = true)]
    async fn four_classes_in_strict_order() {
        let classes = [Class::Fill, Class::State, Class::Boot, Class::Demand];
        for (at, lower) in classes.into_iter().enumerate() {
            for higher in &classes[at + 1..] {
                let gate = Gate::default();
                let (start, writing) = (Instant::now(), gate.enter(*higher));
                assert!(!gate.turn(lower).await, "{lower:?} before {higher:?}");
                assert_eq!(start.elapsed(), SHARE_INTERVAL);
                drop(writing);
                let _writing = gate.enter(lower);
                assert!(gate.turn(*higher).await, "{higher:?} behind {lower:?}");
                assert_eq!(start.elapsed(), SHARE_INTERVAL, "it did not wait");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_higher_class_preempts_a_waiting_writer() {
        let gate = Gate::default();
        let fill = gate.enter(Class::Fill);
        let (_, boot) = tokio::join!(gate.preempted(Class::Fill), async {
            tokio::task::yield_now().await;
            gate.enter(Class::Boot)
        });
        drop((fill, boot));
        assert!(gate.turn(Class::Fill).await);
    }
}
