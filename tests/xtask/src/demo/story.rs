//! The steps of the demo, in their order, and what makes each of them ok.
//!
//! A step is timed and its bytes counted here, around what it does. The first step that cannot be done ends the story;
//! one that is done but misses its mark is recorded as failed, and the story goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sim_wan::Profile;

use super::image::Disks;
use super::lab::{BRANCH_A, BRANCH_B, Lab, Site};
use super::process::stay_until_interrupted;
use super::rsync;
use super::serial::Console;
use super::splice::{Branch, Datacenter};
use super::wait::{Limit, tail};
use crate::report::{Boot, Comparison, Report, Step, mb};

const POOL: &str = "office";

/// A boot without hardware KVM takes 20 s on a quiet machine; a busy one takes its time.
const BOOT: Duration = Duration::from_secs(300);

/// One command in a guest.
const IN_GUEST: Duration = Duration::from_secs(60);

/// How long after its login prompt a boot may take to settle before nothing is told of it.
const SETTLED: Duration = Duration::from_secs(45);
/// Until a branch knows of an assignment, or notices that its line is back.
const NEWS: Duration = Duration::from_secs(60);

/// How often a waiting boot asks whether the desktop has failed meanwhile.
const ASK_EVERY: Duration = Duration::from_secs(3);

/// The boot is to need at most this share of what copying the disk would cost.
const BOOT_SHARE: f64 = 0.5;

/// An update is to need at most this many times rsync's bytes.
const RSYNC_RATIO: f64 = 1.1;

/// What the file in the guest says.
const NOTE: &str = "written-at-the-branch";

/// What there is to know of the guest in the disk.
pub(crate) struct Guest {
    /// What the console says when somebody may log in.
    pub(crate) prompt: String,
    /// Who may, and their password.
    pub(crate) login: Option<(String, String)>,
}

/// Whether a step is one of the demo's own, or something done between two of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Told,
    Between,
}

/// The story while it is told.
pub(crate) struct Story<'a> {
    lab: Lab,
    profile: Profile,
    disks: Disks,
    guest: Guest,
    report: &'a mut Report,
    datacenter: Option<Datacenter>,
    branches: Vec<Branch>,
}

impl<'a> Story<'a> {
    /// At its beginning.
    pub(crate) fn new(
        lab: Lab,
        profile: Profile,
        disks: Disks,
        guest: Guest,
        report: &'a mut Report,
    ) -> Self {
        Self {
            lab,
            profile,
            disks,
            guest,
            report,
            datacenter: None,
            branches: Vec::new(),
        }
    }

    /// From beginning to end.
    ///
    /// # Errors
    /// A step could not be done; the ones before it are in the report.
    pub(crate) fn tell(&mut self) -> anyhow::Result<()> {
        let image = if self.disks.bundled {
            "debian"
        } else {
            "desktop"
        };
        let versions = [format!("{image}@1"), format!("{image}@2")];
        self.progress("datacenter and branch A");
        self.datacenter = Some(Datacenter::start(&mut self.lab)?);
        self.with_datacenter(|datacenter, lab| datacenter.create_image(lab, image))?;
        self.join(BRANCH_A)?;

        self.publish("publish-v1", image, &self.disks.v1.clone())?;
        let mut first = self.first_boot(&versions[0])?;
        self.write_note(&mut first)?;
        self.step("fill-v1", Kind::Between, |story, step| story.fill(step, 1))?;
        let current = match self.disks.v2.clone() {
            Some(v2) => {
                self.update(image, &versions[1], &v2)?;
                self.step("boot-v2", Kind::Told, |story, step| {
                    story.boot(step, 0, "second", 2).map(drop)
                })?;
                2
            }
            None => {
                self.report.skipped = ["publish-v2", "prestage-v2", "boot-v2"]
                    .map(str::to_owned)
                    .to_vec();
                1
            }
        };
        self.offline(&mut first, current)?;
        self.second_branch(&versions[current as usize - 1], current)?;
        for version in &versions[..current as usize] {
            self.step(
                &format!("verify-v{}", &version[version.len() - 1..]),
                Kind::Between,
                |story, _| story.with_datacenter(|datacenter, lab| datacenter.verify(lab, version)),
            )?;
        }
        Ok(())
    }

    fn publish(&mut self, name: &str, image: &str, disk: &Path) -> anyhow::Result<()> {
        self.step(name, Kind::Told, |story, _| {
            story.with_datacenter(|datacenter, lab| datacenter.publish(lab, image, disk))
        })
    }

    /// A desktop of a version that the branch has nothing of, from the assignment to the login prompt.
    fn first_boot(&mut self, version: &str) -> anyhow::Result<Console> {
        self.step("boot-v1", Kind::Told, |story, step| {
            let wire = story.lab.wan.wire()?;
            story.assign(0, version, 1)?;
            let console = story.boot(step, 0, "first", 1)?;
            let used = story.lab.wan.wire()?.since(wire).total();
            let whole = story.report.image.compressed_bytes;
            let share = used as f64 / whole as f64;
            step.note = format!(
                "{:.0} % of the compressed disk had crossed the line at the prompt, kernel and initrd included",
                share * 100.0
            );
            // What share of an unknown disk its boot reads, nobody can promise.
            if share >= BOOT_SHARE && story.disks.bundled {
                step.ok = false;
                step.note += &format!("; less than {:.0} % is wanted", BOOT_SHARE * 100.0);
            }
            Ok(console)
        })
    }

    fn write_note(&mut self, console: &mut Console) -> anyhow::Result<()> {
        let Some((user, password)) = &self.guest.login else {
            return Ok(());
        };
        self.progress("writing a file in the desktop");
        console.log_in(user, password, IN_GUEST)?;
        console
            .run(&format!("echo {NOTE} > note && sync"), IN_GUEST)
            .map(drop)
    }

    /// Publishes, pre-stages and compares.
    fn update(&mut self, image: &str, version: &str, disk: &Path) -> anyhow::Result<()> {
        self.publish("publish-v2", image, disk)?;
        let ours = self.step("prestage-v2", Kind::Told, |story, step| {
            let wire = story.lab.wan.wire()?;
            story.assign(0, version, 2)?;
            story.fill(step, 2)?;
            Ok(story.lab.wan.wire()?.since(wire).total())
        })?;
        let peer = self.step("rsync-v2", Kind::Between, |story, _| {
            let limit = story.patience(story.report.image.compressed_bytes) * 4;
            let before = story.disks.v1.clone();
            rsync::update(&mut story.lab, &before, disk, limit)
        })?;
        let ratio = ours as f64 / peer.wire.total() as f64;
        self.report.rsync = Some(Comparison {
            seconds: peer.seconds,
            wire_bytes: peer.wire.total(),
            ratio,
            target: RSYNC_RATIO,
            // Of a pair of disks that we know nothing of, the ratio is only told.
            ok: ratio <= RSYNC_RATIO || !self.disks.bundled,
        });
        Ok(())
    }

    /// The line is cut: what is at the branch must be enough, for what runs and for what starts.
    fn offline(&mut self, first: &mut Console, number: u32) -> anyhow::Result<()> {
        self.lab.wan.cut(BRANCH_A.name)?;
        self.step("offline-boot", Kind::Told, |story, step| {
            story.boot(step, 0, "offline", number)?;
            if step.demand_chunks > 0 {
                step.ok = false;
                step.note =
                    "a desktop waited for chunks that the branch should have had".to_owned();
            }
            if story.guest.login.is_some() {
                let said = first
                    .run("cat note", IN_GUEST)
                    .context("reading the file back in the first desktop")?;
                if !said.contains(NOTE) {
                    bail!("the file written in the first desktop says: {said}");
                }
            }
            Ok(())
        })?;
        self.lab.wan.restore(BRANCH_A.name)?;
        self.step("reconnect", Kind::Between, |story, _| {
            story.branches[0].connected(&mut story.lab)
        })
    }

    fn second_branch(&mut self, version: &str, number: u32) -> anyhow::Result<()> {
        self.step("branch-b-boot", Kind::Told, |story, step| {
            story.join(BRANCH_B)?;
            story.assign(1, version, number)?;
            story.boot(step, 1, "first", number).map(drop)
        })?;
        self.note_boot_profile(1, "first");
        Ok(())
    }

    /// Notes at the last step what the boot profile did for a desktop's boot. A guest that goes on reading is not waited for.
    fn note_boot_profile(&mut self, branch: usize, name: &str) {
        let Self {
            lab,
            branches,
            report,
            ..
        } = self;
        let branch = &branches[branch];
        let settled = Limit::new("the boot has settled", SETTLED)
            .wait(|| Ok(branch.desktop(lab, name)?.boot));
        if let (Ok(boot), Some(step)) = (settled, report.steps.last_mut())
            && step.note.is_empty()
        {
            step.note = boot.line();
        }
    }

    fn join(&mut self, site: Site) -> anyhow::Result<()> {
        let token = self.with_datacenter(|datacenter, lab| datacenter.token(lab, site.name))?;
        let branch = Branch::join(&mut self.lab, site, &token)?;
        self.branches.push(branch);
        Ok(())
    }

    /// Assigns a version, and waits until the branch knows.
    fn assign(&mut self, branch: usize, version: &str, number: u32) -> anyhow::Result<()> {
        let site = self.branches[branch].site;
        self.with_datacenter(|datacenter, lab| datacenter.assign(lab, site, POOL, version))?;
        let Self { lab, branches, .. } = self;
        let branch = &branches[branch];
        Limit::new(&format!("{} knows of {version}", site.name), NEWS)
            .with_log(&branch.log)
            .wait(|| {
                lab.processes.check()?;
                Ok(branch.residency(lab, number)?.map(drop))
            })
    }

    /// Waits until branch A has all of a version.
    fn fill(&mut self, step: &mut Step, number: u32) -> anyhow::Result<()> {
        let before = self.branches[0].status(&mut self.lab)?.counters;
        let limit = self.patience(self.report.image.compressed_bytes);
        let Self { lab, branches, .. } = self;
        let branch = &branches[0];
        Limit::new(&format!("branch A has all of version {number}"), limit)
            .with_log(&branch.log)
            .wait(|| {
                lab.processes.check()?;
                Ok(branch
                    .residency(lab, number)?
                    .filter(|held| held.complete)
                    .map(drop))
            })?;
        let after = self.branches[0].status(&mut self.lab)?.counters;
        step.demand_chunks = after.demand_chunks - before.demand_chunks;
        step.prefetch_chunks = after.prefetch_chunks - before.prefetch_chunks;
        Ok(())
    }

    /// Boots a fresh desktop to its login prompt.
    fn boot(
        &mut self,
        step: &mut Step,
        branch: usize,
        name: &str,
        number: u32,
    ) -> anyhow::Result<Console> {
        let limit = BOOT + self.patience(self.report.image.compressed_bytes);
        let Self {
            lab,
            branches,
            guest,
            ..
        } = self;
        let branch = &branches[branch];
        let before = branch.status(lab)?.counters;
        let ordered = Instant::now();
        branch.start_desktop(lab, POOL, name, NEWS)?;
        let machine_seconds = ordered.elapsed().as_secs_f64();
        let desktop = branch.desktop(lab, name)?;
        if desktop.version_number != number {
            bail!(
                "desktop {name} runs version {}, not {number}",
                desktop.version_number
            );
        }
        let (log, socket) = (
            Path::new(&desktop.serial_log),
            Path::new(&desktop.serial_socket),
        );
        let mut console = Limit::new("the serial console is there", NEWS)
            .with_log(&branch.log)
            .wait(|| Ok(Console::open(log, socket).ok()))?;
        let mut output_seconds = None;
        let mut asked = Instant::now();
        console.expect(&guest.prompt, limit, |console| {
            lab.processes.check()?;
            if output_seconds.is_none() && console.has_output() {
                output_seconds = Some(ordered.elapsed().as_secs_f64());
            }
            if asked.elapsed() > ASK_EVERY {
                branch.desktop(lab, name)?;
                asked = Instant::now();
            }
            Ok(())
        })?;
        let login_seconds = ordered.elapsed().as_secs_f64();
        let after = branch.status(lab)?.counters;
        step.login_seen = true;
        step.demand_chunks = after.demand_chunks - before.demand_chunks;
        step.prefetch_chunks = after.prefetch_chunks - before.prefetch_chunks;
        if let Some(machine) = desktop.machine {
            self.report.machine = machine;
            self.report.machine_reason = desktop.machine_reason.unwrap_or_default();
        }
        self.report.boots.push(Boot {
            step: step.name.clone(),
            machine_seconds,
            output_seconds: output_seconds.unwrap_or(login_seconds),
            login_seconds,
        });
        Ok(console)
    }

    /// Does a step, times it and counts its bytes.
    fn step<T>(
        &mut self,
        name: &str,
        kind: Kind,
        work: impl FnOnce(&mut Self, &mut Step) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.progress(name);
        let mut step = Step {
            name: name.to_owned(),
            ok: true,
            begun_seconds: self.lab.now(),
            ..Step::default()
        };
        let wire = self.lab.wan.wire()?;
        let outcome = work(self, &mut step).with_context(|| name.to_owned());
        step.seconds = self.lab.now() - step.begun_seconds;
        let used = self.lab.wan.wire()?.since(wire);
        (step.wire_bytes, step.down_bytes, step.up_bytes) = (used.total(), used.down, used.up);
        step.refused_bytes = used.refused();
        step.limit_seconds = used.limit_seconds(&self.profile);
        if let Err(error) = &outcome {
            step.ok = false;
            step.note = format!("{error:#}")
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned();
        }
        let verdict = if step.ok { "ok" } else { "FAILED" };
        self.progress(&format!(
            "{name}: {verdict}, {:.1} s, {} sent (the line needs {:.1} s for what it carried of them)",
            step.seconds,
            mb(step.wire_bytes),
            step.limit_seconds
        ));
        match kind {
            Kind::Told => self.report.steps.push(step),
            Kind::Between => self.report.extra_steps.push(step),
        }
        outcome
    }

    /// How long moving `bytes` may take: three times what the line needs, and a minute.
    fn patience(&self, bytes: u64) -> Duration {
        let rate = self.profile.down.rate_bps as f64;
        Duration::from_secs_f64(bytes as f64 * 8.0 / rate * 3.0 + 60.0)
    }

    fn with_datacenter<T>(
        &mut self,
        work: impl FnOnce(&Datacenter, &mut Lab) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let datacenter = self
            .datacenter
            .as_ref()
            .context("the datacenter was not started")?;
        work(datacenter, &mut self.lab)
    }

    fn progress(&self, what: &str) {
        eprintln!("[{:6.1} s] {what}", self.lab.now());
    }

    /// The ends of all daemons' logs.
    pub(crate) fn show_logs(&self) {
        for log in self
            .datacenter
            .iter()
            .map(|d| &d.log)
            .chain(self.branches.iter().map(|b| &b.log))
        {
            eprintln!("{}", tail(log).trim_start_matches('\n'));
        }
    }

    /// Says how to look around, and waits for the interrupt.
    ///
    /// # Errors
    /// A daemon ended.
    pub(crate) fn keep(&mut self) -> anyhow::Result<()> {
        let programs = |name: &str| self.lab.programs.path(name).display().to_string();
        let (splice, sim_wan) = (programs("splice"), programs("sim-wan"));
        println!("\nEverything keeps running until Ctrl-C. In another terminal, as root:\n");
        println!("  # central IT, at the datacenter");
        let configuration = self.lab.work.join("datacenter/cli.toml");
        let inside = |namespace: &str| format!("ip netns exec {namespace}");
        println!(
            "  {} {splice} --config {} status",
            inside(super::lab::DATACENTER),
            configuration.display()
        );
        for branch in &self.branches {
            let socket = self.lab.work.join(branch.site.name).join("branch.sock");
            println!("  # at {} ({})", branch.site.name, branch.site.address);
            println!(
                "  {} {splice} desktop list --branch-socket {}",
                inside(branch.site.namespace),
                socket.display()
            );
        }
        println!("  # the lines (cut, restore, profile, stats)");
        println!(
            "  {sim_wan} ctl --socket {} list\n",
            self.lab.work.join("wan.sock").display()
        );
        stay_until_interrupted(&mut self.lab.processes)
    }

    /// Ends the telling; everything still runs.
    pub(crate) fn end(self) -> Lab {
        self.lab
    }
}
