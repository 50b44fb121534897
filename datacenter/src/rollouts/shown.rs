//! Rollouts as the API shows them.

use std::collections::BTreeMap;

use datacenter_api::{
    HealthGate, HealthSign, Rollout as Shown, RolloutEntry, RolloutPool, RolloutPoolState,
    RolloutState,
};
use dedup::VersionId;

use super::health::Gate;
use super::look::names;
use super::machine::{Cause, Pause, SiteState, Stage};
use crate::catalog::rollouts::RolloutRow;
use crate::catalog::rows::VersionRow;
use crate::catalog::{CatalogError, Tx};
use crate::identity::rights::Place;
use crate::problem::ManageError;

/// A rollout with its pools and its history.
pub(super) fn rollout(tx: &mut Tx<'_>, id: u64, row: &RolloutRow) -> Result<Shown, ManageError> {
    let rollout = &row.rollout;
    let names = names(tx, rollout)?;
    let mut versions: BTreeMap<VersionId, String> = BTreeMap::new();
    let mut pools = Vec::with_capacity(rollout.sites.len());
    for site in &rollout.sites {
        let from = match versions.get(&site.from) {
            Some(name) => name.clone(),
            None => {
                let row: Option<VersionRow> = tx.get(&site.from)?;
                let name = row.map_or_else(
                    || site.from.to_string(),
                    |row| format!("{}@{}", row.image, row.number),
                );
                versions.insert(site.from, name.clone());
                name
            }
        };
        pools.push(RolloutPool {
            branch: names.get(&site.branch).cloned().unwrap_or_default(),
            pool: site.pool.clone(),
            wave: u32::from(site.wave) + 1,
            from,
            state: site_state(site.state),
            since_unix_s: site.since_unix_s,
            healthy: site.healthy.len() as u64,
            failed: site.failed.iter().cloned().collect(),
        });
    }
    Ok(Shown {
        id,
        version: format!("{}@{}", row.image, row.number),
        version_id: rollout.target.to_string(),
        channel: row.channel.clone(),
        state: state(rollout.stage),
        why: why(rollout.stage),
        wave: u32::from(rollout.wave) + 1,
        waves: u32::from(rollout.waves),
        gate: gate(&rollout.gate),
        by: row.who.clone(),
        reason: row.reason.clone(),
        created_unix_s: row.created_unix_s,
        ended_unix_s: row.ended_unix_s,
        pools,
        history: row
            .history
            .iter()
            .map(|entry| RolloutEntry {
                unix_s: entry.unix_s,
                text: entry.text.clone(),
            })
            .collect(),
    })
}

/// The places that a rollout is about.
pub(super) fn places(tx: &mut Tx<'_>, row: &RolloutRow) -> Result<Vec<Place>, CatalogError> {
    let names = names(tx, &row.rollout)?;
    let sites = row.rollout.sites.iter();
    let places = sites.map(|site| Place {
        branch: names.get(&site.branch).cloned(),
        pool: Some(site.pool.clone()),
    });
    Ok(places.collect())
}

pub(super) fn state(stage: Stage) -> RolloutState {
    match stage {
        Stage::Running => RolloutState::Running,
        Stage::Paused(_) => RolloutState::Paused,
        Stage::Returning(_) => RolloutState::RollingBack,
        Stage::Done => RolloutState::Done,
        Stage::Returned(_) => RolloutState::RolledBack,
    }
}

fn why(stage: Stage) -> Option<String> {
    let why = match stage {
        Stage::Running | Stage::Done => return None,
        Stage::Paused(Pause::Person) => "somebody paused it",
        Stage::Paused(Pause::NoWord) => {
            "too few desktops were seen well in time; look at the pools that are flipped, then resume or abort it"
        }
        Stage::Returning(Cause::Person) | Stage::Returned(Cause::Person) => "somebody aborted it",
        Stage::Returning(Cause::Unhealthy) | Stage::Returned(Cause::Unhealthy) => "desktops failed",
    };
    Some(why.to_owned())
}

pub(super) fn site_state(state: SiteState) -> RolloutPoolState {
    match state {
        SiteState::Waiting => RolloutPoolState::Waiting,
        SiteState::Staging => RolloutPoolState::Staging,
        SiteState::Staged => RolloutPoolState::Staged,
        SiteState::Flipped => RolloutPoolState::Flipped,
        SiteState::Healthy => RolloutPoolState::Healthy,
        SiteState::Returned => RolloutPoolState::Returned,
        SiteState::Left => RolloutPoolState::Left,
    }
}

fn gate(gate: &Gate) -> HealthGate {
    let signs = [
        (gate.boot, HealthSign::Boot),
        (gate.log_in, HealthSign::LogIn),
        (gate.alive, HealthSign::Alive),
    ];
    let needed = signs.into_iter().filter(|(is_needed, _)| *is_needed);
    HealthGate {
        needs: needed.map(|(_, sign)| sign).collect(),
        desktops: gate.desktops,
        boot_s: gate.boot_s,
        soak_s: gate.soak_s,
        wait_s: gate.wait_s,
        failures: gate.failures,
    }
}
