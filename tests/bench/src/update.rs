//! `update`: from one version of a desktop to the next, as bytes on the line and as seconds.
//!
//! Ours and rsync cross the emulated line and are counted by it, both directions, everything included. Stores without a
//! protocol are given what they grow by ([`crate::stores`]). zstd and xdelta3 with both disks at hand are the pairwise
//! reference.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::images::Images;
use crate::ingest;
use crate::pairwise;
use crate::process::{Program, TICK, pause, wait_for};
use crate::row::{Metric, Sample, rows};
use crate::session::{Recorder, SPLICE, Session, has_turn, rounds};
use crate::splice::{Branch, Datacenter, Place};
use crate::stage::{self, OFFICE, PREPARING, Stage};
use crate::stores::{SYSTEMS, Store, is_there};
use crate::workshop::Workshop;

/// The two updates.
pub(crate) const CASES: [(&str, u32, u32); 2] = [("v1-v2", 1, 2), ("v2-v3", 2, 3)];

/// Half a gigabyte at 100 Mbit/s is 40 s; the product may take long on a busy machine.
const UPDATE: Duration = Duration::from_secs(1800);

/// How long the line must carry nothing but keep-alives before the manifest counts as received.
const QUIET: Duration = Duration::from_secs(2);
/// What a link says in that time when it has nothing to say.
const QUIET_BYTES: u64 = 20_000;

/// Publishing, encoding, and two updates over the line.
const OURS_S: f64 = 130.0;

const RSYNC_PORT: u16 = 28_873;

/// Runs the bench.
///
/// # Errors
/// Interrupted, or the disks or the line cannot be made.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let quick = session.settings.quick;
    let rounds = rounds(quick);
    let others_s = if quick { 400.0 } else { 680.0 };
    let images = session.begin("update", rounds as f64 * OURS_S + others_s, 3)?;
    let scratch = session.scratch("update")?;
    let workshop = session.workshop.clone();
    let ours = |round| format!("link/{SPLICE}/{round}");
    let rsync = |round, case: &str| format!("link/rsync/{round}/{case}");
    let over_link: Vec<String> = (0..rounds)
        .map(ours)
        .chain(CASES.map(|case| rsync(0, case.0)))
        .collect();
    if session.any_left(&over_link) {
        let stage = Stage::build(PREPARING, &scratch)?;
        for round in 0..rounds {
            let verify = !quick && round == 0;
            session.measure(&ours(round), SPLICE, OURS_S, |recorder| {
                splice(&workshop, &stage, &images, recorder, verify)
            })?;
            workshop.discard("br");
            workshop.discard("dc");
            for case in CASES {
                if (quick && case != CASES[0]) || !has_turn("rsync", round) {
                    continue;
                }
                session.measure(&rsync(round, case.0), "rsync", 110.0, |recorder| {
                    over_rsync(&stage, &images, case, &scratch, recorder, !quick)
                })?;
            }
        }
    }
    for (case, from, to) in CASES {
        let disks = (images.version(from), images.version(to));
        let data_mb = images.data_mb(to)?;
        session.measure(
            &format!("zstd-patch/{case}"),
            "zstd-patch",
            110.0,
            |recorder| pairwise::zstd_patch(recorder, case, &disks, data_mb, &scratch, quick),
        )?;
        // Its figure for the second update adds nothing to a quick look.
        if (quick && case != "v1-v2")
            || !session.has("xdelta3", "xdelta3", "install its Debian package")
        {
            continue;
        }
        session.measure(&format!("xdelta3/{case}"), "xdelta3", 120.0, |recorder| {
            pairwise::xdelta3(recorder, case, &disks, data_mb, &scratch, !quick)
        })?;
    }
    growth(session, &images)
}

/// A branch that holds v1 whole gets v2, then v3, both encoded before: the line is measured, not the wait for the encoder.
fn splice(
    workshop: &Workshop,
    stage: &Stage,
    images: &Images,
    recorder: &mut Recorder,
    verify: bool,
) -> Result<()> {
    workshop.discard("br");
    workshop.discard("dc");
    let scratch = workshop.scratch("update")?;
    stage.set(PREPARING);
    let datacenter = Datacenter::start(workshop, Place::Stage, "dc")?;
    datacenter.create("desktop")?;
    datacenter.publish("desktop", &images.version(1))?;
    for (case, from, to) in CASES {
        datacenter.publish("desktop", &images.version(to))?;
        // It begins to encode by itself as soon as a version is published; nothing else is done here then.
        let (cpu, begun) = (datacenter.daemon.cpu_s()?, Instant::now());
        datacenter.encode(&format!("desktop@{from}"), &format!("desktop@{to}"))?;
        let encode = format!("{case}-encode");
        let cpu = datacenter.daemon.cpu_s()? - cpu;
        recorder.put(&encode, Metric::CpuS, cpu, None);
        let seconds = begun.elapsed().as_secs_f64();
        recorder.put(&encode, Metric::Seconds, seconds, None);
    }
    let mut branch = Branch::join(workshop, &datacenter, "br")?;
    datacenter.assign(branch.name(), "desktop@1", true)?;
    branch.wait_known(1)?;
    branch.wait_complete(1, UPDATE)?;
    stage.set(OFFICE);
    // Over this line from the start: a link takes seconds to believe that its round trip has become a hundred times longer.
    branch.restart()?;
    branch.wait_known(1)?;
    quiet(stage)?;
    for (case, from, to) in CASES {
        let reference = format!("desktop@{to}");
        let id = stage.counted(|| {
            let (wire, datacenter_cpu, branch_cpu) = (
                stage.wire_bytes(),
                datacenter.daemon.cpu_s()?,
                branch.daemon()?.cpu_s()?,
            );
            let begun = Instant::now();
            datacenter.assign(branch.name(), &reference, false)?;
            let id = branch.wait_known(to)?;
            let mut seconds = begun.elapsed().as_secs_f64();
            quiet(stage)?;
            let index = (stage.wire_bytes() - wire) as f64;
            let begun = Instant::now();
            datacenter.assign(branch.name(), &reference, true)?;
            branch.wait_complete(to, UPDATE)?;
            seconds += begun.elapsed().as_secs_f64();
            let wire = (stage.wire_bytes() - wire) as f64;
            let branch_cpu = branch.daemon()?.cpu_s()? - branch_cpu;
            let new_mb = datacenter.new_bytes(&format!("desktop@{from}"), &reference)? / 1e6;
            let datacenter_cpu = datacenter.daemon.cpu_s()? - datacenter_cpu;
            let at_best = OFFICE.seconds_for(wire);
            recorder.put(case, Metric::WireBytes, wire, None);
            recorder.put(&format!("{case}-index"), Metric::WireBytes, index, None);
            recorder.put(case, Metric::Seconds, seconds, Some(at_best));
            recorder.put(case, Metric::CpuS, datacenter_cpu, None);
            // Of the chunks that had to come, not of the disk: the rest is not touched. All of the branch's work is in it, with
            // receiving and storing them, so decoding alone is faster than that.
            recorder.put(case, Metric::MbPerS, new_mb / branch_cpu.max(0.01), None);
            Ok(id)
        })?;
        if verify {
            let uri = branch.uri(&format!("version/{id}"));
            Program::new("qemu-img")
                .args(["compare", "-f", "raw", "-F", "raw"])
                .arg(images.version(to))
                .arg(uri)
                .run(&scratch, UPDATE)
                .context("comparing the branch's version with the disk")?;
        }
    }
    Ok(())
}

/// Waits until the line is quiet.
fn quiet(stage: &Stage) -> Result<()> {
    let deadline = Instant::now() + UPDATE;
    loop {
        let before = stage.wire_bytes();
        pause(QUIET)?;
        if stage.wire_bytes() - before < QUIET_BYTES {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "the line is not quiet {} s after the manifest came",
                UPDATE.as_secs()
            );
        }
    }
}

fn over_rsync(
    stage: &Stage,
    images: &Images,
    (case, from, to): (&str, u32, u32),
    scratch: &Path,
    recorder: &mut Recorder,
    verify: bool,
) -> Result<()> {
    let (before, after) = (images.version(from), images.version(to));
    let copy = scratch.join("copy.raw");
    let limit = Duration::from_secs(900);
    Program::new("cp")
        .args(["--sparse=always", "--"])
        .arg(&before)
        .arg(&copy)
        .run(scratch, limit)?;
    let configuration = scratch.join("rsyncd.conf");
    let module = after
        .parent()
        .context("a disk is in a folder")?
        .display()
        .to_string();
    let text = format!(
        "port = {RSYNC_PORT}\nuse chroot = no\nuid = root\ngid = root\n[disks]\npath = {module}\nread only = yes\n"
    );
    std::fs::write(&configuration, text).context("rsync's configuration")?;
    let daemon = Program::new("rsync")
        .args(["--daemon", "--no-detach", "--log-file=/dev/stderr"])
        .arg(format!("--address={}", stage::DATACENTER_ADDRESS))
        .arg(format!("--config={}", configuration.display()))
        .inside(stage::DATACENTER)
        .start(&scratch.join("rsync.log"))?;
    let name = after
        .file_name()
        .context("a disk has a name")?
        .to_string_lossy();
    let source = format!(
        "rsync://{}:{RSYNC_PORT}/disks/{name}",
        stage::DATACENTER_ADDRESS
    );
    stage.set(OFFICE);
    let list = Program::new("rsync")
        .args(["--contimeout=5", &source])
        .inside(stage::BRANCH);
    wait_for("rsync's daemon", Duration::from_secs(20), TICK * 5, || {
        daemon.check()?;
        Ok(list.run(scratch, Duration::from_secs(10)).ok())
    })?;
    let client = Program::new("rsync")
        .args([
            "-z",
            "--inplace",
            "--no-whole-file",
            "--ignore-times",
            &source,
        ])
        .arg(&copy)
        .inside(stage::BRANCH);
    let (done, wire) = stage.counted(|| {
        let wire = stage.wire_bytes();
        let done = client.run(scratch, limit)?;
        Ok((done, (stage.wire_bytes() - wire) as f64))
    })?;
    recorder.put(case, Metric::WireBytes, wire, None);
    recorder.put(
        case,
        Metric::Seconds,
        done.usage.seconds,
        Some(OFFICE.seconds_for(wire)),
    );
    drop(daemon);
    if verify {
        Program::new("cmp")
            .arg(&after)
            .arg(&copy)
            .run(scratch, limit)
            .context("rsync's copy")?;
    }
    std::fs::remove_file(&copy).context("rsync's copy")
}

/// What stores grow by: from `ingest` of this run, or from a filling of their own.
fn growth(session: &mut Session, images: &Images) -> Result<()> {
    for (system, seconds) in SYSTEMS.into_iter().skip(1) {
        let key = format!("growth/{system}");
        if session.is_done(&key) || !is_there(session, system) {
            continue;
        }
        if let Some(samples) = session.samples_of("ingest", &ingest::key(system, 0)) {
            let samples = samples.clone();
            session.measure(&key, system, 0.0, |recorder| {
                put_growth(recorder, |case| stored(&samples, case));
                Ok(())
            })?;
            continue;
        }
        let workshop = session.workshop.clone();
        session.measure(&key, system, seconds, |recorder| {
            let store = Store::create(&workshop, system)?;
            let mut grown = Vec::new();
            for version in 1..=3 {
                grown.push(store.fill(images, version)?);
            }
            put_growth(recorder, |case| {
                let (stem, index) = case
                    .strip_suffix("-index")
                    .map_or((case, false), |stem| (stem, true));
                let filled = &grown[ingest_case(stem)?];
                if index {
                    filled.index_bytes
                } else {
                    Some(filled.grown_bytes)
                }
            });
            Ok(())
        })?;
        workshop.discard("store");
    }
    Ok(())
}

fn ingest_case(case: &str) -> Option<usize> {
    ["v1", "v2-after-v1", "v3-after-v2"]
        .iter()
        .position(|known| *known == case)
}

fn stored(samples: &[Sample], case: &str) -> Option<f64> {
    let found = samples
        .iter()
        .find(|sample| sample.case == case && sample.metric == Metric::StoredBytes);
    Some(found?.value)
}

fn put_growth(recorder: &mut Recorder, grown: impl Fn(&str) -> Option<f64>) {
    for (case, from) in [("v1-v2", "v2-after-v1"), ("v2-v3", "v3-after-v2")] {
        if let Some(bytes) = grown(from) {
            recorder.put(case, Metric::WireBytes, bytes, None);
        }
        if let Some(index) = grown(&format!("{from}-index")) {
            recorder.put(&format!("{case}-index"), Metric::WireBytes, index, None);
        }
    }
}

/// Gives the rows of wire bytes what they are to be held against: the best pairwise delta of the same two disks. It is no limit; content
/// that moved on the disk can be found by one who looks for it.
pub(crate) fn with_references(samples: &mut [Sample]) {
    let limits = rows("update", samples);
    for sample in samples
        .iter_mut()
        .filter(|sample| sample.metric == Metric::WireBytes)
    {
        let pairwise = limits.iter().filter(|row| {
            row.metric == Metric::WireBytes
                && row.case == sample.case
                && matches!(row.system.as_str(), "zstd-patch" | "xdelta3")
        });
        sample.limit = pairwise.map(|row| row.median).min_by(f64::total_cmp);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_best_pairwise_delta_is_the_reference_of_its_own_case() {
        let sample = |case: &str, system: &str, value| Sample {
            case: case.into(),
            system: system.into(),
            metric: Metric::WireBytes,
            value,
            limit: None,
        };
        let mut samples = [
            sample("v1-v2", "splice", 400.0),
            sample("v1-v2", "zstd-patch", 337.0),
            sample("v1-v2", "xdelta3", 390.0),
            sample("v2-v3", "splice", 100.0),
        ];
        with_references(&mut samples);
        assert_eq!(
            samples.each_ref().map(|s| s.limit),
            [Some(337.0), Some(337.0), Some(337.0), None]
        );
    }
}
