//! `boot`: a recorded desktop boot at a branch, from nothing held to everything held, and the same over peers.
//!
//! The trace is of version 1 of the desktop. So that a previous version can be held, version 2's disk is published first and version
//! 1's behind it: an update backwards, whose chunks are as alike as those of one forwards. Every case is replayed with the
//! guest's thinking scaled to a local boot of 15 s; the cold one with a profile also (`-nothink`) without any. The raw file itself and
//! qemu-nbd are read from the boot loader on; a branch brings kernel and initrd itself, inside the time, and its guest reads from there
//! on, as the raw file's does behind a server of the same kind (`warm`).
//!
//! The previous version has been booted at another branch before the next one is published (`cold-previous`): the next one begins with
//! what is carried over of its profile. Without any (`cold-previous-noprofile`) all that changed comes by demand.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::{Daemon, Program, TICK, pause, wait_for};
use crate::replay::{Disk, LOCAL_BOOT_S, Late, Outcome, Think, replay};
use crate::row::Metric;
use crate::session::{Recorder, SPLICE, Session, has_turn, rounds};
use crate::splice::{Branch, Datacenter, Place, fresh};
use crate::stage::{self, Line, OFFICE, PREPARING, Stage};
use crate::touched::{self, Touched};
use crate::trace::Trace;
use crate::workshop::Workshop;

/// 10,000 round trips of 20 ms and 415 MB at 100 Mbit/s are 235 s.
const REPLAY: Duration = Duration::from_secs(900);
/// A quick look does not wait for ten thousand round trips one after another.
const PEER_QUICK: Duration = Duration::from_secs(90);
/// Our cases, and the raw file's.
const OURS_S: f64 = 330.0;
const FILL: Duration = Duration::from_secs(1800);

/// Until what a boot taught has reached the datacenter. A boot counts as settled after 20 quiet seconds, or when its desktop ends.
const LEARN: Duration = Duration::from_secs(60);

/// Share of C·(1−p) that payload can have: the rest is packet headers.
const GOODPUT_SHARE: f64 = 0.95;

const NBD_PORT: u16 = 28_809;

const PROFILED: [(&str, Think); 2] = [
    ("cold-profile", Think::Scaled),
    ("cold-profile-nothink", Think::None),
];

/// Behind the previous version, and whether that one has been booted.
const PREVIOUS: [(&str, bool); 2] = [("cold-previous", true), ("cold-previous-noprofile", false)];

/// The least time in which a guest that has nothing can boot over a line: it thinks, and what it touches crosses, at best both at once.
pub(crate) fn cold_limit_s(line: &Line, zstd_bytes: f64, thinks_s: f64) -> f64 {
    let crossing_s = zstd_bytes / (line.bytes_per_s() * GOODPUT_SHARE);
    crossing_s.max(thinks_s) + line.rtt_ms / 1000.0
}

/// Runs the bench.
///
/// # Errors
/// Interrupted, or disks, line or trace cannot be had.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let quick = session.settings.quick;
    let rounds = rounds(quick);
    let qemu_nbd_s = if quick { 95.0 } else { 280.0 };
    let planned_s = 60.0 + rounds as f64 * OURS_S + qemu_nbd_s;
    let images = session.begin("boot", planned_s, 2)?;
    let touched = Touched::of(session, &images)?;
    let scratch = session.scratch("boot")?;
    let bench = Bench {
        guest: touched.trace.without_loader(),
        previous_guest: touched::trace_on(session, &images, 2)?.without_loader(),
        touched,
        stage: Stage::build(PREPARING, &scratch)?,
        workshop: session.workshop.clone(),
        scratch,
        disk: images.version(1),
        previous: images.version(2),
    };
    let keys: Vec<String> = (0..rounds).flat_map(our_keys).collect();
    let datacenter = if session.any_left(&keys) {
        match Datacenter::start(&bench.workshop, Place::Stage, "dc") {
            Ok(datacenter) => Some(datacenter),
            Err(error) => {
                session.miss("all cases", SPLICE, &format!("{error:#}"));
                None
            }
        }
    } else {
        None
    };
    let has_nbdkit = session.has("raw", "nbdkit", "install its Debian package");
    for round in 0..rounds {
        session.measure(&key("local", "raw", round), "raw", 20.0, |recorder| {
            let disk = Disk::File(&bench.disk);
            let outcome = replay(&bench.touched.trace, disk, Think::Scaled, REPLAY)?;
            put(recorder, "local", &outcome, LOCAL_BOOT_S);
            Ok(())
        })?;
        if has_nbdkit {
            session.measure(&key("warm", "raw", round), "raw", 25.0, |recorder| {
                bench.exported(recorder)
            })?;
        }
        if let Some(datacenter) = &datacenter {
            ours(session, &bench, datacenter, round)?;
        }
        if has_turn("qemu-nbd", round) {
            session.measure(
                &key("cold", "qemu-nbd", round),
                "qemu-nbd",
                qemu_nbd_s,
                |recorder| bench.qemu_nbd(recorder, quick),
            )?;
        }
    }
    session.miss(
        "all cases",
        "casync",
        "`casync mkdev` needs the kernel's nbd driver, and `casync mount` mounts no disk images",
    );
    if session.has(
        "desync",
        "desync",
        "it is not in Debian 12 and needs a newer Go than Debian's",
    ) {
        session.miss(
            "all cases",
            "desync",
            "its mount-index was not set up here; docs/performance.md says what it did elsewhere",
        );
    }
    Ok(())
}

fn key(case: &str, system: &str, round: usize) -> String {
    format!("{case}/{system}/{round}")
}

fn our_keys(round: usize) -> Vec<String> {
    let cases = PROFILED.map(|(case, _)| case);
    let previous = PREVIOUS.map(|(case, _)| case);
    let cases = cases.into_iter().chain(["cold"]).chain(previous);
    cases.map(|case| key(case, SPLICE, round)).collect()
}

fn put(recorder: &mut Recorder, case: &str, outcome: &Outcome, limit_s: f64) {
    recorder.put(case, Metric::Seconds, outcome.seconds, Some(limit_s));
    recorder.put(case, Metric::P50Us, outcome.p50_us, None);
    recorder.put(case, Metric::P99Us, outcome.p99_us, None);
}

/// A version as branches and datacenter name it.
#[derive(Debug, Clone)]
struct Version {
    number: u32,
    reference: String,
}

struct Bench {
    touched: Touched,
    /// The trace without what a branch reads for its machine by itself.
    guest: Trace,
    /// The same boot of the previous version.
    previous_guest: Trace,
    stage: Stage,
    workshop: Workshop,
    scratch: PathBuf,
    /// The disk that the trace is of.
    disk: PathBuf,
    /// What a branch may hold of before it.
    previous: PathBuf,
}

impl Bench {
    /// The raw file behind a server of the kind that a branch is, from the page cache.
    fn exported(&self, recorder: &mut Recorder) -> Result<()> {
        let socket = self.scratch.join("raw.sock");
        let _ = std::fs::remove_file(&socket);
        let server = Program::new("nbdkit")
            .args(["-f", "-r", "-U"])
            .arg(&socket)
            .arg("file")
            .arg(&self.disk)
            .start(&self.scratch.join("nbdkit.log"))?;
        wait_listening(&server, &socket)?;
        let disk = Disk::Nbd {
            socket: &socket,
            export: "",
        };
        replay(&self.guest, disk, Think::None, REPLAY).context("warming")?;
        let outcome = replay(&self.guest, disk, Think::Scaled, REPLAY)?;
        put(recorder, "warm", &outcome, LOCAL_BOOT_S);
        Ok(())
    }

    /// One boot of a fresh desktop, from the moment when it is asked for: kernel and initrd cross first, and a profile is streamed
    /// from then on. `crossing` is what must cross at least.
    fn desktop(
        &self,
        recorder: &mut Recorder,
        case: &str,
        branch: &Branch,
        think: Think,
        crossing: Option<f64>,
    ) -> Result<()> {
        let name = fresh("d");
        self.stage.set(OFFICE);
        let booted = self.stage.counted(|| {
            let wire = self.stage.wire_bytes();
            let booted = boot_desktop(branch, &name, &self.guest, think)?;
            Ok((booted, (self.stage.wire_bytes() - wire) as f64))
        });
        self.stage.set(PREPARING);
        let ((outcome, started_s), wire) = booted?;
        let thinks_s = if think == Think::Scaled {
            LOCAL_BOOT_S
        } else {
            0.0
        };
        let limit_s = crossing.map_or(thinks_s, |bytes| cold_limit_s(&OFFICE, bytes, thinks_s));
        put(recorder, case, &outcome, limit_s);
        recorder.put(case, Metric::WireBytes, wire, crossing);
        recorder.put(&format!("{case}-start"), Metric::Seconds, started_s, None);
        // What the boot taught is noted when it ends.
        pause(Duration::from_secs(1))?;
        branch.stop_desktop(&name)
    }

    /// An image of its own with these disks; the version is the last. The store knows their chunks after the first time.
    fn publish(&self, datacenter: &Datacenter, disks: &[&Path]) -> Result<String> {
        let image = fresh("i");
        datacenter.create(&image)?;
        for disk in disks {
            datacenter.publish(&image, disk)?;
        }
        Ok(image)
    }

    /// Has a branch that knows a version, and holds all of it if it is `whole`. It joins over `line`: a link whose line becomes another
    /// goes on for up to 16 s by the round trip that it had, which is not what is to be measured.
    fn at_branch<T>(
        &self,
        datacenter: &Datacenter,
        version: &Version,
        line: Line,
        whole: bool,
        work: impl FnOnce(&mut Branch) -> Result<T>,
    ) -> Result<T> {
        self.stage.set(line);
        let name = fresh("b");
        let done = (|| {
            let mut branch = Branch::join(&self.workshop, datacenter, &name)?;
            datacenter.assign(&name, &version.reference, whole)?;
            branch.wait_known(version.number)?;
            if whole {
                branch.wait_complete(version.number, FILL)?;
            }
            work(&mut branch)
        })();
        self.stage.set(PREPARING);
        self.workshop.discard(&name);
        done
    }

    /// qemu-nbd at the branch with copy-on-read over an NBD server at the datacenter: what one can build of QEMU's parts.
    fn qemu_nbd(&self, recorder: &mut Recorder, quick: bool) -> Result<()> {
        self.stage.set(PREPARING);
        let log = self.scratch.join("qemu-nbd.log");
        let port = NBD_PORT.to_string();
        let server = Program::new("qemu-nbd")
            .args(["-r", "-t", "-f", "raw", "-e", "8"])
            .args(["-b", stage::DATACENTER_ADDRESS, "-p", &port])
            .arg(&self.disk)
            .inside(stage::DATACENTER)
            .start(&log)?;
        let (cache, socket) = (
            self.scratch.join("cache.qcow2"),
            self.scratch.join("cor.sock"),
        );
        for old in [&cache, &socket] {
            let _ = std::fs::remove_file(old);
        }
        let remote = format!("nbd://{}:{port}", stage::DATACENTER_ADDRESS);
        let create = Program::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &remote])
            .arg(&cache)
            .inside(stage::BRANCH);
        wait_for("qemu-nbd", Duration::from_secs(20), TICK * 10, || {
            server.check()?;
            Ok(create.run(&self.scratch, Duration::from_secs(20)).ok())
        })?;
        let front = front(&cache, &socket).start(&log)?;
        wait_listening(&front, &socket)?;
        let disk = Disk::Nbd {
            socket: &socket,
            export: "",
        };
        if quick {
            return self.peer(recorder, "cold", disk, PEER_QUICK);
        }
        self.peer(recorder, "cold", disk, REPLAY)?;
        self.peer(recorder, "warm", disk, REPLAY)
    }

    /// Replays over the line and counts what crosses it. One that takes too long is recorded as what it took at least.
    fn peer(
        &self,
        recorder: &mut Recorder,
        case: &str,
        disk: Disk<'_>,
        limit: Duration,
    ) -> Result<()> {
        self.stage.set(OFFICE);
        let replayed = self.stage.counted(|| {
            let wire = self.stage.wire_bytes();
            let outcome = replay(&self.touched.trace, disk, Think::Scaled, limit);
            let wire = (self.stage.wire_bytes() - wire) as f64;
            match outcome {
                Ok(outcome) => Ok(Ok((outcome, wire))),
                Err(error) => error.downcast::<Late>().map(Err),
            }
        });
        self.stage.set(PREPARING);
        let crossing = (case == "cold").then_some(self.touched.zstd_bytes);
        let limit_s = crossing.map_or(LOCAL_BOOT_S, |bytes| {
            cold_limit_s(&OFFICE, bytes, LOCAL_BOOT_S)
        });
        match replayed? {
            Ok((outcome, wire)) => {
                put(recorder, case, &outcome, limit_s);
                recorder.put(case, Metric::WireBytes, wire, crossing);
            }
            Err(late) => {
                let seconds = limit.as_secs_f64();
                recorder.put(case, Metric::Seconds, seconds, Some(limit_s));
                recorder.note(&format!(
                    "{case} qemu-nbd was ended after {seconds:.0} s with {} of {} reads answered: it takes longer than its figure",
                    late.answered,
                    self.touched.trace.reads.len()
                ));
            }
        }
        Ok(())
    }
}

fn wait_listening(server: &Daemon, socket: &Path) -> Result<()> {
    wait_for("the NBD server", Duration::from_secs(20), TICK, || {
        server.check()?;
        Ok(socket.exists().then_some(()))
    })
}

/// Asks for a desktop and is its guest. The seconds are from the asking on; those until the desktop was there are returned too.
///
/// # Errors
/// It does not start, or a read fails.
pub(crate) fn boot_desktop(
    branch: &Branch,
    name: &str,
    guest: &Trace,
    think: Think,
) -> Result<(Outcome, f64)> {
    let begun = Instant::now();
    let export = branch.start_desktop(name)?;
    let started_s = begun.elapsed().as_secs_f64();
    let socket = branch.nbd_socket();
    let disk = Disk::Nbd {
        socket: &socket,
        export: &export,
    };
    let mut outcome = replay(guest, disk, think, REPLAY)?;
    outcome.seconds += started_s;
    Ok((outcome, started_s))
}

/// Cold, warm, with the boot's profile, and cold behind the previous version; each at a branch that holds just that.
fn ours(session: &mut Session, bench: &Bench, datacenter: &Datacenter, round: usize) -> Result<()> {
    let touched = Some(bench.touched.zstd_bytes);
    // A version's first boot teaches its profile, so a cold boot is of a version that has not booted yet.
    let mut taught: Option<Version> = None;
    session.measure(&key("cold", SPLICE, round), SPLICE, 130.0, |recorder| {
        let version = new_version(bench, datacenter)?;
        bench.at_branch(datacenter, &version, OFFICE, false, |branch| {
            bench.desktop(recorder, "cold", branch, Think::Scaled, touched)?;
            taught = Some(version.clone());
            datacenter.assign(branch.name(), &version.reference, true)?;
            branch.wait_complete(version.number, FILL)?;
            bench.desktop(recorder, "warm", branch, Think::Scaled, None)
        })
    })?;
    for (case, think) in PROFILED {
        session.measure(&key(case, SPLICE, round), SPLICE, 40.0, |recorder| {
            let version = match &taught {
                Some(version) => version.clone(),
                None => taught_version(bench, datacenter)?,
            };
            taught = Some(version.clone());
            wait_profile(datacenter, &version)?;
            bench.at_branch(datacenter, &version, OFFICE, false, |branch| {
                bench.desktop(recorder, case, branch, think, touched)
            })
        })?;
    }
    for (case, booted) in PREVIOUS {
        session.measure(&key(case, SPLICE, round), SPLICE, 100.0, |recorder| {
            behind_previous(bench, datacenter, recorder, case, booted)
        })?;
    }
    Ok(())
}

/// A branch holds all of the previous version when the next one, of which it has nothing else, is booted. Where desktops `booted` the
/// previous version before the next was published, its profile was carried over.
fn behind_previous(
    bench: &Bench,
    datacenter: &Datacenter,
    recorder: &mut Recorder,
    case: &str,
    booted: bool,
) -> Result<()> {
    let image = bench.publish(datacenter, &[&bench.previous])?;
    let version = |number: u32| Version {
        number,
        reference: format!("{image}@{number}"),
    };
    let (previous, next) = (version(1), version(2));
    if booted {
        teach(bench, datacenter, &previous, &bench.previous_guest)?;
    }
    datacenter.publish(&image, &bench.disk)?;
    bench.at_branch(datacenter, &previous, PREPARING, true, |branch| {
        // As after any publish: the update is there when branches are told of it.
        datacenter.encode(&previous.reference, &next.reference)?;
        branch.stop();
        bench.stage.set(OFFICE);
        branch.restart()?;
        datacenter.assign(branch.name(), &next.reference, false)?;
        branch.wait_known(next.number)?;
        bench.desktop(recorder, case, branch, Think::Scaled, None)
    })
}

fn new_version(bench: &Bench, datacenter: &Datacenter) -> Result<Version> {
    let image = bench.publish(datacenter, &[&bench.disk])?;
    Ok(Version {
        number: 1,
        reference: format!("{image}@1"),
    })
}

/// Boots a version at a branch of its own, so that it has a boot profile.
fn teach(bench: &Bench, datacenter: &Datacenter, version: &Version, guest: &Trace) -> Result<()> {
    bench.at_branch(datacenter, version, PREPARING, false, |branch| {
        let name = fresh("d");
        boot_desktop(branch, &name, guest, Think::None)?;
        pause(Duration::from_secs(1))?;
        branch.stop_desktop(&name)
    })?;
    wait_profile(datacenter, version)
}

fn wait_profile(datacenter: &Datacenter, version: &Version) -> Result<()> {
    wait_for("a boot profile of the first boot", LEARN, TICK * 25, || {
        Ok(has_profile(datacenter, version)?.then_some(()))
    })
}

/// A version that has booted, where a run goes on behind the boot that was measured.
fn taught_version(bench: &Bench, datacenter: &Datacenter) -> Result<Version> {
    let version = new_version(bench, datacenter)?;
    teach(bench, datacenter, &version, &bench.guest)?;
    Ok(version)
}

/// Whether the traced version has a boot profile of its own boots.
fn has_profile(datacenter: &Datacenter, version: &Version) -> Result<bool> {
    let version = datacenter.splice(
        &["version", "show", &version.reference],
        Duration::from_secs(60),
    )?;
    let profile = &version["profile"];
    Ok(profile["counter"].as_u64() > Some(0) && profile["boots"].as_u64() > Some(0))
}

fn front(cache: &Path, socket: &Path) -> Program {
    let options = format!(
        "driver=copy-on-read,file.driver=qcow2,file.file.driver=file,file.file.filename={}",
        cache.display()
    );
    Program::new("qemu-nbd")
        .args(["-t", "-e", "8", "-k"])
        .arg(socket)
        .args(["--image-opts", &options])
        .inside(stage::BRANCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_boot_is_bound_by_the_line_or_by_the_guest() {
        // 95 Mbit/s of payload: 23.75 MB are 2 s.
        assert!((cold_limit_s(&OFFICE, 23.75e6, 0.0) - 2.02).abs() < 1e-9);
        assert!((cold_limit_s(&OFFICE, 23.75e6, LOCAL_BOOT_S) - 15.02).abs() < 1e-9);
    }
}
