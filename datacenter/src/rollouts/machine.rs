//! A rollout as a value: which pools of which branches go to a version, in waves, and what turns them back. No clock, no catalog, no links.
//!
//! ```text
//!  a pool at a branch (a site):
//!
//!    Waiting ──pinned──► Staging ──all of it there──► Staged ──flipped──► Flipped ──proven──► Healthy
//!       │                   │                           │                    │                  │
//!       └───────────────────┴──────── rolled back ──────┴────────────────────┴──────────────────┴──► Returned
//!       └───────────────────┴──── assigned by hand, or gone ─────────────────┴──────────────────┴──► Left
//!
//!  the rollout:
//!                 no word in time, or a person
//!    Running ◄────────────────────────────────► Paused
//!       │  │                                      │
//!       │  └─────── a desktop failed, or a person ┴──► Returning ──all back──► Returned
//!       └─ all waves proven ──► Done
//! ```
//!
//! Whoever keeps it calls [`Rollout::look`] with what is seen of each site, and in the same transaction keeps the value and gives each site that changed what
//! [`Rollout::runs`] and [`Rollout::pins`] say. So a stop at any moment loses nothing, and a look that is done again changes nothing.
//!
//! Invariants, under test: a site runs the new version only after its branch said that all of it is there; a wave begins only when the one before is proven;
//! while a site runs the new version of a rollout that is not done, the former one is pinned; once a rollout has ended without being done no site of it runs
//! the new version, but those that a person took out of it; what was pinned before is pinned behind it, and nothing else is; a site that was taken out is not
//! touched again.

#[cfg(test)]
mod explore_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use dedup::{BranchId, VersionId};
use serde::{Deserialize, Serialize};

use super::health::{Gate, Seen, Verdict};

/// Desktops that are remembered of a site by name, of those that are well and of those that are not: bounds the row, and what a gate can ask for.
pub const NAMES_MAX: usize = 100;
/// Sites that change in one look: bounds the transaction that signs their assignments. A branch's sites are never split.
pub const CHANGES_MAX: usize = 200;

/// Where a site stands. The tags are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SiteState {
    /// Its wave is not near.
    Waiting,
    /// The new version is pinned and fetched.
    Staging,
    /// All of it is there.
    Staged,
    /// Desktops boot it from their next start on.
    Flipped,
    /// Enough of them are well.
    Healthy,
    /// It is as it was.
    Returned,
    /// A person decided otherwise, or it is gone.
    Left,
}

/// A pool at a branch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Site {
    /// The branch.
    pub branch: BranchId,
    /// The pool.
    pub pool: String,
    /// Its wave, from 0. One branch's sites have one.
    pub wave: u16,
    /// The version that it comes from.
    pub from: VersionId,
    /// That version was pinned before.
    pub had_from: bool,
    /// The new version was pinned before.
    pub had_target: bool,
    /// Where it stands.
    pub state: SiteState,
    /// Since when, unix seconds.
    pub since_unix_s: u64,
    /// Desktops that were seen well.
    pub healthy: BTreeSet<String>,
    /// Desktops that failed, and were not seen well since.
    pub failed: BTreeSet<String>,
}

impl Site {
    /// Whether the rollout touches it no more.
    pub fn is_over(&self) -> bool {
        matches!(self.state, SiteState::Returned | SiteState::Left)
    }

    fn is_settled(&self) -> bool {
        matches!(self.state, SiteState::Healthy | SiteState::Left)
    }

    fn runs_target(&self) -> bool {
        matches!(self.state, SiteState::Flipped | SiteState::Healthy)
    }
}

/// Why it pauses. The tags are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Pause {
    /// Somebody wished so.
    Person,
    /// Too few desktops were seen well in time, and too few failed to judge.
    NoWord,
}

/// Why it is turned back. The tags are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// Somebody wished so.
    Person,
    /// Desktops failed.
    Unhealthy,
}

/// Where a rollout stands. The tags are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// It goes on by itself.
    Running,
    /// Nothing new is fetched or flipped; what was flipped is watched.
    Paused(Pause),
    /// Sites are turned back.
    Returning(Cause),
    /// All that is left of its sites run the new version.
    Done,
    /// All that is left of its sites are as they were.
    Returned(Cause),
}

impl Stage {
    /// Whether nothing comes of it any more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Returned(_))
    }
}

/// What a look found or decided; numbers are those of sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A wave begins, from 0.
    Opened(u16),
    /// A site's version is fetched.
    Staging(usize),
    /// It is there.
    Staged(usize),
    /// It is what desktops boot.
    Flipped(usize),
    /// Enough of them are well.
    Healthy(usize),
    /// A desktop failed.
    Failed {
        /// Where.
        site: usize,
        /// Its name.
        desktop: String,
    },
    /// Nobody knows whether a site is well; the rollout pauses.
    NoWord(usize),
    /// A person took a site out of it, or it is gone.
    Left(usize),
    /// More desktops of a site failed than may; all goes back.
    Unhealthy(usize),
    /// A site is as it was.
    Returned(usize),
    /// The rollout is done.
    Done,
    /// The rollout is turned back.
    RolledBack,
}

/// Why a wish was not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is over.
    #[error("it has ended; begin another one")]
    Over,
    /// It is being turned back.
    #[error("it is being rolled back, which is not stopped")]
    GoingBack,
    /// It runs.
    #[error("it is not paused")]
    NotPaused,
}

/// A rollout.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rollout {
    /// The new version.
    pub target: VersionId,
    /// What is asked of a site.
    pub gate: Gate,
    /// How many waves there are.
    pub waves: u16,
    /// The one that is at work, from 0.
    pub wave: u16,
    /// Where it stands.
    pub stage: Stage,
    /// From when on missing desktops count, unix seconds: its beginning, or when it was let go on last.
    pub patience_unix_s: u64,
    /// What it is about.
    pub sites: Vec<Site>,
}

impl Rollout {
    /// What desktops of a site boot, as far as this rollout decides.
    pub fn runs(&self, site: &Site) -> VersionId {
        if site.runs_target() {
            self.target
        } else {
            site.from
        }
    }

    /// What a site pins, where it pins `now`.
    pub fn pins(&self, site: &Site, now: &[VersionId]) -> Vec<VersionId> {
        let needed = match (site.state, self.stage) {
            (SiteState::Staging | SiteState::Staged, _) => Some(self.target),
            (SiteState::Flipped | SiteState::Healthy, stage) if stage != Stage::Done => {
                Some(site.from)
            }
            _ => None,
        };
        let ours = |id: VersionId| {
            let is_target = id == self.target && !site.had_target;
            is_target || (id == site.from && !site.had_from)
        };
        let kept = now.iter().copied().filter(|id| !ours(*id));
        let pins: BTreeSet<VersionId> = kept.chain(needed).collect();
        pins.into_iter().collect()
    }

    /// Whether any site runs the new version by it.
    pub fn moved_any(&self) -> bool {
        self.sites.iter().any(Site::runs_target)
    }

    /// Pauses it.
    ///
    /// # Errors
    /// It goes back, or is over.
    pub fn pause(&mut self) -> Result<(), Refused> {
        match self.stage {
            Stage::Running | Stage::Paused(_) => self.stage = Stage::Paused(Pause::Person),
            Stage::Returning(_) => return Err(Refused::GoingBack),
            Stage::Done | Stage::Returned(_) => return Err(Refused::Over),
        }
        Ok(())
    }

    /// Lets it go on. Desktops have their time anew.
    ///
    /// # Errors
    /// It is not paused.
    pub fn resume(&mut self, now_unix_s: u64) -> Result<(), Refused> {
        match self.stage {
            Stage::Paused(_) => {
                self.stage = Stage::Running;
                self.patience_unix_s = now_unix_s;
                Ok(())
            }
            Stage::Running => Err(Refused::NotPaused),
            Stage::Returning(_) => Err(Refused::GoingBack),
            Stage::Done | Stage::Returned(_) => Err(Refused::Over),
        }
    }

    /// Turns it back from the next look on.
    ///
    /// # Errors
    /// It is over. Again is no error.
    pub fn abort(&mut self) -> Result<(), Refused> {
        match self.stage {
            Stage::Running | Stage::Paused(_) => self.stage = Stage::Returning(Cause::Person),
            Stage::Returning(_) => {}
            Stage::Done | Stage::Returned(_) => return Err(Refused::Over),
        }
        Ok(())
    }

    /// Takes in what is seen of each site, in their order, and decides.
    pub fn look(&mut self, now_unix_s: u64, seen: &[Seen]) -> Vec<Event> {
        assert_eq!(seen.len(), self.sites.len(), "one view of each site");
        let mut events = Vec::new();
        if self.stage.is_over() {
            return events;
        }
        for (at, seen) in seen.iter().enumerate() {
            self.hear(at, seen, now_unix_s, &mut events);
        }
        if matches!(self.stage, Stage::Running | Stage::Paused(_))
            && let Some(at) = self.unhealthy()
        {
            self.stage = Stage::Returning(Cause::Unhealthy);
            events.push(Event::Unhealthy(at));
        }
        match self.stage {
            Stage::Running => self.advance(now_unix_s, &mut events),
            Stage::Returning(cause) => self.go_back(cause, now_unix_s, &mut events),
            Stage::Paused(_) | Stage::Done | Stage::Returned(_) => {}
        }
        events
    }

    fn hear(&mut self, at: usize, seen: &Seen, now_unix_s: u64, events: &mut Vec<Event>) {
        let (gate, target) = (self.gate, self.target);
        let site = &mut self.sites[at];
        if site.is_over() {
            return;
        }
        let expected = if site.runs_target() {
            target
        } else {
            site.from
        };
        if seen.version != Some(expected) {
            site.become_state(SiteState::Left, now_unix_s);
            events.push(Event::Left(at));
            return;
        }
        if site.state == SiteState::Staging && seen.follows && seen.whole {
            site.become_state(SiteState::Staged, now_unix_s);
            events.push(Event::Staged(at));
        }
        if !site.runs_target() {
            return;
        }
        for desktop in &seen.desktops {
            let name = &desktop.name;
            match gate.verdict(desktop) {
                Verdict::Healthy => {
                    site.failed.remove(name);
                    if site.healthy.len() < NAMES_MAX {
                        site.healthy.insert(name.clone());
                    }
                }
                Verdict::Failed => {
                    site.healthy.remove(name);
                    if site.failed.len() < NAMES_MAX && site.failed.insert(name.clone()) {
                        events.push(Event::Failed {
                            site: at,
                            desktop: name.clone(),
                        });
                    }
                }
                Verdict::Pending => {}
            }
        }
        let enough = site.healthy.len() >= gate.desktops as usize;
        let soaked = now_unix_s >= site.since_unix_s.saturating_add(gate.soak_s);
        if site.state == SiteState::Flipped && enough && soaked {
            site.become_state(SiteState::Healthy, now_unix_s);
            events.push(Event::Healthy(at));
        }
    }

    /// A site of which more desktops failed than may.
    fn unhealthy(&self) -> Option<usize> {
        let may = self.gate.failures as usize;
        self.sites
            .iter()
            .position(|site| site.runs_target() && site.failed.len() > may)
    }

    fn advance(&mut self, now_unix_s: u64, events: &mut Vec<Event>) {
        let (gate, patience) = (self.gate, self.patience_unix_s);
        let silent = |site: &Site| {
            let from = site.since_unix_s.max(patience);
            site.state == SiteState::Flipped
                && site.healthy.len() < gate.desktops as usize
                && now_unix_s >= from.saturating_add(gate.wait_s)
        };
        if let Some(at) = self.sites.iter().position(silent) {
            self.stage = Stage::Paused(Pause::NoWord);
            events.push(Event::NoWord(at));
            return;
        }
        if self.sites.iter().all(Site::is_settled) {
            self.stage = Stage::Done;
            events.push(Event::Done);
            return;
        }
        while self.is_settled_up_to(self.wave) && self.wave + 1 < self.waves {
            self.wave += 1;
            events.push(Event::Opened(self.wave));
        }
        self.flip(now_unix_s, events);
        self.stage_next(now_unix_s, events);
    }

    fn is_settled_up_to(&self, wave: u16) -> bool {
        let mut so_far = self.sites.iter().filter(|site| site.wave <= wave);
        so_far.all(Site::is_settled)
    }

    /// Flips branches of open waves: all of a branch's sites in one assignment, once all of them are there.
    fn flip(&mut self, now_unix_s: u64, events: &mut Vec<Event>) {
        let mut branches: BTreeMap<BranchId, Vec<usize>> = BTreeMap::new();
        for (at, site) in self.sites.iter().enumerate() {
            if site.wave <= self.wave {
                branches.entry(site.branch).or_default().push(at);
            }
        }
        let mut changes = 0;
        for sites in branches.into_values() {
            let is_there = |at: &usize| {
                !matches!(
                    self.sites[*at].state,
                    SiteState::Waiting | SiteState::Staging
                )
            };
            if !sites.iter().all(is_there) {
                continue;
            }
            for at in sites {
                if self.sites[at].state == SiteState::Staged {
                    self.sites[at].become_state(SiteState::Flipped, now_unix_s);
                    events.push(Event::Flipped(at));
                    changes += 1;
                }
            }
            if changes >= CHANGES_MAX {
                return;
            }
        }
    }

    /// Has the version fetched for the open waves and the next one: a bad version that a canary finds is not everywhere by then.
    fn stage_next(&mut self, now_unix_s: u64, events: &mut Vec<Event>) {
        let until = self.wave.saturating_add(1);
        let mut changes = 0;
        for (at, site) in self.sites.iter_mut().enumerate() {
            if site.state == SiteState::Waiting && site.wave <= until && changes < CHANGES_MAX {
                site.become_state(SiteState::Staging, now_unix_s);
                events.push(Event::Staging(at));
                changes += 1;
            }
        }
    }

    /// Turns sites back, first those whose desktops boot the new version.
    fn go_back(&mut self, cause: Cause, now_unix_s: u64, events: &mut Vec<Event>) {
        let mut changes = 0;
        for flipped in [true, false] {
            for (at, site) in self.sites.iter_mut().enumerate() {
                let is_due = !site.is_over() && site.runs_target() == flipped;
                if is_due && changes < CHANGES_MAX {
                    site.become_state(SiteState::Returned, now_unix_s);
                    events.push(Event::Returned(at));
                    changes += 1;
                }
            }
        }
        if self.sites.iter().all(Site::is_over) {
            self.stage = Stage::Returned(cause);
            events.push(Event::RolledBack);
        }
    }
}

impl Site {
    fn become_state(&mut self, state: SiteState, now_unix_s: u64) {
        self.state = state;
        self.since_unix_s = now_unix_s;
    }
}
