//! `storm`: many desktops of one pool boot at once at a branch that holds nothing, and again when it holds everything.
//!
//! What crosses the line must not grow with their number, and what the disk reads must not either.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::boot;
use crate::images::Images;
use crate::replay::{LOCAL_BOOT_S, Outcome, Think};
use crate::row::{Metric, quantile};
use crate::session::{Recorder, SPLICE, Session};
use crate::splice::{Branch, Datacenter, Place};
use crate::stage::{OFFICE, PREPARING, Stage};
use crate::trace::Trace;

/// How many at once.
const SIZES: [usize; 3] = [1, 10, 50];

const FILL: Duration = Duration::from_secs(1800);

/// Runs the bench.
///
/// # Errors
/// Interrupted, or disks, line or trace cannot be had.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rounds = if session.settings.quick { 1 } else { 3 };
    session.begin("storm", 60.0 + (rounds * SIZES.len()) as f64 * 100.0)?;
    let images = Images::ready(session, 1)?;
    let guest = boot::trace(session)?.without_loader();
    let scratch = session.scratch("storm")?;
    let key = |size: usize, round: usize| format!("{size}/{round}");
    let keys: Vec<String> = (0..rounds)
        .flat_map(|round| SIZES.map(|size| key(size, round)))
        .collect();
    if !session.any_left(&keys) {
        return Ok(());
    }
    let stage = Stage::build(PREPARING, &scratch)?;
    let datacenter = Datacenter::start(session, Place::Stage, "dc")?;
    for round in 0..rounds {
        for size in SIZES {
            let key = key(size, round);
            if session.is_done(&key) {
                continue;
            }
            stage.set(PREPARING);
            // A version that has booted has a profile, and a branch that was there keeps what it was given: each size has its own.
            let (image, name) = (
                format!("storm-{size}-{round}"),
                format!("br-{size}-{round}"),
            );
            datacenter.create(&image)?;
            datacenter.publish(&image, &images.version(1))?;
            let reference = format!("{image}@1");
            let prepared = Branch::join(session, &datacenter, &name).and_then(|branch| {
                datacenter.assign(&name, &reference, false)?;
                branch.wait_known(1).map(|_| branch)
            });
            let branch = match prepared {
                Ok(branch) => branch,
                Err(error) => {
                    session.miss(&key, SPLICE, &format!("{error:#}"));
                    continue;
                }
            };
            session.measure(&key, SPLICE, 100.0, |recorder| {
                once(
                    recorder,
                    &format!("cold-{size}"),
                    &stage,
                    &branch,
                    size,
                    &guest,
                )?;
                stage.set(PREPARING);
                datacenter.assign(&name, &reference, true)?;
                branch.wait_complete(1, FILL)?;
                once(
                    recorder,
                    &format!("warm-{size}"),
                    &stage,
                    &branch,
                    size,
                    &guest,
                )
            })?;
            drop(branch);
            session.discard(&name);
        }
    }
    Ok(())
}

fn once(
    recorder: &mut Recorder,
    case: &str,
    stage: &Stage,
    branch: &Branch,
    size: usize,
    guest: &Trace,
) -> Result<()> {
    stage.set(OFFICE);
    let (wire, disk, cpu) = (
        stage.wire_bytes(),
        branch.daemon()?.disk_read_bytes()?,
        branch.daemon()?.cpu_s()?,
    );
    let outcomes: Vec<Result<Outcome>> = std::thread::scope(|scope| {
        let name = |desktop| format!("{case}-{desktop}");
        let boot =
            |desktop| move || boot::boot_desktop(branch, &name(desktop), guest, Think::Scaled);
        let guests: Vec<_> = (0..size)
            .map(|desktop| scope.spawn(boot(desktop)))
            .collect();
        guests
            .into_iter()
            .map(|guest| guest.join().expect("a replay returns its errors"))
            .collect()
    });
    let wire = (stage.wire_bytes() - wire) as f64;
    let outcomes = outcomes
        .into_iter()
        .collect::<Result<Vec<_>>>()
        .context("one of the boots")?;
    for desktop in 0..size {
        branch.stop_desktop(&format!("{case}-{desktop}"))?;
    }
    let mut seconds: Vec<f64> = outcomes.iter().map(|outcome| outcome.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let Some(last) = seconds.last() else {
        bail!("no desktops")
    };
    let mut waits: Vec<f64> = outcomes.iter().map(|outcome| outcome.p99_us).collect();
    waits.sort_by(f64::total_cmp);
    recorder.put(
        case,
        Metric::Seconds,
        *last,
        Some(OFFICE.seconds_for(wire).max(LOCAL_BOOT_S)),
    );
    recorder.put(case, Metric::WireBytes, wire, None);
    recorder.put(
        case,
        Metric::StoredBytes,
        branch.daemon()?.disk_read_bytes()? - disk,
        None,
    );
    recorder.put(case, Metric::CpuS, branch.daemon()?.cpu_s()? - cpu, None);
    // Of the desktop in the middle.
    recorder.put(case, Metric::P99Us, quantile(&waits, 0.5), None);
    Ok(())
}
