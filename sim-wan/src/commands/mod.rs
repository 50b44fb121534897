//! One module per subcommand, and what the long-running ones share.

pub mod accuracy;
pub mod ctl;
pub mod link;
pub mod profiles;
pub mod proxy;
mod signals;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use sim_wan::control::Server;
use sim_wan::{Controlled, LinkState, LinkStats, Profiles};

use signals::Signals;

/// The user's profiles, or the built-in ones.
fn load_profiles(file: Option<&PathBuf>) -> anyhow::Result<Profiles> {
    Ok(match file {
        Some(path) => Profiles::load(path)?,
        None => Profiles::built_in(),
    })
}

/// Serves the control socket, says that all is ready, and waits for a signal or for a link to fail.
fn serve(
    signals: &Signals,
    socket: Option<&Path>,
    links: Vec<Arc<dyn Controlled>>,
    profiles: Profiles,
) -> anyhow::Result<()> {
    let _server = match socket {
        Some(path) => Some(
            Server::start(path, links.clone(), profiles)
                .map_err(|error| control_error(path, error))?,
        ),
        None => None,
    };
    println!("ready");
    while !signals.arrived() {
        if let Some(failure) = links.iter().find_map(|link| link.stats().failure) {
            anyhow::bail!("{failure}");
        }
    }
    for link in &links {
        eprintln!("{}", summary(&link.stats()));
    }
    Ok(())
}

fn control_error(path: &Path, error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another sim-wan listens there; choose another --socket, or end that one"
        }
        io::ErrorKind::NotFound => {
            "its folder does not exist; create it, or choose another --socket"
        }
        _ => "choose another --socket",
    };
    anyhow::Error::new(error).context(format!("control socket {}: {hint}", path.display()))
}

/// One link in one line for people.
fn summary(stats: &LinkStats) -> String {
    let state = match stats.state {
        LinkState::Up => "up",
        LinkState::Cut => "cut",
        LinkState::Outage => "outage",
        LinkState::Failed => "failed",
    };
    let way = |d: &sim_wan::model::DirectionStats| {
        format!(
            "offered {} B in {} packets, delivered {} B in {}, dropped {} queue {} loss {} outage, wait max {} ms",
            d.offered_bytes,
            d.offered_packets,
            d.delivered_bytes,
            d.delivered_packets,
            d.dropped_queue.packets,
            d.dropped_loss.packets,
            d.dropped_outage.packets,
            d.queue_delay_max_us / 1000,
        )
    };
    format!(
        "{} ({}, {state})\n  down: {}\n  up:   {}",
        stats.name,
        stats.profile,
        way(&stats.down),
        way(&stats.up)
    )
}

/// Seeds that differ between the links of one command, so that they do not lose the same packets.
fn seed_of(command_seed: u64, index: usize) -> u64 {
    command_seed.wrapping_add((index as u64).wrapping_mul(0x1000_0001))
}

fn named_profile<'a>(
    profiles: &'a Profiles,
    own: Option<&str>,
    general: Option<&str>,
    link: &str,
) -> anyhow::Result<&'a sim_wan::Profile> {
    let name = own.or(general).with_context(|| {
        format!("link {link} has no profile; pass --profile NAME (see `sim-wan profiles`)")
    })?;
    Ok(profiles.find(name)?)
}
