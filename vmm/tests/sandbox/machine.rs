//! A machine in its sandbox: on the KVM at hand, as the host and its user see it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use vmm_api::{Answer, Command as Ask};

use crate::attempts::is_root;
use crate::guest::{self, ECHO, FALL, HELLO, OFF, RESET};

const PATIENCE: Duration = Duration::from_secs(30);

pub struct Machine {
    folder: Rc<tempfile::TempDir>,
    pub process: Child,
    console: UnixStream,
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn splice_vmm(what: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_splice-vmm"));
    command.arg(what);
    command
}

impl Machine {
    /// None: there is no KVM here.
    fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    pub fn start_with(more: &[&str]) -> Option<Self> {
        if let Err(error) = vmm::machine::open_kvm() {
            eprintln!("no KVM here ({error}): nothing to run a guest on");
            return None;
        }
        let folder = Rc::new(tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("disk"), vec![0; 1 << 20]).unwrap();
        let mut command = splice_vmm("run");
        command
            .args(["--memory", "64", "--vcpus", "2", "--kernel"])
            .arg(guest::kernel(folder.path()))
            .args(more);
        Some(Self::launch(folder, command))
    }

    /// The next machine, which goes on from a snapshot of this one, with these options.
    pub fn resume(&self, name: &str, options: &[&str]) -> Self {
        let place = self.path(name);
        self.resume_from(place.to_str().unwrap(), options)
    }

    /// The same, as `splice-vmm resume` takes it.
    pub fn resume_from(&self, place: &str, options: &[&str]) -> Self {
        let mut command = splice_vmm("resume");
        command.arg(place).args(options);
        Self::launch(Rc::clone(&self.folder), command)
    }

    fn launch(folder: Rc<tempfile::TempDir>, mut command: Command) -> Self {
        let at = |name: &str| folder.path().join(name);
        command.args(["--display", "640x480"]);
        for (option, name) in [
            ("--disk", "disk"),
            ("--serial-log", "log"),
            ("--serial-socket", "console"),
            ("--control", "control"),
            ("--rfb-socket", "screen"),
        ] {
            command.arg(option).arg(at(name));
        }
        command
            .arg("--port")
            .arg(format!("agent={}", at("agent").display()));
        if is_root() {
            command.args(["--sandbox", "full", "--uid", "20019"]);
        }
        let said = std::fs::File::create(at("said")).unwrap();
        let process = command.stdin(Stdio::null()).stderr(said).spawn().unwrap();
        let console = wait("the console", || UnixStream::connect(at("console")).ok());
        console.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            folder,
            process,
            console,
        }
    }

    /// Has it saved.
    pub fn save(&self, name: &str, options: &[&str]) -> bool {
        let mut command = splice_vmm("snapshot");
        command.args([self.path("control"), self.path(name)]);
        command.args(options).status().unwrap().success()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(self.path("said")).unwrap()
    }

    /// Waits until the guest has started so often, by the log: a console may come too late to see it.
    pub fn wait_started(&mut self, times: usize) {
        let (log, said) = (self.path("log"), self.path("said"));
        wait("the guest's start", || {
            let ended = self.process.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "{ended:?}: {:?}",
                std::fs::read_to_string(&said)
            );
            let log = std::fs::read(&log).unwrap_or_default();
            let count = log.iter().filter(|letter| **letter == HELLO).count();
            (count >= times).then_some(())
        });
    }

    pub fn type_letter(&mut self, letter: u8) {
        self.console.write_all(&[letter]).unwrap();
    }

    /// Types a letter that the guest answers.
    pub fn is_answered(&mut self) {
        self.type_letter(b'?');
        let mut seen = [0];
        while seen != [ECHO] {
            self.console.read_exact(&mut seen).unwrap();
        }
    }

    fn ask(&self, command: &Ask) -> Answer {
        let mut socket = UnixStream::connect(self.path("control")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        serde_json::to_writer(&mut socket, command).unwrap();
        socket.write_all(b"\n").unwrap();
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub fn end(&mut self) -> ExitStatus {
        wait("the end", || self.process.try_wait().unwrap())
    }

    /// The process that is the machine, a child of the one that was started.
    fn inner(&self) -> u32 {
        let outer = self.process.id();
        let children = format!("/proc/{outer}/task/{outer}/children");
        let children = std::fs::read_to_string(children).unwrap();
        children.trim().parse().unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_machine_runs_resets_and_powers_off_inside() {
    let Some(mut machine) = Machine::start() else {
        return;
    };
    machine.wait_started(1);
    machine.is_answered();
    machine.type_letter(RESET);
    machine.wait_started(2);
    machine.is_answered();
    // A triple fault is a reset too.
    machine.type_letter(FALL);
    machine.wait_started(3);
    machine.is_answered();
    let Answer::Status(status) = machine.ask(&Ask::Status) else {
        panic!("no status");
    };
    assert_eq!((status.resets, status.vcpus), (2, 2));
    assert_eq!(machine.ask(&Ask::Pause), Answer::Done);
    assert_eq!(machine.ask(&Ask::Resume), Answer::Done);
    assert_eq!(machine.ask(&Ask::PowerButton), Answer::Done);
    assert_eq!(machine.ask(&Ask::Balloon { mib: 16 }), Answer::Done);
    machine.is_answered();
    // Its screen is black.
    let picture = machine.path("picture.ppm");
    let saved = splice_vmm("screenshot")
        .args([machine.path("screen"), picture.clone()])
        .status()
        .unwrap();
    assert!(saved.success());
    assert!(std::fs::read(picture).unwrap().len() > 640 * 480 * 3);
    drop(UnixStream::connect(machine.path("agent")).unwrap());
    machine.type_letter(OFF);
    let end = machine.end();
    assert_eq!(end.code(), Some(0), "{end}: {}", machine.said());
    if is_root() {
        assert_eq!(machine.said(), "", "all is in force");
    }
}

/// Saved and gone on with by processes that open nothing, each in a sandbox of its own.
#[test]
fn a_machine_is_saved_and_goes_on_inside() {
    let Some(mut machine) = Machine::start() else {
        return;
    };
    machine.wait_started(1);
    assert!(machine.save("first", &[]), "{}", machine.said());
    machine.is_answered();
    assert!(!machine.save("first", &[]), "it is there already");
    assert!(machine.save("second", &["--quit"]), "{}", machine.said());
    assert_eq!(machine.end().code(), Some(0), "{}", machine.said());
    let kernel = machine.path("kernel");
    for name in ["first", "second"] {
        let mut next = machine.resume(name, &[]);
        next.is_answered();
        let Answer::Status(status) = next.ask(&Ask::Status) else {
            panic!("no status");
        };
        assert_eq!((status.memory_mib, status.vcpus), (64, 2));
        // Saved again while its memory still comes.
        assert!(next.save(&format!("{name}-again"), &[]), "{}", next.said());
        next.is_answered();
        next.type_letter(RESET);
        assert_eq!(next.end().code(), Some(3), "{}", next.said());
    }
    let kernel = kernel.to_str().unwrap();
    let mut last = machine.resume("second-again", &["--clone", "--kernel", kernel]);
    last.is_answered();
    last.type_letter(RESET);
    // It boots, for the second time since the first machine.
    last.wait_started(2);
    last.type_letter(OFF);
    assert_eq!(last.end().code(), Some(0), "{}", last.said());

    // Damage is told, and no guest runs.
    let memory = machine.path("first/memory");
    let bytes = std::fs::metadata(&memory).unwrap().len();
    let file = std::fs::File::options().write(true).open(&memory).unwrap();
    file.set_len(bytes - 1).unwrap();
    let refused = splice_vmm("resume").arg(machine.path("first")).output();
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("bytes"), "{told}");
}

/// A line of a process's status.
fn status(process: u32, key: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().trim().to_owned()
}

#[test]
fn the_host_sees_a_process_that_has_nothing() {
    if !is_root() {
        eprintln!("not root: other users' processes cannot be looked at");
        return;
    }
    let Some(mut machine) = Machine::start() else {
        return;
    };
    machine.wait_started(1);
    let (outer, inner) = (machine.process.id(), machine.inner());
    for process in [outer, inner] {
        assert_eq!(status(process, "NoNewPrivs:"), "1");
        assert_eq!(status(process, "Seccomp:"), "2");
        for set in ["CapInh:", "CapBnd:", "CapAmb:"] {
            assert_eq!(status(process, set), "0000000000000000", "{set}");
        }
    }
    for set in ["CapPrm:", "CapEff:"] {
        assert_eq!(status(inner, set), "0000000000000000", "{set}");
        // It may end its child, and nothing else.
        assert_eq!(status(outer, set), "0000000000000020", "{set}");
    }
    assert_eq!(status(inner, "Uid:"), "20019\t20019\t20019\t20019");
    assert_eq!(status(inner, "Groups:"), "");
    assert!(
        status(inner, "NSpid:").ends_with("\t1"),
        "its own first process"
    );
    for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
        let of = |process: u32| std::fs::read_link(format!("/proc/{process}/ns/{namespace}"));
        assert_ne!(
            of(inner).unwrap(),
            of(std::process::id()).unwrap(),
            "{namespace}"
        );
    }
    let root = format!("/proc/{inner}/root/");
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
    let mounts = std::fs::read_to_string(format!("/proc/{inner}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    // Standard ones, the way to the machine, and signals.
    let files = std::fs::read_dir(format!("/proc/{outer}/fd")).unwrap();
    assert_eq!(files.count(), 5);
    // Each thread has its own list on top of the process's two.
    for thread in std::fs::read_dir(format!("/proc/{inner}/task")).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let of = |key| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap()
                .trim()
        };
        let lists = if of("Name:") == "starter" { "2" } else { "3" };
        assert_eq!(of("Seccomp_filters:"), lists, "{}", of("Name:"));
    }
}

#[test]
fn a_signal_to_the_outer_process_ends_the_machine() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let Some(mut machine) = Machine::start() else {
            return;
        };
        machine.wait_started(1);
        // SAFETY: plain numbers; the process is our child and not waited for yet.
        unsafe { libc::kill(machine.process.id() as i32, signal) };
        let end = machine.end();
        assert_eq!(end.code(), Some(0), "{end}: {}", machine.said());
    }
}

#[test]
fn both_processes_go_together() {
    let Some(mut machine) = Machine::start() else {
        return;
    };
    machine.wait_started(1);
    let inner = machine.inner();
    let folder = format!("/proc/{inner}");
    machine.process.kill().unwrap();
    assert_eq!(machine.end().signal(), Some(libc::SIGKILL));
    wait("the machine's end", || {
        (!Path::new(&folder).exists()).then_some(())
    });

    let Some(mut machine) = Machine::start() else {
        return;
    };
    machine.wait_started(1);
    // SAFETY: plain numbers; the process is a child of our child that has not ended.
    let killed = unsafe { libc::kill(machine.inner() as i32, libc::SIGKILL) };
    // Only root may end what has another user.
    if killed == 0 {
        assert_eq!(machine.end().code(), Some(128 + libc::SIGKILL));
        assert!(machine.said().contains("the machine was killed"));
    }
}
