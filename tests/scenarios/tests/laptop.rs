//! Laptops: a desktop is checked out, runs without a line and comes back; what is lost is wiped. The guests are this test, over NBD.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use scenarios::datacenter::text;
use scenarios::run::{program, run_path};
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Wan, wait_for};
use serde_json::Value;

/// What a branch and its datacenter agree on by themselves.
const NEWS: Duration = Duration::from_secs(120);
const COMMAND: Duration = Duration::from_secs(60);
const START: &str = "desktop start office --name alice --serve-only";

struct World {
    office: Branch,
    laptop: Branch,
    wan: Wan,
    datacenter: Datacenter,
    _lab: Lab,
}

/// What a branch tells of a desktop, if it has it.
fn shown(branch: &Branch, name: &str) -> Option<Value> {
    let ran = branch.splice(&format!("desktop show {name} --json"));
    ran.succeeded()
        .then(|| serde_json::from_str(&ran.out).unwrap())
}

fn volumes(branch: &Branch, name: &str) -> Vec<Value> {
    let shown = shown(branch, name).unwrap_or_default();
    shown["volumes"].as_array().cloned().unwrap_or_default()
}

fn io(branch: &Branch, export: &str, command: &str) {
    let commands = [command.to_owned(), "flush".to_owned()];
    let said = branch.export(export).io(&commands).ok();
    assert!(!said.contains("failed"), "{export}, {command}: {said}");
}

fn wait_written_back(branch: &Branch, name: &str) {
    branch.splice(&format!("desktop snapshot {name}")).ok();
    wait_for("all of it to be at the datacenter", NEWS, || {
        let volumes = volumes(branch, name);
        !volumes.is_empty() && volumes.iter().all(|volume| volume["behind_records"] == 0)
    });
}

/// Starts it once its branch has it again.
fn wait_started(branch: &Branch) {
    wait_for("the desktop to start", NEWS, || {
        branch.splice(START).succeeded()
    });
}

impl World {
    /// Alice has written at the office, and there is a laptop.
    fn new() -> Self {
        let lab = Lab::new();
        let datacenter = Datacenter::start(&lab);
        let wan = Wan::new("lan", datacenter.link_port);
        let disk = Disk::make(lab.path("disk.raw"), 4 * MIB, 45);
        datacenter.create("debian");
        datacenter.publish("debian", &disk.path);
        let address = format!("127.0.0.1:{}", datacenter.link_port);
        let mut office = Branch::join(&lab, &datacenter, "a", &address);
        datacenter.assign("a", "office", "debian", "--user-volume 64MiB");
        office.wait_complete("debian", 1, NEWS);
        office.wait_for_pool("office", "debian", 1);
        // What it is said to be stays with the token that it joins by.
        datacenter.splice("branch token lap --laptop").ok();
        let laptop = Branch::join(&lab, &datacenter, "lap", &wan.address());
        office.splice(START).ok();
        wait_for("the leases", NEWS, || {
            let volumes = volumes(&office, "alice");
            volumes.len() == 2 && volumes.iter().all(|volume| volume["lease"] == "held")
        });
        io(&office, "desktop/alice", "write -P 0x11 1M 256k");
        io(&office, "user/alice", "write -P 0x22 2M 128k");
        Self {
            office,
            laptop,
            wan,
            datacenter,
            _lab: lab,
        }
    }

    /// Has alice go to the laptop, until all of it is there.
    fn check_out(&self) {
        let words = "laptop check-out a alice --to lap --for 7d --reason carol:travels";
        let made = self.datacenter.json(words);
        assert_eq!(made["stage"], "waiting", "{made}");
        self.office.splice("desktop stop alice").ok();
        wait_for("all of it to be at the laptop", NEWS, || {
            shown(&self.laptop, "alice").is_some_and(|d| d["checkout"]["missing_bytes"] == 0)
        });
    }

    fn cut(&mut self) {
        self.wan.cut();
        self.laptop.wait_link(false);
    }

    fn done(&self, branch: &str) -> bool {
        let orders = self.datacenter.json(&format!("branch wipes {branch}"));
        assert_eq!(orders.as_array().unwrap().len(), 1, "{orders}");
        orders[0]["done_unix_s"].is_u64()
    }
}

#[test]
fn a_desktop_runs_at_a_laptop_without_a_line_and_comes_back_with_what_was_written() {
    let mut world = World::new();
    world.check_out();
    world.cut();
    world.laptop.daemon().kill();
    world.laptop.restart();
    world.laptop.splice(START).ok();
    io(&world.laptop, "desktop/alice", "read -P 0x11 1M 256k");
    io(&world.laptop, "user/alice", "read -P 0x22 2M 128k");
    io(&world.laptop, "user/alice", "write -P 0x33 4M 4k");
    world.office.splice(START).refused(&["checked out to lap"]);
    world
        .laptop
        .splice("desktop delete alice")
        .refused(&["alice"]);

    world.laptop.splice("desktop stop alice").ok();
    world.laptop.splice("desktop check-in alice").ok();
    world.laptop.splice(START).refused(&["being checked in"]);
    world.wan.restore();
    wait_for("it to have left the laptop", NEWS, || {
        shown(&world.laptop, "alice").is_none()
    });
    wait_started(&world.office);
    let checkouts = world.datacenter.json("laptop list");
    assert_eq!(checkouts, Value::Array(vec![]));
    io(&world.office, "desktop/alice", "read -P 0x11 1M 256k");
    io(&world.office, "user/alice", "read -P 0x22 2M 128k");
    io(&world.office, "user/alice", "read -P 0x33 4M 4k");
}

#[test]
fn a_lost_laptop_destroys_its_keys_at_its_next_contact_and_its_desktop_goes_on_at_the_office() {
    let mut world = World::new();
    world.check_out();
    world.laptop.splice(START).ok();
    io(&world.laptop, "user/alice", "write -P 0x33 4M 4k");
    wait_written_back(&world.laptop, "alice");
    world.cut();
    io(&world.laptop, "user/alice", "write -P 0x44 6M 4k");
    world
        .datacenter
        .splice("branch wipe lap --reason carol:taxi")
        .ok();
    assert!(!world.done("lap"));
    // Who found it starts it, without a line and with one.
    world.laptop.daemon().kill();
    world.laptop.restart();
    world.wan.restore();
    wait_for("the order to be done", NEWS, || world.done("lap"));
    wait_for("the laptop to end", NEWS, || {
        world.laptop.daemon().ended().is_some()
    });
    let data = world.laptop.data.clone();
    for gone in [
        "keys/branch.key",
        "keys/unlock.key",
        "keys/cache.key",
        "keys/desktops/alice.key",
        "keys/desktops/alice.user.key",
        "identity/branch.key",
        "identity/realm.json",
        "desktops",
    ] {
        assert!(!data.join(gone).exists(), "{gone}");
    }
    let run = ["run", "--data", text(&data)];
    let again = run_path(&program("splice-branch"), &run, COMMAND);
    again.refused(&["destroyed by its datacenter's order"]);

    wait_started(&world.office);
    io(&world.office, "user/alice", "read -P 0x33 4M 4k");
    io(&world.office, "user/alice", "read -P 0 6M 4k");
    let audit = world.datacenter.json("audit").to_string();
    for event in ["checked_out", "wipe_ordered", "wiped"] {
        assert!(
            audit.contains(&format!("\"{event}\"")),
            "{event} in {audit}"
        );
    }
}

#[test]
fn one_desktop_is_wiped_while_it_is_used_and_the_others_go_on() {
    let world = World::new();
    let bob = "desktop start office --name bob --serve-only";
    world.office.splice(bob).ok();
    io(&world.office, "user/bob", "write -P 0x55 1M 4k");
    world
        .datacenter
        .splice("branch wipe a --desktop alice --reason carol:gone")
        .ok();
    wait_for("the order to be done", NEWS, || world.done("a"));
    assert!(shown(&world.office, "alice").is_none());
    let keys = world.office.data.join("keys/desktops");
    for gone in ["alice.key", "alice.user.key"] {
        assert!(!keys.join(gone).exists(), "{gone}");
    }
    io(&world.office, "user/bob", "read -P 0x55 1M 4k");
    // Under that name there is another one now.
    world.office.splice(START).ok();
    io(&world.office, "user/alice", "read -P 0 2M 128k");
}
