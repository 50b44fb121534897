//! Caps and hours of a branch, as central IT sets them and a branch's users feel them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};

/// Hours of which now is not one, for the next three hours at least, by UTC.
fn other_hours() -> String {
    let now_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let hour = now_s / 3600 % 24;
    format!("{:02}:00-{:02}:00", (hour + 4) % 24, (hour + 6) % 24)
}

fn resident_bytes(branch: &Branch) -> u64 {
    branch.residency("debian", 1).map_or(0, |version| {
        version["resident_bytes"].as_u64().unwrap_or_default()
    })
}

#[test]
fn fill_keeps_to_its_hours_and_caps_and_guests_do_not() {
    let lab = Lab::new();
    let mut datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 24 * MIB, 41);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    branch.wait_link(true);
    let set = |datacenter: &Datacenter, options: &str| {
        datacenter.splice(&format!("branch set a {options}")).ok()
    };

    // Outside of the hours nothing is filled, and a read is answered all the same.
    let told = set(&datacenter, &format!("--fill-hours {}", other_hours()));
    assert!(told.contains("UTC+00:00"), "{told}");
    datacenter.assign("a", "office", "debian", "");
    branch.wait_for_pool("office", "debian", 1);
    let io = branch.export("pool/office").peek(4 * MIB, 64 << 10).ok();
    assert!(!io.contains("failed"), "{io}");
    let waited = branch.number("/counters/demand_wait/count");
    assert!(waited > 0, "the read waited for the line");
    let before = resident_bytes(&branch);
    assert!(
        before < 8 * MIB,
        "{before} bytes are here though fill is closed"
    );
    // The hours survive restarts of both ends.
    datacenter.daemon().kill();
    datacenter.restart();
    branch.daemon().kill();
    branch.restart();
    branch.wait_link(true);
    let shown = datacenter.splice("branch show a --json").ok();
    assert!(shown.contains(&other_hours()), "{shown}");
    std::thread::sleep(Duration::from_secs(2));
    let after = resident_bytes(&branch);
    assert!(
        after <= before,
        "{after} bytes after a restart, {before} before it"
    );

    // A cap holds from now on: 4 Mbit/s are half a megabyte a second.
    set(&datacenter, "--fill-cap 4Mbit --fill-hours always");
    wait_for("fill to begin", Duration::from_secs(60), || {
        resident_bytes(&branch) > before
    });
    let (begun, received) = (Instant::now(), branch.number("/counters/received_bytes"));
    std::thread::sleep(Duration::from_secs(8));
    let bytes = branch.number("/counters/received_bytes") - received;
    let mbit = bytes as f64 * 8e-6 / begun.elapsed().as_secs_f64();
    assert!((1.0..6.0).contains(&mbit), "{mbit} Mbit/s under a cap of 4");

    // Without it the rest comes at once.
    set(&datacenter, "--fill-cap none");
    branch.wait_complete("debian", 1, Duration::from_secs(60));
    branch.export("pool/office").assert_same(&disk.path);
    assert!(branch.number("/counters/fill_fetch/count") > 0);
}

#[test]
fn what_makes_no_sense_is_refused_with_the_way_out() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    datacenter.token("a");
    for (options, words) in [
        ("--fill-cap 5", "5Mbit"),
        ("--fill-cap 1kbit", "64000"),
        ("--fill-hours 25:00-06:00", "20:00-06:00"),
        ("--utc-offset 1", "+01:00"),
        ("--utc-offset +01:00", "without hours"),
    ] {
        let ran = datacenter.splice(&format!("branch set a {options}"));
        assert!(!ran.succeeded(), "{options} was taken");
        assert!(ran.err.contains(words), "{options}: {}", ran.err);
    }
}
