//! `read` and `write`: a branch's NBD exports, qemu-nbd and nbdkit on a raw file, and the raw file itself, under fio.
//!
//! The same disk, the same jobs, one after the other in each round. `-restarted`: the server was restarted a moment ago, so that
//! what it keeps in its own memory is gone; the page cache stays, for all of them alike.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::fio::{Figures, Job, READS, Target, WRITES};
use crate::images::Images;
use crate::process::{Daemon, Program, TICK, wait_for};
use crate::session::{SPLICE, Session};
use crate::splice::{Branch, Datacenter, POOL, Place};

const SYSTEMS: [&str; 4] = ["raw", SPLICE, "qemu-nbd", "nbdkit"];

/// Sequential filling over loopback: at 50 MB/s on a busy machine, with room.
const FILL: Duration = Duration::from_secs(900);

/// Reading or writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

impl Way {
    fn jobs(self) -> &'static [Job] {
        match self {
            Self::Read => &READS,
            Self::Write => &WRITES,
        }
    }
}

/// What serves the disk.
// A handful live at a time: what a boxed variant would save does not matter.
#[allow(clippy::large_enum_variant)]
enum Server {
    Raw(PathBuf),
    Splice {
        branch: Branch,
        _datacenter: Datacenter,
        export: String,
    },
    /// Of a raw file, at a Unix socket.
    Peer {
        name: &'static str,
        disk: PathBuf,
        socket: PathBuf,
        log: PathBuf,
        read_only: bool,
        daemon: Option<Daemon>,
    },
}

impl Server {
    fn restart(&mut self) -> Result<()> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Splice { branch, export, .. } => {
                branch.restart()?;
                let probe = Program::new("nbdinfo").args(["--size", &branch.uri(export)]);
                let scratch = std::env::temp_dir();
                wait_for("the export", FILL, TICK * 5, || {
                    Ok(probe.run(&scratch, FILL).ok())
                })
                .map(drop)
            }
            Self::Peer {
                name,
                disk,
                socket,
                log,
                read_only,
                daemon,
            } => {
                if let Some(daemon) = daemon.take() {
                    daemon.stop();
                }
                let _ = std::fs::remove_file(&*socket);
                *daemon = Some(peer(name, disk, socket, *read_only).start(log)?);
                wait_for(name, Duration::from_secs(30), TICK, || {
                    Ok(socket.exists().then_some(()))
                })
            }
        }
    }

    fn run(&self, job: &Job, seconds: f64, scratch: &Path) -> Result<Figures> {
        match self {
            Self::Raw(path) => job.run(&Target::File(path), seconds, scratch),
            Self::Splice { branch, export, .. } => {
                job.run(&Target::Nbd(&branch.uri(export)), seconds, scratch)
            }
            Self::Peer { socket, .. } => {
                let uri = format!("nbd+unix:///?socket={}", socket.display());
                job.run(&Target::Nbd(&uri), seconds, scratch)
            }
        }
    }
}

fn peer(name: &str, disk: &Path, socket: &Path, read_only: bool) -> Program {
    let only = read_only.then_some("-r");
    if name == "qemu-nbd" {
        // Its page cache is the host's, as the others' is; flushes reach the disk.
        Program::new(name)
            .args(["-f", "raw", "-t", "-e", "8", "--cache=writeback", "-k"])
            .arg(socket)
            .args(only)
            .arg(disk)
    } else {
        Program::new(name)
            .args(["-f", "-U"])
            .arg(socket)
            .args(only)
            .arg("file")
            .arg(disk)
    }
}

/// Runs the bench.
///
/// # Errors
/// Interrupted, or the disks cannot be made.
pub(crate) fn run(session: &mut Session, way: Way) -> Result<()> {
    let (name, jobs) = match way {
        Way::Read => ("read", way.jobs()),
        Way::Write => ("write", way.jobs()),
    };
    let (rounds, seconds) = if session.settings.quick {
        (1, 2.0)
    } else {
        (3, 10.0)
    };
    let per_job = seconds + 1.5;
    let jobs_all = (jobs.len() * 2 * SYSTEMS.len() * rounds) as f64;
    session.begin(name, 60.0 + jobs_all * per_job)?;
    let images = Images::ready(session, 1)?;
    let scratch = session.scratch("fio")?;

    let mut servers = Vec::new();
    for system in SYSTEMS {
        let keys: Vec<String> = (0..rounds)
            .flat_map(|round| jobs.iter().flat_map(move |job| keys_of(job, system, round)))
            .collect();
        // The raw file's figures are the others' limits.
        if !session.any_left(&keys) && system != "raw" {
            continue;
        }
        if matches!(system, "qemu-nbd" | "nbdkit")
            && !session.has(system, system, "install its Debian package")
        {
            continue;
        }
        eprintln!("==> preparing {system}");
        match prepare(session, &images, way, system) {
            Ok(server) => servers.push((system, server)),
            Err(error) => session.miss("all cases", system, &format!("{error:#}")),
        }
    }
    for round in 0..rounds {
        for job in jobs {
            for (index, suffix) in ["", "-restarted"].iter().enumerate() {
                for (system, server) in &mut servers {
                    let key = &keys_of(job, system, round)[index];
                    let case = format!("{}{suffix}", job.case);
                    let limit = raw_of(session, job, round);
                    session.measure(key, system, per_job, |recorder| {
                        if !suffix.is_empty() {
                            server.restart()?;
                        }
                        let figures = server.run(job, seconds, &scratch)?;
                        figures.record(recorder, &case, limit.as_ref());
                        Ok(())
                    })?;
                }
            }
        }
    }
    Ok(())
}

fn keys_of(job: &Job, system: &str, round: usize) -> [String; 2] {
    ["", "-restarted"].map(|suffix| format!("{}{suffix}/{system}/{round}", job.case))
}

/// The raw file's figures of the same round, once they are there.
fn raw_of(session: &Session, job: &Job, round: usize) -> Option<Figures> {
    let samples = session.samples_of(
        if is_write(job) { "write" } else { "read" },
        &keys_of(job, "raw", round)[0],
    )?;
    Figures::of(samples)
}

fn is_write(job: &Job) -> bool {
    WRITES.contains(job)
}

fn prepare(session: &Session, images: &Images, way: Way, system: &'static str) -> Result<Server> {
    let v1 = images.version(1);
    if system == SPLICE {
        let datacenter = Datacenter::start(session, Place::Loopback, "dc")?;
        datacenter.create("desktop")?;
        datacenter.publish("desktop", &v1)?;
        let branch = Branch::join(session, &datacenter, "br")?;
        datacenter.assign(branch.name(), "desktop@1", true)?;
        branch.wait_known(1)?;
        branch.wait_complete(1, FILL)?;
        let export = match way {
            Way::Read => format!("pool/{POOL}"),
            Way::Write => branch.start_desktop("bench")?,
        };
        return Ok(Server::Splice {
            branch,
            _datacenter: datacenter,
            export,
        });
    }
    let disk = match way {
        Way::Read => v1,
        // One after another on one copy: a page cache of their own none of them has.
        Way::Write => copy(session, &v1)?,
    };
    if system == "raw" {
        if way == Way::Read {
            warm(session, &disk)?;
        }
        return Ok(Server::Raw(disk));
    }
    let folder = session.scratch(system)?;
    let mut server = Server::Peer {
        name: system,
        disk,
        socket: folder.join("nbd.sock"),
        log: folder.join("log"),
        read_only: way == Way::Read,
        daemon: None,
    };
    server.restart()?;
    Ok(server)
}

/// A sparse copy of the disk, on its way to the disk before anybody is measured.
fn copy(session: &Session, disk: &Path) -> Result<PathBuf> {
    let folder = session.scratch("copy")?;
    let to = folder.join("disk.raw");
    if to.exists() {
        return Ok(to);
    }
    let limit = Duration::from_secs(600);
    let copy = Program::new("cp")
        .args(["--sparse=always", "--"])
        .arg(disk)
        .arg(&to);
    copy.run(&folder, limit).context("copying the disk")?;
    Program::new("sync").arg(&to).run(&folder, limit)?;
    Ok(to)
}

/// Reads the disk once, so that the page cache holds what it can.
fn warm(session: &Session, disk: &Path) -> Result<()> {
    let folder = session.scratch("raw")?;
    let limit = Duration::from_secs(600);
    Program::new("dd")
        .args(["bs=1M", "count=3500", "of=/dev/null", "status=none"])
        .arg(format!("if={}", disk.display()))
        .run(&folder, limit)
        .map(drop)
}
