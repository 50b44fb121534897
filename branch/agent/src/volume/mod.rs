//! The user volume: the disk that follows a user. It gets a file system if it is empty, and is mounted before anybody logs on.
//!
//! **It never formats what has anything.** A file system is made only if all of these hold, each found out by another party:
//!
//! 1. exactly one disk has the serial number, which is random for each volume;
//! 2. the branch says that it never took a write to it (its overlay has no record), so that every byte is zero;
//! 3. the kernel knows of no partition, no mount and no device on it, and lets us open it for ourselves (`O_EXCL`);
//! 4. what lies where anything would put its name is zero ([`content`]).
//!
//! mkfs writes the superblock last, so that one which was interrupted leaves neither an empty disk nor a file system. That is told from somebody's data
//! by a note in the system's own file system, written before mkfs and removed when it has ended, well or not. A note that is there says that the machine
//! or the agent died during mkfs: 2 and 4 held when it was written, and nobody has had the disk since. Everything else that is no ext4 is refused and
//! told, with the reason.
//!
//! What the image has at the place and the volume has not is copied to it first, each entry whole or not at all: a user who was made in the image
//! finds a home.

mod content;
mod disk;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use branch_guest::{UserVolume, VolumeReport};
use rustix::fs::OFlags;

use crate::reason;
use crate::root::Root;
use crate::tools::{LONG, SHORT, ToolError, Tools};
use content::Content;
use disk::BlockDisk;

/// Where the volume is mounted for us alone while it is prepared.
const STAGE: &str = "/run/splice-agent/volume";
/// Where an entry is copied to before it gets its name.
const PART: &str = ".splice-part";
/// Nobody becomes root by a file of theirs, and device nodes are the system's.
const OPTIONS: &str = "nosuid,nodev";

/// Why the volume stays as it is.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// Something about the disk.
    #[error("{0}")]
    Disk(String),
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// A program failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The system's own file system failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn refused<T>(why: &str) -> Result<T, Refusal> {
    Err(Refusal::Disk(why.to_owned()))
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> Refusal {
    move |source| Refusal::Io { what, source }
}

fn note(serial: &str) -> String {
    format!("/var/lib/splice-agent/making-{serial}")
}

/// Mounts the volume at `place`, after making a file system on it if it is empty; nothing happens if it is mounted there.
pub fn take_up(
    root: &Root,
    tools: &mut dyn Tools,
    place: &str,
    wanted: &UserVolume,
) -> VolumeReport {
    let disks = disk::with_serial(root, wanted.serial.as_str());
    let taken = match disks.as_slice() {
        [] => return VolumeReport::Missing,
        [disk] => {
            let mut volume = Volume {
                root,
                tools,
                place,
                serial: wanted.serial.as_str(),
                disk,
            };
            volume.take_up(wanted.unwritten)
        }
        _ => refused("several disks have its serial number"),
    };
    match taken {
        Ok(()) => VolumeReport::Mounted,
        Err(refusal) => VolumeReport::Refused(reason(&refusal)),
    }
}

/// Whether the volume is mounted at `place`, by whomever.
pub fn is_mounted(root: &Root, place: &str, wanted: &UserVolume) -> bool {
    let disks = disk::with_serial(root, wanted.serial.as_str());
    let mounts = disk::mounts(root).unwrap_or_default();
    let at_place = mounts.iter().rfind(|mount| mount.place == place);
    matches!(disks.as_slice(), [disk] if at_place.is_some_and(|m| m.number == disk.number))
}

struct Volume<'a> {
    root: &'a Root,
    tools: &'a mut dyn Tools,
    place: &'a str,
    serial: &'a str,
    disk: &'a BlockDisk,
}

impl Volume<'_> {
    fn take_up(&mut self, unwritten: bool) -> Result<(), Refusal> {
        self.leave_stage()?;
        if self.is_mounted()? {
            return Ok(());
        }
        if let Some(used) = self.disk.use_known_to_kernel(self.root) {
            return refused(used);
        }
        let note = note(self.serial);
        let was_begun = self.root.exists(&note);
        match (self.look()?, was_begun) {
            (Content::Ext4, _) => {}
            (Content::Nothing, _) if unwritten || was_begun => self.make(&note)?,
            (Content::Unknown, true) => self.make(&note)?,
            (Content::Nothing, _) => {
                return refused(
                    "it was written to and looks empty: it is not formatted; make a file system by hand",
                );
            }
            (Content::Unknown, false) => {
                return refused(
                    "it has something that is no ext4 file system: it is left as it is",
                );
            }
        }
        if was_begun {
            self.root.remove(&note).map_err(io_error("its note"))?;
        }
        self.check()?;
        self.copy_from_image()?;
        self.mount(self.place)
    }

    /// Unmounts what an agent that was killed left at the stage.
    fn leave_stage(&mut self) -> Result<(), Refusal> {
        let mounts = disk::mounts(self.root).unwrap_or_default();
        let is_staged =
            |mount: &disk::Mount| mount.place == STAGE && mount.number == self.disk.number;
        if mounts.iter().any(is_staged) {
            self.tools.run("umount", &[STAGE], LONG)?;
        }
        Ok(())
    }

    /// Whether it is mounted at its place. Anything else that is mounted is in the way.
    fn is_mounted(&self) -> Result<bool, Refusal> {
        let Some(mounts) = disk::mounts(self.root) else {
            return refused("what is mounted is not known");
        };
        // The last at a place is the one that is seen.
        let at_place = mounts.iter().rfind(|mount| mount.place == self.place);
        if at_place.is_some_and(|mount| mount.number == self.disk.number) {
            return Ok(true);
        }
        if at_place.is_some() {
            return refused("something else is mounted at its place");
        }
        if mounts.iter().any(|mount| mount.number == self.disk.number) {
            return refused("it is mounted somewhere else");
        }
        Ok(false)
    }

    fn look(&self) -> Result<Content, Refusal> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlags::EXCL.bits() as i32);
        let file: File = options
            .open(self.disk.node(self.root))
            .map_err(Refusal::Read)?;
        content::look(&file, self.disk.size_bytes).map_err(Refusal::Read)
    }

    fn make(&mut self, note: &str) -> Result<(), Refusal> {
        let text = "mkfs.ext4 was begun on an empty disk\n";
        let noted = self.root.write(note, text, 0o600);
        noted.map_err(io_error("its note"))?;
        let node = self.disk.node_name();
        // Without -F: it refuses a disk that is in use. A disk of zeros need not be discarded.
        let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        let label = "splice-user";
        let arguments = ["-q", "-m", "0", "-L", label, "-E", options, &node];
        let made = self.tools.run("mkfs.ext4", &arguments, LONG);
        let made = made.and_then(|_| self.tools.run("sync", &[&node], LONG));
        // Also when it failed: then a person may put something on the disk, which the note must not have formatted.
        self.root.remove(note).map_err(io_error("its note"))?;
        made?;
        Ok(())
    }

    /// Repairs what repairs itself; what needs a person is not mounted.
    fn check(&mut self) -> Result<(), Refusal> {
        let node = self.disk.node_name();
        match self.tools.run("fsck.ext4", &["-p", &node], LONG) {
            // 1: errors were repaired.
            Ok(_) | Err(ToolError::Failed { status: 1, .. }) => Ok(()),
            Err(ToolError::Failed { status, .. }) => refused(&format!(
                "its file system needs a person: fsck.ext4 ended with status {status}"
            )),
            Err(error) => Err(error.into()),
        }
    }

    fn mount(&mut self, place: &str) -> Result<(), Refusal> {
        let folder = std::fs::create_dir_all(self.root.path(place));
        folder.map_err(io_error("its place"))?;
        let node = self.disk.node_name();
        let arguments = ["-t", "ext4", "-o", OPTIONS, &node, place];
        self.tools.run("mount", &arguments, LONG)?;
        Ok(())
    }

    fn copy_from_image(&mut self) -> Result<(), Refusal> {
        self.mount(STAGE)?;
        let copied = self.copy_entries();
        let unmounted = self.tools.run("umount", &[STAGE], LONG);
        copied?;
        unmounted?;
        Ok(())
    }

    fn copy_entries(&mut self) -> Result<(), Refusal> {
        let part = format!("{STAGE}/{PART}");
        // Of a copy that was interrupted.
        self.tools.run("rm", &["-rf", "--", &part], LONG)?;
        for name in self.root.names(self.place) {
            let to = format!("{STAGE}/{name}");
            if name == "lost+found" || name.starts_with('.') || self.root.exists(&to) {
                continue;
            }
            let from = format!("{}/{name}", self.place.trim_end_matches('/'));
            let arguments = ["-a", "--one-file-system", "--", &from, &part];
            self.tools.run("cp", &arguments, LONG)?;
            self.tools.run("sync", &["-f", &part], LONG)?;
            self.tools.run("mv", &["-T", "--", &part, &to], SHORT)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
