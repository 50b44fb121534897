//! One machine process: how it is started, recognised again after a restart of the branch server, and ended.
//!
//! ```text
//!  choose ──► command of splice-vmm or QEMU ──► process, a session of its own ──► asked over its control socket
//! ```
//!
//! The process outlives the branch server: its guest waits at its disk and goes on when the server is back. It is always recognised by
//! process id *and* start time, never by name. What differs between the two programs, their arguments and what they are asked, is in
//! [`splice`] and [`qemu`]; nothing else knows which one runs.

pub mod choose;
pub mod confine;
pub(super) mod files;
pub(super) mod firmware;
pub(super) mod libvirt;
mod qemu;
mod qmp;
mod splice;
mod tpm;
pub mod uids;

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use choose::{Choice, DiskFront, MachineHost, MachineKind, Needs, NoSplice, choose};
pub use confine::Confinement;
pub use files::Files;
pub use firmware::Firmware;
pub use qemu::disk_serial;
use rustix::fs::Mode;
use rustix::io::FdFlags;

use super::record::MachineRecord;
use crate::network::{Card, NetworkError};
use crate::template::Handed;
use uids::UidError;

/// How long a machine may take until it answers; on a busy host it takes seconds.
const START: Duration = Duration::from_secs(60);
/// How long one that was told to end may take. It waits for its disk's server, which gives requests in work five seconds.
const END: Duration = Duration::from_secs(10);
/// Of a folder's mode: those who are neither its owner nor of its group.
const OTHERS: u32 = 0o007;
/// How long the kernel may take to end one that is killed.
const KILLED: Duration = Duration::from_secs(5);

/// A kernel to be started without firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectBoot {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub command_line: String,
}

/// What starts a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// The machine itself, by the version's kernel.
    Kernel(DirectBoot),
    /// A PC's BIOS, from the disk.
    Bios,
    /// UEFI, from the disk.
    Uefi(Firmware),
}

/// What a machine goes on from, instead of booting; splice-vmm only.
#[derive(Debug, Clone)]
pub struct Resume {
    /// The files of a machine that was saved.
    pub files: Handed,
    /// Whether the order in which it needs its memory is recorded. Its disk waits for that.
    pub records: bool,
}

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// The desktop's name.
    pub name: String,
    /// Its files.
    pub files: Files,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Which machine, and why.
    pub choice: Choice,
    /// What starts its guest.
    pub boot: Boot,
    /// Whether it has a TPM; QEMU only.
    pub tpm: bool,
    /// Serial number of its user volume, if it has one.
    pub user_serial: Option<String>,
    /// Whom its process becomes; splice-vmm only.
    pub uid: Option<u32>,
    /// Its network card.
    pub card: Option<Card>,
    /// What it goes on from.
    pub resume: Option<Resume>,
    /// Whether it will be saved: a copy of its memory counts as its own.
    pub is_saved: bool,
    /// What it is made with.
    pub host: MachineHost,
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// It cannot be what its pool asks for.
    #[error("desktop {name}: {source}")]
    NoSplice {
        /// The desktop.
        name: String,
        /// Why.
        source: NoSplice,
    },
    /// There is no user for it.
    #[error("desktop {name} gets no user for its machine")]
    NoUser {
        /// The desktop.
        name: String,
        /// Why.
        source: UidError,
    },
    /// Its network is not to be had.
    #[error("desktop {name} gets no network")]
    Network {
        /// The desktop.
        name: String,
        /// Why.
        source: NetworkError,
    },
    /// A program is not there.
    #[error("{program} is not installed; {way_out}")]
    NoProgram {
        /// What was to be run.
        program: String,
        /// How to get it.
        way_out: &'static str,
    },
    /// The disk boots by UEFI, and there is none.
    #[error(
        "desktop {name}: its disk boots by UEFI, and no firmware is at /usr/share/OVMF; install Debian's package ovmf"
    )]
    NoUefi {
        /// The desktop.
        name: String,
    },
    /// Its TPM did not start.
    #[error("desktop {name}: its TPM (swtpm) did not start: {log}")]
    Tpm {
        /// The desktop.
        name: String,
        /// Last words of its log.
        log: String,
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
    /// It does not answer.
    #[error("desktop {name}: the machine does not answer within {START:?}: {log}")]
    Silent {
        /// The desktop.
        name: String,
        /// Last words of its log.
        log: String,
    },
}

impl MachineSpec {
    fn io(&self, what: &str) -> impl Fn(std::io::Error) -> MachineError + use<> {
        let (name, what) = (self.name.clone(), what.to_owned());
        move |source| MachineError::Io {
            name: name.clone(),
            what: what.clone(),
            source,
        }
    }

    /// Starts the process and waits until it answers.
    ///
    /// # Errors
    /// See [`MachineError`]; no process is left then.
    pub fn start(&self, now_unix_ms: u64) -> Result<MachineRecord, MachineError> {
        for socket in self.files.machine_sockets() {
            match std::fs::remove_file(&socket) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(self.io("old socket")(e));
                }
                _ => {}
            }
        }
        let kind = self.choice.kind;
        let (command, way_out) = match kind {
            MachineKind::Splice => (
                splice::command(self),
                "install splice-vmm beside splice-branch",
            ),
            MachineKind::QemuKvm | MachineKind::QemuTcg => (
                qemu::command(self),
                "install Debian's package qemu-system-x86",
            ),
        };
        let tpm = self.tpm.then(|| tpm::start(self)).transpose()?;
        let started = self.start_process(command, way_out, now_unix_ms);
        if let Some(mut tpm) = tpm {
            if started.is_err() {
                let _ = tpm.kill();
            }
            std::thread::spawn(move || tpm.wait());
        }
        started
    }

    fn start_process(
        &self,
        command: Command,
        way_out: &'static str,
        now_unix_ms: u64,
    ) -> Result<MachineRecord, MachineError> {
        let kind = self.choice.kind;
        let mut child = self.spawn(command, way_out, self.inherited())?;
        let pid = child.id();
        let begun = Instant::now();
        while begun.elapsed() < START {
            if let Ok(Some(_)) = child.try_wait() {
                let (name, log) = (self.name.clone(), self.last_words());
                return Err(MachineError::Ended { name, log });
            }
            let answers = match kind {
                MachineKind::Splice => splice::is_up(&self.files),
                MachineKind::QemuKvm | MachineKind::QemuTcg => qemu::is_up(&self.files),
            };
            if answers {
                // The child handle only reaps; a thread of its own keeps the process from staying a zombie.
                std::thread::spawn(move || child.wait());
                return Ok(MachineRecord {
                    pid,
                    start_ticks: start_ticks(pid).unwrap_or(0),
                    kind,
                    started_unix_ms: now_unix_ms,
                    reason: self.choice.reason.clone(),
                    disk: self.disk_front(),
                    sandbox: self.sandbox(),
                    network: self.card.as_ref().map(|card| card.told.clone()),
                    start: None,
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        let _ = child.wait();
        let (name, log) = (self.name.clone(), self.last_words());
        Err(MachineError::Silent { name, log })
    }

    /// How the machine reaches its disk.
    pub fn disk_front(&self) -> DiskFront {
        match self.choice.kind {
            MachineKind::Splice => DiskFront::VhostUser,
            MachineKind::QemuKvm | MachineKind::QemuTcg => self.host.qemu_disk,
        }
    }

    /// What of a sandbox is in force around it; none around QEMU.
    fn sandbox(&self) -> Option<String> {
        match self.choice.kind {
            MachineKind::Splice => Some(self.host.confinement.describe()),
            MachineKind::QemuKvm | MachineKind::QemuTcg => None,
        }
    }

    /// Queues of its disk over vhost-user: one for each processor.
    pub fn disk_queues(&self) -> u16 {
        disk_queues(self.vcpus)
    }

    /// Files that its process inherits.
    fn inherited(&self) -> Vec<Arc<OwnedFd>> {
        let tap = self.card.iter().map(|card| &card.tap);
        let resume = self.resume.iter().map(|resume| &resume.files);
        let saved = resume.flat_map(|files| [&files.state, &files.memory, &files.order]);
        tap.chain(saved).cloned().collect()
    }

    /// Runs a program in a session of its own, its output in the machine's log. It inherits these files.
    fn spawn(
        &self,
        mut command: Command,
        way_out: &'static str,
        inherited: Vec<Arc<OwnedFd>>,
    ) -> Result<Child, MachineError> {
        let failed = self.io("machine log");
        let log = open_log(&self.files.machine_log()).map_err(&failed)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(&failed)?)
            .stderr(log);
        // SAFETY: the calls are async-signal-safe and touch no memory of ours; nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                // In the new process only: no other that is started meanwhile gets them.
                for file in &inherited {
                    rustix::io::fcntl_setfd(file, FdFlags::empty())?;
                }
                // Sockets and logs that it makes are its starter's alone.
                rustix::process::umask(Mode::RWXG | Mode::RWXO);
                Ok(())
            });
        }
        command.spawn().map_err(|source| {
            let program = command.get_program().to_string_lossy().into_owned();
            if source.kind() == std::io::ErrorKind::NotFound {
                return MachineError::NoProgram { program, way_out };
            }
            self.io(&format!("start {program}"))(source)
        })
    }

    fn last_words(&self) -> String {
        let log = std::fs::read(self.files.machine_log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("; ")
    }
}

/// Queues of the disk of a desktop with so many processors.
pub fn disk_queues(vcpus: u32) -> u16 {
    let most = vmm_block::vhost_user::QUEUES_MAX;
    u16::try_from(vcpus).unwrap_or(most).clamp(1, most)
}

/// Makes a folder that only the branch server's user may enter, or closes one that others may. What an access list lets in (libvirt's QEMU,
/// say) keeps its way: its mask is in the group's place, which stays.
pub(super) fn private_folder(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path)?;
    let mut permissions = std::fs::metadata(path)?.permissions();
    if permissions.mode() & OTHERS != 0 {
        permissions.set_mode(permissions.mode() & !OTHERS);
        std::fs::set_permissions(path, permissions)?;
    }
    Ok(())
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

/// Lets a guest go on that its machine paused because a read or write failed. Returns whether it was paused. Only QEMU on NBD pauses: over
/// vhost-user the request itself waits.
pub fn resume_after_io_error(machine: &MachineRecord, files: &Files) -> bool {
    match machine.kind {
        MachineKind::Splice => false,
        MachineKind::QemuKvm | MachineKind::QemuTcg => qemu::resume_after_io_error(files),
    }
}

/// Whether the machine paused its guest because of a failed read or write.
pub fn is_paused_by_io_error(machine: &MachineRecord, files: &Files) -> bool {
    match machine.kind {
        MachineKind::Splice => false,
        MachineKind::QemuKvm | MachineKind::QemuTcg => qemu::is_paused_by_io_error(files),
    }
}

/// Ends a machine: asks the guest by its power button, unless its agent `was_asked`, and waits up to `grace`, then ends the process.
pub fn stop(machine: &MachineRecord, files: &Files, grace: Duration, was_asked: bool) {
    if !grace.is_zero() && (was_asked || press_power_button(machine, files)) {
        wait_for_end(machine, grace);
    }
    if is_alive(machine) {
        // It finishes what its disk has in work; the signal is for one that does not answer.
        quit(machine, files);
        wait_for_end(machine, END);
    }
    if is_alive(machine)
        && let Some(pid) = rustix::process::Pid::from_raw(machine.pid as i32)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        wait_for_end(machine, KILLED);
    }
}

/// Has a machine on splice-vmm saved into empty files; it ends then without having run again.
///
/// # Errors
/// Why not.
pub fn save(files: &Files, state: &File, memory: &File) -> Result<(), String> {
    splice::save(files, state, memory)
}

/// Ends a machine that was started here and not noted any more, whichever it is: its server ended in that moment. Nothing happens if there is none.
/// It is recognised by who listens at its control socket, which lies in a folder that nobody else may enter.
pub fn end_unnoted(files: &Files) {
    for kind in [MachineKind::Splice, MachineKind::QemuTcg] {
        let socket = files.control_socket(kind != MachineKind::Splice);
        let Some((pid, start_ticks)) = listener(&socket) else {
            continue;
        };
        let machine = MachineRecord {
            pid,
            start_ticks,
            kind,
            started_unix_ms: 0,
            reason: "its start was not noted".into(),
            disk: DiskFront::default(),
            sandbox: None,
            network: None,
            start: None,
        };
        tracing::warn!(pid, folder = %files.dir().display(), "a machine whose start was not noted is ended");
        stop(&machine, files, Duration::ZERO, false);
    }
}

/// Id and start time of the process that listens at a socket; `None` if none does.
fn listener(socket: &Path) -> Option<(u32, u64)> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    let pid = peer.pid.as_raw_nonzero().get() as u32;
    Some((pid, start_ticks(pid)?))
}

/// Puts the cable into the network card of a machine on splice-vmm, or pulls it. Returns whether that was done.
pub fn plug(files: &Files, is_in: bool) -> bool {
    splice::link(files, is_in)
}

fn press_power_button(machine: &MachineRecord, files: &Files) -> bool {
    match machine.kind {
        MachineKind::Splice => splice::press_power_button(files),
        MachineKind::QemuKvm | MachineKind::QemuTcg => qemu::press_power_button(files),
    }
}

fn quit(machine: &MachineRecord, files: &Files) -> bool {
    match machine.kind {
        MachineKind::Splice => splice::quit(files),
        MachineKind::QemuKvm | MachineKind::QemuTcg => qemu::quit(files),
    }
}

fn wait_for_end(machine: &MachineRecord, patience: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < patience && is_alive(machine) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use vmm_api::{CpuVirt, HostVirt, KvmKind};

    use super::*;

    pub(super) fn spec(kind: MachineKind) -> MachineSpec {
        MachineSpec {
            name: "alice".into(),
            files: Files::new("/d/alice".into()),
            memory_mib: 1024,
            vcpus: 2,
            choice: Choice {
                kind,
                reason: "a test".into(),
            },
            boot: Boot::Bios,
            tpm: false,
            user_serial: None,
            uid: Some(70_000),
            card: None,
            resume: None,
            is_saved: false,
            host: MachineHost {
                virt: HostVirt {
                    kind: KvmKind::Hardware,
                    reasons: Vec::new(),
                    advice: None,
                    probes: Vec::new(),
                    instructions_per_second: None,
                    cpu: CpuVirt::default(),
                },
                vmm: Some("/opt/splice-vmm".into()),
                qemu: "/opt/qemu".into(),
                qemu_disk: DiskFront::default(),
                nbd_socket: "/d/nbd.sock".into(),
                confinement: Confinement::default(),
            },
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        for (kind, way_out) in [
            (MachineKind::Splice, "beside splice-branch"),
            (MachineKind::QemuTcg, "qemu-system-x86"),
        ] {
            let mut spec = spec(kind);
            spec.files = Files::new(folder.path().into());
            spec.host.vmm = Some(folder.path().join("none"));
            spec.host.qemu = folder.path().join("none");
            let error = spec.start(0).unwrap_err().to_string();
            assert!(error.contains(way_out), "{error}");
        }
    }

    #[test]
    fn a_machine_that_ends_at_once_says_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("vmm");
        std::fs::write(
            &program,
            "#!/bin/sh\necho one; echo no memory >&2; exit 1\n",
        )
        .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&program, mode).unwrap();
        let mut spec = spec(MachineKind::Splice);
        spec.files = Files::new(folder.path().into());
        spec.host.vmm = Some(program);
        let error = spec.start(0).unwrap_err().to_string();
        assert!(error.contains("one; no memory"), "{error}");
    }

    #[test]
    fn a_desktop_s_folder_is_nobody_else_s() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("desktops/alice");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        private_folder(&path).unwrap();
        assert_eq!(mode(), 0o700);
        // As former versions made it, and with the mask of an access list.
        for (before, after) in [(0o755, 0o750), (0o710, 0o710), (0o777, 0o770)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(before)).unwrap();
            private_folder(&path).unwrap();
            assert_eq!(mode(), after);
        }
    }

    /// A card on a file in the place of a tap: its descriptor is open in the machine's process, under the number that it is told.
    pub(super) fn card() -> Card {
        let file = File::open("/dev/null").unwrap();
        Card {
            tap: Arc::new(file.into()),
            mac: [0x52, 0x53, 10, 213, 0, 2],
            told: "nat, 10.213.0.2".into(),
        }
    }

    #[test]
    fn a_machine_inherits_its_tap_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = spec(MachineKind::Splice);
        spec.files = Files::new(folder.path().into());
        let (own, other) = (card(), card());
        for (card, inherits) in [(&own, true), (&other, false)] {
            let mut command = Command::new("test");
            let number = std::os::fd::AsRawFd::as_raw_fd(&card.tap);
            command.arg("-e").arg(format!("/proc/self/fd/{number}"));
            let tap = vec![Arc::clone(&own.tap)];
            let mut child = spec.spawn(command, "", tap).unwrap();
            assert_eq!(child.wait().unwrap().success(), inherits);
        }
    }

    /// Whatever the branch server's own mask: what a machine makes is for its starter only.
    #[test]
    fn what_a_machine_makes_is_for_its_starter_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = spec(MachineKind::Splice);
        spec.files = Files::new(folder.path().into());
        let made = folder.path().join("made");
        let mut command = Command::new("touch");
        command.arg(&made);
        let mut touch = spec.spawn(command, "", Vec::new()).unwrap();
        assert!(touch.wait().unwrap().success());
        let mode = std::fs::metadata(&made).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// Where the test below has its QEMU listen, when it runs as a process of its own.
    const MONITOR: &str = "SPLICE_TEST_MONITOR";

    /// As much of QEMU as is asked to end: a monitor that greets, answers, and ends its process when it is told to.
    #[test]
    #[ignore = "it is the machine of another test"]
    fn a_monitor_as_a_process() {
        use std::io::{BufRead, BufReader, Write};

        let Some(path) = std::env::var_os(MONITOR) else {
            return;
        };
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            // Whoever only looks who listens is gone by now.
            let _ = writeln!(stream, "{{\"QMP\":{{}}}}");
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for line in lines.map_while(Result::ok) {
                let _ = writeln!(stream, "{{\"return\":{{}}}}");
                if line.contains("quit") {
                    std::process::exit(0);
                }
            }
        }
    }

    #[test]
    fn a_machine_whose_start_was_not_noted_is_ended_whichever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path().into());
        end_unnoted(&files);
        let socket = files.control_socket(true);
        let mut machine = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact"])
            .arg("desktop::machine::tests::a_monitor_as_a_process")
            .env(MONITOR, &socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let found = loop {
            if let Some(found) = listener(&socket) {
                break found;
            }
            assert!(begun.elapsed() < START, "nobody listens");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(found.0, machine.id());
        end_unnoted(&files);
        // A zombie until it is waited for, which counts as ended.
        assert_eq!(start_ticks(machine.id()), None);
        machine.wait().unwrap();
        // What is left of it is a socket at which nobody listens.
        assert_eq!(listener(&socket), None);
        end_unnoted(&files);
    }

    #[test]
    fn disks_have_a_queue_for_each_processor_up_to_a_limit() {
        assert_eq!([0, 1, 3, 500].map(disk_queues), [1, 1, 3, 16]);
    }
}
