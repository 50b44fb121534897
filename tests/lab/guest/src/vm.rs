//! A desktop on splice-vmm, or on QEMU to compare with: started with what a check needs, used by its console and its control socket, and
//! gone when dropped.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vmm_api::{Answer, Command as Ask, MachineStatus};

use crate::qemu;

/// How often something that is waited for is looked at.
const TICK: Duration = Duration::from_millis(50);
/// The user that a desktop's process becomes.
const MACHINE_USER: &str = "20017";
/// What its kernel is told.
pub const COMMAND_LINE: &str = "root=/dev/vda1 ro console=ttyS0";

/// Where things are.
pub struct Lab {
    /// The product's programs.
    pub programs: PathBuf,
    /// `kernel`, `initrd` and `disk` of a small Debian whose root password is `root`.
    pub guest: PathBuf,
    /// Where what desktops print is kept.
    pub out: PathBuf,
}

/// See the module.
pub struct Vm {
    process: Child,
    console: UnixStream,
    control: PathBuf,
    log: PathBuf,
    /// What splice-vmm itself says.
    words: PathBuf,
    /// Bytes of the log that were read by an earlier wait.
    seen: usize,
    asked: u32,
}

/// Which program is the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Engine {
    #[default]
    Splice,
    Qemu,
}

impl Engine {
    /// Its program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Splice => "splice-vmm",
            Self::Qemu => "QEMU",
        }
    }
}

/// Options of a desktop, by default one processor and 512 MiB with the small Debian's disk.
pub struct Options {
    /// The folder with its `kernel` and `initrd`, below the guest's; empty is that itself.
    pub system: &'static str,
    pub engine: Engine,
    pub memory_mib: u32,
    pub vcpus: u32,
    pub disk: Option<PathBuf>,
    /// A second disk, which it only reads.
    pub data: Option<PathBuf>,
    /// The snapshot that it goes on from, instead of booting.
    pub resume: Option<PathBuf>,
    pub more: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            system: "",
            engine: Engine::default(),
            memory_mib: 512,
            vcpus: 1,
            disk: None,
            data: None,
            resume: None,
            more: Vec::new(),
        }
    }
}

impl Lab {
    /// A file of this check that is kept.
    pub fn file(&self, check: &str, what: &str) -> PathBuf {
        self.out.join(format!("{check}.{what}"))
    }

    /// The guest's disk, fresh for this check, in the place of the one of the check before; holes stay holes.
    pub fn fresh_disk(&self) -> Result<PathBuf> {
        let disk = self.guest.join("scratch");
        let copied = Command::new("cp")
            .args(["--sparse=always"])
            .arg(self.guest.join("disk"))
            .arg(&disk)
            .status()?;
        ensure!(copied.success(), "copying the disk");
        Ok(disk)
    }

    fn splice(
        &self,
        options: &Options,
        system: &Path,
        [console, control, log]: [&Path; 3],
    ) -> Command {
        let mut command = Command::new(self.programs.join("splice-vmm"));
        match &options.resume {
            Some(snapshot) => command.arg("resume").arg(snapshot),
            None => command
                .arg("run")
                .args(["--memory", &options.memory_mib.to_string()])
                .args(["--vcpus", &options.vcpus.to_string()]),
        };
        command
            .arg("--kernel")
            .arg(system.join("kernel"))
            .arg("--initrd")
            .arg(system.join("initrd"))
            .args(["--command-line", COMMAND_LINE])
            .arg("--serial-log")
            .arg(log)
            .arg("--serial-socket")
            .arg(console)
            .arg("--control")
            .arg(control)
            // As the branch starts it: all of it, or nothing.
            .args(["--sandbox", "full", "--uid", MACHINE_USER]);
        if let Some(disk) = &options.disk {
            command.arg("--disk").arg(disk);
        }
        if let Some(data) = &options.data {
            command.args(["--disk", &format!("{},readonly", data.display())]);
        }
        command
    }

    /// Starts a desktop.
    pub fn launch(&self, check: &str, options: &Options) -> Result<Vm> {
        let log = self.file(check, "serial");
        let temp = std::env::temp_dir();
        let (console, control) = (
            temp.join(format!("{check}.console")),
            temp.join(format!("{check}.control")),
        );
        let system = self.guest.join(options.system);
        let mut command = match options.engine {
            Engine::Splice => self.splice(options, &system, [&console, &control, &log]),
            Engine::Qemu => qemu::command(options, &system, &console, &log),
        };
        let words = self.file(check, "vmm");
        let said = File::create(&words)?;
        // A check's second desktop prints behind its first one.
        let seen = std::fs::metadata(&log).map_or(0, |log| log.len() as usize);
        let process = command
            .args(&options.more)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .context(options.engine.name())?;
        let console = wait("the console's socket", Duration::from_secs(10), || {
            Ok(UnixStream::connect(&console).ok())
        })?;
        let mut vm = Vm {
            process,
            console,
            control,
            log,
            words,
            seen,
            asked: 0,
        };
        vm.drain_console()?;
        Ok(vm)
    }
}

impl Lab {
    /// Has a desktop saved into a folder, after which it ends; what was said about it.
    pub fn snapshot(&self, vm: &Vm, dir: &Path) -> Result<String> {
        let saved = Command::new(self.programs.join("splice-vmm"))
            .arg("snapshot")
            .arg(&vm.control)
            .arg(dir)
            .arg("--quit")
            .output()?;
        let said = String::from_utf8_lossy(&saved.stderr).into_owned();
        ensure!(saved.status.success(), "{}: {said}", saved.status);
        Ok(said.trim().to_owned())
    }
}

/// Waits until `look` finds something.
pub fn wait<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        std::thread::sleep(TICK);
    }
}

/// Asks a machine over its control socket.
fn ask(control: &Path, command: &Ask) -> Result<Answer> {
    let mut socket = UnixStream::connect(control).context("control socket")?;
    serde_json::to_writer(&mut socket, command)?;
    socket.write_all(b"\n")?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

impl Vm {
    /// What the console's socket carries is in the log as well: it is read so that the guest is never held up, and shown where
    /// `LAB_ECHO` says.
    fn drain_console(&mut self) -> Result<()> {
        let mut console = self.console.try_clone()?;
        let echo = std::env::var_os("LAB_ECHO");
        let echo = echo.and_then(|path| File::options().append(true).open(path).ok());
        std::thread::spawn(move || match echo {
            Some(mut echo) => io::copy(&mut console, &mut echo),
            None => io::copy(&mut console, &mut io::sink()),
        });
        Ok(())
    }

    /// Waits for `text` in what is printed after the last wait; returns what came before it.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let (log, seen) = (self.log.clone(), self.seen);
        let process = &mut self.process;
        let found = wait(&format!("{text:?} at the console"), limit, || {
            let printed = std::fs::read(&log).unwrap_or_default();
            let unread = printed.get(seen..).unwrap_or_default();
            let at = unread
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if at.is_none()
                && let Some(status) = process.try_wait()?
            {
                bail!("the machine ended ({status}) while {text:?} was waited for");
            }
            Ok(at.map(|at| (String::from_utf8_lossy(&unread[..at]).into_owned(), at)))
        })?;
        self.seen += found.1 + text.len();
        Ok(found.0)
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        let typed = self.console.write_all(format!("{line}\n").as_bytes());
        typed.context("typing at the console")
    }

    /// Boots to the login prompt and logs in as root; seconds until the prompt.
    pub fn boot_and_log_in(&mut self, limit: Duration) -> Result<f64> {
        let begun = Instant::now();
        self.wait_for("login:", limit)?;
        let seconds = begun.elapsed().as_secs_f64();
        self.log_in()?;
        Ok(seconds)
    }

    /// Logs in as root at a prompt that was seen.
    pub fn log_in(&mut self) -> Result<()> {
        let patience = Duration::from_secs(60);
        self.type_line("root")?;
        self.wait_for("assword:", patience)?;
        self.type_line("root")?;
        // What is typed before the shell is there is thrown away: ask until it answers. A plain shell without a prompt takes its place, so
        // that what a command prints is all that there is to read.
        for _ in 0..20 {
            if self.run("stty -echo", Duration::from_secs(5)).is_ok() {
                self.type_line("exec env PS1= sh")?;
                self.run("true", patience)?;
                // Nor may the kernel's words get between.
                return self.run("dmesg -n 1", patience).map(drop);
            }
        }
        bail!("no shell answers after logging in")
    }

    /// Runs a command in the shell; what it printed.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        self.asked += 1;
        let mark = self.asked;
        // The shell works the sums out, so that its answer is not mistaken for the echo of what is typed.
        self.type_line(&format!("{command}; echo \"end-{mark}-$((20 + 1))-$?\""))?;
        let said = self.wait_for(&format!("end-{mark}-21-"), limit)?;
        let status = self.wait_for("\r\n", Duration::from_secs(10))?;
        ensure!(status == "0", "{command:?} ended with {status}: {said}");
        Ok(said)
    }

    /// Asks the machine over its control socket.
    pub fn ask(&self, command: &Ask) -> Result<Answer> {
        ask(&self.control, command)
    }

    /// How the machine is.
    pub fn status(&self) -> Result<MachineStatus> {
        match self.ask(&Ask::Status)? {
            Answer::Status(status) => Ok(status),
            other => bail!("{other:?} is no status"),
        }
    }

    /// Waits until the machine has ended.
    pub fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let process = &mut self.process;
        wait("the end of the machine", limit, || Ok(process.try_wait()?))
    }

    /// Resident memory of splice-vmm's processes and of its guest, KiB: all of it, and what is not the guest's.
    pub fn resident_kib(&self) -> Result<(u64, u64)> {
        let outer = self.process.id();
        let children = format!("/proc/{outer}/task/{outer}/children");
        let children = std::fs::read_to_string(children)?;
        let mut sum = (0, 0);
        let outer = outer.to_string();
        for process in children.split_whitespace().chain([outer.as_str()]) {
            let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
            let of = |key: &str| -> Result<u64> {
                let line = status.lines().find_map(|line| line.strip_prefix(key));
                let value = line.and_then(|rest| rest.split_whitespace().next());
                value
                    .and_then(|value| value.parse().ok())
                    .context(key.to_owned())
            };
            sum.0 += of("VmRSS:")?;
            // The guest's memory is a shared file.
            sum.1 += of("RssAnon:")? + of("RssFile:")?;
        }
        Ok(sum)
    }

    /// Lines that splice-vmm has said, such as that memory does not come while the machine runs.
    pub fn said(&self) -> Result<Vec<String>> {
        let words = std::fs::read_to_string(&self.words)?;
        Ok(words.lines().map(str::to_owned).collect())
    }

    /// Where its output is.
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
