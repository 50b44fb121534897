//! The life of desktops: what is deleted or begins anew is leased by nobody, versions follow their pool where nothing is lost by it, and a desktop goes to
//! another branch with all that was written to it. The guests are this test, over NBD.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::disk::read;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};
use serde_json::Value;

/// What a branch and its datacenter agree on by themselves.
const NEWS: Duration = Duration::from_secs(120);
const SIZE: u64 = 4 * MIB;

struct World {
    branch: Branch,
    wan: Wan,
    datacenter: Datacenter,
    disk: Disk,
    lab: Lab,
}

impl World {
    fn new(pool: &str) -> Self {
        let lab = Lab::new();
        let datacenter = Datacenter::start(&lab);
        let wan = Wan::new("lan", datacenter.link_port);
        let disk = Disk::make(lab.path("disk.raw"), SIZE, 17);
        datacenter.create("debian");
        datacenter.publish("debian", &disk.path);
        let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
        datacenter.assign("a", "office", "debian", pool);
        branch.wait_complete("debian", 1, NEWS);
        branch.wait_for_pool("office", "debian", 1);
        Self {
            branch,
            wan,
            datacenter,
            disk,
            lab,
        }
    }

    fn held(&self) -> usize {
        let volumes = self.datacenter.json("desktop-state list");
        let volumes = volumes.as_array().unwrap().iter();
        volumes.filter(|volume| !volume["lease"].is_null()).count()
    }

    /// A version whose every part differs, at the branch.
    fn publish_second(&mut self) -> Disk {
        let second = Disk::make(self.lab.path("second.raw"), SIZE, 18);
        self.datacenter.publish("debian", &second.path);
        self.datacenter.assign("a", "office", "debian", "");
        self.branch.wait_for_pool("office", "debian", 2);
        second
    }
}

fn serve(branch: &Branch, name: &str) -> Value {
    let words = format!("desktop start office --name {name} --serve-only --json");
    serde_json::from_str(&branch.splice(&words).ok()).unwrap()
}

fn show(branch: &Branch, name: &str) -> Value {
    let out = branch.splice(&format!("desktop show {name} --json")).ok();
    serde_json::from_str(&out).unwrap()
}

fn io(branch: &Branch, export: &str, command: &str) -> String {
    let commands = [command.to_owned(), "flush".to_owned()];
    branch.export(export).io(&commands).ok()
}

fn wait_held(branch: &Branch, name: &str) {
    wait_for("the leases", NEWS, || {
        let shown = show(branch, name);
        let volumes = shown["volumes"].as_array().unwrap().clone();
        !volumes.is_empty() && volumes.iter().all(|volume| volume["lease"] == "held")
    });
}

#[test]
fn what_is_deleted_or_reset_is_leased_by_nobody_also_if_the_line_was_cut() {
    let mut world = World::new("--user-volume 64MiB");
    serve(&world.branch, "alice");
    wait_held(&world.branch, "alice");
    assert_eq!(world.held(), 2);
    let system = show(&world.branch, "alice")["volumes"][0]["id"].clone();
    io(&world.branch, "desktop/alice", "write -P 1 0 4k");
    world.branch.splice("desktop stop alice").ok();
    world.branch.splice("desktop reset alice").ok();
    let show = format!("desktop-state show {}", system.as_str().unwrap());
    wait_for("the former system to be nobody's", NEWS, || {
        world.datacenter.json(&show)["volume"]["lease"].is_null()
    });

    world.wan.cut();
    world.branch.wait_link(false);
    world.branch.splice("desktop delete alice").ok();
    world.branch.daemon().kill();
    world.branch.restart();
    assert!(world.held() > 0, "nobody can be told yet");
    world.wan.restore();
    world.branch.wait_link(true);
    wait_for("all of it to be nobody's", NEWS, || world.held() == 0);
    // What had come stays until IT deletes it.
    let volumes = world.datacenter.json("desktop-state list");
    assert!(volumes.as_array().unwrap().len() >= 2, "{volumes}");
}

#[test]
fn a_pooled_desktop_begins_anew_on_what_its_pool_runs_and_keeps_its_user_volume() {
    let mut world = World::new("--pooled --user-volume 64MiB");
    let first = serve(&world.branch, "alice");
    assert_eq!(first["pooled"], true, "{first}");
    wait_held(&world.branch, "alice");
    assert_eq!(world.held(), 1, "the user volume alone");
    io(&world.branch, "desktop/alice", "write -P 1 0 64k");
    io(&world.branch, "user/alice", "write -P 2 1M 4k");
    world.branch.splice("desktop stop alice").ok();
    serve(&world.branch, "alice");
    let system = world.branch.export("desktop/alice");
    system.assert_same(&world.disk.path);
    world.branch.splice("desktop stop alice").ok();
    let second = world.publish_second();
    let moved_on = serve(&world.branch, "alice");
    assert_eq!(moved_on["version_number"], 2, "{moved_on}");
    world
        .branch
        .export("desktop/alice")
        .assert_same(&second.path);
    let kept = io(&world.branch, "user/alice", "read -P 2 1M 4k");
    assert!(!kept.contains("failed"), "{kept}");
}

#[test]
fn a_persistent_desktop_stays_on_its_version_where_something_would_be_lost_and_says_so() {
    let mut world = World::new("");
    serve(&world.branch, "alice");
    serve(&world.branch, "bob");
    wait_held(&world.branch, "alice");
    io(&world.branch, "desktop/alice", "write -P 1 0 64k");
    for name in ["alice", "bob"] {
        world.branch.splice(&format!("desktop stop {name}")).ok();
    }
    let second = world.publish_second();
    let refused = world.branch.splice("desktop rebase alice");
    refused.refused(&["alice", "was written to", "reset"]);
    let stays = serve(&world.branch, "alice");
    assert_eq!(stays["version_number"], 1, "{stays}");
    assert!(
        stays["kept_back"].to_string().contains("written"),
        "{stays}"
    );
    let kept = io(&world.branch, "desktop/alice", "read -P 1 0 64k");
    assert!(!kept.contains("failed"), "{kept}");
    // To another one nothing was written, so nothing is lost.
    let follows = serve(&world.branch, "bob");
    assert_eq!(follows["version_number"], 2, "{follows}");
    world.branch.export("desktop/bob").assert_same(&second.path);
    world.branch.splice("desktop stop bob").ok();
    // And back, for this one alone.
    let back = world.branch.splice("desktop rebase bob --version debian@1");
    let out = back.ok();
    assert!(out.contains("debian@1"), "{out}");
    serve(&world.branch, "bob");
    let system = world.branch.export("desktop/bob");
    system.assert_same(&world.disk.path);
}

#[test]
fn a_desktop_goes_to_another_branch_with_all_that_was_written_and_back() {
    let mut world = World::new("--user-volume 64MiB");
    let address = format!("127.0.0.1:{}", world.datacenter.link_port);
    let mut other = Branch::join(&world.lab, &world.datacenter, "b", &address);
    world
        .datacenter
        .assign("b", "office", "debian", "--user-volume 64MiB");
    other.wait_for_pool("office", "debian", 1);
    serve(&world.branch, "alice");
    wait_held(&world.branch, "alice");
    io(&world.branch, "desktop/alice", "write -P 0x11 1M 256k");
    io(&world.branch, "user/alice", "write -P 0x22 2M 128k");
    let copy = world.lab.path("before.raw");
    world.branch.export("desktop/alice").copy(&copy).ok();

    let to_b = "desktop-state move alice --from a --to b --reason carol:moves";
    world.wan.cut();
    world.branch.wait_link(false);
    wait_for("the datacenter to notice", NEWS, || {
        world.datacenter.json("branch show a")["online"] == false
    });
    world.datacenter.splice(to_b).refused(&["not reachable"]);
    world.wan.restore();
    world.branch.wait_link(true);
    let begun = world.datacenter.json(&format!("{to_b} --no-wait"));
    assert_eq!(begun["state"], "leaving", "{begun}");
    // It goes on until its user is done with it; and nobody else can run it.
    io(&world.branch, "user/alice", "write -P 0x33 4M 4k");
    world.branch.splice("desktop stop alice").ok();
    world.datacenter.splice(to_b).ok();
    let there = serve(&other, "alice");
    assert_eq!(there["state"], "served", "{there}");
    let moved = world.lab.path("moved.raw");
    other.export("desktop/alice").copy(&moved).ok();
    assert!(read(&copy) == read(&moved), "the system is another one");
    for command in ["read -P 0x22 2M 128k", "read -P 0x33 4M 4k"] {
        let kept = io(&other, "user/alice", command);
        assert!(!kept.contains("failed"), "{command}: {kept}");
    }
    let gone = world
        .branch
        .splice("desktop start office --name alice --serve-only");
    gone.refused(&["another branch"]);

    // And back: killed on the way, it is somewhere all the same.
    io(&other, "user/alice", "write -P 0x44 6M 4k");
    other.splice("desktop stop alice").ok();
    let back = "desktop-state move alice --from b --to a --reason carol:back";
    world.datacenter.splice(&format!("{back} --no-wait")).ok();
    other.daemon().kill();
    world.datacenter.daemon().kill();
    world.datacenter.restart();
    other.restart();
    wait_for("both to be linked", NEWS, || {
        let both = ["a", "b"].map(|name| format!("branch show {name}"));
        both.iter()
            .all(|words| world.datacenter.json(words)["online"] == true)
    });
    world.datacenter.splice(back).ok();
    serve(&world.branch, "alice");
    let kept = io(&world.branch, "user/alice", "read -P 0x44 6M 4k");
    assert!(!kept.contains("failed"), "{kept}");
}
