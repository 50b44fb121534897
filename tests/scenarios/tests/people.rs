//! People log in at a branch with the line up and cut, and what is decided at the datacenter about them reaches it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::branch::NEWS;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};

#[test]
fn a_user_logs_in_with_the_line_cut_and_one_who_was_refused_does_not_when_it_is_back() {
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let disk = Disk::make(lab.path("disk.raw"), 16 * MIB, 71);
    datacenter.create("debian");
    datacenter.publish("debian", &disk.path);
    let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    datacenter.assign("a", "office", "debian", "");
    branch.wait_complete("debian", 1, Duration::from_secs(60));

    let (right, wrong) = (lab.path("right"), lab.path("wrong"));
    std::fs::write(&right, "correct horse battery\n").unwrap();
    std::fs::write(&wrong, "wrong horse battery\n").unwrap();
    let people = ["alice", "bob", "carol"];
    for name in people {
        let add = format!("user add {name} --password-file {}", right.display());
        datacenter.splice(&add).ok();
    }
    datacenter.splice("group add staff").ok();
    datacenter.splice("group join staff alice bob").ok();
    datacenter.splice("entitle add office --group staff").ok();

    let log_in = |branch: &Branch, name: &str, password: &std::path::Path| {
        let words = format!(
            "branch-log-in {name} --password-file {}",
            password.display()
        );
        branch.splice(&words)
    };
    wait_for("the branch to know its people", NEWS, || {
        branch.status()["roster_counter"] == 1
    });
    assert!(log_in(&branch, "alice", &right).ok().contains("office"));
    log_in(&branch, "carol", &right).refused(&["wrong"]);

    wan.cut();
    branch.wait_link(false);
    assert!(log_in(&branch, "alice", &right).ok().contains("office"));
    log_in(&branch, "alice", &wrong).refused(&["wrong"]);
    // Also by a server that was started meanwhile; and what was guessed wrong is not forgotten.
    for _ in 0..4 {
        log_in(&branch, "bob", &wrong).refused(&["wrong"]);
    }
    branch.daemon().kill();
    branch.restart();
    log_in(&branch, "bob", &wrong).refused(&["wrong"]);
    log_in(&branch, "bob", &right).refused(&["locked"]);
    assert!(log_in(&branch, "alice", &right).ok().contains("office"));

    datacenter.splice("user set alice --disable").ok();
    assert!(
        log_in(&branch, "alice", &right).succeeded(),
        "it cannot know"
    );
    wan.restore();
    branch.wait_link(true);
    wait_for("what was decided to be known", NEWS, || {
        branch.status()["roster_counter"] == 2
    });
    log_in(&branch, "alice", &right).refused(&["wrong"]);
}
