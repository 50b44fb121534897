//! The product as its operators use it, as a black box: two daemons, the `splice` command and NBD exports.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::machine;
use crate::process::{Daemon, Program, TICK, wait_for};
use crate::stage;
use crate::workshop::Workshop;

/// A command that only asks or changes a record.
const QUICK: Duration = Duration::from_secs(60);
/// Reading, compressing and verifying a 10 GiB disk on a busy machine.
const PUBLISH: Duration = Duration::from_secs(1800);
/// Until a daemon answers; a branch that restarts checks its cache first.
const READY: Duration = Duration::from_secs(120);
/// Until a version's manifest has crossed the line.
const NEWS: Duration = Duration::from_secs(120);
/// How often a branch is asked how far it is. Asking costs it CPU time.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Ports of a datacenter: the first two that are free, below the range that the kernel gives to clients.
const PORTS: std::ops::Range<u16> = 11_000..15_000;

/// Where the two run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Both on this machine's loopback.
    Loopback,
    /// At the two ends of the stage's line.
    Stage,
}

impl Place {
    fn at_datacenter(self, program: Program) -> Program {
        match self {
            Self::Loopback => program,
            Self::Stage => program.inside(stage::DATACENTER),
        }
    }

    fn at_branch(self, program: Program) -> Program {
        match self {
            Self::Loopback => program,
            Self::Stage => program.inside(stage::BRANCH),
        }
    }

    /// Where a datacenter listens there.
    fn host(self) -> &'static str {
        match self {
            Self::Loopback => "127.0.0.1",
            Self::Stage => stage::DATACENTER_ADDRESS,
        }
    }
}

/// Ports of loopback that nobody has, neither for UDP nor for TCP. Namespaces of our own have no others.
fn free_ports() -> Result<[u16; 2]> {
    let is_free = |port: &u16| {
        let address = SocketAddr::from(([127, 0, 0, 1], *port));
        UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
    };
    let mut free = PORTS.filter(is_free);
    match (free.next(), free.next()) {
        (Some(link), Some(api)) => Ok([link, api]),
        _ => bail!("no two ports of {PORTS:?} are free"),
    }
}

/// A name that no branch, desktop or image of this run has: an old branch is still given its old version, and a version that has
/// booted has a profile.
pub(crate) fn fresh(stem: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{stem}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A datacenter with its daemon.
pub(crate) struct Datacenter {
    place: Place,
    data: PathBuf,
    workshop: Workshop,
    scratch: PathBuf,
    /// Where branches reach it.
    address: String,
    pub(crate) daemon: Daemon,
}

impl Datacenter {
    /// Sets one up in the bench's folder `name` and starts it.
    ///
    /// # Errors
    /// It does not answer in time.
    pub(crate) fn start(workshop: &Workshop, place: Place, name: &str) -> Result<Self> {
        let scratch = workshop.scratch("logs")?;
        let data = workshop.scratch(name)?.join("data");
        let path = workshop.program("splice-datacenter");
        let [link_port, api_port] = free_ports()?;
        let address = format!("{}:{link_port}", place.host());
        let api = format!("127.0.0.1:{api_port}");
        let run = |verb: &str| {
            let program =
                Program::new(&path).args([verb, "--link", &address, "--api", &api, "--data"]);
            place.at_datacenter(program.arg(&data))
        };
        run("init")
            .args(["--address", &address])
            .run(&scratch, QUICK)?;
        let daemon = run("run").start(&scratch.join(format!("{name}.log")))?;
        let this = Self {
            place,
            data,
            workshop: workshop.clone(),
            scratch,
            address,
            daemon,
        };
        wait_for("the datacenter answers", READY, TICK * 5, || {
            this.daemon.check()?;
            Ok(this.splice(&["status"], QUICK).ok())
        })?;
        Ok(this)
    }

    /// Its data.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Runs `splice … --json` as central IT does.
    ///
    /// # Errors
    /// The command's own words.
    pub(crate) fn splice(&self, words: &[&str], limit: Duration) -> Result<Value> {
        let program = Program::new(self.workshop.program("splice"))
            .arg("--config")
            .arg(self.data.join("cli.toml"))
            .args(words)
            .arg("--json");
        let done = self
            .place
            .at_datacenter(program)
            .run(&self.scratch, limit)?;
        serde_json::from_str(done.stdout.trim()).with_context(|| words.join(" "))
    }

    /// Makes an image.
    ///
    /// # Errors
    /// The command's own words, as for all that follow.
    pub(crate) fn create(&self, image: &str) -> Result<()> {
        self.splice(&["image", "create", image], QUICK).map(drop)
    }

    /// Publishes a disk; seconds that it took.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn publish(&self, image: &str, disk: &Path) -> Result<f64> {
        let begun = Instant::now();
        let disk = disk.to_string_lossy();
        self.splice(&["version", "publish", image, &disk], PUBLISH)?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Waits until an update from one version to another is encoded.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn encode(&self, from: &str, to: &str) -> Result<()> {
        self.splice(&["version", "update", from, to], PUBLISH)
            .map(drop)
    }

    /// Says what a branch's pool runs, and whether the whole of it is to be fetched ahead.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn assign(&self, branch: &str, version: &str, prestage: bool) -> Result<()> {
        let fetch = if prestage {
            "--prestage"
        } else {
            "--no-prestage"
        };
        let words = [
            "branch", "assign", branch, "--pool", POOL, "--image", version, "--memory", "512MiB",
            fetch,
        ];
        self.splice(&words, QUICK).map(drop)
    }

    /// Bytes of the chunks that one version has and another has not.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn new_bytes(&self, from: &str, to: &str) -> Result<f64> {
        let diff = self.splice(&["version", "diff", from, to], QUICK)?;
        diff["new_bytes"].as_f64().context("new_bytes of a diff")
    }
}

/// The pool of every branch here.
pub(crate) const POOL: &str = "office";

/// A branch with its daemon.
pub(crate) struct Branch {
    place: Place,
    data: PathBuf,
    workshop: Workshop,
    scratch: PathBuf,
    machine: PathBuf,
    name: String,
    daemon: Option<Daemon>,
}

impl Branch {
    /// Joins as `name`, in the bench's folder of that name, and starts it.
    ///
    /// # Errors
    /// The datacenter cannot be reached or refuses.
    pub(crate) fn join(workshop: &Workshop, datacenter: &Datacenter, name: &str) -> Result<Self> {
        let scratch = workshop.scratch("logs")?;
        let data = workshop.scratch(name)?.join("data");
        let place = datacenter.place;
        let answer = datacenter.splice(&["branch", "token", name, "--replace"], QUICK)?;
        let token = answer["token"].as_str().context("a join token")?.to_owned();
        let join = Program::new(workshop.program("splice-branch"))
            .args(["join", &token, "--address", &datacenter.address, "--data"])
            .arg(&data);
        // The command line holds the token, which is a secret even here.
        place
            .at_branch(join)
            .run(&scratch, QUICK)
            .map_err(|error| {
                anyhow::anyhow!("{}", format!("{error:#}").replace(&token, "TOKEN"))
            })?;
        let machine = machine::install(&scratch, &workshop.program("bench"))?;
        let mut branch = Self {
            place,
            data,
            workshop: workshop.clone(),
            scratch,
            machine,
            name: name.to_owned(),
            daemon: None,
        };
        branch.restart()?;
        Ok(branch)
    }

    /// Its name at the datacenter.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its daemon.
    ///
    /// # Errors
    /// It is stopped.
    pub(crate) fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().context("the branch is stopped")
    }

    /// Stops the daemon.
    pub(crate) fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop();
        }
    }

    /// Starts the daemon anew and waits until it answers and its link is up.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.stop();
        let run = Program::new(self.workshop.program("splice-branch"))
            .args(["run", "--accelerator", "tcg", "--qemu"])
            .arg(&self.machine)
            .arg("--data")
            .arg(&self.data)
            .env(machine::OWNER, std::process::id().to_string());
        let log = self.scratch.join(format!("{}.log", self.name));
        self.daemon = Some(self.place.at_branch(run).start(&log)?);
        wait_for("the branch is connected", READY, TICK * 5, || {
            self.daemon()?.check()?;
            let connected = self
                .status()
                .is_ok_and(|status| status["link"]["connected"] == true);
            Ok(connected.then_some(()))
        })
    }

    /// Runs `splice … --json` as somebody at the branch does.
    ///
    /// # Errors
    /// The command's own words.
    pub(crate) fn splice(&self, words: &[&str], limit: Duration) -> Result<Value> {
        let program = Program::new(self.workshop.program("splice"))
            .args(words)
            .args(["--json", "--branch-socket"])
            .arg(self.data.join("branch.sock"));
        let done = self.place.at_branch(program).run(&self.scratch, limit)?;
        serde_json::from_str(done.stdout.trim()).with_context(|| words.join(" "))
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn status(&self) -> Result<Value> {
        self.splice(&["branch-status"], QUICK)
    }

    /// What it holds of a version; none while it does not know of it.
    ///
    /// # Errors
    /// It does not answer.
    fn residency(&self, number: u32) -> Result<Option<Value>> {
        self.daemon()?.check()?;
        let status = self.status()?;
        let versions = status["versions"]
            .as_array()
            .context("versions in the status")?;
        Ok(versions
            .iter()
            .find(|version| version["number"] == number)
            .cloned())
    }

    /// Waits until the pool's version can be read (its manifest is there, its chunks need not be). Returns the version's id.
    ///
    /// # Errors
    /// Not in time.
    pub(crate) fn wait_known(&self, number: u32) -> Result<String> {
        let probe = |id: &str| {
            let info =
                Program::new("nbdinfo").args(["--size", &self.uri(&format!("version/{id}"))]);
            info.run(&self.scratch, QUICK).is_ok()
        };
        wait_for(
            &format!("version {number} at the branch"),
            NEWS,
            ASK_EVERY,
            || {
                let found = self.residency(number)?;
                let id = found.and_then(|v| Some(v["version"].as_str()?.to_owned()));
                Ok(id.filter(|id| probe(id)))
            },
        )
    }

    /// Waits until nothing of a version is missing.
    ///
    /// # Errors
    /// Not in time.
    pub(crate) fn wait_complete(&self, number: u32, limit: Duration) -> Result<()> {
        wait_for(
            &format!("version {number} complete at the branch"),
            limit,
            ASK_EVERY,
            || {
                let found = self.residency(number)?;
                Ok(found.is_some_and(|v| v["complete"] == true).then_some(()))
            },
        )
    }

    /// Its NBD socket.
    pub(crate) fn nbd_socket(&self) -> PathBuf {
        self.data.join("nbd.sock")
    }

    /// An export's URI.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!(
            "nbd+unix:///{export}?socket={}",
            self.nbd_socket().display()
        )
    }

    /// Starts a desktop, whose machine is a stand-in: its guest is whoever reads its export. Returns the export.
    ///
    /// # Errors
    /// The branch cannot.
    pub(crate) fn start_desktop(&self, name: &str) -> Result<String> {
        let start = ["desktop", "start", POOL, "--name", name];
        let desktop = self.splice(&start, Duration::from_secs(300))?;
        Ok(desktop["nbd_export"]
            .as_str()
            .context("nbd_export of a desktop")?
            .to_owned())
    }

    /// Stops a desktop at once.
    ///
    /// # Errors
    /// The branch cannot.
    pub(crate) fn stop_desktop(&self, name: &str) -> Result<()> {
        self.splice(&["desktop", "stop", name, "--force"], QUICK)
            .map(drop)
    }

    /// Deletes a desktop that is stopped, and what it wrote.
    ///
    /// # Errors
    /// The branch cannot.
    pub(crate) fn delete_desktop(&self, name: &str) -> Result<()> {
        self.splice(&["desktop", "delete", name], QUICK).map(drop)
    }
}
