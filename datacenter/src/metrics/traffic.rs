//! The links of branches, for what they add up to.
//!
//! Invariant: a link is counted as long as its guard lives, and what it had come to stays counted after that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dedup_transport::link::{Link, LinkTotals};

use crate::datacenter::Datacenter;

/// See the module.
#[derive(Default)]
pub(crate) struct Traffic {
    links: Mutex<Links>,
}

#[derive(Default)]
struct Links {
    next: u64,
    up: HashMap<u64, Link>,
    before: LinkTotals,
}

impl Traffic {
    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are up, and what all add up to.
    pub(super) fn totals(&self) -> (u64, LinkTotals) {
        let links = self.links();
        let mut totals = links.before;
        for link in links.up.values() {
            totals.add(&link.stats());
        }
        (links.up.len() as u64, totals)
    }
}

/// Counts a link for as long as it lives.
pub(crate) struct CountedLink {
    datacenter: Arc<Datacenter>,
    number: u64,
}

impl Drop for CountedLink {
    fn drop(&mut self) {
        let mut links = self.datacenter.observed().traffic.links();
        if let Some(link) = links.up.remove(&self.number) {
            links.before.add(&link.stats());
        }
    }
}

impl Datacenter {
    /// Counts a branch's link until the answer is dropped.
    pub(crate) fn count_link(self: &Arc<Self>, link: &Link) -> CountedLink {
        let mut links = self.observed().traffic.links();
        let number = links.next;
        links.next += 1;
        links.up.insert(number, link.clone());
        drop(links);
        CountedLink {
            datacenter: Arc::clone(self),
            number,
        }
    }
}
