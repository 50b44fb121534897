//! What must hold in every world.

use super::super::Generation;
use super::super::authority::Stage;
use super::super::writeback::LineRow;
use super::world::{History, World, site_of};
use super::{shown, union};

impl World {
    /// What does not hold, if anything.
    pub(super) fn check(&self) -> Option<&'static str> {
        if self.oracle.fault.is_some() {
            return self.oracle.fault;
        }
        if !self.is_past_state(&self.center.disk.main.row, |_| true) {
            return Some("the desktop's state is not a prefix of what one branch acknowledged");
        }
        for ((generation, _), row) in self.fork_rows() {
            let is_whole = row.applied.seq > 0;
            if is_whole && !self.is_past_state(row, |h| h.generation == *generation) {
                return Some("a fork is not what its branch acknowledged");
            }
        }
        let held = self.center.holds();
        let is_kept = |write: &u8| held.contains(write) || self.is_on_a_disk(*write);
        if !self.oracle.owed.iter().all(is_kept) {
            return Some("an acknowledged write is nowhere any more");
        }
        self.check_sites()
    }

    /// Whether a line's state is what some history began with, and its first writes, without a gap.
    fn is_past_state(&self, row: &LineRow, may_be: impl Fn(&History) -> bool) -> bool {
        let state = shown(&row.disks);
        let is_in = |history: &History| {
            let mut ends = 0..=history.writes.len();
            ends.any(|end| union(&history.base, &history.writes[..end]) == state)
        };
        let mut histories = self.oracle.histories.iter();
        state.is_empty() || histories.any(|history| may_be(history) && is_in(history))
    }

    fn check_sites(&self) -> Option<&'static str> {
        let authority = &self.center.disk.authority;
        let main = &self.center.disk.main.row;
        let mut writers = Vec::new();
        for (index, site) in self.sites.iter().enumerate() {
            match &site.disk.hold.stage {
                Stage::Idle { .. } | Stage::Dropped { .. } => {}
                Stage::Held { lease, .. } => {
                    writers.push(lease.generation);
                    let send = &site.disk.send;
                    let is_main = authority.holder.is_some()
                        && authority.last == lease.generation
                        && send.line.generation == lease.generation;
                    if is_main && send.acked.seq > main.progress(lease.generation).applied.seq {
                        return Some("a branch takes for kept what the datacenter does not have");
                    }
                }
                Stage::Fenced { generation, .. } => {
                    let is_excused = self.oracle.broken.contains(generation)
                        || self.oracle.restored.contains(&index);
                    if !is_excused {
                        return Some("a branch was fenced without a reason");
                    }
                }
            }
        }
        writers.sort_unstable();
        if writers.windows(2).any(|pair| pair[0] == pair[1]) {
            return Some("two branches have a desktop under one generation");
        }
        None
    }

    /// What is not as it should be when everything that was on its way has arrived.
    pub(super) fn check_rest(&self) -> Option<&'static str> {
        let authority = &self.center.disk.authority;
        let main = &self.center.disk.main.row;
        for (index, site) in self.sites.iter().enumerate() {
            let was_restored = self.oracle.restored.contains(&index);
            // Only while what it let go of is what is held.
            let held = authority.holder.as_ref();
            let let_go = held.is_some_and(|held| self.oracle.let_go.contains(&(index, held.asked)));
            let is_holder = authority
                .holder
                .as_ref()
                .is_some_and(|holder| site_of(holder.branch) == index);
            match &site.disk.hold.stage {
                Stage::Idle { .. } if is_holder && !was_restored && !let_go => {
                    return Some(
                        "the datacenter thinks that a branch has a desktop which it has not",
                    );
                }
                Stage::Idle { .. } => {}
                Stage::Held {
                    is_returning: true, ..
                } => return Some("a desktop is given back for ever"),
                Stage::Held { lease, .. } => {
                    if self.oracle.stale.contains(&(index, lease.generation)) {
                        return Some("an older copy of a disk was not noticed");
                    }
                    if !is_holder || authority.last != lease.generation {
                        return Some("a branch thinks that it has a desktop which it has not");
                    }
                    let applied = main.progress(lease.generation).applied;
                    let is_drained = site.disk.send.sealed.is_none()
                        && site.disk.send.acked == applied
                        && applied.seq == site.disk.log.len() as u64;
                    if !is_drained {
                        return Some("write-back stands still");
                    }
                }
                Stage::Fenced { .. } => return Some("a fork stands still"),
                // A question stays out that another branch's lease keeps from being answered, or one of its own that it does not know of.
                Stage::Dropped { generation }
                    if *generation == Generation::NONE
                        && authority.holder.is_some()
                        && (!is_holder || was_restored || let_go) => {}
                Stage::Dropped { .. } => return Some("what was given up is told for ever"),
            }
        }
        let holder = authority.holder.as_ref();
        let holder = holder.map(|holder| site_of(holder.branch));
        if let (Some(home), Some(holder)) = (self.center.disk.home, holder)
            && home != holder
            && !self.oracle.restored.contains(&holder)
        {
            return Some("a desktop that was moved stays where it was");
        }
        None
    }
}
