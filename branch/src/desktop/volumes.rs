//! The open volumes of desktops, and the ways to them: an NBD export and a vhost-user socket, for one and the same device.
//!
//! A volume is open exactly while a machine may use it: from before the machine starts until after it ended. Closing flushes. A stopped
//! desktop's overlay lies on the disk only. A desktop's user volume, if it has one, is open exactly as long. Each overlay is encrypted under a key of its
//! own, which goes first when it is deleted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use dedup::{DesktopId, VersionId};
use dedup_store::disk::Disk;
use vmm_block::nbd::{Export, ListenError};
use vmm_block::vhost_user::{DiskSpec, VhostUserServer};
use vmm_block::{BlockDevice, BlockError};

use super::machine::{Files, disk_queues, disk_serial};
use super::record::{DesktopRecord, UserVolumeRecord};
use super::user_volume::UserDisk;
use super::{OpenVolumes, user_volume};
use crate::fetch::base::CachedBase;
use crate::keys::{KeyError, KeyStore};
use crate::volume::{
    Base, Overlay, OverlayError, OverlayIdentity, OverlayOptions, OverlayState, Shortage, Volume,
};
use crate::writeback::line::LineError;
use crate::writeback::lines::Lines;
use crate::writeback::shown::NoRight;

/// Who may open a desktop's vhost-user socket may read and write its disk.
pub(super) const SOCKET_MODE: u32 = 0o600;

/// How long connections to an export that is taken away get to finish what is in flight.
const CLOSE_GRACE: Duration = Duration::from_secs(10);

/// What one round of housekeeping may move within all overlays, besides twice what their guests wrote since the last: at four rounds a
/// second 16 MB/s, a small part of what a disk does and enough to overtake a backlog.
const UPKEEP_BYTES: u64 = 4 << 20;
/// Least of it for one overlay, so that each gets on.
const UPKEEP_BYTES_MIN: u64 = 128 << 10;

/// Why a volume could not be opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The overlay.
    #[error("overlay of desktop {name}")]
    Overlay {
        /// The desktop.
        name: String,
        /// Why.
        source: OverlayError,
    },
    /// The overlay's key.
    #[error("key of desktop {name}")]
    Key {
        /// The desktop.
        name: String,
        /// Why.
        source: KeyError,
    },
    /// The branch's keys.
    #[error("keys of this branch")]
    Keys {
        /// Why.
        source: KeyError,
    },
    /// Its lease and write-back.
    #[error("lease and write-back of desktop {name}")]
    Line {
        /// The desktop.
        name: String,
        /// Why.
        source: LineError,
    },
    /// It went back to the datacenter while its start was prepared.
    #[error("desktop {name} may not run here")]
    NoRight {
        /// The desktop.
        name: String,
        /// Why.
        source: NoRight,
    },
    /// The last flush.
    #[error("last flush of desktop {name}")]
    Flush {
        /// The desktop.
        name: String,
        /// Why.
        source: BlockError,
    },
    /// Its export could not be made.
    #[error("export of desktop {name}")]
    Export {
        /// The desktop.
        name: String,
        /// Why.
        source: vmm_block::nbd::ExportError,
    },
    /// Its vhost-user socket could not be made.
    #[error("vhost-user socket of desktop {name}")]
    Listen {
        /// The desktop.
        name: String,
        /// Why.
        source: ListenError,
    },
    /// A user volume that was there once is not.
    #[error(
        "the user volume of desktop {name} (disks/{dir}) is gone; put it back from a copy, with its key, or give it up: `splice desktop delete {name}` \
         removes it and the desktop"
    )]
    UserVolumeGone {
        /// The desktop.
        name: String,
        /// Where it would be.
        dir: String,
    },
    /// The overlay's files could not be removed.
    #[error("remove the overlay of desktop {name}")]
    Remove {
        /// The desktop.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody still uses it.
    #[error("desktop {0}'s export is still in use: a request in it does not come back")]
    InUse(String),
}

/// An open volume.
pub struct OpenVolume {
    export: Arc<Export>,
    /// None once it is being closed.
    vhost_user: Mutex<Option<VhostUserServer>>,
    overlay: Arc<Overlay>,
    base: Arc<CachedBase>,
    /// Whether it had no room for what its guest wrote since the guest was last let go on.
    was_short: AtomicBool,
    /// Held during a round of housekeeping; true once it is closed. Else a round could go on in files that the next opening has.
    is_closed: Mutex<bool>,
    user: Option<UserDisk>,
    /// The volumes whose overlays a machine may write to, by their ids.
    ids: Vec<DesktopId>,
}

impl OpenVolume {
    /// Why its guest's writes wait, if they do: what the host's disk lacks most of all, because others can do something about that.
    pub fn shortage(&self) -> Option<Shortage> {
        let shortages = self.overlays().filter_map(Overlay::shortage);
        let shortage = shortages.max_by_key(|shortage| match shortage {
            Shortage::DiskBytes(bytes) => *bytes,
            Shortage::IndexFull => 0,
        });
        if shortage.is_some() {
            self.was_short.store(true, Ordering::Relaxed);
        }
        shortage
    }

    /// Whether its guest may be paused because there was no room.
    pub fn was_short(&self) -> bool {
        self.was_short.load(Ordering::Relaxed)
    }

    /// Its guest goes on: what pauses it from now on is another matter.
    pub fn forget_shortage(&self) {
        self.was_short.store(false, Ordering::Relaxed);
    }

    /// Chunks its guest had to wait for.
    pub fn demand_chunks(&self) -> u64 {
        self.base.demand_chunks()
    }

    /// What its overlay lies on.
    pub fn base(&self) -> Arc<CachedBase> {
        Arc::clone(&self.base)
    }

    /// Bytes in its overlay's log.
    pub fn overlay_bytes(&self) -> u64 {
        self.overlay.stats().log_bytes
    }

    /// Bytes that were written to its overlays and can still be read. Compaction changes how long their logs are, and nothing of this.
    pub fn held_bytes(&self) -> u64 {
        let held = self.overlays().map(|overlay| overlay.stats().live_bytes);
        held.sum()
    }

    /// Its system's disk, as its machine has it.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        self.export.device()
    }

    /// What was written to its system.
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    fn vhost_user(&self) -> MutexGuard<'_, Option<VhostUserServer>> {
        self.vhost_user.lock().expect("no panic under this lock")
    }

    /// Why requests of its guest wait, if any do that could not be done for now.
    pub fn waits_for(&self) -> Option<String> {
        let of_system = self.vhost_user().as_ref().and_then(|s| s.waits_for());
        of_system.or_else(|| self.user.as_ref()?.waits_for())
    }

    /// Why it failed closed, if it or its user volume did.
    pub fn failure(&self) -> Option<String> {
        let of_system = self.overlay.failure().map(str::to_owned);
        of_system.or_else(|| self.user.as_ref()?.failure())
    }

    /// Its overlays.
    pub(super) fn overlays(&self) -> impl Iterator<Item = &Overlay> {
        let user = self.user.as_ref().map(UserDisk::overlay);
        std::iter::once(&*self.overlay).chain(user)
    }

    /// Its user volume.
    pub fn user(&self) -> Option<&UserDisk> {
        self.user.as_ref()
    }
}

/// What lies under a user volume's overlay.
pub struct UserBase {
    /// What the overlay names it by.
    pub name: VersionId,
    /// It.
    pub base: Arc<dyn Base>,
}

/// What lies under a desktop's overlays.
pub struct Under {
    /// Its version, or the state that its system goes on behind.
    pub system: Arc<CachedBase>,
    /// What its system shows instead, of which that is the lowest part.
    pub through: Option<Arc<dyn Base>>,
    /// What is under its user volume, if anything is.
    pub user: Option<UserBase>,
}

/// See the module.
pub struct Volumes {
    disk: Arc<dyn Disk>,
    keys: Arc<KeyStore>,
    lines: Arc<Lines>,
    options: OverlayOptions,
    open: Mutex<OpenVolumes>,
    /// Overlays that somebody has open, by their directories: two logs over one directory would destroy each other.
    overlays: Mutex<HashMap<String, Weak<Overlay>>>,
}

/// Name of a desktop's export.
pub fn export_name(desktop: &str) -> String {
    format!("desktop/{desktop}")
}

fn overlay_dir(desktop: &str) -> String {
    format!("overlays/{desktop}")
}

/// The volume, if it is one that is leased and written back.
fn leased(desktop: &DesktopRecord, volume: DesktopId) -> Option<DesktopId> {
    desktop.volumes().contains(&volume).then_some(volume)
}

impl Volumes {
    /// Overlays live on `disk`, in `overlays/NAME`, as `options` say, their keys in `keys`; what is written to them goes the way of `lines`.
    pub fn new(
        disk: Arc<dyn Disk>,
        keys: Arc<KeyStore>,
        lines: Arc<Lines>,
        options: OverlayOptions,
    ) -> Self {
        Self {
            disk,
            keys,
            lines,
            options,
            open: Mutex::default(),
            overlays: Mutex::default(),
        }
    }

    /// The lines of volumes here.
    pub fn lines(&self) -> &Arc<Lines> {
        &self.lines
    }

    /// The overlay of a volume: the one that is open, or the one that `open` opens, which its line has then, if it is one that has a line. The caller has
    /// the desktop's turn.
    fn shared(
        &self,
        desktop: &str,
        (volume, in_use): (Option<DesktopId>, bool),
        dir: &str,
        open: impl FnOnce() -> Result<Overlay, VolumeError>,
    ) -> Result<Arc<Overlay>, VolumeError> {
        let line_error = |source| VolumeError::Line {
            name: desktop.to_owned(),
            source,
        };
        let known = |volumes: &Self| {
            let overlays = volumes.overlays.lock().expect("no panic under this lock");
            overlays.get(dir).and_then(Weak::upgrade)
        };
        if let Some(overlay) = known(self) {
            // One that failed is to be opened anew, once nobody has it any more.
            if overlay.failure().is_none() {
                if let Some(volume) = volume {
                    let used = self.lines.with(volume, |line, now| {
                        if !line.is_attached() {
                            return line.attach(Arc::clone(&overlay), in_use, now);
                        }
                        line.set_in_use(in_use || line.is_in_use(), now);
                        Ok(())
                    });
                    used.map_err(line_error)?;
                }
                return Ok(overlay);
            }
            drop(overlay);
            if let Some(volume) = volume {
                let let_go = self.lines.with(volume, |line, _| {
                    line.detach();
                    Ok(())
                });
                let_go.map_err(line_error)?;
            }
        }
        let overlay = Arc::new(open()?);
        if let Some(volume) = volume {
            let attached = self.lines.attach(volume, &overlay, in_use);
            attached.map_err(line_error)?;
        }
        let mut overlays = self.overlays.lock().expect("no panic under this lock");
        overlays.insert(dir.to_owned(), Arc::downgrade(&overlay));
        Ok(overlay)
    }

    /// The overlay of a desktop's system volume over a version's disk of `size_bytes`, or a state's.
    pub fn system_overlay(
        &self,
        desktop: &DesktopRecord,
        (version, size_bytes): (VersionId, u64),
        in_use: bool,
    ) -> Result<Arc<Overlay>, VolumeError> {
        let name = &desktop.name;
        let volume = (leased(desktop, desktop.system_volume()), in_use);
        let dir = overlay_dir(name);
        self.shared(name, volume, &dir, || {
            let overlay_error = |source| VolumeError::Overlay {
                name: name.clone(),
                source,
            };
            let key_error = |source| VolumeError::Key {
                name: name.clone(),
                source,
            };
            let identity = OverlayIdentity {
                desktop: desktop.id,
                base: version,
                disks: vec![size_bytes.next_multiple_of(512)],
            };
            let state = Overlay::state(&*self.disk, &dir).map_err(overlay_error)?;
            let key = self
                .keys
                .desktop(name, &desktop.id, state)
                .map_err(key_error)?;
            let mut log_id = [0; 16];
            rand::RngCore::fill_bytes(&mut rand::rng(), &mut log_id);
            let overlay = Overlay::open_or_create(
                Arc::clone(&self.disk),
                &dir,
                &identity,
                log_id,
                &key,
                self.options,
            );
            let overlay = overlay.map_err(overlay_error)?;
            self.keys.desktop_is_sealed(name).map_err(key_error)?;
            Ok(overlay)
        })
    }

    /// Whether nothing is here of a desktop's system: it is to be made.
    pub fn is_fresh(&self, desktop: &DesktopRecord) -> Result<bool, VolumeError> {
        let name = &desktop.name;
        let state = Overlay::state(&*self.disk, &overlay_dir(name));
        let state = state.map_err(|source| VolumeError::Overlay {
            name: name.clone(),
            source,
        })?;
        Ok(state == OverlayState::Absent)
    }

    /// The overlay of a desktop's user volume, over `base` or over nothing.
    pub fn user_overlay(
        &self,
        desktop: &DesktopRecord,
        (record, base): (&UserVolumeRecord, Option<VersionId>),
        in_use: bool,
    ) -> Result<Arc<Overlay>, VolumeError> {
        let name = &desktop.name;
        let volume = (leased(desktop, DesktopId(record.id)), in_use);
        self.shared(name, volume, &user_volume::overlay_dir(name), || {
            user_volume::open_overlay(&self.disk, &self.keys, name, record, base, self.options)
        })
    }

    /// Gives a key to each overlay that a release before encryption left in the clear. Only the first start of a branch with keys does
    /// anything, and the next one goes on if it could not do all; after that none in the clear is taken.
    pub fn adopt_plain(&self, desktops: &[DesktopRecord]) -> Result<(), VolumeError> {
        let keys = |source| VolumeError::Keys { source };
        if !self.keys.is_adopting().map_err(keys)? {
            return Ok(());
        }
        let mut is_all = true;
        for desktop in desktops {
            if let Err(error) = self.adopt(desktop) {
                let error = super::error_line(&error);
                tracing::error!(desktop = desktop.name, error, "its overlay is not taken");
                is_all = false;
            }
        }
        if is_all {
            self.keys.end_adoption().map_err(keys)?;
        }
        Ok(())
    }

    fn adopt(&self, desktop: &DesktopRecord) -> Result<(), VolumeError> {
        let name = &desktop.name;
        let state = Overlay::state(&*self.disk, &overlay_dir(name));
        let state = state.map_err(|source| VolumeError::Overlay {
            name: name.clone(),
            source,
        })?;
        if state == OverlayState::Plain {
            let key = self.keys.desktop(name, &desktop.id, state);
            key.map_err(|source| VolumeError::Key {
                name: name.clone(),
                source,
            })?;
            tracing::info!(
                desktop = name,
                "its overlay is in the clear and will be encrypted"
            );
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, OpenVolumes> {
        self.open.lock().expect("no panic under this lock")
    }

    /// All that are open.
    pub(super) fn all_open(&self) -> Vec<Arc<OpenVolume>> {
        self.lock().values().cloned().collect()
    }

    /// Bytes that are free for what desktops write, if the disk tells.
    pub fn free_bytes(&self) -> Option<u64> {
        let free = self.disk.available_bytes().ok()?;
        Some(free.saturating_sub(self.options.floor_bytes))
    }

    /// The open volume of a desktop.
    pub fn find(&self, name: &str) -> Option<Arc<OpenVolume>> {
        self.lock().get(name).cloned()
    }

    /// The export of a desktop's open volume.
    pub fn export(&self, name: &str) -> Option<Arc<Export>> {
        self.lock().get(name).map(|v| Arc::clone(&v.export))
    }

    /// The export of the user volume of a desktop whose volume is open.
    pub fn user_export(&self, name: &str) -> Option<Arc<Export>> {
        let volume = self.find(name)?;
        Some(Arc::clone(volume.user()?.export()))
    }

    /// All exports.
    pub fn exports(&self) -> Vec<Arc<Export>> {
        let open = self.lock();
        let of_each = open.values().flat_map(|v| {
            let user = v.user().map(UserDisk::export);
            [Some(&v.export), user].into_iter().flatten()
        });
        of_each.map(Arc::clone).collect()
    }

    /// Opens a desktop's volume over what lies under it, or makes it, and its user volume; nothing happens if it is open.
    pub fn open(
        &self,
        desktop: &DesktopRecord,
        under: Under,
        files: &Files,
    ) -> Result<(), VolumeError> {
        let name = &desktop.name;
        if self.lock().contains_key(name) {
            return Ok(());
        }
        let opened = self.open_for_use(desktop, under, files);
        let opened = opened.and_then(|opened| self.refuse_if_gone(desktop).map(|()| opened));
        if opened.is_err() {
            self.rest(name, &desktop.volumes());
        }
        self.lock().insert(name.clone(), Arc::new(opened?));
        Ok(())
    }

    /// Refuses what was given back between the look at its leases and now, which may be minutes: its files may have had to come first. From here on it is in
    /// use, and nothing of it is given back.
    fn refuse_if_gone(&self, desktop: &DesktopRecord) -> Result<(), VolumeError> {
        let name = &desktop.name;
        for volume in desktop.volumes() {
            let right = self
                .lines
                .with(volume, |line, now| Ok(line.may_run(now).err()));
            let right = right.map_err(|source| VolumeError::Line {
                name: name.clone(),
                source,
            })?;
            // What is over, fenced or on its way is looked at while its machine runs.
            if let Some(
                source @ (NoRight::NotHeld { .. } | NoRight::Returning | NoRight::Dropped),
            ) = right
            {
                let name = name.clone();
                return Err(VolumeError::NoRight { name, source });
            }
        }
        Ok(())
    }

    fn open_for_use(
        &self,
        desktop: &DesktopRecord,
        under: Under,
        files: &Files,
    ) -> Result<OpenVolume, VolumeError> {
        let name = &desktop.name;
        let Under {
            system: base,
            through,
            user: under_user,
        } = under;
        let overlay_error = |source| VolumeError::Overlay {
            name: name.clone(),
            source,
        };
        let disk = (base.version(), base.size_bytes());
        let overlay = self.system_overlay(desktop, disk, true)?;
        let shared: Arc<dyn Base> = match through {
            Some(through) => through,
            None => base.clone(),
        };
        let volume = Volume::new(shared, Arc::clone(&overlay), 0).map_err(overlay_error)?;
        let export = Export::new(&export_name(name), "desktop", Arc::new(volume));
        let export = export.map_err(|source| VolumeError::Export {
            name: name.clone(),
            source,
        })?;
        let disk = DiskSpec {
            device: Arc::clone(export.device()),
            serial: disk_serial(name).to_owned(),
            queues: disk_queues(desktop.vcpus),
        };
        let served = VhostUserServer::listen(&files.disk_socket(), SOCKET_MODE, disk);
        let served = served.map_err(|source| VolumeError::Listen {
            name: name.clone(),
            source,
        })?;
        let user = desktop.user_volume.as_ref();
        let user = user.map(|record| {
            let over = under_user.as_ref().map(|under| under.name);
            let overlay = self.user_overlay(desktop, (record, over), true)?;
            UserDisk::serve(under_user, overlay, desktop, record, files)
        });
        Ok(OpenVolume {
            export,
            vhost_user: Mutex::new(Some(served)),
            overlay,
            base,
            was_short: AtomicBool::new(false),
            is_closed: Mutex::new(false),
            user: user.transpose()?,
            ids: desktop.volumes(),
        })
    }

    /// Ends the ways to a desktop's volume, flushes and closes it; nothing happens if it is not open.
    pub fn close(&self, name: &str) -> Result<(), VolumeError> {
        let Some(volume) = self.lock().remove(name) else {
            return Ok(());
        };
        // What waits for the WAN there does not hold it up.
        let served = volume.vhost_user().take();
        drop(served);
        let is_free = volume.export.close(CLOSE_GRACE);
        let user_is_free = volume.user().is_none_or(|user| user.close(CLOSE_GRACE));
        if !is_free || !user_is_free {
            self.lock().insert(name.into(), volume);
            return Err(VolumeError::InUse(name.into()));
        }
        *volume.is_closed.lock().expect("no panic under this lock") = true;
        let flushed = volume.export.device().flush();
        let user_flushed = volume.user().map_or(Ok(()), UserDisk::flush);
        self.rest(name, &volume.ids);
        flushed
            .and(user_flushed)
            .map_err(|source| VolumeError::Flush {
                name: name.into(),
                source,
            })
    }

    /// No machine may write to these volumes any more. Their lines keep the overlays until all of them is at the datacenter.
    fn rest(&self, name: &str, volumes: &[DesktopId]) {
        for volume in volumes {
            let rests = self.lines.with(*volume, |line, now| {
                line.set_in_use(false, now);
                Ok(())
            });
            if let Err(error) = rests {
                let error = super::error_line(&error);
                tracing::warn!(desktop = name, %volume, error, "its line is not told that it rests");
            }
        }
        self.lines.hurry();
    }

    /// Ends the vhost-user sockets, as when the branch server ends: guests wait for the next server.
    pub fn stop_serving(&self) {
        let volumes: Vec<_> = self.lock().values().cloned().collect();
        let mut stopping = Vec::new();
        for volume in volumes {
            stopping.extend(volume.vhost_user().take());
            stopping.extend(volume.user().and_then(UserDisk::take_server));
        }
        // All are told before the first is waited for.
        stopping.iter().for_each(VhostUserServer::begin_stop);
    }

    /// Bytes that must come free on the host's disk before every open volume has room again.
    pub fn missing_bytes(&self) -> u64 {
        self.all_open()
            .iter()
            .filter_map(|volume| match volume.shortage()? {
                Shortage::DiskBytes(bytes) => Some(bytes),
                Shortage::IndexFull => None,
            })
            .max()
            .unwrap_or(0)
    }

    /// One round of housekeeping of all open overlays: see [`Overlay::tend`]. To be called by one thread, about four times a second.
    pub fn tend(&self) {
        let open = self.all_open();
        let overlays: usize = open.iter().map(|volume| volume.overlays().count()).sum();
        let budget = (UPKEEP_BYTES / (overlays as u64).max(1)).max(UPKEEP_BYTES_MIN);
        for volume in open {
            let is_closed = volume.is_closed.lock().expect("no panic under this lock");
            if *is_closed {
                continue;
            }
            for overlay in volume.overlays() {
                // One that failed has told it, and the desktop shows it.
                if overlay.failure().is_none()
                    && let Err(error) = overlay.tend(budget)
                {
                    let error = super::error_line(&error);
                    tracing::error!(overlay = overlay.dir(), error, "housekeeping");
                }
            }
        }
    }

    /// Has the overlay of a system volume that is closed lie over another version's disk of the same size. Nothing happens if it does already.
    pub fn rebase_system(
        &self,
        desktop: &DesktopRecord,
        (former, version): (VersionId, VersionId),
        size_bytes: u64,
    ) -> Result<(), VolumeError> {
        let name = &desktop.name;
        let dir = overlay_dir(name);
        {
            let overlays = self.overlays.lock().expect("no panic under this lock");
            if overlays
                .get(&dir)
                .is_some_and(|open| open.strong_count() > 0)
            {
                return Err(VolumeError::InUse(name.clone()));
            }
        }
        let overlay_error = |source| VolumeError::Overlay {
            name: name.clone(),
            source,
        };
        let state = Overlay::state(&*self.disk, &dir).map_err(overlay_error)?;
        if state == OverlayState::Absent {
            return Ok(());
        }
        let key = self.keys.desktop(name, &desktop.id, state);
        let key = key.map_err(|source| VolumeError::Key {
            name: name.clone(),
            source,
        })?;
        let identity = OverlayIdentity {
            desktop: desktop.id,
            base: former,
            disks: vec![size_bytes.next_multiple_of(512)],
        };
        Overlay::lay_over(&*self.disk, &dir, &identity, version, &key).map_err(overlay_error)
    }

    /// Destroys all keys of this branch, by an order that is kept.
    pub fn wipe_keys(&self, order: &[u8]) -> Result<(), VolumeError> {
        let wiped = self.keys.wipe(order);
        wiped.map_err(|source| VolumeError::Keys { source })
    }

    /// Destroys a desktop's keys, also while its overlays are open: what lies on the disk is noise then.
    pub fn destroy_keys(&self, desktop: &DesktopRecord) -> Result<(), VolumeError> {
        for key in [desktop.name.clone(), user_volume::key_name(&desktop.name)] {
            let destroyed = self.keys.destroy_desktop(&key);
            destroyed.map_err(|source| VolumeError::Key {
                name: desktop.name.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Destroys the key of a closed volume's overlay, then removes that: what was written to the system. The user volume stays.
    pub fn delete_system(&self, desktop: &DesktopRecord) -> Result<(), VolumeError> {
        self.delete_overlay(desktop, &desktop.name, &overlay_dir(&desktop.name))
    }

    /// Destroys and removes a closed volume's overlay and its user volume.
    pub fn delete(&self, desktop: &DesktopRecord) -> Result<(), VolumeError> {
        self.delete_system(desktop)?;
        self.delete_user(desktop)
    }

    /// Destroys and removes a closed volume's user volume.
    pub fn delete_user(&self, desktop: &DesktopRecord) -> Result<(), VolumeError> {
        let name = &desktop.name;
        let (key, dir) = (user_volume::key_name(name), user_volume::overlay_dir(name));
        self.delete_overlay(desktop, &key, &dir)
    }

    fn delete_overlay(
        &self,
        desktop: &DesktopRecord,
        key: &str,
        dir: &str,
    ) -> Result<(), VolumeError> {
        // Whoever holds it still, holds what is gone: the next opening must not.
        let mut overlays = self.overlays.lock().expect("no panic under this lock");
        overlays.remove(dir);
        drop(overlays);
        let destroyed = self.keys.destroy_desktop(key);
        destroyed.map_err(|source| VolumeError::Key {
            name: desktop.name.clone(),
            source,
        })?;
        let remove = || {
            let mut files = self.disk.list(dir)?;
            // The header file last: as long as it is there, the key that is not tells what happened and what can be done.
            files.sort_by_key(|file| file.ends_with(".meta"));
            for file in files {
                self.disk.remove(&format!("{dir}/{file}"))?;
            }
            self.disk.sync_dir(dir)
        };
        match remove() {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(VolumeError::Remove {
                    name: desktop.name.clone(),
                    source,
                })
            }
            _ => Ok(()),
        }
    }
}
