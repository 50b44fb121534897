//! Rollouts: pools go to a version branch by branch, in waves, and go back by themselves where desktops fail.
//!
//! [`machine`] decides, as a value without I/O; [`look`] shows it what branches told and carries out what it decided; [`plan`] works out what a rollout is about,
//! [`price`] what it costs, [`channels`] which version pools follow. A branch knows nothing of rollouts: it is told assignments, in which the version that
//! comes and the one to go back to are pinned, so it fetches the one before it boots it, and boots the other without the line (decision 0051).
//!
//! Invariant: a pool is moved by one rollout at a time, and a rollout that has ended is never changed again. It refuses to decide about a branch whose
//! assignment is not remembered here.

pub mod channels;
pub mod health;
pub mod look;
pub mod machine;
mod plan;
pub mod price;
mod shown;

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use datacenter_api::{Rollout as Shown, RolloutRequest, RolloutState};

use crate::catalog::rollouts::{HistoryRow, RolloutRow};
use crate::catalog::rows::NewestFirst;
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::identity::rights::Place;
use crate::problem::ManageError;
use machine::{Refused, Rollout, Stage};
use plan::plan;

/// Rollouts that have not ended; more are refused: each is looked at every few seconds.
const ACTIVE_MAX: usize = 16;
/// Ended rollouts that are remembered; the oldest go first.
const KEPT_MAX: usize = 500;
/// More than there are.
const ALL: usize = usize::MAX / 2;

/// Who asks, by what he may do: says of a place whether he may change it.
pub type Allowed<'a> = &'a dyn Fn(&Place) -> Result<(), ManageError>;

/// What somebody wishes of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing new is to happen.
    Pause,
    /// It is to go on.
    Resume,
    /// It is to be turned back.
    Abort,
}

/// Numbers of those that have not ended, so that a look at nothing costs nothing. Made of the catalog when it is first needed.
#[derive(Default)]
pub struct Rollouts {
    active: Mutex<Option<BTreeSet<u64>>>,
}

impl Rollouts {
    fn active(&self) -> MutexGuard<'_, Option<BTreeSet<u64>>> {
        // Nothing leaves it half changed.
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Datacenter {
    /// Numbers of the rollouts that have not ended.
    pub(crate) fn active_rollout_ids(&self) -> Result<Vec<u64>, CatalogError> {
        // Over the look into the catalog too: one that begins meanwhile is either found there or added behind it. Nobody wants this in a transaction.
        let mut known = self.rollouts_active().active();
        if known.is_none() {
            let found = self.catalog().read(active)?;
            *known = Some(found.into_iter().map(|(id, _)| id).collect());
        }
        Ok(known.iter().flatten().copied().collect())
    }

    fn forget_active_rollout(&self, id: u64) {
        if let Some(ids) = self.rollouts_active().active().as_mut() {
            ids.remove(&id);
        }
    }

    fn active_rollouts(&self) -> Result<Vec<RolloutRow>, CatalogError> {
        self.catalog().read(|tx| {
            let rows = active(tx)?.into_iter();
            Ok(rows.map(|(_, row)| row).collect())
        })
    }

    /// Begins a rollout. `allowed` is asked about each pool that it moves, and about the realm if it moves a channel.
    pub fn start_rollout(
        &self,
        who: &str,
        request: &RolloutRequest,
        allowed: Allowed<'_>,
    ) -> Result<Shown, ManageError> {
        let now = self.now_unix_s();
        // A part of those who follow a channel says nothing of the others.
        let is_whole = request.branches.is_empty() && request.pool.is_none();
        let channel = request.channel.clone().filter(|_| is_whole);
        let (id, shown) = self.catalog().transact(|tx| {
            let running = active(tx)?;
            if running.len() >= ACTIVE_MAX {
                return Err(ManageError::conflict(
                    format!("{ACTIVE_MAX} rollouts are under way already"),
                    "wait for one, or end one: `splice rollout list`",
                ));
            }
            let running: Vec<RolloutRow> = running.into_iter().map(|(_, row)| row).collect();
            let plan = plan(tx, request, &running)?;
            if channel.is_some() {
                allowed(&Place::REALM)?;
            }
            for planned in &plan.sites {
                allowed(&Place {
                    branch: Some(planned.branch.clone()),
                    pool: Some(planned.site.pool.clone()),
                })?;
            }
            let newest = tx.list::<RolloutRow>(&[], None, 1)?;
            let id = newest.first().map_or(1, |(NewestFirst(last), _)| last + 1);
            let count = plan.sites.len();
            let row = RolloutRow {
                image: plan.image,
                number: plan.number,
                channel: channel.clone(),
                who: who.to_owned(),
                reason: request.reason.clone(),
                created_unix_s: now,
                ended_unix_s: None,
                rollout: Rollout {
                    target: plan.target,
                    gate: plan.gate,
                    waves: plan.waves,
                    wave: 0,
                    stage: Stage::Running,
                    patience_unix_s: now,
                    sites: plan.sites.into_iter().map(|planned| planned.site).collect(),
                },
                history: vec![HistoryRow {
                    unix_s: now,
                    text: format!("{who} begins it: {count} pools, {} waves", plan.waves),
                }],
            };
            tx.put(&NewestFirst(id), &row);
            forget_oldest(tx)?;
            Ok((id, shown::rollout(tx, id, &row)?))
        })?;
        if let Some(ids) = self.rollouts_active().active().as_mut() {
            ids.insert(id);
        }
        tracing::info!(
            rollout = id,
            version = shown.version,
            who,
            "a rollout begins"
        );
        Ok(shown)
    }

    /// Does what somebody wishes of a rollout. `allowed` is asked about each pool that it moves.
    pub fn steer_rollout(
        &self,
        who: &str,
        id: u64,
        wish: Wish,
        allowed: Allowed<'_>,
    ) -> Result<Shown, ManageError> {
        let now = self.now_unix_s();
        let shown = self.catalog().transact(|tx| {
            let mut row = require(tx, id)?;
            for place in shown::places(tx, &row)? {
                allowed(&place)?;
            }
            let (done, word) = match wish {
                Wish::Pause => (row.rollout.pause(), "pauses"),
                Wish::Resume => (row.rollout.resume(now), "resumes"),
                Wish::Abort => (row.rollout.abort(), "aborts"),
            };
            done.map_err(|refused: Refused| {
                let message = format!("rollout {id}: {refused}");
                ManageError::conflict(message, format!("`splice rollout show {id}`"))
            })?;
            row.history.push(HistoryRow {
                unix_s: now,
                text: format!("{who} {word} it"),
            });
            tx.put(&NewestFirst(id), &row);
            shown::rollout(tx, id, &row)
        })?;
        tracing::info!(rollout = id, ?wish, who, "a rollout is steered");
        Ok(shown)
    }

    /// A rollout with all of its pools and its history.
    pub fn rollout(&self, id: u64) -> Result<Shown, ManageError> {
        self.catalog().read(|tx| {
            let row = require(tx, id)?;
            shown::rollout(tx, id, &row)
        })
    }

    /// At most `limit` rollouts before number `before`, newest first.
    pub fn rollouts(&self, before: Option<u64>, limit: usize) -> Result<Vec<Shown>, ManageError> {
        let before = before.map(NewestFirst);
        self.catalog().read(|tx| {
            let rows = tx.list::<RolloutRow>(&[], before.as_ref(), limit)?;
            rows.iter()
                .map(|(NewestFirst(id), row)| shown::rollout(tx, *id, row))
                .collect()
        })
    }

    /// How many rollouts are in each state, and how many pools of those that have not ended in each of theirs, in the order of the API's states.
    pub fn rollout_figures(&self) -> Result<RolloutFigures, ManageError> {
        self.catalog().read(|tx| {
            let mut figures = RolloutFigures::default();
            for (_, row) in tx.list::<RolloutRow>(&[], None, ALL)? {
                let state = shown::state(row.rollout.stage);
                figures.count(state, &row);
            }
            Ok(figures)
        })
    }
}

/// Figures for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RolloutFigures {
    /// Rollouts, by [`RolloutState::ALL`].
    pub rollouts: [u64; RolloutState::ALL.len()],
    /// Pools of those that have not ended, by [`datacenter_api::RolloutPoolState::ALL`].
    pub pools: [u64; datacenter_api::RolloutPoolState::ALL.len()],
}

impl RolloutFigures {
    fn count(&mut self, state: RolloutState, row: &RolloutRow) {
        let at = RolloutState::ALL.iter().position(|one| *one == state);
        self.rollouts[at.expect("each state is one of all")] += 1;
        if state.is_over() {
            return;
        }
        for site in &row.rollout.sites {
            let state = shown::site_state(site.state);
            let mut all = datacenter_api::RolloutPoolState::ALL.iter();
            let at = all.position(|one| *one == state);
            self.pools[at.expect("each state is one of all")] += 1;
        }
    }
}

/// Those that have not ended, newest first.
fn active(tx: &mut Tx<'_>) -> Result<Vec<(u64, RolloutRow)>, CatalogError> {
    let rows = tx.list::<RolloutRow>(&[], None, ALL)?.into_iter();
    let active = rows.filter(|(_, row)| !row.rollout.stage.is_over());
    Ok(active.map(|(NewestFirst(id), row)| (id, row)).collect())
}

/// Forgets the oldest of those that have ended, beyond what is remembered.
fn forget_oldest(tx: &mut Tx<'_>) -> Result<(), CatalogError> {
    for (key, row) in tx
        .list::<RolloutRow>(&[], None, ALL)?
        .into_iter()
        .skip(KEPT_MAX)
    {
        if row.rollout.stage.is_over() {
            tx.delete::<RolloutRow>(&key);
        }
    }
    Ok(())
}

fn require(tx: &mut Tx<'_>, id: u64) -> Result<RolloutRow, ManageError> {
    tx.get(&NewestFirst(id))?.ok_or_else(|| {
        ManageError::not_found(
            "rollout",
            id.to_string(),
            "`splice rollout list` shows them",
        )
    })
}
