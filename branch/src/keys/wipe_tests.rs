//! A wipe: afterwards neither overlay nor cache opens, with whatever is left on the disk.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use dedup::{Chunk, IdKey, RealmId, VersionId};
use dedup_store::disk::{Disk, HostDisk};
use dedup_store::kv::{Kv, MemKv};

use super::{KeyError, KeyStore, Secret, system_random, wipe, wiped};
use crate::cache::{Cache, CacheIdentity, CacheKey, CacheOptions};
use crate::volume::{
    Overlay, OverlayError, OverlayIdentity, OverlayKey, OverlayOptions, OverlayState,
};

const ID: [u8; 16] = [7; 16];
const ORDER: &[u8] = b"as it was signed";

fn disk(root: &Path, name: &str) -> Arc<dyn Disk> {
    Arc::new(HostDisk::new(root.join(name)).unwrap())
}

fn open(root: &Path) -> Result<KeyStore, KeyError> {
    KeyStore::open(disk(root, "keys"), None, system_random)
}

fn overlay(root: &Path, key: &OverlayKey) -> Result<Overlay, OverlayError> {
    let identity = OverlayIdentity {
        desktop: ID,
        base: VersionId([9; 32]),
        disks: vec![1 << 20],
    };
    let options = OverlayOptions::default();
    Overlay::open_or_create(
        disk(root, "disks"),
        "desk",
        &identity,
        [3; 16],
        key,
        options,
    )
}

fn cache(root: &Path, kv: &Arc<dyn Kv>, secret: &Secret) -> Cache {
    let id_key = IdKey::new([5; 32]);
    let identity = CacheIdentity {
        realm: RealmId([1; 16]),
        key_id: id_key.key_id(),
    };
    let options = CacheOptions {
        capacity_bytes: 1 << 20,
        slab_bytes: 1 << 20,
        ..CacheOptions::default()
    };
    let key = CacheKey::new(*secret.bytes());
    let kv = Arc::clone(kv);
    Cache::open(
        disk(root, "cache"),
        "slabs",
        kv,
        identity,
        [9; 16],
        key,
        options,
    )
    .unwrap()
}

fn key_files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["keys", "keys/desktops"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() && !path.ends_with("wipe.order") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn after_a_wipe_neither_overlay_nor_cache_opens() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let kv: Arc<dyn Kv> = Arc::new(MemKv::new());
    let chunk = Chunk::new(&IdKey::new([5; 32]), Bytes::from(vec![0x5A; 5000]));
    let store = open(root).unwrap();
    let key = store.desktop("alice", &ID, OverlayState::Absent).unwrap();
    let written = overlay(root, &key).unwrap();
    written.write(0, 4096, &[0xA7; 4096]).unwrap();
    written.flush().unwrap();
    drop((written, key));
    let kept = cache(root, &kv, &store.cache().unwrap());
    kept.insert(&chunk).unwrap();
    kept.sync().unwrap();
    drop(kept);
    // It is all there, and opens.
    let again = store.desktop("alice", &ID, OverlayState::Sealed).unwrap();
    overlay(root, &again).unwrap();
    assert!(cache(root, &kv, &store.cache().unwrap()).contains(&chunk.id()));

    store.wipe(ORDER).unwrap();
    // The server that did it gives nothing more, and makes no new keys.
    for gone in [
        store.desktop("alice", &ID, OverlayState::Sealed).err(),
        store.desktop("bob", &[8; 16], OverlayState::Absent).err(),
        store.cache().err(),
        store.rotate(None).err(),
        store.protect(None).err(),
    ] {
        assert!(matches!(gone, Some(KeyError::Wiped)), "{gone:?}");
    }
    drop(store);
    assert!(matches!(open(root), Err(KeyError::Wiped)));
    assert_eq!(key_files(root), Vec::<PathBuf>::new());
    let order = wiped(&*disk(root, "keys")).unwrap();
    assert_eq!(order.as_deref(), Some(ORDER));

    // Who takes the order away has a branch without keys, and noise.
    std::fs::remove_file(root.join("keys/wipe.order")).unwrap();
    let thief = open(root).unwrap();
    let refused = thief.desktop("alice", &ID, OverlayState::Sealed);
    assert!(matches!(refused, Err(KeyError::Destroyed { .. })));
    let other = thief.desktop("alice", &ID, OverlayState::Absent).unwrap();
    let refused = overlay(root, &other).err();
    assert!(matches!(refused, Some(OverlayError::OtherKey { .. })));
    assert!(!cache(root, &kv, &thief.cache().unwrap()).contains(&chunk.id()));
}

#[test]
fn what_a_write_that_was_cut_left_goes_too() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    let store = open(root).unwrap();
    store.desktop("alice", &ID, OverlayState::Absent).unwrap();
    drop(store);
    for (from, to) in [
        ("branch.key", "branch.key.part"),
        ("branch.key", "branch.next"),
        ("unlock.key", "unlock.key.part"),
        ("desktops/alice.key", "desktops/bob.user.key.part"),
    ] {
        let keys = root.join("keys");
        std::fs::copy(keys.join(from), keys.join(to)).unwrap();
    }
    wipe(&*disk(root, "keys"), ORDER, system_random).unwrap();
    assert_eq!(key_files(root), Vec::<PathBuf>::new());
    // Again, as by a repetition: the first order stays.
    wipe(&*disk(root, "keys"), b"another", system_random).unwrap();
    let order = wiped(&*disk(root, "keys")).unwrap();
    assert_eq!(order.as_deref(), Some(ORDER));
}

/// A branch that never ran has no keys to destroy, and gets none afterwards.
#[test]
fn a_branch_without_keys_can_be_wiped_too() {
    let root = tempfile::tempdir().unwrap();
    wipe(&*disk(root.path(), "keys"), ORDER, system_random).unwrap();
    assert!(matches!(open(root.path()), Err(KeyError::Wiped)));
}
