//! Templates come, are found to be of no use, and go.
#![allow(clippy::unwrap_used, missing_docs)]

use dedup_store::disk::HostDisk;

use super::super::Head;
use super::super::head::tests::identity;
use super::*;
use crate::volume::NoBase;

fn shelf(folder: &tempfile::TempDir) -> Shelf {
    let disk = Arc::new(HostDisk::new(folder.path()).unwrap());
    Shelf::open(disk, TemplateSecret::new(&[1; 32]))
}

fn head(identity: &Identity) -> Head {
    Head {
        identity: identity.clone(),
        made_unix_s: 1,
        agent: false,
        state_bytes: 3,
        blocks: Vec::new(),
        disk_bytes: 0,
        extents: Vec::new(),
        order: Vec::new(),
    }
}

fn make(shelf: &Shelf, identity: &Identity, head: &Head) {
    shelf.begins(identity);
    assert_eq!(shelf.standing(identity), Standing::Making);
    assert!(!shelf.is_due(identity));
    let mut writer = shelf.write(identity).unwrap();
    writer.write(b"abc").unwrap();
    writer.finish(head).unwrap();
    shelf.ended(identity, Ok(()));
}

fn thaw(shelf: &Shelf, identity: &Identity) -> Result<Option<Arc<Thawed>>, TemplateError> {
    shelf.thawed(identity, &NoBase, &|| false)
}

#[test]
fn a_template_is_there_until_no_pool_wants_it() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = shelf(&folder);
    let identity = identity();
    assert_eq!(shelf.standing(&identity), Standing::Wanted);
    assert!(shelf.is_due(&identity) && thaw(&shelf, &identity).unwrap().is_none());
    make(&shelf, &identity, &head(&identity));
    let is_warm = || match shelf.standing(&identity) {
        Standing::Ready { bytes, warm } => {
            assert!(bytes > 4096);
            warm
        }
        other => panic!("{other:?}"),
    };
    assert!(!is_warm());
    let first = thaw(&shelf, &identity).unwrap().unwrap();
    let second = thaw(&shelf, &identity).unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &second) && is_warm());
    shelf.retain(std::slice::from_ref(&identity));
    assert!(is_warm());
    shelf.retain(&[]);
    assert_eq!(shelf.standing(&identity), Standing::Wanted);
}

#[test]
fn one_that_is_of_no_use_is_removed_and_made_again_later() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = shelf(&folder);
    let identity = identity();
    let other = Identity {
        vcpus: 9,
        ..identity.clone()
    };
    // Under its name, but of something else.
    let file = path(&identity.file_name());
    let mut writer = shelf.write(&other).unwrap();
    writer.write(b"abc").unwrap();
    writer.finish(&head(&other)).unwrap();
    shelf.disk.rename(&path(&other.file_name()), &file).unwrap();
    let refused = thaw(&shelf, &identity).err().unwrap();
    assert!(refused.to_string().contains("something else"), "{refused}");
    let Standing::Missing(why) = shelf.standing(&identity) else {
        panic!("it is removed");
    };
    assert!(why.contains("something else"), "{why}");
    assert!(!shelf.is_due(&identity), "not at once");
    make(&shelf, &identity, &head(&identity));
    // Cut.
    let path = folder.path().join(file);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(thaw(&shelf, &identity).err().unwrap().is_spoiled());
    assert!(!path.exists());
}

#[test]
fn what_fails_again_is_tried_less_often() {
    let mut known = Known::default();
    let mut waits = Vec::new();
    for _ in 0..8 {
        known.note("no agent".into());
        let minutes = (0..).find(|m| known.is_due(Duration::from_secs(60 * m)));
        waits.extend(minutes);
    }
    assert_eq!(waits, [30, 60, 120, 240, 480, 960, 960, 960]);
}

#[test]
fn what_was_not_finished_is_removed_and_what_takes_room_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let identity = identity();
    {
        let shelf = shelf(&folder);
        let mut writer = shelf.write(&identity).unwrap();
        writer.write(b"a").unwrap();
    }
    let shelf = shelf(&folder);
    assert_eq!(shelf.names(), [""; 0]);
    shelf.begins(&identity);
    let _writer = shelf.write(&identity).unwrap();
    shelf.retain(&[]);
    assert_eq!(shelf.names().len(), 1, "its maker has it");
    shelf.ended(&identity, Err("no agent".into()));
    assert_eq!(shelf.names(), [""; 0]);
    let missing = Standing::Missing("no agent".into());
    assert_eq!(shelf.standing(&identity), missing);
    make(&shelf, &identity, &head(&identity));
    assert!(shelf.give_room() > 4096);
    assert!(matches!(shelf.standing(&identity), Standing::Missing(_)));
    assert_eq!(shelf.give_room(), 0);
    assert!(!shelf.is_stopping());
    shelf.stop();
    assert!(shelf.is_stopping());
}
