//! A datacenter: its daemon, and the `splice` command as its operator uses it.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::lab::{Lab, free_port, wait_for};
use crate::run::{Ran, limited, line, program, run_path};

/// A command that does no long work.
const COMMAND: Duration = Duration::from_secs(120);
/// Until the daemon says that it is ready.
const READY: Duration = Duration::from_secs(60);

/// See the module.
pub struct Datacenter {
    /// Its data folder.
    pub data: PathBuf,
    /// Port of its link.
    pub link_port: u16,
    daemon: Daemon,
}

impl Datacenter {
    /// Makes a realm in the lab's folder `dc` and starts its daemon.
    pub fn start(lab: &Lab) -> Self {
        Self::start_in(lab, "dc")
    }

    /// The same in another folder.
    pub fn start_in(lab: &Lab, folder: &str) -> Self {
        let (link_port, api_port) = (free_port(), free_port());
        let data = lab.path(folder);
        let (link, api) = (
            format!("127.0.0.1:{link_port}"),
            format!("127.0.0.1:{api_port}"),
        );
        let init = [
            "init",
            "--data",
            text(&data),
            "--address",
            &link,
            "--link",
            &link,
            "--api",
            &api,
        ];
        run_path(&program("splice-datacenter"), &init, COMMAND).ok();
        Self::run_in(lab, folder, link_port)
    }

    /// Restores a backup into a new folder, and starts a daemon there. Whose it was must not run any more: it has the same ports.
    pub fn restore_in(&self, lab: &Lab, folder: &str, backup: &Path, passphrase: &Path) -> Self {
        let data = lab.path(folder);
        let restore = [
            "restore",
            text(backup),
            "--data",
            text(&data),
            "--passphrase-file",
            text(passphrase),
        ];
        run_path(&program("splice-datacenter"), &restore, COMMAND).ok();
        Self::run_in(lab, folder, self.link_port)
    }

    fn run_in(lab: &Lab, folder: &str, link_port: u16) -> Self {
        let data = lab.path(folder);
        let arguments = vec!["run".into(), "--data".into(), text(&data).into()];
        let log = lab.path(&format!("{folder}.log"));
        let mut datacenter = Self {
            daemon: Daemon::new(program("splice-datacenter"), arguments, log),
            data,
            link_port,
        };
        datacenter.restart();
        datacenter
    }

    /// The daemon itself.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Starts the daemon that was killed or stopped, and waits until it is ready.
    pub fn restart(&mut self) {
        let before = self.daemon.log_bytes();
        self.daemon.start();
        wait_for("the datacenter to be ready", READY, || {
            self.daemon.check();
            self.daemon.log()[before..].contains("ready link=")
        });
    }

    fn arguments<'a>(&'a self, config: &'a str, words: &'a str) -> Vec<&'a str> {
        let mut arguments = vec!["--config", config];
        arguments.extend(words.split_whitespace());
        arguments
    }

    fn config(&self) -> String {
        text(&self.data.join("cli.toml")).into()
    }

    /// Runs `splice` with these words (no word holds a space).
    pub fn splice(&self, words: &str) -> Ran {
        let config = self.config();
        run_path(&program("splice"), &self.arguments(&config, words), COMMAND)
    }

    /// What `splice … --json` answers; it must succeed.
    pub fn json(&self, words: &str) -> Value {
        let out = self.splice(&format!("{words} --json")).ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{words}: {error}: {out}"))
    }

    /// Starts `splice` and does not wait for it.
    pub fn background(&self, words: &str) -> Background {
        let (path, config) = (program("splice"), self.config());
        let arguments = self.arguments(&config, words);
        let child = limited(&path, COMMAND)
            .args(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Background {
            line: line(&path, &arguments),
            child: child.expect("coreutils' timeout is installed"),
        }
    }

    /// Creates an image.
    pub fn create(&self, image: &str) {
        self.splice(&format!("image create {image}")).ok();
    }

    /// Publishes a disk file and answers what that made.
    pub fn publish(&self, image: &str, file: &Path) -> Value {
        let operation = self.json(&format!("version publish {image} {}", file.display()));
        operation["result"]["publish"].clone()
    }

    /// A join token for a branch.
    pub fn token(&self, branch: &str) -> String {
        let answer = self.json(&format!("branch token {branch}"));
        answer["token"]
            .as_str()
            .expect("the answer has a token")
            .to_owned()
    }

    /// Gives the branch's pool a version; `more` is further options, or `--memory` instead of 256 MiB.
    pub fn assign(&self, branch: &str, pool: &str, version: &str, more: &str) {
        let memory = if more.contains("--memory") {
            ""
        } else {
            "--memory 256MiB"
        };
        let words =
            format!("branch assign {branch} --pool {pool} --image {version} {memory} {more}");
        self.splice(&words).ok();
    }

    /// Reads a version back; it must be intact.
    pub fn verify(&self, version: &str) {
        self.splice(&format!("version verify {version}")).ok();
    }

    /// Whether the image has that version.
    pub fn has_version(&self, image: &str, number: u64) -> bool {
        let versions = self.json(&format!("version list {image}"));
        let versions = versions.as_array().expect("a list");
        versions.iter().any(|version| version["number"] == number)
    }
}

/// A command that was started.
pub struct Background {
    line: String,
    child: Child,
}

impl Background {
    /// Of a child with its outputs piped.
    pub fn new(line: String, child: Child) -> Self {
        Self { line, child }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Waits for its end, which its own limit bounds.
    pub fn end(self) -> Ran {
        let output = self.child.wait_with_output().expect("it is our child");
        Ran::new(self.line, &output)
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("the lab's paths are plain ASCII")
}
