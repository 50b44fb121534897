//! `boot`: a recorded desktop boot at a branch, from nothing held to everything held, and the same over peers.
//!
//! The trace is of version 1 of the desktop. So that a previous version can be held, version 2's disk is published first and version
//! 1's behind it: an update backwards, whose chunks are as alike as those of one forwards. Every case is replayed with the
//! guest's thinking scaled to a local boot of 15 s, and (`-nothink`) without any. Peers and the raw file are read from the boot loader
//! on; a branch brings kernel and initrd itself, inside the time, and its guest reads from there on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::images::Images;
use crate::process::{Program, TICK, pause, wait_for};
use crate::replay::{Disk, LOCAL_BOOT_S, Outcome, Think, replay};
use crate::row::Metric;
use crate::session::{Recorder, SPLICE, Session};
use crate::splice::{Branch, Datacenter, Place};
use crate::stage::{self, OFFICE, PREPARING, Stage};
use crate::trace::Trace;

/// The recorded boot, in the tree.
const TRACE: &str = "tests/bench/traces/debian12-xfce.trace.gz";

/// 10,000 round trips of 20 ms and 415 MB at 100 Mbit/s are 235 s.
const REPLAY: Duration = Duration::from_secs(900);
const FILL: Duration = Duration::from_secs(1800);

/// Until what a boot taught has reached the datacenter and the next branch. A boot counts as settled after 20 quiet seconds.
const LEARN: Duration = Duration::from_secs(30);

const NBD_PORT: u16 = 28_809;

const THINKS: [(Think, &str); 2] = [(Think::Scaled, ""), (Think::None, "-nothink")];

/// Reads the trace in the tree.
///
/// # Errors
/// It is not there, or is none.
pub(crate) fn trace(session: &Session) -> Result<Trace> {
    Trace::load(&session.settings.tree.join(TRACE))
}

/// Runs the bench.
///
/// # Errors
/// Interrupted, or disks, line or trace cannot be had.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rounds = if session.settings.quick { 1 } else { 3 };
    let each = if session.settings.quick {
        450.0
    } else {
        1000.0
    };
    session.begin("boot", 60.0 + rounds as f64 * each)?;
    let images = Images::ready(session, 2)?;
    let trace = trace(session)?;
    let scratch = session.scratch("boot")?;
    let stage = Stage::build(PREPARING, &scratch)?;
    let bench = Bench {
        guest: trace.without_loader(),
        trace,
        stage,
        scratch,
        disk: images.version(1),
        previous: images.version(2),
    };
    eprintln!(
        "==> trace: {} reads, {:.0} MB of distinct blocks",
        bench.trace.reads.len(),
        bench.trace.distinct_bytes() as f64 / 1e6
    );
    let keys: Vec<String> = (0..rounds).flat_map(all_keys).collect();
    let datacenter = if session.any_left(&keys) {
        Some(Datacenter::start(session, Place::Stage, "dc")?)
    } else {
        None
    };
    for round in 0..rounds {
        for (think, suffix) in THINKS {
            let key = format!("local/raw/{round}{suffix}");
            session.measure(&key, "raw", 20.0, |recorder| {
                let outcome = replay(&bench.trace, Disk::File(&bench.disk), think, REPLAY)?;
                bench.put(recorder, &format!("local{suffix}"), &outcome, 0.0, think);
                Ok(())
            })?;
            if let Some(datacenter) = &datacenter {
                ours(session, &bench, datacenter, round, think, suffix)?;
            }
            // Ten thousand round trips one after another; a quick look takes them once.
            if think == Think::Scaled || !session.settings.quick {
                qemu_nbd(session, &bench, round, think, suffix)?;
            }
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

fn all_keys(round: usize) -> Vec<String> {
    let systems = [
        "local/raw",
        "cold/splice",
        "cold-previous/splice",
        "cold/qemu-nbd",
    ];
    systems
        .iter()
        .flat_map(|system| THINKS.map(|(_, suffix)| format!("{system}/{round}{suffix}")))
        .collect()
}

struct Bench {
    trace: Trace,
    /// Without what a branch reads for its machine by itself.
    guest: Trace,
    stage: Stage,
    scratch: PathBuf,
    /// The disk that the trace is of.
    disk: PathBuf,
    /// What a branch may hold of before it.
    previous: PathBuf,
}

impl Bench {
    fn put(&self, recorder: &mut Recorder, case: &str, outcome: &Outcome, wire: f64, think: Think) {
        let thought = if think == Think::Scaled {
            LOCAL_BOOT_S
        } else {
            0.0
        };
        // Whatever crossed the line took its time there, and the guest thinks all the same; at best both at once.
        let limit = if wire > 0.0 {
            OFFICE.seconds_for(wire).max(thought)
        } else {
            thought
        };
        recorder.put(case, Metric::Seconds, outcome.seconds, Some(limit));
        recorder.put(case, Metric::WireBytes, wire, None);
        recorder.put(case, Metric::P50Us, outcome.p50_us, None);
        recorder.put(case, Metric::P99Us, outcome.p99_us, None);
    }

    /// Replays over the line and counts what crosses it.
    fn over_line(
        &self,
        recorder: &mut Recorder,
        case: &str,
        disk: Disk<'_>,
        think: Think,
    ) -> Result<()> {
        self.stage.set(OFFICE);
        let wire = self.stage.wire_bytes();
        let outcome = replay(&self.trace, disk, think, REPLAY);
        let wire = (self.stage.wire_bytes() - wire) as f64;
        self.stage.set(PREPARING);
        self.put(recorder, case, &outcome?, wire, think);
        Ok(())
    }

    /// One boot of a fresh desktop, from the moment when it is asked for: kernel and initrd cross first, and a profile is streamed
    /// from then on.
    fn desktop(
        &self,
        recorder: &mut Recorder,
        case: &str,
        branch: &Branch,
        think: Think,
    ) -> Result<()> {
        self.stage.set(OFFICE);
        let wire = self.stage.wire_bytes();
        let outcome = boot_desktop(branch, &format!("d-{case}"), &self.guest, think);
        let wire = (self.stage.wire_bytes() - wire) as f64;
        self.stage.set(PREPARING);
        self.put(recorder, case, &outcome?, wire, think);
        // What the boot taught is noted when it ends.
        pause(Duration::from_secs(1))?;
        branch.stop_desktop(&format!("d-{case}"))
    }
}

/// Asks for a desktop and is its guest. The seconds are from the asking on.
///
/// # Errors
/// It does not start, or a read fails.
pub(crate) fn boot_desktop(
    branch: &Branch,
    name: &str,
    guest: &Trace,
    think: Think,
) -> Result<Outcome> {
    let begun = Instant::now();
    let export = branch.start_desktop(name)?;
    let started = begun.elapsed().as_secs_f64();
    let socket = branch.nbd_socket();
    let mut outcome = replay(
        guest,
        Disk::Nbd {
            socket: &socket,
            export: &export,
        },
        think,
        REPLAY,
    )?;
    outcome.seconds += started;
    Ok(outcome)
}

/// Cold, warm, with the boot's profile, and cold behind the previous version; each on a branch that holds just that.
///
/// A version's first boot teaches its profile, so each round has images of its own: the store knows their chunks already.
fn ours(
    session: &mut Session,
    bench: &Bench,
    datacenter: &Datacenter,
    round: usize,
    think: Think,
    suffix: &str,
) -> Result<()> {
    let cold = format!("cold/splice/{round}{suffix}");
    let profile = format!("cold-profile/splice/{round}{suffix}");
    if session.any_left([&cold, &profile]) {
        let image = format!("cold{round}{suffix}");
        datacenter.create(&image)?;
        datacenter.publish(&image, &bench.disk)?;
        let version = Version {
            number: 1,
            reference: format!("{image}@1"),
        };
        let joined = with_version(
            session,
            bench,
            datacenter,
            &format!("br-{image}"),
            &version,
            false,
        );
        measure(
            session,
            &cold,
            joined,
            &format!("br-{image}"),
            |branch, recorder| {
                bench.desktop(recorder, &format!("cold{suffix}"), branch, think)?;
                datacenter.assign(branch.name(), &version.reference, true)?;
                branch.wait_complete(version.number, FILL)?;
                bench.desktop(recorder, &format!("warm{suffix}"), branch, think)
            },
        )?;
        profiled(
            session, bench, datacenter, &profile, &version, think, suffix,
        )?;
    }
    let key = format!("cold-previous/splice/{round}{suffix}");
    // A branch has to be filled for it; a quick look takes it once.
    if session.is_done(&key) || (think == Think::None && session.settings.quick) {
        return Ok(());
    }
    let image = format!("previous{round}{suffix}");
    datacenter.create(&image)?;
    datacenter.publish(&image, &bench.previous)?;
    datacenter.publish(&image, &bench.disk)?;
    let previous = Version {
        number: 1,
        reference: format!("{image}@1"),
    };
    let joined = with_version(
        session,
        bench,
        datacenter,
        &format!("br-{image}"),
        &previous,
        true,
    );
    measure(
        session,
        &key,
        joined,
        &format!("br-{image}"),
        |branch, recorder| {
            datacenter.assign(branch.name(), &format!("{image}@2"), false)?;
            branch.wait_known(2)?;
            bench.desktop(recorder, &format!("cold-previous{suffix}"), branch, think)
        },
    )
}

/// A branch that holds nothing, of a version that has booted elsewhere.
fn profiled(
    session: &mut Session,
    bench: &Bench,
    datacenter: &Datacenter,
    key: &str,
    version: &Version,
    think: Think,
    suffix: &str,
) -> Result<()> {
    if session.is_done(key) {
        return Ok(());
    }
    if !has_profile(datacenter, version)? {
        pause(LEARN)?;
    }
    if !has_profile(datacenter, version)? {
        session.miss(
            "cold-profile",
            SPLICE,
            "no boot profile came of a boot: this version of the product records none",
        );
        return Ok(());
    }
    let name = format!("br-profile{suffix}-{}", session.samples().len());
    let joined = with_version(session, bench, datacenter, &name, version, false);
    measure(session, key, joined, &name, |branch, recorder| {
        bench.desktop(recorder, &format!("cold-profile{suffix}"), branch, think)
    })
}

/// A version as branches and datacenter name it.
struct Version {
    number: u32,
    reference: String,
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

/// A branch of a name that was not there before (an old one would still be given its old version) that knows a version, and holds all of it if it is `whole`.
fn with_version(
    session: &Session,
    bench: &Bench,
    datacenter: &Datacenter,
    name: &str,
    version: &Version,
    whole: bool,
) -> Result<Branch> {
    bench.stage.set(PREPARING);
    session.discard(name);
    let branch = Branch::join(session, datacenter, name)?;
    datacenter.assign(name, &version.reference, whole)?;
    branch.wait_known(version.number)?;
    if whole {
        branch.wait_complete(version.number, FILL)?;
    }
    Ok(branch)
}

fn measure(
    session: &mut Session,
    key: &str,
    joined: Result<Branch>,
    name: &str,
    work: impl FnOnce(&Branch, &mut Recorder) -> Result<()>,
) -> Result<()> {
    match joined {
        Ok(branch) => session.measure(key, SPLICE, 90.0, |recorder| work(&branch, recorder))?,
        Err(error) => session.miss(key, SPLICE, &format!("{error:#}")),
    }
    session.discard(name);
    Ok(())
}

/// qemu-nbd at the branch with copy-on-read over an NBD server at the datacenter: what one can build of QEMU's parts.
fn qemu_nbd(
    session: &mut Session,
    bench: &Bench,
    round: usize,
    think: Think,
    suffix: &str,
) -> Result<()> {
    let key = format!("cold/qemu-nbd/{round}{suffix}");
    session.measure(&key, "qemu-nbd", 300.0, |recorder| {
        bench.stage.set(PREPARING);
        let log = bench.scratch.join("qemu-nbd.log");
        let address = format!("{}:{NBD_PORT}", stage::DATACENTER_ADDRESS);
        let server = Program::new("qemu-nbd")
            .args([
                "-r",
                "-t",
                "-f",
                "raw",
                "-e",
                "8",
                "-b",
                stage::DATACENTER_ADDRESS,
                "-p",
                &NBD_PORT.to_string(),
            ])
            .arg(&bench.disk)
            .inside(stage::DATACENTER)
            .start(&log)?;
        let cache = bench.scratch.join("cache.qcow2");
        let socket = bench.scratch.join("cor.sock");
        let remote = format!("nbd://{address}");
        let create = Program::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &remote])
            .arg(&cache)
            .inside(stage::BRANCH);
        wait_for("qemu-nbd", Duration::from_secs(20), TICK * 10, || {
            server.check()?;
            Ok(create.run(&bench.scratch, Duration::from_secs(20)).ok())
        })?;
        let front = front(&cache, &socket).start(&log)?;
        wait_for("qemu-nbd", Duration::from_secs(20), TICK, || {
            front.check()?;
            Ok(socket.exists().then_some(()))
        })?;
        let disk = Disk::Nbd {
            socket: &socket,
            export: "",
        };
        for case in ["cold", "warm"] {
            bench
                .over_line(recorder, &format!("{case}{suffix}"), disk, think)
                .with_context(|| case.to_owned())?;
        }
        drop((front, server));
        std::fs::remove_file(&cache)
            .and_then(|()| std::fs::remove_file(&socket))
            .context("the peer's cache")
    })
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
