//! `sim-wan accuracy`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use sim_wan::accuracy::{Report, Via, measure};
use sim_wan::tun::check_privileges;

use super::load_profiles;
use super::signals::Signals;

/// Arguments of `sim-wan accuracy`.
#[derive(Args)]
pub struct AccuracyArguments {
    /// Profile to measure; repeatable.
    #[arg(long, required_unless_present = "all")]
    profile: Vec<String>,
    /// Measure every profile (about 30 s each).
    #[arg(long, conflicts_with = "profile")]
    all: bool,
    /// Profiles file instead of the built-in profiles.
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// Measure the UDP proxy, also as root.
    #[arg(long)]
    proxy: bool,
    /// Seed of all randomness.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &AccuracyArguments) -> anyhow::Result<ExitCode> {
    let profiles = load_profiles(arguments.profiles.as_ref())?;
    let chosen: Vec<_> = if arguments.all {
        profiles.iter().collect()
    } else {
        arguments
            .profile
            .iter()
            .map(|name| profiles.find(name))
            .collect::<Result<_, _>>()?
    };
    let via = match check_privileges() {
        _ if arguments.proxy => Via::Proxy,
        Ok(()) => Via::Tun,
        Err(reason) => {
            eprintln!("measuring the UDP proxy instead of the TUN link: {reason}");
            Via::Proxy
        }
    };
    let signals = Signals::block()?;
    let seed = arguments.seed;
    let mut reports = Vec::new();
    for profile in chosen {
        let profile = profile.clone();
        let measurement = std::thread::spawn(move || measure(&profile, via, seed));
        while !measurement.is_finished() {
            if signals.arrived() {
                // Namespaces and devices go with the process.
                return Ok(ExitCode::FAILURE);
            }
        }
        let report = measurement
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if !arguments.json {
            print!("{}", report.table());
        }
        reports.push(report);
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&reports)?);
    }
    let good = reports.iter().all(Report::is_within);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
