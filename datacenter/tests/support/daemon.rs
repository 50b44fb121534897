//! The daemon as a process.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use datacenter_api::{Client, ClientOptions};

pub const DAEMON: &str = env!("CARGO_BIN_EXE_splice-datacenter");

pub fn daemon(arguments: &[&str]) -> Output {
    Command::new(DAEMON).args(arguments).output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// Makes a realm that listens on free ports of loopback.
pub fn init(data: &Path) {
    let made = daemon(&[
        "init",
        "--data",
        data.to_str().unwrap(),
        "--address",
        "127.0.0.1:7443",
        "--link",
        "127.0.0.1:0",
        "--api",
        "127.0.0.1:0",
    ]);
    assert!(made.status.success(), "{}", stderr(&made));
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pub api: String,
    data: PathBuf,
}

impl Daemon {
    pub fn start(data: &Path) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(data.join("daemon.log"))
            .unwrap();
        let mut child = Command::new(DAEMON)
            .args(["run", "--data", data.to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let Some((_, api)) = line.trim().split_once("api=") else {
            let log = std::fs::read_to_string(data.join("daemon.log")).unwrap();
            panic!("not ready: {line:?}; {log}");
        };
        Self {
            child,
            api: api.to_owned(),
            data: data.to_owned(),
        }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.api)
    }

    pub fn token(&self) -> String {
        token(&self.data)
    }

    pub fn ca_pem(&self) -> String {
        std::fs::read_to_string(self.data.join("ca.pem")).unwrap()
    }

    pub fn client(&self) -> Client {
        self.client_with(&self.token())
    }

    pub fn client_with(&self, token: &str) -> Client {
        let options = ClientOptions {
            url: self.url(),
            token: token.into(),
            ca_pem: self.ca_pem(),
        };
        Client::new(&options).unwrap()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the daemon must end well.
    pub fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let child = &mut self.child;
        let status = super::wait_for(Duration::from_secs(30), "the daemon's end", || {
            child.try_wait().unwrap()
        });
        assert!(status.success(), "{status}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub fn token(data: &Path) -> String {
    let text = std::fs::read_to_string(data.join("cli.toml")).unwrap();
    let config: toml::Table = text.parse().unwrap();
    config["token"].as_str().unwrap().to_owned()
}
