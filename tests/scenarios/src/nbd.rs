//! An NBD export as foreign clients see it: QEMU's tools and libnbd's.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::datacenter::{Background, text};
use crate::run::{Ran, limited, line, run};

/// See the module.
#[derive(Debug, Clone)]
pub struct Export {
    socket: PathBuf,
    name: String,
    /// How long one client may take.
    pub limit: Duration,
}

impl Export {
    /// The export `name` at a Unix socket.
    pub fn new(socket: &Path, name: &str) -> Self {
        Self {
            socket: socket.to_owned(),
            name: name.to_owned(),
            limit: Duration::from_secs(180),
        }
    }

    /// Its URI.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///{}?socket={}", self.name, text(&self.socket))
    }

    /// Whether it is offered now.
    pub fn is_there(&self) -> bool {
        run("nbdinfo", &["--size", &self.uri()], self.limit).succeeded()
    }

    /// Its bytes must be those of `file`, wherever either has data.
    pub fn assert_same(&self, file: &Path) {
        self.compare(file).ok();
    }

    /// Compares it with `file`.
    pub fn compare(&self, file: &Path) -> Ran {
        let uri = self.uri();
        let arguments = ["compare", "-f", "raw", "-F", "raw", text(file), &uri];
        run("qemu-img", &arguments, self.limit)
    }

    /// Copies it into a new file.
    pub fn copy(&self, to: &Path) -> Ran {
        run("nbdcopy", &[self.uri().as_str(), text(to)], self.limit)
    }

    /// Begins to copy it.
    pub fn copy_in_background(&self, to: &Path) -> Background {
        let arguments = [self.uri(), text(to).to_owned()];
        let path = Path::new("nbdcopy");
        let child = limited(path, self.limit)
            .args(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.expect("coreutils' timeout is installed");
        Background::new(line(path, &arguments), child)
    }

    /// Reads a little of it, as one guest would; nothing is kept.
    pub fn peek(&self, offset: u64, bytes: u64) -> Ran {
        let (uri, command) = (self.uri(), format!("read {offset} {bytes}"));
        let arguments = ["-r", "-f", "raw", "-c", &command, &uri];
        run("qemu-io", &arguments, self.limit)
    }

    /// What qemu-io makes of these commands, in their order.
    pub fn io(&self, commands: &[String]) -> Ran {
        let uri = self.uri();
        let mut arguments = vec!["-f", "raw"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        run("qemu-io", &arguments, self.limit)
    }
}
