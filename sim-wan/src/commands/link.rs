//! `sim-wan link`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use sim_wan::tun::{LinkSpec, Namespaces, TunLink, check_privileges};

use super::signals::Signals;
use super::{load_profiles, named_profile, seed_of, serve};

/// Arguments of `sim-wan link`.
#[derive(Args)]
pub struct LinkArguments {
    /// A link: name=,dc-ns=,branch-ns=,dc-addr=A/P,branch-addr=A/P[,profile=][,seed=]. Repeat for more links.
    #[arg(long = "link", required = true, value_name = "KEY=VALUE,…")]
    links: Vec<LinkSpec>,
    /// Profile of links that name none.
    #[arg(long)]
    profile: Option<String>,
    /// Profiles file instead of the built-in profiles.
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// Seed of all randomness.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Control socket to serve.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Create the namespaces, and delete them at the end.
    #[arg(long)]
    create: bool,
}

pub fn run(arguments: &LinkArguments) -> anyhow::Result<ExitCode> {
    let profiles = load_profiles(arguments.profiles.as_ref())?;
    let general = arguments.profile.as_deref();
    let mut planned = Vec::new();
    for (index, spec) in arguments.links.iter().enumerate() {
        if arguments.links[..index]
            .iter()
            .any(|earlier| earlier.name == spec.name)
        {
            anyhow::bail!("two links are named {}; give each its own name=", spec.name);
        }
        let profile = named_profile(&profiles, spec.profile.as_deref(), general, &spec.name)?;
        planned.push((
            spec,
            profile.clone(),
            spec.seed.unwrap_or_else(|| seed_of(arguments.seed, index)),
        ));
    }
    check_privileges()?;
    let signals = Signals::block().context("blocking signals")?;
    let mut names: Vec<String> = planned
        .iter()
        .flat_map(|(spec, ..)| [spec.dc_namespace.clone(), spec.branch_namespace.clone()])
        .collect();
    names.sort();
    names.dedup();
    let _namespaces = if arguments.create {
        Namespaces::create(&names)?
    } else {
        Namespaces::existing(&names)?
    };
    let mut links = Vec::new();
    for (spec, profile, seed) in &planned {
        links.push(TunLink::start(spec, profile, *seed)?);
        println!(
            "{}: {} ({}) ↔ {} ({}), profile {}, seed {seed}",
            spec.name,
            spec.dc_namespace,
            spec.dc_address.0,
            spec.branch_namespace,
            spec.branch_address.0,
            profile.name
        );
    }
    let controlled = links.iter().map(TunLink::controlled).collect();
    serve(&signals, arguments.socket.as_deref(), controlled, profiles)?;
    for link in &links {
        let unseen = link.ring_drops().unwrap_or(0);
        if unseen > 0 {
            eprintln!(
                "{}: {unseen} packets overran the device's ring before the model: too little CPU",
                link.stats().name
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
