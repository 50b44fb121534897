//! `storm`: many desktops of one pool boot at once at a branch that holds nothing, and again when it holds everything.
//!
//! What crosses the line must not grow with their number, and what the disk reads must not either.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::boot::{boot_desktop, cold_limit_s};
use crate::process::Program;
use crate::replay::{LOCAL_BOOT_S, Outcome, Think};
use crate::row::{Metric, quantile};
use crate::session::{Recorder, SPLICE, Session, rounds};
use crate::splice::{Branch, Datacenter, Place};
use crate::stage::{OFFICE, PREPARING, Stage};
use crate::touched::Touched;
use crate::trace::Trace;

/// One size, from publishing to its last desktop, cold and warm.
const ABOUT_S: f64 = 130.0;

/// How many at once.
const SIZES: [usize; 3] = [1, 10, 50];
const QUICK: [usize; 2] = [1, 50];

const FILL: Duration = Duration::from_secs(1800);

/// Runs the bench.
///
/// # Errors
/// Interrupted, or disks, line or trace cannot be had.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let quick = session.settings.quick;
    let rounds = rounds(quick);
    let sizes = |round| match (quick, round) {
        (true, _) => &QUICK[..],
        (false, 0) => &SIZES[..],
        // The largest again, for its noise.
        (false, _) => &SIZES[SIZES.len() - 1..],
    };
    let storms: usize = (0..rounds).map(|round| sizes(round).len()).sum();
    let planned_s = 60.0 + storms as f64 * ABOUT_S;
    let images = session.begin("storm", planned_s, 1)?;
    let key = |size: usize, round: usize| format!("{size}/{round}");
    let keys: Vec<String> = (0..rounds)
        .flat_map(|round| sizes(round).iter().map(move |size| key(*size, round)))
        .collect();
    if !session.any_left(&keys) {
        return Ok(());
    }
    let touched = Touched::of(session, &images)?;
    let scratch = session.scratch("storm")?;
    let workshop = session.workshop.clone();
    let storm = Storm {
        guest: touched.trace.without_loader(),
        zstd_bytes: touched.zstd_bytes,
        stage: Stage::build(PREPARING, &scratch)?,
        scratch,
    };
    let stage = &storm.stage;
    let datacenter = Datacenter::start(&workshop, Place::Stage, "dc")?;
    let mut next = 0;
    for round in 0..rounds {
        for size in sizes(round) {
            session.measure(&key(*size, round), SPLICE, ABOUT_S, |recorder| {
                // A link whose line becomes another goes on for a while by the round trip that it had.
                stage.set(OFFICE);
                // A version that has booted has a profile, and a branch that was there keeps what it was given: each has its own.
                next += 1;
                let (image, name) = (format!("storm{next}"), format!("s{next}"));
                datacenter.create(&image)?;
                datacenter.publish(&image, &images.version(1))?;
                let reference = format!("{image}@1");
                let branch = Branch::join(&workshop, &datacenter, &name)?;
                datacenter.assign(&name, &reference, false)?;
                branch.wait_known(1)?;
                storm.once(recorder, "cold", &branch, *size)?;
                // A quick look at one warm desktop is in `boot`.
                if !quick || *size > 1 {
                    datacenter.assign(&name, &reference, true)?;
                    branch.wait_complete(1, FILL)?;
                    if let Err(error) = drop_caches(&storm.scratch) {
                        recorder.note(&format!(
                            "what warm desktops read from the disk is not seen here: {error:#}"
                        ));
                    }
                    storm.once(recorder, "warm", &branch, *size)?;
                }
                Ok(())
            })?;
            workshop.discard(&format!("s{next}"));
        }
    }
    Ok(())
}

/// Empties the page cache, so that what a branch must read from its disk is seen.
fn drop_caches(scratch: &Path) -> Result<()> {
    // Only clean pages are dropped.
    Program::new("sync").run(scratch, FILL)?;
    std::fs::write("/proc/sys/vm/drop_caches", "1").context("emptying the page cache")
}

struct Storm {
    guest: Trace,
    zstd_bytes: f64,
    stage: Stage,
    scratch: PathBuf,
}

impl Storm {
    fn once(
        &self,
        recorder: &mut Recorder,
        case: &str,
        branch: &Branch,
        size: usize,
    ) -> Result<()> {
        let name = |desktop: usize| format!("{case}-{desktop}");
        let boot =
            |desktop: usize| boot_desktop(branch, &name(desktop), &self.guest, Think::Scaled);
        self.stage.set(OFFICE);
        let daemon = branch.daemon()?;
        let (disk, cpu) = (daemon.disk_read_bytes()?, daemon.cpu_s()?);
        let booted = self.stage.counted(|| {
            let wire = self.stage.wire_bytes();
            let outcomes: Vec<Result<(Outcome, f64)>> = std::thread::scope(|scope| {
                let boot = &boot;
                let guests: Vec<_> = (0..size)
                    .map(|desktop| scope.spawn(move || boot(desktop)))
                    .collect();
                guests
                    .into_iter()
                    .map(|guest| guest.join().expect("a replay returns its errors"))
                    .collect()
            });
            let wire = (self.stage.wire_bytes() - wire) as f64;
            let outcomes: Result<Vec<_>> = outcomes.into_iter().collect();
            Ok((outcomes.context("one of the boots")?, wire))
        });
        let (disk, cpu) = (daemon.disk_read_bytes()? - disk, daemon.cpu_s()? - cpu);
        self.stage.set(PREPARING);
        let (outcomes, wire) = booted?;
        for desktop in 0..size {
            branch.stop_desktop(&name(desktop))?;
        }
        let mut seconds: Vec<f64> = outcomes
            .iter()
            .map(|(outcome, _)| outcome.seconds)
            .collect();
        seconds.sort_by(f64::total_cmp);
        let Some(last) = seconds.last() else {
            bail!("no desktops")
        };
        let mut waits: Vec<f64> = outcomes.iter().map(|(outcome, _)| outcome.p99_us).collect();
        waits.sort_by(f64::total_cmp);
        // One desktop's content, however many there are.
        let crossing = (case == "cold").then_some(self.zstd_bytes);
        let limit_s = crossing.map_or(LOCAL_BOOT_S, |bytes| {
            cold_limit_s(&OFFICE, bytes, LOCAL_BOOT_S)
        });
        let row = format!("{case}-{size}");
        recorder.put(&row, Metric::Seconds, *last, Some(limit_s));
        recorder.put(&row, Metric::WireBytes, wire, crossing);
        // Beside it, the distinct blocks that a guest reads: what a cold page cache must take from the disk once.
        let distinct = self.guest.distinct_bytes() as f64;
        recorder.put(&row, Metric::StoredBytes, disk, Some(distinct));
        recorder.put(&row, Metric::CpuS, cpu, None);
        // Of the desktop in the middle.
        recorder.put(&row, Metric::P99Us, quantile(&waits, 0.5), None);
        Ok(())
    }
}
