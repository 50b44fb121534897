//! Either daemon is killed (-9) at any moment of publish, fill, read and write; it is started again and the flow goes on. At the end
//! nothing is lost that was promised: versions are intact, disks are identical, flushed writes read back.
//!
//! `SPLICE_KILLS` sets how often (50), `SPLICE_SEED` plays a run again.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use scenarios::datacenter::Background;
use scenarios::disk::read;
use scenarios::{Branch, Datacenter, Disk, Lab, MIB, Rng, Wan, wait_for};

const SIZE: u64 = 48 * MIB;
/// What one write of the desktop covers.
const BLOCK: u64 = 64 << 10;
/// Parts of the flow, each killed into a like number of times: publish, fill with reads, desktop writes; for two versions.
const PARTS: u64 = 6;

struct Flow {
    rng: Rng,
    datacenter: Datacenter,
    branch: Branch,
    kills_left: u64,
    kills: u64,
    begun: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Datacenter,
    Branch,
}

impl Flow {
    /// Kills one of the daemons after a pause and starts it again. `datacenter_percent` says how often it is the datacenter.
    fn kill_one(&mut self, during: &str, pause_max_ms: u64, datacenter_percent: u64) -> Victim {
        let pause = self.rng.pause(pause_max_ms);
        std::thread::sleep(pause);
        let victim = if self.rng.below(100) < datacenter_percent {
            self.datacenter.daemon().kill();
            self.datacenter.restart();
            Victim::Datacenter
        } else {
            self.branch.daemon().kill();
            self.branch.restart();
            Victim::Branch
        };
        self.kills += 1;
        self.kills_left = self.kills_left.saturating_sub(1);
        println!(
            "{:>6.1} s  kill {} of the {victim:?} during {during}, {} ms in",
            self.begun.elapsed().as_secs_f64(),
            self.kills,
            pause.as_millis(),
        );
        victim
    }

    /// How many kills belong to one of the `parts` that are left.
    fn share(&self, parts: u64) -> u64 {
        self.kills_left.div_ceil(parts)
    }

    /// Publishes; what a kill interrupted is run again, as an operator would.
    fn publish(&mut self, number: u64, file: &Path, kills: u64) {
        let words = format!("version publish debian {} --json", file.display());
        let mut done = false;
        for _ in 0..kills {
            let mut command = self.datacenter.background(&words);
            let victim = self.kill_one("publish", 250, 75);
            if !command.has_ended() && victim == Victim::Datacenter {
                // The operation died with its daemon; the command must notice.
                wait_for(
                    "an orphaned publish to end",
                    Duration::from_secs(60),
                    || command.has_ended(),
                );
            }
            let ran = command.end();
            // It may have become visible although its command did not hear of that; the other way around is a defect.
            done = self.datacenter.has_version("debian", number);
            assert!(done || !ran.succeeded(), "{ran:?}, yet no debian@{number}");
            if done {
                break;
            }
        }
        if !done {
            let published = self.datacenter.publish("debian", file);
            assert_eq!(published["number"], number, "{published}");
        }
        self.datacenter.verify(&format!("debian@{number}"));
    }

    /// The branch fills while a client copies the pool's disk; a copy that is whole must be right.
    fn fill(&mut self, number: u64, disk: &Disk, lab: &Lab, kills: u64) {
        self.datacenter
            .assign("a", "office", &format!("debian@{number}"), "");
        let copy = lab.path(&format!("copy-{number}"));
        let mut copying: Option<Background> = None;
        for _ in 0..kills {
            let pool = self.branch.export("pool/office");
            if copying.is_none()
                && self.branch.residency("debian", number).is_some()
                && pool.is_there()
            {
                let _ = std::fs::remove_file(&copy);
                copying = Some(pool.copy_in_background(&copy));
            }
            let victim = self.kill_one("fill", 1200, 35);
            // A copy outlives the datacenter, and goes on when that is back; its own server it does not outlive, unless it was done.
            if let Some(ended) =
                copying.take_if(|copy| victim == Victim::Branch || copy.has_ended())
            {
                judge(ended, number, &copy, disk);
            }
        }
        if let Some(ended) = copying {
            judge(ended, number, &copy, disk);
        }
        self.branch
            .wait_complete("debian", number, Duration::from_secs(120));
        self.branch.wait_for_pool("office", "debian", number);
        self.branch.export("pool/office").assert_same(&disk.path);
    }

    /// A client writes to the desktop with flushes while the branch is killed.
    fn write(&mut self, desktop: &mut Written, kills: u64) {
        let export = self.branch.export(&format!("desktop/{}", desktop.name));
        for _ in 0..kills {
            let writing = desktop.next_writes(&mut self.rng);
            let commands: Vec<_> = writing
                .iter()
                .flat_map(|(block, pattern)| {
                    let write = format!("write -P {pattern} {} {BLOCK}", block * BLOCK);
                    [write, "flush".to_owned()]
                })
                .collect();
            let io = std::thread::spawn({
                let export = export.clone();
                move || export.io(&commands)
            });
            self.kill_one("desktop writes", 250, 10);
            // A client without reconnection ends when its server is killed; what it did not hear of may or may not be there.
            desktop.heard(&writing, io.join().unwrap().succeeded());
            let (block, pattern) = (self.rng.below(desktop.blocks()), 1 + self.rng.below(255));
            let sure = [
                format!("write -P {pattern} {} {BLOCK}", block * BLOCK),
                "flush".to_owned(),
            ];
            export.io(&sure).ok();
            desktop.heard(&[(block, pattern as u8)], true);
        }
    }
}

/// A copy that is whole must be right. The pool may have been at the version before when a copy of the second began.
fn judge(copying: Background, number: u64, copy: &Path, disk: &Disk) {
    if copying.end().succeeded() && number == 1 {
        assert!(read(copy) == disk.bytes(), "the copy differs");
    }
}

/// What a desktop's disk may hold, block by block.
struct Written {
    name: String,
    base: Vec<u8>,
    /// Of each written block: the patterns that any of its bytes may have, and whether it may still be the base's.
    blocks: std::collections::BTreeMap<u64, (Vec<u8>, bool)>,
    flushed: u64,
}

impl Written {
    fn blocks(&self) -> u64 {
        self.base.len() as u64 / BLOCK
    }

    fn next_writes(&self, rng: &mut Rng) -> Vec<(u64, u8)> {
        let mut writes: Vec<(u64, u8)> = Vec::new();
        while writes.len() < 12 {
            let block = rng.below(self.blocks());
            if writes.iter().all(|(other, _)| *other != block) {
                writes.push((block, 1 + rng.below(255) as u8));
            }
        }
        writes
    }

    fn heard(&mut self, writes: &[(u64, u8)], flushed: bool) {
        for (block, pattern) in writes {
            let may_be = self.blocks.entry(*block).or_insert((Vec::new(), true));
            if flushed {
                *may_be = (Vec::new(), false);
                self.flushed += 1;
            }
            may_be.0.push(*pattern);
        }
    }

    fn check(&self, disk: &[u8]) {
        assert_eq!(disk.len(), self.base.len());
        for block in 0..self.blocks() {
            let range = (block * BLOCK) as usize..((block + 1) * BLOCK) as usize;
            let (is, was) = (&disk[range.clone()], &self.base[range]);
            let Some((patterns, or_base)) = self.blocks.get(&block) else {
                assert!(is == was, "{}: block {block} was never written", self.name);
                continue;
            };
            let wrong = is
                .iter()
                .zip(was)
                .position(|(is, was)| !(patterns.contains(is) || *or_base && is == was));
            assert_eq!(
                wrong, None,
                "{}: block {block} may hold {patterns:?} (or its base: {or_base})",
                self.name
            );
        }
    }
}

#[test]
fn nothing_promised_is_lost_when_daemons_are_killed() {
    let rng = Rng::from_environment("kill");
    let kills = std::env::var("SPLICE_KILLS").map_or(50, |text| text.parse().unwrap());
    let lab = Lab::new();
    let datacenter = Datacenter::start(&lab);
    let wan = Wan::new("dsl", datacenter.link_port);
    let v1 = Disk::make(lab.path("v1.raw"), SIZE, 31);
    let v2 = v1.edited(lab.path("v2.raw"), 60, 32);
    datacenter.create("debian");
    let branch = Branch::join(&lab, &datacenter, "a", &wan.address());
    let mut flow = Flow {
        rng,
        datacenter,
        branch,
        kills_left: kills,
        kills: 0,
        begun: Instant::now(),
    };
    let mut desktops = Vec::new();
    for (number, disk) in [(1, &v1), (2, &v2)] {
        let left = PARTS - 3 * (number - 1);
        let share = flow.share(left);
        flow.publish(number, &disk.path, share);
        let share = flow.share(left - 1);
        flow.fill(number, disk, &lab, share);
        let mut desktop = Written {
            name: format!("x{number}"),
            base: disk.bytes(),
            blocks: std::collections::BTreeMap::new(),
            flushed: 0,
        };
        flow.branch.start_desktop("office", &desktop.name);
        let share = flow.share(left - 2);
        flow.write(&mut desktop, share);
        desktops.push(desktop);
    }
    assert_eq!(flow.kills, kills);

    for (number, disk) in [(1, &v1), (2, &v2)] {
        flow.datacenter.verify(&format!("debian@{number}"));
        let version = flow
            .datacenter
            .json(&format!("version show debian@{number}"));
        let name = format!("version/{}", version["id"].as_str().unwrap());
        flow.branch.export(&name).assert_same(&disk.path);
    }
    for desktop in &desktops {
        assert!(desktop.flushed > 0);
        let copy = lab.path("desktop.raw");
        let export = flow.branch.export(&format!("desktop/{}", desktop.name));
        export.copy(&copy).ok();
        desktop.check(&read(&copy));
    }
    let log = flow.branch.daemon().log();
    assert!(!log.contains("chunk quarantined"), "a kill damaged a cache");
    // Both end in good order, and what they wrote opens once more.
    flow.branch.daemon().stop();
    flow.datacenter.daemon().stop();
    flow.datacenter.restart();
    flow.branch.restart();
    flow.branch.export("pool/office").assert_same(&v2.path);
}
