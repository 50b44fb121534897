//! One machine process: how QEMU is started, recognised again after a restart of the branch server, and ended.
//!
//! The process is a session of its own: it outlives the branch server, its guest waits at the NBD export and goes on when the server
//! is back. It is always recognised by process id *and* start time, never by name.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::qmp::Qmp;
use super::record::MachineRecord;

/// For how long QEMU tries to reach the export again after the branch server went away. A guest waits as long.
const RECONNECT_S: u32 = 86_400;

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// The desktop's name.
    pub name: String,
    /// Where its files are.
    pub dir: PathBuf,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Whether unmodified guests run on this host's KVM.
    pub kvm: bool,
    /// The server's NBD socket.
    pub nbd_socket: PathBuf,
    /// Kernel, initrd and kernel command line, where the version has boot artifacts; else firmware boots the disk.
    pub boot: Option<(PathBuf, Option<PathBuf>, String)>,
    /// The QEMU program.
    pub qemu: PathBuf,
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The program is not there.
    #[error("{program} is not installed; install Debian's package qemu-system-x86")]
    NoQemu {
        /// What was to be run.
        program: String,
    },
    /// It could not be run, or its files could not be made.
    #[error("desktop {name}: {what}")]
    Io {
        /// The desktop.
        name: String,
        /// What was being done.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// It ended at once.
    #[error("desktop {name}: the machine ended at once: {log}")]
    Ended {
        /// The desktop.
        name: String,
        /// Last words of its log.
        log: String,
    },
}

impl MachineSpec {
    /// Path of the serial console's Unix socket.
    pub fn serial_socket(dir: &Path) -> PathBuf {
        dir.join("serial.sock")
    }

    /// Path of the serial console's log.
    pub fn serial_log(dir: &Path) -> PathBuf {
        dir.join("serial.log")
    }

    fn qmp_socket(dir: &Path) -> PathBuf {
        dir.join("qmp.sock")
    }

    /// QEMU's arguments. Commas in paths are doubled, as its option syntax asks.
    fn arguments(&self) -> Vec<String> {
        let path = |p: &Path| p.display().to_string().replace(',', ",,");
        let mut args: Vec<String> = Vec::new();
        let mut arg = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
        arg("-name", format!("guest={},debug-threads=on", self.name));
        let (accelerator, cpu) = if self.kvm {
            ("kvm", "host")
        } else {
            ("tcg,thread=multi", "max")
        };
        arg("-accel", accelerator.into());
        arg("-cpu", cpu.into());
        arg("-machine", "q35".into());
        arg("-smp", self.vcpus.to_string());
        arg("-m", format!("{}M", self.memory_mib));
        arg(
            "-blockdev",
            format!(
                "driver=nbd,node-name=system,server.type=unix,server.path={},export=desktop/{},reconnect-delay={RECONNECT_S},discard=unmap",
                path(&self.nbd_socket),
                self.name
            ),
        );
        // A read that the branch gave up on pauses the guest instead of breaking its file system; it goes on when the link is back.
        arg(
            "-device",
            format!(
                "virtio-blk-pci,drive=system,serial={},rerror=stop,werror=stop",
                &self.name[..self.name.len().min(20)]
            ),
        );
        arg("-device", "virtio-rng-pci".into());
        if let Some((kernel, initrd, command_line)) = &self.boot {
            arg("-kernel", kernel.display().to_string());
            if let Some(initrd) = initrd {
                arg("-initrd", initrd.display().to_string());
            }
            arg("-append", command_line.clone());
        }
        arg(
            "-chardev",
            format!(
                "socket,id=serial0,path={},server=on,wait=off,logfile={},logappend=on",
                path(&Self::serial_socket(&self.dir)),
                path(&Self::serial_log(&self.dir))
            ),
        );
        arg("-serial", "chardev:serial0".into());
        arg(
            "-qmp",
            format!(
                "unix:{},server=on,wait=off",
                path(&Self::qmp_socket(&self.dir))
            ),
        );
        arg("-display", "none".into());
        arg("-vga", "std".into());
        arg("-nic", "none".into());
        arg("-nodefaults", String::new());
        args.retain(|a| !a.is_empty());
        args
    }

    /// Starts the process and waits until its monitor answers.
    pub fn start(&self, now_unix_ms: u64) -> Result<MachineRecord, MachineError> {
        let io = |what: &str| {
            let (name, what) = (self.name.clone(), what.to_owned());
            move |source| MachineError::Io { name, what, source }
        };
        for socket in [Self::serial_socket(&self.dir), Self::qmp_socket(&self.dir)] {
            match std::fs::remove_file(&socket) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io("old socket")(e));
                }
                _ => {}
            }
        }
        let log_path = self.dir.join("machine.log");
        let log = open_log(&log_path).map_err(io("machine log"))?;
        let mut command = Command::new(&self.qemu);
        command
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(io("machine log"))?)
            .stderr(log);
        // SAFETY: setsid is async-signal-safe and touches no memory of ours; nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound {
                let program = self.qemu.display().to_string();
                return MachineError::NoQemu { program };
            }
            io("start the machine")(source)
        })?;
        let pid = child.id();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            if let Ok(Some(_)) = child.try_wait() {
                return Err(self.ended(&log_path));
            }
            if Qmp::connect(&Self::qmp_socket(&self.dir)).is_ok() {
                // The child handle only reaps; a thread of its own keeps the process from staying a zombie.
                std::thread::spawn(move || child.wait());
                return Ok(MachineRecord {
                    pid,
                    start_ticks: start_ticks(pid).unwrap_or(0),
                    accelerator: if self.kvm { "kvm" } else { "tcg" }.into(),
                    started_unix_ms: now_unix_ms,
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(self.ended(&log_path))
    }

    fn ended(&self, log_path: &Path) -> MachineError {
        let log = std::fs::read_to_string(log_path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        MachineError::Ended {
            name: self.name.clone(),
            log: lines.into_iter().rev().collect::<Vec<_>>().join("; "),
        }
    }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// Field 22 of `/proc/PID/stat`; `None` if there is no such process, or only a zombie.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, in parentheses, may contain anything, spaces and parentheses included.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether the recorded process still runs.
pub fn is_alive(machine: &MachineRecord) -> bool {
    start_ticks(machine.pid) == Some(machine.start_ticks)
}

/// Lets a guest go on that QEMU paused because a read or write failed. Returns whether it was paused.
pub fn resume_after_io_error(dir: &Path) -> bool {
    let Ok(mut qmp) = Qmp::connect(&MachineSpec::qmp_socket(dir)) else {
        return false;
    };
    let Ok(status) = qmp.run("query-status") else {
        return false;
    };
    status["status"] == "io-error" && qmp.run("cont").is_ok()
}

/// Whether QEMU paused the guest because of a failed read or write.
pub fn is_paused_by_io_error(dir: &Path) -> bool {
    Qmp::connect(&MachineSpec::qmp_socket(dir))
        .and_then(|mut qmp| qmp.run("query-status"))
        .is_ok_and(|status| status["status"] == "io-error")
}

/// Ends a machine: asks the guest by its power button and waits up to `grace`, then ends QEMU.
pub fn stop(machine: &MachineRecord, dir: &Path, grace: Duration) {
    let socket = MachineSpec::qmp_socket(dir);
    let begun = Instant::now();
    if !grace.is_zero()
        && Qmp::connect(&socket).is_ok_and(|mut q| q.run("system_powerdown").is_ok())
    {
        while begun.elapsed() < grace && is_alive(machine) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    if is_alive(machine) {
        // `quit` flushes the volume on its way out; the signal is for a QEMU that does not answer.
        let _ = Qmp::connect(&socket).and_then(|mut q| q.run("quit"));
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(5) && is_alive(machine) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    if is_alive(machine)
        && let Some(pid) = rustix::process::Pid::from_raw(machine.pid as i32)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(5) && is_alive(machine) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
