//! What a rollout would move: pools that are not at the version yet, and the wave of each branch. It changes nothing.
//!
//! It refuses what two could not do at once: a pool that another rollout moves.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use datacenter_api::{HealthGate, HealthSign, RolloutRequest};
use dedup::{BranchId, VersionId};

use super::channels::require_channel;
use super::health::Gate;
use super::machine::{NAMES_MAX, Site, SiteState};
use crate::assign::{PINNED_MAX, resolve};
use crate::branches::require_branch;
use crate::catalog::Tx;
use crate::catalog::rollouts::RolloutRow;
use crate::catalog::rows::{AheadRow, BranchRow, PoolRow};
use crate::problem::ManageError;

/// Most pools that one rollout moves: bounds its row, which is written at each step.
const SITES_MAX: usize = 10_000;
/// Most waves.
const WAVES_MAX: usize = 20;
/// How much of the branches each wave has reached, unless asked otherwise, in percent.
const WAVES: [u32; 3] = [10, 50, 100];
/// Longest times that a gate may ask for, in seconds.
const TIME_S_MAX: u64 = 90 * 86_400;
/// Longest reason, in characters.
const REASON_CHARS_MAX: usize = 500;
/// More than there are.
const ALL: usize = usize::MAX / 2;

/// A pool that would move.
pub(super) struct Planned {
    /// Its branch's name.
    pub(super) branch: String,
    /// Its place in the rollout.
    pub(super) site: Site,
}

/// A rollout before it begins.
pub(super) struct Plan {
    pub(super) image: String,
    pub(super) number: u32,
    pub(super) target: VersionId,
    pub(super) gate: Gate,
    pub(super) waves: u16,
    /// In the order of waves, branches and pools.
    pub(super) sites: Vec<Planned>,
    /// What whoever decides should know.
    pub(super) notes: Vec<String>,
}

/// Works out what a request would move.
pub(super) fn plan(
    tx: &mut Tx<'_>,
    request: &RolloutRequest,
    active: &[RolloutRow],
) -> Result<Plan, ManageError> {
    let (image, number, target) = resolve(tx, &request.version)?;
    if let Some(channel) = &request.channel {
        require_channel(tx, &image, channel)?;
    }
    if request.reason.chars().count() > REASON_CHARS_MAX {
        return Err(ManageError::invalid(format!(
            "the reason has more than {REASON_CHARS_MAX} characters"
        )));
    }
    let gate = gate(&request.gate)?;
    let only = branches_named(tx, &request.branches)?;
    let canary = branches_named(tx, &request.canary)?;
    let mut notes = Vec::new();
    let mut chosen: BTreeMap<(String, String), (BranchId, PoolRow)> = BTreeMap::new();
    let mut branches: BTreeMap<BranchId, Option<String>> = BTreeMap::new();
    for (key, row) in tx.list::<PoolRow>(&[], None, ALL)? {
        let is_meant = row.image == image
            && row.version != target
            && (request.channel.is_none() || row.channel == request.channel)
            && request.pool.as_ref().is_none_or(|pool| *pool == key.pool)
            && (only.is_empty() || only.contains(&key.branch));
        if !is_meant {
            continue;
        }
        let name = match branches.get(&key.branch) {
            Some(name) => name.clone(),
            None => {
                let name = usable(tx, key.branch, &mut notes)?;
                branches.insert(key.branch, name.clone());
                name
            }
        };
        if let Some(name) = name {
            chosen.insert((name, key.pool), (key.branch, row));
        }
    }
    refuse(&image, number, &chosen, active)?;
    let names: BTreeSet<&str> = chosen.keys().map(|(branch, _)| branch.as_str()).collect();
    let first: BTreeSet<&str> = chosen
        .iter()
        .filter(|(_, (branch, _))| canary.contains(branch))
        .map(|((name, _), _)| name.as_str())
        .collect();
    let (waves, of_branch) = waves(&names, &first, &request.waves)?;
    let mut sites: Vec<Planned> = chosen
        .iter()
        .map(|((name, pool), (branch, row))| Planned {
            branch: name.clone(),
            site: Site {
                branch: *branch,
                pool: pool.clone(),
                wave: of_branch.get(name.as_str()).copied().unwrap_or(0),
                from: row.version,
                had_from: row.pinned.contains(&row.version),
                had_target: row.pinned.contains(&target),
                state: SiteState::Waiting,
                since_unix_s: 0,
                healthy: BTreeSet::new(),
                failed: BTreeSet::new(),
            },
        })
        .collect();
    // Stable: names stay in order inside a wave.
    sites.sort_by_key(|planned| planned.site.wave);
    Ok(Plan {
        image,
        number,
        target,
        gate,
        waves,
        sites,
        notes,
    })
}

fn branches_named(tx: &mut Tx<'_>, names: &[String]) -> Result<HashSet<BranchId>, ManageError> {
    let ids = names.iter().map(|name| Ok(require_branch(tx, name)?.0));
    ids.collect()
}

/// A branch's name, if it can be told anything.
fn usable(
    tx: &mut Tx<'_>,
    branch: BranchId,
    notes: &mut Vec<String>,
) -> Result<Option<String>, ManageError> {
    let Some(row) = tx.get::<BranchRow>(&branch)? else {
        return Ok(None);
    };
    if row.revoked_unix_s.is_some() || row.joined_unix_s.is_none() {
        return Ok(None);
    }
    if tx.get::<AheadRow>(&branch)?.is_some() {
        notes.push(format!(
            "branch {} is left out: it follows an assignment that is not remembered here; assign its pools first",
            row.name
        ));
        return Ok(None);
    }
    Ok(Some(row.name))
}

/// Refuses what cannot be moved.
fn refuse(
    image: &str,
    number: u32,
    chosen: &BTreeMap<(String, String), (BranchId, PoolRow)>,
    active: &[RolloutRow],
) -> Result<(), ManageError> {
    if chosen.is_empty() {
        return Err(ManageError::Invalid {
            message: format!("there is no pool that a rollout of {image}@{number} would move"),
            help: Some(
                "pools of the image that run another version already are moved; `splice branch list` shows them"
                    .into(),
            ),
        });
    }
    if chosen.len() > SITES_MAX {
        return Err(ManageError::invalid(format!(
            "{} pools would move, at most {SITES_MAX} are possible in one rollout",
            chosen.len()
        )));
    }
    for ((name, pool), (branch, row)) in chosen {
        let taken = active.iter().any(|other| {
            let mut sites = other.rollout.sites.iter();
            sites.any(|site| !site.is_over() && site.branch == *branch && site.pool == *pool)
        });
        if taken {
            return Err(ManageError::conflict(
                format!("pool {pool:?} at branch {name:?} is moved by another rollout"),
                "wait for it, or end it: `splice rollout list`",
            ));
        }
        if row.pinned.len() >= PINNED_MAX {
            return Err(ManageError::conflict(
                format!("pool {pool:?} at branch {name:?} pins {PINNED_MAX} versions already"),
                "unpin one: `splice branch assign … --pin`",
            ));
        }
    }
    Ok(())
}

/// The wave of each branch, and how many there are.
fn waves<'a>(
    names: &BTreeSet<&'a str>,
    canary: &BTreeSet<&'a str>,
    percents: &[u32],
) -> Result<(u16, BTreeMap<&'a str, u16>), ManageError> {
    let percents = if percents.is_empty() {
        &WAVES[..]
    } else {
        percents
    };
    let is_rising = percents.windows(2).all(|pair| pair[0] < pair[1]);
    if percents.len() > WAVES_MAX || !is_rising || percents[0] == 0 || percents.last() != Some(&100)
    {
        return Err(ManageError::invalid(format!(
            "waves {percents:?}: at most {WAVES_MAX} rising percentages are possible, of which the last is 100"
        )));
    }
    let rest: Vec<&str> = names.difference(canary).copied().collect();
    let mut of_branch: BTreeMap<&str, u16> = canary.iter().map(|name| (*name, 0)).collect();
    let mut wave = u16::from(!canary.is_empty());
    let mut reached = 0;
    for percent in percents {
        let until = (rest.len() * *percent as usize).div_ceil(100);
        // A wave of nobody is none.
        if until > reached {
            of_branch.extend(rest[reached..until].iter().map(|name| (*name, wave)));
            (reached, wave) = (until, wave + 1);
        }
    }
    Ok((wave, of_branch))
}

fn gate(asked: &HealthGate) -> Result<Gate, ManageError> {
    let names_max = NAMES_MAX as u32;
    if asked.desktops > names_max || asked.failures >= names_max {
        return Err(ManageError::invalid(format!(
            "a gate asks for at most {names_max} desktops, and lets fewer than {names_max} fail"
        )));
    }
    if [asked.boot_s, asked.soak_s, asked.wait_s]
        .iter()
        .any(|s| *s > TIME_S_MAX)
    {
        return Err(ManageError::invalid(format!(
            "a gate's times are at most {} days",
            TIME_S_MAX / 86_400
        )));
    }
    if asked.boot_s == 0 {
        return Err(ManageError::invalid(
            "no desktop boots in no time; give it some seconds",
        ));
    }
    let needs = |sign| asked.needs.contains(&sign);
    Ok(Gate {
        boot: needs(HealthSign::Boot),
        log_in: needs(HealthSign::LogIn),
        alive: needs(HealthSign::Alive),
        desktops: asked.desktops,
        boot_s: asked.boot_s,
        soak_s: asked.soak_s,
        wait_s: asked.wait_s,
        failures: asked.failures,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sizes(branches: usize, canary: &[&str], percents: &[u32]) -> Vec<usize> {
        let names: Vec<String> = (0..branches).map(|at| format!("b{at:03}")).collect();
        let names = names.iter().map(String::as_str).collect();
        let canary = canary.iter().copied().collect();
        let (count, of_branch) = waves(&names, &canary, percents).unwrap();
        let of_wave = |wave| of_branch.values().filter(|of| **of == wave).count();
        assert_eq!(of_branch.len(), branches, "each branch has one");
        (0..count).map(of_wave).collect()
    }

    #[test]
    fn waves_have_no_gaps_and_reach_everybody() {
        assert_eq!(sizes(100, &[], &[]), [10, 40, 50]);
        assert_eq!(sizes(1, &[], &[]), [1]);
        assert_eq!(sizes(3, &["b001"], &[]), [1, 1, 1]);
        assert_eq!(sizes(2, &["b000", "b001"], &[]), [2]);
        assert_eq!(sizes(5, &[], &[100]), [5]);
        assert_eq!(sizes(4, &[], &[1, 2, 100]), [1, 3]);
    }

    #[test]
    fn percentages_that_mean_nothing_are_refused() {
        let names = BTreeSet::from(["a"]);
        for bad in [&[50, 50, 100][..], &[0, 100], &[10, 50], &[10, 101]] {
            waves(&names, &BTreeSet::new(), bad).unwrap_err();
        }
    }
}
