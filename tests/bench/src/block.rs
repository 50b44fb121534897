//! `read` and `write`: a branch's NBD exports, qemu-nbd and nbdkit on a raw file, and the raw file itself, under fio.
//!
//! The same disk (for writing, a copy each), the same jobs, one after the other in each round. `-restarted`: the server was restarted a moment ago, so that
//! what it keeps in its own memory is gone; the page cache stays, for all of them alike.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::fio::{Figures, Job, READS, SPAN_MIB, Target, WRITES};
use crate::images::Images;
use crate::process::{Daemon, Program, TICK, wait_for};
use crate::row::{Sample, median};
use crate::session::{SPLICE, Session, rounds};
use crate::splice::{Branch, Datacenter, POOL, Place, fresh};
use crate::workshop::Workshop;

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
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    fn jobs(self) -> &'static [Job] {
        match self {
            Self::Read => &READS,
            Self::Write => &WRITES,
        }
    }
}

/// What serves the disk.
enum Server {
    Raw(PathBuf),
    /// Of the branch that both benches share.
    Splice {
        export: String,
        /// What is written is its disk; a version has none.
        desktop: Option<String>,
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
    fn restart(&mut self, ours: &mut Option<(Datacenter, Branch)>) -> Result<()> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Splice { export, .. } => {
                let (_, branch) = ours.as_mut().context("there is no branch")?;
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

    /// Gives what was written back. A desktop's overlay is a log that grows with every write; files are written in place.
    fn renew(&mut self, ours: &Option<(Datacenter, Branch)>) -> Result<()> {
        if let Self::Splice {
            export,
            desktop: Some(desktop),
        } = self
        {
            let (_, branch) = ours.as_ref().context("there is no branch")?;
            branch.stop_desktop(desktop)?;
            branch.delete_desktop(desktop)?;
            *desktop = fresh("w");
            *export = branch.start_desktop(desktop)?;
        }
        Ok(())
    }

    fn run(
        &self,
        ours: &Option<(Datacenter, Branch)>,
        job: &Job,
        seconds: f64,
        scratch: &Path,
    ) -> Result<Figures> {
        match self {
            Self::Raw(path) => job.run(&Target::File(path), seconds, scratch),
            Self::Splice { export, .. } => {
                let (_, branch) = ours.as_ref().context("there is no branch")?;
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

/// Runs one bench or both; both share a branch.
///
/// # Errors
/// Interrupted, or the disks cannot be made.
pub(crate) fn run(session: &mut Session, ways: &[Way]) -> Result<()> {
    let mut ours = None;
    for (index, way) in ways.iter().enumerate() {
        measure(session, *way, index == 0, &mut ours)?;
    }
    Ok(())
}

fn measure(
    session: &mut Session,
    way: Way,
    is_first: bool,
    ours: &mut Option<(Datacenter, Branch)>,
) -> Result<()> {
    let jobs = way.jobs();
    let quick = session.settings.quick;
    let rounds = rounds(quick);
    let seconds = if quick { 2.0 } else { 5.0 };
    let per_job = seconds + 1.5;
    let jobs_all = (jobs.len() * 2 * SYSTEMS.len() * rounds) as f64;
    let planned_s = if is_first { 60.0 } else { 20.0 } + jobs_all * per_job;
    let images = if is_first {
        session.begin(way.name(), planned_s, 1)?
    } else {
        session.enter(way.name(), planned_s, 1)?
    };
    let scratch = session.scratch("fio")?;

    let mut servers = Vec::new();
    for system in SYSTEMS {
        let keys: Vec<String> = (0..rounds)
            .flat_map(|round| jobs.iter().flat_map(move |job| keys_of(job, system, round)))
            .collect();
        if !session.any_left(&keys) {
            continue;
        }
        if matches!(system, "qemu-nbd" | "nbdkit")
            && !session.has(system, system, "install its Debian package")
        {
            continue;
        }
        eprintln!("==> preparing {system}");
        let prepared = if system == SPLICE {
            prepare_ours(&session.workshop, &images, way, ours)
        } else {
            prepare(&session.workshop, &images, way, system)
        };
        match prepared {
            Ok(server) => servers.push((system, server)),
            Err(error) => session.miss("all cases", system, &format!("{error:#}")),
        }
    }
    for round in 0..rounds {
        for job in jobs {
            for (system, server) in &mut servers {
                let keys = keys_of(job, system, round);
                if way == Way::Write
                    && session.any_left(&keys)
                    && let Err(error) = server.renew(ours)
                {
                    session.miss(job.case, system, &format!("a new desktop: {error:#}"));
                }
            }
            for (index, suffix) in ["", "-restarted"].iter().enumerate() {
                for (system, server) in &mut servers {
                    let key = &keys_of(job, system, round)[index];
                    let case = format!("{}{suffix}", job.case);
                    session.measure(key, system, per_job, |recorder| {
                        if !suffix.is_empty() {
                            server.restart(ours)?;
                        }
                        if way == Way::Write {
                            // What others wrote must not be flushed in this one's time.
                            Program::new("sync")
                                .arg("-f")
                                .arg(&scratch)
                                .run(&scratch, FILL)?;
                        }
                        server
                            .run(ours, job, seconds, &scratch)?
                            .record(recorder, &case);
                        Ok(())
                    })?;
                }
            }
        }
        // Whoever comes first finds another disk than whoever comes last.
        let first = usize::from(!servers.is_empty());
        servers.rotate_left(first);
    }
    Ok(())
}

/// Gives every row what the file itself does without a server: the median of its rounds, restarted or not. Of sequential reads and
/// writes, the best: they depend on how the kernel happens to read ahead, and servers read ahead too.
pub(crate) fn with_limits(samples: &mut [Sample]) {
    let stem = |case: &str| case.strip_suffix("-restarted").unwrap_or(case).to_owned();
    let raw: Vec<Sample> = samples
        .iter()
        .filter(|sample| sample.system == "raw")
        .cloned()
        .collect();
    for sample in samples.iter_mut().filter(|sample| sample.system != "raw") {
        let mut values: Vec<f64> = raw
            .iter()
            .filter(|raw| raw.metric == sample.metric && stem(&raw.case) == stem(&sample.case))
            .map(|raw| raw.value)
            .collect();
        values.sort_by(f64::total_cmp);
        sample.limit = match (&values[..], sample.metric.more_is_better()) {
            ([], _) => None,
            ([.., best], true) if stem(&sample.case) == "seq1m" => Some(*best),
            ([best, ..], false) if stem(&sample.case) == "seq1m" => Some(*best),
            (values, _) => Some(median(values)),
        };
    }
}

fn keys_of(job: &Job, system: &str, round: usize) -> [String; 2] {
    ["", "-restarted"].map(|suffix| format!("{}{suffix}/{system}/{round}", job.case))
}

/// Our export: of the whole version at a branch for reading, of a desktop of it for writing.
fn prepare_ours(
    workshop: &Workshop,
    images: &Images,
    way: Way,
    ours: &mut Option<(Datacenter, Branch)>,
) -> Result<Server> {
    if ours.is_none() {
        // Of an attempt that did not come so far.
        workshop.discard("dc");
        workshop.discard("br");
        let datacenter = Datacenter::start(workshop, Place::Loopback, "dc")?;
        datacenter.create("desktop")?;
        datacenter.publish("desktop", &images.version(1))?;
        let branch = Branch::join(workshop, &datacenter, "br")?;
        datacenter.assign(branch.name(), "desktop@1", true)?;
        branch.wait_known(1)?;
        branch.wait_complete(1, FILL)?;
        *ours = Some((datacenter, branch));
    }
    let (_, branch) = ours.as_ref().context("it was just prepared")?;
    match way {
        Way::Read => {
            let export = format!("pool/{POOL}");
            // As the raw file: what a fill wrote a while ago may have left the page cache, and this is about servers, not disks.
            Program::new("nbdcopy")
                .args([branch.uri(&export).as_str(), "null:"])
                .run(&workshop.scratch("warm")?, FILL)
                .context("reading the export once")?;
            Ok(Server::Splice {
                export,
                desktop: None,
            })
        }
        Way::Write => {
            let desktop = fresh("w");
            Ok(Server::Splice {
                export: branch.start_desktop(&desktop)?,
                desktop: Some(desktop),
            })
        }
    }
}

fn prepare(workshop: &Workshop, images: &Images, way: Way, system: &'static str) -> Result<Server> {
    let v1 = images.version(1);
    let folder = workshop.scratch(system)?;
    let disk = match way {
        Way::Read => v1,
        // One each: what another's flush left dirty or allocated must not be in this one's time.
        Way::Write => copy(&folder, &v1)?,
    };
    if system == "raw" {
        if way == Way::Read {
            warm(&folder, &disk)?;
        }
        return Ok(Server::Raw(disk));
    }
    let mut server = Server::Peer {
        name: system,
        disk,
        socket: folder.join("nbd.sock"),
        log: folder.join("log"),
        read_only: way == Way::Read,
        daemon: None,
    };
    server.restart(&mut None)?;
    Ok(server)
}

/// A copy of the part that jobs touch, with every block allocated and on the disk before anybody is measured.
fn copy(folder: &Path, disk: &Path) -> Result<PathBuf> {
    let to = folder.join("disk.raw");
    Program::new("dd")
        .args(["bs=1M", "conv=fsync", "status=none"])
        .arg(format!("count={SPAN_MIB}"))
        .arg(format!("if={}", disk.display()))
        .arg(format!("of={}", to.display()))
        .run(folder, FILL)
        .context("copying the disk")?;
    Ok(to)
}

/// Reads that part once, so that the page cache holds it.
fn warm(folder: &Path, disk: &Path) -> Result<()> {
    Program::new("dd")
        .args(["bs=1M", "of=/dev/null", "status=none"])
        .arg(format!("count={SPAN_MIB}"))
        .arg(format!("if={}", disk.display()))
        .run(folder, FILL)
        .map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::row::Metric;

    #[test]
    fn the_limit_is_the_files_own_figure() {
        let sample = |case: &str, system: &str, value| Sample {
            case: case.into(),
            system: system.into(),
            metric: Metric::MbPerS,
            value,
            limit: None,
        };
        let mut samples = [
            sample("rand4k-qd1", "raw", 300.0),
            sample("rand4k-qd1-restarted", "raw", 200.0),
            sample("seq1m", "raw", 600.0),
            sample("seq1m-restarted", "raw", 900.0),
            sample("rand4k-qd1-restarted", "nbdkit", 90.0),
            sample("seq1m", "splice", 700.0),
            sample("write4k-flush", "splice", 2.0),
        ];
        with_limits(&mut samples);
        let limits = samples.each_ref().map(|sample| sample.limit);
        assert_eq!(limits[..4], [None; 4]);
        assert_eq!(limits[4..], [Some(250.0), Some(900.0), None]);
    }
}
