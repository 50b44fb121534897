//! A branch: its daemon, what it tells of itself, its desktops and exports.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::datacenter::{Datacenter, text};
use crate::lab::{Lab, wait_for};
use crate::nbd::Export;
use crate::run::{Ran, program, run_path};

/// A command to a branch; a start of a desktop may wait for its kernel over the line.
const COMMAND: Duration = Duration::from_secs(240);
/// Until the daemon answers.
const READY: Duration = Duration::from_secs(60);
/// Until a branch knows what the datacenter decided, or notices that its line is back.
pub const NEWS: Duration = Duration::from_secs(90);

/// See the module.
pub struct Branch {
    /// Its data folder.
    pub data: PathBuf,
    /// Its name at the datacenter.
    pub name: String,
    daemon: Daemon,
}

impl Branch {
    /// Joins as `name` through `address` and starts its daemon.
    pub fn join(lab: &Lab, datacenter: &Datacenter, name: &str, address: &str) -> Self {
        Self::join_with(lab, datacenter, name, address, &[])
    }

    /// The same, with more options of `splice-branch run`. Its desktops run under TCG if they say nothing else.
    pub fn join_with(
        lab: &Lab,
        datacenter: &Datacenter,
        name: &str,
        address: &str,
        more: &[&str],
    ) -> Self {
        let data = lab.path(name);
        let token = datacenter.token(name);
        join(&token, &data, address).ok();
        let words = ["run", "--data", text(&data)];
        let emulated: &[&str] = if more.contains(&"--accelerator") {
            &[]
        } else {
            &["--accelerator", "tcg"]
        };
        let arguments = words.iter().chain(emulated).chain(more);
        let arguments = arguments.map(|word| (*word).to_owned());
        let log = lab.path(&format!("{name}.log"));
        let mut branch = Self {
            daemon: Daemon::new(program("splice-branch"), arguments.collect(), log),
            name: name.to_owned(),
            data,
        };
        branch.restart();
        branch
    }

    /// The daemon itself.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Starts the daemon that was killed or stopped, and waits until it answers.
    pub fn restart(&mut self) {
        self.daemon.start();
        wait_for("the branch server to answer", READY, || {
            self.daemon.check();
            self.splice("branch-status").succeeded()
        });
    }

    /// Runs `splice` against this branch's socket.
    pub fn splice(&self, words: &str) -> Ran {
        let socket = self.data.join("branch.sock");
        let mut arguments: Vec<&str> = words.split_whitespace().collect();
        arguments.extend(["--branch-socket", text(&socket)]);
        run_path(&program("splice"), &arguments, COMMAND)
    }

    /// What it tells of itself.
    pub fn status(&self) -> Value {
        let out = self.splice("branch-status --json").ok();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("status: {error}: {out}"))
    }

    /// A number in its status, by JSON pointer.
    pub fn number(&self, pointer: &str) -> u64 {
        let status = self.status();
        let value = status.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no {pointer} in {status}"))
    }

    /// What it has of a version, once it knows of it.
    pub fn residency(&self, image: &str, number: u64) -> Option<Value> {
        let status = self.status();
        let versions = status["versions"].as_array()?;
        let found = versions
            .iter()
            .find(|v| v["image"] == image && v["number"] == number);
        found.cloned()
    }

    /// Waits until that version has reached the branch (not its chunks) and the pool can be read.
    pub fn wait_for_pool(&mut self, pool: &str, image: &str, number: u64) {
        let what = format!("{image}@{number} to be readable as pool {pool}");
        let pool = self.export(&format!("pool/{pool}"));
        wait_for(what, NEWS, || {
            self.daemon.check();
            let id = self.residency(image, number);
            let id = id.and_then(|v| Some(v["version"].as_str()?.to_owned()));
            id.is_some_and(|id| self.export(&format!("version/{id}")).is_there()) && pool.is_there()
        });
    }

    /// Waits until nothing of a version is missing.
    pub fn wait_complete(&mut self, image: &str, number: u64, limit: Duration) {
        wait_for(format!("{image}@{number} to be complete"), limit, || {
            self.daemon.check();
            self.is_complete(image, number)
        });
    }

    /// Whether nothing of a version is missing.
    pub fn is_complete(&self, image: &str, number: u64) -> bool {
        self.residency(image, number)
            .is_some_and(|version| version["complete"] == true)
    }

    /// Waits until the link is up, or down.
    pub fn wait_link(&mut self, up: bool) {
        wait_for(format!("the link's connected = {up}"), NEWS, || {
            self.daemon.check();
            self.status()["link"]["connected"] == up
        });
    }

    /// Starts a desktop and answers what is told of it.
    pub fn start_desktop(&self, pool: &str, name: &str) -> Value {
        let words = format!("desktop start {pool} --name {name} --json");
        let out = self.splice(&words).ok();
        serde_json::from_str(&out).expect("--json prints JSON")
    }

    /// An NBD export.
    pub fn export(&self, name: &str) -> Export {
        Export::new(&self.data.join("nbd.sock"), name)
    }
}

/// Enrols a folder as a branch.
pub fn join(token: &str, data: &Path, address: &str) -> Ran {
    let arguments = ["join", token, "--data", text(data), "--address", address];
    run_path(
        &program("splice-branch"),
        &arguments,
        Duration::from_secs(60),
    )
}
