//! One disk in many formats, over lines of many kinds: what a branch offers is the disk that was published, byte for byte.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan};

#[test]
fn the_format_of_a_file_does_not_matter_and_a_filled_branch_has_the_same_disk() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 24 * MIB, 11);
    let files = [
        disk.path.clone(),
        disk.convert(lab.path("v3.qcow2"), &["-O", "qcow2"]),
        disk.convert(
            lab.path("v2.qcow2"),
            &["-O", "qcow2", "-o", "compat=0.10,cluster_size=4096"],
        ),
        disk.convert(lab.path("packed.qcow2"), &["-O", "qcow2", "-c"]),
    ];
    let mut root = None;
    for (index, file) in files.iter().enumerate() {
        let image = format!("image{index}");
        datacenter.create(&image);
        let published = datacenter.publish(&image, file);
        if index > 0 {
            assert_eq!(published["new_chunks"], 0, "{published}");
        }
        let version = datacenter.json(&format!("version show {image}@1"));
        let disk_root = version["disk"]["root"].clone();
        assert!(disk_root.is_string());
        assert_eq!(root.get_or_insert(disk_root.clone()), &disk_root, "{image}");
    }
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "raw", "image0", "");
    datacenter.assign("a", "packed", "image3", "");
    branch.wait_complete("image0", 1, Duration::from_secs(60));
    branch.wait_complete("image3", 1, Duration::from_secs(60));
    for pool in ["raw", "packed"] {
        branch
            .export(&format!("pool/{pool}"))
            .assert_same(&disk.path);
    }
    // What must not be written says so, and goes on being what it was.
    let written = branch.export("pool/raw").io(&["write -P 7 0 4096".into()]);
    assert!(!written.succeeded(), "{written:?}");
    branch.export("pool/raw").assert_same(&disk.path);
}

#[test]
fn a_disk_of_which_nothing_is_there_is_read_on_demand() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 24 * MIB, 12);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "--no-prestage");
    branch.wait_for_pool("office", "debian", 1);
    assert!(!branch.is_complete("debian", 1), "nothing asked for it yet");
    branch.export("pool/office").assert_same(&disk.path);
    assert!(branch.number("/counters/demand_chunks") > 0);
    // And while a fill is under way, from a branch of its own.
    let mut filling = Branch::join(&lab, &datacenter, "b", &wan.address());
    datacenter.assign("b", "office", "debian", "");
    filling.wait_for_pool("office", "debian", 1);
    assert!(!filling.is_complete("debian", 1), "20 MB take 3 s here");
    filling.export("pool/office").assert_same(&disk.path);
    filling.wait_complete("debian", 1, Duration::from_secs(60));
    filling.export("pool/office").assert_same(&disk.path);
}

#[test]
fn a_satellite_line_is_slow_and_nothing_else() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("vsat-geo", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 6 * MIB, 13);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "");
    branch.wait_for_pool("office", "debian", 1);
    branch.export("pool/office").assert_same(&disk.path);
    branch.wait_complete("debian", 1, Duration::from_secs(90));
    branch.export("pool/office").assert_same(&disk.path);
}
