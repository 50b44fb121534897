//! A branch whose disk its desktops have filled: writes wait, reads go on, the server dies and comes back, and when there is room all goes on.
//!
//! The data folder is a small file system of its own, which takes root to mount.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::branch::NEWS;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, SmallDisk, Wan, wait_for};
use serde_json::Value;

/// The disk. The cache takes 64 MiB of it at most, the floor as much, the server's own rows a few.
const DISK_MIB: u64 = 320;
/// What desktops leave free.
const FLOOR_MIB: u64 = 64;
/// What the desktop that is deleted had written.
const OTHER_MIB: u64 = 64;

fn desktop(branch: &Branch, name: &str) -> Value {
    let out = branch.splice(&format!("desktop show {name} --json")).ok();
    serde_json::from_str(&out).unwrap()
}

/// The MiB that a desktop's user volume has from its beginning, each with its pattern.
fn pattern(mib: u64) -> u64 {
    1 + mib % 250
}

/// Writes the `mib`th MiB and flushes it; whether both were acknowledged.
fn write(branch: &Branch, name: &str, mib: u64) -> bool {
    let write = format!("write -P {} {mib}M 1M", pattern(mib));
    let export = branch.export(&format!("user/{name}"));
    let ran = export.io(&[write, "flush".to_owned()]);
    ran.succeeded() && !ran.out.contains("failed")
}

/// All that was acknowledged is read back.
fn read(branch: &Branch, name: &str, count: u64) {
    let reads = (0..count).map(|mib| format!("read -P {} {mib}M 1M", pattern(mib)));
    let reads: Vec<String> = reads.collect();
    let out = branch.export(&format!("user/{name}")).io(&reads).ok();
    assert!(!out.contains("failed"), "{out}");
}

/// Writes one MiB after another until one finds no room; how many are acknowledged then.
fn fill(branch: &Branch, name: &str, mut acknowledged: u64) -> u64 {
    while write(branch, name, acknowledged) {
        acknowledged += 1;
        assert!(acknowledged < DISK_MIB, "the disk does not get full");
    }
    acknowledged
}

#[test]
fn a_full_branch_disk_stops_writes_alone_and_loses_nothing() {
    let lab = Lab::new();
    let Some(small) = SmallDisk::mount(&lab, "a", DISK_MIB) else {
        return;
    };
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), MIB, 93);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let floor = format!("{FLOOR_MIB}MiB");
    let more = ["--keep-free", &floor, "--cache-size", "64MiB"];
    let mut branch = Branch::join_with(&lab, &datacenter, "a", &wan.address(), &more);
    datacenter.assign("a", "office", "debian", "--user-volume 1GiB");
    branch.wait_complete("debian", 1, Duration::from_secs(60));
    branch.wait_for_pool("office", "debian", 1);
    for name in ["alice", "bob"] {
        let serve = format!("desktop start office --name {name} --serve-only");
        branch.splice(&serve).ok();
    }
    (0..OTHER_MIB).for_each(|mib| assert!(write(&branch, "bob", mib), "MiB {mib}"));

    // One desktop takes all that is left.
    let mut acknowledged = fill(&branch, "alice", 0);
    println!(
        "{acknowledged} MiB were taken, {} bytes left",
        small.free_bytes()
    );
    assert!(acknowledged > 8, "{acknowledged} MiB were taken");
    let shown = desktop(&branch, "alice");
    assert!(shown["missing_bytes"].as_u64() > Some(0), "{shown}");
    let error = shown["error"].as_str().unwrap_or_default();
    assert!(error.contains("no room"), "{shown}");
    read(&branch, "alice", acknowledged);
    read(&branch, "bob", OTHER_MIB);
    // Segment heads and tags are not counted, nor what the server wrote itself.
    let left = small.free_bytes();
    assert!(left > FLOOR_MIB / 2 * MIB, "{left} bytes are left");

    // The server dies while a write waits, and comes back on the disk as it is.
    let export = branch.export("user/alice");
    let command = format!("write -P 1 {DISK_MIB}M 1M");
    let waiting = std::thread::spawn(move || export.io(&[command]));
    branch.daemon().kill();
    // Nobody reads there: it may have come to something, or to nothing.
    let _ = waiting.join().unwrap();
    branch.restart();
    branch.wait_link(true);
    for name in ["alice", "bob"] {
        let shown = desktop(&branch, name);
        assert_eq!(shown["state"], "served", "{shown}");
    }
    read(&branch, "alice", acknowledged);
    read(&branch, "bob", OTHER_MIB);
    // What its start freed is taken, and no more.
    acknowledged = fill(&branch, "alice", acknowledged);
    let left = small.free_bytes();
    assert!(left > FLOOR_MIB / 2 * MIB, "{left} bytes are left");
    // A fresh desktop can still be had, and the line goes on being used.
    let serve = "desktop start office --name carol --serve-only";
    branch.splice(serve).ok();
    branch.splice("desktop stop carol").ok();

    branch.splice("desktop stop bob").ok();
    // What he wrote may just be read for the datacenter.
    wait_for("bob to be deleted", NEWS, || {
        branch.splice("desktop delete bob").succeeded()
    });
    wait_for("the desktop to go on", NEWS, || {
        branch.daemon().check();
        desktop(&branch, "alice")["missing_bytes"].is_null()
    });
    for _ in 0..OTHER_MIB / 2 {
        assert!(write(&branch, "alice", acknowledged), "MiB {acknowledged}");
        acknowledged += 1;
    }
    read(&branch, "alice", acknowledged);
    branch.daemon().kill();
    branch.restart();
    read(&branch, "alice", acknowledged);
}
