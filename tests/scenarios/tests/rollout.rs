//! A rollout over real processes: a bad version reaches the canary, shows that it does not boot, and goes back by itself; the datacenter is killed meanwhile.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};
use serde_json::Value;

/// What branches and their datacenter agree on by themselves.
const NEWS: Duration = Duration::from_secs(120);
const SIZE: u64 = 4 * MIB;

fn pool(datacenter: &Datacenter, branch: &str) -> (String, Vec<Value>) {
    let shown = datacenter.json(&format!("branch show {branch}"));
    let pool = &shown["pools"][0];
    let pinned = pool["pinned"].as_array().unwrap().clone();
    (pool["version"].as_str().unwrap().to_owned(), pinned)
}

fn state(datacenter: &Datacenter, at: usize) -> String {
    let shown = datacenter.json("rollout show 1");
    shown["pools"][at]["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_version_that_does_not_boot_goes_back_by_itself() {
    let lab = Lab::new();
    let mut datacenter = Datacenter::start(&lab);
    let wan = Wan::new("lan", datacenter.link_port);
    let first = Disk::make(lab.path("first.raw"), SIZE, 27);
    datacenter.create("debian");
    datacenter.publish("debian", &first.path);
    datacenter.splice("channel set debian stable 1").ok();
    let mut branches = Vec::new();
    for name in ["a", "b"] {
        let mut branch = Branch::join(&lab, &datacenter, name, &wan.address());
        let follows = "--channel stable --pooled --machine qemu";
        datacenter.assign(name, "office", "debian", follows);
        branch.wait_complete("debian", 1, NEWS);
        branches.push(branch);
    }
    // Random bytes: its firmware finds nothing to boot.
    let bad = Disk::make(lab.path("bad.raw"), SIZE, 28);
    datacenter.publish("debian", &bad.path);
    let wanted = "debian@2 --channel stable --canary a --boot-time 10s --soak 0s";
    let price = datacenter.json(&format!("rollout price {wanted} --line 100Mbit"));
    let branch = &price["branches"][0];
    assert_eq!(branch["branch"], "a", "{price}");
    assert!(branch["line_bytes"].as_u64().unwrap() > 0, "{price}");
    let begun = datacenter.json(&format!("rollout start {wanted} --reason bad"));
    assert_eq!(begun["id"], 1, "{begun}");
    assert_eq!(begun["waves"], 2, "{begun}");

    wait_for("the canary to be flipped", NEWS, || {
        state(&datacenter, 0) == "flipped"
    });
    let (version, pinned) = pool(&datacenter, "a");
    assert_eq!(version, "debian@2");
    assert_eq!(pinned, ["debian@1"], "the way back is kept");
    assert_eq!(pool(&datacenter, "b").0, "debian@1");
    branches[0].wait_complete("debian", 2, NEWS);
    datacenter.daemon().kill();
    datacenter.restart();
    for branch in &mut branches {
        branch.wait_link(true);
    }
    // What the branch was assigned is what its desktop boots, once it has heard of it.
    wait_for("a desktop of the new version", NEWS, || {
        let desktop = branches[0].start_desktop("office", "alice");
        let is_new = desktop["version_number"] == 2;
        if !is_new {
            branches[0].splice("desktop stop alice --force").ok();
        }
        is_new
    });
    wait_for("the rollout to be turned back", NEWS, || {
        datacenter.json("rollout show 1")["state"] == "rolled_back"
    });
    let shown = datacenter.json("rollout show 1");
    assert_eq!(shown["why"], "desktops failed", "{shown}");
    assert_eq!(shown["pools"][0]["failed"][0], "alice", "{shown}");
    for name in ["a", "b"] {
        let (version, pinned) = pool(&datacenter, name);
        assert_eq!((version.as_str(), pinned.len()), ("debian@1", 0));
    }
    let channels = datacenter.json("channel list debian");
    assert_eq!(channels[0]["version"], "debian@1", "{channels}");
    // It needs nothing of the line to boot what it had.
    wan.cut();
    branches[0].wait_link(false);
    branches[0].splice("desktop stop alice --force").ok();
    let back = branches[0].start_desktop("office", "alice");
    assert_eq!(back["version_number"], 1, "{back}");
    branches[0].splice("desktop stop alice --force").ok();
}
