//! A branch that says that it boots with the line cut does, without one demand miss; one that says no says what is then missed.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::branch::NEWS;
use scenarios::replay::{self, Replay, Step};
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};
use serde_json::Value;

/// A realm whose version was booted once at branch `a`, and branch `b`, which has the profile of that and hardly anything else.
struct Taught {
    datacenter: Datacenter,
    wan: Wan,
    branch: Branch,
    disk: Vec<u8>,
    steps: Vec<Step>,
}

/// What a branch says of its one pool.
fn pool(branch: &Branch) -> Value {
    let out = branch.splice("branch-ready --json").ok();
    let readiness: Value = serde_json::from_str(&out).unwrap();
    readiness["pools"][0].clone()
}

fn boot(branch: &Branch, name: &str, steps: &[Step], disk: &[u8]) {
    branch.start_desktop("office", name);
    replay(branch, &format!("desktop/{name}"), steps, disk);
}

fn replay(branch: &Branch, export: &str, steps: &[Step], disk: &[u8]) {
    let mut replay = Replay::connect(&branch.data.join("nbd.sock"), export);
    replay.run(steps, disk, |_| {});
}

/// Stops a desktop; answers how it booted.
fn stop(branch: &Branch, name: &str) -> Value {
    let out = branch.splice(&format!("desktop stop {name} --force --json"));
    let desktop: Value = serde_json::from_str(&out.ok()).unwrap();
    desktop["boot"].clone()
}

fn teach(lab: &Lab, seed: u64) -> Taught {
    let datacenter = Datacenter::start(lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 48 * MIB, seed);
    let steps = replay::boot(disk.size_bytes, 200, 5, seed + 1);
    let bytes = disk.bytes();
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let mut first = Branch::join(lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "--no-prestage");
    first.wait_for_pool("office", "debian", 1);
    assert_ne!(pool(&first)["boots"], "yes");
    // What the branch reads itself, before it starts a machine.
    first.export("pool/office").peek(0, 64 << 10).ok();
    let told = pool(&first);
    assert_eq!(told["boots"], "unknown", "nobody booted it yet: {told}");
    assert!(told["missing_chunks"].as_u64() > Some(0), "{told}");
    boot(&first, "x", &steps, &bytes);
    stop(&first, "x");
    wait_for("a boot profile", NEWS, || {
        datacenter.json("version show debian@1")["profile"]["counter"] == 1
    });
    first.daemon().stop();

    let mut branch = Branch::join(lab, &datacenter, "b", &wan.address());
    datacenter.assign("b", "office", "debian", "--no-prestage");
    branch.wait_for_pool("office", "debian", 1);
    wait_for("the boot profile to reach the branch", NEWS, || {
        branch.daemon().check();
        branch.daemon().log().contains("boot profile is here")
    });
    Taught {
        datacenter,
        wan,
        branch,
        disk: bytes,
        steps,
    }
}

#[test]
fn a_branch_that_says_yes_boots_with_the_line_cut_without_a_demand_miss() {
    let lab = Lab::new();
    let Taught {
        datacenter,
        wan,
        mut branch,
        disk,
        steps,
    } = teach(&lab, 81);
    let told = pool(&branch);
    assert_eq!(told["boots"], "no", "{told}");
    assert_eq!(told["profile"], 1, "{told}");
    let begun = branch.splice("branch-ready --prepare");
    assert!(begun.err.contains("chunks"), "{}", begun.err);
    begun.ok();
    wait_for("the branch to be ready", Duration::from_secs(90), || {
        branch.daemon().check();
        pool(&branch)["boots"] == "yes"
    });
    assert!(
        !branch.is_complete("debian", 1),
        "only what boots read was fetched"
    );
    wait_for("the datacenter to hear of it", NEWS, || {
        let shown = datacenter.json("branch show b");
        shown["status"]["readiness"]["pools"][0]["boots"] == "yes"
    });
    let shown = datacenter.splice("branch show b").ok();
    assert!(shown.contains("WAN CUT"), "{shown}");
    assert!(datacenter.json("status")["branches_ready"].as_u64() >= Some(1));
    let cache: Value = serde_json::from_str(&branch.splice("branch-cache --json").ok()).unwrap();
    let held = &cache["pools"][0];
    assert!(held["boot_bytes"].as_u64() > Some(MIB), "{cache}");
    assert_eq!(held["pinned_bytes"], held["boot_bytes"], "{cache}");

    wan.cut();
    branch.wait_link(false);
    assert_eq!(pool(&branch)["boots"], "yes", "a cut changes nothing");
    let before = branch.number("/counters/demand_chunks");
    boot(&branch, "y", &steps, &disk);
    let told = stop(&branch, "y");
    assert_eq!(told["profile"], 1, "{told}");
    assert_eq!(told["waited_bytes"], 0, "{told}");
    assert_eq!(branch.number("/counters/demand_chunks"), before);
    // And after a restart, with the line still cut.
    branch.daemon().kill();
    branch.restart();
    assert_eq!(pool(&branch)["boots"], "yes");
    boot(&branch, "z", &steps, &disk);
    assert_eq!(branch.number("/counters/demand_chunks"), 0);
}

#[test]
fn a_branch_that_says_no_says_what_is_then_missed() {
    let lab = Lab::new();
    let Taught {
        wan,
        mut branch,
        disk,
        steps,
        datacenter: _datacenter,
    } = teach(&lab, 83);
    // The partition table, and a part of what boots read.
    branch.export("pool/office").peek(0, 64 << 10).ok();
    replay(&branch, "pool/office", &steps[..60], &disk);
    wan.cut();
    branch.wait_link(false);
    let told = pool(&branch);
    assert_eq!(told["boots"], "no", "{told}");
    let missing = told["missing_bytes"].as_u64().unwrap();
    assert!(missing > 0, "{told}");

    let before = branch.number("/counters/demand_chunks");
    branch.start_desktop("office", "x");
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| replay(&branch, "desktop/x", &steps, &disk));
        wait_for("the guest to wait for the line", NEWS, || {
            branch.number("/counters/demand_chunks") > before
        });
        assert!(!guest.is_finished());
        wan.restore();
        guest.join().unwrap();
    });
    let boot = stop(&branch, "x");
    assert_eq!(boot["prefetched_bytes"], missing, "{boot} after {told}");
    let waited = boot["waited_bytes"].as_u64().unwrap();
    assert!((1..=missing).contains(&waited), "{boot} after {told}");
    let now = pool(&branch);
    assert_eq!(now["boots"], "yes", "the boot brought it: {now}");
}
