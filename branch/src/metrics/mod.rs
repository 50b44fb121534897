//! The branch's metrics: the figures that its parts keep, read at each scrape.
//!
//! Nothing here is on a guest's path, and nothing is remembered between scrapes but what the HTTP server counts. A scrape costs what a
//! status report costs: versions whose chunks did not change are not counted again. [`families`] is the table.

pub mod families;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use branch_api::{Desktop, DesktopState};
use datacenter_api::{OfflineBoot, ReadyReport};
use datacenter_observe::http::Requests;
use datacenter_observe::samples::Samples;
use tokio::sync::Semaphore;

use crate::desktop::DesktopError;
use crate::server::Branch;
use families::FAMILIES;

/// What is kept for those who look after the branch server.
pub struct Observed {
    /// Requests to its HTTP servers.
    pub requests: Arc<Requests>,
    /// The right to read everything: scrapes and bundles take turns, so that those who time out do not pile up on the blocking pool.
    pub turn: Arc<Semaphore>,
    /// When this process began, unix seconds.
    pub started_unix_s: u64,
    serving: AtomicBool,
}

impl Observed {
    /// Of a process that began at `started_unix_s` and does not serve yet.
    pub fn new(started_unix_s: u64) -> Self {
        Self {
            requests: Arc::default(),
            turn: Arc::new(Semaphore::new(1)),
            started_unix_s,
            serving: AtomicBool::new(false),
        }
    }

    /// Guests and callers are served from now on, or no more.
    pub fn set_serving(&self, serving: bool) {
        self.serving.store(serving, Ordering::Release);
    }
}

const DESKTOP_STATES: [DesktopState; 6] = [
    DesktopState::Starting,
    DesktopState::Running,
    DesktopState::Served,
    DesktopState::Paused,
    DesktopState::Stopped,
    DesktopState::Failed,
];

fn state_name(state: DesktopState) -> &'static str {
    match state {
        DesktopState::Starting => "starting",
        DesktopState::Running => "running",
        DesktopState::Served => "served",
        DesktopState::Paused => "paused",
        DesktopState::Stopped => "stopped",
        DesktopState::Failed => "failed",
    }
}

const LEASES: [&str; 7] = [
    "held",
    "recalled",
    "returning",
    "fenced",
    "given up",
    "idle",
    "unleased",
];

impl Branch {
    /// Whether desktops can be started and served from what is here. The link is no part of it: without it a branch goes on.
    pub fn ready(&self) -> ReadyReport {
        let has_room = self.desktops.volumes().free_bytes().is_none_or(|b| b > 0);
        ReadyReport::new(&[
            ("serving", self.observed.serving.load(Ordering::Acquire)),
            ("catalog", self.versions.catalog().desktops().is_ok()),
            ("room", has_room),
        ])
    }

    /// Its metrics as text.
    ///
    /// # Errors
    /// When the catalog cannot be read: figures without versions or desktops would say that there are none.
    pub fn metrics(&self) -> Result<String, DesktopError> {
        let mut samples = Samples::new(FAMILIES);
        let build = &[env!("CARGO_PKG_VERSION")];
        samples.flag("splice_branch_build_info", build, true);
        let started = self.observed.started_unix_s;
        samples.count("splice_branch_start_timestamp_seconds", &[], started);
        self.tell_link(&mut samples);
        self.tell_fetching(&mut samples);
        self.tell_cache(&mut samples);
        self.tell_versions(&mut samples)?;
        self.tell_readiness(&mut samples)?;
        self.tell_overlays(&mut samples);
        let desktops = self.desktops.list()?;
        tell_desktops(&mut samples, &desktops);
        tell_write_back(&mut samples, &desktops);
        self.observed.requests.collect(
            &mut samples,
            "splice_branch_http_requests",
            "splice_branch_http_request_duration_seconds",
        );
        let dropped = samples.dropped();
        samples.count("splice_branch_metrics_dropped_series", &[], dropped);
        Ok(samples.text())
    }

    fn tell_link(&self, samples: &mut Samples) {
        let report = self.link.report();
        samples.flag("splice_branch_link_up", &[], report.connected);
        if let Some(since) = report.since_unix_s {
            samples.count("splice_branch_link_changed_timestamp_seconds", &[], since);
        }
        if let Some(ms) = report.rtt_ms.filter(|_| report.connected) {
            samples.gauge("splice_branch_link_round_trip_seconds", &[], ms / 1e3);
        }
        let totals = self.link.totals();
        for (name, value) in [
            ("splice_branch_link_connections", totals.links),
            ("splice_branch_link_sent_bytes", totals.sent_bytes),
            ("splice_branch_link_received_bytes", totals.received_bytes),
            ("splice_branch_link_lost_packets", totals.lost_packets),
            (
                "splice_branch_link_repairs_received",
                totals.repairs_received,
            ),
        ] {
            samples.counter(name, &[], value);
        }
        for (class, sent, received) in totals.classes.each() {
            let class = &[class.name()];
            samples.counter("splice_branch_link_class_sent_bytes", class, sent);
            samples.counter("splice_branch_link_class_received_bytes", class, received);
        }
    }

    fn tell_fetching(&self, samples: &mut Samples) {
        let counters = &self.fetcher.counters;
        // Each as it is counted: a difference of two that are read one after the other may fall, and would look like a restart.
        for (name, counter) in [
            ("splice_branch_demand_chunks", &counters.demand_chunks),
            ("splice_branch_prefetched_chunks", &counters.prefetch_chunks),
            ("splice_branch_fetched_bytes", &counters.chunk_bytes),
            (
                "splice_branch_fetched_by_update_bytes",
                &counters.update_bytes,
            ),
            (
                "splice_branch_update_packed_bytes",
                &counters.update_packed_bytes,
            ),
        ] {
            samples.counter(name, &[], counter.load(Ordering::Relaxed));
        }
        let waits = counters.demand_wait.doublings();
        samples.histogram("splice_branch_demand_wait_seconds", &[], waits);
        for (class, took) in [
            ("boot", counters.boot_fetch.doublings()),
            ("fill", counters.fill_fetch.doublings()),
        ] {
            samples.histogram("splice_branch_fetch_duration_seconds", &[class], took);
        }
        let allowed = self.fetcher.is_fill_hour();
        samples.flag("splice_branch_fill_allowed", &[], allowed);
    }

    fn tell_cache(&self, samples: &mut Samples) {
        let stats = self.fetcher.cache().stats();
        for (name, value) in [
            ("splice_branch_cache_used_bytes", stats.bytes),
            ("splice_branch_cache_capacity_bytes", stats.capacity_bytes),
            ("splice_branch_cache_chunks", stats.chunks),
            ("splice_branch_cache_quarantined_chunks", stats.quarantined),
        ] {
            samples.count(name, &[], value);
        }
        for (name, value) in [
            ("splice_branch_cache_hits", stats.hits),
            ("splice_branch_cache_misses", stats.misses),
            ("splice_branch_cache_evicted_chunks", stats.evicted),
            ("splice_branch_cache_evicted_bytes", stats.evicted_bytes),
            ("splice_branch_cache_damaged_chunks", stats.damaged),
            ("splice_branch_cache_sync_failures", stats.sync_failures),
        ] {
            samples.counter(name, &[], value);
        }
    }

    fn tell_versions(&self, samples: &mut Samples) -> Result<(), DesktopError> {
        let cache = self.fetcher.cache();
        // By name: behind a restored datacenter two versions may have had one.
        let mut by_name = BTreeMap::new();
        for (id, record) in self.versions.catalog().versions()? {
            if let Ok(found) = self.versions.residency(id, &record, cache) {
                by_name.insert((found.image.clone(), found.number), found);
            }
        }
        for ((image, number), found) in by_name {
            let number = number.to_string();
            let labels: &[&str] = &[&image, &number];
            let (size, resident) = (found.total_bytes, found.resident_bytes);
            samples.count("splice_branch_version_size_bytes", labels, size);
            samples.count("splice_branch_version_resident_bytes", labels, resident);
            samples.flag("splice_branch_version_complete", labels, found.complete);
        }
        Ok(())
    }

    fn tell_readiness(&self, samples: &mut Samples) -> Result<(), DesktopError> {
        let readiness = self.readiness()?;
        for pool in &readiness.pools {
            let label = &[pool.pool.as_str()];
            let boots = pool.boots == OfflineBoot::Yes;
            samples.flag("splice_branch_pool_boots_offline", label, boots);
            let missing = pool.missing_bytes;
            samples.count("splice_branch_pool_missing_bytes", label, missing);
        }
        for (name, value) in [
            (
                "splice_branch_power_on_until_timestamp_seconds",
                readiness.power_on_until_unix_s,
            ),
            (
                "splice_branch_certificate_until_timestamp_seconds",
                readiness.certificate_until_unix_s,
            ),
            (
                "splice_branch_overlay_free_bytes",
                readiness.overlay_free_bytes,
            ),
        ] {
            if let Some(value) = value {
                samples.count(name, &[], value);
            }
        }
        let counter = self.versions.assignment().map_or(0, |a| a.counter);
        samples.count("splice_branch_assignment_counter", &[], counter);
        Ok(())
    }

    fn tell_overlays(&self, samples: &mut Samples) {
        let figures = self.desktops.volumes().figures();
        for (name, value) in [
            ("splice_branch_overlays_open", figures.open),
            ("splice_branch_overlay_log_bytes", figures.log_bytes),
            ("splice_branch_overlay_live_bytes", figures.live_bytes),
            ("splice_branch_overlay_extents", figures.extents),
            ("splice_branch_overlays_waiting_for_room", figures.waiting),
            ("splice_branch_overlay_missing_bytes", figures.missing_bytes),
            ("splice_branch_overlays_failed", figures.failed),
            ("splice_branch_overlay_read_faults", figures.read_faults),
        ] {
            samples.count(name, &[], value);
        }
    }
}

fn tell_desktops(samples: &mut Samples, desktops: &[Desktop]) {
    for state in DESKTOP_STATES {
        let count = desktops.iter().filter(|d| d.state == state).count();
        samples.count("splice_branch_desktops", &[state_name(state)], count as u64);
    }
}

fn tell_write_back(samples: &mut Samples, desktops: &[Desktop]) {
    let volumes = || desktops.iter().flat_map(|desktop| &desktop.volumes);
    for lease in LEASES {
        let count = volumes().filter(|volume| volume.lease == lease).count();
        samples.count("splice_branch_volumes", &[lease], count as u64);
    }
    if let Some(end) = volumes().filter_map(|volume| volume.ends_unix_s).min() {
        let name = "splice_branch_lease_earliest_end_timestamp_seconds";
        samples.count(name, &[], end);
    }
    let behind: u64 = volumes().filter_map(|volume| volume.behind_records).sum();
    let rpo_s = volumes().map(|volume| volume.behind_s).max().unwrap_or(0);
    let stalled = volumes().filter(|volume| volume.trouble.is_some()).count();
    samples.count("splice_branch_write_back_behind_records", &[], behind);
    samples.count("splice_branch_write_back_rpo_seconds", &[], rpo_s);
    let name = "splice_branch_write_back_stalled_volumes";
    samples.count(name, &[], stalled as u64);
}

#[cfg(test)]
mod tests {
    use branch_api::VolumeLine;
    use datacenter_observe::{document, family};

    use super::*;

    const REFERENCE: &str = include_str!("../../../docs/observability.md");
    const DASHBOARD: &str = include_str!("../../../docs/observability/splice-dashboard.json");
    const ALERTS: &str = include_str!("../../../docs/observability/splice-alerts.yml");

    #[test]
    fn names_follow_the_conventions() {
        assert_eq!(
            family::faults("splice_branch_", FAMILIES),
            Vec::<String>::new()
        );
    }

    #[test]
    fn the_reference_is_the_table() {
        let table = document::table(FAMILIES);
        assert!(
            REFERENCE.contains(&table),
            "put this into docs/observability.md:\n{table}"
        );
    }

    #[test]
    fn dashboard_and_alerts_name_what_is_served() {
        let mut unknown = document::unknown_names("splice_branch_", FAMILIES, REFERENCE);
        // The reference names histograms without their parts.
        unknown.retain(|name| !FAMILIES.iter().any(|family| family.shown_name() == *name));
        assert_eq!(unknown, Vec::<String>::new());
        for text in [DASHBOARD, ALERTS] {
            let unknown = document::unknown_names("splice_branch_", FAMILIES, text);
            assert_eq!(unknown, Vec::<String>::new());
        }
    }

    #[test]
    fn write_back_is_as_far_behind_as_the_worst_volume() {
        let line = |lease: &str, behind_s: u64, ends_unix_s: Option<u64>| VolumeLine {
            id: "01".into(),
            kind: "system".into(),
            lease: lease.into(),
            generation: 1,
            ends_unix_s,
            no_right: None,
            behind_records: Some(behind_s / 10),
            behind_s,
            applied_unix_s: None,
            trouble: (behind_s > 50).then(|| "its overlay does not open".into()),
        };
        let desktop = |volumes| Desktop {
            volumes,
            ..a_desktop()
        };
        let desktops = [
            desktop(vec![
                line("held", 30, Some(900)),
                line("held", 60, Some(800)),
            ]),
            desktop(vec![line("fenced", 10, None)]),
        ];
        let mut samples = Samples::new(FAMILIES);
        tell_desktops(&mut samples, &desktops);
        tell_write_back(&mut samples, &desktops);
        let text = samples.text();
        for line in [
            "splice_branch_volumes{lease=\"held\"} 2.0",
            "splice_branch_volumes{lease=\"fenced\"} 1.0",
            "splice_branch_volumes{lease=\"idle\"} 0.0",
            "splice_branch_lease_earliest_end_timestamp_seconds 800.0",
            "splice_branch_write_back_behind_records 10.0",
            "splice_branch_write_back_rpo_seconds 60.0",
            "splice_branch_write_back_stalled_volumes 1.0",
            "splice_branch_desktops{state=\"stopped\"} 2.0",
            "splice_branch_desktops{state=\"failed\"} 0.0",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    fn a_desktop() -> Desktop {
        let text = r#"{"name":"a","pool":"p","version":"v","image":"i","version_number":1,"state":"stopped",
            "serial_log":"","serial_socket":"","nbd_export":"","demand_chunks":0,"overlay_bytes":0}"#;
        serde_json::from_str(text).expect("the rest has defaults")
    }
}
