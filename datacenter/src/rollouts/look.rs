//! The one that looks after rollouts: it sees what branches told, has the machine decide, and keeps the decision together with what it decides about.
//!
//! Invariant: a rollout's row, the pools that a step changes, their branches' signed assignments and the channel change in one transaction. So a stop at
//! any moment leaves all of a step or nothing of it, and the next look goes on from there.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use datacenter_api::{AuditFacts, BranchStatus, DesktopStatus};
use dedup::BranchId;
use tokio_util::sync::CancellationToken;

use super::health::{DesktopSeen, Life, Seen};
use super::machine::{Event, Rollout, Site, SiteState, Stage};
use crate::catalog::rollouts::{ChannelKey, ChannelRow, HistoryRow, RolloutRow};
use crate::catalog::rows::{AheadRow, AssignmentRow, BranchRow, NewestFirst, PoolKey, PoolRow};
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::problem::{ManageError, describe};

/// How often it looks. A report of a branch comes every few seconds; nothing of a rollout is in a hurry.
const TICK: Duration = Duration::from_secs(2);
/// Entries of a history; what sites come by is left out beyond, how the rollout ends is not.
const HISTORY_MAX: usize = 5_000;

/// Looks after all rollouts until `cancel`.
pub async fn run(dc: Arc<Datacenter>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = cancel.cancelled() => return,
        }
        let worker = Arc::clone(&dc);
        let looked = tokio::task::spawn_blocking(move || worker.look_after_rollouts()).await;
        match looked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = describe(&error), "looking after rollouts"),
            Err(error) => tracing::error!(%error, "looking after rollouts"),
        }
    }
}

impl Datacenter {
    /// One look at each rollout that has not ended.
    pub fn look_after_rollouts(&self) -> Result<(), ManageError> {
        for id in self.active_rollout_ids()? {
            self.look_at_rollout(id)?;
        }
        Ok(())
    }

    fn look_at_rollout(&self, id: u64) -> Result<(), ManageError> {
        let now = self.now_unix_s();
        let key = NewestFirst(id);
        // Most looks change nothing, and a transaction is written to the disk.
        let is_news = self.catalog().read(|tx| {
            let Some(row) = tx.get::<RolloutRow>(&key)? else {
                return Ok(false);
            };
            let seen = self.seen(tx, &row.rollout)?;
            let mut rollout = row.rollout.clone();
            rollout.look(now, &seen);
            Ok::<_, CatalogError>(rollout != row.rollout)
        })?;
        let mut stage = None;
        if is_news {
            stage = self.catalog().transact(|tx| {
                let Some(mut row) = tx.get::<RolloutRow>(&key)? else {
                    return Ok(None);
                };
                let seen = self.seen(tx, &row.rollout)?;
                let before = row.rollout.clone();
                let events = row.rollout.look(now, &seen);
                let names = names(tx, &row.rollout)?;
                self.carry_out(tx, &row, &before, now)?;
                for event in &events {
                    note(tx, id, &mut row, event, &names, now)?;
                }
                if row.rollout.stage.is_over() && row.ended_unix_s.is_none() {
                    row.ended_unix_s = Some(now);
                }
                tx.put(&key, &row);
                Ok::<_, CatalogError>(Some(row.rollout.stage))
            })?;
            self.announce_assignments();
        }
        if let Some(stage) = stage
            && stage.is_over()
        {
            tracing::info!(rollout = id, ?stage, "a rollout has ended");
            self.forget_active_rollout(id);
        }
        Ok(())
    }

    /// What is seen of each of its sites.
    fn seen(&self, tx: &mut Tx<'_>, rollout: &Rollout) -> Result<Vec<Seen>, CatalogError> {
        let mut told: BTreeMap<BranchId, Told> = BTreeMap::new();
        let mut all = Vec::with_capacity(rollout.sites.len());
        for site in &rollout.sites {
            if site.is_over() {
                all.push(Seen::default());
                continue;
            }
            if let Entry::Vacant(vacant) = told.entry(site.branch) {
                vacant.insert(self.told(tx, site.branch)?);
            }
            let pool: Option<PoolRow> = tx.get(&key_of(site))?;
            all.push(seen_of(site, rollout, pool.as_ref(), &told[&site.branch]));
        }
        Ok(all)
    }

    fn told(&self, tx: &mut Tx<'_>, branch: BranchId) -> Result<Told, CatalogError> {
        let row: Option<BranchRow> = tx.get(&branch)?;
        let is_in = row.is_some_and(|row| row.revoked_unix_s.is_none());
        // What it follows is not known here: that is for a person to decide.
        let is_ahead = tx.get::<AheadRow>(&branch)?.is_some();
        let assignment: Option<AssignmentRow> = tx.get(&branch)?;
        Ok(Told {
            may_be_told: is_in && !is_ahead,
            counter: assignment.map_or(0, |row| row.counter),
            status: self.status_of(tx, branch)?.map(|(_, status)| status),
        })
    }

    /// Makes pools, assignments and the channel what the rollout says, where it says something new.
    fn carry_out(
        &self,
        tx: &mut Tx<'_>,
        row: &RolloutRow,
        before: &Rollout,
        now_unix_s: u64,
    ) -> Result<(), CatalogError> {
        let rollout = &row.rollout;
        let is_done = rollout.stage == Stage::Done && before.stage != Stage::Done;
        let mut branches = BTreeSet::new();
        for (site, was) in rollout.sites.iter().zip(&before.sites) {
            let is_moved = site.state != was.state || (is_done && !site.is_over());
            // A branch that is ahead is told nothing before a person has decided.
            if !is_moved || tx.get::<AheadRow>(&site.branch)?.is_some() {
                continue;
            }
            let key = key_of(site);
            let Some(mut pool) = tx.get::<PoolRow>(&key)? else {
                continue;
            };
            let pinned = rollout.pins(site, &pool.pinned);
            let version = match site.state {
                SiteState::Left => pool.version,
                _ => rollout.runs(site),
            };
            if (version, &pinned) != (pool.version, &pool.pinned) {
                (pool.version, pool.pinned) = (version, pinned);
                tx.put(&key, &pool);
                branches.insert(site.branch);
            }
        }
        for branch in branches {
            self.sign_assignment(tx, branch, now_unix_s)?;
        }
        if let Some(channel) = row.channel.as_ref().filter(|_| is_done) {
            let key = ChannelKey {
                image: row.image.clone(),
                channel: channel.clone(),
            };
            let moved = ChannelRow {
                version: rollout.target,
                since_unix_s: now_unix_s,
            };
            // One that was removed meanwhile stays so.
            if rollout.moved_any() && tx.get::<ChannelRow>(&key)?.is_some() {
                tx.put(&key, &moved);
            }
        }
        Ok(())
    }
}

/// What a branch told, and whether it may be told anything.
struct Told {
    may_be_told: bool,
    /// Of the assignment that it was told last.
    counter: u64,
    status: Option<BranchStatus>,
}

fn key_of(site: &Site) -> PoolKey {
    PoolKey {
        branch: site.branch,
        pool: site.pool.clone(),
    }
}

fn seen_of(site: &Site, rollout: &Rollout, pool: Option<&PoolRow>, told: &Told) -> Seen {
    let version = pool.filter(|_| told.may_be_told).map(|pool| pool.version);
    let Some(status) = &told.status else {
        return Seen {
            version,
            ..Seen::default()
        };
    };
    let target = rollout.target.to_string();
    let desktops = status.desktops.iter();
    let ours = desktops.filter(|desktop| desktop.pool == site.pool && desktop.version == target);
    Seen {
        version,
        follows: status.assignment_counter >= Some(told.counter),
        whole: status
            .versions
            .iter()
            .any(|held| held.version == target && held.complete),
        desktops: ours
            .map(|desktop| desktop_seen(desktop, status.reported_unix_s))
            .collect(),
    }
}

fn desktop_seen(told: &DesktopStatus, reported_unix_s: u64) -> DesktopSeen {
    let signs = told.signs.unwrap_or_default();
    // Both times are the branch's. One that somebody else runs has none.
    let up_s = match told.started_unix_s {
        0 => 0,
        started => reported_unix_s.saturating_sub(started),
    };
    DesktopSeen {
        name: told.id.clone(),
        life: match told.state.as_str() {
            "starting" | "running" | "served" => Life::Up,
            "paused" => Life::Held,
            "failed" => Life::Failed,
            // What another program's branch may say one day tells nothing.
            _ => Life::Down,
        },
        up_s,
        boot: signs.booted || told.boot.is_some(),
        log_in: signs.logged_in,
        alive: signs.agent || signs.network,
    }
}

/// The names of its branches.
pub(super) fn names(
    tx: &mut Tx<'_>,
    rollout: &Rollout,
) -> Result<BTreeMap<BranchId, String>, CatalogError> {
    let mut names = BTreeMap::new();
    for site in &rollout.sites {
        if let Entry::Vacant(vacant) = names.entry(site.branch) {
            let row: Option<BranchRow> = tx.get(&site.branch)?;
            vacant.insert(row.map_or_else(|| site.branch.to_string(), |row| row.name));
        }
    }
    Ok(names)
}

/// Writes an event into the history, and into the audit log what a person would have to answer for otherwise.
fn note(
    tx: &mut Tx<'_>,
    id: u64,
    row: &mut RolloutRow,
    event: &Event,
    names: &BTreeMap<BranchId, String>,
    now_unix_s: u64,
) -> Result<(), CatalogError> {
    let sites = &row.rollout.sites;
    let place = |at: &usize| {
        let site = &sites[*at];
        let branch = names.get(&site.branch).map_or("?", String::as_str);
        (branch.to_owned(), site.pool.clone())
    };
    let at = |at: &usize, what: &str| {
        let (branch, pool) = place(at);
        format!("{branch}/{pool}: {what}")
    };
    let mut facts = None;
    let text = match event {
        Event::Opened(wave) => format!("wave {} begins", wave + 1),
        Event::Staging(site) => at(site, "the version is fetched"),
        Event::Staged(site) => at(site, "all of it is there"),
        Event::Flipped(site) => at(site, "desktops boot it from their next start on"),
        Event::Healthy(site) => at(site, "enough desktops are well"),
        Event::Left(site) => at(site, "assigned by hand, or gone: it is let be"),
        Event::Returned(site) => at(site, "as it was"),
        Event::Failed { site, desktop } => at(site, &format!("desktop {desktop} failed")),
        Event::NoWord(site) => {
            let (branch, pool) = place(site);
            facts = Some(("rollout_paused", Some(branch), Some(pool)));
            at(site, "too few desktops were seen well in time; it pauses")
        }
        Event::Unhealthy(site) => {
            let (branch, pool) = place(site);
            facts = Some(("rollout_turned_back", Some(branch), Some(pool)));
            at(site, "desktops failed; all goes back")
        }
        Event::Done => {
            facts = Some(("rollout_done", None, None));
            "done".to_owned()
        }
        Event::RolledBack => {
            facts = Some(("rollout_rolled_back", None, None));
            "rolled back".to_owned()
        }
    };
    tracing::info!(rollout = id, what = text, "rollout");
    if let Some((event, branch, pool)) = facts {
        let facts = AuditFacts {
            unix_s: now_unix_s,
            event: event.to_owned(),
            who: "datacenter".to_owned(),
            branch,
            pool,
            reason: format!("rollout {id} of {}@{}: {text}", row.image, row.number),
            ..AuditFacts::default()
        };
        crate::catalog::audit::append(tx, &facts)?;
    } else if row.history.len() >= HISTORY_MAX {
        return Ok(());
    }
    row.history.push(HistoryRow {
        unix_s: now_unix_s,
        text,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use datacenter_api::{BootReport, DesktopSigns};

    use super::*;

    #[test]
    fn a_report_is_read_as_signs() {
        let mut told = DesktopStatus {
            id: "alice".into(),
            state: "running".into(),
            started_unix_s: 100,
            ..DesktopStatus::default()
        };
        let seen = desktop_seen(&told, 160);
        assert_eq!((seen.life, seen.up_s), (Life::Up, 60));
        assert!(!seen.boot && !seen.log_in && !seen.alive);
        told.boot = Some(BootReport::default());
        told.signs = Some(DesktopSigns {
            network: true,
            logged_in: true,
            ..DesktopSigns::default()
        });
        let seen = desktop_seen(&told, 90);
        assert!(seen.boot && seen.log_in && seen.alive);
        assert_eq!(seen.up_s, 0, "a clock that was set back is no age");
        told.started_unix_s = 0;
        for (state, life) in [
            ("served", Life::Up),
            ("paused", Life::Held),
            ("failed", Life::Failed),
            ("stopped", Life::Down),
            ("dreaming", Life::Down),
        ] {
            told.state = state.into();
            let seen = desktop_seen(&told, 9_999_999);
            assert_eq!((seen.life, seen.up_s), (life, 0));
        }
    }
}
