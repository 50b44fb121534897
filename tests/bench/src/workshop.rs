//! The work folder of a run: the programs that it measures, what it took from the checkout, and the folders of its benches.
//!
//! Invariant: programs, image makers and traces are those of the run's beginning; a build or a checkout that goes away in its midst
//! changes nothing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;

use crate::touched::TRACE;

/// Says that a folder was made here and may be emptied.
const MARK: &str = ".splice-bench";

/// What is measured, and the bench itself, which is its own helper in namespaces.
const PROGRAMS: [&str; 4] = ["splice", "splice-datacenter", "splice-branch", "bench"];

/// Of the checkout: the image makers and the recorded boots.
const TAKEN: [&str; 2] = ["tests/images", "tests/bench/traces"];

/// Most bytes that the path of a Unix socket may have, without the zero behind it.
const SOCKET_BYTES_MAX: usize = 107;
/// Longest path of a socket below the work folder: `/run/BRANCH/data/desktops/DESKTOP/serial.sock`, names of up to 10 and 12 bytes.
const SOCKET_BYTES_BELOW: usize = "/run//data/desktops//serial.sock".len() + 10 + 12;

/// What a run needs on the work folder's disk, in bytes: three disks' copies, or a store, a cache and a delta tool's slices; and what a
/// desktop's disk grows by while it is written to as fast as it can be, which a full run does for longer.
const FREE_BYTES_MIN: u64 = 40_000_000_000;
const FREE_BYTES_MIN_QUICK: u64 = 20_000_000_000;
/// With less than this, in bytes, whatever fails fails for want of room.
const FREE_BYTES_LEAST: u64 = 200_000_000;

/// See the module. Clones are of the same folder.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    work: PathBuf,
}

impl Workshop {
    /// Takes the folder. It is ours while the returned file is open.
    ///
    /// # Errors
    /// Another run uses it, it holds something else, or its path is too long.
    pub(crate) fn take(work: &Path) -> Result<(Self, File)> {
        let at = || work.display().to_string();
        let longest = work.as_os_str().len() + SOCKET_BYTES_BELOW;
        if longest > SOCKET_BYTES_MAX {
            bail!(
                "{} is {} bytes too long for the sockets below it; choose a shorter --work",
                at(),
                longest - SOCKET_BYTES_MAX
            );
        }
        std::fs::create_dir_all(work).with_context(at)?;
        let mark = work.join(MARK);
        let empty = std::fs::read_dir(work).with_context(at)?.next().is_none();
        if !empty && !mark.exists() {
            bail!(
                "{} holds something else; choose another folder with --work",
                at()
            );
        }
        let lock = File::create(&mark).with_context(at)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another bench runs in {}; end it, or choose another folder with --work",
                at()
            );
        }
        let this = Self {
            work: work.to_owned(),
        };
        this.clear()?;
        Ok((this, lock))
    }

    /// Checks that the disk has room for a run.
    ///
    /// # Errors
    /// It has not.
    pub(crate) fn check_room(&self, quick: bool) -> Result<()> {
        let needed = if quick {
            FREE_BYTES_MIN_QUICK
        } else {
            FREE_BYTES_MIN
        };
        let free = self.free_bytes()?;
        if free < needed {
            bail!(
                "{} has {:.1} GB free, {} are needed: make room, or choose another disk with --work",
                self.work.display(),
                free as f64 / 1e9,
                needed / 1_000_000_000
            );
        }
        Ok(())
    }

    /// Whether the disk is so full that nothing measured on it means anything.
    pub(crate) fn is_full(&self) -> bool {
        self.free_bytes().is_ok_and(|free| free < FREE_BYTES_LEAST)
    }

    fn free_bytes(&self) -> Result<u64> {
        let disk =
            rustix::fs::statvfs(&self.work).with_context(|| self.work.display().to_string())?;
        Ok(disk.f_bavail * disk.f_frsize)
    }

    /// Takes over the programs in `programs` and what is needed of the checkout. What is not there is missing later.
    ///
    /// # Errors
    /// A file cannot be linked or copied.
    pub(crate) fn stock(&self, programs: &Path, tree: &Path) -> Result<()> {
        for name in PROGRAMS {
            take_file(&programs.join(name), &self.program(name))?;
        }
        for folder in TAKEN {
            let Ok(entries) = std::fs::read_dir(tree.join(folder)) else {
                continue;
            };
            for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
                let to = self.work.join("tree").join(folder).join(entry.file_name());
                take_file(&entry.path(), &to)?;
            }
        }
        Ok(())
    }

    /// A file of the work folder that outlives a bench.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.work.join(name)
    }

    /// A program.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.work.join("programs").join(name)
    }

    /// A file that was in the checkout.
    pub(crate) fn tree(&self, path: &str) -> PathBuf {
        self.work.join("tree").join(path)
    }

    /// Changes with the programs and the recorded boot.
    pub(crate) fn fingerprint(&self) -> String {
        let stamps = PROGRAMS.map(|name| format!("{name}={}", stamp(&self.program(name))));
        format!("{} trace={}", stamps.join(" "), stamp(&self.tree(TRACE)))
    }

    /// A folder for a bench's own things; it is emptied when the next one begins.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.work.join("run").join(name);
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Removes a folder of the bench, whether it is there or not.
    pub(crate) fn discard(&self, name: &str) {
        let _ = std::fs::remove_dir_all(self.work.join("run").join(name));
    }

    /// Removes what benches left.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) fn clear(&self) -> Result<()> {
        match std::fs::remove_dir_all(self.work.join("run")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("emptying the work folder")
            }
            _ => Ok(()),
        }
    }
}

/// Links a file, or copies it where the disks differ; the link keeps the old content when a build puts a new file in its place.
fn take_file(from: &Path, to: &Path) -> Result<()> {
    let at = || from.display().to_string();
    let folder = to.parent().context("a file is in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| to.display().to_string());
        }
        _ => {}
    }
    let Ok(metadata) = std::fs::metadata(from) else {
        return Ok(());
    };
    // A script that is edited is written in place; only programs come as new files.
    let is_program = to
        .parent()
        .is_some_and(|folder| folder.ends_with("programs"));
    if is_program && std::fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    std::fs::copy(from, to).with_context(at)?;
    let copy = File::options().append(true).open(to).with_context(at)?;
    copy.set_modified(metadata.modified().with_context(at)?)
        .with_context(at)
}

fn stamp(path: &Path) -> String {
    let Ok(metadata) = std::fs::metadata(path) else {
        return "none".to_owned();
    };
    let time = metadata
        .modified()
        .ok()
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    format!("{}@{}", metadata.len(), time.unwrap_or_default().as_nanos())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_short_folder_of_our_own_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("w");
        std::fs::create_dir(&work).unwrap();
        std::fs::write(work.join("thesis"), "years").unwrap();
        let error = Workshop::take(&work).err().unwrap().to_string();
        assert!(error.contains("holds something else"), "{error}");
        assert!(work.join("thesis").exists());
        let long = folder.path().join("x".repeat(80));
        let error = Workshop::take(&long).err().unwrap().to_string();
        assert!(error.contains("too long for the sockets"), "{error}");
        assert!(!long.exists());
    }

    #[test]
    fn a_new_build_does_not_change_what_was_taken() {
        let folder = tempfile::tempdir().unwrap();
        let build = folder.path().join("build");
        std::fs::create_dir(&build).unwrap();
        std::fs::write(build.join("splice"), "one").unwrap();
        let workshop = Workshop {
            work: folder.path().join("w"),
        };
        workshop.stock(&build, folder.path()).unwrap();
        let before = workshop.fingerprint();
        std::fs::remove_file(build.join("splice")).unwrap();
        std::fs::write(build.join("splice"), "another").unwrap();
        let taken = std::fs::read(workshop.program("splice")).unwrap();
        assert_eq!(taken, b"one");
        assert_eq!(workshop.fingerprint(), before);
        workshop.stock(&build, folder.path()).unwrap();
        assert_ne!(workshop.fingerprint(), before);
    }
}
