//! Which machine runs a desktop, and how it reaches its disk. The guest is a boot sector: it reads eight places of its disk, writes one, and
//! says on its serial port how each went.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use scenarios::daemon::read_lossy;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Rng, Wan, wait_for};

/// QEMU that emulates its processor on a busy machine.
const GUEST: Duration = Duration::from_secs(120);
/// How long a read waits for the line until the branch gives up.
const READ_WAIT: &str = "2";

const READS: u64 = 8;
/// Between two places that the guest reads.
const STEP: u64 = 2 * MIB;

/// `B`, a point for each read, `W` when the last sector that was read is written as sector 1; `E` and no more when the BIOS says that
/// something failed.
const BOOT: [u8; 96] = [
    0x31, 0xc0, //                         xor ax, ax
    0x8e, 0xd8, //                         mov ds, ax
    0x8e, 0xc0, //                         mov es, ax
    0x8e, 0xd0, //                         mov ss, ax
    0xbc, 0x00, 0x7c, //                   mov sp, 0x7c00
    0xb0, b'B', //                         mov al, 'B'
    0xe8, 0x36, 0x00, //                   call put
    0xbe, 0x50, 0x7c, //             next: mov si, packet
    0xb4, 0x42, //                         mov ah, 0x42      read
    0xcd, 0x13, //                         int 0x13
    0x72, 0x25, //                         jc failed
    0xb0, b'.', //                         mov al, '.'
    0xe8, 0x28, 0x00, //                   call put
    0x81, 0x06, 0x58, 0x7c, 0x00, 0x10, // add word [packet + 8], 0x1000
    0xff, 0x0e, 0x4e, 0x7c, //             dec word [count]
    0x75, 0xe6, //                         jnz next
    0xc7, 0x06, 0x58, 0x7c, 0x01, 0x00, // mov word [packet + 8], 1
    0xbe, 0x50, 0x7c, //                   mov si, packet
    0xb8, 0x00, 0x43, //                   mov ax, 0x4300    write
    0xcd, 0x13, //                         int 0x13
    0x72, 0x04, //                         jc failed
    0xb0, b'W', //                         mov al, 'W'
    0xeb, 0x02, //                         jmp say
    0xb0, b'E', //                 failed: mov al, 'E'
    0xe8, 0x03, 0x00, //              say: call put
    0xf4, //                         rest: hlt
    0xeb, 0xfd, //                         jmp rest
    0x52, //                          put: push dx
    0xba, 0xf8, 0x03, //                   mov dx, 0x3f8
    0xee, //                               out dx, al
    0x5a, //                               pop dx
    0xc3, //                               ret
    0x90, //
    0x08, 0x00, //                  count: 8
    0x10, 0x00, 0x01, 0x00, //     packet: 16 bytes, one sector
    0x00, 0x7e, 0x00, 0x00, //             at 0000:7e00
    0x00, 0x10, 0, 0, 0, 0, 0, 0, //       from sector 0x1000
];

/// A disk that begins with the guest. Sector n of those that it reads is full of 0x50 + n.
fn guest_disk(path: PathBuf) -> PathBuf {
    let disk = File::create_new(&path).unwrap();
    disk.set_len((READS + 1) * STEP).unwrap();
    disk.write_all_at(&BOOT, 0).unwrap();
    disk.write_all_at(&[0x55, 0xaa], 510).unwrap();
    let mut rng = Rng::new(71);
    for place in 1..=READS {
        let mut bytes = vec![0; 64 << 10];
        rng.fill(&mut bytes);
        bytes[..512].fill(0x50 + place as u8);
        disk.write_all_at(&bytes, place * STEP).unwrap();
    }
    path
}

/// A branch whose line is up and that has nothing of the disk but where the guest begins.
fn branch_with_boot_sector(lab: &Lab, datacenter: &Datacenter, wan: &Wan, front: &str) -> Branch {
    let options = ["--qemu-disk", front, "--read-wait", READ_WAIT];
    let mut branch = Branch::join_with(lab, datacenter, front, &wan.address(), &options);
    datacenter.assign(front, "office", "debian", "--no-prestage");
    branch.wait_for_pool("office", "debian", 1);
    branch.export("pool/office").peek(0, 64 << 10).ok();
    branch
}

fn show(branch: &Branch, name: &str) -> Value {
    let out = branch.splice(&format!("desktop show {name} --json")).ok();
    serde_json::from_str(&out).unwrap()
}

fn wait_for_serial(branch: &mut Branch, desktop: &Value, until: &str) {
    let serial = PathBuf::from(desktop["serial_log"].as_str().unwrap());
    wait_for(format!("{until} on the serial port"), GUEST, || {
        branch.daemon().check();
        let said = read_lossy(&serial);
        assert!(
            !said.contains('E'),
            "the guest was told of an error: {said}"
        );
        said.contains(until)
    });
}

fn wait_paused(branch: &mut Branch, name: &str) -> Value {
    let mut shown = Value::Null;
    wait_for("the desktop to be paused", GUEST, || {
        branch.daemon().check();
        shown = show(branch, name);
        shown["state"] == "paused"
    });
    shown
}

fn is_socket(path: &Value) -> bool {
    let path = Path::new(path.as_str().unwrap_or_default());
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket())
}

/// Cut, branch server killed and started again, restored: the guest's read waits through all of it.
fn a_guest_s_read_waits_for_the_line(front: &str) {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    datacenter.create("debian");
    datacenter.publish("debian", &guest_disk(lab.path("disk.raw")));
    let mut branch = branch_with_boot_sector(&lab, &datacenter, &wan, front);
    wan.cut();
    branch.wait_link(false);

    let desktop = branch.start_desktop("office", "alice");
    assert_eq!(desktop["machine"], "qemu-tcg", "{desktop}");
    assert_eq!(desktop["disk"], front, "{desktop}");
    assert!(is_socket(&desktop["screen_socket"]), "{desktop}");
    assert!(is_socket(&desktop["disk_socket"]), "{desktop}");
    wait_for_serial(&mut branch, &desktop, "B");
    let paused = wait_paused(&mut branch, "alice");
    if front == "vhost-user" {
        let why = paused["error"].as_str().unwrap();
        assert!(why.contains("link to the datacenter is down"), "{why}");
    }
    branch.daemon().kill();
    branch.restart();
    assert_eq!(show(&branch, "alice")["pid"], desktop["pid"]);
    wait_paused(&mut branch, "alice");

    wan.restore();
    branch.wait_link(true);
    wait_for_serial(&mut branch, &desktop, "........W");
    assert_eq!(show(&branch, "alice")["state"], "running");
    let commands = ["read -P 0x58 512 512", "read -P 0x51 2M 512"];
    let commands = commands.map(str::to_owned);
    let io = branch.export("desktop/alice").io(&commands).ok();
    assert!(!io.contains("failed"), "{io}");
    branch.splice("desktop stop alice --force").ok();
    assert!(
        !is_socket(&desktop["disk_socket"]),
        "it goes with the volume"
    );
    branch.splice("desktop delete alice").ok();
}

#[test]
fn over_vhost_user_a_guest_s_read_waits_for_the_line() {
    a_guest_s_read_waits_for_the_line("vhost-user");
}

#[test]
fn over_nbd_a_guest_s_read_waits_for_the_line() {
    a_guest_s_read_waits_for_the_line("nbd");
}

/// A machine whose guest waits for the line can be stopped.
#[test]
fn a_desktop_that_waits_for_the_line_is_stopped_and_started_again() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    datacenter.create("debian");
    datacenter.publish("debian", &guest_disk(lab.path("disk.raw")));
    let mut branch = branch_with_boot_sector(&lab, &datacenter, &wan, "vhost-user");
    wan.cut();
    branch.wait_link(false);
    let desktop = branch.start_desktop("office", "alice");
    wait_for_serial(&mut branch, &desktop, "B");
    wait_paused(&mut branch, "alice");
    branch.splice("desktop stop alice --force").ok();
    assert_eq!(show(&branch, "alice")["state"], "stopped");
    wan.restore();
    branch.wait_link(true);
    let desktop = branch.start_desktop("office", "alice");
    wait_for_serial(&mut branch, &desktop, "........W");
    branch.splice("desktop stop alice --force").ok();
}

#[test]
fn a_pool_s_machine_type_decides_and_the_reason_is_told() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let disk = Disk::make(lab.path("disk.raw"), MIB, 72);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let address = format!("127.0.0.1:{}", datacenter.link_port);
    let mut branch = Branch::join(&lab, &datacenter, "a", &address);
    datacenter.assign("a", "office", "debian", "");
    branch.wait_for_pool("office", "debian", 1);
    let desktop = branch.start_desktop("office", "alice");
    assert_eq!(desktop["machine_type"], "auto", "{desktop}");
    assert_eq!(desktop["machine"], "qemu-tcg", "{desktop}");
    let reason = desktop["machine_reason"].as_str().unwrap();
    assert!(reason.contains("no kernel was found"), "{reason}");
    assert!(reason.contains("--accelerator tcg"), "{reason}");
    let shown = branch.splice("desktop show alice").ok();
    assert!(shown.contains("qemu-tcg") && shown.contains("no kernel was found"));
    // Only splice-vmm has a sandbox to tell of; the folder is the branch server's alone.
    assert_eq!(desktop["sandbox"], Value::Null, "{desktop}");
    let folder = std::fs::metadata(branch.data.join("desktops/alice")).unwrap();
    assert_eq!(folder.permissions().mode() & 0o077, 0);
    branch.splice("desktop stop alice --force").ok();

    // The pool insists on what cannot be, and so does a desktop that ran before.
    datacenter.assign("a", "office", "debian", "--machine splice");
    let shown = datacenter.json("branch show a");
    assert_eq!(shown["pools"][0]["machine"], "splice", "{shown}");
    wait_for("the branch to hear of it", GUEST, || {
        branch.daemon().check();
        let ran = branch.splice("desktop start office --name alice");
        if ran.succeeded() {
            branch.splice("desktop stop alice --force").ok();
            return false;
        }
        ran.refused(&[
            "alice",
            "machine type splice",
            "no kernel was found",
            "--machine auto",
        ]);
        true
    });
    branch
        .splice("desktop start office --name bob")
        .refused(&["bob", "splice"]);
    branch.splice("desktop show bob").refused(&["bob"]);
    // It outlives a restart, as all that an assignment says.
    branch.daemon().kill();
    branch.restart();
    branch
        .splice("desktop start office --name bob")
        .refused(&["bob", "splice"]);

    datacenter.assign("a", "office", "debian", "--machine qemu");
    wait_for("the branch to hear of it", GUEST, || {
        branch.daemon().check();
        branch.splice("desktop start office --name bob").succeeded()
    });
    let desktop = show(&branch, "bob");
    assert_eq!(desktop["machine_type"], "qemu", "{desktop}");
    let reason = desktop["machine_reason"].as_str().unwrap();
    assert!(reason.contains("its pool asks for QEMU"), "{reason}");
    branch.splice("desktop stop bob --force").ok();
}

/// A disk with an EFI system partition, and none of the programs that boot it: what is missing is named with its package.
#[test]
fn firmware_and_tpm_are_there_or_named() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let path = lab.path("efi.raw");
    let disk = File::create_new(&path).unwrap();
    disk.set_len(4 * MIB).unwrap();
    // A partition of type EF in an MBR.
    disk.write_all_at(&[0xef], 446 + 4).unwrap();
    disk.write_all_at(&[1, 0, 0, 0, 0, 16], 446 + 8).unwrap();
    disk.write_all_at(&[0x55, 0xaa], 510).unwrap();
    datacenter.create("efi");
    datacenter.publish("efi", &path);
    let address = format!("127.0.0.1:{}", datacenter.link_port);
    let mut branch = Branch::join(&lab, &datacenter, "a", &address);
    datacenter.assign("a", "office", "efi", "");
    branch.wait_for_pool("office", "efi", 1);
    let ran = branch.splice("desktop start office --name alice");
    if Path::new("/usr/share/OVMF").is_dir() {
        ran.ok();
        branch.splice("desktop stop alice --force").ok();
        assert!(branch.data.join("desktops/alice/efi-vars.fd").is_file());
    } else {
        ran.refused(&["boots by UEFI", "package ovmf"]);
    }

    let disk = Disk::make(lab.path("plain.raw"), MIB, 73);
    datacenter.create("plain");
    datacenter.publish("plain", &disk.path);
    datacenter.assign("a", "secure", "plain", "--tpm");
    branch.wait_for_pool("secure", "plain", 1);
    let ran = branch.splice("desktop start secure --name bob");
    let has_swtpm = scenarios::run::run("which", &["swtpm"], GUEST).succeeded();
    if has_swtpm {
        ran.ok();
        assert_eq!(show(&branch, "bob")["tpm"], true);
        assert!(is_socket(&Value::from(
            branch.data.join("desktops/bob/tpm.sock").to_str().unwrap()
        )));
        branch.splice("desktop stop bob --force").ok();
    } else {
        ran.refused(&["package swtpm", "--no-tpm"]);
    }
}
