//! Desktops on splice-vmm as the branch starts them: each in its sandbox, with a user of its own. The guest is a few bytes that answer at the
//! serial port, which every KVM runs.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../../vmm/tests/sandbox/guest.rs"]
#[allow(dead_code, reason = "the machine's own tests use the rest")]
mod guest;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use scenarios::daemon::read_lossy;
use scenarios::run::run;
use scenarios::{Branch, Datacenter, Lab, wait_for};

const GUEST: Duration = Duration::from_secs(60);
/// What the branch gives users out of unless it is told otherwise.
const USERS: std::ops::RangeInclusive<u32> = 70_000..=74_095;

/// A disk with a system in which publish finds the guest as its kernel.
fn disk(lab: &Lab) -> PathBuf {
    let (root, disk) = (lab.path("root"), lab.path("disk.raw"));
    for folder in ["etc", "boot"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("etc/os-release"), "ID=test\n").unwrap();
    fs::write(root.join("etc/fstab"), "/dev/vda / ext4 defaults 0 1\n").unwrap();
    fs::rename(guest::kernel(lab.dir()), root.join("boot/vmlinuz")).unwrap();
    let line = format!(
        "PATH=$PATH:/usr/sbin:/sbin exec mke2fs -q -t ext4 -d {} {} 16M",
        root.display(),
        disk.display()
    );
    run("sh", &["-c", &line], GUEST).ok();
    disk
}

/// The machine's own process, a child of the one that was started.
fn inner(desktop: &Value) -> u32 {
    let outer = &desktop["pid"];
    let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
    children.unwrap().trim().parse().unwrap()
}

/// Whom a process is.
fn user_of(process: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let first = line.and_then(|line| line.split_whitespace().next());
    first.unwrap().parse().unwrap()
}

/// Types a letter that the guest answers.
fn is_answered(desktop: &Value) {
    let socket = desktop["serial_socket"].as_str().unwrap();
    let mut console = UnixStream::connect(socket).unwrap();
    console.set_read_timeout(Some(GUEST)).unwrap();
    console.write_all(b"?").unwrap();
    let mut seen = [0];
    while seen != [guest::ECHO] {
        console.read_exact(&mut seen).unwrap();
    }
}

fn show(branch: &Branch, name: &str) -> Value {
    let out = branch.splice(&format!("desktop show {name} --json")).ok();
    serde_json::from_str(&out).unwrap()
}

#[test]
fn each_desktop_runs_in_its_sandbox_with_a_user_of_its_own() {
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        println!("skipped: no /dev/kvm");
        return;
    }
    let is_root = rustix::process::geteuid().is_root();
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    datacenter.create("tiny");
    let published = datacenter.publish("tiny", &disk(&lab));
    assert_eq!(published["kernel_path"], "/boot/vmlinuz", "{published}");
    let address = format!("127.0.0.1:{}", datacenter.link_port);
    // Whatever this KVM is: the guest is small enough for it.
    let options = ["--accelerator", "kvm"];
    let mut branch = Branch::join_with(&lab, &datacenter, "a", &address, &options);
    datacenter.assign("a", "office", "tiny", "--machine splice");
    branch.wait_for_pool("office", "tiny", 1);

    let mut users = Vec::new();
    for name in ["alice", "bob"] {
        let desktop = branch.start_desktop("office", name);
        assert_eq!(desktop["machine"], "splice", "{desktop}");
        let log = PathBuf::from(desktop["serial_log"].as_str().unwrap());
        wait_for("the guest", GUEST, || {
            branch.daemon().check();
            read_lossy(&log).contains(char::from(guest::HELLO))
        });
        is_answered(&desktop);
        let sandbox = desktop["sandbox"].as_str().unwrap();
        if is_root {
            assert!(sandbox.starts_with("full"), "{sandbox}");
            users.push(user_of(inner(&desktop)));
        }
        assert!(sandbox.contains("no --cgroup is named"), "{sandbox}");
        let shown = branch.splice(&format!("desktop show {name}")).ok();
        assert!(shown.contains(sandbox), "{shown}");
    }
    assert!(users.iter().all(|user| USERS.contains(user)), "{users:?}");
    users.dedup();
    assert_eq!(users.len(), if is_root { 2 } else { 0 });
    let log = branch.daemon().log();
    let told = log.matches("no --cgroup is named").count();
    assert_eq!(told, 1, "once for all desktops");

    // A machine goes on without its branch server, and keeps its user when it is started again.
    let before = show(&branch, "alice");
    branch.daemon().kill();
    branch.restart();
    assert_eq!(show(&branch, "alice")["pid"], before["pid"]);
    is_answered(&before);
    branch.splice("desktop stop alice --force").ok();
    assert_eq!(show(&branch, "alice")["sandbox"], Value::Null);
    let again = branch.start_desktop("office", "alice");
    if is_root {
        assert_eq!(user_of(inner(&again)), users[0]);
    }
    let process = format!("/proc/{}", inner(&again));
    for name in ["alice", "bob"] {
        branch.splice(&format!("desktop stop {name} --force")).ok();
    }
    wait_for("the machine's end", GUEST, || !Path::new(&process).exists());
}

#[test]
fn a_range_that_is_somebody_s_is_refused_with_the_way_out() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root gives users");
        return;
    }
    let Some(line) = fs::read_to_string("/etc/passwd").ok() else {
        return;
    };
    let numbers = line
        .lines()
        .filter_map(|line| line.split(':').nth(2)?.parse().ok());
    let Some(number) = numbers
        .filter(|number: &u32| (1_000..60_000).contains(number))
        .max()
    else {
        println!("skipped: nobody has an account here");
        return;
    };
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let token = datacenter.token("a");
    let address = format!("127.0.0.1:{}", datacenter.link_port);
    let data = lab.path("a");
    scenarios::branch::join(&token, &data, &address).ok();
    let range = format!("{number}-{}", number + 10);
    let data = data.to_str().unwrap();
    let words = [
        "run",
        "--data",
        data,
        "--accelerator",
        "kvm",
        "--uids",
        &range,
    ];
    let ran = scenarios::run::run_path(&scenarios::run::program("splice-branch"), &words, GUEST);
    ran.refused(&[&range, "/etc/passwd", "name a range"]);
}
