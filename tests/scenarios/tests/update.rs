//! A new version reaches a branch as an update of the one it has: fewer bytes, whoever is killed meanwhile, and with or without room for
//! both.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};

const COMPLETE: Duration = Duration::from_secs(600);

fn bytes(datacenter: &Datacenter, pointer: &str) -> u64 {
    let diff = datacenter.json("version diff debian@1 debian@2");
    let value = diff.pointer(pointer).and_then(|value| value.as_u64());
    value.unwrap_or_else(|| panic!("no {pointer} in {diff}"))
}

#[test]
fn a_version_is_prestaged_by_its_update() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let v1 = Disk::make(lab.path("v1.raw"), 40 * MIB, 61);
    let v2 = v1.touched(lab.path("v2.raw"), 20_000, 62);
    datacenter.create("debian");
    datacenter.publish("debian", &v1.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian@1", "");
    branch.wait_complete("debian", 1, COMPLETE);
    assert_eq!(branch.number("/counters/update_bytes"), 0);

    datacenter.publish("debian", &v2.path);
    let before = branch.number("/counters/received_bytes");
    datacenter.assign("a", "office", "debian@2", "");
    branch.wait_complete("debian", 2, COMPLETE);
    let received = branch.number("/counters/received_bytes") - before;
    branch.wait_for_pool("office", "debian", 2);
    branch.export("pool/office").assert_same(&v2.path);

    let (plain, packed) = (
        bytes(&datacenter, "/stored_bytes"),
        bytes(&datacenter, "/update/packed_bytes"),
    );
    println!("{received} bytes received, the update has {packed}, plain {plain}");
    assert_eq!(branch.number("/counters/update_packed_bytes"), packed);
    let new = bytes(&datacenter, "/new_bytes");
    assert_eq!(
        branch.number("/counters/update_bytes"),
        new,
        "all of it came by the update"
    );
    assert!(plain > 8 * MIB, "{plain}");
    assert!(received < plain / 4, "{received} of {plain}");
    assert!(
        received < packed + packed / 4 + MIB,
        "{received} for {packed}"
    );
    let operations = datacenter.json("operation list").to_string();
    assert!(operations.contains("debian@1..debian@2"), "{operations}");
    // By hand it is there at once, and the figures are the same.
    let made = datacenter.json("version update debian@1 debian@2");
    assert_eq!(
        made.pointer("/result/update/packed_bytes")
            .and_then(|v| v.as_u64()),
        Some(packed)
    );
}

/// Either end is killed while batches cross; what crossed is not fetched again.
#[test]
fn an_update_goes_on_after_either_end_is_killed() {
    let lab = Lab::new();
    let mut datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let v1 = Disk::make(lab.path("v1.raw"), 24 * MIB, 63);
    // Nothing in it resembles the other, so that it takes seconds on this line.
    let v2 = Disk::make(lab.path("v2.raw"), 72 * MIB, 64);
    datacenter.create("debian");
    datacenter.publish("debian", &v1.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian@1", "");
    branch.wait_complete("debian", 1, COMPLETE);
    datacenter.publish("debian", &v2.path);
    // Killed while it encodes, as far as it still does.
    datacenter.daemon().kill();
    datacenter.restart();
    datacenter.assign("a", "office", "debian@2", "");

    let came = |branch: &Branch| branch.number("/counters/update_bytes");
    let resident = |branch: &Branch| {
        branch.residency("debian", 2).unwrap()["resident_bytes"]
            .as_u64()
            .unwrap()
    };
    wait_for("a batch", COMPLETE, || came(&branch) > 0);
    let before = came(&branch);
    branch.daemon().kill();
    branch.restart();
    assert!(
        !branch.is_complete("debian", 2),
        "it was killed in the middle"
    );
    let after = resident(&branch);
    assert!(
        after >= before,
        "{after} of {before} bytes that had come are durable: {:?}",
        branch.residency("debian", 2)
    );
    wait_for("another batch", COMPLETE, || came(&branch) > 0);
    datacenter.daemon().kill();
    datacenter.restart();
    branch.wait_complete("debian", 2, COMPLETE);
    branch.wait_for_pool("office", "debian", 2);
    branch.export("pool/office").assert_same(&v2.path);
    // The last chunk is there before the end is logged.
    wait_for("the end of the update", COMPLETE, || {
        branch.daemon().log().contains("updated version=")
    });
    let made = datacenter.json("version update debian@1 debian@2");
    let packed = made["result"]["update"]["packed_bytes"].as_u64().unwrap();
    let again = branch.number("/counters/update_packed_bytes");
    assert!(
        again < packed,
        "{again} of {packed} came since the branch was killed"
    );
}

/// A cache that cannot hold both versions: the update is given up, the old version makes room, the new one becomes whole.
#[test]
fn without_room_for_both_the_version_comes_plain() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("lan", datacenter.link_port);
    let v1 = Disk::make(lab.path("v1.raw"), 72 * MIB, 65);
    let v2 = v1.touched(lab.path("v2.raw"), 20_000, 66);
    let v3 = v2.touched(lab.path("v3.raw"), 400_000, 67);
    datacenter.create("debian");
    datacenter.publish("debian", &v1.path);
    let more = ["--cache-size", "64MiB"];
    let mut branch = Branch::join_with(&lab, &datacenter, "a", &wan.address(), &more);
    datacenter.assign("a", "office", "debian@1", "");
    branch.wait_complete("debian", 1, COMPLETE);
    for (number, disk) in [(2, &v2), (3, &v3)] {
        datacenter.publish("debian", &disk.path);
        datacenter.assign("a", "office", &format!("debian@{number}"), "");
        branch.wait_complete("debian", number, COMPLETE);
        branch.wait_for_pool("office", "debian", number);
        branch.export("pool/office").assert_same(&disk.path);
    }
    assert!(!branch.is_complete("debian", 1), "it was evicted in part");
    let log = branch.daemon().log();
    assert!(log.contains("update given up"), "{log}");
}
