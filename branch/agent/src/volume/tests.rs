//! A user volume against a made /sys, /proc and /dev, and programs that only note what they were asked, or die in the midst of it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::FileExt;

use super::*;
use crate::fake::FakeTools;

const SERIAL: &str = "su-0123456789abcdef";
const SIZE: u64 = 64 << 20;
const MKFS: &str =
    "mkfs.ext4 -q -m 0 -L splice-user -E lazy_itable_init=1,lazy_journal_init=1,nodiscard /dev/vdb";

struct Guest {
    folder: tempfile::TempDir,
    root: Root,
}

impl Guest {
    /// With an empty disk `vdb` of the serial number.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let guest = Self { folder, root };
        guest.disk("vda", "alice", "254:0");
        guest.disk("vdb", SERIAL, "254:16");
        guest.file(
            "/proc/self/mountinfo",
            "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n",
        );
        std::fs::create_dir_all(guest.root.path("/home/user")).unwrap();
        guest
    }

    fn file(&self, path: &str, text: &str) {
        self.root.write(path, text, 0o644).unwrap();
    }

    fn disk(&self, name: &str, serial: &str, number: &str) {
        self.file(&format!("/sys/block/{name}/serial"), serial);
        let sectors = (SIZE / 512).to_string();
        self.file(&format!("/sys/block/{name}/size"), &sectors);
        self.file(&format!("/sys/block/{name}/dev"), &format!("{number}\n"));
        self.file(&format!("/sys/block/{name}/ro"), "0\n");
        std::fs::create_dir_all(self.root.path(&format!("/sys/block/{name}/holders"))).unwrap();
        self.file(&format!("/dev/{name}"), "");
        self.node(name).set_len(SIZE).unwrap();
    }

    fn node(&self, name: &str) -> File {
        let path = self.root.path(&format!("/dev/{name}"));
        OpenOptions::new().write(true).open(path).unwrap()
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.node("vdb").write_all_at(bytes, at).unwrap();
    }

    fn put_ext4(&self) {
        self.put(1024 + 0x38, &[0x53, 0xEF]);
    }

    fn take_up(&self, unwritten: bool) -> (VolumeReport, Vec<String>) {
        let mut tools = FakeTools::default();
        let report = self.take_up_with(&mut tools, unwritten);
        (report, tools.take())
    }

    fn take_up_with(&self, tools: &mut FakeTools, unwritten: bool) -> VolumeReport {
        let wanted = UserVolume {
            serial: SERIAL.to_owned().try_into().unwrap(),
            unwritten,
        };
        take_up(&self.root, tools, "/home", &wanted)
    }

    fn has_note(&self) -> bool {
        self.root.exists(&note(SERIAL))
    }
}

fn made(commands: &[String]) -> bool {
    commands.iter().any(|command| command.starts_with("mkfs"))
}

fn why(report: &VolumeReport) -> &str {
    match report {
        VolumeReport::Refused(why) => why.as_str(),
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn an_empty_disk_that_was_never_written_gets_a_file_system_and_is_mounted() {
    let guest = Guest::new();
    let (report, commands) = guest.take_up(true);
    assert_eq!(report, VolumeReport::Mounted);
    assert_eq!(
        commands,
        [
            MKFS,
            "sync /dev/vdb",
            "fsck.ext4 -p /dev/vdb",
            "mount -t ext4 -o nosuid,nodev /dev/vdb /run/splice-agent/volume",
            "rm -rf -- /run/splice-agent/volume/.splice-part",
            "cp -a --one-file-system -- /home/user /run/splice-agent/volume/.splice-part",
            "sync -f /run/splice-agent/volume/.splice-part",
            "mv -T -- /run/splice-agent/volume/.splice-part /run/splice-agent/volume/user",
            "umount /run/splice-agent/volume",
            "mount -t ext4 -o nosuid,nodev /dev/vdb /home",
        ]
    );
    assert!(!guest.has_note());
}

#[test]
fn a_file_system_is_checked_and_mounted_and_never_made_again() {
    let guest = Guest::new();
    guest.put_ext4();
    for unwritten in [false, true] {
        let (report, commands) = guest.take_up(unwritten);
        assert_eq!(report, VolumeReport::Mounted);
        assert_eq!(commands[0], "fsck.ext4 -p /dev/vdb");
        assert!(!made(&commands));
    }
    guest.file(
        "/proc/self/mountinfo",
        "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n30 22 254:16 / /home rw - ext4 /dev/vdb rw\n",
    );
    let (report, commands) = guest.take_up(false);
    assert_eq!((report, commands), (VolumeReport::Mounted, vec![]));
}

#[test]
fn anything_on_the_disk_keeps_it_from_being_formatted() {
    for at in [0, 511, 4086, (16 << 20) - 1, 32 << 20, SIZE - 1] {
        let guest = Guest::new();
        guest.put(at, &[1]);
        let (report, commands) = guest.take_up(true);
        assert!(why(&report).contains("left as it is"), "{at}: {report:?}");
        assert_eq!(commands, [""; 0]);
    }
}

#[test]
fn a_disk_that_the_branch_took_writes_for_is_not_formatted_however_empty() {
    let (report, commands) = Guest::new().take_up(false);
    assert!(why(&report).contains("not formatted"), "{report:?}");
    assert_eq!(commands, [""; 0]);
}

#[test]
fn a_disk_in_any_use_is_left_alone() {
    type Use = fn(&Guest);
    let uses: [(&str, Use); 6] = [
        ("partitions", |guest| {
            guest.file("/sys/block/vdb/vdb1/partition", "1\n");
        }),
        ("another block device", |guest| {
            guest.file("/sys/block/vdb/holders/dm-0", "");
        }),
        ("read-only", |guest| guest.file("/sys/block/vdb/ro", "1\n")),
        ("somewhere else", |guest| {
            guest.file(
                "/proc/self/mountinfo",
                "30 22 254:16 / /srv rw - ext4 /dev/vdb rw\n",
            );
        }),
        ("at its place", |guest| {
            guest.file(
                "/proc/self/mountinfo",
                "30 22 254:2 / /home rw - ext4 /dev/vda2 rw\n",
            );
        }),
        ("not known", |guest| {
            guest.root.remove("/proc/self/mountinfo").unwrap();
        }),
    ];
    for (word, make_use) in uses {
        let guest = Guest::new();
        make_use(&guest);
        let (report, commands) = guest.take_up(true);
        assert!(why(&report).contains(word), "{word}: {report:?}");
        assert_eq!(commands, [""; 0]);
    }
}

#[test]
fn a_disk_that_is_not_there_may_come_and_two_are_one_too_many() {
    let guest = Guest::new();
    guest.file("/sys/block/vdb/serial", "another\n");
    assert_eq!(guest.take_up(true), (VolumeReport::Missing, vec![]));
    let guest = Guest::new();
    guest.disk("vdc", SERIAL, "254:32");
    let (report, commands) = guest.take_up(true);
    assert!(why(&report).contains("several"), "{report:?}");
    assert_eq!(commands, [""; 0]);
}

/// The machine died in the midst of mkfs: the next start does it again, by the note only.
#[test]
fn an_interrupted_mkfs_is_done_again_and_only_where_it_was_begun() {
    let guest = Guest::new();
    guest.file(&note(SERIAL), "x");
    guest.put(32 << 20, &[7; 4096]);
    let (report, commands) = guest.take_up(false);
    assert_eq!(report, VolumeReport::Mounted);
    assert_eq!(commands[0], MKFS);
    assert!(!guest.has_note());

    // The same bytes without the note, or with another disk's: the system volume was reset, or they are somebody's.
    let guest = Guest::new();
    guest.put(32 << 20, &[7; 4096]);
    guest.file(&note("su-other"), "x");
    assert!(!made(&guest.take_up(false).1));
    assert!(!made(&guest.take_up(true).1));
}

/// mkfs ends with an error: a person is told, and what they put on the disk is theirs.
#[test]
fn an_mkfs_that_failed_leaves_no_note() {
    let guest = Guest::new();
    let root = guest.root.clone();
    let mut tools = FakeTools::with_effect(move |program, arguments| {
        if program == "sync" && arguments.first() == Some(&"/dev/vdb") {
            assert!(root.exists(&note(SERIAL)), "it is there during the work");
        }
    });
    assert_eq!(guest.take_up_with(&mut tools, true), VolumeReport::Mounted);
    assert!(!guest.has_note());
    tools.fail("mkfs.ext4");
    let report = guest.take_up_with(&mut tools, true);
    assert!(why(&report).contains("mkfs.ext4"), "{report:?}");
    assert!(!guest.has_note());
    guest.put(0, &[1]);
    assert!(!made(&guest.take_up(true).1));
}

/// An agent was killed while it copied.
#[test]
fn a_stage_that_was_left_is_left_behind() {
    let guest = Guest::new();
    guest.put_ext4();
    let mount = format!("30 22 254:16 / {STAGE} rw - ext4 /dev/vdb rw\n");
    guest.file("/proc/self/mountinfo", &mount);
    let root = guest.root.clone();
    let mut tools = FakeTools::with_effect(move |program, _| {
        if program == "umount" {
            root.write("/proc/self/mountinfo", "", 0o444).unwrap();
        }
    });
    let report = guest.take_up_with(&mut tools, false);
    assert_eq!(report, VolumeReport::Mounted);
    assert_eq!(tools.take()[0], "umount /run/splice-agent/volume");
}

/// It was done, and only the note stayed: what users wrote since is kept.
#[test]
fn a_note_that_stayed_does_not_format_a_file_system() {
    let guest = Guest::new();
    guest.file(&note(SERIAL), "x");
    guest.put_ext4();
    let (report, commands) = guest.take_up(false);
    assert_eq!(report, VolumeReport::Mounted);
    assert!(!made(&commands));
    assert!(!guest.has_note());
}

#[test]
fn a_file_system_that_needs_a_person_is_not_mounted() {
    let guest = Guest::new();
    guest.put_ext4();
    let mut tools = FakeTools::default();
    tools.fail("fsck.ext4");
    let report = guest.take_up_with(&mut tools, false);
    assert!(why(&report).contains("needs a person"), "{report:?}");
    assert_eq!(tools.take(), ["fsck.ext4 -p /dev/vdb"]);
}

/// What the volume has already is not copied over, nor is it mounted when a copy fails.
#[test]
fn homes_of_the_image_are_copied_once() {
    let guest = Guest::new();
    guest.put_ext4();
    let folder = guest.folder.path().to_owned();
    let mut tools = FakeTools::with_effect(move |program, arguments| {
        if program == "mount" && arguments.last() == Some(&STAGE) {
            let home = folder.join(STAGE.trim_start_matches('/')).join("user");
            std::fs::create_dir_all(home).unwrap();
        }
    });
    let report = guest.take_up_with(&mut tools, false);
    assert_eq!(report, VolumeReport::Mounted);
    let commands = tools.take();
    assert!(
        !commands.iter().any(|c| c.starts_with("cp")),
        "{commands:?}"
    );

    let guest = Guest::new();
    guest.put_ext4();
    let mut tools = FakeTools::default();
    tools.fail("cp");
    let report = guest.take_up_with(&mut tools, false);
    assert!(why(&report).contains("cp"), "{report:?}");
    let commands = tools.take();
    assert_eq!(commands.last().unwrap(), "umount /run/splice-agent/volume");
}
