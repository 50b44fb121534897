//! A whole desktop's disk crosses an office line and a satellite, from a raw file and from a qcow2 one, and is the same at the branch.
//!
//! Too long for every run: `./x lab compare` makes the disks and starts it, with `SPLICE_DISKS` naming their folder.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use scenarios::{Branch, Datacenter, Lab, Wan};

/// 1.4 GB compressed take nine minutes at 20 Mbit/s; others may want the machine as well.
const FILL: Duration = Duration::from_secs(3600);
/// Reading 10 GiB, most of it holes, with every check.
const COMPARE: Duration = Duration::from_secs(900);

fn disk(name: &str) -> PathBuf {
    let folder = std::env::var_os("SPLICE_DISKS").expect("SPLICE_DISKS names a folder of disks");
    Path::new(&folder).join(name)
}

#[test]
#[ignore = "takes ten minutes and a 10 GiB disk; ./x lab compare"]
fn a_desktops_disk_is_the_same_at_the_branch_whatever_file_and_line_it_came_by() {
    let raw = disk("desktop-v1.raw");
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    for format in ["raw", "qcow2"] {
        let begun = Instant::now();
        datacenter.create(format);
        datacenter.publish(format, &disk(&format!("desktop-v1.{format}")));
        println!(
            "{format}: published in {:.1} s",
            begun.elapsed().as_secs_f64()
        );
    }
    let compare = |format: &str, profile: &str| {
        let begun = Instant::now();
        let wan = Wan::new(profile, datacenter.link_port);
        let name = format!("{format}-{profile}");
        let mut branch = Branch::join(&lab, &datacenter, &name, &wan.address());
        datacenter.assign(&name, "office", format, "");
        branch.wait_for_pool("office", format, 1);
        branch.wait_complete(format, 1, FILL);
        let filled = begun.elapsed().as_secs_f64();
        let received = branch.number("/counters/received_bytes");
        let mut export = branch.export("pool/office");
        export.limit = COMPARE;
        export.assert_same(&raw);
        println!(
            "{name}: {:.1} MB in {filled:.0} s; identical",
            received as f64 / 1e6
        );
    };
    std::thread::scope(|scope| {
        for format in ["raw", "qcow2"] {
            for profile in ["dsl", "vsat-geo"] {
                let compare = &compare;
                scope.spawn(move || compare(format, profile));
            }
        }
    });
}
