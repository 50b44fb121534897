//! The datacenter is lost between two backups and restored elsewhere; its branches go on, before and after, by themselves.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::branch::NEWS;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};

const FILL: Duration = Duration::from_secs(120);

#[test]
fn branches_go_on_after_the_datacenter_is_lost_and_restored_elsewhere() {
    let lab = Lab::new();
    let mut lost = Datacenter::start(&lab);
    let wan = Wan::new("dsl", lost.link_port);
    let v1 = Disk::make(lab.path("v1.raw"), 24 * MIB, 61);
    let v2 = v1.edited(lab.path("v2.raw"), 40, 62);
    lost.create("debian");
    lost.create("other");
    lost.publish("debian", &v1.path);
    let mut a = Branch::join(&lab, &lost, "a", &wan.address());
    let mut b = Branch::join(&lab, &lost, "b", &wan.address());
    for branch in [&mut a, &mut b] {
        lost.assign(&branch.name, "office", "debian", "");
        branch.wait_complete("debian", 1, FILL);
    }
    let passphrase = lab.path("passphrase");
    std::fs::copy(lost.data.join("secrets/passphrase"), &passphrase).unwrap();

    // A backup beside a publish, and a second one that has little to do.
    let backup = lab.path("backup");
    let words = format!("store backup {}", backup.display());
    let publishing = lost.background(&format!("version publish other {}", v2.path.display()));
    lost.splice(&words).ok();
    publishing.end().ok();
    lost.splice(&words).ok();
    let third = lost.json(&words)["result"]["backup"].clone();
    assert_eq!(third["packs_copied"], 0, "{third}");
    let told = lost.splice(&format!("store backup {}", lost.data.join("x").display()));
    told.refused(&["inside the data folder", "another disk"]);

    // What nobody will remember: a version, an assignment of it, and a branch that joined.
    lost.publish("debian", &v2.path);
    lost.assign("a", "office", "debian@2", "");
    a.wait_complete("debian", 2, FILL);
    let mut c = Branch::join(&lab, &lost, "c", &wan.address());
    lost.assign("c", "office", "debian@1", "");
    c.wait_complete("debian", 1, FILL);

    lost.daemon().kill();
    std::fs::remove_dir_all(&lost.data).unwrap();
    a.export("pool/office").assert_same(&v2.path);

    let datacenter = lost.restore_in(&lab, "elsewhere", &backup, &passphrase);
    let show = |branch: &str| datacenter.json(&format!("branch show {branch}"));
    for branch in ["a", "b", "c"] {
        wait_for(format!("{branch} to come back"), NEWS, || {
            // c is adopted first, and known by its name when it has told it.
            let shown = datacenter.splice(&format!("branch show {branch} --json"));
            shown.succeeded() && shown.out.contains("\"online\": true")
        });
    }
    wait_for("c's assignment to be learned from c", NEWS, || {
        let shown = show("c");
        shown["ahead"].is_null() && shown["pools"][0]["version"] == "debian@1"
    });
    wait_for("a to be known to be ahead", NEWS, || {
        show("a")["ahead"]["lost_pools"][0] == "office"
    });
    assert!(show("b")["ahead"].is_null());
    let warnings = datacenter.json("status")["warnings"].to_string();
    assert!(warnings.contains("was restored"), "{warnings}");
    // Nothing was rolled back, and nobody asks for what was lost in vain.
    a.export("pool/office").assert_same(&v2.path);
    b.export("pool/office").assert_same(&v1.path);
    datacenter.verify("debian@1");
    datacenter.verify("other@1");

    // Central IT publishes what was lost again, and decides.
    datacenter.publish("debian", &v2.path);
    for name in ["a", "b"] {
        datacenter.assign(name, "office", "debian@2", "");
    }
    let id = datacenter.json("version show debian@2")["id"].clone();
    let export = format!("version/{}", id.as_str().unwrap());
    for branch in [&mut a, &mut b] {
        wait_for("the version to come again", NEWS, || {
            branch.daemon().check();
            branch.export(&export).is_there()
        });
        branch.export(&export).assert_same(&v2.path);
        branch.export("pool/office").assert_same(&v2.path);
    }
    assert!(show("a")["ahead"].is_null());

    // And the next backup goes on where the last one ended. `debian@2` brought nothing that `other@1` had not.
    let v3 = v1.edited(lab.path("v3.raw"), 50, 63);
    datacenter.publish("other", &v3.path);
    let fourth = datacenter.json(&words)["result"]["backup"].clone();
    assert_eq!(fourth["number"], 4, "{fourth}");
    assert!(fourth["packs_copied"].as_u64().unwrap() >= 1, "{fourth}");
}
