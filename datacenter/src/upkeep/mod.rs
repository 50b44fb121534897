//! Looking after the chunk store: garbage is collected, everything is read again and again, damage is traced to versions and repaired.
//!
//! By itself it collects as often as the configuration says, and scrubs at a pace and in hours that it says; both can be asked for. One
//! collection and one scrub run at a time. Damage, whoever finds it (a scrub, a verification, a publish), is traced ([`damage`]); branches
//! that may read what shows it are told which chunks are wanted, and what they send is proven and stored ([`crate::sync`]).
//!
//! Invariant: nothing here decides what may be deleted; that is the store's and [`crate::roots`]'.

pub mod collect;
pub mod damage;
mod pace;
pub mod scrub;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use datacenter_api::policy::{DayPart, format_utc_offset};
use datacenter_api::{
    CollectRequest, CollectResult, OperationResult, OperationState, ScrubStatus, StoreReport,
};
use tokio_util::sync::CancellationToken;

use crate::datacenter::Datacenter;
use crate::problem::{ManageError, describe};
use damage::Damage;

/// How often it looks what is due.
const TICK: Duration = Duration::from_secs(10);
/// After a start nothing is collected for so long, in seconds: branches reconnect first.
const SETTLE_S: u64 = 600;
/// A collection that failed is tried again by itself after this, in seconds.
const RETRY_S: u64 = 3600;
/// A pass of the scrub begins at the earliest so long after the last one ended, in seconds: a small store is not read all day.
const PASS_EVERY_S: u64 = 7 * 86_400;

/// What it remembers.
#[derive(Default)]
pub struct Upkeep {
    collecting: Mutex<()>,
    scrubbing: Mutex<()>,
    /// Held by a collection and by a trace: of the trees that a trace walks nothing may be condemned meanwhile, or its reading is an alarm.
    walking: Mutex<()>,
    /// When a collection was last begun by itself, unix seconds: one that fails is not tried all the time.
    attempted_unix_s: AtomicU64,
    /// What is damaged and who shows it.
    damage: Mutex<Arc<Damage>>,
}

impl Upkeep {
    /// Keeps collections and traces apart; waits for the other.
    fn walking(&self) -> MutexGuard<'_, ()> {
        self.walking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is damaged and who shows it, as it was last traced.
    pub fn damage(&self) -> Arc<Damage> {
        Arc::clone(&self.damage.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_damage(&self, damage: Damage) -> Arc<Damage> {
        let damage = Arc::new(damage);
        *self.damage.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&damage);
        damage
    }
}

/// The right to do what only one may at a time.
fn turn<'a>(mutex: &'a Mutex<()>, what: &str) -> Result<MutexGuard<'a, ()>, ManageError> {
    match mutex.try_lock() {
        Ok(turn) => Ok(turn),
        Err(TryLockError::Poisoned(turn)) => Ok(turn.into_inner()),
        Err(TryLockError::WouldBlock) => Err(ManageError::conflict(
            format!("{what} is running already"),
            "wait until it is done: `splice operation list`",
        )),
    }
}

/// Does what is due until `cancel`.
pub async fn run(dc: Arc<Datacenter>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = cancel.cancelled() => return,
        }
        let (worker, stop) = (Arc::clone(&dc), cancel.clone());
        let tick = tokio::task::spawn_blocking(move || tick(&worker, &stop)).await;
        match tick {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = describe(&error), "looking after the store"),
            Err(error) => tracing::error!(%error, "looking after the store"),
        }
    }
}

/// One look at what is due. It works on a scrub for a few seconds, or one pack.
fn tick(dc: &Arc<Datacenter>, cancel: &CancellationToken) -> Result<(), ManageError> {
    if dc.trace_damage_if_changed()? {
        // Links tell their branches.
        dc.announce_assignments();
    }
    if is_collection_due(dc)? {
        let now = dc.now_unix_s();
        dc.upkeep().attempted_unix_s.store(now, Ordering::Relaxed);
        match collect::operation(dc, CollectRequest::default()) {
            Ok(_) | Err(ManageError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let now = dc.now_unix_s();
    let config = &dc.config().store;
    let Some(rate) = config.scrub_bytes_per_s else {
        return Ok(());
    };
    let open = config.scrub_hours.is_none_or(|hours| hours.contains(now));
    let state = dc.store().scrub_state()?;
    let between = state.next.0 == 0 && now < state.ended_unix_s.saturating_add(PASS_EVERY_S);
    if open && !between && dc.store().stats().packs > 0 {
        scrub::go_on(dc, rate, TICK, &|| cancel.is_cancelled())?;
    }
    Ok(())
}

fn is_collection_due(dc: &Datacenter) -> Result<bool, ManageError> {
    let Some(every) = dc.config().store.collect_every else {
        return Ok(false);
    };
    // Halted collections wait for a person; `splice status` and `splice store stats` say so.
    if dc.store().halted().is_some() {
        return Ok(false);
    }
    let now = dc.now_unix_s();
    if now < dc.started_unix_s().saturating_add(SETTLE_S) {
        return Ok(false);
    }
    let attempted = dc.upkeep().attempted_unix_s.load(Ordering::Relaxed);
    if now < attempted.saturating_add(RETRY_S) && attempted > 0 {
        return Ok(false);
    }
    let last = last_collection(dc)?.map_or(0, |(ended, _)| ended);
    Ok(now >= last.saturating_add(every.as_secs()))
}

/// The last collection that ended well, and when; among the operations that are remembered.
fn last_collection(dc: &Datacenter) -> Result<Option<(u64, CollectResult)>, ManageError> {
    const LOOKED_AT: usize = 1000;
    let operations = dc.operations().list(None, LOOKED_AT)?;
    Ok(operations
        .into_iter()
        .filter(|operation| operation.state == OperationState::Succeeded)
        .find_map(|operation| match operation.result {
            Some(OperationResult::Collect(result)) if !result.dry_run => {
                Some((operation.finished_unix_s?, result))
            }
            _ => None,
        }))
}

impl Datacenter {
    /// The chunk store in detail.
    pub fn store_report(&self) -> Result<StoreReport, ManageError> {
        let stats = self.store().stats();
        let scrub = self.store().scrub_state()?;
        let config = &self.config().store;
        let last = last_collection(self)?;
        let some = |unix_s: u64| (unix_s > 0).then_some(unix_s);
        Ok(StoreReport {
            packs: stats.packs,
            chunks: stats.chunks,
            nodes: stats.nodes,
            plain_bytes: stats.raw_bytes,
            stored_bytes: stats.pack_bytes,
            free_bytes: self.free_bytes(),
            damaged: stats.damaged,
            halted: self.store().halted(),
            deleted_versions: self.deleted_count()?,
            collected_unix_s: last.as_ref().map(|(ended, _)| *ended),
            last_collection: last.map(|(_, result)| result),
            scrub: ScrubStatus {
                passes: scrub.passes,
                began_unix_s: some(scrub.began_unix_s),
                ended_unix_s: some(scrub.ended_unix_s),
                next_pack: scrub.next.0,
                rate_bytes_per_s: config.scrub_bytes_per_s.unwrap_or(0),
                hours: config.scrub_hours.map(|hours| {
                    let part = DayPart {
                        from_min: hours.from_min,
                        until_min: hours.until_min,
                    };
                    part.to_string()
                }),
                utc_offset: format_utc_offset(
                    config.scrub_hours.map_or(0, |hours| hours.utc_offset_min),
                ),
            },
        })
    }
}
