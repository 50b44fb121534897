//! The virtio-serial port to the branch: found by its name, read and written without ever waiting but in [`Port::wait`].
//!
//! While nobody is at the other end, what is written is dropped: who comes there is greeted anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use branch_guest::PORT_NAME;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::root::Root;

const PORTS: &str = "/sys/class/virtio-ports";
const DEVICES: &str = "/sys/bus/virtio/devices";
/// A console device, which has ports (virtio 1.2, section 5.3).
const CONSOLE: &str = "0x0003";

/// The port's device node, once the kernel has it.
pub fn find(root: &Root) -> Option<PathBuf> {
    let names = root.names(PORTS);
    let found = names
        .iter()
        .find(|name| root.line(&format!("{PORTS}/{name}/name")).as_deref() == Some(PORT_NAME))?;
    Some(root.path(&format!("/dev/{found}")))
}

/// Whether the machine has a device that could have the port, so that it is worth waiting for.
pub fn may_come(root: &Root) -> bool {
    let devices = root.names(DEVICES);
    let mut kinds = devices
        .iter()
        .filter_map(|name| root.line(&format!("{DEVICES}/{name}/device")));
    kinds.any(|kind| kind == CONSOLE)
}

/// What [`Port::wait`] waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// There is something to read.
    Readable,
    /// Nobody is at the other end.
    Alone,
    /// The time is over.
    Late,
}

/// An open port.
pub struct Port {
    file: File,
    /// A line was written in part.
    is_torn: bool,
}

impl Port {
    /// Opens a device node. The kernel lets one program have it.
    ///
    /// # Errors
    /// As of the file system.
    pub fn open(path: &std::path::Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32);
        Ok(Self {
            file: options.open(path)?,
            is_torn: false,
        })
    }

    /// Waits for the other end.
    ///
    /// # Errors
    /// As of the kernel.
    pub fn wait(&self, at_most: Duration) -> io::Result<Event> {
        let timeout = Timespec::try_from(at_most).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Event::Late),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let events = fds[0].revents();
        // What came before the other end went is still to be read.
        Ok(if events.contains(PollFlags::IN) {
            Event::Readable
        } else {
            Event::Alone
        })
    }

    /// Reads what is there; none if nobody is at the other end.
    ///
    /// # Errors
    /// As of the kernel.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match self.file.read(buf) {
            Ok(0) => Ok(None),
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }

    /// Writes a line as far as there is room for it. Returns whether all of it went.
    ///
    /// # Errors
    /// As of the kernel.
    pub fn write(&mut self, line: &[u8]) -> io::Result<bool> {
        if self.is_torn {
            // What was cut off ends here and is malformed by itself.
            match self.file.write(b"\n") {
                Ok(1) => self.is_torn = false,
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        match self.file.write(line) {
            Ok(written) => {
                self.is_torn = written > 0 && written < line.len();
                Ok(written == line.len())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn the_port_is_found_by_name_and_awaited_where_it_may_come() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        assert!(!may_come(&root));
        assert_eq!(find(&root), None);
        let device = |number: u8, kind: &str| {
            let file = format!("{DEVICES}/virtio{number}/device");
            root.write(&file, kind, 0o444).unwrap();
        };
        device(0, "0x0002\n");
        assert!(!may_come(&root), "a disk has no ports");
        device(1, "0x0003\n");
        assert!(may_come(&root));
        for (port, name) in [
            ("vport1p1", "org.qemu.guest_agent.0"),
            ("vport1p2", PORT_NAME),
        ] {
            let file = format!("{PORTS}/{port}/name");
            root.write(&file, &format!("{name}\n"), 0o444).unwrap();
        }
        assert_eq!(find(&root), Some(folder.path().join("dev/vport1p2")));
    }

    #[test]
    fn a_port_is_read_and_written_without_waiting() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(ours));
        let mut port = Port {
            file,
            is_torn: false,
        };
        assert_eq!(port.wait(Duration::ZERO).unwrap(), Event::Late);
        let mut buf = [0; 8];
        assert_eq!(port.read(&mut buf).unwrap(), Some(0));
        theirs.write_all(b"a\n").unwrap();
        assert_eq!(port.wait(Duration::from_secs(60)).unwrap(), Event::Readable);
        assert_eq!(port.read(&mut buf).unwrap(), Some(2));
        // Until the other end's buffer is full, and then the torn line is ended first.
        let line = [b'x'; 64 << 10];
        while port.write(&line).unwrap() {}
        let torn = port.is_torn;
        let mut all = vec![0; 64 << 20];
        theirs.set_nonblocking(true).unwrap();
        let mut read = 0;
        while let Ok(more) = theirs.read(&mut all[read..]) {
            read += more;
        }
        assert!(port.write(b"y\n").unwrap());
        let more = theirs.read(&mut all[read..]).unwrap();
        let expected: &[u8] = if torn { b"\ny\n" } else { b"y\n" };
        assert_eq!(&all[read..read + more], expected);
        drop(theirs);
        assert_eq!(port.read(&mut buf).unwrap(), None);
    }
}
