//! The datacenter's store over its life: versions go and their space with them, what rots comes back from a branch, versions become files.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scenarios::datacenter::text;
use scenarios::disk::damage;
use scenarios::lab::wait_for;
use scenarios::run::run;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Rng, Wan};

fn packs(datacenter: &Datacenter) -> Vec<PathBuf> {
    let folder = datacenter.data.join("store/packs");
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn bytes(files: &[PathBuf]) -> u64 {
    files.iter().map(|f| f.metadata().unwrap().len()).sum()
}

/// Adds to the section `[store]`, with which the written configuration ends.
fn configure(datacenter: &Datacenter, lines: &str) {
    let path = datacenter.data.join("datacenter.toml");
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    writeln!(file, "{lines}").unwrap();
}

fn is_same(file: &Path, format: &str, raw: &Path) {
    let arguments = ["compare", "-f", format, "-F", "raw", text(file), text(raw)];
    run("qemu-img", &arguments, Duration::from_secs(60)).ok();
}

#[test]
fn damage_at_the_datacenter_is_healed_by_a_branch_that_holds_the_chunks() {
    let mut rng = Rng::from_environment("store");
    let lab = Lab::new();
    let mut datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 8 * MIB, 71);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "");
    branch.wait_complete("debian", 1, Duration::from_secs(60));

    datacenter.daemon().stop();
    let packs = packs(&datacenter);
    let largest = packs.iter().max_by_key(|p| p.metadata().unwrap().len());
    // Not the pack's own header, whose loss would be another story.
    assert_eq!(damage(largest.unwrap(), 1 << 20, 2, &mut rng), 2);
    wan.cut();
    datacenter.restart();
    datacenter
        .splice("store scrub")
        .refused(&["damaged", "debian@1"]);
    assert!(datacenter.json("store stats")["damaged"].as_u64() >= Some(1));
    let status = datacenter.splice("status");
    assert!(status.err.contains("damaged"), "{status:?}");

    wan.restore();
    branch.wait_link(true);
    wait_for(
        "the branch to give it back",
        Duration::from_secs(60),
        || {
            datacenter.daemon().check();
            datacenter.json("store stats")["damaged"] == 0
        },
    );
    datacenter.verify("debian@1");
    datacenter.splice("store scrub").ok();
    branch.export("pool/office").assert_same(&disk.path);
}

#[test]
fn a_deleted_version_gives_its_space_back_while_a_branch_works() {
    let lab = Lab::new();
    let mut datacenter = Datacenter::start(&lab);
    datacenter.daemon().stop();
    configure(
        &datacenter,
        "undelete_grace = \"0s\"\ncollect_grace = \"0s\"\ncollect_every = \"never\"\ncompact_below = 100",
    );
    datacenter.restart();
    let wan = Wan::new("dsl", datacenter.link_port);
    let first = Disk::make(lab.path("first.raw"), 16 * MIB, 72);
    let second = first.edited(lab.path("second.raw"), 200, 73);
    datacenter.create("debian");
    datacenter.publish("debian", &first.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian@1", "");
    branch.wait_complete("debian", 1, Duration::from_secs(60));
    datacenter.publish("debian", &second.path);
    let refused = datacenter.splice("version delete debian@1");
    refused.refused(&["debian@1 is in use", "pool office at branch a runs it"]);
    assert_eq!(refused.code, Some(4));

    datacenter.assign("a", "office", "debian@2", "");
    branch.wait_complete("debian", 2, Duration::from_secs(60));
    wait_for(
        "the branch to tell that it knows",
        Duration::from_secs(60),
        || datacenter.splice("version delete debian@1").succeeded(),
    );
    let before = bytes(&packs(&datacenter));
    let rehearsal = datacenter.json("store gc --dry-run");
    assert!(
        rehearsal["result"]["collect"]["condemned"].as_u64() == Some(0),
        "not given up yet"
    );
    let pool = branch.export("pool/office");
    let condemned = datacenter.json("store gc");
    assert_eq!(condemned["result"]["collect"]["purged_versions"], 1);
    assert!(condemned["result"]["collect"]["condemned"].as_u64() > Some(0));
    pool.assert_same(&second.path);
    let erased = datacenter.json("store gc");
    assert_eq!(
        erased["result"]["collect"]["erased"],
        condemned["result"]["collect"]["condemned"]
    );
    assert!(bytes(&packs(&datacenter)) < before);
    datacenter.verify("debian@2");
    assert!(!datacenter.has_version("debian", 1));
    pool.assert_same(&second.path);
    // A branch that has nothing yet gets all of it.
    let mut other = Branch::join(&lab, &datacenter, "b", &wan.address());
    datacenter.assign("b", "office", "debian@2", "");
    other.wait_complete("debian", 2, Duration::from_secs(60));
    other.export("pool/office").assert_same(&second.path);
}

#[test]
fn a_version_becomes_a_file_that_others_read() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let disk = Disk::make(lab.path("disk.raw"), 24 * MIB, 74);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    for format in ["raw", "qcow2"] {
        let file = lab.path(&format!("out.{format}"));
        let words = format!(
            "version export debian@1 {} --format {format}",
            file.display()
        );
        datacenter.splice(&words).ok();
        is_same(&file, format, &disk.path);
        datacenter.splice(&words).refused(&["it exists"]);
    }
    let file = lab.path("out.qcow2");
    run("qemu-img", &["check", text(&file)], Duration::from_secs(60)).ok();
    // What came out goes in again, and nothing has changed.
    datacenter
        .splice(&format!("version publish debian {}", file.display()))
        .refused(&["nothing changed"]);
}
