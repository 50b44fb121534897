//! Options of a machine's sandbox.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use vmm::sandbox::cgroup::{GroupLimits, GroupSpec};
use vmm::sandbox::seccomp::Violation;
use vmm::sandbox::{Mode, Sandbox, User};

/// What the machine's process may do.
#[derive(Args)]
#[command(next_help_heading = "Sandbox")]
pub struct Confinement {
    /// How much of the sandbox must be in force. `auto`: what the host allows, and what it does not is told. `full`: all of it, or the
    /// machine does not start. `off`: nothing.
    #[arg(long, value_name = "auto|full|off", default_value = "auto")]
    sandbox: Mode,
    /// What becomes of a machine that makes a system call which its threads have no use for. `log`: the kernel's log names it. `off`: they
    /// may make all.
    #[arg(long, value_name = "kill|log|off", default_value = "kill")]
    seccomp: Violation,
    /// The user that the machine's process becomes, a number that no other desktop has. Needs root.
    #[arg(long, value_name = "N")]
    uid: Option<u32>,
    /// Its group, by default of the same number.
    #[arg(long, value_name = "N", requires = "uid")]
    gid: Option<u32>,
    /// The control group (version 2) that the machine joins. With limits, it gets one of its own below that.
    #[arg(long, value_name = "FOLDER")]
    cgroup: Option<PathBuf>,
    /// Most memory, MiB, the guest's and ours together.
    #[arg(long, value_name = "MIB", requires = "cgroup")]
    memory_max: Option<u64>,
    /// Most processor time, percent of one processor.
    #[arg(long, value_name = "PERCENT", requires = "cgroup", value_parser = clap::value_parser!(u64).range(1..))]
    cpu_max: Option<u64>,
    /// Most threads and processes.
    #[arg(long, value_name = "N", requires = "cgroup", value_parser = clap::value_parser!(u64).range(1..))]
    pids_max: Option<u64>,
}

impl Confinement {
    /// Whether a machine with so much memory fits its limits.
    pub(super) fn check_memory(&self, memory_mib: u64) -> Result<()> {
        if let Some(max) = self.memory_max {
            ensure!(
                max > memory_mib,
                "--memory-max {max}: a guest with {memory_mib} MiB would be killed when it uses them; give it 64 MiB more than that"
            );
        }
        Ok(())
    }

    /// The sandbox.
    pub(super) fn sandbox(&self) -> Sandbox {
        let limits = GroupLimits {
            memory_mib: self.memory_max,
            cpu_percent: self.cpu_max,
            pids: self.pids_max,
        };
        Sandbox {
            mode: self.sandbox,
            user: self.uid.map(|uid| User {
                uid,
                gid: self.gid.unwrap_or(uid),
            }),
            violation: self.seccomp,
            group: self.cgroup.clone().map(|path| GroupSpec { path, limits }),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        confinement: Confinement,
    }

    fn parse(line: &str) -> Result<Sandbox> {
        let words = std::iter::once("run").chain(line.split_whitespace());
        let confinement = Line::try_parse_from(words)?.confinement;
        confinement.check_memory(1024)?;
        Ok(confinement.sandbox())
    }

    #[test]
    fn a_desktop_has_a_user_and_limits_of_its_own() {
        let sandbox = parse(
            "--sandbox full --uid 7 --cgroup /g --memory-max 1100 --cpu-max 150 --pids-max 64",
        );
        let sandbox = sandbox.expect("all are known");
        assert_eq!(sandbox.mode, Mode::Full);
        assert_eq!(sandbox.user, Some(User { uid: 7, gid: 7 }));
        let group = sandbox.group.expect("a group");
        assert_eq!(group.limits.memory_mib, Some(1100));
        assert_eq!(group.limits.cpu_percent, Some(150));
        assert_eq!(parse("").expect("defaults"), Sandbox::default());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            "--sandbox maybe",
            "--seccomp trap",
            "--gid 7",
            "--memory-max 1100",
            "--cgroup /g --memory-max 1024",
            "--cgroup /g --cpu-max 0",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
