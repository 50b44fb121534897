//! What goes wrong at the command line: one line that names the thing and the way out, an exit code, and nothing changed.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use scenarios::branch::join;
use scenarios::datacenter::text;
use scenarios::run::{limited, program, run, run_path};
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, SmallDisk};

const COMMAND: Duration = Duration::from_secs(60);

#[test]
fn tokens_work_once_in_time_and_for_one_folder() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let address = format!("127.0.0.1:{}", datacenter.link_port);
    let token = datacenter.token("a");
    join(&token, &lab.path("a"), &address).ok();
    join(&token, &lab.path("b"), &address).refused(&["refused", "token", "splice branch token"]);
    let another = datacenter.token("c");
    // The folder is a branch already; the token is not spent.
    join(&another, &lab.path("a"), &address).refused(&[text(&lab.path("a")), "already", "--data"]);
    join(&another, &lab.path("c"), &address).ok();

    let out = datacenter.splice("branch token d --expires 1s");
    if out.succeeded() {
        let token = out.out.lines().next().unwrap().to_owned();
        std::thread::sleep(Duration::from_secs(2));
        join(&token, &lab.path("d"), &address).refused(&["expired"]);
    } else {
        out.refused(&["1s"]);
    }

    let garbage = join("splice-join-1.garbage", &lab.path("e"), &address);
    assert_eq!(garbage.code, Some(2), "{garbage:?}");
    assert!(garbage.err.contains("splice-join-1.garbage"), "{garbage:?}");
    // A token of another realm: the datacenter behind the address is not the token's.
    let mut other = datacenter.token("f");
    let flipped = if other.pop() == Some('0') { '1' } else { '0' };
    other.push(flipped);
    let refused = join(&other, &lab.path("f"), &address);
    assert!(matches!(refused.code, Some(1 | 2)), "{refused:?}");
    assert!(!lab.path("f/identity/realm.json").exists());
}

#[test]
fn a_data_folder_and_a_port_have_one_user() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let address = format!("127.0.0.1:{}", datacenter.link_port);
    let branch = Branch::join(&lab, &datacenter, "a", &address);
    let second = |name: &str, words: &[&str]| run_path(&program(name), words, COMMAND);
    let last_line = |ran: scenarios::run::Ran| {
        assert_eq!(ran.code, Some(1), "{ran:?}");
        ran.err.lines().last().unwrap_or_default().to_owned()
    };

    let data = text(&datacenter.data);
    let said = last_line(second("splice-datacenter", &["run", "--data", data]));
    assert!(said.contains(data) && said.contains("another"), "{said}");
    let said = last_line(second("splice-datacenter", &["init", "--data", data]));
    assert!(said.contains(data) && said.contains("already"), "{said}");
    let branch_data = text(&branch.data);
    let run_branch = ["run", "--data", branch_data, "--accelerator", "tcg"];
    let said = last_line(second("splice-branch", &run_branch));
    assert!(
        said.contains(branch_data) && said.contains("another"),
        "{said}"
    );
    let nobody = lab.path("nobody");
    for (name, way_out) in [
        ("splice-branch", "splice-branch join"),
        ("splice-datacenter", "splice-datacenter init"),
    ] {
        let said = last_line(second(name, &["run", "--data", text(&nobody)]));
        assert!(
            said.contains(text(&nobody)) && said.contains(way_out),
            "{said}"
        );
    }

    let other = lab.path("other");
    let init = ["init", "--data", text(&other), "--address", "127.0.0.1:1"];
    second("splice-datacenter", &init).ok();
    let (link, api) = (address.as_str(), "127.0.0.1:0");
    let run_other = ["run", "--data", text(&other), "--link", link, "--api", api];
    let said = last_line(second("splice-datacenter", &run_other));
    assert!(said.contains(link) && said.contains("in use"), "{said}");

    // Both first ones go on.
    datacenter.splice("status").ok();
    branch.splice("branch-status").ok();
    let without = branch.splice("desktop start office --name x");
    without.refused(&["office"]);
    branch.splice("desktop show x").refused(&["x"]);
    let nobody = text(&nobody);
    let words = ["desktop", "list", "--branch-socket", nobody];
    run_path(&program("splice"), &words, COMMAND).refused(&[nobody, "splice-branch"]);
}

#[test]
fn unknown_names_are_named() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    datacenter.create("debian");
    let disk = Disk::make(lab.path("disk.raw"), MIB, 61);
    let file = text(&disk.path);
    datacenter.publish("debian", &disk.path);
    datacenter.token("a");
    for (words, named) in [
        (format!("version publish none {file}"), "none"),
        (
            "version publish debian /nowhere/disk".into(),
            "/nowhere/disk",
        ),
        ("version verify debian@9".into(), "debian@9"),
        ("version list none".into(), "none"),
        (
            "branch assign nobody --pool p --image debian".into(),
            "nobody",
        ),
        ("branch assign a --pool p --image none".into(), "none"),
        (
            "branch assign a --pool p --image debian@9".into(),
            "debian@9",
        ),
        ("branch unassign a --pool none".into(), "none"),
        (format!("version publish debian {file}"), "debian@1"),
    ] {
        datacenter.splice(&words).refused(&[named]);
    }
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn hostile_disk_files_are_refused_and_leave_nothing() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    datacenter.create("debian");
    let disk = Disk::make(lab.path("disk.raw"), 4 * MIB, 62);
    let good = |name: &str| disk.convert(lab.path(name), &["-O", "qcow2"]);

    let backed = lab.path("backed.qcow2");
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "/etc/hostname",
        "-F",
        "raw",
        text(&backed),
        "4M",
    ];
    run("qemu-img", &create, COMMAND).ok();
    datacenter
        .splice(&format!("version publish debian {}", backed.display()))
        .refused(&[text(&backed), "/etc/hostname", "qemu-img convert"]);

    let truncated = good("truncated.qcow2");
    let file = OpenOptions::new().write(true).open(&truncated).unwrap();
    file.set_len(600 << 10).unwrap();
    let mut hostile = vec![truncated];
    // A header alone; an L1 table past the end of everything; a disk of 2^62 bytes; clusters of 2^60; a version from the future.
    let stub = good("stub.qcow2");
    let file = OpenOptions::new().write(true).open(&stub).unwrap();
    file.set_len(100).unwrap();
    hostile.push(stub);
    for (name, at, bytes) in [
        ("l1.qcow2", 40, &u64::MAX.to_be_bytes()[..]),
        ("size.qcow2", 24, &(1u64 << 62).to_be_bytes()[..]),
        ("clusters.qcow2", 20, &60u32.to_be_bytes()[..]),
        ("version.qcow2", 4, &99u32.to_be_bytes()[..]),
        ("l1-entry.qcow2", 3 * 65536, &u64::MAX.to_be_bytes()[..]),
    ] {
        let path = good(name);
        patch(&path, at, bytes);
        hostile.push(path);
    }
    let odd = lab.path("odd.vmdk");
    std::fs::write(&odd, b"KDMV\x01\x00\x00\x00garbage").unwrap();
    hostile.push(odd);
    let nothing = lab.path("nothing.raw");
    std::fs::write(&nothing, b"").unwrap();
    hostile.push(nothing);
    for file in hostile {
        let ran = datacenter.splice(&format!("version publish debian {}", file.display()));
        ran.refused(&[text(&file)]);
    }
    let versions = datacenter.json("version list debian");
    assert_eq!(versions, serde_json::json!([]));
    let published = datacenter.publish("debian", &good("good.qcow2"));
    assert_eq!(published["number"], 1);
}

#[test]
fn a_full_disk_is_named_and_a_larger_one_takes_the_same_publish() {
    let lab = Lab::new();
    let Some(small) = SmallDisk::mount(&lab, "small", 120) else {
        return;
    };
    let mut datacenter = Datacenter::start_in(&lab, "small/dc");
    datacenter.create("debian");
    let disk = Disk::make(lab.path("disk.raw"), 200 * MIB, 63);
    let words = format!("version publish debian {}", disk.path.display());
    let refused = datacenter.splice(&words);
    refused.refused(&["space"]);
    assert_eq!(
        datacenter.json("version list debian"),
        serde_json::json!([]),
        "no version is half visible"
    );
    datacenter.splice("status").ok();
    small.resize(600);
    let published = datacenter.publish("debian", &disk.path);
    assert_eq!(published["number"], 1, "{published}");
    datacenter.verify("debian@1");
    datacenter.daemon().stop();
}

/// As when standard output and standard error are files on a disk that is full.
#[test]
fn where_nothing_can_be_written_commands_still_end_with_their_code() {
    let lab = Lab::new();
    let end = |name: &str, words: &[&str]| {
        let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = limited(&program(name), COMMAND);
        command.args(words).stdout(full()).stderr(full());
        command.status().unwrap().code()
    };
    let nowhere = lab.path("nowhere");
    let nowhere = text(&nowhere);
    assert_eq!(end("splice", &["--config", nowhere, "status"]), Some(2));
    assert_eq!(end("splice-datacenter", &["openapi"]), Some(1));
    assert_eq!(
        end("splice-datacenter", &["run", "--data", nowhere]),
        Some(1)
    );
    assert_eq!(end("splice-branch", &["run", "--data", nowhere]), Some(1));
}
