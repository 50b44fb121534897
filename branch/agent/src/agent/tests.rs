//! An agent against a made system: greetings, orders and the end of a freeze, on a clock that the test turns.
#![allow(clippy::unwrap_used, missing_docs)]

use super::*;
use crate::fake::{FakeTools, identity};

const PLACE: &str = "/home";

struct Desktop {
    _folder: tempfile::TempDir,
    agent: Agent<FakeTools>,
}

impl Desktop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path());
        let boot = "0c0ffee0-0000-4000-8000-000000000001\n";
        root.write("/proc/sys/kernel/random/boot_id", boot, 0o444)
            .unwrap();
        let settings = Settings {
            place: PLACE.into(),
            version: "0.1.0".into(),
        };
        let mut agent = Agent::new(root, FakeTools::default(), settings);
        assert_eq!(
            agent.tools.take(),
            ["fsfreeze --unfreeze /home"],
            "nothing stays frozen by an agent that died"
        );
        Self {
            _folder: folder,
            agent,
        }
    }

    /// With its user volume mounted.
    fn welcomed() -> Self {
        let mut desktop = Self::new();
        let root = &desktop.agent.root;
        root.write("/sys/block/vdb/serial", "su-1\n", 0o444)
            .unwrap();
        root.write("/sys/block/vdb/size", "8\n", 0o444).unwrap();
        root.write("/sys/block/vdb/dev", "254:16\n", 0o444).unwrap();
        let mounts = "30 22 254:16 / /home rw - ext4 /dev/vdb rw\n";
        root.write("/proc/self/mountinfo", mounts, 0o444).unwrap();
        desktop.hear(welcome(Some("su-1")), 0);
        desktop.agent.tools.take();
        desktop
    }

    fn hear(&mut self, message: ToGuest, now_ms: u64) -> Option<FromGuest> {
        self.agent.hear(message, now_ms)
    }

    fn order(&mut self, what: What, now_ms: u64) -> Option<String> {
        let answer = self.hear(ToGuest::Do(Order { id: 9, what }), now_ms);
        match answer {
            Some(FromGuest::Done(Done { id: 9, error })) => error.map(String::from),
            other => panic!("{other:?}"),
        }
    }

    fn log_on(&self, user: &str) {
        let session = format!("USER={user}\nSTATE=active\nCLASS=user\nREALTIME=1000000\n");
        let root = &self.agent.root;
        root.write("/run/systemd/sessions/1", &session, 0o644)
            .unwrap();
    }
}

fn welcome(serial: Option<&str>) -> ToGuest {
    ToGuest::Welcome(Welcome {
        protocol: 1,
        identity: identity("alice", 0xab),
        user_volume: serial.map(|serial| UserVolume {
            serial: serial.to_owned().try_into().unwrap(),
            unwritten: false,
        }),
    })
}

fn report(said: Option<FromGuest>) -> Report {
    match said {
        Some(FromGuest::Report(report)) => report,
        other => panic!("{other:?} is no report"),
    }
}

#[test]
fn it_greets_until_it_is_answered_and_lets_people_in_after_a_while() {
    let mut desktop = Desktop::new();
    let agent = &mut desktop.agent;
    let Some(FromGuest::Hello(hello)) = agent.tick(0) else {
        panic!("it greets first");
    };
    assert_eq!(hello.boot.to_string(), "0c0ffee0000040008000000000000001");
    assert_eq!(agent.rests_ms(0), HELLO_EVERY_MS);
    assert_eq!(agent.tick(1), None);
    assert!(matches!(
        agent.tick(HELLO_EVERY_MS),
        Some(FromGuest::Hello(_))
    ));
    assert!(!agent.is_settled(PATIENCE_MS - 1));
    assert!(agent.is_settled(PATIENCE_MS));
    agent.hear(welcome(None), 3_000);
    assert!(agent.is_settled(3_000));
    assert_eq!(agent.root.line("/etc/hostname").unwrap(), "alice");
    let told = report(agent.tick(3_000));
    assert!(told.booted, "without systemd it is when we are");
    assert_eq!(told.user_volume, VolumeReport::None);
    agent.branch_went();
    assert!(matches!(agent.tick(3_001), Some(FromGuest::Hello(_))));
}

#[test]
fn it_reports_changes_at_once_and_the_same_now_and_then() {
    let mut desktop = Desktop::welcomed();
    let told = report(desktop.agent.tick(0));
    assert_eq!(told.user_volume, VolumeReport::Mounted);
    assert_eq!(told.health.disks.len(), 2);
    assert_eq!(desktop.agent.tick(LOOK_EVERY_MS), None, "nothing is new");
    desktop.log_on("bob");
    assert_eq!(desktop.agent.tick(LOOK_EVERY_MS + 1), None, "not its time");
    let told = report(desktop.agent.tick(2 * LOOK_EVERY_MS));
    assert_eq!(told.users[0].name.as_str(), "bob");
    desktop.agent.was_not_sent();
    let again = report(desktop.agent.tick(3 * LOOK_EVERY_MS));
    assert_eq!(again, told);
    let mut now_ms = 3 * LOOK_EVERY_MS;
    while now_ms < 3 * LOOK_EVERY_MS + REPORT_EVERY_MS {
        assert_eq!(desktop.agent.tick(now_ms), None);
        now_ms += LOOK_EVERY_MS;
    }
    assert_eq!(report(desktop.agent.tick(now_ms)), told);
}

#[test]
fn orders_are_carried_out_only_for_whom_it_knows() {
    let mut desktop = Desktop::new();
    let order = ToGuest::Do(Order {
        id: 1,
        what: What::ShutDown,
    });
    assert_eq!(desktop.hear(order, 0), None);
    assert_eq!(desktop.agent.tools.take(), [""; 0]);
    let mut desktop = Desktop::welcomed();
    assert_eq!(desktop.order(What::Ping, 0), None);
    assert_eq!(desktop.order(What::ShutDown, 0), None);
    assert_eq!(desktop.agent.tools.take(), ["poweroff"]);
}

#[test]
fn what_is_frozen_goes_on_when_told() {
    let mut desktop = Desktop::welcomed();
    let freeze = What::Freeze { for_ms: 5_000 };
    assert_eq!(desktop.order(freeze, 100), None);
    assert!(desktop.order(freeze, 200).unwrap().contains("already"));
    assert_eq!(desktop.agent.tick(2_100), None, "it looks at nothing");
    assert_eq!(desktop.order(What::Thaw, 2_200), None);
    assert_eq!(
        desktop.agent.tools.take(),
        ["fsfreeze --freeze /home", "fsfreeze --unfreeze /home"]
    );
    assert!(
        desktop
            .order(What::Thaw, 2_300)
            .unwrap()
            .contains("not frozen")
    );
}

/// The branch died: nobody says that it may go on.
#[test]
fn what_is_frozen_goes_on_by_itself_when_nobody_tells() {
    let mut desktop = Desktop::welcomed();
    assert_eq!(desktop.order(What::Freeze { for_ms: 5_000 }, 100), None);
    desktop.agent.branch_went();
    assert_eq!(desktop.agent.rests_ms(100), 5_000);
    assert_eq!(desktop.agent.tick(5_099), None);
    assert_eq!(desktop.agent.tools.take(), ["fsfreeze --freeze /home"]);
    desktop.agent.tick(5_100);
    assert_eq!(desktop.agent.tools.take(), ["fsfreeze --unfreeze /home"]);
    assert!(matches!(
        desktop.agent.tick(5_101),
        Some(FromGuest::Hello(_))
    ));
}

#[test]
fn what_does_not_freeze_is_told_and_not_left_half_way() {
    let mut desktop = Desktop::welcomed();
    desktop.agent.tools.fail("fsfreeze");
    let freeze = What::Freeze { for_ms: 5_000 };
    assert!(desktop.order(freeze, 0).unwrap().contains("fsfreeze"));
    assert_eq!(
        desktop.agent.tools.take(),
        ["fsfreeze --freeze /home", "fsfreeze --unfreeze /home"]
    );
    let mut desktop = Desktop::new();
    desktop.hear(welcome(None), 0);
    assert!(desktop.order(freeze, 0).unwrap().contains("no user volume"));
}

#[test]
fn a_volume_that_comes_late_is_not_put_over_somebody_s_work() {
    let mut desktop = Desktop::new();
    desktop.log_on("alice");
    desktop.hear(welcome(Some("su-1")), 0);
    let told = report(desktop.agent.tick(0));
    assert!(matches!(told.user_volume, VolumeReport::Refused(_)));
    // An agent that was restarted while they work finds it mounted.
    let mut desktop = Desktop::welcomed();
    desktop.log_on("alice");
    desktop.agent.volume = VolumeReport::None;
    desktop.hear(welcome(Some("su-1")), 0);
    assert_eq!(
        report(desktop.agent.tick(0)).user_volume,
        VolumeReport::Mounted
    );
}

#[test]
fn a_disk_that_comes_late_is_taken_up() {
    let mut desktop = Desktop::new();
    desktop.hear(welcome(Some("su-1")), 0);
    assert_eq!(
        report(desktop.agent.tick(0)).user_volume,
        VolumeReport::Missing
    );
    let root = &desktop.agent.root;
    root.write("/sys/block/vdb/serial", "su-1\n", 0o444)
        .unwrap();
    root.write("/sys/block/vdb/size", "8\n", 0o444).unwrap();
    root.write("/sys/block/vdb/dev", "254:16\n", 0o444).unwrap();
    let told = report(desktop.agent.tick(LOOK_EVERY_MS));
    assert!(
        matches!(told.user_volume, VolumeReport::Refused(_)),
        "no mountinfo"
    );
}

#[test]
fn a_branch_without_a_common_protocol_is_asked_seldom() {
    let mut desktop = Desktop::new();
    desktop.agent.tick(0);
    let refuse = branch_guest::Refuse {
        protocol: 9,
        oldest: 7,
    };
    desktop.hear(ToGuest::Refuse(refuse), 10);
    assert!(desktop.agent.is_settled(10));
    assert_eq!(desktop.agent.tick(REFUSED_EVERY_MS - 1), None);
    assert!(desktop.agent.tick(REFUSED_EVERY_MS).is_some());
}

#[test]
fn the_end_of_a_freeze_is_tried_again_but_not_for_ever() {
    let mut desktop = Desktop::welcomed();
    assert_eq!(desktop.order(What::Freeze { for_ms: 1_000 }, 0), None);
    desktop.agent.tools.fail("fsfreeze");
    for second in 1..100 {
        desktop.agent.tick(second * 1_000);
    }
    let tried = desktop.agent.tools.take();
    let thaws = tried.iter().filter(|c| c.contains("--unfreeze")).count();
    assert_eq!(thaws as u32, 1 + THAWS);
    assert!(!desktop.agent.frozen());
}

/// A branch server that took the place of one that died is told nothing of the freeze.
#[test]
fn a_new_greeting_ends_a_freeze() {
    let mut desktop = Desktop::welcomed();
    assert_eq!(desktop.order(What::Freeze { for_ms: 60_000 }, 0), None);
    desktop.hear(welcome(Some("su-1")), 10);
    assert!(!desktop.agent.frozen());
    assert_eq!(
        desktop.agent.tools.take()[..2],
        ["fsfreeze --freeze /home", "fsfreeze --unfreeze /home"]
    );
}

/// Its life goes on, and the branch tells it that it is somebody else.
#[test]
fn a_clone_has_its_network_begin_anew_and_nobody_else_has() {
    let mut desktop = Desktop::new();
    let driver = "/sys/bus/virtio/drivers/virtio_net";
    for name in ["virtio3", "bind", "unbind"] {
        let file = format!("{driver}/{name}");
        desktop.agent.root.write(&file, "", 0o644).unwrap();
    }
    let told = |desktop: &Desktop| desktop.agent.root.text(&format!("{driver}/bind"));
    desktop.hear(welcome(None), 0);
    desktop.agent.branch_went();
    desktop.hear(welcome(None), 1);
    assert_eq!(told(&desktop).unwrap(), "");
    let as_bob = ToGuest::Welcome(Welcome {
        protocol: 1,
        identity: identity("bob", 0xcd),
        user_volume: None,
    });
    desktop.hear(as_bob, 2);
    assert_eq!(told(&desktop).unwrap(), "virtio3");
    assert_eq!(desktop.agent.root.line("/etc/hostname").unwrap(), "bob");
}

/// Host keys are made by a program that may fail, and cards are let go of by the kernel: a branch must not take one half for the whole.
#[test]
fn it_says_whether_it_became_whom_it_was_told_to_be() {
    let told = |desktop: &mut Desktop, protocol: u16, byte: u8, at_ms: u64| {
        let welcome = ToGuest::Welcome(Welcome {
            protocol,
            identity: identity("bob", byte),
            user_volume: None,
        });
        desktop.hear(welcome, at_ms);
        report(desktop.agent.tick(at_ms))
    };
    let mut desktop = Desktop::new();
    let root = &desktop.agent.root;
    root.write("/etc/ssh/sshd_config", "x", 0o644).unwrap();
    assert_eq!(
        told(&mut desktop, 2, 0xab, 0).itself,
        None,
        "it is not asked"
    );
    assert_eq!(told(&mut desktop, 3, 0xab, 1).itself, Id::new([0xab; 16]));

    desktop.agent.tools.fail("ssh-keygen");
    let half = told(&mut desktop, 3, 0xcd, 2);
    assert!(half.booted && half.itself.is_none(), "{half:?}");
    assert_eq!(half.health.troubles.len(), 1);
    desktop.agent.tools = FakeTools::default();
    assert_eq!(told(&mut desktop, 3, 0xcd, 3).itself, Id::new([0xcd; 16]));

    // A card that its driver does not let go of, and then does.
    let card = "/sys/bus/virtio/drivers/virtio_net";
    let root = &desktop.agent.root;
    root.write(&format!("{card}/virtio3"), "", 0o644).unwrap();
    root.write(&format!("{card}/bind"), "", 0o644).unwrap();
    assert_eq!(told(&mut desktop, 3, 0xef, 4).itself, None);
    let root = &desktop.agent.root;
    root.write(&format!("{card}/unbind"), "", 0o644).unwrap();
    assert_eq!(told(&mut desktop, 3, 0xef, 5).itself, Id::new([0xef; 16]));
}
