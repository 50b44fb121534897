//! What publish takes from a disk's inspection: the kernel, the initial RAM disk, and the words for people.

use bytes::Bytes;
use dedup_image::DiskImage;

/// What boots the image without firmware.
pub(super) struct Boot {
    pub(super) kernel_path: String,
    pub(super) kernel: Bytes,
    pub(super) initrd: Option<Bytes>,
    pub(super) root_argument: String,
}

/// What was found.
pub(super) struct Found {
    pub(super) os: Option<String>,
    pub(super) boot: Option<Boot>,
    /// Why no kernel was found, where that may surprise.
    pub(super) note: Option<String>,
}

/// Looks into the disk; whatever is on it, it is published.
pub(super) fn inspect(disk: &mut dyn DiskImage) -> Found {
    let found = dedup_image::inspect(disk);
    for note in &found.notes {
        tracing::info!(note, "disk inspection");
    }
    let os = found.os.and_then(|os| os.pretty_name.or(os.id));
    let boot = found.boot_artifacts.map(|boot| Boot {
        kernel_path: boot.kernel_path,
        kernel: boot.kernel.into(),
        initrd: boot.initrd.map(Into::into),
        root_argument: boot.root_argument,
    });
    let note = boot.is_none().then(|| found.notes.join("; "));
    Found {
        os,
        boot,
        note: note.filter(|note| !note.is_empty()),
    }
}
