//! The `splice-vmm` command.

mod log;
mod run;
mod screenshot;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use vmm_api::{HostVirt, KvmKind, ProbeOutcome, Then};

/// Runs one desktop on KVM.
#[derive(Parser)]
#[command(name = "splice-vmm", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tell whether this machine can run desktops on KVM.
    ///
    /// Runs a few tiny guests. Exit status: 0 hardware KVM, 10 KVM whose guests' kernel mode is emulated, 11 no
    /// usable KVM, 1 the result could not be printed, 2 wrong usage.
    Check {
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a machine until its guest powers off.
    ///
    /// A guest's reset starts the machine anew. Exit status: 0 the guest powered off, or the machine was ended by SIGTERM or SIGINT; 1 it
    /// could not be made or could not go on; 2 wrong usage; 128 + N the machine was killed by signal N (31: a forbidden system call).
    Run(Box<run::Arguments>),
    /// Go on with a machine that was saved by `splice-vmm snapshot`.
    ///
    /// Memory comes while it runs, what the machine needed first the last time before all else. The guest finds its clocks set forward and
    /// draws new randomness; one snapshot may be gone on from many times. Exit status: as of `run`; 3 the guest reset itself, and there was
    /// no --kernel.
    Resume(Box<run::ResumeArguments>),
    /// Save a machine into a folder, from which it or others go on.
    ///
    /// It is paused while it is saved. Its disks are not in there: a machine that goes on needs them as they are at that moment. Exit status:
    /// 0 saved; 1 not; 2 wrong usage.
    Snapshot {
        /// The machine's `--control` socket.
        socket: PathBuf,
        /// The folder, which is not there yet.
        dir: PathBuf,
        /// End it when it was saved, without having run again: its disks stay as the snapshot needs them.
        #[arg(long)]
        quit: bool,
    },
    /// Enter a sandbox as `run` does, tell what of it this host does not allow, and end.
    ///
    /// Prints JSON: {"lacking":[...]}, empty when all of it is in force. Exit status: 0 told; 1 it cannot be entered; 2 wrong usage.
    Sandbox(run::Confinement),
    /// Save a picture of a machine's screen.
    ///
    /// Exit status: 0 saved; 1 not; 2 wrong usage.
    Screenshot {
        /// The machine's `--rfb-socket`.
        socket: PathBuf,
        /// Where to save it; the name ends with .png or .ppm.
        file: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    let Arguments { command } = Arguments::parse();
    log::to_stderr();
    match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Resume(arguments) => run::resume(&arguments),
        Command::Snapshot { socket, dir, quit } => {
            let then = if quit { Then::Quit } else { Then::GoOn };
            vmm::snapshot::take(&socket, &dir, then)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Sandbox(confinement) => run::sandbox(&confinement),
        Command::Screenshot { socket, file } => {
            screenshot::save(&socket, &file)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { json } => {
            let host = vmm::check::host_virt();
            let mut out = io::stdout().lock();
            if json {
                serde_json::to_writer_pretty(&mut out, &host)?;
                writeln!(out)?;
            } else {
                print_table(&mut out, &host)?;
            }
            Ok(ExitCode::from(host.kind.exit_code()))
        }
    }
}

fn print_table(out: &mut impl Write, host: &HostVirt) -> io::Result<()> {
    let yes_no = |flag| if flag { "yes" } else { "no" };
    let cpu = &host.cpu;
    writeln!(
        out,
        "processor     {}",
        if cpu.model.is_empty() {
            "unknown"
        } else {
            &cpu.model
        }
    )?;
    writeln!(
        out,
        "              VT-x {}, AMD-V {}, itself virtual {}",
        yes_no(cpu.vmx),
        yes_no(cpu.svm),
        yes_no(cpu.hypervisor)
    )?;
    for probe in &host.probes {
        let outcome = match &probe.outcome {
            ProbeOutcome::Works => "works".to_owned(),
            ProbeOutcome::NotOffered => "not offered to guests".to_owned(),
            ProbeOutcome::Wrong { got, expected } => format!("WRONG: {got}, should be {expected}"),
            ProbeOutcome::NotEmulated => "MISSING in the emulator".to_owned(),
            ProbeOutcome::Fault => "FAULT".to_owned(),
            ProbeOutcome::TimedOut => "HANGS".to_owned(),
            ProbeOutcome::Refused { error } => format!("REFUSED: {error}"),
        };
        writeln!(out, "{:<13} {outcome}", probe.name)?;
    }
    if let Some(speed) = host.instructions_per_second {
        writeln!(
            out,
            "kernel mode   {:.1} million instructions a second",
            speed as f64 / 1e6
        )?;
    }
    let verdict = match host.kind {
        KvmKind::Hardware => "hardware KVM: desktops run here",
        KvmKind::EmulatedRing0 => "KVM without hardware behind it: guests' kernel mode is emulated",
        KvmKind::None => "no usable KVM",
    };
    if host.probes.is_empty() {
        for reason in &host.reasons {
            writeln!(out, "reason        {reason}")?;
        }
    }
    match &host.advice {
        Some(advice) => writeln!(out, "verdict       {verdict}. {advice}"),
        None => writeln!(out, "verdict       {verdict}."),
    }
}
