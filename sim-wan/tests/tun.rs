//! TUN links between real namespaces. Needs root and /dev/net/tun; says so and passes where they are missing.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader, Read};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sim_wan::control::Client;
use sim_wan::tun::{LinkSpec, Namespaces, TunLink, check_privileges, inside};
use sim_wan::{LinkState, Profile};

/// True, with the reason printed, where no TUN link can be made.
fn skipped() -> bool {
    match check_privileges() {
        Ok(()) => false,
        Err(reason) => {
            println!("skipped: {reason}");
            true
        }
    }
}

/// Namespace names of one test; the process id keeps two runs apart.
fn namespaces(test: &str) -> [String; 2] {
    let pid = std::process::id();
    [format!("swt{pid}{test}dc"), format!("swt{pid}{test}br")]
}

fn spec(test: &str) -> LinkSpec {
    let [dc, branch] = namespaces(test);
    format!(
        "name={test},dc-ns={dc},branch-ns={branch},dc-addr=10.77.1.1/30,branch-addr=10.77.1.2/30"
    )
    .parse()
    .unwrap()
}

fn socket(namespace: &str, address: &str) -> UdpSocket {
    let socket = inside(namespace, || UdpSocket::bind(address))
        .unwrap()
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

fn there(namespace: &str) -> bool {
    Path::new("/run/netns").join(namespace).exists()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn packets_take_the_round_trip_and_every_byte_is_counted() {
    if skipped() {
        return;
    }
    let [dc_ns, branch_ns] = namespaces("rtt");
    let created = Namespaces::create(&[dc_ns.clone(), branch_ns.clone()]).unwrap();
    let link = TunLink::start(&spec("rtt"), &Profile::named("dsl").unwrap().lossless(), 1).unwrap();
    let (dc, branch) = (
        socket(&dc_ns, "10.77.1.1:7000"),
        socket(&branch_ns, "10.77.1.2:7000"),
    );
    let mut buffer = [0; 64];
    for _ in 0..10 {
        let begun = Instant::now();
        branch.send_to(&[1; 50], "10.77.1.1:7000").unwrap();
        let (length, from) = dc.recv_from(&mut buffer).unwrap();
        dc.send_to(&buffer[..length], from).unwrap();
        branch.recv_from(&mut buffer).unwrap();
        let rtt = begun.elapsed();
        assert!(
            rtt >= Duration::from_millis(30) && rtt < Duration::from_millis(180),
            "{rtt:?}"
        );
    }
    let stats = link.stats();
    assert_eq!(
        stats.up.offered_bytes, 780,
        "ten packets of 50 + 28 bytes, and no other traffic"
    );
    assert_eq!(
        (stats.down.offered_bytes, stats.down.delivered_bytes),
        (780, 780)
    );
    assert_eq!(link.ring_drops().unwrap(), 0);

    link.controlled().cut();
    branch.send_to(&[2; 50], "10.77.1.1:7000").unwrap();
    wait_until("the cut link drops", || {
        link.stats().up.dropped_outage.packets == 1
    });
    assert_eq!(link.stats().state, LinkState::Cut);
    link.controlled().restore();
    branch.send_to(&[3; 50], "10.77.1.1:7000").unwrap();
    assert_eq!(dc.recv(&mut buffer).unwrap(), 50);
    assert_eq!(buffer[0], 3, "the packet of the cut is gone");

    drop(link);
    let devices = inside(&branch_ns, || {
        std::fs::read_to_string("/proc/thread-self/net/dev")
    })
    .unwrap()
    .unwrap();
    assert!(
        !devices.contains("rtt:"),
        "the device is gone with the link: {devices}"
    );
    drop(created);
    assert!(!there(&dc_ns) && !there(&branch_ns));
}

#[test]
fn a_full_queue_drops_and_the_rest_comes_at_the_rate() {
    if skipped() {
        return;
    }
    let [dc_ns, branch_ns] = namespaces("rate");
    let _created = Namespaces::create(&[dc_ns.clone(), branch_ns.clone()]).unwrap();
    let link = TunLink::start(&spec("rate"), &Profile::named("t1").unwrap(), 1).unwrap();
    let (dc, branch) = (
        socket(&dc_ns, "10.77.1.1:7000"),
        socket(&branch_ns, "10.77.1.2:7000"),
    );
    for _ in 0..60 {
        dc.send_to(&[0; 1472], "10.77.1.2:7000").unwrap();
    }
    // 1.5 Mbit/s and 200 ms: 37,500 bytes, 25 full packets, 8 ms each; one more may slip in while the first leaves.
    let mut buffer = [0; 2048];
    branch.recv(&mut buffer).unwrap();
    let begun = Instant::now();
    branch
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut last = begun;
    let mut received = 1;
    while branch.recv(&mut buffer).is_ok() {
        last = Instant::now();
        received += 1;
    }
    let stats = link.stats().down;
    assert!((25..=27).contains(&received), "{received} arrived");
    assert_eq!(
        (stats.delivered_packets, stats.dropped_queue.packets),
        (received, 60 - received)
    );
    let exact = Duration::from_millis(8) * (received as u32 - 1);
    let span = last - begun;
    assert!(
        span > exact - Duration::from_millis(40) && span < exact + Duration::from_millis(150),
        "{span:?}"
    );
}

#[test]
fn an_ipv6_link_works_at_once() {
    if skipped() {
        return;
    }
    let [dc_ns, branch_ns] = namespaces("v6");
    let _created = Namespaces::create(&[dc_ns.clone(), branch_ns.clone()]).unwrap();
    let text = format!(
        "name=v6,dc-ns={dc_ns},branch-ns={branch_ns},dc-addr=fd77::1/64,branch-addr=fd77::2/64"
    );
    let _link = TunLink::start(&text.parse().unwrap(), &Profile::named("lan").unwrap(), 1).unwrap();
    let (dc, branch) = (
        socket(&dc_ns, "[fd77::1]:7000"),
        socket(&branch_ns, "[fd77::2]:7000"),
    );
    branch.send_to(b"hello", "[fd77::1]:7000").unwrap();
    assert_eq!(dc.recv(&mut [0; 16]).unwrap(), 5);
}

/// `sim-wan link --create` with two branches, once it says that it is ready.
fn start_lab(test: &str, socket: &Path) -> (Child, [String; 3]) {
    let [dc, branch_a] = namespaces(test);
    let branch_b = format!("{branch_a}2");
    let link = |name: &str, branch: &str, net: u8, profile: &str| {
        format!(
            "name={name},dc-ns={dc},branch-ns={branch},dc-addr=10.77.{net}.1/30,branch-addr=10.77.{net}.2/30,profile={profile}"
        )
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_sim-wan"))
        .args(["link", "--create", "--socket"])
        .arg(socket)
        .args([
            "--link",
            &link("branch-a", &branch_a, 1, "lan"),
            "--link",
            &link("branch-b", &branch_b, 2, "dsl"),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    if !lines.any(|line| line.unwrap() == "ready") {
        let mut error = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut error)
            .unwrap();
        panic!("sim-wan did not get ready: {error}");
    }
    (child, [dc, branch_a, branch_b])
}

#[test]
fn one_datacenter_serves_two_branches_and_a_signal_takes_all_away() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("wan.sock");
    let (mut child, [dc, branch_a, branch_b]) = start_lab("lab", &control);
    let server = socket(&dc, "0.0.0.0:7000");
    let mut buffer = [0; 64];
    for (namespace, address) in [(&branch_a, "10.77.1.1:7000"), (&branch_b, "10.77.2.1:7000")] {
        socket(namespace, "0.0.0.0:0")
            .send_to(b"hello", address)
            .unwrap();
        assert_eq!(server.recv(&mut buffer).unwrap(), 5);
    }
    let mut client = Client::connect(&control).unwrap();
    assert_eq!(client.stats("branch-a").unwrap().up.delivered_bytes, 33);
    client.cut(Some("branch-b")).unwrap();
    assert_eq!(client.stats("branch-a").unwrap().state, LinkState::Up);

    // A second lab of the same names is refused in one line, and harms nothing.
    let again = Command::new(env!("CARGO_BIN_EXE_sim-wan"))
        .args(["link", "--create", "--profile", "lan", "--link"])
        .arg(format!(
            "name=x,dc-ns={dc},branch-ns={branch_a},dc-addr=10.1.1.1/30,branch-addr=10.1.1.2/30"
        ))
        .output()
        .unwrap();
    let error = String::from_utf8(again.stderr).unwrap();
    assert!(
        error.contains("exists; leave out --create") && error.lines().count() == 1,
        "{error}"
    );
    assert!(there(&dc));

    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        ![dc, branch_a, branch_b].iter().any(|name| there(name)),
        "namespaces are left"
    );
    assert!(!control.exists(), "the control socket is left");
}

#[test]
fn a_killed_process_leaves_no_namespace() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut child, names) = start_lab("kill", &folder.path().join("wan.sock"));
    assert!(names.iter().all(|name| there(name)));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the namespaces are deleted", || {
        !names.iter().any(|name| there(name))
    });
}

#[test]
fn a_missing_namespace_is_named() {
    if skipped() {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_sim-wan"))
        .args(["link", "--profile", "lan", "--link"])
        .arg("name=x,dc-ns=swt-none,branch-ns=swt-nil,dc-addr=10.1.1.1/30,branch-addr=10.1.1.2/30")
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        error,
        "sim-wan: namespace swt-nil does not exist; pass --create, or run `ip netns add swt-nil`\n"
    );
}
