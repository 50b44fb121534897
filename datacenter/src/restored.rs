//! How a datacenter that was restored from a backup goes on with branches that went on without it.
//!
//! It does not remember what was decided after the backup was taken; branches do. Invariant: nothing that a branch follows is replaced because
//! the datacenter forgot it. A branch whose assignment is unknown here shows it; it bears the datacenter's own signature, so it is taken over as
//! far as its versions are here. For the rest the branch is *ahead*: it goes on as it is, gets no renewals, and is told something new when
//! somebody has decided about each pool that was lost. Counters go on far above whatever was given out ([`history_after`]), so that no new
//! record is taken for an old one.
//!
//! A branch that joined after the backup bears a certificate of the realm's authority and an id that nobody here has heard of. It is
//! adopted: it has joined, under its own name if that is free, and may read nothing until it is assigned something. What cannot be known here is
//! who was revoked meanwhile: a restore is told (decision 0040).

use std::collections::HashMap;

use datacenter_api::{BranchAhead, BranchIntroduction, check_name};
use dedup::BranchId;
use dedup_protocol::records::Assignment;
use dedup_protocol::trust::{Signed, TrustError};

use crate::assign::POOLS_MAX;
use crate::branches::find_branch;
use crate::catalog::people::SetupCodeRow;
use crate::catalog::rows::{
    AheadRow, AssignmentRow, BranchNameRow, BranchRow, GrantKey, GrantRow, JoinTokenRow, LostPool,
    PoolKey, PoolRow, RestoreRow, VersionRow,
};
use crate::catalog::{Catalog, CatalogError, Tx};
use crate::datacenter::Datacenter;

/// The highest counter that a branch is believed. What is above leaves no room to count on, and only a liar tells it.
pub const COUNTER_MAX: u64 = 1 << 62;

/// For how long after a restore everybody is reminded of it, in seconds: longer than a branch may be offline and go on.
const REMIND_S: u64 = 30 * 86_400;

/// Most branches that a warning names.
const NAMED_MAX: usize = 20;

/// Why what a branch says of itself was not taken.
#[derive(Debug, thiserror::Error)]
pub enum IntroductionError {
    /// Not hexadecimal digits.
    #[error("the assignment that it follows is malformed")]
    Malformed,
    /// Not signed by this datacenter's own key.
    #[error("the assignment that it follows")]
    Trust(#[from] TrustError),
    /// Another's.
    #[error("it follows an assignment of branch {0}")]
    WrongBranch(BranchId),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// From where counters go on after a restore: above `history` before it, and above all that was ever given out. They count changes of
/// assignments, far fewer than 65,536 a second; so the time of the restore, that many times, has never been reached, not even by
/// the counters that followed another restore of the same backup.
pub fn history_after(history: u64, now_unix_s: u64) -> u64 {
    now_unix_s.saturating_mul(1 << 16).max(history + 1)
}

/// What every counter that branches remember must exceed: those of assignments, rosters and boot profiles, and the generations of leases.
pub(crate) fn counter_floor(tx: &mut Tx<'_>) -> Result<u64, CatalogError> {
    Ok(tx.get::<RestoreRow>(&())?.map_or(0, |row| row.history))
}

/// Marks a catalog that has just been brought back, before anybody works with it. Join tokens and one-time codes that were not used are void.
pub fn mark_restored(
    catalog: &Catalog,
    taken_unix_s: u64,
    now_unix_s: u64,
) -> Result<(), CatalogError> {
    catalog.transact(|tx| {
        let before = tx.get::<RestoreRow>(&())?.map_or(0, |row| row.history);
        tx.put(
            &(),
            &RestoreRow {
                taken_unix_s,
                restored_unix_s: now_unix_s,
                history: history_after(before, now_unix_s),
            },
        );
        // Which of them were used since is not known, and a token pays once.
        for (hash, token) in tx.list::<JoinTokenRow>(&[], None, usize::MAX / 2)? {
            if token.used.is_none() {
                tx.delete::<JoinTokenRow>(&hash);
            }
        }
        for (hash, _) in tx.list::<SetupCodeRow>(&[], None, usize::MAX / 2)? {
            tx.delete::<SetupCodeRow>(&hash);
        }
        Ok(())
    })
}

/// Refuses a branch from the start, because it was revoked after the backup. False: there is no such branch.
pub fn revoke_restored(
    catalog: &Catalog,
    name: &str,
    now_unix_s: u64,
) -> Result<bool, CatalogError> {
    catalog.transact(|tx| {
        let Some((id, mut row)) = find_branch(tx, name)? else {
            return Ok(false);
        };
        row.revoked_unix_s.get_or_insert(now_unix_s);
        tx.put(&id, &row);
        Ok(true)
    })
}

/// What is shown of a branch that is ahead.
pub(crate) fn show_ahead(
    tx: &mut Tx<'_>,
    branch: BranchId,
) -> Result<Option<BranchAhead>, CatalogError> {
    let row: Option<AheadRow> = tx.get(&branch)?;
    Ok(row.map(|row| BranchAhead {
        counter: row.counter,
        lost_pools: row.lost.into_iter().map(|lost| lost.pool).collect(),
    }))
}

/// Whether a branch follows a pool that nobody has decided about yet.
pub(crate) fn is_lost(tx: &mut Tx<'_>, branch: BranchId, pool: &str) -> Result<bool, CatalogError> {
    let row: Option<AheadRow> = tx.get(&branch)?;
    Ok(row.is_some_and(|row| row.lost.iter().any(|lost| lost.pool == pool)))
}

/// Takes `pool` as decided. Whether all are, so that the branch may be told.
pub(crate) fn decide(tx: &mut Tx<'_>, branch: BranchId, pool: &str) -> Result<bool, CatalogError> {
    let Some(mut row) = tx.get::<AheadRow>(&branch)? else {
        return Ok(true);
    };
    row.lost.retain(|lost| lost.pool != pool);
    tx.put(&branch, &row);
    Ok(row.lost.is_empty())
}

/// The name of a branch whose own is not known here.
fn adopted_name(branch: BranchId) -> String {
    format!("adopted-{branch}")
}

impl Datacenter {
    /// When and of what this datacenter was restored, if it ever was.
    pub fn restored(&self) -> Result<Option<RestoreRow>, CatalogError> {
        self.catalog().read(|tx| tx.get::<RestoreRow>(&()))
    }

    /// Takes in a branch that joined after the backup was taken. Its certificate has been checked: nobody else can have issued one of
    /// this realm for an id that is unknown or only invited here. Whether it is adopted now.
    pub fn adopt_branch(&self, branch: BranchId) -> Result<bool, CatalogError> {
        let is_news = |tx: &mut Tx<'_>| -> Result<bool, CatalogError> {
            let row: Option<BranchRow> = tx.get(&branch)?;
            let unknown =
                row.is_none_or(|row| row.joined_unix_s.is_none() && row.revoked_unix_s.is_none());
            Ok(unknown && tx.get::<RestoreRow>(&())?.is_some())
        };
        if !self.catalog().read(is_news)? {
            return Ok(false);
        }
        let now = self.now_unix_s();
        let name = self.catalog().transact(|tx| {
            if !is_news(tx)? {
                return Ok::<_, CatalogError>(None);
            }
            let mut row = match tx.get::<BranchRow>(&branch)? {
                Some(invited) => invited,
                None => {
                    let name = adopted_name(branch);
                    tx.put(&name, &BranchNameRow { branch });
                    BranchRow::invited(&name, now)
                }
            };
            row.joined_unix_s = Some(now);
            tx.put(&branch, &row);
            Ok(Some(row.name))
        })?;
        if let Some(name) = &name {
            tracing::warn!(%branch, name, "a branch that joined after the backup was taken is adopted; if it was revoked since, revoke it again");
        }
        Ok(name.is_some())
    }

    /// A branch greets with the counter of the assignment that it follows.
    pub fn note_follows(&self, branch: BranchId, counter: u64) -> Result<(), CatalogError> {
        if counter > COUNTER_MAX {
            tracing::error!(%branch, counter, "a branch claims a counter that nobody gives out; replace its server");
            return Ok(());
        }
        let is_news = |tx: &mut Tx<'_>| -> Result<bool, CatalogError> {
            let ours: Option<AssignmentRow> = tx.get(&branch)?;
            let told: Option<AheadRow> = tx.get(&branch)?;
            let known = ours.map_or(0, |row| row.counter);
            Ok(counter > known.max(told.map_or(0, |row| row.counter)))
        };
        if !self.catalog().read(is_news)? {
            return Ok(());
        }
        let told_unix_s = self.now_unix_s();
        self.catalog().transact(|tx| {
            if is_news(tx)? {
                let row = AheadRow {
                    counter,
                    told_unix_s,
                    lost: Vec::new(),
                };
                tx.put(&branch, &row);
            }
            Ok::<_, CatalogError>(())
        })?;
        tracing::warn!(%branch, counter, "a branch follows an assignment that is not remembered here; it goes on with it");
        Ok(())
    }

    /// Takes what a branch says of itself: its name if it was adopted, and the assignment that it follows if that is not remembered here.
    pub fn take_introduction(
        &self,
        branch: BranchId,
        introduction: &BranchIntroduction,
    ) -> Result<(), IntroductionError> {
        self.name_adopted(branch, &introduction.name)?;
        let Some(text) = &introduction.assignment else {
            return Ok(());
        };
        let ahead = self.catalog().read(|tx| tx.get::<AheadRow>(&branch))?;
        if ahead.is_none() {
            return Ok(());
        }
        let bytes = hex::decode(text).map_err(|_| IntroductionError::Malformed)?;
        let signed = Signed::<Assignment>::from_bytes(&bytes)?;
        // By our own key only: nobody else decides what branches run.
        let assignment = signed.open_by(&self.publisher().public())?;
        if assignment.realm != self.realm() || assignment.branch != branch {
            return Err(IntroductionError::WrongBranch(assignment.branch));
        }
        let now = self.now_unix_s();
        let lost = self
            .catalog()
            .transact(|tx| learn(tx, &assignment, &bytes, now))?;
        match lost {
            None => {}
            Some(0) => {
                tracing::info!(%branch, counter = assignment.counter, "an assignment was learned from the branch that follows it");
            }
            Some(lost) => {
                tracing::warn!(%branch, counter = assignment.counter, lost, "a branch runs versions that are not here any more; publish them again and assign its pools");
            }
        }
        self.announce_assignments();
        Ok(())
    }

    /// Gives an adopted branch the name that it has by its own word, if nobody else has it.
    fn name_adopted(&self, branch: BranchId, name: &str) -> Result<(), CatalogError> {
        let nameless = adopted_name(branch);
        if check_name("a branch", name).is_err() || name == nameless {
            return Ok(());
        }
        let row = self.catalog().read(|tx| tx.get::<BranchRow>(&branch))?;
        if row.is_none_or(|row| row.name != nameless) {
            return Ok(());
        }
        let named = self.catalog().transact(|tx| {
            let free = tx.get::<BranchNameRow>(&name.to_owned())?.is_none();
            let row = tx.get::<BranchRow>(&branch)?;
            let (true, Some(mut row)) = (free, row) else {
                return Ok::<_, CatalogError>(false);
            };
            tx.delete::<BranchNameRow>(&nameless);
            tx.put(&name.to_owned(), &BranchNameRow { branch });
            row.name = name.to_owned();
            tx.put(&branch, &row);
            Ok(true)
        })?;
        if named {
            tracing::info!(%branch, name, "an adopted branch has its name again");
        } else {
            tracing::warn!(%branch, name, "two servers call themselves by one name: one replaced the other after the backup was taken; revoke the one that was replaced");
        }
        Ok(())
    }

    /// What operators are to be reminded of.
    pub fn restore_warnings(&self) -> Result<Vec<String>, CatalogError> {
        let now = self.now_unix_s();
        self.catalog().read(|tx| {
            let mut warnings = Vec::new();
            if let Some(row) = tx.get::<RestoreRow>(&())?
                && now < row.restored_unix_s.saturating_add(REMIND_S)
            {
                let hours = row.restored_unix_s.saturating_sub(row.taken_unix_s) / 3600;
                warnings.push(format!(
                    "this datacenter was restored {} days ago from a backup taken {hours} hours before: what was published, set and revoked between is not remembered",
                    now.saturating_sub(row.restored_unix_s) / 86_400
                ));
            }
            let ahead = tx.list::<AheadRow>(&[], None, NAMED_MAX + 1)?;
            let mut names = Vec::new();
            for (branch, _) in ahead.iter().take(NAMED_MAX) {
                let row: Option<BranchRow> = tx.get(branch)?;
                names.push(row.map_or_else(|| branch.to_string(), |row| row.name));
            }
            if !names.is_empty() {
                let more = if ahead.len() > NAMED_MAX { " and others" } else { "" };
                warnings.push(format!(
                    "branches follow assignments that are not remembered here and get no new ones until their pools are assigned: {}{more}",
                    names.join(", ")
                ));
            }
            Ok(warnings)
        })
    }
}

/// Takes an assignment over that a branch follows. Answers how many of its pools cannot be; `None` if it is no news.
fn learn(
    tx: &mut Tx<'_>,
    assignment: &Assignment,
    signed: &[u8],
    now_unix_s: u64,
) -> Result<Option<usize>, CatalogError> {
    let branch = assignment.branch;
    let ours: Option<AssignmentRow> = tx.get(&branch)?;
    if ours.is_some_and(|row| row.counter >= assignment.counter) {
        return Ok(None);
    }
    // Branches know nothing of channels: a pool goes on with the one that it is known to follow.
    let mut channels = HashMap::new();
    for (key, row) in tx.list::<PoolRow>(branch.as_bytes(), None, POOLS_MAX)? {
        if let Some(channel) = row.channel {
            channels.insert(key.pool.clone(), (row.image, channel));
        }
        if !assignment.pools.iter().any(|pool| pool.pool == key.pool) {
            tx.delete::<PoolRow>(&key);
        }
    }
    let mut lost = Vec::new();
    for pool in &assignment.pools {
        let versions = || pool.pinned.iter().chain([&pool.version]).copied();
        let mut missing = None;
        for version in versions() {
            if tx.get::<VersionRow>(&version)?.is_none() {
                missing = Some(version);
            }
        }
        if let Some(version) = missing {
            lost.push(LostPool {
                pool: pool.pool.clone(),
                image: pool.image.clone(),
                version,
            });
            continue;
        }
        for version in versions() {
            let granted = GrantRow {
                assigned_unix_s: assignment.issued_unix_s,
            };
            tx.put(&GrantKey { branch, version }, &granted);
        }
        let key = PoolKey {
            branch,
            pool: pool.pool.clone(),
        };
        let row = PoolRow {
            image: pool.image.clone(),
            version: pool.version,
            pinned: pool.pinned.clone(),
            memory_mib: pool.memory_mib,
            vcpus: pool.vcpus,
            prestage: pool.prestage,
            machine: pool.machine,
            tpm: pool.tpm,
            user_volume_mib: pool.user_volume_mib,
            pooled: pool.pooled,
            start: pool.start,
            channel: channels
                .get(&pool.pool)
                .filter(|(image, _)| *image == pool.image)
                .map(|(_, channel)| channel.clone()),
        };
        tx.put(&key, &row);
    }
    let count = lost.len();
    if lost.is_empty() {
        tx.delete::<AheadRow>(&branch);
        let row = AssignmentRow {
            counter: assignment.counter,
            issued_unix_s: assignment.issued_unix_s,
            expires_unix_s: assignment.expires_unix_s,
            signed: signed.to_vec(),
        };
        tx.put(&branch, &row);
    } else {
        let row = AheadRow {
            counter: assignment.counter,
            told_unix_s: now_unix_s,
            lost,
        };
        tx.put(&branch, &row);
    }
    Ok(Some(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_never_meet() {
        let first = history_after(0, 1_800_000_000);
        let second = history_after(0, 1_800_000_001);
        assert!(
            second - first >= 65_536,
            "two restores of one backup, a second apart"
        );
        assert!(
            history_after(second, 1_700_000_000) > second,
            "a clock that goes back"
        );
        assert!(first < 1 << 53, "a browser's number holds it");
        assert!(first < COUNTER_MAX);
    }
}
