//! Reading everything in the store again: all the time at a gentle pace, or once because somebody asks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use datacenter_api::{Operation, OperationKind, OperationResult, Phase, ScrubRequest, ScrubResult};

use super::pace::Pace;
use super::turn;
use crate::datacenter::Datacenter;
use crate::operations::Meter;
use crate::problem::ManageError;

/// How often a scrub that waits for its turn looks whether it was cancelled.
const TURN_POLL: Duration = Duration::from_millis(100);

/// Starts a pass as an operation.
pub fn operation(dc: &Arc<Datacenter>, request: ScrubRequest) -> Result<Operation, ManageError> {
    let worker = Arc::clone(dc);
    let work = move |meter: &Meter| match scrub_all(&worker, &request, meter) {
        Ok(result) => Ok(OperationResult::Scrub(result)),
        Err(error) => Err((&error).into()),
    };
    dc.operations()
        .start(OperationKind::Scrub, "store".into(), work)
}

/// Reads everything once, from the first pack on; long.
pub fn scrub_all(
    dc: &Datacenter,
    request: &ScrubRequest,
    meter: &Meter,
) -> Result<ScrubResult, ManageError> {
    // The scrub that goes on all the time gives way after some packs, one that was asked for at its end.
    let _turn = loop {
        match turn(&dc.upkeep().scrubbing, "a scrub") {
            Ok(turn) => break turn,
            Err(busy) if meter.is_cancelled() => return Err(busy),
            Err(_) => std::thread::sleep(TURN_POLL),
        }
    };
    let total = dc.store().stats().pack_bytes;
    meter.at(Phase::Scrub, 0, total);
    dc.store().restart_scrub(dc.now_unix_s())?;
    let mut pace = Pace::new(request.rate_bytes_per_s);
    let mut result = ScrubResult::default();
    while let Some(pack) = dc.store().scrub_next(dc.now_unix_s())? {
        result.packs += 1;
        result.records += pack.records;
        result.bytes += pack.bytes;
        result.found += pack.damaged.len() as u64;
        meter.at(Phase::Scrub, result.bytes, total.max(result.bytes));
        pace.spend(pack.bytes, &|| meter.is_cancelled());
        if meter.is_cancelled() {
            return Err(ManageError::conflict(
                "the scrub was cancelled",
                "start it again; the one that goes on all the time continues where this one ended",
            ));
        }
    }
    let damage = dc.trace_damage()?;
    if damage.count() > 0 {
        // Whoever found it: what is traced here is no news to the next look, which would tell links.
        dc.announce_assignments();
    }
    result.damaged = damage.count();
    result.items = damage.shown();
    result.versions = damage.versions();
    Ok(result)
}

/// Goes on with the present pass for about `limit`, at least for one pack, unless somebody else scrubs.
pub(super) fn go_on(
    dc: &Datacenter,
    bytes_per_s: u64,
    limit: Duration,
    stop: &dyn Fn() -> bool,
) -> Result<(), ManageError> {
    let Ok(_turn) = turn(&dc.upkeep().scrubbing, "a scrub") else {
        return Ok(());
    };
    // The store would let us wait for the end of a collection, or of a backup.
    if turn(&dc.upkeep().collecting, "a collection").is_err()
        || dc.backing_up().load(Ordering::Acquire)
    {
        return Ok(());
    }
    let mut pace = Pace::new(Some(bytes_per_s));
    while !stop() && pace.elapsed() < limit {
        let Some(pack) = dc.store().scrub_next(dc.now_unix_s())? else {
            let state = dc.store().scrub_state()?;
            tracing::info!(passes = state.passes, "the store was read again, all of it");
            return Ok(());
        };
        pace.spend(pack.bytes, stop);
    }
    Ok(())
}
