//! What the tests of write-back share: an overlay on a real directory.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Arc;

use dedup::VersionId;
use dedup_store::disk::HostDisk;

use crate::volume::{Overlay, OverlayIdentity, OverlayKey, OverlayOptions};

/// Size of its disk.
pub(super) const DISK: u64 = 24 << 20;

pub(super) fn open(root: &Path) -> Arc<Overlay> {
    let disk = Arc::new(HostDisk::new(root).unwrap());
    let identity = OverlayIdentity {
        desktop: [7; 16],
        base: VersionId([9; 32]),
        disks: vec![DISK],
    };
    let key = OverlayKey::new([0x77; 32], |buf| {
        rand::RngCore::fill_bytes(&mut rand::rng(), buf);
    });
    let options = OverlayOptions {
        segment_bytes: 1 << 20,
        ..OverlayOptions::default()
    };
    Overlay::open_or_create(disk, "desk", &identity, [3; 16], &key, options)
        .map(Arc::new)
        .unwrap()
}
