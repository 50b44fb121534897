//! The open volumes of desktops, and the ways to them: an NBD export and a vhost-user socket, for one and the same device.
//!
//! A volume is open exactly while a machine may use it: from before the machine starts until after it ended. Closing flushes. A stopped
//! desktop's overlay lies on the disk only. A desktop's user volume, if it has one, is open exactly as long.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dedup::VersionId;
use dedup_store::disk::Disk;
use vmm_block::BlockError;
use vmm_block::nbd::{Export, ListenError};
use vmm_block::vhost_user::{DiskSpec, VhostUserServer};

use super::machine::{Files, disk_queues, disk_serial};
use super::record::DesktopRecord;
use super::user_volume::UserDisk;
use super::{OpenVolumes, user_volume};
use crate::fetch::base::CachedBase;
use crate::volume::{Base, Overlay, OverlayError, OverlayIdentity, OverlayOptions, Volume};

/// Who may open a desktop's vhost-user socket may read and write its disk.
pub(super) const SOCKET_MODE: u32 = 0o600;

/// How long connections to an export that is taken away get to finish what is in flight.
const CLOSE_GRACE: Duration = Duration::from_secs(10);

/// Bytes read at a time when a tree is written out as a file. Its chunks are being prefetched, and less than a prefetch has in flight
/// follows that without asking for anything by itself.
const COPY_BYTES: usize = 256 << 10;

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
    user: Option<UserDisk>,
}

impl OpenVolume {
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

    /// Its user volume.
    pub fn user(&self) -> Option<&UserDisk> {
        self.user.as_ref()
    }
}

/// See the module.
pub struct Volumes {
    disk: Arc<dyn Disk>,
    open: Mutex<OpenVolumes>,
}

/// Name of a desktop's export.
pub fn export_name(desktop: &str) -> String {
    format!("desktop/{desktop}")
}

fn overlay_dir(desktop: &str) -> String {
    format!("overlays/{desktop}")
}

impl Volumes {
    /// Overlays live on `disk`, in `overlays/NAME`.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            open: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, OpenVolumes> {
        self.open.lock().expect("no panic under this lock")
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

    /// Opens a desktop's volume, or makes it; nothing happens if it is open.
    pub fn open(
        &self,
        desktop: &DesktopRecord,
        version: VersionId,
        base: Arc<CachedBase>,
        files: &Files,
    ) -> Result<(), VolumeError> {
        let name = &desktop.name;
        if self.lock().contains_key(name) {
            return Ok(());
        }
        let overlay_error = |source| VolumeError::Overlay {
            name: name.clone(),
            source,
        };
        let identity = OverlayIdentity {
            desktop: desktop.id,
            base: version,
            disks: vec![base.size_bytes().next_multiple_of(512)],
        };
        let mut log_id = [0; 16];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut log_id);
        let overlay = Overlay::open_or_create(
            Arc::clone(&self.disk),
            &overlay_dir(name),
            &identity,
            log_id,
            OverlayOptions::default(),
        );
        let overlay = Arc::new(overlay.map_err(overlay_error)?);
        let shared: Arc<dyn Base> = base.clone();
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
        let user = user.map(|record| UserDisk::open(&self.disk, desktop, record, files));
        let volume = OpenVolume {
            export,
            vhost_user: Mutex::new(Some(served)),
            overlay,
            base,
            user: user.transpose()?,
        };
        self.lock().insert(name.clone(), Arc::new(volume));
        Ok(())
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
        let flushed = volume.export.device().flush();
        let user_flushed = volume.user().map_or(Ok(()), UserDisk::flush);
        flushed
            .and(user_flushed)
            .map_err(|source| VolumeError::Flush {
                name: name.into(),
                source,
            })
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

    /// Removes a closed volume's overlay: what was written to the system. The user volume stays.
    pub fn delete_system(&self, desktop: &DesktopRecord) -> Result<(), VolumeError> {
        self.remove_overlay(desktop, &overlay_dir(&desktop.name))
    }

    /// Removes a closed volume's overlay and its user volume.
    pub fn delete(&self, desktop: &DesktopRecord) -> Result<(), VolumeError> {
        self.delete_system(desktop)?;
        self.remove_overlay(desktop, &user_volume::overlay_dir(&desktop.name))
    }

    fn remove_overlay(&self, desktop: &DesktopRecord, dir: &str) -> Result<(), VolumeError> {
        let remove = || {
            for file in self.disk.list(dir)? {
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

/// Writes a tree out as the file `path`, whole or not at all; nothing happens if it is there. The name is that of the
/// content, so a file that is there is the right one.
pub fn materialise(
    path: &Path,
    tree: &CachedBase,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if path.exists() {
        return Ok(());
    }
    let dir = path.parent().expect("boot files are in a directory");
    std::fs::create_dir_all(dir)?;
    // Several desktops may start at once; each writes a part file of its own.
    let part = path.with_extension(format!(
        "{}.{:?}.part",
        std::process::id(),
        std::thread::current().id()
    ));
    let written = write_tree(&part, tree).and_then(|()| Ok(std::fs::rename(&part, path)?));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn write_tree(
    path: &Path,
    tree: &CachedBase,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let file: File = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    let mut buf = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < tree.size_bytes() {
        let len = (tree.size_bytes() - at).min(COPY_BYTES as u64) as usize;
        tree.read(at, &mut buf[..len])?;
        std::os::unix::fs::FileExt::write_all_at(&file, &buf[..len], at)?;
        at += len as u64;
    }
    Ok(file.sync_all()?)
}
