//! The `sim-wan` command: reads arguments, starts links or proxies, waits for a signal, takes everything away again.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// WAN emulator in user space: rate, delay, jitter, loss, outages; no netem needed.
#[derive(Parser)]
#[command(name = "sim-wan", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  # A datacenter and two branches as network namespaces (root):
  sim-wan link --create --socket /run/wan.sock --profile dsl \\
    --link name=branch-a,dc-ns=dc,branch-ns=a,dc-addr=10.77.1.1/30,branch-addr=10.77.1.2/30 \\
    --link name=branch-b,dc-ns=dc,branch-ns=b,dc-addr=10.77.2.1/30,branch-addr=10.77.2.2/30,profile=lte
  ip netns exec a ping 10.77.1.1

  # The same line in front of a UDP service, without privilege:
  sim-wan proxy --profile vsat-geo --udp 127.0.0.1:5000=127.0.0.1:4433

  # Steer and watch it:
  sim-wan ctl --socket /run/wan.sock cut --link branch-a
  sim-wan ctl --socket /run/wan.sock profile bad-day --link branch-a
  sim-wan ctl --socket /run/wan.sock stats --json

  # How true is it on this machine?
  sim-wan accuracy --profile dsl

Exit codes: 0 done; 1 an error, or a measurement out of tolerance; 2 wrong usage.";

#[derive(Subcommand)]
enum Command {
    /// Join network namespaces with emulated links (root); runs until a signal.
    Link(commands::link::LinkArguments),
    /// Put an emulated link in front of UDP or TCP services (no root); runs until a signal.
    Proxy(commands::proxy::ProxyArguments),
    /// Steer a running link or proxy and read its counters.
    Ctl(commands::ctl::CtlArguments),
    /// Measure what the emulator itself delivers against a profile.
    Accuracy(commands::accuracy::AccuracyArguments),
    /// List the profiles.
    Profiles(commands::profiles::ProfilesArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Link(arguments) => commands::link::run(&arguments),
        Command::Proxy(arguments) => commands::proxy::run(&arguments),
        Command::Ctl(arguments) => commands::ctl::run(&arguments),
        Command::Accuracy(arguments) => commands::accuracy::run(&arguments),
        Command::Profiles(arguments) => commands::profiles::run(&arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sim-wan: {error:#}");
            ExitCode::FAILURE
        }
    }
}
