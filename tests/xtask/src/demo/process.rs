//! Programs that the demo runs: daemons with a log each, and commands with a time limit.
//!
//! Invariant: when [`Processes`] is dropped, nothing that it started is left, nor anything that those started. We are
//! the subreaper of all of them, so a desktop whose branch daemon died becomes our child and is found. Any child of
//! ours that still runs then is ended, whoever started it. If we are killed ourselves, the kernel ends the daemons
//! (`setpriv --pdeathsig`), which end their own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, WaitOptions};

use super::wait::{Limit, fresh_file, tail, tick};

/// How long a program may take to end in good order before it is killed: a maker of images unmounts and deletes.
const ENDING: Duration = Duration::from_secs(30);

/// What a program is run as.
pub(crate) struct Program<'a> {
    /// The network namespace, or ours.
    pub(crate) namespace: Option<&'a str>,
    /// What is run.
    pub(crate) path: &'a Path,
    /// Its arguments.
    pub(crate) arguments: Vec<OsString>,
}

impl<'a> Program<'a> {
    /// `path` in a namespace.
    pub(crate) fn inside(namespace: &'a str, path: &'a Path) -> Self {
        Self {
            namespace: Some(namespace),
            path,
            arguments: Vec::new(),
        }
    }

    /// `path` in our own namespace.
    pub(crate) fn new(path: &'a Path) -> Self {
        Self {
            namespace: None,
            path,
            arguments: Vec::new(),
        }
    }

    /// Adds arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        // Logs are read as text, here and by people.
        command.env("NO_COLOR", "1");
        command.args(["--pdeathsig", "TERM", "--"]);
        if let Some(namespace) = self.namespace {
            command.args(["ip", "netns", "exec", namespace]);
        }
        // A group of its own: a terminal's Ctrl-C is for us, who then end the others in order.
        command
            .arg(self.path)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// As a user would type it.
    fn line(&self) -> String {
        let name = self
            .path
            .file_name()
            .unwrap_or(self.path.as_os_str())
            .to_string_lossy();
        self.arguments
            .iter()
            .fold(name.into_owned(), |line, argument| {
                line + " " + &argument.to_string_lossy()
            })
    }
}

struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

/// All programs of one run.
pub(crate) struct Processes {
    daemons: Vec<Daemon>,
    logs: PathBuf,
}

impl Processes {
    /// None yet; logs go to the folder `logs`.
    ///
    /// # Errors
    /// The kernel does not let us be a subreaper.
    pub(crate) fn new(logs: &Path) -> anyhow::Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("becoming a subreaper")?;
        Ok(Self {
            daemons: Vec::new(),
            logs: logs.to_owned(),
        })
    }

    /// Starts a daemon and returns its log, where both of its outputs go.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(&mut self, name: &str, program: &Program<'_>) -> anyhow::Result<PathBuf> {
        let log = fresh_file(&self.logs, name, "log");
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let errors = output
            .try_clone()
            .context("duplicating a log's descriptor")?;
        let child = program
            .command()
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| program.line())?;
        self.daemons.push(Daemon {
            name: name.to_owned(),
            child,
            log: log.clone(),
        });
        Ok(log)
    }

    /// Checks that every daemon still runs.
    ///
    /// # Errors
    /// Names the one that ended, with the end of its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for daemon in &mut self.daemons {
            if let Some(status) = daemon.child.try_wait().context("asking after a daemon")? {
                bail!(
                    "{} ended by itself ({status}){}",
                    daemon.name,
                    tail(&daemon.log)
                );
            }
        }
        Ok(())
    }

    /// Ends the daemon of that name.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let index = self.daemons.iter().position(|daemon| daemon.name == name);
        let mut daemon = self
            .daemons
            .remove(index.with_context(|| format!("no daemon {name}"))?);
        end(&mut daemon.child, Reach::Itself);
        Ok(())
    }

    /// Runs a command to its end and returns what it printed.
    ///
    /// # Errors
    /// It reports a failure (its own words are in the error), takes longer than `limit`, or is interrupted.
    pub(crate) fn run(&mut self, program: &Program<'_>, limit: Duration) -> anyhow::Result<String> {
        let line = program.line();
        let (status, output, errors) = bounded(program, limit)?;
        if !status.success() {
            let words = if errors.trim().is_empty() {
                output
            } else {
                errors
            };
            // The command's own failure is often a daemon's death, which is then the better message.
            self.check().with_context(|| line.clone())?;
            bail!("`{line}` ({status}): {}", words.trim());
        }
        Ok(output)
    }

    /// Runs a command that says for itself how far it is.
    ///
    /// # Errors
    /// It reports a failure, takes longer than `limit`, or is interrupted.
    pub(crate) fn run_aloud(
        &mut self,
        program: &Program<'_>,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let line = program.line();
        // Standard output is for the report alone.
        let mut child = program
            .command()
            .stdout(std::io::stderr())
            .spawn()
            .with_context(|| line.clone())?;
        let ended = Limit::new(&format!("`{line}`"), limit)
            .wait(|| child.try_wait().context("waiting for a command"));
        if ended.is_err() {
            end(&mut child, Reach::Group);
        }
        match ended? {
            status if status.success() => Ok(()),
            status => bail!("`{line}` ({status})"),
        }
    }

    /// Ends all daemons, the last one first.
    pub(crate) fn end_all(&mut self) {
        while let Some(mut daemon) = self.daemons.pop() {
            end(&mut daemon.child, Reach::Itself);
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.end_all();
        sweep();
    }
}

fn bounded(program: &Program<'_>, limit: Duration) -> anyhow::Result<(ExitStatus, String, String)> {
    let mut child = program
        .command()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| program.line())?;
    let output = child.stdout.take().expect("it was asked for above");
    let errors = child.stderr.take().expect("it was asked for above");
    // Both are read while it runs, or a command with much to say would wait for us for ever.
    let readers = (
        thread::spawn(|| everything(output)),
        thread::spawn(|| everything(errors)),
    );
    let line = program.line();
    let ended = Limit::new(&format!("`{line}`"), limit)
        .wait(|| child.try_wait().context("waiting for a command"));
    if ended.is_err() {
        end(&mut child, Reach::Group);
    }
    let text =
        |reader: thread::JoinHandle<String>| reader.join().expect("reading a pipe does not panic");
    let (output, errors) = (text(readers.0), text(readers.1));
    match ended {
        Ok(status) => Ok((status, output, errors)),
        Err(error) if errors.trim().is_empty() => Err(error),
        Err(error) => Err(error.context(errors.trim().to_owned())),
    }
}

fn everything(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What a broken pipe held so far is still worth showing.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whom the order to end goes to.
enum Reach {
    /// A daemon ends what it started itself, in its own order.
    Itself,
    /// A script waits for what it runs, which therefore has to be told as well.
    Group,
}

/// Asks a child to end, and kills it when it does not.
fn end(child: &mut Child, reach: Reach) {
    let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return;
    };
    // It may have ended by itself; then there is nobody to signal.
    let _ = match reach {
        Reach::Itself => rustix::process::kill_process(pid, Signal::TERM),
        Reach::Group => rustix::process::kill_process_group(pid, Signal::TERM),
    };
    let deadline = Instant::now() + ENDING;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        thread::sleep(super::wait::TICK);
    }
}

/// Ends what our daemons left behind and the kernel made our children.
fn sweep() {
    let deadline = Instant::now() + ENDING;
    loop {
        let orphans = children();
        if orphans.is_empty() {
            return;
        }
        let signal = if Instant::now() < deadline {
            Signal::TERM
        } else {
            Signal::KILL
        };
        for pid in orphans {
            let _ = rustix::process::kill_process(pid, signal);
            // An orphan that is gone meanwhile, or is not ours to wait for, needs nothing more.
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
        thread::sleep(super::wait::TICK);
    }
}

/// Our direct children, ended ones included.
fn children() -> Vec<Pid> {
    let Ok(folder) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = rustix::process::getpid().as_raw_nonzero().get().to_string();
    let pids = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything; the state and the parent follow it.
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.split_whitespace().nth(1) == Some(own.as_str()))
    })
    .filter_map(Pid::from_raw)
    .collect()
}

/// Waits, checking the daemons all the while.
///
/// # Errors
/// Interrupted, or a daemon ended.
pub(crate) fn stay_until_interrupted(processes: &mut Processes) -> anyhow::Result<()> {
    while !super::wait::interrupted() {
        processes.check()?;
        if tick().is_err() {
            break;
        }
    }
    Ok(())
}
