//! One run of the bench: what is done already, progress, and what could not be measured.
//!
//! Work is done in *measures*: the smallest thing that is worth keeping, such as one peer's ingest. A finished measure is
//! written to the state file at once; a run that was interrupted goes on behind it. Invariant: the state file holds
//! measures of one configuration only (programs, disks, trace; quick and full runs have files of their own), so that a figure is
//! never of an older build.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::images::Images;
use crate::process::{interrupted, is_installed};
use crate::row::{Metric, Missing, Sample};
use crate::stage::Overrun;
use crate::workshop::Workshop;

/// Ours, in every table.
pub(crate) const SPLICE: &str = "splice";

/// Rounds of what is repeated in a full run, and in a quick one.
pub(crate) fn rounds(quick: bool) -> usize {
    if quick { 1 } else { 3 }
}

/// Whether a system that takes minutes is measured in that round: ours in each, a peer in the first. Three hours of peers would say
/// nothing that one says not: most of their figures are bytes, or seconds in which a processor is busy.
pub(crate) fn has_turn(system: &str, round: usize) -> bool {
    system == SPLICE || round == 0
}

/// What may be chosen for a run.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) quick: bool,
    pub(crate) fresh: bool,
    /// Part of the names of what is to be measured now.
    pub(crate) only: String,
    pub(crate) work: PathBuf,
    pub(crate) images: PathBuf,
    /// The checkout, for its image maker and traces.
    pub(crate) tree: PathBuf,
    /// Where the product's programs are.
    pub(crate) programs: PathBuf,
}

/// What is kept of a bench.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    fingerprint: String,
    /// Measure → its samples.
    done: BTreeMap<String, Vec<Sample>>,
    /// What its figures must be read with.
    notes: Vec<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct State {
    benches: BTreeMap<String, Kept>,
}

/// See the module.
pub(crate) struct Session {
    pub(crate) settings: Settings,
    pub(crate) workshop: Workshop,
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
    notes: Vec<String>,
}

impl Recorder {
    /// For the figures of one system.
    pub(crate) fn of(system: &str) -> Self {
        Self {
            system: system.to_owned(),
            samples: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Records a sentence that the figures must be read with.
    pub(crate) fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
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
    /// The folder cannot be had.
    pub(crate) fn open(settings: Settings) -> Result<Self> {
        let (workshop, lock) = Workshop::take(&settings.work)?;
        workshop.stock(&settings.programs, &settings.tree)?;
        let mut session = Self {
            settings,
            workshop,
            bench: String::new(),
            state: State::default(),
            missing: Vec::new(),
            begun: Instant::now(),
            planned_s: 0.0,
            spent_s: 0.0,
            skipped_s: 0.0,
            _lock: lock,
        };
        if !session.settings.fresh {
            let kept = std::fs::read(session.state_file()).ok();
            session.state = kept
                .and_then(|bytes| serde_json::from_slice(&bytes).ok())
                .unwrap_or_default();
        }
        Ok(session)
    }

    /// Begins a bench that should take about `planned_s` seconds on a quiet machine, with the disks of the versions up to `last`.
    ///
    /// # Errors
    /// What an earlier one left cannot be removed, or the disks cannot be made.
    pub(crate) fn begin(&mut self, bench: &str, planned_s: f64, last: u32) -> Result<Images> {
        self.workshop.clear()?;
        self.enter(bench, planned_s, last)
    }

    /// As [`Self::begin`], for a bench that uses what the one before it set up.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn enter(&mut self, bench: &str, planned_s: f64, last: u32) -> Result<Images> {
        bench.clone_into(&mut self.bench);
        let images = Images::ready(&self.workshop, &self.settings.images, last)?;
        let fingerprint = self.fingerprint(last);
        let kept = self.state.benches.entry(self.bench.clone()).or_default();
        if kept.fingerprint != fingerprint {
            if !kept.done.is_empty() {
                eprintln!(
                    "==> {bench}: starting over: programs, disks or trace are not those of the kept measures"
                );
            }
            *kept = Kept {
                fingerprint,
                ..Kept::default()
            };
        }
        self.begun = Instant::now();
        (self.planned_s, self.spent_s, self.skipped_s) = (planned_s, 0.0, 0.0);
        eprintln!("==> {bench}: about {:.0} min", (planned_s / 60.0).ceil());
        Ok(images)
    }

    /// A folder for this bench's own things; it is emptied when the next one begins.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf> {
        self.workshop.scratch(name)
    }

    fn kept(&self) -> Option<&Kept> {
        self.state.benches.get(&self.bench)
    }

    /// Whether that measure is done.
    pub(crate) fn is_done(&self, key: &str) -> bool {
        self.kept().is_some_and(|kept| kept.done.contains_key(key))
    }

    /// Whether any of these is still to be done: what they share need not be set up otherwise.
    pub(crate) fn any_left<'a>(&self, keys: impl IntoIterator<Item = &'a String>) -> bool {
        keys.into_iter()
            .any(|key| self.is_asked_for(key) && !self.is_done(key))
    }

    fn is_asked_for(&self, key: &str) -> bool {
        key.contains(&self.settings.only)
    }

    /// Does one measure, unless it is done. One whose packets overran the emulator is done a second time; any other failure is reported
    /// and the run goes on.
    ///
    /// # Errors
    /// Interrupted, or the state cannot be kept.
    pub(crate) fn measure(
        &mut self,
        key: &str,
        system: &str,
        about_s: f64,
        mut work: impl FnMut(&mut Recorder) -> Result<()>,
    ) -> Result<()> {
        if !self.is_asked_for(key) || self.is_done(key) {
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
        let mut outcome = work(&mut recorder);
        if outcome.as_ref().is_err_and(|error| error.is::<Overrun>()) && !interrupted() {
            eprintln!("             once more: packets overran the emulator");
            recorder = Recorder::of(system);
            outcome = work(&mut recorder);
        }
        self.spent_s += about_s;
        if interrupted() {
            bail!("interrupted; run the same command again to go on");
        }
        if outcome.is_err() && self.workshop.is_full() {
            bail!(
                "the disk of the work folder is full: make room and run the same command again to go on"
            );
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
                for note in std::mem::take(&mut recorder.notes) {
                    self.note(&note)?;
                }
                let kept = self.state.benches.entry(self.bench.clone()).or_default();
                kept.done.insert(key.to_owned(), recorder.samples);
                self.save()
            }
            Err(error) => {
                self.miss(key, system, &format!("{error:#}"));
                Ok(())
            }
        }
    }

    /// Keeps a sentence that this bench's figures must be read with.
    ///
    /// # Errors
    /// The state cannot be kept.
    pub(crate) fn note(&mut self, text: &str) -> Result<()> {
        let kept = self.state.benches.entry(self.bench.clone()).or_default();
        let note = format!("{}: {text}", self.bench);
        if !kept.notes.contains(&note) {
            eprintln!("             {note}");
            kept.notes.push(note);
        }
        self.save()
    }

    /// The sentences of a bench.
    pub(crate) fn notes(&self, bench: &str) -> &[String] {
        let kept = self.state.benches.get(bench);
        kept.map_or(&[], |kept| &kept.notes)
    }

    /// Reports that something cannot be measured here.
    pub(crate) fn miss(&mut self, what: &str, system: &str, reason: &str) {
        let bench = self.bench.clone();
        self.miss_of(&bench, what, system, reason);
    }

    /// Reports that something of some bench cannot be measured here.
    pub(crate) fn miss_of(&mut self, bench: &str, what: &str, system: &str, reason: &str) {
        let missing = Missing {
            bench: bench.to_owned(),
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

    /// The samples of a bench so far.
    pub(crate) fn samples(&self, bench: &str) -> Vec<Sample> {
        let kept = self.state.benches.get(bench);
        kept.into_iter()
            .flat_map(|kept| kept.done.values())
            .flatten()
            .cloned()
            .collect()
    }

    /// The samples of one measure of another bench on the same disks with the same programs.
    pub(crate) fn samples_of(&self, bench: &str, key: &str) -> Option<&Vec<Sample>> {
        let kept = self.state.benches.get(bench)?;
        if kept.fingerprint != self.kept()?.fingerprint {
            return None;
        }
        kept.done.get(key)
    }

    /// What could not be measured so far.
    pub(crate) fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Whether all of the product's figures of a bench are there.
    pub(crate) fn is_whole(&self, bench: &str) -> bool {
        let is_ours = |missing: &Missing| missing.bench == bench && missing.system == SPLICE;
        !self.missing.iter().any(is_ours)
    }

    /// Forgets the measures of benches that are whole: the next run of them begins anew.
    ///
    /// # Errors
    /// The state cannot be written.
    pub(crate) fn finish(&mut self, benches: &[&str]) -> Result<()> {
        for bench in benches {
            if self.is_whole(bench) {
                self.state.benches.remove(*bench);
            } else {
                eprintln!(
                    "==> {bench}: what was measured is kept; the same command measures the rest, with --fresh all of it"
                );
            }
        }
        self.save()?;
        self.workshop.clear()
    }

    /// Changes whenever a kept measure would no longer be one of what is there now.
    fn fingerprint(&self, last: u32) -> String {
        let mut text = self.workshop.fingerprint();
        for version in 1..=last {
            let stamp = Images::stamp(&self.settings.images, version);
            text += &format!(" v{version}={stamp}");
        }
        text
    }

    fn state_file(&self) -> PathBuf {
        self.workshop.file(if self.settings.quick {
            "state-quick.json"
        } else {
            "state-full.json"
        })
    }

    fn save(&self) -> Result<()> {
        write_whole(
            &self.state_file(),
            &serde_json::to_vec(&self.state).context("state")?,
        )
    }
}

/// Writes a file that is never seen in part.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, bytes)
        .and_then(|()| std::fs::rename(&part, path))
        .with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn settings(folder: &Path) -> Settings {
        Settings {
            quick: true,
            fresh: false,
            only: String::new(),
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
            session.begin("read", 1.0, 0).unwrap();
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
            session.begin("read", 1.0, 0).unwrap();
            assert!(session.is_done("a/0") && !session.is_done("b/0"));
            session
                .measure("a/0", "raw", 1.0, |_| panic!("it is done"))
                .unwrap();
            assert_eq!(session.samples("read")[0].value, 5.0);
        }
        std::fs::write(folder.path().join("splice"), "another build").unwrap();
        let mut session = open();
        session.begin("read", 1.0, 0).unwrap();
        assert!(!session.is_done("a/0"));
    }

    #[test]
    fn only_benches_that_are_whole_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let mut session = Session::open(settings(folder.path())).unwrap();
        for bench in ["read", "write", "boot"] {
            session.begin(bench, 1.0, 0).unwrap();
            session.measure("a", "raw", 1.0, |_| Ok(())).unwrap();
        }
        session.miss_of("write", "all cases", SPLICE, "no");
        session.finish(&["read", "write"]).unwrap();
        let kept: Vec<_> = session.state.benches.keys().collect();
        assert_eq!(kept, ["boot", "write"]);
    }

    #[test]
    fn a_measure_that_overran_the_emulator_is_done_once_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut session = Session::open(settings(folder.path())).unwrap();
        session.begin("link", 1.0, 0).unwrap();
        let mut runs = 0;
        let mut overrun_until = |last: u32| {
            session
                .measure(&format!("until-{last}"), "raw", 1.0, |recorder| {
                    runs += 1;
                    recorder.put("case", Metric::Seconds, f64::from(runs), None);
                    if runs < last {
                        return Err(Overrun(3).into());
                    }
                    Ok(())
                })
                .unwrap();
        };
        overrun_until(2);
        overrun_until(9);
        assert_eq!(session.samples("link").len(), 1);
        assert_eq!(session.samples("link")[0].value, 2.0);
        assert!(session.missing()[0].reason.contains("3 packets"));
    }
}
