//! `splice status`.

use datacenter_api::units::{format_duration, format_size};

use crate::config::Context;
use crate::failure::Failure;
use crate::output;

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
    for warning in &status.warnings {
        output::aside(format_args!("warning: {warning}"));
    }
    Ok(())
}
