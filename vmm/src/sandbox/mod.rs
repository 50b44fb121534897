//! The sandbox of a machine: a guest that breaks into its process can end that process, and no more.
//!
//! Everything that has a name on the host (KVM, disks, taps, kernel, sockets to listen at) is opened first. Then [`Sandbox::enter`] forks:
//!
//! ```text
//! started ── opens everything ── fork ──┬── outer: passes signals on, opens sockets by number, waits for the end
//!                                       └── machine: namespaces, empty root, user, no capabilities, limits, lists of system calls
//! ```
//!
//! It returns in the machine's process only, which goes on to build machines from what is open: a reset makes new VMs, memory and threads
//! inside. Invariant: from then on no name of the host can be opened, no process be started or seen, nothing be gained that is not there.
//! [`Mode::Auto`] puts in force what the host allows and tells what it does not; [`Mode::Full`] refuses to run without any part.
//! What only the machine's own process can make and only its starter's rights allow (userfaultfd) is made between the fork and the rest
//! ([`Needs::faults`]). Refused: to run as another user when not started by root, and to enter with more than one thread.

pub mod cgroup;
pub mod door;
mod namespaces;
mod outer;
mod privileges;
pub mod seccomp;
mod services;

use std::fmt::Display;
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

use crate::snapshot::Faults;
use crate::threads::{self, ConfineError};
use cgroup::{Group, GroupError, GroupSpec};
use door::{Clerk, SERVERS_MAX};
use namespaces::NoNamespaces;
use outer::{Outer, Requests};
pub use privileges::User;
use privileges::{Keep, NOBODY};
use seccomp::{Filters, SeccompError, Violation};
use services::Services;

/// Pools of free memory that threads take theirs from. One: a machine's threads need little, more of them keep more, and before the C
/// library makes a second one smaller it reads a file of /proc.
const ARENAS: libc::c_int = 1;

/// How much of the sandbox has to be there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// What the host allows; the rest is told.
    #[default]
    Auto,
    /// All of it.
    Full,
    /// None, not even a second process. For debugging.
    Off,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "full" => Ok(Self::Full),
            "off" => Ok(Self::Off),
            _ => Err("auto, full or off".into()),
        }
    }
}

/// A sandbox to be entered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// How much of it.
    pub mode: Mode,
    /// Whom the machine's process becomes.
    pub user: Option<User>,
    /// What a system call that is on no list leads to.
    pub violation: Violation,
    /// The control group.
    pub group: Option<GroupSpec>,
}

/// Why the sandbox is not entered.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Part of a full one.
    #[error("sandbox: {part}: {reason}; --sandbox auto runs without")]
    Lacking {
        /// What.
        part: &'static str,
        /// Why not.
        reason: String,
    },
    /// The kernel refuses what it should not.
    #[error("sandbox: {what}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Who started it may not.
    #[error("sandbox: only root can give the machine another user (--uid)")]
    NotRoot,
    /// A mistake of ours.
    #[error("sandbox: {0} threads run already")]
    Threads(usize),
    /// Too many.
    #[error("sandbox: {0} disks' servers: {SERVERS_MAX} are possible")]
    Servers(usize),
    /// Too long, as a rule.
    #[error("{} is no name of a socket: at most 107 bytes", .0.display())]
    SocketName(PathBuf),
    /// The outer process was ended while the machine began.
    #[error("sandbox: the outer process is gone")]
    Orphan,
    /// The control group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Lists of system calls.
    #[error("sandbox")]
    Seccomp(#[from] SeccompError),
    /// Threads.
    #[error("sandbox")]
    Confine(#[from] ConfineError),
}

fn step(what: &'static str) -> impl FnOnce(io::Error) -> SandboxError {
    move |source| SandboxError::Step { what, source }
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What is not in force.
struct Lacking {
    mode: Mode,
    parts: Vec<String>,
}

impl Lacking {
    fn add(&mut self, part: &'static str, reason: impl Display) -> Result<(), SandboxError> {
        let reason = reason.to_string();
        if self.mode == Mode::Full {
            return Err(SandboxError::Lacking { part, reason });
        }
        self.parts.push(format!("{part}: {reason}"));
        Ok(())
    }
}

/// What a machine needs inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Sockets of disks' servers, numbered from 0, which the outer process opens.
    pub servers: Vec<PathBuf>,
    /// Sockets of programs that the guest calls, which it opens too: this name, `_` and the port's number.
    pub services: Option<PathBuf>,
    /// The longest file that the machine writes or makes, its memory included.
    pub file_bytes: u64,
    /// It goes on from a snapshot and wants to be told of missing pages.
    pub faults: bool,
}

/// Inside.
#[derive(Debug)]
pub struct Entered {
    /// Opens disks' servers and calls programs. None where this process can by itself.
    pub clerk: Option<Clerk>,
    /// What missing pages are told of by, if that was wanted, or why it is not to be had.
    pub faults: Option<io::Result<Faults>>,
    /// What is not in force, each with its reason.
    pub lacking: Vec<String>,
}

impl Sandbox {
    /// Closes what was inherited but `keep`, which is in order. To be called before anything is opened.
    ///
    /// # Errors
    /// One of `keep` is not open, or the kernel is too old for it (Linux 5.9).
    pub fn close_inherited(&self, keep: &[RawFd]) -> Result<(), SandboxError> {
        for fd in keep {
            privileges::check_open(*fd).map_err(step("use a descriptor that was handed in"))?;
        }
        if self.mode == Mode::Off {
            return Ok(());
        }
        let closed = outer::close_others(keep.to_vec());
        closed.map_err(step("close inherited files"))?;
        privileges::close_input().map_err(step("close standard input"))
    }

    /// Enters it: returns in a new process, inside.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub fn enter(&self, needs: &Needs) -> Result<Entered, SandboxError> {
        let mut lacking = Lacking {
            mode: self.mode,
            parts: Vec::new(),
        };
        if self.mode == Mode::Off {
            lacking.add("sandbox", "it was turned off")?;
            return Ok(Entered {
                clerk: None,
                faults: needs.faults.then(Faults::open),
                lacking: lacking.parts,
            });
        }
        if needs.servers.len() > SERVERS_MAX {
            return Err(SandboxError::Servers(needs.servers.len()));
        }
        check_threads()?;
        let servers = outer::addresses(&needs.servers)?;
        let services = needs.services.as_deref().map(Services::new);
        let services = services.transpose()?;
        let user = self.user(&mut lacking)?;
        let group = self.group(&mut lacking)?;
        let signals = outer::signals().map_err(step("watch signals"))?;
        let (near, far) = UnixStream::pair().map_err(step("connect its processes"))?;
        let has_namespaces = match namespaces::own_processes() {
            Ok(()) => true,
            Err(NoNamespaces::Refused(error)) => {
                lacking.add("namespaces and an empty root", error)?;
                false
            }
            Err(NoNamespaces::Half(error)) => return Err(error),
        };
        // SAFETY: there is one thread, so that no lock is held by one that the child does not have.
        match unsafe { libc::fork() } {
            -1 => Err(step("start a process")(io::Error::last_os_error())),
            0 => {
                drop((near, signals, group));
                self.inside(far, user, has_namespaces, needs, lacking)
            }
            machine => {
                drop(far);
                let outer = Outer {
                    machine,
                    channel: near,
                    signals,
                    requests: Requests::new(servers, services),
                    group,
                    violation: self.violation,
                };
                outer.stay()
            }
        }
    }

    fn user(&self, lacking: &mut Lacking) -> Result<Option<User>, SandboxError> {
        // SAFETY: no arguments.
        let started_by = unsafe { libc::geteuid() };
        match self.user {
            Some(user) if user.uid == started_by && user.uid != 0 => Ok(None),
            Some(_) if started_by != 0 => Err(SandboxError::NotRoot),
            Some(user) => {
                if user.uid == 0 {
                    lacking.add("a user of its own", "--uid 0 is root")?;
                }
                Ok(Some(user))
            }
            None if started_by != 0 => Ok(None),
            None => {
                lacking.add(
                    "a user of its own",
                    "without --uid it is nobody (65534), who may have other processes",
                )?;
                Ok(Some(NOBODY))
            }
        }
    }

    fn group(&self, lacking: &mut Lacking) -> Result<Option<Group>, SandboxError> {
        let Some(spec) = &self.group else {
            return Ok(None);
        };
        match spec.open(&format!("desktop-{}", std::process::id())) {
            Ok(group) => Ok(Some(group)),
            Err(error) => lacking
                .add("control group", with_source(&error))
                .map(|()| None),
        }
    }

    /// The machine's process, from its first instruction on.
    fn inside(
        &self,
        mut channel: UnixStream,
        user: Option<User>,
        has_namespaces: bool,
        needs: &Needs,
        mut lacking: Lacking,
    ) -> Result<Entered, SandboxError> {
        let mut begin = [0];
        let begun = channel.read_exact(&mut begin);
        begun.map_err(|_| SandboxError::Orphan)?;
        // Of this process, and with the rights that it still has; by name, where names are still there.
        let faults = needs.faults.then(Faults::open);
        // A terminal's signals are for the outer process; and whoever has no terminal cannot type at it.
        // SAFETY: no arguments; a new process leads no group, so that it cannot fail.
        unsafe { libc::setsid() };
        if has_namespaces {
            namespaces::own_rest()?;
            namespaces::empty_root()?;
        }
        privileges::limit(needs.file_bytes, self.user.is_some())?;
        // While there is the right to: it goes with the user.
        privileges::bound();
        if let Some(Err(error)) = user.map(privileges::become_user) {
            lacking.add("a user of its own", with_source(&error))?;
        }
        privileges::drop_all(Keep::Nothing)?;
        privileges::die_with_parent(&channel)?;
        quiet_runtime();
        match Filters::inner(self.violation)? {
            Some(filters) => threads::confine(filters)?,
            None => lacking.add("lists of system calls", "--seccomp off")?,
        }
        if self.violation == Violation::Log {
            lacking.add(
                "lists of system calls",
                "--seccomp log only tells what is not on them",
            )?;
        }
        Ok(Entered {
            clerk: Some(Clerk::new(channel)),
            faults,
            lacking: lacking.parts,
        })
    }
}

fn check_threads() -> Result<(), SandboxError> {
    // Where there is no such folder nothing can be told; it is a check on ourselves.
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads == 1 {
        Ok(())
    } else {
        Err(SandboxError::Threads(threads))
    }
}

/// Keeps the C library and Rust's from looking for files that are not there: how memory is overcommitted, and names of functions for a panic.
fn quiet_runtime() {
    // SAFETY: a number; no other thread allocates yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    for variable in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: there is one thread.
        unsafe { std::env::remove_var(variable) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(mode: Mode) -> Lacking {
        Lacking {
            mode,
            parts: Vec::new(),
        }
    }

    #[test]
    fn a_full_sandbox_lacks_nothing() {
        let mut auto = lacking(Mode::Auto);
        auto.add("namespaces", "not here").expect("told");
        assert_eq!(auto.parts, ["namespaces: not here"]);
        let refused = lacking(Mode::Full).add("namespaces", "not here");
        let text = refused.expect_err("refused").to_string();
        assert_eq!(
            text,
            "sandbox: namespaces: not here; --sandbox auto runs without"
        );
    }

    #[test]
    fn modes_and_violations_are_words() {
        assert_eq!("full".parse(), Ok(Mode::Full));
        assert!("on".parse::<Mode>().is_err());
        assert_eq!("log".parse(), Ok(Violation::Log));
        assert!("trap".parse::<Violation>().is_err());
    }
}
