//! The product as its operators use it: two daemons and the `splice` command. Nothing here knows the demo's story.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use branch_api::{Desktop, DesktopState};
use datacenter_api::{BranchStatus, TokenResponse, VersionResidency};
use serde::de::DeserializeOwned;

use super::lab::{DATACENTER, LINK_PORT, Lab, Site};
use super::process::Program;
use super::wait::Limit;

/// Where the management API listens, inside the datacenter's namespace.
const API: &str = "127.0.0.1:7480";

/// A command that only asks or changes a record.
const QUICK: Duration = Duration::from_secs(30);

/// Reading and compressing a disk, and reading it back. A gigabyte takes seconds; a user's own disk may be large.
const PUBLISH: Duration = Duration::from_secs(3600);

/// Until a machine runs.
const START: Duration = Duration::from_secs(600);

/// Until a daemon answers.
const READY: Duration = Duration::from_secs(30);

/// The datacenter of the stage.
pub(crate) struct Datacenter {
    data: PathBuf,
    splice: PathBuf,
    /// Its log.
    pub(crate) log: PathBuf,
}

impl Datacenter {
    /// Sets one up in a folder of its own and starts it.
    ///
    /// # Errors
    /// It does not answer in time.
    pub(crate) fn start(lab: &mut Lab) -> anyhow::Result<Self> {
        let data = lab.work.join("datacenter");
        let daemon = lab.programs.path("splice-datacenter");
        let address = format!("{}:{LINK_PORT}", super::lab::BRANCH_A.datacenter_address);
        let init = Program::inside(DATACENTER, &daemon)
            .args(["init", "--address", &address, "--data"])
            .args([&data]);
        lab.processes.run(&init, QUICK)?;
        // Both branches' lines end here, each with an address of its own.
        let link = format!("0.0.0.0:{LINK_PORT}");
        let run = Program::inside(DATACENTER, &daemon)
            .args(["run", "--link", &link, "--api", API, "--data"])
            .args([&data]);
        let log = lab.processes.start("splice-datacenter", &run)?;
        let this = Self {
            data,
            splice: lab.programs.path("splice"),
            log,
        };
        Limit::new("the datacenter answers", READY)
            .with_log(&this.log)
            .wait(|| {
                lab.processes.check()?;
                Ok(this
                    .splice(lab, &["status", "--json"], QUICK)
                    .ok()
                    .map(drop))
            })?;
        Ok(this)
    }

    /// Runs `splice` as central IT does.
    ///
    /// # Errors
    /// The command's own words.
    pub(crate) fn splice<A: AsRef<std::ffi::OsStr>>(
        &self,
        lab: &mut Lab,
        arguments: &[A],
        limit: Duration,
    ) -> anyhow::Result<String> {
        let program = Program::inside(DATACENTER, &self.splice)
            .args(["--config".into(), self.data.join("cli.toml")])
            .args(arguments);
        lab.processes.run(&program, limit)
    }

    /// Makes an image.
    ///
    /// # Errors
    /// As [`Datacenter::splice`], as for all that follow.
    pub(crate) fn create_image(&self, lab: &mut Lab, image: &str) -> anyhow::Result<()> {
        self.splice(lab, &["image", "create", image], QUICK)
            .map(drop)
    }

    /// Publishes a disk as the image's next version.
    ///
    /// # Errors
    /// The disk cannot be read, or its version does not read back.
    pub(crate) fn publish(&self, lab: &mut Lab, image: &str, disk: &Path) -> anyhow::Result<()> {
        let arguments = [
            "version".as_ref(),
            "publish".as_ref(),
            image.as_ref(),
            disk.as_os_str(),
        ];
        self.splice(lab, &arguments, PUBLISH).map(drop)
    }

    /// Reads a version back.
    ///
    /// # Errors
    /// Something is damaged.
    pub(crate) fn verify(&self, lab: &mut Lab, version: &str) -> anyhow::Result<()> {
        self.splice(lab, &["version", "verify", version], PUBLISH)
            .map(drop)
    }

    /// Invites a branch.
    ///
    /// # Errors
    /// It exists.
    pub(crate) fn token(&self, lab: &mut Lab, branch: &str) -> anyhow::Result<String> {
        let said = self.splice(lab, &["branch", "token", branch, "--json"], QUICK)?;
        Ok(parse::<TokenResponse>(&said, "branch token")?.token)
    }

    /// Says what a branch's pool runs.
    ///
    /// # Errors
    /// There is no such version or branch.
    pub(crate) fn assign(
        &self,
        lab: &mut Lab,
        site: Site,
        pool: &str,
        version: &str,
    ) -> anyhow::Result<()> {
        let machine = ["--memory", "1024MiB", "--cpus", "1"];
        let arguments = [
            &[
                "branch", "assign", site.name, "--pool", pool, "--image", version,
            ][..],
            &machine,
        ]
        .concat();
        self.splice(lab, &arguments, QUICK).map(drop)
    }
}

/// A branch of the stage.
pub(crate) struct Branch {
    pub(crate) site: Site,
    splice: PathBuf,
    socket: PathBuf,
    /// Its log.
    pub(crate) log: PathBuf,
}

impl Branch {
    /// Joins a site to the datacenter and starts its daemon.
    ///
    /// # Errors
    /// The datacenter cannot be reached over the line, or refuses.
    pub(crate) fn join(lab: &mut Lab, site: Site, token: &str) -> anyhow::Result<Self> {
        let data = lab.work.join(site.name);
        let daemon = lab.programs.path("splice-branch");
        // The token carries the address that `init` was given, which only branch A's line leads to.
        let address = format!("{}:{LINK_PORT}", site.datacenter_address);
        let join = Program::inside(site.namespace, &daemon)
            .args(["join", token, "--address", &address, "--data"])
            .args([&data]);
        lab.processes.run(&join, QUICK).map_err(|error| {
            // The command line holds the token.
            anyhow::anyhow!("{}", format!("{error:#}").replace(token, "TOKEN"))
        })?;
        let run = Program::inside(site.namespace, &daemon)
            .args(["run", "--data"])
            .args([&data]);
        let log = lab.processes.start(site.name, &run)?;
        let this = Self {
            site,
            splice: lab.programs.path("splice"),
            socket: data.join("branch.sock"),
            log,
        };
        this.connected(lab)?;
        Ok(this)
    }

    /// Waits until its line to the datacenter is up.
    ///
    /// # Errors
    /// It does not come up in time.
    pub(crate) fn connected(&self, lab: &mut Lab) -> anyhow::Result<()> {
        let mut refusal = String::new();
        let wait = Limit::new(&format!("{} is connected", self.site.name), READY)
            .with_log(&self.log)
            .wait(|| {
                lab.processes.check()?;
                match self.status(lab) {
                    Ok(status) if status.link.connected => return Ok(Some(())),
                    Ok(_) => refusal = "it says that its line is down".to_owned(),
                    // Before its socket is there, this is what is to be expected.
                    Err(error) => refusal = format!("{error:#}"),
                }
                Ok(None)
            });
        wait.map_err(|error| error.context(refusal))
    }

    /// Runs `splice` as somebody at the branch does.
    ///
    /// # Errors
    /// The command's own words.
    pub(crate) fn splice(
        &self,
        lab: &mut Lab,
        arguments: &[&str],
        limit: Duration,
    ) -> anyhow::Result<String> {
        let program = Program::inside(self.site.namespace, &self.splice)
            .args(arguments)
            .args(["--branch-socket".into(), self.socket.clone()]);
        lab.processes.run(&program, limit)
    }

    /// What the branch says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn status(&self, lab: &mut Lab) -> anyhow::Result<BranchStatus> {
        parse(
            &self.splice(lab, &["branch-status", "--json"], QUICK)?,
            "branch-status",
        )
    }

    /// What it holds of a version; none if it does not know of it.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn residency(
        &self,
        lab: &mut Lab,
        number: u32,
    ) -> anyhow::Result<Option<VersionResidency>> {
        Ok(self
            .status(lab)?
            .versions
            .into_iter()
            .find(|version| version.number == number))
    }

    /// Starts a desktop. A version that was assigned a moment ago cannot be started until its manifest is there, so that
    /// a refusal is taken for an answer only after `patience`.
    ///
    /// # Errors
    /// The branch cannot; its own words.
    pub(crate) fn start_desktop(
        &self,
        lab: &mut Lab,
        pool: &str,
        name: &str,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let mut refusal = String::new();
        let started = Limit::new(&format!("desktop {name} starts"), patience)
            .with_log(&self.log)
            .wait(|| {
                // Kernel and initrd cross the line before the machine starts, and a slow line takes its time.
                match self.splice(lab, &["desktop", "start", pool, "--name", name], START) {
                    Ok(_) => Ok(Some(())),
                    Err(error) => {
                        refusal = format!("{error:#}");
                        lab.processes.check()?;
                        Ok(None)
                    }
                }
            });
        started.map_err(|error| error.context(refusal))
    }

    /// A desktop as the branch sees it.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn desktop(&self, lab: &mut Lab, name: &str) -> anyhow::Result<Desktop> {
        let desktop: Desktop = parse(
            &self.splice(lab, &["desktop", "show", name, "--json"], QUICK)?,
            "desktop show",
        )?;
        if desktop.state == DesktopState::Failed {
            bail!(
                "desktop {name} failed: {}",
                desktop.error.unwrap_or_default()
            );
        }
        Ok(desktop)
    }
}

fn parse<T: DeserializeOwned>(json: &str, command: &str) -> anyhow::Result<T> {
    serde_json::from_str(json)
        .with_context(|| format!("splice {command} --json said: {}", json.trim()))
}
