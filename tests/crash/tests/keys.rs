//! The branch's keys under power cuts and killed processes, at every single operation of every durable step.
//!
//! Whatever happened, a desktop's key is what it was, or (destroyed) is not there. A change of the branch key or of what protects it is
//! done or not done, and the next opening finds out which.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use branch::keys::{KeyError, KeyStore, Mode, Unlock, wiped};
use branch::volume::OverlayState;
use crash::{Rng, SimDisk};
use dedup_store::disk::Disk;

const DESKTOPS: [&str; 3] = ["alice", "bob", "carol"];
const PASSPHRASE: &[u8] = b"correct horse";

fn random(buf: &mut [u8]) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    for bytes in buf.chunks_mut(8) {
        let next = Rng::new(NEXT.fetch_add(1, Ordering::Relaxed)).bits();
        bytes.copy_from_slice(&next.to_le_bytes()[..bytes.len()]);
    }
}

fn open(disk: &SimDisk) -> Result<KeyStore, KeyError> {
    KeyStore::open(Arc::new(disk.clone()), None, random)
}

/// Public names of the desktops' keys and the cache's.
fn names(store: &KeyStore) -> Vec<[u8; 8]> {
    let mut names: Vec<_> = DESKTOPS
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let key = store.desktop(name, &[i as u8; 16], OverlayState::Sealed);
            key.unwrap_or_else(|error| panic!("{name}: {error}"))
                .key_id()
        })
        .collect();
    names.push(store.cache().unwrap().id());
    names
}

/// A disk with a branch key and all the others.
fn made() -> (SimDisk, Vec<[u8; 8]>) {
    let disk = SimDisk::new(1);
    let store = open(&disk).unwrap();
    for (i, name) in DESKTOPS.iter().enumerate() {
        store
            .desktop(name, &[i as u8; 16], OverlayState::Absent)
            .unwrap();
    }
    let names = names(&store);
    (disk, names)
}

/// Runs `act` on a fresh disk, stopping after each number of operations in turn; `check` looks at what the next opening finds, once after
/// a power cut and once after the death of the process. Ends when `act` comes through.
fn at_every_operation(
    act: impl Fn(&KeyStore) -> Result<(), KeyError>,
    check: impl Fn(&SimDisk, &[[u8; 8]]),
) {
    for operations in 0.. {
        for seed in 0..4u64 {
            let (disk, names) = made();
            // Opened anew, so that the operations counted are those of the step.
            let store = open(&disk).unwrap();
            disk.stop_after(operations);
            let done = act(&store).is_ok();
            let after = if seed == 0 {
                disk.clone_live()
            } else {
                disk.crash(seed)
            };
            check(&after, &names);
            if done {
                if seed == 3 {
                    assert!(operations > 2, "the step did nothing");
                    return;
                }
            } else {
                assert!(operations < 200, "the step does not end");
            }
        }
    }
}

#[test]
fn a_change_of_the_branch_key_can_stop_anywhere() {
    at_every_operation(
        |store| store.rotate(None),
        |disk, expected| {
            // Also when the opening that goes on with it stops.
            for operations in 0..12 {
                let disk = disk.clone_live();
                disk.stop_after(operations);
                if let Ok(store) = open(&disk) {
                    assert_eq!(names(&store), expected);
                    assert_eq!(store.mode(), Mode::KeyFile);
                }
                let store = open(&disk.crash(operations)).unwrap();
                assert_eq!(names(&store), expected);
            }
        },
    );
}

#[test]
fn a_change_of_the_branch_key_makes_a_copy_of_the_old_one_useless() {
    let (disk, _) = made();
    let copy = disk.content("branch.key").unwrap();
    let store = open(&disk).unwrap();
    store.rotate(None).unwrap();
    drop(store);
    disk.corrupt("branch.key", 0, &copy);
    let store = open(&disk).unwrap();
    let refused = store.desktop("alice", &[0; 16], OverlayState::Sealed);
    assert!(matches!(refused, Err(KeyError::Data { .. })));
}

#[test]
fn what_protects_the_branch_key_can_change_and_stop_anywhere() {
    let passphrase = || zeroize_vec(PASSPHRASE);
    at_every_operation(
        |store| store.protect(Some(Unlock::Passphrase(passphrase()))),
        |disk, expected| {
            let by_file = open(disk);
            let store = match by_file {
                Ok(store) => store,
                Err(KeyError::NoPassphrase) => {
                    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
                    KeyStore::open(disk, Some(passphrase()), random).unwrap()
                }
                Err(error) => panic!("{error}"),
            };
            assert_eq!(names(&store), expected);
        },
    );
}

fn zeroize_vec(bytes: &[u8]) -> zeroize::Zeroizing<Vec<u8>> {
    zeroize::Zeroizing::new(bytes.to_vec())
}

#[test]
fn a_key_that_was_destroyed_does_not_come_back() {
    at_every_operation(
        |store| store.destroy_desktop("bob"),
        |disk, expected| {
            let store = open(disk).unwrap();
            let key = |i: usize| store.desktop(DESKTOPS[i], &[i as u8; 16], OverlayState::Sealed);
            assert_eq!(key(0).unwrap().key_id(), expected[0]);
            match key(1) {
                // It had not begun.
                Ok(key) => assert_eq!(key.key_id(), expected[1]),
                Err(KeyError::Destroyed { .. } | KeyError::Data { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            // Again, which a deletion that was cut does; then the name is free for another desktop.
            store.destroy_desktop("bob").unwrap();
            assert!(matches!(key(1), Err(KeyError::Destroyed { .. })));
            let fresh = store.desktop("bob", &[9; 16], OverlayState::Absent);
            assert_ne!(fresh.unwrap().key_id(), expected[1]);
        },
    );
}

#[test]
fn an_order_to_wipe_can_stop_anywhere_and_is_all_or_nothing() {
    const ORDER: &[u8] = b"as it was signed";
    at_every_operation(
        |store| store.wipe(ORDER),
        |disk, expected| {
            let order = wiped(disk).unwrap();
            if order.is_none() {
                // It had not begun.
                let store = open(disk).unwrap();
                assert_eq!(names(&store), expected);
                return;
            }
            assert_eq!(order.as_deref(), Some(ORDER));
            // Also when the opening that goes on with it stops.
            for operations in 0..12 {
                let disk = disk.clone_live();
                disk.stop_after(operations);
                assert!(open(&disk).is_err());
                let disk = disk.crash(operations);
                if wiped(&disk).unwrap().is_none() {
                    // Its name was not durable yet, and nothing else was done.
                    assert_eq!(names(&open(&disk).unwrap()), expected);
                    continue;
                }
                let refused = open(&disk).err();
                assert!(matches!(refused, Some(KeyError::Wiped)), "{refused:?}");
                for dir in ["", "desktops"] {
                    let left = disk.list(dir).unwrap();
                    let left: Vec<_> = left.iter().filter(|name| *name != "wipe.order").collect();
                    assert!(left.is_empty(), "{left:?}");
                }
            }
        },
    );
}

#[test]
fn the_first_start_can_stop_anywhere() {
    for operations in 0.. {
        let disk = SimDisk::new(operations);
        disk.stop_after(operations);
        let first = open(&disk).map(|store| store.desktop("alice", &[0; 16], OverlayState::Absent));
        let done = matches!(first, Ok(Ok(_)));
        let store = open(&disk.crash(operations)).unwrap();
        let state = if done {
            OverlayState::Sealed
        } else {
            OverlayState::Absent
        };
        let again = store.desktop("alice", &[0; 16], state).unwrap().key_id();
        if let Ok(Ok(key)) = first {
            assert_eq!(key.key_id(), again);
            return;
        }
        assert!(operations < 100, "the first start does not end");
    }
}
