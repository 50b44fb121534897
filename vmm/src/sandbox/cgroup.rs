//! A machine's control group (cgroup v2): how much memory and processor time, and how many threads, the host lets it have.
//!
//! A group that exists is joined. With limits, a group of its own is made below it, which is removed when the machine ends. That needs a
//! group that was delegated to whoever starts the machine and has no processes of its own, as cgroup v2 wants it.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

/// Period of the processor limit, µs: the kernel's own default.
const PERIOD_US: u64 = 100_000;

/// Limits of a group of its own; none is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// Memory in all, the guest's and ours, MiB.
    pub memory_mib: Option<u64>,
    /// Processor time, percent of one processor.
    pub cpu_percent: Option<u64>,
    /// Threads and processes.
    pub pids: Option<u64>,
}

/// Which group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    /// Its folder.
    pub path: PathBuf,
    /// With any of them, a group below it.
    pub limits: GroupLimits,
}

/// Why there is no group.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// Not what it should be.
    #[error("{} is no control group of version 2: it has no cgroup.procs", .0.display())]
    NotAGroup(PathBuf),
    /// The kernel or whoever delegated it does not have it there.
    #[error("{} has no controller {controller}, so that it cannot limit that", .path.display())]
    NoController {
        /// The group.
        path: PathBuf,
        /// What it lacks.
        controller: &'static str,
    },
    /// A file of it.
    #[error("control group: {} {}", .what, .path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A group that a machine can be put in.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    procs: File,
    /// The folder above and our name in it, if we made it.
    own: Option<(File, CString)>,
}

fn write(path: PathBuf, text: &str) -> Result<(), GroupError> {
    let mut file = open(path.clone())?;
    file.write_all(text.as_bytes())
        .map_err(|source| GroupError::File {
            what: "write",
            path,
            source,
        })
}

fn open(path: PathBuf) -> Result<File, GroupError> {
    // Files of groups are there or not; none is ever made by us.
    let opened = File::options().write(true).open(&path);
    opened.map_err(|source| GroupError::File {
        what: "open",
        path,
        source,
    })
}

impl GroupLimits {
    /// Controllers that they need, with the file and text of each.
    fn files(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut files = Vec::new();
        if let Some(mib) = self.memory_mib {
            let bytes = mib.saturating_mul(1 << 20);
            files.push(("memory", "memory.max", bytes.to_string()));
            // A machine without some of its threads is of no use.
            files.push(("memory", "memory.oom.group", "1".into()));
        }
        if let Some(percent) = self.cpu_percent {
            let quota = percent.saturating_mul(PERIOD_US) / 100;
            files.push(("cpu", "cpu.max", format!("{quota} {PERIOD_US}")));
        }
        if let Some(pids) = self.pids {
            files.push(("pids", "pids.max", pids.to_string()));
        }
        files
    }
}

impl GroupSpec {
    /// Opens the group, or makes the one below it, which is called `name`.
    ///
    /// # Errors
    /// See [`GroupError`].
    pub fn open(&self, name: &str) -> Result<Group, GroupError> {
        let procs = self.path.join("cgroup.procs");
        if !procs.exists() {
            return Err(GroupError::NotAGroup(self.path.clone()));
        }
        let files = self.limits.files();
        if files.is_empty() {
            return Ok(Group {
                path: self.path.clone(),
                procs: open(procs)?,
                own: None,
            });
        }
        self.make(name, &files)
    }

    fn make(
        &self,
        name: &str,
        files: &[(&'static str, &'static str, String)],
    ) -> Result<Group, GroupError> {
        let listed = self.path.join("cgroup.controllers");
        let listed = std::fs::read_to_string(listed).unwrap_or_default();
        for (controller, ..) in files {
            if !listed.split_whitespace().any(|one| one == *controller) {
                return Err(GroupError::NoController {
                    path: self.path.clone(),
                    controller,
                });
            }
            let control = self.path.join("cgroup.subtree_control");
            write(control, &format!("+{controller}"))?;
        }
        let folder = |source| GroupError::File {
            what: "make",
            path: self.path.join(name),
            source,
        };
        let above = File::open(&self.path).map_err(folder)?;
        let path = self.path.join(name);
        match std::fs::create_dir(&path) {
            // One that a machine with our number left behind, killed together with its outer process.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(folder)?,
        }
        let group = Group {
            procs: open(path.join("cgroup.procs"))?,
            own: Some((
                above,
                CString::new(name).map_err(|error| folder(error.into()))?,
            )),
            path,
        };
        for (_, file, text) in files {
            write(group.path.join(file), text)?;
        }
        Ok(group)
    }
}

impl Group {
    /// Puts a process in.
    pub(super) fn add(&self, process: libc::pid_t) -> Result<(), GroupError> {
        let added = (&self.procs).write_all(process.to_string().as_bytes());
        added.map_err(|source| GroupError::File {
            what: "join",
            path: self.path.clone(),
            source,
        })
    }

    /// The descriptor by which it is removed.
    pub(super) fn folder(&self) -> Option<RawFd> {
        self.own.as_ref().map(|(above, _)| above.as_raw_fd())
    }

    /// Removes it, if it was made for this machine. Its last process has ended.
    pub(super) fn remove(&self) {
        if let Some((above, name)) = &self.own {
            // One that is left behind is empty, and told nobody any more.
            // SAFETY: the folder is open, and the name is a C string.
            unsafe { libc::unlinkat(above.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) };
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a group to those who read and write its files.
    fn group(controllers: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("one")).expect("a folder");
        for file in [
            "cgroup.procs",
            "cgroup.subtree_control",
            "one/cgroup.procs",
            "one/memory.max",
            "one/memory.oom.group",
            "one/cpu.max",
            "one/pids.max",
        ] {
            std::fs::write(dir.path().join(file), "").expect("a file");
        }
        std::fs::write(dir.path().join("cgroup.controllers"), controllers).expect("a file");
        dir
    }

    fn spec(dir: &tempfile::TempDir, limits: GroupLimits) -> GroupSpec {
        GroupSpec {
            path: dir.path().to_owned(),
            limits,
        }
    }

    #[test]
    fn a_group_without_limits_is_joined_as_it_is() {
        let dir = group("");
        let group = spec(&dir, GroupLimits::default()).open("one");
        let group = group.expect("a group");
        group.add(4711).expect("joined");
        let procs = std::fs::read_to_string(dir.path().join("cgroup.procs"));
        assert_eq!(procs.expect("a file"), "4711");
        assert!(group.folder().is_none());
    }

    #[test]
    fn limits_make_a_group_below_it() {
        let dir = group("cpuset cpu memory pids");
        let limits = GroupLimits {
            memory_mib: Some(1100),
            cpu_percent: Some(150),
            pids: Some(64),
        };
        let group = spec(&dir, limits).open("one").expect("a group");
        group.add(4711).expect("joined");
        let read = |file: &str| {
            std::fs::read_to_string(dir.path().join("one").join(file)).expect("a file")
        };
        assert_eq!(read("memory.max"), "1153433600");
        assert_eq!(read("memory.oom.group"), "1");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("pids.max"), "64");
        assert_eq!(read("cgroup.procs"), "4711");
        assert_eq!(group.path(), dir.path().join("one"));
    }

    #[test]
    fn what_a_host_cannot_limit_is_named() {
        let dir = group("cpu pids");
        let limits = GroupLimits {
            memory_mib: Some(1100),
            ..GroupLimits::default()
        };
        let error = spec(&dir, limits).open("one").expect_err("no controller");
        assert!(
            error.to_string().contains("no controller memory"),
            "{error}"
        );
        let none = tempfile::tempdir().expect("a folder");
        let error = spec(&none, limits).open("one").expect_err("no group");
        assert!(matches!(error, GroupError::NotAGroup(_)));
    }
}
