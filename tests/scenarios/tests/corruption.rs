//! Disks that lie: damage in a branch's cache is found, never served, and healed; damage at the datacenter is named and never served.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use scenarios::datacenter::text;
use scenarios::disk::{damage, read};
use scenarios::run::run;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Rng, Wan};

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == extension));
    files.sort();
    assert!(!files.is_empty(), "no .{extension} in {}", folder.display());
    files
}

/// Past a slab's header: its checks and its chunks.
const SLAB_HEADER: u64 = 4096;

fn damage_slabs(branch: &Branch, rng: &mut Rng) {
    let mut flipped = 0;
    for slab in files(&branch.data.join("cache/slabs"), "slab") {
        flipped += damage(&slab, SLAB_HEADER, 40, rng);
    }
    assert!(flipped >= 40, "only {flipped} blocks hold data");
}

#[test]
fn damage_in_a_branch_s_cache_is_never_served_and_is_healed() {
    let mut rng = Rng::from_environment("corruption");
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 24 * MIB, 51);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let more = ["--read-wait", "5"];
    let mut branch = Branch::join_with(&lab, &datacenter, "a", &wan.address(), &more);
    datacenter.assign("a", "office", "debian", "");
    branch.wait_complete("debian", 1, Duration::from_secs(60));
    let pool = branch.export("pool/office");

    // While it stands still.
    branch.daemon().stop();
    damage_slabs(&branch, &mut rng);
    branch.restart();
    branch.wait_link(true);
    pool.assert_same(&disk.path);
    let found = quarantines(&mut branch);
    assert!(found > 0);

    // While it runs.
    damage_slabs(&branch, &mut rng);
    pool.assert_same(&disk.path);
    let more = quarantines(&mut branch);
    assert!(more > found, "{more} after {found}");
    branch.wait_complete("debian", 1, Duration::from_secs(60));
    assert_eq!(branch.number("/cache/quarantined"), 0, "all are healed");

    // While the line is down nothing can heal it: a read fails in bounded time rather than be wrong.
    wan.cut();
    branch.wait_link(false);
    damage_slabs(&branch, &mut rng);
    let copy = lab.path("copy.raw");
    let refused = pool.copy(&copy);
    assert!(matches!(refused.code, Some(1..124)), "{refused:?}");
    assert!(branch.number("/cache/quarantined") > 0);
    wan.restore();
    branch.wait_link(true);
    pool.assert_same(&disk.path);
    assert_eq!(branch.number("/cache/quarantined"), 0, "all are healed");
}

/// How often the branch found a damaged chunk, as it logged it.
fn quarantines(branch: &mut Branch) -> usize {
    let log = branch.daemon().log();
    log.matches("chunk quarantined: it will be fetched again")
        .count()
}

#[test]
fn damage_at_the_datacenter_is_named_and_never_served() {
    let mut rng = Rng::from_environment("corruption");
    let lab = Lab::new();
    let mut datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 8 * MIB, 52);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    datacenter.verify("debian@1");

    datacenter.daemon().stop();
    let packs = files(&datacenter.data.join("store/packs"), "pack");
    let largest = packs.iter().max_by_key(|p| p.metadata().unwrap().len());
    // Not the pack's own header, whose loss would be another story.
    assert_eq!(damage(largest.unwrap(), 1 << 20, 2, &mut rng), 2);
    datacenter.restart();
    let verified = datacenter.splice("version verify debian@1");
    assert!(matches!(verified.code, Some(1..124)), "{verified:?}");
    let words = format!("{} {}", verified.out, verified.err);
    assert!(
        words.contains("damaged") && words.contains("debian@1"),
        "{words}"
    );

    let more = ["--read-wait", "5"];
    let mut branch = Branch::join_with(&lab, &datacenter, "a", &wan.address(), &more);
    datacenter.assign("a", "office", "debian", "--no-prestage");
    branch.wait_for_pool("office", "debian", 1);
    let copy = lab.path("copy.raw");
    // --salvage goes on after a failed read and leaves zeros there.
    let uri = branch.export("pool/office").uri();
    let arguments = [
        "convert",
        "--salvage",
        "-f",
        "raw",
        "-O",
        "raw",
        &uri,
        text(&copy),
    ];
    let salvaged = run("qemu-img", &arguments, Duration::from_secs(200));
    let (is, was) = (read(&copy), disk.bytes());
    assert_eq!(is.len(), was.len(), "{salvaged:?}");
    let mut lost = 0;
    for (block, (is, was)) in is.chunks(512).zip(was.chunks(512)).enumerate() {
        if is != was {
            assert!(is.iter().all(|byte| *byte == 0), "sector {block} is wrong");
            lost += 1;
        }
    }
    assert!(lost > 0, "the damage was not met: {salvaged:?}");
    assert!(lost < was.len() / 512 / 8, "two chunks, not {lost} sectors");

    // Publishing the same disk again stores the damaged chunks anew, and the branch gets them.
    datacenter
        .splice(&format!(
            "version publish debian {} --allow-same",
            disk.path.display()
        ))
        .ok();
    datacenter.verify("debian@1");
    branch.daemon().stop();
    branch.restart();
    branch.wait_for_pool("office", "debian", 1);
    branch.export("pool/office").assert_same(&disk.path);
}
