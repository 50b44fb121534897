//! The datacenter's metrics: figures of its own parts, and of what branches last reported, read at each scrape.
//!
//! Branches sit behind other people's firewalls, so that one scrape of the datacenter shows the fleet; what only a branch knows in detail is
//! on its own `/metrics`. [`families`] is the table.

pub mod families;
#[cfg(test)]
mod tests;
mod traffic;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use datacenter_api::{
    Branch, BranchState, BranchStatus, OperationResult, OperationState, ReadyReport,
    RolloutPoolState, RolloutState,
};
use datacenter_observe::http::Requests;
use datacenter_observe::samples::Samples;
use tokio::sync::Semaphore;

use crate::catalog::rows::SecretHash;
use crate::datacenter::Datacenter;
use crate::problem::ManageError;
use crate::status::is_ready;
use families::FAMILIES;
use traffic::Traffic;

/// Free bytes on the data folder's disk below which the datacenter is not ready: publishes and what desktops write are refused soon.
const ROOM_BYTES_MIN: u64 = 256 << 20;
/// Operations that are remembered, among which the last backup is looked for.
const OPERATIONS_LOOKED_AT: usize = 1000;
/// Shortest metrics token; `openssl rand -hex 32` makes one of 64.
const TOKEN_BYTES_MIN: usize = 32;

/// Why a metrics token was not taken.
#[derive(Debug, thiserror::Error)]
pub enum MetricsTokenError {
    /// Its file cannot be read.
    #[error("cannot read the metrics token in {}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It could be guessed.
    #[error(
        "{} is to hold one word of at least {TOKEN_BYTES_MIN} characters; make one: openssl rand -hex 32",
        file.display()
    )]
    Weak {
        /// The file.
        file: PathBuf,
    },
}

/// What is kept for those who look after the datacenter.
pub struct Observed {
    requests: Arc<Requests>,
    turn: Arc<Semaphore>,
    traffic: Traffic,
    volumes: volumes::Kept,
    serving: AtomicBool,
    metrics_token: OnceLock<SecretHash>,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            requests: Arc::default(),
            turn: Arc::new(Semaphore::new(1)),
            traffic: Traffic::default(),
            volumes: volumes::Kept::default(),
            serving: AtomicBool::new(false),
            metrics_token: OnceLock::new(),
        }
    }
}

impl Observed {
    /// Requests to the management API.
    pub fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    /// The right to read everything: scrapes and bundles take turns, so that those who time out do not pile up on the blocking pool.
    pub fn turn(&self) -> &Arc<Semaphore> {
        &self.turn
    }

    /// Branches and callers are served from now on, or no more.
    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Release);
    }

    /// Whether a token is the one that may read metrics and nothing else.
    pub(crate) fn is_metrics_token(&self, hash: &SecretHash) -> bool {
        // Hashes: what can be timed depends on what nobody can choose.
        self.metrics_token.get() == Some(hash)
    }

    /// Lets the bearer of the token in `file` read metrics.
    ///
    /// # Errors
    /// The file cannot be read, or holds no token that is long enough.
    pub fn take_metrics_token(&self, file: &Path) -> Result<(), MetricsTokenError> {
        let text = std::fs::read_to_string(file).map_err(|source| MetricsTokenError::Io {
            file: file.to_owned(),
            source,
        })?;
        let token = text.trim();
        if token.len() < TOKEN_BYTES_MIN || token.contains(char::is_whitespace) {
            return Err(MetricsTokenError::Weak {
                file: file.to_owned(),
            });
        }
        let hash = SecretHash::of(token.as_bytes());
        // A second call would be a mistake of ours; the first stays.
        let first = self.metrics_token.set(hash).is_ok();
        debug_assert!(first, "the token is taken once");
        Ok(())
    }
}

/// States of desktops as branches write them; what an unknown program writes counts as `other`.
const DESKTOP_STATES: [&str; 6] = [
    "starting", "running", "served", "paused", "stopped", "failed",
];

impl Datacenter {
    /// Whether it can do its work: branches and callers are served, the catalog answers, the publisher key is endorsed, and there is room.
    pub fn ready(&self) -> ReadyReport {
        let now = self.now_unix_s();
        let endorsed = self.endorsements().iter().any(|e| e.until_unix_s > now);
        ReadyReport::new(&[
            ("serving", self.observed().serving.load(Ordering::Acquire)),
            ("catalog", self.image_counts().is_ok()),
            ("endorsement", endorsed),
            ("room", self.free_bytes() >= ROOM_BYTES_MIN),
        ])
    }

    /// Its metrics as text.
    ///
    /// # Errors
    /// When the catalog or the store cannot answer.
    pub fn metrics(&self) -> Result<String, ManageError> {
        let mut samples = Samples::new(FAMILIES);
        let build = &[env!("CARGO_PKG_VERSION")];
        samples.flag("splice_datacenter_build_info", build, true);
        let branches = self.branches(None, usize::MAX / 2)?;
        self.tell_status(&mut samples, &branches)?;
        tell_branches(&mut samples, &branches);
        self.tell_rollouts(&mut samples)?;
        self.tell_links(&mut samples);
        self.tell_store(&mut samples)?;
        self.tell_backup(&mut samples)?;
        self.tell_volumes(&mut samples)?;
        self.observed().requests.collect(
            &mut samples,
            "splice_datacenter_http_requests",
            "splice_datacenter_http_request_duration_seconds",
        );
        let dropped = samples.dropped();
        samples.count("splice_datacenter_metrics_dropped_series", &[], dropped);
        Ok(samples.text())
    }

    fn tell_status(&self, samples: &mut Samples, branches: &[Branch]) -> Result<(), ManageError> {
        let status = self.status_with(branches)?;
        for (name, value) in [
            (
                "splice_datacenter_start_timestamp_seconds",
                self.started_unix_s(),
            ),
            ("splice_datacenter_warnings", status.warnings.len() as u64),
            (
                "splice_datacenter_endorsement_until_timestamp_seconds",
                status.endorsement_expires_unix_s,
            ),
            (
                "splice_datacenter_operations_running",
                status.operations_running,
            ),
            ("splice_datacenter_images", status.images),
            ("splice_datacenter_versions", status.versions),
            ("splice_datacenter_branches_online", status.branches_online),
            ("splice_datacenter_branches_ready", status.branches_ready),
        ] {
            samples.count(name, &[], value);
        }
        Ok(())
    }

    fn tell_rollouts(&self, samples: &mut Samples) -> Result<(), ManageError> {
        let figures = self.rollout_figures()?;
        for (state, count) in RolloutState::ALL.into_iter().zip(figures.rollouts) {
            samples.count("splice_datacenter_rollouts", &[state.name()], count);
        }
        for (state, count) in RolloutPoolState::ALL.into_iter().zip(figures.pools) {
            samples.count("splice_datacenter_rollout_pools", &[state.name()], count);
        }
        Ok(())
    }

    fn tell_links(&self, samples: &mut Samples) {
        let (up, totals) = self.observed().traffic.totals();
        samples.count("splice_datacenter_links_up", &[], up);
        for (name, value) in [
            ("splice_datacenter_link_connections", totals.links),
            ("splice_datacenter_link_sent_bytes", totals.sent_bytes),
            (
                "splice_datacenter_link_received_bytes",
                totals.received_bytes,
            ),
            ("splice_datacenter_link_lost_packets", totals.lost_packets),
        ] {
            samples.counter(name, &[], value);
        }
        for (class, sent, _) in totals.classes.each() {
            let name = "splice_datacenter_link_class_sent_bytes";
            samples.counter(name, &[class.name()], sent);
        }
    }

    fn tell_store(&self, samples: &mut Samples) -> Result<(), ManageError> {
        let report = self.store_report()?;
        for (name, value) in [
            ("splice_datacenter_store_packs", report.packs),
            ("splice_datacenter_store_chunks", report.chunks),
            ("splice_datacenter_store_nodes", report.nodes),
            ("splice_datacenter_store_plain_bytes", report.plain_bytes),
            ("splice_datacenter_store_stored_bytes", report.stored_bytes),
            ("splice_datacenter_store_free_bytes", report.free_bytes),
            ("splice_datacenter_store_damaged", report.damaged),
            (
                "splice_datacenter_store_deleted_versions",
                report.deleted_versions,
            ),
            ("splice_datacenter_scrub_passes", report.scrub.passes),
        ] {
            samples.count(name, &[], value);
        }
        let halted = report.halted.is_some();
        samples.flag("splice_datacenter_store_halted", &[], halted);
        let last = report.last_collection.as_ref();
        for (name, value) in [
            (
                "splice_datacenter_collection_timestamp_seconds",
                report.collected_unix_s,
            ),
            (
                "splice_datacenter_collection_freed_bytes",
                last.map(|last| last.freed_bytes),
            ),
            (
                "splice_datacenter_collection_dead_bytes",
                last.map(|last| last.dead_bytes),
            ),
            (
                "splice_datacenter_scrub_began_timestamp_seconds",
                report.scrub.began_unix_s,
            ),
            (
                "splice_datacenter_scrub_ended_timestamp_seconds",
                report.scrub.ended_unix_s,
            ),
        ] {
            if let Some(value) = value {
                samples.count(name, &[], value);
            }
        }
        Ok(())
    }

    fn tell_backup(&self, samples: &mut Samples) -> Result<(), ManageError> {
        let running = self.backing_up().load(Ordering::Acquire);
        samples.flag("splice_datacenter_backup_running", &[], running);
        let operations = self.operations().list(None, OPERATIONS_LOOKED_AT)?;
        let mut done = operations
            .into_iter()
            .filter(|operation| operation.state == OperationState::Succeeded);
        let last = done.find_map(|operation| match operation.result {
            Some(OperationResult::Backup(result)) => Some((operation.finished_unix_s?, result)),
            _ => None,
        });
        if let Some((ended, result)) = last {
            samples.count("splice_datacenter_backup_timestamp_seconds", &[], ended);
            samples.count("splice_datacenter_backup_size_bytes", &[], result.bytes);
            samples.count("splice_datacenter_backup_damaged", &[], result.damaged);
        }
        Ok(())
    }

    fn tell_volumes(&self, samples: &mut Samples) -> Result<(), ManageError> {
        let figures = self.volume_figures()?;
        samples.count("splice_datacenter_volumes", &["held"], figures.held);
        samples.count("splice_datacenter_volumes", &["free"], figures.free);
        let behind = figures.behind_records;
        samples.count("splice_datacenter_write_back_behind_records", &[], behind);
        for (branch, rpo_s) in &figures.rpo_s {
            let name = "splice_datacenter_write_back_rpo_seconds";
            samples.count(name, &[branch], *rpo_s);
        }
        samples.count("splice_datacenter_snapshots", &[], figures.snapshots);
        samples.count("splice_datacenter_forks", &[], figures.forks);
        Ok(())
    }
}

fn tell_branches(samples: &mut Samples, branches: &[Branch]) {
    for (state, name) in [
        (BranchState::Invited, "invited"),
        (BranchState::Joined, "joined"),
        (BranchState::Revoked, "revoked"),
    ] {
        let count = branches.iter().filter(|b| b.state == state).count();
        samples.count("splice_datacenter_branches", &[name], count as u64);
    }
    let joined = branches.iter().filter(|b| b.state == BranchState::Joined);
    for branch in joined {
        let label = &[branch.name.as_str()];
        samples.flag("splice_datacenter_branch_up", label, branch.online);
        samples.flag("splice_datacenter_branch_ready", label, is_ready(branch));
        if let Some(until) = branch.certificate_expires_unix_s {
            let name = "splice_datacenter_branch_certificate_until_timestamp_seconds";
            samples.count(name, label, until);
        }
        if let Some(status) = &branch.status {
            tell_report(samples, &branch.name, branch.online, status);
        }
    }
}

/// What a branch last said of itself.
fn tell_report(samples: &mut Samples, branch: &str, online: bool, status: &BranchStatus) {
    let label = &[branch];
    if let Some(ms) = status.link.rtt_ms.filter(|_| online) {
        samples.gauge(
            "splice_datacenter_branch_round_trip_seconds",
            label,
            ms / 1e3,
        );
    }
    let cache = &status.cache;
    let missing: u64 = status
        .versions
        .iter()
        .map(|version| version.total_bytes.saturating_sub(version.resident_bytes))
        .fold(0, u64::saturating_add);
    for (name, value) in [
        (
            "splice_datacenter_branch_report_timestamp_seconds",
            status.reported_unix_s,
        ),
        ("splice_datacenter_branch_cache_used_bytes", cache.bytes),
        (
            "splice_datacenter_branch_cache_capacity_bytes",
            cache.capacity_bytes,
        ),
        ("splice_datacenter_branch_missing_bytes", missing),
    ] {
        samples.count(name, label, value);
    }
    for (name, value) in [
        (
            "splice_datacenter_branch_received_bytes",
            status.counters.received_bytes,
        ),
        ("splice_datacenter_branch_cache_hits", cache.hits),
        ("splice_datacenter_branch_cache_misses", cache.misses),
    ] {
        samples.counter(name, label, value);
    }
    let count = |wanted: &dyn Fn(&str) -> bool| {
        let states = status.desktops.iter().map(|d| d.state.as_str());
        states.filter(|state| wanted(state)).count() as u64
    };
    let name = "splice_datacenter_branch_desktops";
    for known in DESKTOP_STATES {
        samples.count(name, &[branch, known], count(&|state| state == known));
    }
    let other = count(&|state| !DESKTOP_STATES.contains(&state));
    samples.count(name, &[branch, "other"], other);
}
