//! The table against its conventions, its reference, dashboard and alerts; and what foreign reports can do to it.

use datacenter_api::DesktopStatus;
use datacenter_observe::{document, family};

use super::*;

const REFERENCE: &str = include_str!("../../../docs/observability.md");
const DASHBOARD: &str = include_str!("../../../docs/observability/splice-dashboard.json");
const ALERTS: &str = include_str!("../../../docs/observability/splice-alerts.yml");

#[test]
fn names_follow_the_conventions() {
    let faults = family::faults("splice_datacenter_", FAMILIES);
    assert_eq!(faults, Vec::<String>::new());
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
    let mut unknown = document::unknown_names("splice_datacenter_", FAMILIES, REFERENCE);
    // The reference names histograms without their parts.
    unknown.retain(|name| !FAMILIES.iter().any(|family| family.shown_name() == *name));
    assert_eq!(unknown, Vec::<String>::new());
    for text in [DASHBOARD, ALERTS] {
        let unknown = document::unknown_names("splice_datacenter_", FAMILIES, text);
        assert_eq!(unknown, Vec::<String>::new());
        // A name of neither program is nobody's, and no test would look for it.
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let strangers = words.filter(|word| {
            word.starts_with("splice_")
                && !word.starts_with("splice_datacenter_")
                && !word.starts_with("splice_branch_")
        });
        assert_eq!(strangers.collect::<Vec<_>>(), Vec::<&str>::new());
    }
}

#[test]
fn the_dashboard_is_json_that_grafana_takes() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("it has panels");
    assert!(dashboard["uid"].is_string() && dashboard["schemaVersion"].is_u64());
    let mut ids: Vec<u64> = panels.iter().filter_map(|p| p["id"].as_u64()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().expect("a panel has queries");
        assert!(!targets.is_empty(), "{panel}");
        for target in targets {
            let query = target["expr"].as_str().expect("a query is text");
            assert!(query.contains("splice_"), "{query}");
            let (open, close) = (query.matches('(').count(), query.matches(')').count());
            assert_eq!(open, close, "{query}");
        }
    }
}

#[test]
fn a_foreign_states_name_makes_no_series() {
    let desktop = |state: &str| DesktopStatus {
        state: state.into(),
        ..DesktopStatus::default()
    };
    let status = BranchStatus {
        desktops: ["running", "paused", "running", "dancing", ""]
            .map(desktop)
            .into(),
        ..BranchStatus::default()
    };
    let mut samples = Samples::new(FAMILIES);
    tell_report(&mut samples, "ny", true, &status);
    let text = samples.text();
    for (state, count) in [("running", 2), ("paused", 1), ("failed", 0), ("other", 2)] {
        let line = format!(
            "splice_datacenter_branch_desktops{{branch=\"ny\",state=\"{state}\"}} {count}.0"
        );
        assert!(text.contains(&line), "{line} is not in {text}");
    }
    assert!(!text.contains("dancing"));
}
