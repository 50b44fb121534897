//! `sim-wan ctl`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use sim_wan::control::{Client, Request};

use super::summary;

/// Arguments of `sim-wan ctl`.
#[derive(Args)]
pub struct CtlArguments {
    /// Control socket of the running sim-wan.
    #[arg(long, value_name = "PATH", env = "SIM_WAN_SOCKET")]
    socket: PathBuf,
    /// The link meant; all if left out.
    #[arg(long, global = true)]
    link: Option<String>,
    /// Print the answer as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Take links down until `restore`.
    Cut,
    /// End a cut.
    Restore,
    /// Change the profile while traffic runs.
    Profile {
        /// Its name.
        name: String,
    },
    /// Counters.
    Stats,
    /// Names, profiles and states of all links.
    List,
    /// Clear the counters.
    ResetStats,
}

pub fn run(arguments: &CtlArguments) -> anyhow::Result<ExitCode> {
    let link = arguments.link.clone();
    let request = match &arguments.action {
        Action::Cut => Request::Cut { link },
        Action::Restore => Request::Restore { link },
        Action::Profile { name } => Request::Profile {
            link,
            profile: name.clone(),
        },
        Action::Stats => Request::Stats { link },
        Action::List => Request::List,
        Action::ResetStats => Request::ResetStats { link },
    };
    let links = Client::connect(&arguments.socket)?.request(&request)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&links)?);
        return Ok(ExitCode::SUCCESS);
    }
    for stats in &links {
        match arguments.action {
            Action::Stats => println!("{}", summary(stats)),
            _ => println!("{}", summary(stats).lines().next().unwrap_or_default()),
        }
    }
    Ok(ExitCode::SUCCESS)
}
