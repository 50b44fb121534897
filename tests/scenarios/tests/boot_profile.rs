//! What one branch's boot taught, the next branch's guest does not wait for; nor after a kill, with the line down, or on a version that
//! nobody booted yet.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::branch::NEWS;
use scenarios::replay::{self, Outcome, Replay, Step};
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};
use serde_json::Value;

/// A desktop "boots": its machine finds no system on such a disk and stands still, and the reads come from here.
fn boot(
    branch: &Branch,
    name: &str,
    steps: &[Step],
    disk: &[u8],
    before: impl FnMut(usize),
) -> Outcome {
    branch.start_desktop("office", name);
    let mut replay = Replay::connect(&branch.data.join("nbd.sock"), &format!("desktop/{name}"));
    replay.run(steps, disk, before)
}

/// Stops a desktop; answers how it booted.
fn stop(branch: &Branch, name: &str) -> Value {
    let out = branch.splice(&format!("desktop stop {name} --force --json"));
    let desktop: Value = serde_json::from_str(&out.ok()).unwrap();
    let boot = desktop["boot"].clone();
    assert!(boot.is_object(), "how it booted is told: {desktop}");
    boot
}

fn coverage(boot: &Value) -> f64 {
    boot["covered_bytes"].as_f64().unwrap() / boot["touched_bytes"].as_f64().unwrap()
}

fn waste(boot: &Value) -> f64 {
    boot["wasted_bytes"].as_f64().unwrap() / boot["prefetched_bytes"].as_f64().unwrap().max(1.0)
}

/// Waits until the datacenter has a profile of that counter or higher.
fn wait_for_profile(datacenter: &Datacenter, version: &str, counter: u64) -> Value {
    let show = || datacenter.json(&format!("version show {version}"))["profile"].clone();
    wait_for(format!("boot profile {counter} of {version}"), NEWS, || {
        show()["counter"].as_u64() >= Some(counter)
    });
    show()
}

/// Waits until the branch has been sent a profile.
fn wait_profile_here(branch: &mut Branch, times: usize) {
    wait_for("the boot profile to reach the branch", NEWS, || {
        branch.daemon().check();
        branch
            .daemon()
            .log()
            .matches("boot profile is here")
            .count()
            >= times
    });
}

fn learn(profile: &str, reads: usize, think_ms: u64) -> (Duration, Duration, Value) {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new(profile, datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 96 * MIB, 71);
    let bytes = disk.bytes();
    let steps = replay::boot(disk.size_bytes, reads, think_ms, 72);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);

    let mut first = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "--no-prestage");
    first.wait_for_pool("office", "debian", 1);
    let cold = boot(&first, "x", &steps, &bytes, |_| {});
    let told = stop(&first, "x");
    assert_eq!(told["profile"], 0, "{told}");
    assert!(told["waited_bytes"].as_u64() > Some(MIB), "{told}");
    let known = wait_for_profile(&datacenter, "debian@1", 1);
    assert_eq!(known["boots"], 1, "{known}");
    assert_eq!(known["bytes"], told["touched_bytes"], "{known} {told}");
    first.daemon().stop();

    let mut second = Branch::join(&lab, &datacenter, "b", &wan.address());
    datacenter.assign("b", "office", "debian", "--no-prestage");
    second.wait_for_pool("office", "debian", 1);
    wait_profile_here(&mut second, 1);
    let warm = boot(&second, "x", &steps, &bytes, |_| {});
    let told = stop(&second, "x");
    println!(
        "{profile}: first boot {:.1} s, {:.1} s of it in reads; second {:.1} s, {:.1} s in reads; coverage {:.3}, waste {:.3}; {told}",
        cold.took.as_secs_f64(),
        cold.waited().as_secs_f64(),
        warm.took.as_secs_f64(),
        warm.waited().as_secs_f64(),
        coverage(&told),
        waste(&told)
    );
    (cold.waited(), warm.waited(), told)
}

#[test]
fn the_second_branch_waits_far_less_over_dsl() {
    let (cold, warm, told) = learn("dsl", 500, 10);
    assert!(warm * 3 < cold, "{warm:?} after {cold:?}");
    assert_eq!(told["profile"], 1);
    assert!(coverage(&told) > 0.6, "{told}");
    assert!(waste(&told) < 0.05, "{told}");
}

#[test]
fn the_second_branch_waits_far_less_over_a_satellite() {
    let (cold, warm, told) = learn("vsat-geo", 120, 50);
    assert!(warm * 3 < cold, "{warm:?} after {cold:?}");
    assert!(coverage(&told) > 0.5, "{told}");
}

#[test]
fn a_profile_outlives_kills_and_cuts_and_is_carried_to_the_next_version() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("v1.raw"), 48 * MIB, 73);
    let bytes = disk.bytes();
    let steps = replay::boot(disk.size_bytes, 200, 5, 74);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "--no-prestage");
    branch.wait_for_pool("office", "debian", 1);

    // The recording waits in the branch while the line is down, over a kill.
    boot(&branch, "x", &steps, &bytes, |_| {});
    wan.cut();
    branch.wait_link(false);
    stop(&branch, "x");
    branch.daemon().kill();
    branch.restart();
    assert!(datacenter.json("version show debian@1")["profile"].is_null());
    wan.restore();
    wait_for_profile(&datacenter, "debian@1", 1);
    wait_profile_here(&mut branch, 1);

    // The profile is kept, too: with the line down after a kill it is followed.
    wan.cut();
    branch.daemon().kill();
    branch.restart();
    let offline = boot(&branch, "y", &steps, &bytes, |_| {});
    let told = stop(&branch, "y");
    assert_eq!(told["profile"], 1, "{told}");
    assert_eq!(told["waited_bytes"], 0, "{told}");
    assert!(coverage(&told) > 0.99, "{told}");
    assert!(offline.waited() < Duration::from_secs(5), "{offline:?}");
    wan.restore();
    branch.wait_link(true);

    // A version that nobody booted follows what is known of its parent; the line fails in the middle of the boot.
    let next = disk.edited(lab.path("v2.raw"), 12, 75);
    datacenter.publish("debian", &next.path);
    // It is carried when the version is published, and anew when its update is planned.
    let carried = wait_for_profile(&datacenter, "debian@2", 2);
    assert!(carried["carried_from"].is_string(), "{carried}");
    let mut other = Branch::join(&lab, &datacenter, "b", &wan.address());
    datacenter.assign("b", "office", "debian@2", "--no-prestage");
    other.wait_for_pool("office", "debian", 2);
    wait_profile_here(&mut other, 1);
    let next_bytes = next.bytes();
    std::thread::scope(|scope| {
        boot(&other, "z", &steps, &next_bytes, |step| {
            if step == 20 {
                wan.cut();
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_secs(3));
                    wan.restore();
                });
            }
        });
    });
    let told = stop(&other, "z");
    assert_eq!(told["profile"], 2, "{told}");
    let boots = wait_for_profile(&datacenter, "debian@2", 3);
    assert!(boots["carried_from"].is_null(), "{boots}");
    assert_eq!(boots["boots_reported"], 1, "{boots}");
}
