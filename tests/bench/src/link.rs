//! `link`: what each transport gets out of a line, what a guest waits while it is full, and how soon it is full again after an
//! outage. All over the same TUN link between two network namespaces.
//!
//! Goodput is payload that arrived after the first ten round trips, as a share of C·(1−p); packet headers (3 to 5 %) are in
//! what is missing to 1. On lines of 1 Gbit/s the processors are the limit, of the emulator's among them.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dedup_transport::link::seconds_ahead;
use serde_json::Value;

use crate::ends::{self, BIN, Record, monotonic_ns};
use crate::process::{Program, TICK, is_installed, pause, wait_for};
use crate::row::{Metric, quantile};
use crate::session::{Recorder, Session, has_turn, rounds};
use crate::stage::{self, Line, Stage};

const SYSTEMS: [&str; 4] = ["splice", "quinn", "tcp-cubic", "tcp-bbr"];

/// What is left out at the beginning, in round trips.
const START_UP_RTTS: f64 = 10.0;

/// A line is cut this long; links must outlive it.
const OUTAGE: Duration = Duration::from_secs(10);
/// From when a line has its usual rate until it is cut.
const BEFORE_OUTAGE: Duration = Duration::from_secs(6);
/// With a recovery in a few seconds.
const OUTAGE_ABOUT_S: f64 = 22.0;
/// How long a recovery is waited for.
const RECOVERY_S: f64 = 30.0;
/// A line counts as recovered when it carries this share of what it carried before.
const RECOVERED: f64 = 0.8;
/// Over this many bins, half a second.
const RECOVERED_BINS: usize = 5;

const PORT: u16 = 28_700;

fn line(mbit: f64, rtt_ms: f64, loss_percent: f64, burst_packets: f64) -> Line {
    Line {
        mbit,
        rtt_ms,
        loss_percent,
        burst_packets,
    }
}

/// Lines whose goodput is measured.
fn lines(quick: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    for mbit in [20.0, 100.0] {
        for rtt in [100.0, 300.0, 600.0] {
            for loss in [0.0, 0.1, 1.0, 5.0] {
                // The quick look: the corner cases and one series of losses.
                if !quick
                    || (mbit, rtt) == (100.0, 100.0)
                    || (mbit, rtt, loss) == (20.0, 600.0, 1.0)
                {
                    lines.push(line(mbit, rtt, loss, 1.0));
                }
            }
        }
    }
    lines.push(line(100.0, 100.0, 1.0, 8.0));
    if !quick {
        lines.push(line(20.0, 600.0, 1.0, 8.0));
        lines.push(line(100.0, 300.0, 5.0, 8.0));
    }
    lines.push(line(1000.0, 20.0, 0.0, 1.0));
    lines
}

/// Seconds of start-up and of measuring.
fn times(line: &Line, quick: bool) -> (f64, f64) {
    let rtt = line.rtt_ms / 1000.0;
    let (least, rtts) = if quick { (6.0, 15.0) } else { (10.0, 20.0) };
    (START_UP_RTTS * rtt, f64::max(least, rtts * rtt))
}

/// Waits that are needed for a p99.
fn demands_min(quick: bool) -> usize {
    if quick { 150 } else { 300 }
}

/// Runs the bench.
///
/// # Errors
/// Interrupted, or the line cannot be made.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let quick = session.settings.quick;
    let rounds = rounds(quick);
    // What a quick run measures is repeated in a full one; the other lines are measured once.
    let lines_of = |round| lines(quick || round > 0);
    let demands_of = |round| {
        let mut demands = vec![line(100.0, 100.0, 1.0, 1.0)];
        if !quick && round == 0 {
            demands.push(line(20.0, 300.0, 1.0, 1.0));
            demands.push(line(100.0, 100.0, 0.1, 1.0));
        }
        demands
    };
    let outages = [line(20.0, 100.0, 0.0, 1.0)];
    let about = |line: &Line| times(line, quick).0 + times(line, quick).1 + 2.0;
    // Two guests, each asking again when it has its answer; twice as long on the full line.
    let about_demand = |line: &Line| {
        let wait_s = (line.rtt_ms / 1000.0).max(0.1);
        demands_min(quick) as f64 / 2.0 * wait_s * 3.0 + 2.0 * START_UP_RTTS * wait_s + 2.0
    };
    let planned_s = (0..rounds).map(|round| {
        let turns = SYSTEMS.iter().filter(|system| has_turn(system, round));
        let each = lines_of(round).iter().map(about).sum::<f64>()
            + demands_of(round).iter().map(about_demand).sum::<f64>()
            + outages.len() as f64 * OUTAGE_ABOUT_S;
        each * turns.count() as f64
    });
    session.begin("link", planned_s.sum(), 0)?;
    let scratch = session.scratch("link")?;
    ends::make_keys(&scratch)?;
    let stage = Stage::build(stage::PREPARING, &scratch)?;
    let systems: Vec<&str> = SYSTEMS
        .into_iter()
        .filter(|system| can_run(session, system))
        .collect();
    let lab = Lab {
        stage,
        scratch,
        bench: session.workshop.program("bench"),
    };
    for round in 0..rounds {
        let systems = || {
            systems
                .iter()
                .copied()
                .filter(|system| has_turn(system, round))
        };
        for line in &lines_of(round) {
            for system in systems() {
                let key = format!("{}/{system}/{round}", line.name());
                session.measure(&key, system, about(line), |recorder| {
                    lab.goodput(recorder, system, line, quick)
                })?;
            }
        }
        for line in &demands_of(round) {
            for system in systems() {
                let key = format!("demand-{}/{system}/{round}", line.name());
                session.measure(&key, system, about_demand(line), |recorder| {
                    lab.demand(recorder, system, line, quick)
                })?;
            }
        }
        for line in &outages {
            for system in systems() {
                let key = format!("outage-{}/{system}/{round}", line.name());
                session.measure(&key, system, OUTAGE_ABOUT_S, |recorder| {
                    lab.outage(recorder, system, line)
                })?;
            }
        }
    }
    Ok(())
}

/// Whether the kernel, or Debian, has what that needs.
fn can_run(session: &mut Session, system: &str) -> bool {
    let Some(congestion) = system.strip_prefix("tcp-") else {
        return true;
    };
    let is_known = || {
        std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")
            .unwrap_or_default()
            .split_whitespace()
            .any(|name| name == congestion)
    };
    if !is_known()
        && is_installed("modprobe")
        && let Ok(scratch) = session.scratch("link")
    {
        // Where the kernel has it as a module, nobody may have asked for it yet. That there is none is seen below.
        let _ = Program::new("modprobe")
            .arg(format!("tcp_{congestion}"))
            .run(&scratch, Duration::from_secs(20));
    }
    if !is_known() {
        session.miss(
            "all cases",
            system,
            &format!(
                "the kernel has no congestion control {congestion} (modprobe tcp_{congestion})"
            ),
        );
        return false;
    }
    session.has(system, "iperf3", "install its Debian package")
}

/// What the asking end is to do.
#[derive(Default)]
struct Asked {
    /// Of each phase: with demands the line is idle first and filled then, else it is filled.
    seconds_max: f64,
    demands: usize,
    start_up: f64,
    follow: bool,
}

struct Lab {
    stage: Stage,
    scratch: std::path::PathBuf,
    bench: std::path::PathBuf,
}

impl Lab {
    fn goodput(
        &self,
        recorder: &mut Recorder,
        system: &str,
        line: &Line,
        quick: bool,
    ) -> Result<()> {
        self.stage.set(*line);
        let (start_up, measured) = times(line, quick);
        let rate = self.stage.counted(|| match system.strip_prefix("tcp-") {
            Some(congestion) => iperf3(congestion, start_up, measured, &self.scratch),
            None => {
                let asked = Asked {
                    seconds_max: start_up + measured,
                    ..Asked::default()
                };
                let record = self.ends(system, line, &asked, || Ok(()), |_| false)?;
                Ok(rate(&record, start_up, start_up + measured))
            }
        })?;
        recorder.put(
            &line.name(),
            Metric::GoodputShare,
            rate / line.bytes_per_s(),
            Some(1.0),
        );
        Ok(())
    }

    /// What guests wait on the idle line, and then on the full one, over the same connection.
    fn demand(
        &self,
        recorder: &mut Recorder,
        system: &str,
        line: &Line,
        quick: bool,
    ) -> Result<()> {
        self.stage.set(*line);
        let enough = demands_min(quick);
        let start_up = START_UP_RTTS * line.rtt_ms / 1000.0;
        let asked = Asked {
            // A guest that waits ten times as long as the line makes it wait has too few waits for a p99.
            seconds_max: start_up + enough as f64 * line.rtt_ms / 1000.0,
            demands: enough,
            start_up,
            follow: false,
        };
        let record = self
            .stage
            .counted(|| self.ends(system, line, &asked, || Ok(()), |_| false))?;
        let filled = record.filling_from_s;
        for (case, from, to) in [
            ("demand-idle", start_up, filled),
            ("demand", filled + start_up, f64::INFINITY),
        ] {
            let case = format!("{case}-{}", line.name());
            let then = |(asked, _): &&(f64, f64)| (from..to).contains(asked);
            let mut waits: Vec<f64> = record
                .demands
                .iter()
                .filter(then)
                .map(|(_, waited)| *waited)
                .collect();
            waits.sort_by(f64::total_cmp);
            if waits.is_empty() {
                bail!("{case}: nothing was asked");
            }
            if waits.len() < enough {
                recorder.note(&format!(
                    "{case} {system}: only {} waits in {:.0} s",
                    waits.len(),
                    asked.seconds_max
                ));
            }
            // A round trip, and a chunk's own time on the line.
            let limit = line.seconds_for(16_384.0) * 1e6;
            recorder.put(&case, Metric::P50Us, quantile(&waits, 0.5), Some(limit));
            recorder.put(&case, Metric::P99Us, quantile(&waits, 0.99), Some(limit));
        }
        Ok(())
    }

    fn outage(&self, recorder: &mut Recorder, system: &str, line: &Line) -> Result<()> {
        self.stage.set(*line);
        let asked = Asked {
            seconds_max: BEFORE_OUTAGE.as_secs_f64() + OUTAGE.as_secs_f64() + RECOVERY_S,
            follow: true,
            ..Asked::default()
        };
        let (cut_ns, restored_ns) = (Cell::new(0), Cell::new(0));
        let found = |record: &Record| {
            let seconds_at = |ns: u64| ns.saturating_sub(record.begun_ns) as f64 / 1e9;
            let (cut, restored) = (seconds_at(cut_ns.get()), seconds_at(restored_ns.get()));
            let usual = rate(record, (cut - 3.0).max(0.0), cut);
            // One that brought nothing before has nothing to come back to.
            recovery(record, restored, usual * RECOVERED).filter(|_| usual > 0.0)
        };
        let record = self.stage.counted(|| {
            let record = self.ends(
                system,
                line,
                &asked,
                || {
                    pause(BEFORE_OUTAGE)?;
                    self.stage.cut();
                    cut_ns.set(monotonic_ns());
                    let waited = pause(OUTAGE);
                    self.stage.restore();
                    restored_ns.set(monotonic_ns());
                    waited
                },
                |record| found(record).is_some(),
            );
            self.stage.restore();
            record
        })?;
        let after = found(&record).with_context(|| {
            format!(
                "not back at {:.0} % of its rate {RECOVERY_S} s after the outage",
                RECOVERED * 100.0
            )
        })?;
        let case = format!("outage-{}", line.name());
        recorder.put(&case, Metric::Seconds, after, Some(line.rtt_ms / 1000.0));
        Ok(())
    }

    /// Runs both ends, and `meanwhile` beside them, to their end or until what was seen is `enough`.
    fn ends(
        &self,
        system: &str,
        line: &Line,
        asked: &Asked,
        meanwhile: impl FnOnce() -> Result<()>,
        enough: impl Fn(&Record) -> bool,
    ) -> Result<Record> {
        let address = format!("{}:{PORT}", stage::DATACENTER_ADDRESS);
        let end = |namespace: &str| {
            let end = Program::new(&self.bench).args([
                "end",
                "--transport",
                system,
                "--address",
                &address,
                "--keys",
            ]);
            end.arg(&self.scratch).inside(namespace)
        };
        let log = self.scratch.join("end.log");
        let server = end(stage::DATACENTER).start(&log)?;
        // It answers when its port is taken; the file of its namespace says so without a packet on the line.
        pause(Duration::from_millis(300))?;
        server.check()?;
        // As far ahead as the product's branch asks; TCP has one stream.
        let round_trip = Duration::from_secs_f64(line.rtt_ms / 1000.0);
        let window = line.bytes_per_s() * seconds_ahead(round_trip, line.loss_percent / 100.0);
        let flights = if system.starts_with("tcp-") {
            1
        } else {
            (window / f64::from(4 << 20)).ceil().clamp(2.0, 12.0) as usize
        };
        let client = end(stage::BRANCH)
            .args([
                "--fetch-seconds",
                &asked.seconds_max.to_string(),
                "--flights",
                &flights.to_string(),
                "--demands",
                &asked.demands.to_string(),
                "--start-up",
                &asked.start_up.to_string(),
            ])
            .args(asked.follow.then_some("--follow"));
        let output = self.scratch.join("record.json");
        let _ = std::fs::remove_file(&output);
        let running = client.start(&output)?;
        meanwhile()?;
        let limit = Duration::from_secs_f64(2.0 * asked.seconds_max + 60.0);
        let record = wait_for("the asking end", limit, TICK * 5, || {
            // It prints what it saw, one line each time, and nothing else unless it fails.
            let text = std::fs::read_to_string(&output).unwrap_or_default();
            let whole = text.rfind("}\n").map_or("", |at| &text[..=at]);
            if let Some(line) = whole.lines().next_back() {
                let record: Record =
                    serde_json::from_str(line).context("the asking end's record")?;
                if record.is_whole || enough(&record) {
                    return Ok(Some(record));
                }
            }
            running.check().map(|()| None)
        })?;
        server.check()?;
        Ok(record)
    }
}

/// Bytes a second between two instants of a record.
fn rate(record: &Record, from_s: f64, to_s: f64) -> f64 {
    let bin = |seconds: f64| ((seconds / BIN.as_secs_f64()) as usize).min(record.bins.len());
    let bins = &record.bins[bin(from_s)..bin(to_s)];
    bins.iter().sum::<u64>() as f64 / (bins.len().max(1) as f64 * BIN.as_secs_f64())
}

/// Seconds from `restored` until half a second's rate has reached `enough`.
fn recovery(record: &Record, restored: f64, enough: f64) -> Option<f64> {
    let first = (restored / BIN.as_secs_f64()).ceil() as usize;
    let windows = record.bins.get(first..)?.windows(RECOVERED_BINS);
    let seconds = RECOVERED_BINS as f64 * BIN.as_secs_f64();
    let found = windows
        .enumerate()
        .find(|(_, bins)| bins.iter().sum::<u64>() as f64 / seconds >= enough)?;
    Some((first + found.0) as f64 * BIN.as_secs_f64() - restored)
}

/// One TCP stream from the datacenter to the branch; bytes a second after the start-up.
fn iperf3(congestion: &str, start_up: f64, measured: f64, scratch: &Path) -> Result<f64> {
    let log = scratch.join("iperf3.log");
    let server = Program::new("iperf3")
        .args(["-s", "-1", "-B", stage::DATACENTER_ADDRESS])
        .inside(stage::DATACENTER)
        .start(&log)?;
    pause(Duration::from_millis(300))?;
    server.check()?;
    let seconds = (start_up + measured).ceil();
    let client = Program::new("iperf3")
        .args([
            "-c",
            stage::DATACENTER_ADDRESS,
            "-R",
            "-J",
            "-i",
            "0.1",
            "-C",
            congestion,
            "-t",
            &seconds.to_string(),
        ])
        .inside(stage::BRANCH)
        .run(scratch, Duration::from_secs_f64(seconds + 60.0))?;
    let json: Value = serde_json::from_str(&client.stdout).context("what iperf3 printed")?;
    iperf3_rate(&json, start_up)
}

fn iperf3_rate(json: &Value, start_up: f64) -> Result<f64> {
    let intervals = json["intervals"]
        .as_array()
        .context("intervals of iperf3")?;
    let (mut bytes, mut seconds) = (0.0, 0.0);
    for interval in intervals {
        let sum = &interval["sum"];
        let number = |name: &str| {
            sum[name]
                .as_f64()
                .with_context(|| format!("{name} of an interval of iperf3"))
        };
        if number("start")? >= start_up {
            bytes += number("bytes")?;
            seconds += number("seconds")?;
        }
    }
    if seconds == 0.0 {
        bail!("iperf3 has no interval after its start-up");
    }
    Ok(bytes / seconds)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(bins: &[u64]) -> Record {
        Record {
            bins: bins.to_vec(),
            ..Record::default()
        }
    }

    #[test]
    fn the_full_run_has_every_line_of_the_contract() {
        let names: Vec<String> = lines(false).iter().map(Line::name).collect();
        assert_eq!(names.len(), 24 + 3 + 1);
        assert!(
            names.contains(&"20m-100ms-0.1pct".to_owned())
                && names.contains(&"1g-20ms-0pct".to_owned())
        );
        let quick: Vec<String> = lines(true).iter().map(Line::name).collect();
        assert!(
            quick.iter().all(|name| names.contains(name)) && quick.len() == 7,
            "{quick:?}"
        );
    }

    #[test]
    fn rates_leave_the_start_up_out() {
        let record = record(&[0, 10, 100, 100, 100]);
        assert!((rate(&record, 0.2, 0.5) - 1000.0).abs() < 1e-6);
        assert!((rate(&record, 0.2, 9.0) - 1000.0).abs() < 1e-6);
    }

    #[test]
    fn recovery_is_counted_from_the_restored_line() {
        let mut bins = vec![100; 10];
        bins.extend([0; 10]);
        bins.extend([0, 0, 0, 90, 90, 90, 90, 90]);
        let found = recovery(&record(&bins), 2.0, 800.0).unwrap();
        assert!((0.2..=0.31).contains(&found), "{found}");
        assert_eq!(recovery(&record(&bins), 2.0, 950.0), None);
    }

    #[test]
    fn iperf3s_intervals_are_read() {
        let interval = |start: f64, bytes: f64| serde_json::json!({"sum": {"start": start, "seconds": 0.1, "bytes": bytes}});
        let json = serde_json::json!({"intervals": [interval(0.0, 5.0), interval(0.1, 100.0), interval(0.2, 300.0)]});
        assert!((iperf3_rate(&json, 0.1).unwrap() - 2000.0).abs() < 1e-6);
        assert!(iperf3_rate(&json, 5.0).is_err());
    }
}
