//! Desktops at this branch: their volumes, exports and machines, across restarts of the branch server.
//!
//! ```text
//!             start                 machine ends by itself
//!   (none) ─────────► Running ───────────────────────────► Failed ──start──► Running
//!                       │  ▲                                  │
//!                  stop ▼  │ start (goes on with its overlay) │ delete
//!                     Stopped ──────────delete────────────► (none)
//!                      └──reset, rebase──► Stopped (its system begins anew or lies over another version, its user volume stays)
//!                     Running, Stopped ──moved away──► Stopped (nothing of it is here) ──moved back──► Stopped
//! ```
//!
//! A fresh desktop of a pool that asks for it goes on from a template instead of booting ([`resume`]), which is made beforehand of a desktop that
//! nobody sees ([`template`]).
//!
//! A machine outlives the branch server. On start the server opens the volumes of all machines that still run before it
//! listens for NBD, so that a guest that reconnects finds everything it wrote.

mod began;
mod checkouts;
mod error;
mod figures;
mod growth;
mod guest;
mod layout;
pub mod machine;
mod moved;
mod outfit;
mod rebase;
pub mod record;
mod resume;
mod rights;
mod room;
mod signs;
mod starting;
mod template;
mod templates;
mod tree_file;
mod trial;
mod undo;
mod user_volume;
mod volumes;
pub mod wiping;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use branch_api::{Desktop, DesktopState, UserVolume};
use dedup::{DesktopId, VersionId};
use dedup_protocol::records::{MachineType, VersionRecord};
use dedup_protocol::state::message::Cut;
use tracing::span::EnteredSpan;

use crate::clock::Clock;
use crate::fetch::Fetcher;
use crate::guest::Guests;
use crate::network::Network;
use crate::profile::{BOOT_MS_MAX, Boots};
use crate::ready::writes::Writes;
use crate::template::Shelf;
use crate::versions::Versions;
use crate::volume::Shortage;
pub use error::{DesktopError, error_line};
pub use figures::OverlayFigures;
use machine::{Files, MachineError, MachineHost};
use record::{DesktopRecord, THROWAWAY};
pub(crate) use trial::is_trial;
use volumes::Under;
pub use volumes::{OpenVolume, VolumeError, Volumes};

/// How long a guest gets to shut down when it is asked to.
const STOP_GRACE: Duration = Duration::from_secs(60);

/// How long a call waits for another that works on the same desktop.
const TURN_WAIT: Duration = Duration::from_secs(15);

/// See the module.
pub struct Desktops {
    dir: PathBuf,
    versions: Arc<Versions>,
    fetcher: Arc<Fetcher>,
    volumes: Volumes,
    boots: Boots,
    writes: Writes,
    guests: Arc<Guests>,
    /// What was seen of desktops since their machines started.
    signs: signs::Signs,
    host: MachineHost,
    network: Arc<Network>,
    clock: Arc<dyn Clock>,
    /// Names of desktops that a call is working on.
    busy: Mutex<HashSet<String>>,
    turn_over: Condvar,
    /// Volumes here, and what was seen of their desktops.
    watch: Mutex<rights::Watch>,
    /// Held while an overlay is opened only to be sent.
    lending: Mutex<()>,
    /// Whether the cache gave room up since the disk ran full, and if so, whether the link was up then.
    made_room: Mutex<Option<bool>>,
    /// Held while a desktop is given what no other has.
    giving: Mutex<()>,
    /// Desktops that are tried out on another version, and what came of it.
    trials: Mutex<trial::Trials>,
    /// Held while orders to wipe are followed.
    wiping: Mutex<()>,
    /// What is made whole for desktops that are checked out to this branch.
    filled: Mutex<checkouts::Filled>,
    /// What fresh desktops may go on from; without, all boot.
    templates: Option<Shelf>,
}

/// Keeps a desktop's name busy until dropped. All that is logged meanwhile is in a span that names the desktop.
struct Turn<'a> {
    desktops: &'a Desktops,
    name: String,
    _span: EnteredSpan,
}

impl<'a> Turn<'a> {
    fn new(desktops: &'a Desktops, name: &str) -> Self {
        Self {
            desktops,
            name: name.to_owned(),
            _span: tracing::info_span!("turn", desktop = name).entered(),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.desktops.busy().remove(&self.name);
        self.desktops.turn_over.notify_all();
    }
}

impl Desktops {
    /// Takes up the desktops in the catalog. `dir` holds a directory for each.
    pub fn new(
        dir: PathBuf,
        versions: Arc<Versions>,
        fetcher: Arc<Fetcher>,
        volumes: Volumes,
        host: MachineHost,
        network: Arc<Network>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            dir,
            boots: Boots::new(Arc::clone(&versions), Arc::clone(&fetcher)),
            writes: growth::resume(&versions),
            versions,
            fetcher,
            volumes,
            guests: Arc::default(),
            signs: signs::Signs::default(),
            host,
            network,
            clock,
            busy: Mutex::default(),
            turn_over: Condvar::new(),
            watch: Mutex::default(),
            lending: Mutex::default(),
            made_room: Mutex::default(),
            giving: Mutex::default(),
            trials: Mutex::default(),
            wiping: Mutex::default(),
            filled: Mutex::default(),
            templates: None,
        }
    }

    /// Has desktops go on from templates on this shelf, where their pools ask for it.
    #[must_use]
    pub fn with_templates(mut self, shelf: Shelf) -> Self {
        self.templates = Some(shelf);
        self
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<String>> {
        self.busy.lock().expect("no panic under this lock")
    }

    /// Takes the desktop for one call. Another call, or [`Self::tend`], may have it for a moment: that is waited for.
    fn turn(&self, name: &str) -> Result<Turn<'_>, DesktopError> {
        let begun = Instant::now();
        // Whoever wants the desktop itself does not wait for what only tries it out.
        self.end_trial(name);
        let mut busy = self.busy();
        while busy.contains(name) {
            let waited = begun.elapsed();
            if waited >= TURN_WAIT {
                return Err(DesktopError::Busy {
                    name: name.into(),
                    state: "being worked on",
                    way_out: "wait until that is done",
                });
            }
            busy = self
                .turn_over
                .wait_timeout(busy, TURN_WAIT - waited)
                .expect("no panic under this lock")
                .0;
        }
        busy.insert(name.to_owned());
        Ok(Turn::new(self, name))
    }

    /// Takes the desktop only if nobody has it.
    fn try_turn(&self, name: &str) -> Option<Turn<'_>> {
        let is_free = self.busy().insert(name.to_owned());
        is_free.then(|| Turn::new(self, name))
    }

    fn record(&self, name: &str) -> Result<Option<DesktopRecord>, DesktopError> {
        Ok(self
            .versions
            .catalog()
            .desktops()?
            .into_iter()
            .find(|d| d.name == name))
    }

    fn files(&self, name: &str) -> Files {
        Files::new(self.dir.join(name))
    }

    /// The exports, for the NBD server.
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// The boots that run, and what is known of boots.
    pub fn boots(&self) -> &Boots {
        &self.boots
    }

    /// Opens the volumes of machines that run since before this server started, and forgets machines that ended meanwhile. To be called
    /// before the NBD server listens.
    pub fn recover(&self) -> Result<(), DesktopError> {
        self.throw_away_trials()?;
        let mut desktops = self.versions.catalog().desktops()?;
        self.volumes.adopt_plain(&desktops)?;
        self.recover_cut_off(&mut desktops);
        for mut desktop in desktops {
            self.finish_interrupted(&mut desktop);
            if desktop.served
                && let Err(error) = self.open_volume(&desktop)
            {
                let error = &error as &dyn std::error::Error;
                tracing::error!(desktop = desktop.name, error, "volume does not open");
            }
            let Some(machine) = &desktop.machine else {
                continue;
            };
            if !machine::is_alive(machine) {
                tracing::warn!(
                    desktop = desktop.name,
                    "the machine ended while the branch server was down"
                );
                desktop.machine = None;
                desktop.error = Some("the machine ended while the branch server was down".into());
                self.versions.catalog().put_desktop(&desktop)?;
                continue;
            }
            match self.open_volume(&desktop) {
                Ok(()) => {
                    tracing::info!(
                        desktop = desktop.name,
                        pid = machine.pid,
                        "the machine goes on"
                    );
                    // A boot that began before is followed to its end, but it is not a whole recording any more.
                    let age_ms = self
                        .clock
                        .now_unix_ms()
                        .saturating_sub(machine.started_unix_ms);
                    if age_ms < u64::from(BOOT_MS_MAX)
                        && let Ok((version, _)) = self.version_of(&desktop)
                    {
                        self.boots.prepare(&desktop.name, version, &[]);
                    }
                }
                Err(error) => {
                    // Its guest waits at the export; others must not wait with it.
                    tracing::error!(
                        desktop = desktop.name,
                        error = &error as &dyn std::error::Error,
                        "volume does not open"
                    );
                    desktop.error = Some(error_line(&error));
                    self.versions.catalog().put_desktop(&desktop)?;
                }
            }
        }
        Ok(())
    }

    fn version_of(
        &self,
        desktop: &DesktopRecord,
    ) -> Result<(VersionId, VersionRecord), DesktopError> {
        let not_here = || DesktopError::NotHere {
            version: desktop.version.clone(),
        };
        let id = VersionId::from_str(&desktop.version).map_err(|_| not_here())?;
        let record = self.versions.catalog().version(id)?.ok_or_else(not_here)?;
        Ok((id, record))
    }

    fn open_volume(&self, desktop: &DesktopRecord) -> Result<(), DesktopError> {
        let under = Under {
            system: self.system_base(desktop)?,
            through: None,
            user: self.user_base(desktop)?,
        };
        let files = self.files(&desktop.name);
        machine::private_folder(files.dir()).map_err(|source| MachineError::Io {
            name: desktop.name.clone(),
            what: "make its directory".into(),
            source,
        })?;
        self.volumes.open(desktop, under, &files)?;
        Ok(())
    }

    /// Stops a desktop. Blocks until its machine has ended.
    pub fn stop(&self, name: &str, force: bool) -> Result<Desktop, DesktopError> {
        let _turn = self.turn(name)?;
        let mut desktop = self
            .record(name)?
            .ok_or_else(|| DesktopError::NotFound(name.into()))?;
        // Shutting down is not part of the boot.
        if let Some(score) = self.boots.end(name) {
            desktop.boot = Some(record::boot_report(&score));
        }
        if let Some(machine) = desktop.machine.take() {
            let grace = if force { Duration::ZERO } else { STOP_GRACE };
            // An agent shuts down for certain; what a guest does about its power button is its own matter.
            let was_asked = !force && self.guests.shut_down(name).is_ok();
            machine::stop(&machine, &self.files(name), grace, was_asked);
        }
        self.wish(&desktop, Cut::LogOff);
        desktop.error = None;
        desktop.served = false;
        self.volumes.close(name)?;
        self.versions.catalog().put_desktop(&desktop)?;
        self.drop_pooled(&mut desktop);
        tracing::info!(desktop = name, "stopped");
        Ok(self.describe(&desktop, false))
    }

    /// Deletes a stopped desktop with its overlay.
    pub fn delete(&self, name: &str) -> Result<(), DesktopError> {
        let _turn = self.turn(name)?;
        let desktop = self
            .record(name)?
            .ok_or_else(|| DesktopError::NotFound(name.into()))?;
        refuse_if_up(&desktop)?;
        self.refuse_if_checked_out(&desktop)?;
        self.volumes.close(name)?;
        self.remove(&desktop)
    }

    /// Removes a desktop whose volume is closed.
    fn remove(&self, desktop: &DesktopRecord) -> Result<(), DesktopError> {
        let name = desktop.name.as_str();
        let volumes = desktop.volumes();
        self.give_up(name, &volumes)?;
        // The key first, the row last: a stop in between leaves a desktop without data that can be deleted again.
        self.volumes.delete(desktop)?;
        self.versions.catalog().delete_desktop(name)?;
        self.forget_lines(name, &volumes)?;
        match std::fs::remove_dir_all(self.dir.join(name)) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(MachineError::Io {
                name: name.into(),
                what: "remove its directory".into(),
                source,
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// All desktops.
    pub fn list(&self) -> Result<Vec<Desktop>, DesktopError> {
        let desktops = self.versions.catalog().desktops()?;
        let shown = desktops.iter().filter(|d| d.name != THROWAWAY);
        Ok(shown.map(|d| self.describe(d, true)).collect())
    }

    /// One desktop.
    pub fn show(&self, name: &str) -> Result<Desktop, DesktopError> {
        let desktop = self.record(name)?.filter(|d| d.name != THROWAWAY);
        let desktop = desktop.ok_or_else(|| DesktopError::NotFound(name.into()))?;
        Ok(self.describe(&desktop, true))
    }

    /// Looks after machines: those that ended are noted, those that paused on a failed read or write are let go on. To be called about
    /// every second; `connected` says whether the link is up.
    pub fn tend(&self, connected: bool) {
        self.tend_wipes();
        self.tend_boots();
        self.make_room();
        self.network.tend();
        let desktops = match self.versions.catalog().desktops() {
            Ok(desktops) => desktops,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "desktops cannot be read"
                );
                return;
            }
        };
        self.tend_writes(&desktops, Instant::now());
        self.tend_rights(&desktops, connected);
        self.tend_checkouts();
        for listed in desktops {
            if listed.machine.is_none() {
                continue;
            }
            let Some(_turn) = self.try_turn(&listed.name) else {
                continue;
            };
            // As it is now that nobody else changes it.
            let Ok(Some(mut desktop)) = self.record(&listed.name) else {
                continue;
            };
            let Some(machine) = desktop.machine.clone() else {
                continue;
            };
            if machine::is_alive(&machine) {
                let volume = self.volumes.find(&desktop.name);
                let is_short = volume.as_ref().is_some_and(|v| v.shortage().is_some());
                // A guest that ran out of room goes on when there is some, whatever the link does.
                let may = connected || volume.as_ref().is_some_and(|v| v.was_short());
                let files = self.files(&desktop.name);
                if !is_short && may && machine::resume_after_io_error(&machine, &files) {
                    if let Some(volume) = &volume {
                        volume.forget_shortage();
                    }
                    tracing::info!(
                        desktop = desktop.name,
                        "goes on after a failed read or write"
                    );
                }
                continue;
            }
            tracing::info!(desktop = desktop.name, "the machine ended");
            desktop.machine = None;
            if let Some(score) = self.boots.end(&desktop.name) {
                desktop.boot = Some(record::boot_report(&score));
            }
            if let Err(error) = self.volumes.close(&desktop.name) {
                desktop.error = Some(error.to_string());
            }
            if let Err(error) = self.versions.catalog().put_desktop(&desktop) {
                tracing::error!(
                    desktop = desktop.name,
                    error = &error as &dyn std::error::Error,
                    "state not kept"
                );
            }
            self.drop_pooled(&mut desktop);
        }
    }

    /// Notes how boots went that have settled.
    fn tend_boots(&self) {
        for (name, score) in self.boots.settled() {
            // Who makes a template of a throwaway has it for minutes, and has no use for the score.
            if name == THROWAWAY || self.note_trial_boot(&name, &score) {
                continue;
            }
            // A call that works on it waits for nothing of ours.
            let Ok(_turn) = self.turn(&name) else {
                continue;
            };
            let Ok(Some(mut desktop)) = self.record(&name) else {
                continue;
            };
            desktop.boot = Some(record::boot_report(&score));
            if let Err(error) = self.versions.catalog().put_desktop(&desktop) {
                tracing::error!(
                    desktop = name,
                    error = &error as &dyn std::error::Error,
                    "how it booted is not kept"
                );
            }
        }
    }

    fn describe(&self, desktop: &DesktopRecord, look: bool) -> Desktop {
        let files = self.files(&desktop.name);
        let alive = desktop.machine.as_ref().filter(|m| machine::is_alive(m));
        let volume = self.volumes.find(&desktop.name);
        let shortage = volume.as_ref().and_then(|v| v.shortage());
        let failed = volume.as_ref().and_then(|v| v.failure());
        let waits_for = volume.as_ref().and_then(|v| v.waits_for());
        // Who works on it knows its state; only a look from outside can meet it half way.
        let is_tried = self.is_tried(&desktop.name);
        let starting = look && alive.is_none() && !is_tried && self.busy().contains(&desktop.name);
        let state = match alive {
            _ if failed.is_some() => DesktopState::Failed,
            // Its writes wait, and so does it soon: reads go on until then.
            Some(_) if shortage.is_some() || waits_for.is_some() => DesktopState::Paused,
            Some(machine) if look && machine::is_paused_by_io_error(machine, &files) => {
                DesktopState::Paused
            }
            Some(_) => DesktopState::Running,
            None if starting => DesktopState::Starting,
            None if desktop.served => DesktopState::Served,
            None if desktop.error.is_some() => DesktopState::Failed,
            None => DesktopState::Stopped,
        };
        let version = self.version_of(desktop).ok();
        let user_volume = desktop.user_volume.as_ref().map(|user| {
            let disk = volume.as_ref().and_then(|v| v.user());
            UserVolume {
                size_bytes: user.size_bytes,
                written_bytes: disk.map(|disk| disk.written_bytes()),
                serial: user.serial(),
                nbd_export: user_volume::export_name(&desktop.name),
                disk_socket: disk.and_then(|_| there(&files.user_disk_socket())),
            }
        });
        Desktop {
            name: desktop.name.clone(),
            pool: desktop.pool.clone(),
            identity: DesktopId(desktop.id).to_string(),
            pooled: desktop.pooled,
            kept_back: desktop.kept_back.clone(),
            version: desktop.version.clone(),
            image: version
                .as_ref()
                .map(|(_, r)| r.image.clone())
                .unwrap_or_default(),
            version_number: version.map_or(0, |(_, r)| r.number),
            state,
            error: failed
                .or_else(|| shortage.map(room::shortage_line))
                .or(waits_for)
                .or_else(|| desktop.error.clone()),
            missing_bytes: match shortage {
                Some(Shortage::DiskBytes(bytes)) => Some(bytes),
                Some(Shortage::IndexFull) | None => None,
            },
            machine_type: match desktop.wanted {
                MachineType::Auto => datacenter_api::MachineType::Auto,
                MachineType::Splice => datacenter_api::MachineType::Splice,
                MachineType::Qemu => datacenter_api::MachineType::Qemu,
            },
            tpm: desktop.tpm,
            machine: alive.map(|m| m.kind.name().to_owned()),
            machine_reason: alive.map(|m| m.reason.clone()),
            start: alive.and_then(|m| m.start.clone()),
            sandbox: alive.and_then(|m| m.sandbox.clone()),
            network: alive.and_then(|m| m.network.clone()),
            disk: alive.map(|m| m.disk.name().to_owned()),
            pid: alive.map(|m| m.pid),
            serial_log: path_text(&files.serial_log()),
            serial_socket: path_text(&files.serial_socket()),
            screen_socket: alive.and_then(|_| there(&files.screen_socket())),
            spice_socket: alive.and_then(|_| there(&files.spice_socket())),
            disk_socket: volume.as_ref().and_then(|_| there(&files.disk_socket())),
            nbd_export: volumes::export_name(&desktop.name),
            started_unix_ms: alive.map(|m| m.started_unix_ms),
            demand_chunks: volume.as_ref().map_or(0, |v| v.demand_chunks()),
            boot: desktop.boot,
            overlay_bytes: volume.as_ref().map_or(0, |v| v.overlay_bytes()),
            user_volume,
            volumes: self.described_volumes(desktop),
            checkout: self.described_checkout(desktop),
            guest: self.guests.shown(&desktop.name),
            agent_socket: alive.and_then(|_| there(&files.agent_socket())),
        }
    }
}

/// Refuses to work on a desktop that a machine uses.
fn refuse_if_up(desktop: &DesktopRecord) -> Result<(), DesktopError> {
    let state = match &desktop.machine {
        _ if desktop.served => "served",
        Some(machine) if machine::is_alive(machine) => "running",
        _ => return Ok(()),
    };
    Err(DesktopError::Busy {
        name: desktop.name.clone(),
        state,
        way_out: "stop it first",
    })
}

fn there(path: &Path) -> Option<String> {
    path.exists().then(|| path_text(path))
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// Open volumes by desktop name.
type OpenVolumes = HashMap<String, Arc<OpenVolume>>;
