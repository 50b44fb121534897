//! Desktops that go on from a template, on splice-vmm as the branch starts it. The guest is a few bytes that answer at the serial port and say hello
//! once, when they begin: one that goes on never does.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../../vmm/tests/sandbox/guest.rs"]
#[allow(dead_code, reason = "the machine's own tests use the rest")]
mod guest;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use scenarios::daemon::read_lossy;
use scenarios::run::run;
use scenarios::{Branch, Datacenter, Lab, wait_for};

const GUEST: Duration = Duration::from_secs(60);
/// A boot that reads nothing is quiet for a minute before it is taken for idle; then it is saved, and goes on once.
const MADE: Duration = Duration::from_secs(300);

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

fn has_booted(desktop: &Value) -> bool {
    let log = PathBuf::from(desktop["serial_log"].as_str().unwrap());
    read_lossy(&log).contains(char::from(guest::HELLO))
}

fn start_of(desktop: &Value) -> &str {
    desktop["start"].as_str().unwrap_or_default()
}

fn template(branch: &Branch) -> Value {
    let out = branch.splice("branch-templates --json").ok();
    let list: Value = serde_json::from_str(&out).unwrap();
    list["templates"][0].clone()
}

fn wait_for_template(branch: &mut Branch, state: &str) -> Value {
    let mut told = Value::Null;
    wait_for(format!("the template to be {state}"), MADE, || {
        branch.daemon().check();
        told = template(branch);
        told["state"] == state
    });
    told
}

fn files(branch: &Branch) -> Vec<PathBuf> {
    let folder = fs::read_dir(branch.data.join("disks/templates"));
    let files = folder.into_iter().flatten().flatten();
    files.map(|file| file.path()).collect()
}

/// A branch whose pool wants desktops that resume; none without KVM. Whatever this KVM is: the guest is small enough for it.
fn branch(lab: &Lab, datacenter: &Datacenter) -> Option<Branch> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() {
        println!("skipped: no /dev/kvm");
        return None;
    }
    datacenter.create("tiny");
    datacenter.publish("tiny", &disk(lab));
    let address = format!("127.0.0.1:{}", datacenter.link_port);
    let options = ["--accelerator", "kvm"];
    let mut branch = Branch::join_with(lab, datacenter, "a", &address, &options);
    let options = "--machine splice --memory 64MiB --start resume";
    datacenter.assign("a", "office", "tiny", options);
    branch.wait_for_pool("office", "tiny", 1);
    Some(branch)
}

#[test]
fn fresh_desktops_go_on_from_a_template_and_boot_where_there_is_none() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let Some(mut branch) = branch(&lab, &datacenter) else {
        return;
    };
    let shown = datacenter.json("branch show a");
    assert_eq!(shown["pools"][0]["start"], "resume", "{shown}");
    // Whoever comes before it is there boots.
    let early = branch.start_desktop("office", "early");
    assert!(
        start_of(&early).starts_with("booted: its template"),
        "{early}"
    );
    wait_for("the guest", GUEST, || has_booted(&early));

    let told = wait_for_template(&mut branch, "ready");
    assert!(told["bytes"].as_u64() > Some(4096), "{told}");
    let list = branch.splice("desktop list --json").ok();
    assert!(!list.contains("template.new"), "{list}");
    assert!(!branch.data.join("desktops/template.new").exists());
    for name in ["alice", "bob"] {
        let desktop = branch.start_desktop("office", name);
        assert_eq!(start_of(&desktop), "resumed", "{desktop}");
        is_answered(&desktop);
        assert!(!has_booted(&desktop), "it goes on");
        let shown = branch.splice(&format!("desktop show {name}")).ok();
        assert!(shown.contains("resumed"), "{shown}");
    }
    assert_eq!(template(&branch)["in_memory"], true);

    // One that was there before has a system of its own, and gets a fresh one by a reset.
    branch.splice("desktop stop alice --force").ok();
    let again = branch.start_desktop("office", "alice");
    assert!(
        start_of(&again).contains("what was written to its system"),
        "{again}"
    );
    branch.splice("desktop stop alice --force").ok();
    branch.splice("desktop reset alice").ok();
    let anew = branch.start_desktop("office", "alice");
    assert_eq!(start_of(&anew), "resumed", "{anew}");
    is_answered(&anew);

    // Damaged: it is removed, and the desktop boots. Those that went on from it do not notice.
    branch.daemon().kill();
    let made = files(&branch);
    assert_eq!(made.len(), 1, "{made:?}");
    let file = &made[0];
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, &bytes).unwrap();
    branch.restart();
    let carol = branch.start_desktop("office", "carol");
    assert!(start_of(&carol).contains("damaged"), "{carol}");
    wait_for("the guest", GUEST, || has_booted(&carol));
    assert_eq!(template(&branch)["state"], "missing");
    assert!(
        template(&branch)["why"]
            .as_str()
            .unwrap()
            .contains("damaged")
    );
    assert!(files(&branch).is_empty());
    is_answered(&anew);

    for name in ["early", "alice", "bob", "carol"] {
        branch.splice(&format!("desktop stop {name} --force")).ok();
    }
}

#[test]
fn a_server_that_is_killed_while_it_makes_a_template_makes_it_again() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let Some(mut branch) = branch(&lab, &datacenter) else {
        return;
    };
    wait_for_template(&mut branch, "making");
    let folder = branch.data.join("desktops/template.new");
    let log = folder.join("serial.log");
    wait_for("what it is made of to run", GUEST, || {
        branch.daemon().check();
        read_lossy(&log).contains(char::from(guest::HELLO))
    });
    branch.daemon().kill();
    branch.restart();
    // It is gone with its machine before anything else is done.
    branch
        .splice("desktop show template.new")
        .refused(&["template.new"]);
    wait_for_template(&mut branch, "ready");
    assert_eq!(files(&branch).len(), 1);
    assert!(!folder.exists());
    let desktop = branch.start_desktop("office", "alice");
    assert_eq!(start_of(&desktop), "resumed", "{desktop}");
    is_answered(&desktop);
    branch.splice("desktop stop alice --force").ok();

    // The pool boots from now on, and has no use for it.
    datacenter.assign("a", "office", "tiny", "--machine splice --start boot");
    wait_for("the template to be removed", MADE, || {
        branch.daemon().check();
        files(&branch).is_empty()
    });
    let desktop = branch.start_desktop("office", "bob");
    assert_eq!(desktop["start"], Value::Null, "{desktop}");
    branch.splice("desktop stop bob --force").ok();
}
