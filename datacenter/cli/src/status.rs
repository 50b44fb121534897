//! `splice status`.

use datacenter_api::DatacenterStatus;
use datacenter_api::units::{format_duration, format_size};

use crate::config::Context;
use crate::failure::Failure;
use crate::output;

/// Branches that are named as not ready.
const NOT_READY_SHOWN: usize = 20;

/// `splice status` has no arguments of its own.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  splice status --json")]
pub struct Arguments {}

/// Does it.
pub async fn run(context: &Context, _arguments: Arguments) -> Result<(), Failure> {
    let client = context.client()?;
    let status = client.status().await?;
    if context.json {
        return output::json(&status);
    }
    let store = &status.store;
    output::facts(&[
        ("realm", Some(format!("{} ({})", status.name, status.realm))),
        (
            "datacenter",
            Some(format!("{}, software {}", client.url(), status.software)),
        ),
        ("up", Some(format_duration(status.uptime_s))),
        ("link address", Some(status.link_address.clone())),
        ("images", Some(output::count(status.images))),
        ("versions", Some(output::count(status.versions))),
        (
            "branches",
            Some(format!(
                "{}, {} online",
                status.branches, status.branches_online
            )),
        ),
        ("boot with the WAN cut", ready(&status)),
        (
            "operations",
            Some(format!("{} running", status.operations_running)),
        ),
        (
            "store",
            Some(format!(
                "{} chunks, {} in {} packs ({} plain)",
                output::count(store.chunks),
                format_size(store.stored_bytes),
                output::count(store.packs),
                format_size(store.plain_bytes)
            )),
        ),
        ("free", Some(format_size(store.free_bytes))),
        (
            "endorsed until",
            Some(output::time(status.endorsement_expires_unix_s)),
        ),
    ])?;
    for line in status.not_ready.iter().take(NOT_READY_SHOWN) {
        output::aside(format_args!("not ready for a cut WAN: {line}"));
    }
    let more = status.not_ready.len().saturating_sub(NOT_READY_SHOWN);
    if more > 0 {
        output::aside(format_args!("and {more} branches more; --json names them"));
    }
    for warning in &status.warnings {
        output::aside(format_args!("warning: {warning}"));
    }
    Ok(())
}

/// How many branches would go on without their lines.
fn ready(status: &DatacenterStatus) -> Option<String> {
    let (ready, not) = (status.branches_ready, status.not_ready.len() as u64);
    (ready + not > 0).then(|| format!("{ready} of {} branches with pools", ready + not))
}
