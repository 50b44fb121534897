//! One daemon: a process with a log, which can be killed and started again.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::wait_for;

/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 25;

/// A program with its arguments, running or not. Its log goes on over restarts. The kernel kills it when the thread that started it
/// ends, so that nothing is left of a test that was killed.
pub struct Daemon {
    path: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Not running yet.
    pub fn new(path: PathBuf, arguments: Vec<String>, log: PathBuf) -> Self {
        Self {
            path,
            arguments,
            log,
            child: None,
        }
    }

    fn log_file(&self) -> File {
        let opened = OpenOptions::new().create(true).append(true).open(&self.log);
        opened.expect("the lab's folder takes logs")
    }

    /// Starts it; whether it is ready is for the caller to find out.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it is started once");
        let log = self.log_file();
        let errors = log.try_clone().expect("descriptors are left");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.path)
            .args(&self.arguments)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn();
        self.child = Some(child.expect("setpriv of util-linux is installed"));
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it ended, if it did by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        let status = child.try_wait().expect("it is our child")?;
        self.child = None;
        Some(status)
    }

    /// Fails if it ended by itself.
    pub fn check(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} ended by itself: {status}", self.path.display());
        }
    }

    fn signal(&self, signal: Signal) {
        let Some(pid) = self.pid().and_then(|pid| Pid::from_raw(pid as i32)) else {
            return;
        };
        // Not reaped yet, so the id is still its own; if it has ended, nothing happens.
        let _ = kill_process(pid, signal);
    }

    /// Kills it (-9) and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut child) = self.child.take() {
            child.wait().expect("it is our child");
        }
    }

    /// Asks it to end and waits until it has; it must end in good order.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let mut status = None;
        wait_for(
            "a daemon to end on SIGTERM",
            Duration::from_secs(30),
            || {
                status = self.ended();
                self.child.is_none()
            },
        );
        if let Some(status) = status {
            assert!(status.success(), "{}: {status}", self.path.display());
        }
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// Bytes of its log.
    pub fn log_bytes(&self) -> usize {
        std::fs::metadata(&self.log).map_or(0, |m| m.len() as usize)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- end of {}:\n{}", self.log.display(), tail(&self.log));
        }
    }
}

/// A text file, whatever is in it; empty if there is none.
pub fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn tail(path: &Path) -> String {
    let text = read_lossy(path);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
