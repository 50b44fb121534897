//! A desktop's user volume: a second disk that begins empty, with an overlay of its own and nothing under it; or, where it goes on behind what was written
//! under an earlier lease, that state.
//!
//! Its overlay is apart from the system's because it outlives it: a reset or another version of the system leaves it as it is. Each of the two is a past
//! state of its own disk after a crash; one order over both is not promised. It has a key of its own for the same reason.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dedup::VersionId;
use dedup_store::disk::Disk;
use vmm_block::BlockError;
use vmm_block::nbd::Export;
use vmm_block::vhost_user::{DiskSpec, VhostUserServer};

use super::machine::{Files, disk_queues};
use super::record::{DesktopRecord, UserVolumeRecord};
use super::volumes::{SOCKET_MODE, UserBase, VolumeError};
use crate::keys::KeyStore;
use crate::volume::{Base, NoBase, Overlay, OverlayIdentity, OverlayOptions, OverlayState, Volume};

/// What stands for the version under an overlay that has none.
const NO_VERSION: VersionId = VersionId([0; 32]);

/// Name of a user volume's export.
pub fn export_name(desktop: &str) -> String {
    format!("user/{desktop}")
}

/// Under which name a user volume's key is kept. No desktop's name has a dot.
pub fn key_name(desktop: &str) -> String {
    format!("{desktop}.user")
}

/// Where a user volume's overlay is.
pub fn overlay_dir(desktop: &str) -> String {
    format!("users/{desktop}")
}

impl UserVolumeRecord {
    /// A new one of this size.
    pub fn new(mib: u32) -> Self {
        let mut id = [0; 16];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut id);
        Self {
            id,
            size_bytes: u64::from(mib) << 20,
            made: false,
        }
    }

    /// Its virtio serial number: by it a guest finds it, so it is another one for each volume. 19 bytes of 20.
    pub fn serial(&self) -> String {
        format!("su-{}", hex::encode(&self.id[..8]))
    }
}

/// An open user volume.
pub struct UserDisk {
    export: Arc<Export>,
    /// None once it is being closed.
    vhost_user: Mutex<Option<VhostUserServer>>,
    overlay: Arc<Overlay>,
    /// Whether something was written to it before what its overlay has.
    has_base: bool,
}

impl UserDisk {
    /// Serves a desktop's user volume, whose overlay is open, over what lies under it.
    pub fn serve(
        under: Option<UserBase>,
        overlay: Arc<Overlay>,
        desktop: &DesktopRecord,
        record: &UserVolumeRecord,
        files: &Files,
    ) -> Result<Self, VolumeError> {
        let name = || format!("{} (user volume)", desktop.name);
        let overlay_error = |source| VolumeError::Overlay {
            name: name(),
            source,
        };
        let has_base = under.is_some();
        let base: Arc<dyn Base> = match under {
            Some(under) => under.base,
            None => Arc::new(NoBase),
        };
        let volume = Volume::new(base, Arc::clone(&overlay), 0).map_err(overlay_error)?;
        let export = Export::new(&export_name(&desktop.name), "user volume", Arc::new(volume));
        let export = export.map_err(|source| VolumeError::Export {
            name: name(),
            source,
        })?;
        let spec = DiskSpec {
            device: Arc::clone(export.device()),
            serial: record.serial(),
            queues: disk_queues(desktop.vcpus),
        };
        let served = VhostUserServer::listen(&files.user_disk_socket(), SOCKET_MODE, spec);
        let served = served.map_err(|source| VolumeError::Listen {
            name: name(),
            source,
        })?;
        Ok(Self {
            export,
            vhost_user: Mutex::new(Some(served)),
            overlay,
            has_base,
        })
    }

    fn vhost_user(&self) -> MutexGuard<'_, Option<VhostUserServer>> {
        self.vhost_user.lock().expect("no panic under this lock")
    }

    /// Its export.
    pub fn export(&self) -> &Arc<Export> {
        &self.export
    }

    /// Takes its vhost-user server away, to be stopped.
    pub fn take_server(&self) -> Option<VhostUserServer> {
        self.vhost_user().take()
    }

    /// Closes its export. Returns whether nobody uses it any more.
    pub fn close(&self, grace: Duration) -> bool {
        drop(self.take_server());
        self.export.close(grace)
    }

    /// Makes all that was written durable.
    pub fn flush(&self) -> Result<(), BlockError> {
        self.export.device().flush()
    }

    /// Why requests of its guest wait, if any do.
    pub fn waits_for(&self) -> Option<String> {
        self.vhost_user().as_ref()?.waits_for()
    }

    /// Why it failed closed, if it did.
    pub fn failure(&self) -> Option<String> {
        self.overlay.failure().map(str::to_owned)
    }

    /// Its overlay.
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Bytes in its overlay's log.
    pub fn written_bytes(&self) -> u64 {
        self.overlay.stats().log_bytes
    }

    /// Whether nothing was ever written to it.
    pub fn is_unwritten(&self) -> bool {
        !self.has_base && self.overlay.is_unwritten()
    }
}

/// Opens the overlay of a desktop's user volume, over `base` or over nothing, or makes it the first time.
pub(super) fn open_overlay(
    disk: &Arc<dyn Disk>,
    keys: &KeyStore,
    desktop: &str,
    record: &UserVolumeRecord,
    base: Option<VersionId>,
    options: OverlayOptions,
) -> Result<Overlay, VolumeError> {
    let name = || format!("{desktop} (user volume)");
    let overlay_error = |source| VolumeError::Overlay {
        name: name(),
        source,
    };
    let key_error = |source| VolumeError::Key {
        name: name(),
        source,
    };
    let dir = overlay_dir(desktop);
    let state = Overlay::state(&**disk, &dir).map_err(overlay_error)?;
    if record.made && state == OverlayState::Absent {
        return Err(VolumeError::UserVolumeGone {
            name: desktop.to_owned(),
            dir,
        });
    }
    let key_name = key_name(desktop);
    let key = keys
        .desktop(&key_name, &record.id, state)
        .map_err(key_error)?;
    let identity = OverlayIdentity {
        desktop: record.id,
        base: base.unwrap_or(NO_VERSION),
        disks: vec![record.size_bytes],
    };
    let mut log_id = [0; 16];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut log_id);
    Overlay::open_or_create(Arc::clone(disk), &dir, &identity, log_id, &key, options)
        .map_err(overlay_error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use dedup_store::disk::HostDisk;
    use vmm_block::{BlockDevice, RangeStatus};

    use super::*;
    use crate::keys::system_random;

    fn disk(root: &std::path::Path) -> Arc<dyn Disk> {
        Arc::new(HostDisk::new(root.join("disks")).unwrap())
    }

    fn keys(root: &std::path::Path) -> KeyStore {
        let disk = Arc::new(HostDisk::new(root.join("keys")).unwrap());
        KeyStore::open(disk, None, system_random).unwrap()
    }

    fn open_overlay(
        disk: &Arc<dyn Disk>,
        keys: &KeyStore,
        desktop: &str,
        record: &UserVolumeRecord,
        base: Option<VersionId>,
    ) -> Result<Overlay, VolumeError> {
        super::open_overlay(disk, keys, desktop, record, base, OverlayOptions::default())
    }

    fn volume(overlay: Overlay) -> Volume {
        Volume::new(Arc::new(NoBase), Arc::new(overlay), 0).unwrap()
    }

    #[test]
    fn it_begins_as_zeros_keeps_what_is_written_and_knows_whether_anything_was() {
        let root = tempfile::tempdir().unwrap();
        let (disk, keys) = (disk(root.path()), keys(root.path()));
        let mut record = UserVolumeRecord::new(64);
        assert_eq!(record.serial().len(), 19);
        let size = record.size_bytes;
        let overlay = open_overlay(&disk, &keys, "alice", &record, None).unwrap();
        assert!(overlay.is_unwritten());
        let fresh = volume(overlay);
        let mut bytes = [1; 4096];
        fresh.read(size - 4096, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4096]);
        let hole = RangeStatus {
            len: size,
            hole: true,
            zero: true,
        };
        assert_eq!(fresh.block_status(0, size).unwrap(), [hole]);
        fresh.flush().unwrap();
        drop(fresh);

        record.made = true;
        let overlay = open_overlay(&disk, &keys, "alice", &record, None).unwrap();
        assert!(overlay.is_unwritten(), "a flush writes nothing");
        let again = volume(overlay);
        again.write(8192, &[7; 4096], true).unwrap();
        assert!(!again.overlay().is_unwritten());
        drop(again);
        let again = volume(open_overlay(&disk, &keys, "alice", &record, None).unwrap());
        again.read(8192, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 4096]);
        // Zeros over it look like nothing, and are not taken for it.
        again.discard(0, size).unwrap();
        again.flush().unwrap();
        assert!(!again.overlay().is_unwritten());
        drop(again);
        let overlay = open_overlay(&disk, &keys, "alice", &record, None).unwrap();
        assert!(!overlay.is_unwritten());
    }

    #[test]
    fn one_that_is_gone_is_a_loss_and_not_a_new_one() {
        let root = tempfile::tempdir().unwrap();
        let (disk, keys) = (disk(root.path()), keys(root.path()));
        let mut record = UserVolumeRecord::new(64);
        record.made = true;
        let lost = open_overlay(&disk, &keys, "alice", &record, None);
        assert!(matches!(lost, Err(VolumeError::UserVolumeGone { .. })));
        record.made = false;
        open_overlay(&disk, &keys, "alice", &record, None).unwrap();
        let other = UserVolumeRecord::new(64);
        let other = open_overlay(&disk, &keys, "alice", &other, None);
        assert!(matches!(other, Err(VolumeError::Key { .. })));
        // A desktop's own key is another one.
        keys.destroy_desktop("alice").unwrap();
        open_overlay(&disk, &keys, "alice", &record, None).unwrap();
        keys.destroy_desktop(&key_name("alice")).unwrap();
        let destroyed = open_overlay(&disk, &keys, "alice", &record, None);
        assert!(matches!(destroyed, Err(VolumeError::Key { .. })));
    }
}
