//! A collection of garbage as an operation: retentions are followed, old deletions given up, then the store collects.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use datacenter_api::{
    CollectRequest, CollectResult, Operation, OperationKind, OperationResult, Phase,
};
use dedup::NodeId;
use dedup_store::{CollectOptions, CollectPhase, CollectReport, StoreError};

use super::pace::Pace;
use super::turn;
use crate::datacenter::Datacenter;
use crate::operations::Meter;
use crate::problem::ManageError;
use crate::roots::Root;

/// Starts the operation.
pub fn operation(dc: &Arc<Datacenter>, request: CollectRequest) -> Result<Operation, ManageError> {
    // What can be refused at once is.
    drop(turn(&dc.upkeep().collecting, "a collection of garbage")?);
    let worker = Arc::clone(dc);
    let work = move |meter: &Meter| match collect_garbage(&worker, &request, meter) {
        Ok(result) => Ok(OperationResult::Collect(result)),
        Err(error) => Err((&error).into()),
    };
    dc.operations()
        .start(OperationKind::Collect, "store".into(), work)
}

/// Collects; long. A rehearsal neither follows retentions nor gives anything up, and takes the roots as they are.
pub fn collect_garbage(
    dc: &Datacenter,
    request: &CollectRequest,
    meter: &Meter,
) -> Result<CollectResult, ManageError> {
    let _turn = turn(&dc.upkeep().collecting, "a collection of garbage")?;
    meter.begin(Phase::Open, 0);
    if request.resume {
        if let Some(reason) = dc.store().halted() {
            tracing::warn!(reason, "collections are resumed by an operator");
        }
        dc.store().resume_collections()?;
    }
    let (mut retired_versions, mut purged_versions) = (0, 0);
    if !request.dry_run {
        retired_versions = dc.follow_retentions()?;
        purged_versions = dc.purge_deleted()?;
    }
    let config = &dc.config().store;
    let options = CollectOptions {
        grace_hours: config
            .collect_grace
            .as_secs()
            .div_ceil(3600)
            .min(i16::MAX as u64) as u16,
        compact_below_percent: config.compact_below_percent,
        dry_run: request.dry_run,
        ..CollectOptions::default()
    };
    // In this order: a version that becomes visible after the roots were read had its hold after the beginning.
    let collection = dc.store().begin_collection().map_err(|e| told(e, &[]))?;
    let _alone = dc.upkeep().walking();
    let roots = dc.roots()?;
    let nodes: BTreeSet<NodeId> = roots.iter().map(|root| root.node).collect();
    let nodes: Vec<NodeId> = nodes.into_iter().collect();
    let mut pace = Pace::new(config.collect_bytes_per_s);
    let report = collection.run(&nodes, &options, dc.now_unix_s(), &mut |progress| {
        let phase = match progress.phase {
            CollectPhase::Mark => Phase::Mark,
            CollectPhase::Sweep => Phase::Sweep,
            CollectPhase::Compact => Phase::Compact,
        };
        meter.at(phase, progress.done, progress.total);
        pace.spend(progress.io_bytes, &|| meter.is_cancelled());
        match meter.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let report = report.map_err(|e| told(e, &roots))?;
    tracing::info!(
        dry_run = request.dry_run,
        condemned = report.condemned,
        erased = report.erased,
        freed_bytes = report.freed_bytes,
        packs_removed = report.packs_removed,
        packs_rewritten = report.packs_rewritten,
        "garbage collected"
    );
    Ok(CollectResult {
        dry_run: request.dry_run,
        retired_versions,
        purged_versions,
        ..shown(&report)
    })
}

fn shown(report: &CollectReport) -> CollectResult {
    // Taken apart completely, so that a new figure cannot be forgotten here.
    let &CollectReport {
        roots,
        reachable_nodes,
        reachable_chunks,
        condemned,
        condemned_bytes,
        waiting,
        waiting_bytes,
        revived,
        erased,
        erased_bytes,
        held,
        damaged,
        packs_removed,
        packs_rewritten,
        packs_damaged,
        moved_bytes,
        freed_bytes,
        dead_bytes,
        out_of_space,
    } = report;
    CollectResult {
        dry_run: false,
        retired_versions: 0,
        purged_versions: 0,
        roots,
        reachable_chunks,
        reachable_nodes,
        condemned,
        condemned_bytes,
        waiting,
        waiting_bytes,
        revived,
        erased,
        erased_bytes,
        held,
        damaged,
        packs_removed,
        packs_rewritten,
        packs_damaged,
        moved_bytes,
        freed_bytes,
        dead_bytes,
        out_of_space,
    }
}

/// A refusal that names the version and the way out.
fn told(error: StoreError, roots: &[Root]) -> ManageError {
    match &error {
        StoreError::Stopped => ManageError::conflict(
            "the collection was cancelled",
            "start it again; what it did so far stays done",
        ),
        StoreError::Halted { .. } => ManageError::conflict(
            error.to_string(),
            "look into it and report it, then `splice store gc --resume`",
        ),
        StoreError::Unmarked { root, why } => {
            let names: Vec<&str> = roots
                .iter()
                .filter(|found| found.node == *root)
                .map(|found| found.name.as_str())
                .collect();
            ManageError::conflict(
                format!(
                    "nothing is collected: what {} refers to cannot be told: {why}",
                    names.join(", ")
                ),
                "publish the same disk again with --allow-same, which stores what is damaged anew",
            )
        }
        _ => error.into(),
    }
}
