//! What a rollout costs before it begins: bytes on each line by the encoding that will carry them, time inside each branch's hours, desktops, evictions.
//!
//! It changes nothing but the queue of updates: one that is asked for here and not encoded yet is put into it, so that the next price is exact. What a branch has
//! not told is not guessed.

use std::collections::{BTreeMap, HashMap};

use datacenter_api::{
    BranchPrice, BranchStatus, PriceBasis, RolloutPrice, RolloutRequest, VersionResidency,
};
use dedup::{ChunkId, Manifest, VersionId};
use dedup_protocol::policy::Policy;

use super::plan::{Plan, Planned, plan};
use crate::catalog::rows::VersionRow;
use crate::datacenter::Datacenter;
use crate::images::{StoreNodes, record_of};
use crate::problem::{ManageError, describe};
use crate::update::Pair;

/// How far ahead the end of a transfer is looked for, in minutes.
const HORIZON_MIN: u64 = 90 * 24 * 60;

/// What one version costs a branch that has another one, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    plain_bytes: u64,
    line_bytes: u64,
    basis: PriceBasis,
}

impl Datacenter {
    /// What a rollout would cost. Reads the manifests of the versions, and how large each new chunk is stored.
    pub fn price_rollout(&self, request: &RolloutRequest) -> Result<RolloutPrice, ManageError> {
        let active = self.active_rollouts()?;
        let plan = self.catalog().read(|tx| plan(tx, request, &active))?;
        let now = self.now_unix_s();
        let mut notes = plan.notes.clone();
        let mut costs = Costs::new(self, &plan);
        let mut branches: Vec<BranchPrice> = Vec::new();
        let mut by_branch: BTreeMap<(u16, &str), Vec<&Planned>> = BTreeMap::new();
        for planned in &plan.sites {
            let key = (planned.site.wave, planned.branch.as_str());
            by_branch.entry(key).or_default().push(planned);
        }
        for ((wave, name), sites) in by_branch {
            let branch = sites[0].site.branch;
            let status = self.branch_status(branch)?.map(|(_, status)| status);
            let policy = self.branch_policy(branch)?;
            let cost = costs.of(&sites, status.as_ref())?;
            let pools: Vec<String> = sites.iter().map(|p| p.site.pool.clone()).collect();
            let bytes_per_s = pace(&policy, request.line_bits_per_s);
            let transfer_s = bytes_per_s.map(|pace| cost.line_bytes.div_ceil(pace));
            let (desktops, running) = desktops(status.as_ref(), &pools);
            branches.push(BranchPrice {
                branch: name.to_owned(),
                pools,
                wave: u32::from(wave) + 1,
                missing_bytes: cost.plain_bytes,
                line_bytes: cost.line_bytes,
                basis: cost.basis,
                bits_per_s: bytes_per_s.map(|pace| pace.saturating_mul(8)),
                transfer_s,
                ready_unix_s: transfer_s.and_then(|s| ready_at(now, s, &policy)),
                desktops,
                running,
                evicted_bytes: status.map(|status| {
                    let cache = &status.cache;
                    let free = cache.capacity_bytes.saturating_sub(cache.bytes);
                    cost.plain_bytes.saturating_sub(free)
                }),
            });
        }
        let paceless = branches.iter().filter(|b| b.bits_per_s.is_none()).count();
        if paceless > 0 {
            notes.push(format!(
                "{paceless} branches have no cap, so nobody knows how fast their lines are: say so with --line"
            ));
        }
        notes.append(&mut costs.notes);
        Ok(RolloutPrice {
            version: format!("{}@{}", plan.image, plan.number),
            line_bytes: branches.iter().map(|branch| branch.line_bytes).sum(),
            desktops: branches.iter().map(|branch| branch.desktops).sum(),
            branches,
            notes,
        })
    }

    /// All of a version: its distinct chunks, plain and as they are stored.
    fn whole_cost(&self, version: VersionId) -> Result<Cost, ManageError> {
        let row: Option<VersionRow> = self.catalog().read(|tx| tx.get(&version))?;
        let Some(row) = row else {
            return Err(ManageError::not_found(
                "version",
                version.to_string(),
                "it was deleted a moment ago",
            ));
        };
        let _use = self.use_version(version);
        let record = record_of(version, &row)?;
        let unreadable = |e: &dyn std::error::Error| ManageError::Manifest {
            message: describe(e),
        };
        let nodes = StoreNodes(self);
        let manifest =
            Manifest::load(&nodes, record.disk.root).map_err(|error| unreadable(&error))?;
        let mut chunks: HashMap<ChunkId, u32> = HashMap::new();
        for index in 0..manifest.leaves.len() {
            let leaf = manifest.leaf(&nodes, index);
            chunks.extend(leaf.map_err(|error| unreadable(&error))?.chunks());
        }
        let mut line_bytes = 0;
        for id in chunks.keys() {
            line_bytes += self.store().chunk_compressed(*id)?.bytes.len() as u64;
        }
        Ok(Cost {
            plain_bytes: chunks.values().map(|len| u64::from(*len)).sum(),
            line_bytes,
            basis: PriceBasis::Stored,
        })
    }
}

/// What the version costs, reckoned once for each version that branches come from.
struct Costs<'a> {
    dc: &'a Datacenter,
    target: VersionId,
    name: String,
    steps: BTreeMap<VersionId, Cost>,
    whole: Option<Cost>,
    notes: Vec<String>,
}

impl<'a> Costs<'a> {
    fn new(dc: &'a Datacenter, plan: &Plan) -> Self {
        Self {
            dc,
            target: plan.target,
            name: format!("{}@{}", plan.image, plan.number),
            steps: BTreeMap::new(),
            whole: None,
            notes: Vec::new(),
        }
    }

    /// What a branch pays: the least that any of its pools' versions leaves to be fetched.
    fn of(
        &mut self,
        sites: &[&Planned],
        status: Option<&BranchStatus>,
    ) -> Result<Cost, ManageError> {
        let residency = |id: VersionId| {
            let id = id.to_string();
            status.and_then(|status| status.versions.iter().find(|told| told.version == id))
        };
        let is_whole = |told: &&VersionResidency| told.complete;
        if residency(self.target).is_some_and(|told| told.complete) {
            return Ok(Cost {
                plain_bytes: 0,
                line_bytes: 0,
                basis: PriceBasis::Nothing,
            });
        }
        let mut best: Option<Cost> = None;
        for planned in sites {
            let from = planned.site.from;
            if residency(from).filter(is_whole).is_none() {
                continue;
            }
            let cost = self.step(from)?;
            if best.is_none_or(|best| cost.line_bytes < best.line_bytes) {
                best = Some(cost);
            }
        }
        let cost = match best {
            Some(cost) => cost,
            None => self.whole()?,
        };
        Ok(match residency(self.target) {
            // Some of it came already, by another pool or a rollout that was turned back.
            Some(told) if told.total_bytes > 0 => {
                let missing = told.total_bytes.saturating_sub(told.resident_bytes);
                partly(cost, missing)
            }
            _ => cost,
        })
    }

    fn whole(&mut self) -> Result<Cost, ManageError> {
        if let Some(cost) = self.whole {
            return Ok(cost);
        }
        let cost = self.dc.whole_cost(self.target)?;
        self.whole = Some(cost);
        Ok(cost)
    }

    fn step(&mut self, from: VersionId) -> Result<Cost, ManageError> {
        if let Some(cost) = self.steps.get(&from) {
            return Ok(*cost);
        }
        let row: Option<VersionRow> = self.dc.catalog().read(|tx| tx.get(&from))?;
        let cost = match row {
            // It was deleted while branches run it: nothing is encoded against it.
            None => self.whole()?,
            Some(row) => {
                let from_name = format!("{}@{}", row.image, row.number);
                self.difference(from, &from_name)?
            }
        };
        self.steps.insert(from, cost);
        Ok(cost)
    }

    fn difference(&mut self, from: VersionId, from_name: &str) -> Result<Cost, ManageError> {
        let diff = self.dc.diff(from_name, &self.name)?;
        let encoded = diff.update.filter(|update| update.whole);
        if encoded.is_none() {
            let pair = Pair {
                parent: from,
                version: self.target,
            };
            let why = match self.dc.updates().find_or_want(self.dc, pair) {
                Ok(_) => "ask again when it is: `splice operation list`".to_owned(),
                Err(error) => describe(&error),
            };
            self.notes.push(format!(
                "the update from {from_name} to {} is not encoded yet, so its bytes are those of chunks by themselves; {why}",
                self.name
            ));
        }
        Ok(match encoded {
            Some(update) => Cost {
                plain_bytes: diff.new_bytes,
                line_bytes: update.packed_bytes,
                basis: PriceBasis::Update,
            },
            None => Cost {
                plain_bytes: diff.new_bytes,
                line_bytes: diff.stored_bytes,
                basis: PriceBasis::Stored,
            },
        })
    }
}

/// The part of a cost that is left when only so many plain bytes are missing.
fn partly(cost: Cost, missing_bytes: u64) -> Cost {
    let plain_bytes = cost.plain_bytes.min(missing_bytes);
    let whole = u128::from(cost.plain_bytes.max(1));
    let line = u128::from(cost.line_bytes) * u128::from(plain_bytes) / whole;
    Cost {
        plain_bytes,
        // A part is never more than the whole.
        line_bytes: u64::try_from(line).unwrap_or(cost.line_bytes),
        basis: if plain_bytes == 0 {
            PriceBasis::Nothing
        } else {
            cost.basis
        },
    }
}

/// Bytes a second that a branch's fill may take, if that is known.
fn pace(policy: &Policy, line_bits_per_s: Option<u64>) -> Option<u64> {
    let line = policy.link_cap().or(line_bits_per_s.map(|bits| bits / 8));
    let known = [policy.fill_cap(), line];
    known.into_iter().flatten().min().filter(|pace| *pace > 0)
}

/// Desktops of pools, and those that are up.
fn desktops(status: Option<&BranchStatus>, pools: &[String]) -> (u64, u64) {
    let Some(status) = status else { return (0, 0) };
    let ours = || status.desktops.iter().filter(|d| pools.contains(&d.pool));
    let is_up = |state: &str| !matches!(state, "stopped" | "failed");
    let running = ours().filter(|desktop| is_up(&desktop.state)).count();
    (ours().count() as u64, running as u64)
}

/// When a transfer of so many seconds ends that begins now and goes on only in the branch's hours; none if that is too far.
fn ready_at(now_unix_s: u64, transfer_s: u64, policy: &Policy) -> Option<u64> {
    if policy.fill_hours.is_none() {
        return Some(now_unix_s.saturating_add(transfer_s));
    }
    let (mut at, mut left) = (now_unix_s, transfer_s);
    for _ in 0..HORIZON_MIN {
        if left == 0 {
            return Some(at);
        }
        let step = 60 - at % 60;
        if policy.fill_allowed(at) {
            let used = left.min(step);
            (at, left) = (at + used, left - used);
        } else {
            at += step;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use dedup_protocol::policy::Hours;

    use super::*;

    const DAY: u64 = 86_400;

    fn night() -> Policy {
        Policy {
            link_bytes_per_s: 1_000_000,
            fill_bytes_per_s: 0,
            fill_hours: Some(Hours {
                from_min: 20 * 60,
                until_min: 6 * 60,
                utc_offset_min: 0,
            }),
        }
    }

    #[test]
    fn transfers_wait_for_their_hours() {
        let noon = 100 * DAY + DAY / 2;
        assert_eq!(ready_at(noon, 60, &Policy::default()), Some(noon + 60));
        // Eight hours later the night begins.
        assert_eq!(ready_at(noon, 61, &night()), Some(noon + 8 * 3600 + 61));
        // A night has ten hours; the eleventh is of the next one.
        let next = noon + DAY + 8 * 3600 + 3600;
        assert_eq!(ready_at(noon, 11 * 3600, &night()), Some(next));
        assert_eq!(ready_at(noon + 1, 0, &night()), Some(noon + 1));
        assert_eq!(ready_at(noon, 100 * DAY, &night()), None);
    }

    #[test]
    fn the_tightest_known_cap_is_the_pace() {
        assert_eq!(pace(&Policy::default(), None), None);
        assert_eq!(pace(&Policy::default(), Some(8_000)), Some(1_000));
        assert_eq!(pace(&night(), Some(8_000)), Some(1_000_000));
        let both = Policy {
            fill_bytes_per_s: 500,
            ..night()
        };
        assert_eq!(pace(&both, None), Some(500));
    }

    #[test]
    fn what_is_there_already_is_not_paid_again() {
        let cost = Cost {
            plain_bytes: 100,
            line_bytes: 50,
            basis: PriceBasis::Update,
        };
        let left = partly(cost, 10);
        assert_eq!((left.plain_bytes, left.line_bytes), (10, 5));
        assert_eq!(partly(cost, 1_000), cost);
        assert_eq!(partly(cost, 0).basis, PriceBasis::Nothing);
    }
}
