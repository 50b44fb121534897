//! Bytes of a link by class, and what all links of a process added up to.
//!
//! Bytes of frames and of what repairs them, as they were handed to QUIC or taken from it: headers of packets and retransmissions are in
//! [`LinkStats`] alone. What an end receives is counted for streams that it opened itself, because only who asked knows what the answer is
//! for; a branch opens all streams, so there nothing is left out. Figures only: nothing here decides anything.

use std::sync::atomic::{AtomicU64, Ordering};

use super::gate::CLASSES;
use super::{Class, LinkStats};

/// Bytes by class, in the order of [`Class::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassBytes {
    /// Sent by this end.
    pub sent: [u64; CLASSES],
    /// Received by this end, on streams that it opened.
    pub received: [u64; CLASSES],
}

impl ClassBytes {
    /// Each class with what was sent and received in it, lowest first.
    pub fn each(&self) -> impl Iterator<Item = (Class, u64, u64)> {
        let (sent, received) = (self.sent, self.received);
        let classes = Class::ALL.into_iter();
        classes.map(move |class| (class, sent[class as usize], received[class as usize]))
    }

    fn add(&mut self, other: &Self) {
        for (mine, more) in self.sent.iter_mut().zip(other.sent) {
            *mine += more;
        }
        for (mine, more) in self.received.iter_mut().zip(other.received) {
            *mine += more;
        }
    }
}

/// The counters of one link.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    sent: [AtomicU64; CLASSES],
    received: [AtomicU64; CLASSES],
}

impl Traffic {
    pub(super) fn sent(&self, class: Class, bytes: usize) {
        self.sent[class as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn received(&self, class: Class, bytes: usize) {
        self.received[class as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> ClassBytes {
        let read = |counters: &[AtomicU64; CLASSES]| {
            std::array::from_fn(|class| counters[class].load(Ordering::Relaxed))
        };
        ClassBytes {
            sent: read(&self.sent),
            received: read(&self.received),
        }
    }
}

/// What links added up to: those that ended, and any that are added for the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkTotals {
    /// How many links.
    pub links: u64,
    /// UDP payload bytes sent, retransmissions and headers included.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Packets declared lost by this end.
    pub lost_packets: u64,
    /// Datagrams received that repair streams.
    pub repairs_received: u64,
    /// Bytes of frames by class.
    pub classes: ClassBytes,
}

impl LinkTotals {
    /// Counts a link as it is now.
    pub fn add(&mut self, stats: &LinkStats) {
        // Taken apart completely, so that a new figure cannot be forgotten here.
        let &LinkStats {
            rtt: _,
            loss_per_mille: _,
            lost_packets,
            sent_bytes,
            received_bytes,
            cwnd: _,
            mtu: _,
            repairs_received,
            classes,
        } = stats;
        self.links += 1;
        self.sent_bytes += sent_bytes;
        self.received_bytes += received_bytes;
        self.lost_packets += lost_packets;
        self.repairs_received += repairs_received;
        self.classes.add(&classes);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn links_add_up_class_by_class() {
        let traffic = Traffic::default();
        traffic.sent(Class::Demand, 7);
        traffic.sent(Class::Demand, 3);
        traffic.received(Class::Fill, 100);
        let stats = LinkStats {
            rtt: Duration::ZERO,
            loss_per_mille: 0,
            lost_packets: 1,
            sent_bytes: 50,
            received_bytes: 200,
            cwnd: 1,
            mtu: 1200,
            repairs_received: 2,
            classes: traffic.bytes(),
        };
        let mut totals = LinkTotals::default();
        totals.add(&stats);
        totals.add(&stats);
        assert_eq!((totals.links, totals.sent_bytes), (2, 100));
        assert_eq!((totals.lost_packets, totals.repairs_received), (2, 4));
        let each: Vec<_> = totals.classes.each().collect();
        let expected = [
            (Class::Fill, 0, 200),
            (Class::State, 0, 0),
            (Class::Boot, 0, 0),
            (Class::Demand, 20, 0),
        ];
        assert_eq!(each, expected);
    }
}
