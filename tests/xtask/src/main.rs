//! What `./x` runs once everything is built: the demo, and the checks of the tree that no compiler makes.
//!
//! Setting up the machine, building and running the tests is the script's own part.

mod check;
mod demo;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "./x", about = "The demo and the checks of the tree")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish, boot, update and cut the line, on a datacenter and two branches over an emulated WAN.
    Demo(Box<demo::Options>),
    /// Check what must hold of the tree itself: who depends on whom, file heads and lengths, code map, decisions.
    Check {
        /// The checkout; by default the one that the current folder is in.
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Check { root } => check::run(root.as_deref()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("x: {error:#}");
            ExitCode::FAILURE
        }
    }
}
