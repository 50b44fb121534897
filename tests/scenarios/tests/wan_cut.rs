//! The line is cut: what is there goes on, what is missing waits.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::disk::read;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};

#[test]
fn with_everything_there_a_cut_is_not_noticed_and_a_fresh_desktop_starts() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 16 * MIB, 21);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "");
    branch.wait_complete("debian", 1, Duration::from_secs(60));

    wan.cut();
    branch.export("pool/office").assert_same(&disk.path);
    branch.wait_link(false);
    branch.export("pool/office").assert_same(&disk.path);
    let desktop = branch.start_desktop("office", "fresh");
    assert_eq!(desktop["state"], "running", "{desktop}");
    let export = branch.export("desktop/fresh");
    let write = ["write -P 0x5a 1M 64k", "flush", "read -P 0x5a 1M 64k"];
    let io = export.io(&write.map(str::to_owned)).ok();
    assert!(!io.contains("failed"), "{io}");
    // The server itself may be restarted meanwhile, too.
    branch.daemon().kill();
    branch.restart();
    let io = export.io(&["read -P 0x5a 1M 64k".into()]).ok();
    assert!(!io.contains("failed"), "{io}");
    branch.export("pool/office").assert_same(&disk.path);

    wan.restore();
    branch.wait_link(true);
    branch.splice("desktop stop fresh --force").ok();
    branch.splice("desktop delete fresh").ok();
    assert!(!export.is_there());
}

#[test]
fn a_read_of_what_is_missing_waits_for_the_line_and_completes() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 40 * MIB, 22);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "--no-prestage");
    branch.wait_for_pool("office", "debian", 1);

    let copy = lab.path("copy.raw");
    let mut copying = branch.export("pool/office").copy_in_background(&copy);
    let resident = |branch: &Branch| {
        let version = branch.residency("debian", 1).unwrap();
        version["resident_chunks"].as_u64().unwrap() as f64
            / version["total_chunks"].as_u64().unwrap() as f64
    };
    wait_for("a part of the disk", Duration::from_secs(60), || {
        resident(&branch) > 0.05
    });
    wan.cut();
    branch.wait_link(false);
    assert!(!copying.has_ended(), "it waits");
    assert!(resident(&branch) < 1.0);
    wan.restore();
    branch.wait_link(true);
    copying.end().ok();
    assert!(read(&copy) == disk.bytes(), "the copy differs");
}
