//! How splice-vmm is confined here: which sandbox it gets, which user, which limits.
//!
//! Asked once, when the branch server starts: `splice-vmm sandbox` enters one as a machine would and tells what the host does not allow.
//! Where that is nothing, machines are started with `--sandbox full`, which refuses to run with less later; else with `auto`, and what is
//! not in force is told in the log, once, and of each desktop for as long as it runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use vmm_api::SandboxReport;

use super::uids::{UidError, UidRange};

/// Memory of a machine beside its guest's, MiB: 256 of pictures that the guest may make, the rest for us, our viewers and the kernel.
const BESIDE_MIB: u32 = 384;
/// Processors' worth of time for disks, network and screen, beside those of the guest.
const BESIDE_VCPUS: u32 = 1;
/// Threads beside the guest's processors: one for each device, viewer and console, with room.
const BESIDE_THREADS: u32 = 128;

/// How much of the sandbox a machine gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Level {
    /// All of it where the host allows that, else what it does allow.
    #[default]
    Auto,
    /// All of it, or the machine does not start.
    Full,
    /// None.
    Off,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Full => "full",
            Self::Off => "off",
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Auto, Self::Full, Self::Off];
        let found = known.into_iter().find(|level| level.name() == text);
        found.ok_or_else(|| format!("{text:?}: auto, full and off are known"))
    }
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    /// What splice-vmm is given as `--sandbox`.
    pub level: Level,
    /// Whom machines become; none where the branch server may not choose.
    pub uids: Option<UidRange>,
    /// The control group below which each machine gets its own.
    pub cgroup: Option<PathBuf>,
    /// What is not in force, each with its reason.
    pub lacking: Vec<String>,
}

impl Confinement {
    /// Finds out what this host allows to the program `vmm`. Without it nobody will be confined, and nothing is looked at.
    ///
    /// # Errors
    /// The range of users is somebody else's.
    pub fn settle(
        wanted: Level,
        uids: UidRange,
        cgroup: Option<PathBuf>,
        vmm: Option<&Path>,
    ) -> Result<Self, UidError> {
        let mut this = Self {
            level: wanted,
            cgroup,
            ..Self::default()
        };
        let Some(vmm) = vmm.filter(|_| wanted != Level::Off) else {
            return Ok(this);
        };
        if rustix::process::geteuid().is_root() {
            uids.check_host()?;
            this.uids = Some(uids);
        } else {
            this.lack("a user of its own: the branch server was not started by root");
        }
        match &this.cgroup {
            // Its folder is made here once; what it lacks, the probe tells.
            Some(folder) => drop(std::fs::create_dir(folder)),
            None => this.lack("limits of memory and processors: no --cgroup is named"),
        }
        this.probe(vmm);
        for part in &this.lacking {
            tracing::warn!(part, "desktops on splice-vmm run without");
        }
        Ok(this)
    }

    fn lack(&mut self, what: &str) {
        self.lacking.push(what.to_owned());
    }

    fn probe(&mut self, vmm: &Path) {
        let mut command = Command::new(vmm);
        command.arg("sandbox").stdin(Stdio::null());
        let auto = Self {
            level: Level::Auto,
            ..self.clone()
        };
        command.args(auto.arguments(0, 1, self.uids.map(|uids| uids.last)));
        let told = command
            .output()
            .map_err(|error| error.to_string())
            .and_then(|output| {
                serde_json::from_slice::<SandboxReport>(&output.stdout).map_err(|_| {
                    let said = String::from_utf8_lossy(&output.stderr);
                    said.lines()
                        .next_back()
                        .unwrap_or("it says nothing")
                        .to_owned()
                })
            });
        match told {
            Ok(report) => {
                if report.lacking.is_empty() {
                    self.level = Level::Full;
                }
                self.lacking.extend(report.lacking);
            }
            Err(error) => self.lack(&format!("{} sandbox did not run: {error}", vmm.display())),
        }
    }

    /// splice-vmm's options for a machine of that size.
    pub fn arguments(&self, memory_mib: u32, vcpus: u32, uid: Option<u32>) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("--sandbox", self.level.name().into());
        if self.level == Level::Off {
            return arguments;
        }
        if let Some(uid) = uid {
            option("--uid", uid.to_string());
        }
        if let Some(folder) = &self.cgroup {
            let memory = memory_mib.saturating_add(BESIDE_MIB);
            let percent = vcpus.saturating_add(BESIDE_VCPUS).saturating_mul(100);
            let threads = vcpus.saturating_add(BESIDE_THREADS);
            option("--cgroup", folder.display().to_string());
            option("--memory-max", memory.to_string());
            option("--cpu-max", percent.to_string());
            option("--pids-max", threads.to_string());
        }
        arguments
    }

    /// As it is told of a desktop that runs.
    pub fn describe(&self) -> String {
        let name = self.level.name();
        if self.lacking.is_empty() {
            return name.into();
        }
        format!("{name}, without {}", self.lacking.join("; "))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use std::os::unix::fs::PermissionsExt;

    use super::super::uids;
    use super::*;

    /// A program that answers as `splice-vmm sandbox` does and keeps what it was called with.
    fn program(folder: &Path, answer: &str) -> PathBuf {
        let path = folder.join("vmm");
        let said = folder.join("said");
        let text = format!("#!/bin/sh\necho \"$*\" >{}\n{answer}\n", said.display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    fn settle(wanted: Level, answer: &str) -> (Confinement, String) {
        let folder = tempfile::tempdir().unwrap();
        let vmm = program(folder.path(), answer);
        let group = folder.path().join("group");
        let settled = Confinement::settle(wanted, uids::DEFAULT, Some(group), Some(&vmm));
        let said = std::fs::read_to_string(folder.path().join("said")).unwrap_or_default();
        (settled.unwrap(), said)
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn where_nothing_is_lacking_a_machine_gets_all_of_it_or_does_not_start() {
        let (full, said) = settle(Level::Auto, r#"echo '{"lacking":[]}'"#);
        assert_eq!(full.level, Level::Full);
        assert!(said.starts_with("sandbox --sandbox auto "), "{said}");
        assert_eq!(said.contains("--uid 74095"), is_root(), "{said}");
        let limits = "--memory-max 384 --cpu-max 200 --pids-max 129";
        assert!(said.contains(limits), "{said}");
        let expected = if is_root() {
            "full"
        } else {
            "full, without a user"
        };
        assert!(full.describe().starts_with(expected));
    }

    #[test]
    fn what_is_lacking_is_told_and_the_rest_is_in_force() {
        let answer = r#"echo '{"lacking":["namespaces and an empty root: not here"]}'"#;
        let (auto, _) = settle(Level::Auto, answer);
        assert_eq!(auto.level, Level::Auto);
        let told = auto.describe();
        assert!(told.starts_with("auto, without "), "{told}");
        assert!(told.contains("namespaces and an empty root: not here"));
        // Who insists gets it or is refused at the start of a desktop.
        let (full, _) = settle(Level::Full, answer);
        assert_eq!(full.level, Level::Full);
        let (broken, _) = settle(Level::Auto, "echo no such word >&2; exit 2");
        assert!(broken.describe().contains("did not run: no such word"));
        assert_eq!(broken.level, Level::Auto);
    }

    #[test]
    fn a_machine_is_given_limits_of_its_size_and_its_user() {
        let confinement = Confinement {
            level: Level::Full,
            cgroup: Some("/g".into()),
            ..Confinement::default()
        };
        assert_eq!(
            confinement.arguments(2048, 2, Some(70_000)).join(" "),
            "--sandbox full --uid 70000 --cgroup /g --memory-max 2432 --cpu-max 300 --pids-max 130"
        );
        let none = Confinement::default();
        assert_eq!(none.arguments(2048, 2, None).join(" "), "--sandbox auto");
        assert_eq!(none.describe(), "auto");
        // What cannot be is no arithmetic of ours.
        confinement.arguments(u32::MAX, u32::MAX, Some(1));
    }

    #[test]
    fn none_is_none() {
        let (off, said) = settle(Level::Off, "exit 1");
        assert_eq!((off.describe().as_str(), said.as_str()), ("off", ""));
        let arguments = off.arguments(1024, 1, Some(70_000));
        assert_eq!(arguments.join(" "), "--sandbox off");
        assert_eq!("off".parse(), Ok(Level::Off));
        assert!("none".parse::<Level>().is_err());
    }
}
