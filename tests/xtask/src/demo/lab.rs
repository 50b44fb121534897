//! The stage: three network namespaces, two emulated links, and the folders of a run.
//!
//! ```text
//!   splice-dc ── link "branch-a" ── splice-a        10.77.1.1/30 ↔ 10.77.1.2/30
//!       └────── link "branch-b" ── splice-b        10.77.2.1/30 ↔ 10.77.2.2/30
//! ```
//!
//! Invariant: the work folder is ours (it carries our mark) before anything in it is deleted, and only one run uses it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use sim_wan::tun::{self, Namespaces};

use super::process::{Processes, Program};
use super::wait::Limit;
use super::wan::Wan;

/// Where the datacenter is.
pub(crate) const DATACENTER: &str = "splice-dc";

/// Port of the datacenter's link endpoint.
pub(crate) const LINK_PORT: u16 = 7443;

/// Says that a folder was made by the demo and may be emptied by it.
const MARK: &str = ".splice-demo";

/// What is removed from a work folder: everything that a run makes but its report.
const RUN_FOLDERS: &[&str] = &["datacenter", "branch-a", "branch-b", "rsync", "logs"];

/// One branch of the stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Site {
    /// The branch's name, also its link's and its folder's.
    pub(crate) name: &'static str,
    /// Its network namespace.
    pub(crate) namespace: &'static str,
    /// The datacenter's address on its link.
    pub(crate) datacenter_address: &'static str,
    /// Its own address there.
    pub(crate) address: &'static str,
}

/// The first branch.
pub(crate) const BRANCH_A: Site = Site {
    name: "branch-a",
    namespace: "splice-a",
    datacenter_address: "10.77.1.1",
    address: "10.77.1.2",
};

/// The second branch.
pub(crate) const BRANCH_B: Site = Site {
    name: "branch-b",
    namespace: "splice-b",
    datacenter_address: "10.77.2.1",
    address: "10.77.2.2",
};

/// The programs of the product, beside our own.
pub(crate) struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Finds them in the folder of the running program.
    ///
    /// # Errors
    /// One is missing.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("finding the folder of programs")?;
        let folder = own.parent().context("a program is in a folder")?.to_owned();
        let programs = Self { folder };
        // The branch takes splice-vmm where it finds hardware KVM, and asks it whether it does.
        for name in [
            "splice",
            "splice-datacenter",
            "splice-branch",
            "splice-vmm",
            "sim-wan",
        ] {
            let path = programs.path(name);
            if !path.is_file() {
                bail!(
                    "{} is missing; ./x demo builds it (cargo build --workspace)",
                    path.display()
                );
            }
        }
        Ok(programs)
    }

    /// The program of that name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The folder of one run.
pub(crate) struct WorkFolder {
    path: PathBuf,
    /// Held until we end, however we end.
    _lock: File,
}

impl WorkFolder {
    /// Takes a folder that is empty, new, or left by an earlier run, and clears that run's remains.
    ///
    /// # Errors
    /// Another run uses it, it holds something else, or it cannot be written.
    pub(crate) fn take(path: &Path) -> anyhow::Result<Self> {
        let at = || path.display().to_string();
        std::fs::create_dir_all(path).with_context(at)?;
        let path = &path.canonicalize().with_context(at)?;
        let mark = path.join(MARK);
        let empty = std::fs::read_dir(path).with_context(at)?.next().is_none();
        if !empty && !mark.exists() {
            bail!(
                "{} holds something else; choose another folder with --work",
                path.display()
            );
        }
        let lock = File::create(&mark).with_context(at)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another demo runs in {}; end it, or choose another folder with --work",
                path.display()
            );
        }
        let folder = Self {
            path: path.clone(),
            _lock: lock,
        };
        folder.clear(RUN_FOLDERS)?;
        std::fs::create_dir_all(folder.join("logs")).with_context(at)?;
        Ok(folder)
    }

    /// A path inside.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes what is large; logs and report stay.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub(crate) fn drop_data(&self) -> anyhow::Result<()> {
        self.clear(&RUN_FOLDERS[..RUN_FOLDERS.len() - 1])
    }

    fn clear(&self, names: &[&str]) -> anyhow::Result<()> {
        for name in names {
            let folder = self.path.join(name);
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {}", folder.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Ends every process in our namespaces once standard input ends: desktops outlive their branch server on purpose, and
/// would outlive a demo that was killed. Namespaces are told apart by their inodes, which the arguments are.
const KEEPER: &str = r#"trap '' INT TERM HUP; ours=" $* "; cat >/dev/null
each() { for p in /proc/[0-9]*; do case "$ours" in *" $(stat -Lc %i "$p/ns/net" 2>/dev/null) "*)
    kill "-$1" "${p#/proc/}" 2>/dev/null && left=1;; esac; done; }
for try in 1 2 3 4 5 6 7 8 9 10; do left=; each TERM; [ "$left" ] || exit 0; sleep 0.5; done; each KILL"#;

/// See [`KEEPER`]. Dropping it ends what is left in the namespaces.
struct Keeper {
    shell: Child,
}

impl Keeper {
    fn start(namespaces: &[String]) -> anyhow::Result<Self> {
        let inodes = namespaces.iter().map(|name| {
            let path = Path::new("/run/netns").join(name);
            Ok(std::fs::metadata(&path)
                .with_context(|| path.display().to_string())?
                .ino()
                .to_string())
        });
        let shell = Command::new("sh")
            .args(["-c", KEEPER, "splice-demo-keeper"])
            .args(inodes.collect::<anyhow::Result<Vec<_>>>()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting the shell that ends what is left")?;
        Ok(Self { shell })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // It ends by itself, within seconds, once its input has ended.
        let _ = self.shell.wait();
    }
}

/// Everything that runs.
pub(crate) struct Lab {
    pub(crate) wan: Wan,
    pub(crate) processes: Processes,
    namespaces: Option<(Keeper, Namespaces)>,
    pub(crate) programs: Programs,
    pub(crate) work: Rc<WorkFolder>,
    /// Where time begins.
    pub(crate) epoch: Instant,
}

impl Lab {
    /// Builds the stage with both links at `profile`.
    ///
    /// # Errors
    /// No privilege, a namespace is in use, or the emulator does not come up.
    pub(crate) fn build(
        mut processes: Processes,
        programs: Programs,
        work: Rc<WorkFolder>,
        profile: &str,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let names = [DATACENTER, BRANCH_A.namespace, BRANCH_B.namespace].map(str::to_owned);
        let namespaces = Namespaces::create(&names).map_err(|error| match error {
            tun::TunError::NamespaceExists(name) => {
                anyhow::anyhow!("namespace {name} exists: end the demo that uses it, or run: ip netns del {name}")
            }
            other => other.into(),
        })?;
        let keeper = Keeper::start(&names)?;
        let socket = work.join("wan.sock");
        let emulator = programs.path("sim-wan");
        let mut program = Program::new(&emulator)
            .args([
                "link",
                "--profile",
                profile,
                "--seed",
                &seed.to_string(),
                "--socket",
            ])
            .args([&socket]);
        for site in [BRANCH_A, BRANCH_B] {
            program = program.args([
                "--link".to_owned(),
                format!(
                    "name={},dc-ns={DATACENTER},branch-ns={},dc-addr={}/30,branch-addr={}/30",
                    site.name, site.namespace, site.datacenter_address, site.address
                ),
            ]);
        }
        let log = processes.start("sim-wan", &program)?;
        Limit::new("the emulated line is up", Duration::from_secs(10))
            .with_log(&log)
            .wait(|| {
                processes.check()?;
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Ok(said.lines().any(|line| line == "ready").then_some(()))
            })?;
        let epoch = Instant::now();
        let wan = Wan::attach(&socket, epoch)?;
        Ok(Self {
            wan,
            processes,
            namespaces: Some((keeper, namespaces)),
            programs,
            work,
            epoch,
        })
    }

    /// Seconds since the beginning.
    pub(crate) fn now(&self) -> f64 {
        self.epoch.elapsed().as_secs_f64()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.processes.end_all();
        // Before the last of the processes are swept up, among which these two shells would be.
        if let Some((keeper, namespaces)) = self.namespaces.take() {
            drop(keeper);
            drop(namespaces);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_folder_of_our_own_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("work");
        {
            let taken = WorkFolder::take(&work).unwrap();
            std::fs::create_dir(taken.join("branch-a")).unwrap();
            std::fs::write(taken.join("branch-a/chunk"), "x").unwrap();
            std::fs::write(taken.join("splice-demo.html"), "report").unwrap();
            let again = WorkFolder::take(&work).err().unwrap().to_string();
            assert!(again.contains("another demo runs"), "{again}");
        }
        let taken = WorkFolder::take(&work).unwrap();
        assert!(!taken.join("branch-a").exists());
        assert!(
            taken.join("splice-demo.html").exists(),
            "the last report stays"
        );

        let foreign = folder.path().join("home");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("thesis.txt"), "years").unwrap();
        let message = WorkFolder::take(&foreign).err().unwrap().to_string();
        assert!(message.contains("holds something else"), "{message}");
        assert!(foreign.join("thesis.txt").exists());
    }
}
