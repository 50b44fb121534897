//! A file comes back as it was written, or is refused.
#![allow(clippy::unwrap_used, missing_docs)]

use dedup_store::disk::HostDisk;
use proptest::prelude::*;

use super::super::head::tests::identity;
use super::super::head::{Content, Extent};
use super::*;

const NAME: &str = "one.template";

fn secret() -> TemplateSecret {
    TemplateSecret::new(&[1; 32])
}

/// A head of a body of so many bytes of state, and one extent.
fn head(state_bytes: u64) -> Head {
    Head {
        identity: identity(),
        made_unix_s: 1_700_000_000,
        agent: false,
        state_bytes,
        blocks: Vec::new(),
        disk_bytes: 4096,
        extents: vec![Extent {
            start: 0,
            len: 512,
            content: Content::Data,
        }],
        order: vec![4; 10],
    }
}

fn body(head: &Head) -> Vec<u8> {
    (0..head.body_bytes()).map(|at| (at / 3) as u8).collect()
}

fn write(disk: &HostDisk, head: &Head) {
    let mut writer = Writer::create(disk, NAME, &secret(), [5; 16]).unwrap();
    for part in body(head).chunks(300_001) {
        writer.write(part).unwrap();
    }
    writer.finish(head).unwrap();
}

fn open(disk: &HostDisk) -> Result<Option<TemplateFile>, TemplateError> {
    TemplateFile::open(disk, NAME, &secret())
}

fn read(template: &TemplateFile, at: u64, len: usize) -> Result<Vec<u8>, TemplateError> {
    let mut bytes = vec![0; len];
    template.body(at).read(&mut bytes)?;
    Ok(bytes)
}

fn disk() -> (tempfile::TempDir, HostDisk) {
    let folder = tempfile::tempdir().unwrap();
    let disk = HostDisk::new(folder.path()).unwrap();
    (folder, disk)
}

#[test]
fn what_is_written_comes_back_from_anywhere() {
    let frame = FRAME_BYTES as u64;
    for state_bytes in [
        0,
        1,
        frame - 513,
        frame - 512,
        frame - 511,
        2 * frame,
        2 * frame + 9,
    ] {
        let (_folder, disk) = disk();
        assert!(open(&disk).unwrap().is_none());
        let head = head(state_bytes);
        write(&disk, &head);
        let names = disk.list(DIR).unwrap();
        assert_eq!(names, [NAME], "nothing else is left");
        let template = open(&disk).unwrap().unwrap();
        assert_eq!((template.head(), template.name()), (&head, NAME));
        let body = body(&head);
        assert_eq!(read(&template, 0, body.len()).unwrap(), body);
        let at = head.extents_at();
        assert_eq!(read(&template, at, 512).unwrap(), body[at as usize..]);
        let beyond = read(&template, at, 513).unwrap_err();
        assert!(beyond.is_spoiled() && beyond.to_string().contains("early"));
    }
}

#[test]
fn a_body_of_another_length_gets_no_name() {
    let (_folder, disk) = disk();
    let head = head(100);
    let mut writer = Writer::create(&disk, NAME, &secret(), [5; 16]).unwrap();
    writer.write(&body(&head)[1..]).unwrap();
    let refused = writer.finish(&head).unwrap_err();
    assert!(matches!(refused, TemplateError::Head { .. }), "{refused}");
    assert!(open(&disk).unwrap().is_none());
    // What it left is in nobody's way.
    write(&disk, &head);
    assert!(open(&disk).unwrap().is_some());
    assert_eq!(disk.list(DIR).unwrap(), [NAME]);
}

#[test]
fn others_keys_versions_and_files_are_refused() {
    let (folder, disk) = disk();
    let head = head(5000);
    write(&disk, &head);
    let other = TemplateSecret::new(&[2; 32]);
    let refused = TemplateFile::open(&disk, NAME, &other).err().unwrap();
    assert!(refused.to_string().contains("of another key"), "{refused}");
    let path = folder.path().join(DIR).join(NAME);
    let bytes = std::fs::read(&path).unwrap();
    let mut later = bytes.clone();
    later[8] = 2;
    std::fs::write(&path, later).unwrap();
    let refused = open(&disk).err().unwrap();
    assert!(matches!(refused, TemplateError::Version { found: 2, .. }));
    assert!(refused.is_spoiled());
    // A part of it under another head's length, or with something behind it.
    let bends = [
        bytes[..bytes.len() - 1].to_vec(),
        [&bytes[..], &[0]].concat(),
        Vec::new(),
        vec![0; 5000],
    ];
    for bent in bends {
        std::fs::write(&path, bent).unwrap();
        assert!(open(&disk).err().unwrap().is_spoiled());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever bit falls over and wherever the file is cut: it is refused when it is opened, or when the damaged part is read. The bytes between
    /// the header and the body are nobody's.
    #[test]
    fn no_damage_is_overlooked(at in any::<prop::sample::Index>(), bit in 0u32..8, is_cut in any::<bool>()) {
        let (folder, disk) = disk();
        let head = head(FRAME_BYTES as u64 + 4000);
        write(&disk, &head);
        let path = folder.path().join(DIR).join(NAME);
        let mut bytes = std::fs::read(&path).unwrap();
        let nobodys = BODY_AT as usize - HEADER_BYTES;
        let at = at.index(bytes.len() - nobodys);
        let at = if at < HEADER_BYTES { at } else { at + nobodys };
        if is_cut {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1u8 << bit;
        }
        std::fs::write(&path, bytes).unwrap();
        let whole = open(&disk).and_then(|template| {
            let template = template.expect("it is there");
            read(&template, 0, head.body_bytes() as usize)
        });
        prop_assert!(whole.err().is_some_and(|error| error.is_spoiled()));
    }
}
