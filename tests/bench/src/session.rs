//! One run of the bench: its folders, what is done already, progress, and what could not be measured.
//!
//! Work is done in *measures*: the smallest thing that is worth keeping, such as one peer's ingest. A finished measure is
//! written to the state file at once; a run that was interrupted goes on behind it. Invariant: the state file holds
//! measures of one configuration only (programs, disks, length of the run), so that a figure is never of an older build.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::process::{interrupted, is_installed};
use crate::row::{Host, Metric, Missing, Sample};

/// Ours, in every table.
pub(crate) const SPLICE: &str = "splice";

/// Says that a folder was made here and may be emptied.
const MARK: &str = ".splice-bench";

/// What may be chosen for a run.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) quick: bool,
    pub(crate) fresh: bool,
    pub(crate) work: PathBuf,
    pub(crate) images: PathBuf,
    /// The checkout, for its image maker and traces.
    pub(crate) tree: PathBuf,
    /// Where the product's programs are.
    pub(crate) programs: PathBuf,
}

#[derive(Default, Serialize, Deserialize)]
struct State {
    fingerprint: String,
    /// Bench → measure → its samples.
    done: BTreeMap<String, BTreeMap<String, Vec<Sample>>>,
}

/// See the module.
pub(crate) struct Session {
    pub(crate) settings: Settings,
    bench: String,
    state: State,
    missing: Vec<Missing>,
    begun: Instant,
    /// Seconds of work that this bench is expected to take in all, and of what is done.
    planned_s: f64,
    spent_s: f64,
    skipped_s: f64,
    _lock: File,
}

/// Takes the samples of one measure.
pub(crate) struct Recorder {
    system: String,
    samples: Vec<Sample>,
}

impl Recorder {
    /// For the figures of one system.
    pub(crate) fn of(system: &str) -> Self {
        Self {
            system: system.to_owned(),
            samples: Vec::new(),
        }
    }

    /// What was recorded.
    #[cfg(test)]
    pub(crate) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Records a figure.
    pub(crate) fn put(&mut self, case: &str, metric: Metric, value: f64, limit: Option<f64>) {
        let system = self.system.clone();
        self.put_as(case, &system, metric, value, limit);
    }

    /// Records a figure of another system than the measure's.
    pub(crate) fn put_as(
        &mut self,
        case: &str,
        system: &str,
        metric: Metric,
        value: f64,
        limit: Option<f64>,
    ) {
        self.samples.push(Sample {
            case: case.to_owned(),
            system: system.to_owned(),
            metric,
            value,
            limit,
        });
    }
}

impl Session {
    /// Takes the work folder and what an interrupted run left in it.
    ///
    /// # Errors
    /// Another run uses it, or it holds something else.
    pub(crate) fn open(settings: Settings) -> Result<Self> {
        let at = || settings.work.display().to_string();
        std::fs::create_dir_all(&settings.work).with_context(at)?;
        let mark = settings.work.join(MARK);
        let empty = std::fs::read_dir(&settings.work)
            .with_context(at)?
            .next()
            .is_none();
        if !empty && !mark.exists() {
            bail!(
                "{} holds something else; choose another folder with --work",
                at()
            );
        }
        let lock = File::create(&mark).with_context(at)?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another bench runs in {}; end it, or choose another folder with --work",
                at()
            );
        }
        let fingerprint = fingerprint(&settings);
        let kept: Option<State> = std::fs::read(settings.work.join("state.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let state = match kept {
            Some(state) if !settings.fresh && state.fingerprint == fingerprint => state,
            kept => {
                if kept.is_some_and(|state| !state.done.is_empty()) {
                    eprintln!(
                        "==> starting over: programs, disks or options are not those of the kept measures"
                    );
                }
                State {
                    fingerprint,
                    ..State::default()
                }
            }
        };
        let session = Self {
            settings,
            bench: String::new(),
            state,
            missing: Vec::new(),
            begun: Instant::now(),
            planned_s: 0.0,
            spent_s: 0.0,
            skipped_s: 0.0,
            _lock: lock,
        };
        session.clear_scratch()?;
        Ok(session)
    }

    /// Begins a bench that should take about `planned_s` seconds on a quiet machine.
    ///
    /// # Errors
    /// What an earlier one left cannot be removed.
    pub(crate) fn begin(&mut self, bench: &str, planned_s: f64) -> Result<()> {
        bench.clone_into(&mut self.bench);
        self.begun = Instant::now();
        (self.planned_s, self.spent_s, self.skipped_s) = (planned_s, 0.0, 0.0);
        eprintln!("==> {bench}: about {:.0} min", (planned_s / 60.0).ceil());
        self.clear_scratch()
    }

    /// A folder for this bench's own things; it is emptied when the next one begins.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.settings.work.join("run").join(name);
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Removes a folder of this bench, whether it is there or not.
    pub(crate) fn discard(&self, name: &str) {
        let _ = std::fs::remove_dir_all(self.settings.work.join("run").join(name));
    }

    /// Removes what benches left.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) fn clear_scratch(&self) -> Result<()> {
        match std::fs::remove_dir_all(self.settings.work.join("run")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("emptying the work folder")
            }
            _ => Ok(()),
        }
    }

    /// Whether that measure is done.
    pub(crate) fn is_done(&self, key: &str) -> bool {
        self.state
            .done
            .get(&self.bench)
            .is_some_and(|done| done.contains_key(key))
    }

    /// Whether any of these is still to be done: what they share need not be set up otherwise.
    pub(crate) fn any_left<'a>(&self, keys: impl IntoIterator<Item = &'a String>) -> bool {
        keys.into_iter().any(|key| !self.is_done(key))
    }

    /// Does one measure, unless it is done. A failure is reported and the run goes on.
    ///
    /// # Errors
    /// Interrupted, or the state cannot be kept.
    pub(crate) fn measure(
        &mut self,
        key: &str,
        system: &str,
        about_s: f64,
        work: impl FnOnce(&mut Recorder) -> Result<()>,
    ) -> Result<()> {
        if self.is_done(key) {
            self.skipped_s += about_s;
            return Ok(());
        }
        let left = (self.planned_s - self.spent_s - self.skipped_s).max(about_s);
        eprintln!(
            "    {:>5.0} s  {} {key} (about {about_s:.0} s; {:.0} min left)",
            self.begun.elapsed().as_secs_f64(),
            self.bench,
            (left / 60.0).ceil()
        );
        let mut recorder = Recorder::of(system);
        let outcome = work(&mut recorder);
        self.spent_s += about_s;
        if interrupted() {
            bail!("interrupted; run the same command again to go on");
        }
        match outcome {
            Ok(()) => {
                for sample in &recorder.samples {
                    eprintln!(
                        "             {} {} {} = {} {}",
                        sample.case,
                        sample.system,
                        sample.metric.name(),
                        crate::row::figure(sample.value),
                        sample.metric.unit()
                    );
                }
                let bench = self.state.done.entry(self.bench.clone()).or_default();
                bench.insert(key.to_owned(), recorder.samples);
                self.save()
            }
            Err(error) => {
                self.miss(key, system, &format!("{error:#}"));
                Ok(())
            }
        }
    }

    /// Reports that something cannot be measured here.
    pub(crate) fn miss(&mut self, what: &str, system: &str, reason: &str) {
        let missing = Missing {
            bench: self.bench.clone(),
            what: what.to_owned(),
            system: system.to_owned(),
            reason: reason.to_owned(),
        };
        // What is missing for good is found missing in every round.
        if !self.missing.contains(&missing) {
            eprintln!("             {what}: {system} left out: {reason}");
            self.missing.push(missing);
        }
    }

    /// Whether `program` is there; if not, that is reported once for `system`.
    pub(crate) fn has(&mut self, system: &str, program: &str, advice: &str) -> bool {
        let there = is_installed(program);
        if !there {
            self.miss(
                "all cases",
                system,
                &format!("no program {program}; {advice}"),
            );
        }
        there
    }

    /// The samples of this bench so far.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let done = self.state.done.get(&self.bench);
        done.into_iter()
            .flat_map(BTreeMap::values)
            .flatten()
            .cloned()
            .collect()
    }

    /// The samples of one measure of any bench.
    pub(crate) fn samples_of(&self, bench: &str, key: &str) -> Option<&Vec<Sample>> {
        self.state.done.get(bench)?.get(key)
    }

    /// What could not be measured so far.
    pub(crate) fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Forgets the measures: the run is whole, the next one begins anew.
    ///
    /// # Errors
    /// The state cannot be written.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.state.done.clear();
        self.save()?;
        self.clear_scratch()
    }

    fn save(&self) -> Result<()> {
        let (path, part) = (
            self.settings.work.join("state.json"),
            self.settings.work.join("state.part"),
        );
        std::fs::write(&part, serde_json::to_vec(&self.state).context("state")?)
            .and_then(|()| std::fs::rename(&part, &path))
            .context("keeping the state")
    }
}

/// Changes whenever a kept measure would no longer be one of what is there now.
fn fingerprint(settings: &Settings) -> String {
    let mut text = format!("quick={}", settings.quick);
    for program in ["splice", "splice-datacenter", "splice-branch", "bench"] {
        text += &format!(" {program}={}", stamp(&settings.programs.join(program)));
    }
    for version in 1..=3 {
        let path = settings
            .images
            .join(format!("desktop-v{version}.raw.stamp"));
        text += &format!(
            " v{version}={}",
            std::fs::read_to_string(path).unwrap_or_default().trim()
        );
    }
    text
}

fn stamp(path: &Path) -> String {
    let Ok(metadata) = std::fs::metadata(path) else {
        return "none".to_owned();
    };
    let time = metadata
        .modified()
        .ok()
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    format!("{}@{}", metadata.len(), time.unwrap_or_default().as_nanos())
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

/// This machine.
pub(crate) fn host() -> Host {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
            .unwrap_or_default()
    };
    let kib = field(&memory, "MemTotal");
    let kib = kib
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0.0);
    Host {
        cpu: field(&cpu, "model name"),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_gb: (kib * 1024.0 / 1e8_f64).round() / 10.0,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        load_before: load(),
        load_after: 0.0,
    }
}

/// One-minute load average.
pub(crate) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn settings(folder: &Path) -> Settings {
        Settings {
            quick: true,
            fresh: false,
            work: folder.join("work"),
            images: folder.to_owned(),
            tree: folder.to_owned(),
            programs: folder.to_owned(),
        }
    }

    #[test]
    fn an_interrupted_run_goes_on_and_a_changed_program_starts_over() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Session::open(settings(folder.path())).unwrap();
        {
            let mut session = open();
            session.begin("read", 1.0).unwrap();
            let put = |recorder: &mut Recorder| {
                recorder.put("seq1m", Metric::MbPerS, 5.0, None);
                Ok(())
            };
            session.measure("a/0", "raw", 1.0, put).unwrap();
            session.measure("b/0", "raw", 1.0, |_| bail!("no")).unwrap();
            assert_eq!(session.missing()[0].reason, "no");
        }
        {
            let mut session = open();
            session.begin("read", 1.0).unwrap();
            assert!(session.is_done("a/0") && !session.is_done("b/0"));
            session
                .measure("a/0", "raw", 1.0, |_| panic!("it is done"))
                .unwrap();
            assert_eq!(session.samples()[0].value, 5.0);
        }
        std::fs::write(folder.path().join("splice"), "another build").unwrap();
        let mut session = open();
        session.begin("read", 1.0).unwrap();
        assert!(!session.is_done("a/0"));
    }

    #[test]
    fn only_a_folder_of_our_own_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path());
        std::fs::create_dir(&settings.work).unwrap();
        std::fs::write(settings.work.join("thesis"), "years").unwrap();
        let error = Session::open(settings.clone()).err().unwrap().to_string();
        assert!(error.contains("holds something else"), "{error}");
        assert!(settings.work.join("thesis").exists());
    }
}
