//! Keys on a real directory: what is made, what is refused, what a missing file means.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use dedup_store::disk::{Disk, HostDisk};
use zeroize::Zeroizing;

use super::{KeyError, KeyStore, Mode, Unlock, UnlockError, read_passphrase, system_random};
use crate::volume::OverlayState;

const ID: [u8; 16] = [7; 16];

fn disk(root: &Path) -> Arc<dyn Disk> {
    Arc::new(HostDisk::new(root.join("keys")).unwrap())
}

fn open(root: &Path) -> Result<KeyStore, KeyError> {
    KeyStore::open(disk(root), None, system_random)
}

fn open_with(root: &Path, passphrase: &str) -> Result<KeyStore, KeyError> {
    let passphrase = Zeroizing::new(passphrase.as_bytes().to_vec());
    KeyStore::open(disk(root), Some(passphrase), system_random)
}

#[test]
fn without_configuration_a_key_file_is_made_that_its_owner_alone_reads() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(KeyStore::status(&*disk(root.path())).unwrap(), None);
    let store = open(root.path()).unwrap();
    let key = store.desktop("alice", &ID, OverlayState::Absent).unwrap();
    for file in ["unlock.key", "branch.key", "desktops/alice.key"] {
        let mode = root.path().join("keys").join(file).metadata().unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600, "{file}");
    }
    drop(store);
    let store = open(root.path()).unwrap();
    let again = store.desktop("alice", &ID, OverlayState::Sealed).unwrap();
    assert_eq!(again.key_id(), key.key_id());
    let status = KeyStore::status(&*disk(root.path())).unwrap().unwrap();
    assert_eq!((status.mode, status.desktops), (Mode::KeyFile, 1));
    // It says what it is worth.
    assert!(status.mode.protects().contains("reads everything"));
}

#[test]
fn a_passphrase_is_asked_for_and_can_be_changed() {
    let root = tempfile::tempdir().unwrap();
    let store = open_with(root.path(), "first").unwrap();
    let key = store.desktop("alice", &ID, OverlayState::Absent).unwrap();
    assert!(!root.path().join("keys/unlock.key").exists());
    drop(store);
    assert!(matches!(open(root.path()), Err(KeyError::NoPassphrase)));
    let wrong = open_with(root.path(), "second");
    assert!(matches!(
        wrong,
        Err(KeyError::Unlock {
            source: UnlockError::Closed(_),
            ..
        })
    ));
    let store = open_with(root.path(), "first").unwrap();
    let second = Zeroizing::new(b"second".to_vec());
    store.protect(Some(Unlock::Passphrase(second))).unwrap();
    drop(store);
    assert!(open_with(root.path(), "first").is_err());
    let store = open_with(root.path(), "second").unwrap();
    // Without the passphrase a new branch key could not be opened the next time.
    assert!(matches!(store.rotate(None), Err(KeyError::NoPassphrase)));
    store
        .rotate(Some(Zeroizing::new(b"second".to_vec())))
        .unwrap();
    store.protect(None).unwrap();
    drop(store);
    let store = open(root.path()).unwrap();
    let again = store.desktop("alice", &ID, OverlayState::Sealed).unwrap();
    assert_eq!(again.key_id(), key.key_id());
    // One that is not needed is not passed over in silence.
    assert!(open_with(root.path(), "second").is_err());
}

#[test]
fn a_key_that_is_not_there_or_not_the_right_one_is_never_made_up() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    let refused = store.desktop("alice", &ID, OverlayState::Sealed);
    assert!(matches!(refused, Err(KeyError::Destroyed { .. })));
    assert!(!root.path().join("keys/desktops/alice.key").exists());
    store.desktop("alice", &ID, OverlayState::Absent).unwrap();
    let other = store.desktop("alice", &[8; 16], OverlayState::Sealed);
    assert!(matches!(other, Err(KeyError::OtherDesktop { .. })));
    drop(store);
    let unlock = root.path().join("keys/unlock.key");
    let text = std::fs::read(&unlock).unwrap();
    std::fs::remove_file(&unlock).unwrap();
    assert!(matches!(open(root.path()), Err(KeyError::NoKeyFile { .. })));
    std::fs::write(&unlock, "nonsense").unwrap();
    assert!(matches!(open(root.path()), Err(KeyError::KeyFile)));
    std::fs::write(&unlock, text).unwrap();
    std::fs::remove_file(root.path().join("keys/branch.key")).unwrap();
    assert!(matches!(
        open(root.path()),
        Err(KeyError::NoBranchKey { .. })
    ));
}

#[test]
fn nothing_is_left_of_a_key_that_is_destroyed() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    store.desktop("alice", &ID, OverlayState::Absent).unwrap();
    let desktops = root.path().join("keys/desktops");
    // As a replacement leaves it that was cut before its name was the right one.
    let key = desktops.join("alice.key");
    std::fs::copy(&key, desktops.join("alice.key.part")).unwrap();
    store.destroy_desktop("alice").unwrap();
    assert_eq!(std::fs::read_dir(&desktops).unwrap().count(), 0);
    std::fs::write(desktops.join("alice.key.part"), b"cut early").unwrap();
    store.destroy_desktop("alice").unwrap();
    assert_eq!(std::fs::read_dir(&desktops).unwrap().count(), 0);
}

#[test]
fn an_overlay_in_the_clear_is_taken_once() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    let key = store.desktop("alice", &ID, OverlayState::Plain).unwrap();
    store.desktop_is_sealed("alice").unwrap();
    let again = store.desktop("alice", &ID, OverlayState::Plain).unwrap();
    assert_eq!(again.key_id(), key.key_id());
    assert!(format!("{key:?}") == format!("{again:?}"));
    store.desktop_is_sealed("nobody").unwrap();
}

#[test]
fn overlays_in_the_clear_are_taken_at_the_first_start_only() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    // Also by a start that was cut and goes on, and across a change of the branch key.
    store.rotate(None).unwrap();
    drop(store);
    let store = open(root.path()).unwrap();
    assert!(store.is_adopting().unwrap());
    store.desktop("alice", &ID, OverlayState::Plain).unwrap();
    let token = root.path().join("keys/plain.key");
    let copy = std::fs::read(&token).unwrap();
    store.end_adoption().unwrap();
    store.end_adoption().unwrap();
    assert!(!store.is_adopting().unwrap());
    let refused = store.desktop("bob", &[8; 16], OverlayState::Plain);
    assert!(matches!(refused, Err(KeyError::InTheClear { .. })));
    // Removing a key does not make the way free, nor does a token that another branch key made.
    std::fs::remove_file(root.path().join("keys/desktops/alice.key")).unwrap();
    store.rotate(None).unwrap();
    std::fs::write(&token, copy).unwrap();
    let refused = store.desktop("alice", &ID, OverlayState::Plain);
    assert!(matches!(refused, Err(KeyError::InTheClear { .. })));
}

#[test]
fn a_passphrase_is_the_first_line_of_its_file() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("passphrase");
    for (text, found) in [
        ("one\ntwo\n", Some("one")),
        ("one\r\n", Some("one")),
        ("\n", None),
    ] {
        std::fs::write(&path, text).unwrap();
        let read = read_passphrase(&path).ok();
        assert_eq!(read.as_deref().map(Vec::as_slice), found.map(str::as_bytes));
    }
    assert!(read_passphrase(&root.path().join("absent")).is_err());
}

/// With a TPM in software, where swtpm and tpm2-tools are installed; else it says that it did not look.
#[test]
fn a_tpm_opens_what_it_sealed() {
    let Ok(tcti) = std::env::var("SPLICE_TEST_TPM") else {
        println!("skipped: SPLICE_TEST_TPM names no TPM (tests/lab/swtpm.sh starts one)");
        return;
    };
    assert!(
        std::env::var("TPM2TOOLS_TCTI").is_ok_and(|named| named == tcti),
        "the programs ask the TPM that TPM2TOOLS_TCTI names"
    );
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    let key = store.desktop("alice", &ID, OverlayState::Absent).unwrap();
    store.protect(Some(Unlock::Tpm)).unwrap();
    drop(store);
    assert!(!root.path().join("keys/unlock.key").exists());
    let store = open(root.path()).unwrap();
    assert_eq!(store.mode(), Mode::Tpm);
    let again = store.desktop("alice", &ID, OverlayState::Sealed).unwrap();
    assert_eq!(again.key_id(), key.key_id());
}
