//! A template under power cuts and killed processes, at every single operation of its making.
//!
//! Whatever happened, there is none of its name, or all of it; and what was left of one that was cut is in nobody's way.

#![allow(clippy::unwrap_used, missing_docs)]

use branch::template::head::{BLOCK_PAGES, Block, Content, Extent, Page};
use branch::template::{Head, Identity, TemplateError, TemplateFile, TemplateSecret, Writer};
use crash::SimDisk;
use dedup::VersionId;

const NAME: &str = "one.template";
/// Of the state: two frames and a part of one.
const STATE_BYTES: u64 = (2 << 20) + 777;

fn secret() -> TemplateSecret {
    TemplateSecret::new(&[1; 32])
}

fn head(memory_mib: u32) -> Head {
    let mut pages = [Page::Zero; BLOCK_PAGES];
    (pages[0], pages[1]) = (Page::Own, Page::Image(9));
    Head {
        identity: Identity {
            version: VersionId([7; 32]),
            memory_mib,
            vcpus: 1,
            card: false,
            vmm: [8; 32],
        },
        made_unix_s: 1,
        agent: false,
        state_bytes: STATE_BYTES,
        blocks: vec![Block {
            index: 3,
            name: [9; 32],
            pages,
        }],
        disk_bytes: 4096,
        extents: vec![Extent {
            start: 512,
            len: 1024,
            content: Content::Data,
        }],
        order: vec![5; 99],
    }
}

fn body(head: &Head) -> Vec<u8> {
    let seed = head.identity.memory_mib as u8;
    (0..head.body_bytes())
        .map(|at| (at / 5) as u8 ^ seed)
        .collect()
}

fn make(disk: &SimDisk, head: &Head, id: u8) -> Result<(), TemplateError> {
    let mut writer = Writer::create(disk, NAME, &secret(), [id; 16])?;
    for part in body(head).chunks(700_000) {
        writer.write(part)?;
    }
    writer.finish(head)
}

/// The template, all of it.
fn read(disk: &SimDisk) -> Option<(Head, Vec<u8>)> {
    let template = TemplateFile::open(disk, NAME, &secret()).unwrap()?;
    let mut bytes = vec![0; template.head().body_bytes() as usize];
    template.body(0).read(&mut bytes).unwrap();
    Some((template.head().clone(), bytes))
}

/// Makes a template on a disk as `begin` leaves it, stopping after each number of operations in turn; `check` looks at what is there then, after a
/// power cut and after the death of the process.
fn at_every_operation(begin: impl Fn(&SimDisk), check: impl Fn(&SimDisk)) {
    let new = head(2);
    for operations in 0.. {
        for seed in 0..4 {
            let disk = SimDisk::new(1);
            begin(&disk);
            disk.stop_after(operations);
            let done = make(&disk, &new, 2).is_ok();
            let after = if seed == 0 {
                disk.clone_live()
            } else {
                disk.crash(seed)
            };
            check(&after);
            if done {
                assert_eq!(read(&after), Some((new.clone(), body(&new))));
                if seed == 3 {
                    assert!(operations > 4, "it was made of nothing");
                    return;
                }
            }
            assert!(operations < 200, "it does not end");
        }
    }
}

#[test]
fn a_template_is_whole_or_not_there() {
    let new = head(2);
    at_every_operation(
        |_| {},
        |disk| {
            if let Some(found) = read(disk) {
                assert_eq!(found, (new.clone(), body(&new)));
            }
            // The next attempt comes through.
            make(disk, &new, 3).unwrap();
            assert!(read(disk).is_some());
        },
    );
}

#[test]
fn one_that_is_made_again_is_the_one_before_until_it_is_whole() {
    let (old, new) = (head(1), head(2));
    at_every_operation(
        |disk| make(disk, &old, 1).unwrap(),
        |disk| {
            let (found, bytes) = read(disk).unwrap();
            assert!(found == old || found == new);
            assert_eq!(bytes, body(&found));
        },
    );
}

#[test]
fn a_disk_that_fails_makes_none() {
    for kind in [crash::Kind::Write, crash::Kind::Sync, crash::Kind::Name] {
        let disk = SimDisk::new(1);
        disk.fail_nth(kind, 1);
        let failed = make(&disk, &head(1), 1).unwrap_err();
        assert!(matches!(failed, TemplateError::Io { .. }), "{failed}");
        assert!(!failed.is_spoiled());
        make(&disk, &head(1), 2).unwrap();
        assert!(read(&disk).is_some());
    }
}
