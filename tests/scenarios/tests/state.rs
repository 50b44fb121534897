//! What a desktop writes is at the datacenter a while later, always as a past state of its disk: whoever is killed, while the line is cut, when its lease is broken,
//! and when the branch's disk is an old copy. The oracle is the list of what was written.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::time::Duration;

use scenarios::branch::NEWS;
use scenarios::datacenter::text;
use scenarios::disk::read;
use scenarios::run::run;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Rng, Wan, wait_for};
use serde_json::Value;

const SIZE: u64 = 16 * MIB;
/// What one write of the desktop covers.
const BLOCK: u64 = 64 << 10;
/// A segment over the line, with a fence or a challenge before it.
const SENT: Duration = Duration::from_secs(180);
const DESKTOP: &str = "alice";

/// Everything that was written to a disk, in its order, one write at a time.
struct History {
    base: Vec<u8>,
    /// Block and pattern of each write.
    writes: Vec<(u64, u8)>,
    /// So many of them were acknowledged as flushed.
    flushed: usize,
}

fn range(block: u64) -> std::ops::Range<usize> {
    (block * BLOCK) as usize..((block + 1) * BLOCK) as usize
}

impl History {
    /// Notes `count` more writes and answers them as qemu-io's commands, each with a flush.
    fn draw(&mut self, rng: &mut Rng, count: usize) -> Vec<String> {
        let mut commands = Vec::with_capacity(2 * count);
        for _ in 0..count {
            let block = rng.below(SIZE / BLOCK);
            let pattern = 1 + (self.writes.len() % 255) as u8;
            self.writes.push((block, pattern));
            commands.push(format!("write -P {pattern} {} {BLOCK}", block * BLOCK));
            commands.push("flush".to_owned());
        }
        commands
    }

    /// After how many writes the disk was as `disk` is, `least` or more; it must have been.
    fn prefix(&self, disk: &[u8], least: usize) -> usize {
        assert_eq!(disk.len(), self.base.len());
        let blocks = 0..SIZE / BLOCK;
        let mut wrong: BTreeSet<u64> = blocks
            .filter(|block| disk[range(*block)] != self.base[range(*block)])
            .collect();
        let mut found = wrong.is_empty().then_some(0);
        for (index, (block, pattern)) in self.writes.iter().enumerate() {
            if disk[range(*block)].iter().all(|byte| byte == pattern) {
                wrong.remove(block);
            } else {
                wrong.insert(*block);
            }
            if wrong.is_empty() {
                found = Some(index + 1);
            }
        }
        let found = found.unwrap_or_else(|| panic!("no past state of the disk: {wrong:?} differ"));
        assert!(found >= least, "a state of {found} writes, not {least}");
        found
    }
}

/// A datacenter, a line, a branch, and a desktop there whose lease the branch holds.
struct World {
    rng: Rng,
    history: History,
    /// Newest snapshot that was compared, and how many writes it shows.
    compared: (u64, usize),
    branch: Branch,
    wan: Wan,
    datacenter: Datacenter,
    lab: Lab,
}

impl World {
    fn new(scenario: &str) -> Self {
        let rng = Rng::from_environment(scenario);
        let lab = Lab::new();
        let datacenter = Datacenter::start(&lab);
        let wan = Wan::new("dsl", datacenter.link_port);
        let disk = Disk::make(lab.path("disk.raw"), SIZE, 91);
        datacenter.create("debian");
        datacenter.publish("debian", &disk.path);
        let mut branch = Branch::join(&lab, &datacenter, "a", &wan.address());
        datacenter.assign("a", "office", "debian", "");
        branch.wait_complete("debian", 1, Duration::from_secs(60));
        branch.wait_for_pool("office", "debian", 1);
        let serve = format!("desktop start office --name {DESKTOP} --serve-only");
        branch.splice(&serve).ok();
        let world = Self {
            rng,
            history: History {
                base: disk.bytes(),
                writes: Vec::new(),
                flushed: 0,
            },
            compared: (0, 0),
            branch,
            wan,
            datacenter,
            lab,
        };
        wait_for("the desktop's lease", NEWS, || {
            world.line()["lease"] == "held"
        });
        world
    }

    fn desktop(&self) -> Value {
        let out = self
            .branch
            .splice(&format!("desktop show {DESKTOP} --json"));
        serde_json::from_str(&out.ok()).unwrap()
    }

    /// Its one volume, as its branch has it.
    fn line(&self) -> Value {
        self.desktop()["volumes"][0].clone()
    }

    fn volume(&self) -> String {
        self.line()["id"].as_str().unwrap().to_owned()
    }

    /// The same, as the datacenter has it.
    fn state(&self) -> Value {
        let words = format!("desktop-state show {}", self.volume());
        self.datacenter.json(&words)
    }

    fn state_command(&self, verb: &str, more: &str) -> String {
        let words = format!("desktop-state {verb} {} {more}", self.volume());
        self.datacenter.splice(&words).ok()
    }

    fn export(&self) -> scenarios::nbd::Export {
        self.branch.export(&format!("desktop/{DESKTOP}"))
    }

    /// Writes of the desktop, all of which are acknowledged.
    fn write(&mut self, count: usize) {
        let commands = self.history.draw(&mut self.rng, count);
        self.export().io(&commands).ok();
        self.history.flushed = self.history.writes.len();
    }

    /// A segment of what is flushed is wished for, and a snapshot of it.
    fn ask(&self) {
        let words = format!("desktop snapshot {DESKTOP}");
        self.branch.splice(&words).ok();
    }

    /// Waits until all that is flushed is at the datacenter.
    fn send(&self) {
        self.ask();
        wait_for("all of it to be at the datacenter", SENT, || {
            self.line()["behind_records"] == 0
        });
    }

    /// The disk at the branch.
    fn here(&self) -> Vec<u8> {
        let copy = self.lab.path("here.raw");
        let _ = std::fs::remove_file(&copy);
        self.export().copy(&copy).ok();
        read(&copy)
    }

    /// A snapshot's disk.
    fn exported(&self, number: u64) -> Vec<u8> {
        let file = self.lab.path(&format!("snapshot-{number}.raw"));
        self.state_command("export", &format!("{number} {}", file.display()));
        let bytes = read(&file);
        std::fs::remove_file(&file).unwrap();
        bytes
    }

    /// The disk at the datacenter now.
    fn there(&self) -> Vec<u8> {
        let words = format!("desktop-state snapshot {}", self.volume());
        let snapshot = self.datacenter.json(&words);
        self.exported(snapshot["number"].as_u64().unwrap())
    }

    /// Every snapshot is a past state of the disk, none older than one before it.
    fn compare_snapshots(&mut self) {
        let state = self.state();
        for snapshot in state["snapshots"].as_array().unwrap() {
            let number = snapshot["number"].as_u64().unwrap();
            let (newest, writes) = self.compared;
            if number > newest {
                let writes = self.history.prefix(&self.exported(number), writes);
                self.compared = (number, writes);
            }
        }
    }

    /// The branch was killed while it took writes: those that came to nothing are no part of the history.
    fn settle(&mut self) {
        let disk = self.here();
        let found = self.history.prefix(&disk, self.history.flushed);
        self.history.writes.truncate(found);
        self.history.flushed = found;
    }

    fn has_event(&self, event: &str) -> bool {
        let entries = self.datacenter.json("audit");
        let mut entries = entries.as_array().unwrap().iter();
        entries.any(|entry| entry["event"] == event)
    }

    /// Waits until the desktop is stopped for want of a right, and its fork is whole; answers the fork's name.
    fn wait_for_fork(&self) -> String {
        wait_for("the desktop to be stopped", SENT, || {
            self.desktop()["state"] == "stopped" || self.desktop()["state"] == "failed"
        });
        assert!(!self.export().is_there(), "it must not go on being written");
        wait_for("the fork to be whole", SENT, || {
            self.state()["forks"][0]["whole"] == true
        });
        let state = self.state();
        assert_eq!(state["forks"].as_array().unwrap().len(), 1, "{state}");
        state["forks"][0]["name"].as_str().unwrap().to_owned()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Branch,
    Datacenter,
    Line,
}

#[test]
fn what_a_desktop_flushes_comes_as_a_prefix_whoever_is_killed_and_while_the_line_is_cut() {
    let mut world = World::new("state");
    world.write(8);
    world.send();
    world.compare_snapshots();
    let round = [Fault::Branch, Fault::Datacenter, Fault::Line];
    for fault in [round, round].concat() {
        // A segment is under way, and the next one's writes come in.
        world.write(12);
        world.ask();
        let commands = world.history.draw(&mut world.rng, 24);
        let export = world.export();
        let writing = std::thread::spawn(move || export.io(&commands));
        std::thread::sleep(world.rng.pause(600));
        match fault {
            Fault::Branch => {
                world.branch.daemon().kill();
                world.branch.restart();
            }
            Fault::Datacenter => {
                world.datacenter.daemon().kill();
                world.datacenter.restart();
            }
            Fault::Line => {
                world.wan.cut();
                world.branch.wait_link(false);
            }
        }
        let ran = writing.join().unwrap();
        if ran.succeeded() {
            world.history.flushed = world.history.writes.len();
        } else {
            assert_eq!(fault, Fault::Branch, "{ran:?}");
        }
        world.settle();
        if fault == Fault::Line {
            // Nobody at the branch notices, and it says what its loss would cost.
            world.write(6);
            world.ask();
            let line = world.line();
            assert!(line["behind_records"].as_u64() > Some(0), "{line}");
            assert_eq!(line["lease"], "held", "{line}");
            world.wan.restore();
        }
        world.branch.wait_link(true);
        world.compare_snapshots();
    }
    world.send();
    world.compare_snapshots();
    let there = world.there();
    let all = world.history.writes.len();
    assert_eq!(world.history.prefix(&there, all), all);
    assert!(there == world.here(), "the two ends differ");
    let state = world.state();
    assert_eq!(state["forks"], serde_json::json!([]), "{state}");
    assert_eq!(state["volume"]["lease"]["generation"], 1, "{state}");
}

#[test]
fn a_broken_lease_stops_the_desktop_and_its_writes_come_as_a_fork() {
    let mut world = World::new("state_break");
    world.write(10);
    world.send();
    let sent = world.history.writes.len();
    let volume = world.volume();
    world.wan.cut();
    world.branch.wait_link(false);
    world.write(10);
    let words = format!("desktop-state break-lease {volume} --reason carol:burnt");
    world.datacenter.splice(&words).refused(&["--force"]);
    world.datacenter.splice(&format!("{words} --force")).ok();
    // It does not know, and goes on: that is what a fork is for.
    world.write(5);
    let all = world.history.writes.len();
    let here = world.here();
    world.wan.restore();
    world.branch.wait_link(true);
    // The next question may be minutes away. The desktop may have been stopped before this asks.
    let hurry = format!("desktop snapshot {DESKTOP}");
    let _ = world.branch.splice(&hurry);
    let fork = world.wait_for_fork();
    let desktop = world.desktop();
    assert!(desktop["error"].to_string().contains("fork"), "{desktop}");
    let start = format!("desktop start office --name {DESKTOP} --serve-only");
    let state = world.state();
    assert!(state["volume"]["lease"].is_null(), "{state}");
    assert!(world.has_event("lease_broken"));
    // What was there is as it was; what came is beside it until IT decides.
    assert_eq!(world.history.prefix(&world.there(), sent), sent);
    let restore = format!("desktop-state fork restore {volume} {fork} --reason carol:found");
    world.datacenter.splice(&restore).ok();
    let there = world.there();
    assert_eq!(world.history.prefix(&there, all), all);
    assert!(there == here, "the fork is not what the branch had");
    assert!(world.has_event("fork_restored"));
    // It goes on behind what was restored, under another generation, and that comes from the datacenter.
    wait_for("the desktop to go on", SENT, || {
        world.branch.daemon().check();
        world.branch.splice(&start).succeeded()
    });
    assert!(world.here() == here, "it goes on behind another state");
    let line = world.line();
    assert_eq!(line["lease"], "held", "{line}");
    assert_eq!(line["generation"], 2, "{line}");
}

#[test]
fn a_branch_that_is_restored_from_an_old_copy_is_fenced() {
    let mut world = World::new("state_copy");
    world.write(10);
    world.send();
    // As a backup tool does it, between two days.
    world.branch.daemon().stop();
    let (data, old) = (world.branch.data.clone(), world.lab.path("old"));
    let minute = Duration::from_secs(60);
    run("cp", &["-a", text(&data), text(&old)], minute).ok();
    let old_writes = world.history.writes.len();
    world.branch.restart();
    world.branch.wait_link(true);
    world.write(10);
    world.send();
    let newest = world.here();
    let all = world.history.writes.len();

    // The server's disk is lost; somebody puts the copy back.
    world.branch.daemon().kill();
    std::fs::rename(&data, world.lab.path("lost")).unwrap();
    std::fs::rename(&old, &data).unwrap();
    world.wan.cut();
    world.branch.restart();
    assert_eq!(world.history.prefix(&world.here(), 0), old_writes);
    // Its user works on the older state, in good faith.
    let write = ["write -P 0xee 0 64k".to_owned(), "flush".to_owned()];
    world.export().io(&write).ok();
    world.ask();
    world.wan.restore();
    world.branch.wait_link(true);

    let fork = world.wait_for_fork();
    assert!(world.has_event("old_copy"));
    // Not a byte of the older state is in the newest one.
    let there = world.there();
    assert_eq!(world.history.prefix(&there, all), all);
    assert!(there == newest, "the old copy changed what was there");
    let reason = "--reason carol:worthless";
    world.state_command("fork discard", &format!("{fork} {reason}"));
    assert!(world.has_event("fork_discarded"));
    assert_eq!(world.state()["forks"], serde_json::json!([]));
}
