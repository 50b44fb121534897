//! Desktops and the lines of their volumes: who may run, what is sent of those that stand still, and what goes when it is settled.
//!
//! Invariant: a desktop runs only while this branch may run all of its volumes, and an overlay is removed for its line's sake only when that says so. A volume that was never
//! leased runs as before: nobody else knows of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use branch_api::{SnapshotAsked, VolumeLine};
use datacenter_api::{VolumeKind, VolumeReport};
use dedup::DesktopId;
use dedup_protocol::records::Tree;
use dedup_protocol::state::message::Cut;
use dedup_protocol::wire::Message;

use super::record::DesktopRecord;
use super::{DesktopError, Desktops, VolumeError, error_line, machine, record};
use crate::writeback::line::{Line, LineError};
use crate::writeback::lines::Lines;
use crate::writeback::shown::NoRight;

/// How long a start waits for leases, and for manifests of what they go on behind, while the link is up.
const LEASE_WAIT: Duration = Duration::from_secs(15);
/// How often it looks meanwhile.
const LEASE_LOOK: Duration = Duration::from_millis(200);
/// How long a desktop goes on whose lease is over: this server, or its link, may just have come back. The datacenter allows for more.
const OVER_WAIT: Duration = Duration::from_secs(60);
/// How often lines are told the time while the link is down.
const TICK_EVERY: Duration = Duration::from_secs(60);
/// How long a guest may hold its file system still for a snapshot: its writes are made durable meanwhile.
const FREEZE_MAX: Duration = Duration::from_secs(10);

/// Of a volume that is on its way to another branch.
const RECALLED: &str = "being moved to another branch";

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Names of the desktops of all volumes.
    names: HashMap<DesktopId, String>,
    /// Volumes that were given up, of which the datacenter is to be told; none: the catalog was not asked yet.
    dropped: Option<HashSet<DesktopId>>,
    /// Desktops in which somebody was logged on.
    logged_on: HashMap<String, bool>,
    /// Desktops whose lease is over, since when that is seen.
    over: HashMap<String, Instant>,
    ticked: Option<Instant>,
}

impl Watch {
    fn is_dropped(&self, volume: DesktopId) -> bool {
        let dropped = self.dropped.as_ref();
        dropped.is_some_and(|dropped| dropped.contains(&volume))
    }
}

/// Whether a desktop may run, and whether its line has a link.
type Looked = (Result<(), NoRight>, bool);

impl Desktops {
    /// The lines of volumes here.
    pub fn lines(&self) -> &Lines {
        self.volumes.lines()
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.watch.lock().expect("no panic under this lock")
    }

    pub(super) fn line_error(name: &str, source: LineError) -> DesktopError {
        let name = name.to_owned();
        VolumeError::Line { name, source }.into()
    }

    /// Ids of all volumes here, and of those that were given up and are to be told of. Where the catalog cannot be read, as they were last.
    pub fn volume_ids(&self) -> Vec<DesktopId> {
        let desktops = self.versions.catalog().desktops();
        let mut watch = self.watch();
        if watch.dropped.is_none() {
            match self.versions.catalog().dropped() {
                Ok(dropped) => watch.dropped = Some(dropped.into_iter().collect()),
                Err(error) => {
                    let error = error_line(&error);
                    tracing::error!(error, "what was given up here cannot be read");
                }
            }
        }
        if let Ok(desktops) = desktops {
            let names = desktops.iter().flat_map(|desktop| {
                let ids = desktop.volumes().into_iter();
                ids.map(move |id| (id, desktop.name.clone()))
            });
            watch.names = names.collect();
        }
        let dropped = watch.dropped.iter().flatten();
        watch.names.keys().chain(dropped).copied().collect()
    }

    /// Whether there was such a volume at the last look.
    pub fn has_volume(&self, volume: DesktopId) -> bool {
        let watch = self.watch();
        watch.names.contains_key(&volume) || watch.is_dropped(volume)
    }

    fn name_of(&self, volume: DesktopId) -> Option<String> {
        self.watch().names.get(&volume).cloned()
    }

    /// Opens the overlay of a volume that stands still, if its line cannot go on without.
    pub fn lend_overlay(&self, volume: DesktopId) {
        let needs = self
            .lines()
            .with(volume, |line, _| Ok(line.needs_overlay()));
        if !matches!(needs, Ok(true)) {
            return;
        }
        let Some(name) = self.name_of(volume) else {
            return;
        };
        // One at a time: each reads a part of its log. The others come with their next ticks.
        let Ok(_one) = self.lending.try_lock() else {
            return;
        };
        let Some(_turn) = self.try_turn(&name) else {
            return;
        };
        // Whoever serves it has opened it.
        if self.volumes.find(&name).is_some() {
            return;
        }
        let opened = self.record(&name).and_then(|desktop| match desktop {
            Some(desktop) => self.open_at_rest(&desktop, volume),
            None => Ok(()),
        });
        if let Err(error) = opened {
            let error = error_line(&error);
            let is_new = self
                .lines()
                .with(volume, |line, _| Ok(line.note_trouble(&error)));
            if matches!(is_new, Ok(true)) {
                tracing::warn!(desktop = name, %volume, error, "its writes are not sent: its overlay does not open");
            }
        }
    }

    fn open_at_rest(&self, desktop: &DesktopRecord, volume: DesktopId) -> Result<(), DesktopError> {
        let state = self.state_under(volume)?;
        if volume == desktop.system_volume() {
            if let Some(state) = state {
                self.volumes.system_overlay(desktop, state, false)?;
                return Ok(());
            }
            let (version, record) = self.version_of(desktop)?;
            let tree = record
                .tree(Tree::Disk)
                .ok_or_else(|| DesktopError::NotHere {
                    version: desktop.version.clone(),
                })?;
            let disk = (version, tree.size_bytes);
            self.volumes.system_overlay(desktop, disk, false)?;
        } else if let Some(user) = &desktop.user_volume
            && volume == DesktopId(user.id)
        {
            let base = state.map(|(state, _)| state);
            self.volumes.user_overlay(desktop, (user, base), false)?;
        }
        Ok(())
    }

    /// Does what a line asks for that was moved: lets go of what is at the datacenter, and removes what is not here any more.
    pub fn tend_line(&self, volume: DesktopId) {
        if !self.has_volume(volume) {
            return;
        }
        if self.watch().is_dropped(volume) {
            self.tend_dropped(volume);
            return;
        }
        let state = self.lines().with(volume, |line, _| {
            if line.is_at_rest() && line.is_drained() && !line.is_to_leave() {
                line.let_go();
            }
            Ok(line.is_to_leave())
        });
        if !matches!(state, Ok(true)) {
            return;
        }
        let Some(name) = self.name_of(volume) else {
            return;
        };
        let Some(_turn) = self.try_turn(&name) else {
            return;
        };
        if self.volumes.find(&name).is_some() {
            // Its machine is being stopped.
            return;
        }
        if let Err(error) = self.leave(&name, volume) {
            let error = error_line(&error);
            tracing::error!(desktop = name, %volume, error, "what is at the datacenter could not be removed here");
        }
    }

    /// Forgets a volume that was given up, as soon as the datacenter knows.
    fn tend_dropped(&self, volume: DesktopId) {
        let told = self.lines().with(volume, |line, _| Ok(!line.is_dropped()));
        if !matches!(told, Ok(true)) {
            return;
        }
        {
            let mut watch = self.watch();
            if watch.names.contains_key(&volume) {
                // Whoever gave it up was interrupted, and its desktop is there still.
                watch.dropped.iter_mut().for_each(|dropped| {
                    dropped.remove(&volume);
                });
                return;
            }
        }
        let forgotten = self.lines().forget(volume);
        match forgotten {
            Ok(()) => {
                let mut watch = self.watch();
                watch.dropped.iter_mut().for_each(|dropped| {
                    dropped.remove(&volume);
                });
                tracing::info!(%volume, "the datacenter knows that it was given up here");
            }
            Err(error) => {
                let error = error_line(&error);
                tracing::error!(%volume, error, "what was given up cannot be forgotten");
            }
        }
    }

    fn leave(&self, name: &str, volume: DesktopId) -> Result<(), DesktopError> {
        let Some(mut desktop) = self.record(name)? else {
            return Ok(());
        };
        self.detach(name, volume)?;
        if volume == desktop.system_volume() {
            self.volumes.delete_system(&desktop)?;
        } else {
            self.volumes.delete_user(&desktop)?;
            if let Some(user) = &mut desktop.user_volume {
                // That it is not there is no loss.
                user.made = false;
            }
            self.versions.catalog().put_desktop(&desktop)?;
        }
        // What lay under it goes with it; interrupted, all of this is done again.
        self.versions.forget_state(volume)?;
        let left = self.lines().with(volume, |line, _| line.left());
        left.map_err(|source| Self::line_error(name, source))?;
        tracing::info!(desktop = name, %volume, "all of it is at the datacenter; it is not here any more");
        Ok(())
    }

    pub(super) fn detach(&self, name: &str, volume: DesktopId) -> Result<(), DesktopError> {
        let detached = self.lines().with(volume, |line, _| {
            line.detach();
            Ok(())
        });
        detached.map_err(|source| Self::line_error(name, source))
    }

    /// Gives up what was written to volumes, by somebody's wish: their lines let go of the overlays, which are to be deleted next.
    pub(super) fn give_up(&self, name: &str, volumes: &[DesktopId]) -> Result<(), DesktopError> {
        let fenced = || DesktopError::Busy {
            name: name.into(),
            state: "fenced",
            way_out: "what was written goes to the datacenter as a fork first; try again when it is there",
        };
        for volume in volumes {
            let shown = self.lines().shown(*volume);
            let shown = shown.map_err(|source| Self::line_error(name, source))?;
            if matches!(shown.no_right, Some(NoRight::Fenced { .. })) {
                return Err(fenced());
            }
            let recalled = self.lines().with(*volume, |line, _| Ok(line.is_recalled()));
            if recalled.map_err(|source| Self::line_error(name, source))? {
                return Err(DesktopError::Busy {
                    name: name.into(),
                    state: RECALLED,
                    way_out: "wait until it has gone, or have IT take that back: `splice desktop-state cancel-move`, `splice laptop check-in`",
                });
            }
        }
        for volume in volumes {
            // From here on nothing of it is sent or run; what is left to do can be done again.
            let dropped = self.lines().with(*volume, |line, now| {
                line.detach();
                line.drop_writes(now)
            });
            if !dropped.map_err(|source| Self::line_error(name, source))? {
                return Err(fenced());
            }
        }
        Ok(())
    }

    /// Why a stopped desktop's volume is not this branch's to change now.
    pub(super) fn why_not_worked_on(
        &self,
        desktop: &DesktopRecord,
        volume: DesktopId,
    ) -> Result<Option<String>, DesktopError> {
        let looked = self.lines().with(volume, |line, now| {
            let why = line.may_run(now).err().map(|why| why.to_string());
            let recalled = line.is_recalled().then(|| RECALLED.to_owned());
            Ok(why.or(recalled))
        });
        looked.map_err(|source| Self::line_error(&desktop.name, source))
    }

    /// Forgets the lines of volumes that are no more; those that the datacenter thinks are here when it was told that they are not.
    pub(super) fn forget_lines(
        &self,
        name: &str,
        volumes: &[DesktopId],
    ) -> Result<(), DesktopError> {
        for volume in volumes {
            let dropped = self.lines().with(*volume, |line, _| Ok(line.is_dropped()));
            let is_dropped = dropped.map_err(|source| Self::line_error(name, source))?;
            let mut watch = self.watch();
            watch.names.remove(volume);
            if is_dropped {
                watch.dropped.iter_mut().for_each(|dropped| {
                    dropped.insert(*volume);
                });
                continue;
            }
            drop(watch);
            let forgotten = self.lines().forget(*volume);
            forgotten.map_err(|source| Self::line_error(name, source))?;
        }
        self.lines().hurry();
        Ok(())
    }

    /// Waits until what was given back is removed, which who tends the lines does in the desktop's turn: so not in the caller's. Nothing is asked for before.
    pub(super) fn wait_until_left(&self, name: &str) -> Result<(), DesktopError> {
        let Some(desktop) = self.record(name)? else {
            return Ok(());
        };
        let begun = Instant::now();
        for volume in desktop.volumes() {
            let is_to_leave = || {
                let looked = self.lines().with(volume, |line, _| Ok(line.is_to_leave()));
                looked.map_err(|source| Self::line_error(name, source))
            };
            while is_to_leave()? && begun.elapsed() < LEASE_WAIT {
                self.lines().hurry();
                std::thread::sleep(LEASE_LOOK);
            }
        }
        Ok(())
    }

    /// Refuses to run a desktop that this branch may not run. What it does not hold is asked for, if the link is up.
    pub(super) fn take_leases(&self, desktop: &DesktopRecord) -> Result<(), DesktopError> {
        let begun = Instant::now();
        for volume in desktop.volumes() {
            let kind = kind_of(desktop, volume);
            let look = |work: &dyn Fn(&mut Line, u64) -> Looked| {
                let looked = self.lines().with(volume, |line, now| Ok(work(line, now)));
                looked.map_err(|source| Self::line_error(&desktop.name, source))
            };
            let (mut right, mut is_linked) = look(&|line: &mut Line, now: u64| {
                if matches!(line.may_run(now), Err(NoRight::NotHeld { .. })) {
                    line.want();
                }
                (line.may_run(now), line.is_linked())
            })?;
            self.lines().hurry();
            while matches!(right, Err(NoRight::NotHeld { .. } | NoRight::Coming))
                && is_linked
                && begun.elapsed() < LEASE_WAIT
            {
                std::thread::sleep(LEASE_LOOK);
                (right, is_linked) =
                    look(&|line: &mut Line, now: u64| (line.may_run(now), line.is_linked()))?;
            }
            right.map_err(|source| DesktopError::NoRight {
                name: desktop.name.clone(),
                kind,
                source,
            })?;
        }
        Ok(())
    }

    /// Stops desktops that this branch may not run any more, and tells lines what happens: the time, and users who log off.
    pub(super) fn tend_rights(&self, desktops: &[DesktopRecord], connected: bool) {
        for desktop in desktops.iter().filter(|desktop| desktop.is_up()) {
            self.note_users(desktop);
            let lost = desktop.volumes().into_iter().find_map(|volume| {
                // As it was when its line was moved last: nobody here waits for a part that is being made.
                let why = self.lines().shown(volume).ok()?.no_right?;
                Some((kind_of(desktop, volume), why))
            });
            let Some((kind, why)) = lost else {
                self.watch().over.remove(&desktop.name);
                continue;
            };
            if matches!(why, NoRight::Over { .. }) {
                let mut watch = self.watch();
                let since = watch.over.entry(desktop.name.clone());
                if since.or_insert_with(Instant::now).elapsed() < OVER_WAIT {
                    continue;
                }
            }
            self.stop_without_right(&desktop.name, &format!("its {kind}: {why}"));
        }
        let mut watch = self.watch();
        let is_due = watch.ticked.is_none_or(|at| at.elapsed() >= TICK_EVERY);
        if connected || !is_due {
            return;
        }
        watch.ticked = Some(Instant::now());
        drop(watch);
        for volume in desktops.iter().flat_map(DesktopRecord::volumes) {
            let ticked = self.lines().with(volume, |line, now| line.tick(now));
            if let Err(error) = ticked {
                let error = error_line(&error);
                tracing::warn!(%volume, error, "its lease is not told the time");
            }
        }
    }

    /// The last of those who were logged on went: what was written until now is worth a snapshot.
    fn note_users(&self, desktop: &DesktopRecord) {
        let Some(guest) = self.guests.shown(&desktop.name).filter(|g| g.connected) else {
            return;
        };
        let is_on = !guest.users.is_empty();
        let was_on = self.watch().logged_on.insert(desktop.name.clone(), is_on);
        if was_on == Some(true) && !is_on {
            self.wish(desktop, Cut::LogOff);
            if desktop.pooled {
                // Its system begins anew when its machine has ended. A guest that takes its time holds up nobody else.
                let (guests, name) = (Arc::clone(&self.guests), desktop.name.clone());
                std::thread::spawn(move || {
                    if let Err(error) = guests.shut_down(&name) {
                        tracing::warn!(desktop = name, %error, "its user has logged off, and it does not shut down");
                    }
                });
            }
        }
    }

    /// Wishes for a snapshot of all volumes; returns of how many there is anything new.
    pub(super) fn wish(&self, desktop: &DesktopRecord, cut: Cut) -> usize {
        let wished = desktop.volumes().into_iter().filter(|volume| {
            let wished = self.lines().with(*volume, |line, now| line.wish(cut, now));
            wished.unwrap_or_else(|error| {
                let error = error_line(&error);
                tracing::warn!(desktop = desktop.name, %volume, error, "no snapshot is asked for");
                false
            })
        });
        let count = wished.count();
        self.lines().hurry();
        count
    }

    /// Asks for a snapshot of what a desktop has written, with its user volume's file system frozen meanwhile, if its agent can.
    ///
    /// # Errors
    /// There is no such desktop.
    pub fn snapshot(&self, name: &str) -> Result<SnapshotAsked, DesktopError> {
        let desktop = self.record(name)?;
        let desktop = desktop.ok_or_else(|| DesktopError::NotFound(name.into()))?;
        let frozen = self.guests.freeze(name, FREEZE_MAX).ok();
        let cut = if frozen.is_some() {
            Cut::Frozen
        } else {
            Cut::Asked
        };
        let volumes = self.wish(&desktop, cut) as u64;
        let held = frozen.map(|frozen| frozen.thaw());
        if let Some(Err(error)) = &held {
            let error = error_line(error);
            tracing::warn!(
                desktop = name,
                error,
                "the snapshot may be of a file system that was going on"
            );
        }
        Ok(SnapshotAsked {
            volumes,
            frozen: matches!(held, Some(Ok(()))),
        })
    }

    /// A desktop's volumes, for people.
    pub(super) fn described_volumes(&self, desktop: &DesktopRecord) -> Vec<VolumeLine> {
        let volumes = desktop.volumes().into_iter();
        let described = volumes.filter_map(|volume| {
            // Rows that cannot be read are told where the line is moved.
            let shown = self.lines().shown(volume).ok()?;
            Some(VolumeLine {
                id: volume.to_string(),
                kind: if volume == desktop.system_volume() {
                    "system".to_owned()
                } else {
                    "user".to_owned()
                },
                lease: shown.lease.to_owned(),
                generation: shown.generation.0,
                ends_unix_s: shown.ends_unix_s,
                no_right: shown.no_right.map(|why| why.to_string()),
                behind_records: shown.behind_records,
                behind_s: shown.behind_s,
                applied_unix_s: shown.applied_unix_s,
                trouble: shown.trouble,
            })
        });
        described.collect()
    }

    /// What the datacenter is told of volumes, by the names of their desktops. It gives leases of what it was told of.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn volume_reports(&self) -> Result<HashMap<String, Vec<VolumeReport>>, DesktopError> {
        let desktops = self.versions.catalog().desktops()?;
        let reports = desktops.into_iter().map(|desktop| {
            let mut reports = Vec::with_capacity(2);
            let version = self.version_of(&desktop).ok();
            let tree = version
                .as_ref()
                .and_then(|(_, record)| record.tree(Tree::Disk));
            // What begins anew at log-off is nobody else's matter.
            let tree = tree.filter(|_| !desktop.pooled);
            reports.extend(tree.map(|tree| VolumeReport {
                id: desktop.system_volume().to_string(),
                kind: VolumeKind::System,
                size_bytes: tree.size_bytes,
            }));
            reports.extend(desktop.user_volume.as_ref().map(|user| VolumeReport {
                id: DesktopId(user.id).to_string(),
                kind: VolumeKind::User,
                size_bytes: user.size_bytes,
            }));
            (desktop.name, reports)
        });
        Ok(reports.collect())
    }

    fn stop_without_right(&self, name: &str, why: &str) {
        let Some(_turn) = self.try_turn(name) else {
            return;
        };
        let Ok(Some(mut desktop)) = self.record(name) else {
            return;
        };
        if !desktop.is_up() {
            return;
        }
        tracing::warn!(desktop = name, why, "stopped: this branch may not run it");
        if let Some(score) = self.boots.end(name) {
            desktop.boot = Some(record::boot_report(&score));
        }
        if let Some(machine) = desktop.machine.take() {
            machine::stop(&machine, &self.files(name), Duration::ZERO, false);
        }
        desktop.served = false;
        desktop.error = Some(why.to_owned());
        if let Err(error) = self.volumes.close(name) {
            desktop.error = Some(error_line(&error));
        }
        if let Err(error) = self.versions.catalog().put_desktop(&desktop) {
            let error = error_line(&error);
            tracing::error!(desktop = name, error, "state not kept");
        }
        self.drop_pooled(&mut desktop);
    }

    /// Takes word of a lease that nobody asked for.
    pub fn hear_of_lease(&self, message: Message) {
        let volume = match &message {
            Message::ProveLease(prove) => prove.desktop,
            Message::FenceLease(fence) => fence.desktop,
            Message::RecallLease(recall) => recall.desktop,
            _ => return,
        };
        // It may come before anybody looked since the start which volumes are here.
        if !self.has_volume(volume) && !self.volume_ids().contains(&volume) {
            return;
        }
        let heard = self
            .lines()
            .with(volume, |line, now| line.hear(message, now));
        if let Err(error) = heard {
            let error = error_line(&error);
            tracing::warn!(%volume, error, "what came of its lease is not taken");
        }
        self.lines().hurry();
    }
}

/// Which of its volumes that is.
fn kind_of(desktop: &DesktopRecord, volume: DesktopId) -> &'static str {
    if volume == desktop.system_volume() {
        "system volume"
    } else {
        "user volume"
    }
}
