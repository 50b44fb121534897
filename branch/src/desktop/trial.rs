//! Preflight: a desktop is tried out on another version before it is rebased, with what its user has, in a machine that is thrown away.
//!
//! ```text
//!   user volume at rest ──under──► overlay of the trial ──┐
//!   the other version (with the system's overlay between, where layouts keep that) ──under──► overlay of the trial ──► machine without a network
//!        boots ──► agent says that it has, and what is wrong; or, without one, its boot was seen ──► told; all of it goes
//! ```
//!
//! Invariant: nothing of a trial is leased, written back or reported, because its record names no volumes that are; what the desktop itself has is only read. It
//! holds the desktop's turn, and ends at once when anybody wants the desktop. Its row is kept first, so that after any stop nothing of it is left.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use branch_api::{Guest, GuestVolume, Preflight, PreflightState};
use dedup::{DesktopId, VersionId};
use dedup_protocol::profile::BootScore;
use dedup_protocol::records::Tree;
use vmm_block::{BlockDevice, BlockError, RangeStatus};

use super::machine::{self, MachineError, MachineKind};
use super::record::{self, DesktopRecord, UserVolumeRecord};
use super::volumes::{Under, UserBase};
use super::{DesktopError, Desktops, Turn, error_line, refuse_if_up};
use crate::fetch::base::CachedBase;
use crate::volume::{Base, NoBase, Volume};
use crate::writeback::rows::OverlayOf;

/// How often a trial looks what its machine does.
const LOOK: Duration = Duration::from_millis(500);
/// How long a boot may take: a desktop image under QEMU's TCG takes twelve minutes.
const BOOT_MAX: Duration = Duration::from_secs(30 * 60);
/// How long an agent is waited for behind the end of a boot: it is among the last to start.
const AGENT_WAIT: Duration = Duration::from_secs(60);
/// How long behind "booted" is listened for what is wrong: services fail a little later.
const COMPLAINTS_WAIT: Duration = Duration::from_secs(20);
/// So much of a serial console's end is looked at.
const CONSOLE_BYTES: u64 = 64 << 10;
/// What a console says of a boot that came to nothing. Only where no agent says it better.
const STUCK: [&str; 4] = [
    "Kernel panic",
    "You are in emergency mode",
    "(initramfs)",
    "Give root password for maintenance",
];

/// A trial that runs.
pub(super) struct Trying {
    shown: Mutex<Preflight>,
    ends: AtomicBool,
    boot: Mutex<Option<BootScore>>,
}

/// Those that run, and what came of the last one of each desktop.
#[derive(Default)]
pub(super) struct Trials {
    running: HashMap<String, Arc<Trying>>,
    last: HashMap<String, Preflight>,
}

/// What came of one.
struct Verdict {
    state: PreflightState,
    says: String,
    complaints: Vec<String>,
}

impl Verdict {
    fn new(state: PreflightState, says: impl Into<String>) -> Self {
        Self {
            state,
            says: says.into(),
            complaints: Vec::new(),
        }
    }
}

impl Trying {
    fn shown(&self) -> MutexGuard<'_, Preflight> {
        self.shown.lock().expect("no panic under this lock")
    }

    fn says(&self, says: &str) {
        says.clone_into(&mut self.shown().says);
    }

    fn boot(&self) -> MutexGuard<'_, Option<BootScore>> {
        self.boot.lock().expect("no panic under this lock")
    }

    fn is_to_end(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }
}

/// What a desktop shows while nobody writes to it.
struct AtRest(Volume);

impl Base for AtRest {
    fn size_bytes(&self) -> u64 {
        self.0.geometry().size_bytes
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.0.read(offset, buf)
    }

    fn read_until(
        &self,
        offset: u64,
        buf: &mut [u8],
        enough: &dyn Fn() -> bool,
    ) -> Result<(), BlockError> {
        self.0.read_until(offset, buf, enough)
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, BlockError> {
        self.0.try_read(offset, buf)
    }

    fn status(&self, offset: u64, len: u64) -> Vec<RangeStatus> {
        // Nothing said is data, which is always true enough.
        self.0.block_status(offset, len).unwrap_or_default()
    }

    fn prefetch(&self, offset: u64, len: u64) {
        // It is a hint.
        let _ = self.0.prefetch(offset, len);
    }
}

/// How names of trials end. No desktop's name has a dot.
const TRIAL: &str = ".t";

/// Under which name a desktop is tried out.
fn trial_name(desktop: &str) -> String {
    format!("{desktop}{TRIAL}")
}

/// Whether a desktop's name is a trial's.
pub(crate) fn is_trial(name: &str) -> bool {
    name.ends_with(TRIAL)
}

/// The desktop that a trial is of; of anything else its own name.
pub(super) fn desktop_of(trial: &str) -> &str {
    trial.strip_suffix(TRIAL).unwrap_or(trial)
}

impl Desktops {
    fn trials(&self) -> MutexGuard<'_, Trials> {
        self.trials.lock().expect("no panic under this lock")
    }

    /// Whether a desktop is being tried out.
    pub(super) fn is_tried(&self, name: &str) -> bool {
        self.trials().running.contains_key(name)
    }

    /// Has a trial of a desktop end, if one runs: somebody wants the desktop.
    pub(super) fn end_trial(&self, name: &str) {
        if let Some(trying) = self.trials().running.get(name) {
            trying.ends.store(true, Ordering::Relaxed);
        }
    }

    /// Notes how a trial's boot went; false: it was not one's.
    pub(super) fn note_trial_boot(&self, name: &str, score: &BootScore) -> bool {
        let Some(desktop) = name.strip_suffix(TRIAL) else {
            return false;
        };
        if let Some(trying) = self.trials().running.get(desktop) {
            *trying.boot() = Some(*score);
        }
        true
    }

    /// Keeps a desktop's record, in its place.
    pub(super) fn keep(&self, desktop: &DesktopRecord) -> Result<(), DesktopError> {
        let catalog = self.versions.catalog();
        if desktop.trial {
            return Ok(catalog.put_trial(desktop)?);
        }
        Ok(catalog.put_desktop(desktop)?)
    }

    /// How the trial of a desktop goes, or what came of the last one since this server started.
    pub fn preflight_of(&self, name: &str) -> Result<Preflight, DesktopError> {
        let trials = self.trials();
        if let Some(trying) = trials.running.get(name) {
            return Ok(trying.shown().clone());
        }
        let last = trials.last.get(name).cloned();
        last.ok_or_else(|| DesktopError::NoTrial {
            name: name.into(),
            why: "none was asked for since the branch server started".into(),
        })
    }

    /// Ends the trial of a desktop. Its machine is gone a moment later.
    pub fn cancel_preflight(&self, name: &str) -> Result<Preflight, DesktopError> {
        self.end_trial(name);
        self.preflight_of(name)
    }

    /// Begins to try a stopped desktop out on `version`, or on what its pool runs. It goes on by itself.
    pub fn preflight(
        self: &Arc<Self>,
        name: &str,
        version: Option<&str>,
    ) -> Result<Preflight, DesktopError> {
        let no = |why: String| DesktopError::NoTrial {
            name: name.into(),
            why,
        };
        let target = {
            let _turn = self.turn(name)?;
            let desktop = self.record(name)?;
            let desktop = desktop.ok_or_else(|| DesktopError::NotFound(name.into()))?;
            refuse_if_up(&desktop)?;
            let target = match version {
                Some(text) => self.version_named(text)?,
                None => self.pool_version(&desktop.pool)?.1,
            };
            if !desktop.pooled
                && desktop.version != target.to_string()
                && let Some(why) = self.why_not_over(&desktop, target)?
            {
                return Err(no(format!("it would stay on its version: {why}")));
            }
            target
        };
        let record = self.versions.catalog().version(target)?;
        let begun = Preflight {
            desktop: name.to_owned(),
            version: target.to_string(),
            image: record.as_ref().map(|r| r.image.clone()).unwrap_or_default(),
            version_number: record.map_or(0, |r| r.number),
            state: PreflightState::Running,
            says: "it begins".into(),
            complaints: Vec::new(),
            boot: None,
            agent: None,
            started_unix_ms: self.clock.now_unix_ms(),
            ended_unix_ms: None,
        };
        let trying = Arc::new(Trying {
            shown: Mutex::new(begun.clone()),
            ends: AtomicBool::new(false),
            boot: Mutex::default(),
        });
        let mut trials = self.trials();
        if trials.running.contains_key(name) {
            return Err(no("another trial of it has not ended yet; try again".into()));
        }
        trials.running.insert(name.to_owned(), Arc::clone(&trying));
        drop(trials);
        let (desktops, name) = (Arc::clone(self), name.to_owned());
        std::thread::spawn(move || desktops.run_trial(&name, target, &trying));
        Ok(begun)
    }

    fn run_trial(&self, name: &str, target: VersionId, trying: &Trying) {
        let verdict = self.try_out(name, target, trying);
        let verdict = verdict
            .unwrap_or_else(|error| Verdict::new(PreflightState::Failed, error_line(&error)));
        let mut shown = trying.shown().clone();
        shown.state = verdict.state;
        shown.says = verdict.says;
        shown.complaints = verdict.complaints;
        shown.boot = trying.boot().as_ref().map(record::boot_report);
        shown.ended_unix_ms = Some(self.clock.now_unix_ms());
        tracing::info!(
            desktop = name,
            version = shown.version,
            state = ?shown.state,
            says = shown.says,
            "tried out"
        );
        let mut trials = self.trials();
        trials.running.remove(name);
        trials.last.insert(name.to_owned(), shown);
    }

    /// The desktop's turn; none if somebody wants the desktop before.
    fn trial_turn(&self, name: &str, trying: &Trying) -> Option<Turn<'_>> {
        while !trying.is_to_end() {
            if let Some(turn) = self.try_turn(name) {
                return Some(turn);
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    fn try_out(
        &self,
        name: &str,
        target: VersionId,
        trying: &Trying,
    ) -> Result<Verdict, DesktopError> {
        let ended = || Verdict::new(PreflightState::Ended, "somebody wanted the desktop");
        let Some(_turn) = self.trial_turn(name, trying) else {
            return Ok(ended());
        };
        let desktop = self.record(name)?;
        let desktop = desktop.ok_or_else(|| DesktopError::NotFound(name.into()))?;
        refuse_if_up(&desktop)?;
        let mut trial = trial_of(&desktop, target);
        if let Some(too_long) = self.files(&trial.name).too_long() {
            return Err(DesktopError::PathTooLong(too_long));
        }
        // What is left of an earlier one, if that could not be removed.
        self.throw_away(&trial)?;
        self.keep(&trial)?;
        let verdict = self
            .start_trial(&desktop, &mut trial, target, trying)
            .map(|()| self.watch_trial(&trial, trying).unwrap_or_else(ended));
        self.throw_away(&trial)?;
        verdict
    }

    fn start_trial(
        &self,
        desktop: &DesktopRecord,
        trial: &mut DesktopRecord,
        target: VersionId,
        trying: &Trying,
    ) -> Result<(), DesktopError> {
        let (version, record) = self.version_of(trial)?;
        let choice = self.choose_machine(trial, &record)?;
        trying.says("kernel and initrd are fetched");
        let files = self.absent_boot_files(version, &record)?;
        self.fetcher.boot_begins();
        self.boots.prepare(&trial.name, version, &files);
        let kernel = self.boot_files(version, &record)?;
        if choice.kind == MachineKind::Splice {
            self.give_user(trial)?;
        }
        let under = self.under_trial(desktop, target)?;
        let files = self.files(&trial.name);
        machine::private_folder(files.dir()).map_err(|source| MachineError::Io {
            name: trial.name.clone(),
            what: "make its directory".into(),
            source,
        })?;
        self.volumes.open(trial, under, &files)?;
        if let Some(volume) = self.volumes.find(&trial.name) {
            self.boots.begin(&trial.name, volume.base());
        }
        trying.says("its machine boots");
        // No network: what runs in the user's name does nothing to the world.
        let spec = self.spec(trial, version, kernel, choice)?;
        trial.machine = Some(spec.start(self.clock.now_unix_ms())?);
        self.keep(trial)
    }

    /// What lies under a trial's overlays.
    fn under_trial(
        &self,
        desktop: &DesktopRecord,
        target: VersionId,
    ) -> Result<Under, DesktopError> {
        let not_here = || DesktopError::NotHere {
            version: target.to_string(),
        };
        let tree = self.versions.tree(target, Tree::Disk)?;
        let tree = tree.ok_or_else(not_here)?;
        let system = Arc::new(CachedBase::new(tree, Arc::clone(&self.fetcher)));
        let mut through: Option<Arc<dyn Base>> = None;
        if !desktop.pooled {
            if !self.overlay_is_here(desktop.system_volume())? {
                return Err(DesktopError::NoTrial {
                    name: desktop.name.clone(),
                    why: "what was written to its system is not here".into(),
                });
            }
            // Where layouts allow it, what was written to the system goes on over the other version.
            let former = self.system_base(desktop)?;
            let disk = (former.version(), former.size_bytes());
            let overlay = self.volumes.system_overlay(desktop, disk, false)?;
            // Its own version: also where its system goes on behind a state of that.
            let is_same = desktop.version == target.to_string();
            let base: Arc<dyn Base> = if is_same { former } else { system.clone() };
            let volume = self.at_rest(desktop, Volume::new(base, overlay, 0))?;
            through = Some(Arc::new(volume));
        }
        let user = match &desktop.user_volume {
            Some(user) if user.made => Some(self.user_at_rest(desktop, user)?),
            // It would begin empty at its first start as well.
            Some(_) | None => None,
        };
        Ok(Under {
            system,
            through,
            user,
        })
    }

    fn user_at_rest(
        &self,
        desktop: &DesktopRecord,
        user: &UserVolumeRecord,
    ) -> Result<UserBase, DesktopError> {
        if !self.overlay_is_here(DesktopId(user.id))? {
            return Err(DesktopError::NoTrial {
                name: desktop.name.clone(),
                why: "its user volume is not here".into(),
            });
        }
        let under = self.user_base(desktop)?;
        let name = under.as_ref().map(|under| under.name);
        let overlay = self.volumes.user_overlay(desktop, (user, name), false)?;
        let base: Arc<dyn Base> = match under {
            Some(under) => under.base,
            None => Arc::new(NoBase),
        };
        let volume = self.at_rest(desktop, Volume::new(base, overlay, 0))?;
        Ok(UserBase {
            // Of something that is gone before anybody could ask.
            name: VersionId([0; 32]),
            base: Arc::new(volume),
        })
    }

    fn at_rest(
        &self,
        desktop: &DesktopRecord,
        volume: Result<Volume, crate::volume::OverlayError>,
    ) -> Result<AtRest, DesktopError> {
        let volume = volume.map_err(|source| super::VolumeError::Overlay {
            name: desktop.name.clone(),
            source,
        })?;
        Ok(AtRest(volume))
    }

    fn overlay_is_here(&self, volume: DesktopId) -> Result<bool, DesktopError> {
        let kept = self.versions.catalog().hold(volume)?;
        Ok(kept.is_none_or(|kept| kept.overlay != OverlayOf::Gone))
    }

    /// Watches a trial until it is known what comes of it; none: somebody wants the desktop.
    fn watch_trial(&self, trial: &DesktopRecord, trying: &Trying) -> Option<Verdict> {
        let unwell = |says: &str| Some(Verdict::new(PreflightState::Unhealthy, says));
        let machine = trial.machine.as_ref()?;
        let begun = Instant::now();
        let (mut booted, mut settled): (Option<Instant>, Option<Instant>) = (None, None);
        while begun.elapsed() < BOOT_MAX {
            if trying.is_to_end() {
                return None;
            }
            if !machine::is_alive(machine) {
                return unwell("its machine ended");
            }
            let failure = self.volumes.find(&trial.name).and_then(|v| v.failure());
            if let Some(why) = failure {
                return unwell(&format!("its disk failed: {why}"));
            }
            if settled.is_none() && trying.boot().is_some() {
                settled = Some(Instant::now());
            }
            let guest = self
                .guests
                .shown(&trial.name)
                .filter(|guest| guest.connected);
            if let Some(guest) = &guest {
                trying.shown().agent = Some(guest.agent.clone());
                if guest.booted && booted.is_none() {
                    trying.says("it has booted; its agent is listened to");
                    booted = Some(Instant::now());
                }
                if let Some(at) = booted
                    && at.elapsed() >= COMPLAINTS_WAIT
                {
                    return Some(judged(guest, trial.user_volume.is_some()));
                }
            } else if let Some(at) = settled
                && at.elapsed() >= AGENT_WAIT
            {
                return Some(self.judged_by_console(trial));
            }
            std::thread::sleep(LOOK);
        }
        unwell("it did not boot in half an hour")
    }

    /// What can be said without an agent: it read what a boot reads, and its console does not say that it is stuck.
    fn judged_by_console(&self, trial: &DesktopRecord) -> Verdict {
        let console = end_of(&self.files(&trial.name).serial_log());
        let stuck = STUCK.iter().find(|words| console.contains(**words));
        match stuck {
            Some(words) => Verdict::new(
                PreflightState::Unhealthy,
                format!("its console says: {words}"),
            ),
            None => Verdict::new(
                PreflightState::Healthy,
                "its boot was seen; without an agent no more can be told",
            ),
        }
    }

    /// Ends a trial's machine and destroys all that was written to it.
    fn throw_away(&self, trial: &DesktopRecord) -> Result<(), DesktopError> {
        // What is kept may know more than the caller: a machine that was started last.
        let kept = self.versions.catalog().trials()?.into_iter();
        let kept = kept.filter(|kept| kept.name == trial.name);
        let files = self.files(&trial.name);
        let mut is_noted = false;
        for machine in kept.chain([trial.clone()]).filter_map(|t| t.machine) {
            machine::stop(&machine, &files, Duration::ZERO, false);
            is_noted = true;
        }
        if !is_noted {
            // The server may have ended between its start and the note of it.
            machine::end_unnoted(&files);
        }
        self.boots.forget(&trial.name);
        self.volumes.close(&trial.name)?;
        self.volumes.delete(trial)?;
        match std::fs::remove_dir_all(self.dir.join(&trial.name)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(MachineError::Io {
                    name: trial.name.clone(),
                    what: "remove its directory".into(),
                    source,
                }
                .into());
            }
            _ => {}
        }
        Ok(self.versions.catalog().delete_trial(&trial.name)?)
    }

    /// Throws away what is left of a trial of a desktop. The caller has its turn, so that none runs.
    pub(super) fn throw_away_trial_of(&self, desktop: &DesktopRecord) -> Result<(), DesktopError> {
        match self.trial_kept(&desktop.name)? {
            Some(trial) => self.throw_away(&trial),
            None => Ok(()),
        }
    }

    /// The record of the trial of a desktop, if there is one.
    pub(super) fn trial_kept(&self, desktop: &str) -> Result<Option<DesktopRecord>, DesktopError> {
        let mut trials = self.versions.catalog().trials()?.into_iter();
        Ok(trials.find(|trial| desktop_of(&trial.name) == desktop))
    }

    /// Throws away what a stop of this server left of trials.
    pub(super) fn throw_away_trials(&self) -> Result<(), DesktopError> {
        for trial in self.versions.catalog().trials()? {
            if let Err(error) = self.throw_away(&trial) {
                let error = error_line(&error);
                tracing::error!(
                    desktop = trial.name,
                    error,
                    "what is left of a trial is not removed"
                );
            }
        }
        Ok(())
    }
}

/// A desktop as it is tried out on another version.
fn trial_of(desktop: &DesktopRecord, target: VersionId) -> DesktopRecord {
    DesktopRecord {
        name: trial_name(&desktop.name),
        version: target.to_string(),
        system: None,
        user_volume: desktop.user_volume.as_ref().map(|user| UserVolumeRecord {
            // Another disk for the guest, and another key.
            id: rand::random(),
            size_bytes: user.size_bytes,
            made: false,
        }),
        trial: true,
        chosen: None,
        kept_back: None,
        rebasing: None,
        uid: None,
        address: None,
        served: false,
        machine: None,
        cloning: false,
        error: None,
        boot: None,
        ..desktop.clone()
    }
}

/// What an agent's word comes to.
fn judged(guest: &Guest, has_user_volume: bool) -> Verdict {
    let is_mounted = guest.user_volume == GuestVolume::Mounted;
    let mut verdict = if has_user_volume && !is_mounted {
        let why = guest.user_volume_refusal.clone();
        let why = why.unwrap_or_else(|| "the guest does not see its disk".to_owned());
        let says = format!("it has booted, and its user volume is not mounted: {why}");
        Verdict::new(PreflightState::Unhealthy, says)
    } else if guest.protocol.is_none() {
        let says =
            "it has booted; its agent speaks no protocol of this branch, so no more can be told";
        Verdict::new(PreflightState::Healthy, says)
    } else if guest.failed_units.is_empty() {
        Verdict::new(
            PreflightState::Healthy,
            "it has booted, and its agent finds it well",
        )
    } else {
        // Without a network some do.
        Verdict::new(
            PreflightState::Healthy,
            "it has booted; some services failed, which may be for want of a network",
        )
    };
    verdict.complaints = guest.complaints();
    verdict
}

/// The end of a console's log, as far as it is text.
fn end_of(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(CONSOLE_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(CONSOLE_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use vmm_block::BlockErrorKind;

    use super::*;
    use crate::desktop::record::{THROWAWAY, check_name};
    use crate::volume::MemBase;

    fn guest() -> Guest {
        Guest {
            agent: "splice-agent 0.1".into(),
            protocol: Some(1),
            connected: true,
            heard_unix_ms: 1,
            booted: true,
            itself: None,
            users: Vec::new(),
            user_volume: GuestVolume::Mounted,
            user_volume_refusal: None,
            disks: Vec::new(),
            failed_units: Vec::new(),
            troubles: Vec::new(),
            malformed_lines: 0,
        }
    }

    #[test]
    fn a_user_volume_that_is_not_mounted_is_no_health() {
        assert_eq!(judged(&guest(), true).state, PreflightState::Healthy);
        let mut refused = guest();
        refused.user_volume = GuestVolume::Refused;
        refused.user_volume_refusal = Some("no file system".into());
        let verdict = judged(&refused, true);
        assert_eq!(verdict.state, PreflightState::Unhealthy);
        assert!(verdict.says.contains("no file system"), "{}", verdict.says);
        assert_eq!(judged(&refused, false).state, PreflightState::Healthy);
        let mut failed = guest();
        failed.failed_units = vec!["cups.service".into()];
        let verdict = judged(&failed, true);
        assert_eq!(verdict.state, PreflightState::Healthy);
        assert_eq!(verdict.complaints, ["cups.service failed"]);
    }

    #[test]
    fn no_desktop_has_a_trials_name_and_it_is_known_whose_it_is() {
        let name = trial_name("alice");
        check_name(&name).unwrap_err();
        assert_eq!(desktop_of(&name), "alice");
        assert_eq!(desktop_of("alice"), "alice");
        assert_eq!(desktop_of(THROWAWAY), THROWAWAY);
    }

    #[test]
    fn what_a_desktop_shows_at_rest_is_read_and_not_written() {
        use dedup_store::disk::HostDisk;

        use crate::volume::{Overlay, OverlayIdentity, OverlayKey, OverlayOptions};
        let identity = OverlayIdentity {
            desktop: [1; 16],
            base: VersionId([2; 32]),
            disks: vec![1 << 20],
        };
        let key = OverlayKey::new([4; 32], |buf| {
            rand::RngCore::fill_bytes(&mut rand::rng(), buf);
        });
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(HostDisk::new(folder.path()).unwrap());
        let options = OverlayOptions {
            floor_bytes: 0,
            ..OverlayOptions::default()
        };
        let overlay = Overlay::create(disk, "o", &identity, [3; 16], &key, options).unwrap();
        let base: Arc<dyn Base> = Arc::new(MemBase::new(vec![7; 1 << 20]));
        let volume = Volume::new(base, Arc::new(overlay), 0).unwrap();
        volume.write(4096, &[9; 4096], true).unwrap();
        let rest = AtRest(volume);
        assert_eq!(rest.size_bytes(), 1 << 20);
        let mut bytes = [0; 8192];
        rest.read(0, &mut bytes).unwrap();
        assert_eq!((bytes[0], bytes[4096]), (7, 9));
        assert!(rest.try_read(0, &mut bytes).unwrap());
        let beyond = rest.read(1 << 20, &mut bytes).unwrap_err();
        assert_eq!(beyond.kind, BlockErrorKind::OutOfRange);
    }
}
