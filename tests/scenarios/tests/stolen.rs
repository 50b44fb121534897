//! A branch server is stolen: its disk tells nothing, its certificate is worth nothing, and what its users wrote is at the datacenter.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use scenarios::branch::NEWS;
use scenarios::datacenter::text;
use scenarios::disk::read;
use scenarios::run::{program, run_path};
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};
use serde_json::Value;

const COMMAND: Duration = Duration::from_secs(60);
/// What the user writes: one byte, again and again.
const WRITTEN: u8 = 0xA7;

fn line(branch: &Branch) -> Value {
    let out = branch.splice("desktop show alice --json").ok();
    let desktop: Value = serde_json::from_str(&out).unwrap();
    desktop["volumes"][0].clone()
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

/// The first file of a folder that holds these bytes.
fn holding(folder: &Path, needle: &[u8]) -> Option<PathBuf> {
    let mut found = Vec::new();
    files(folder, &mut found);
    assert!(!found.is_empty());
    found.into_iter().find(|path| {
        let bytes = read(path);
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

/// Bytes of a disk that are nowhere else.
fn of_image(disk: &[u8]) -> &[u8] {
    let is_noise = |bytes: &&[u8]| bytes.iter().filter(|byte| **byte != 0).count() > 60;
    disk.chunks_exact(64).find(is_noise).unwrap()
}

#[test]
fn a_stolen_branch_tells_nothing_and_gets_nothing_and_its_users_data_is_there() {
    let lab = Lab::new();
    let mut datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 8 * MIB, 95);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let passphrase = lab.path("passphrase");
    std::fs::write(&passphrase, "told to the server at its start by hand\n").unwrap();
    let more = ["--passphrase-file", text(&passphrase)];
    let mut branch = Branch::join_with(&lab, &datacenter, "a", &wan.address(), &more);
    datacenter.assign("a", "office", "debian", "");
    branch.wait_complete("debian", 1, COMMAND);
    branch.wait_for_pool("office", "debian", 1);
    let serve = "desktop start office --name alice --serve-only";
    branch.splice(serve).ok();
    wait_for("the desktop's lease", NEWS, || {
        line(&branch)["lease"] == "held"
    });
    let write = [format!("write -P {WRITTEN} 0 1M"), "flush".to_owned()];
    branch.export("desktop/alice").io(&write).ok();
    branch.splice("desktop snapshot alice").ok();
    wait_for("all of it to be at the datacenter", NEWS, || {
        line(&branch)["behind_records"] == 0
    });
    let volume = line(&branch)["id"].as_str().unwrap().to_owned();
    let plain = lab.path("plain");
    std::fs::create_dir(&plain).unwrap();
    let copy = plain.join("disk.raw");
    branch.export("desktop/alice").copy(&copy).ok();

    // The plug is pulled, and the disk is read elsewhere.
    branch.daemon().kill();
    let image = disk.bytes();
    // Not of the part that the user wrote over.
    let image = of_image(&image[2 * MIB as usize..]);
    for needle in [&[WRITTEN; 256][..], image] {
        assert!(
            holding(&plain, needle).is_some(),
            "the search finds nothing"
        );
        let found = holding(&branch.data, needle);
        assert_eq!(found, None, "it lies on the disk as it was");
    }
    let program = program("splice-branch");
    let run = ["run", "--data", text(&branch.data)];
    run_path(&program, &run, COMMAND).refused(&["--passphrase-file"]);
    let guess = lab.path("guess");
    std::fs::write(&guess, "told to the server at its start by hane\n").unwrap();
    let guessed = ["--passphrase-file", text(&guess)];
    let run: Vec<&str> = run.into_iter().chain(guessed).collect();
    run_path(&program, &run, COMMAND).refused(&[]);

    // Who has the passphrase as well has what lies there, and nothing more from then on.
    datacenter.splice("branch revoke a").ok();
    branch.restart();
    wait_for("it to be refused", NEWS, || {
        let log = datacenter.daemon().log();
        log.contains("a revoked branch was refused")
    });
    let status = branch.status();
    assert_eq!(status["link"]["connected"], false, "{status}");

    let words = format!("desktop-state snapshot {volume}");
    let snapshot = datacenter.json(&words);
    let file = lab.path("alice.raw");
    let number = &snapshot["number"];
    let words = format!("desktop-state export {volume} {number} {}", file.display());
    datacenter.splice(&words).ok();
    assert!(read(&file) == read(&copy), "her disk is another one");
}
