//! What is tried inside, with all layers, and with each without the one in front of it.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use vmm_block::vhost_user::{DiskSpec, VhostUserServer};
use vmm_block::{MemoryDevice, RawFile};

/// Killed for a forbidden system call, as the outer process tells it.
const FORBIDDEN: i32 = 128 + libc::SIGSYS;
const UID: &str = "20017";
const SECTOR_BYTES: usize = 512;

pub fn is_root() -> bool {
    // SAFETY: no arguments.
    unsafe { libc::geteuid() == 0 }
}

/// Built beside this test.
fn probe() -> Command {
    let tests: PathBuf = std::env::current_exe().unwrap();
    let built = tests.parent().unwrap().parent().unwrap();
    Command::new(built.join("examples/sandbox-probe"))
}

fn run(mode: &str, violation: &str, role: &str, attempt: &str, argument: &str) -> Output {
    let uid = if is_root() { UID } else { "-" };
    let words = [mode, violation, uid, role, attempt, argument];
    probe().args(words).output().unwrap()
}

/// What a host lets us have: all of it for root; others may be forbidden to make namespaces.
fn mode() -> &'static str {
    if is_root() { "full" } else { "auto" }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn assert_killed(role: &str, attempt: &str, argument: &str) {
    let output = run(mode(), "kill", role, attempt, argument);
    assert_eq!(
        output.status.code(),
        Some(FORBIDDEN),
        "{attempt} by {role}: {}",
        said(&output)
    );
}

#[test]
fn what_is_on_no_list_kills_the_process() {
    let own = std::process::id().to_string();
    for (attempt, argument) in [
        ("open", "/etc/passwd"),
        ("open", "/proc/self/status"),
        ("list", ""),
        ("write", ""),
        ("socket", ""),
        ("connect", "127.0.0.1:1"),
        ("exec", ""),
        ("fork", ""),
        ("ptrace", &*own),
        ("kill", &*own),
        ("kill-all", ""),
        ("mount", ""),
        ("unshare", ""),
        ("chroot", ""),
        ("become-root", ""),
        ("executable", ""),
        ("terminal", ""),
    ] {
        for role in ["main", "vcpu"] {
            assert_killed(role, attempt, argument);
        }
    }
}

#[test]
fn a_thread_may_do_what_it_is_for() {
    // Standard input is at its end.
    let output = run(mode(), "kill", "disk", "read-disk", "");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for role in ["vcpu", "device", "screen", "remote"] {
        assert_killed(role, "read-disk", "");
    }
    for (attempt, argument) in [("open", "/etc/passwd"), ("terminal", ""), ("socket", "")] {
        assert_killed("pager", attempt, argument);
    }
    for role in [
        "main", "vcpu", "disk", "device", "screen", "remote", "pager",
    ] {
        let output = run(mode(), "kill", role, "heap", "");
        assert_eq!(output.status.code(), Some(0), "{role}: {}", said(&output));
    }
}

#[test]
fn without_lists_there_is_still_nothing_to_be_had() {
    if !is_root() {
        eprintln!("not root: namespaces may not be had here");
        return;
    }
    let mut victim = Victim::spawn();
    let pid = victim.0.id().to_string();
    for (attempt, argument, why) in [
        ("open", "/etc/passwd", "No such file"),
        ("open", "/proc/self/status", "No such file"),
        ("write", "", "Read-only file system"),
        ("connect", "127.0.0.1:1", "Network is unreachable"),
        ("exec", "", "No such file"),
        ("ptrace", &*pid, "No such process"),
        ("kill", &*pid, "No such process"),
        ("kill-all", "", "No such process"),
        ("mount", "", "not permitted"),
        ("chroot", "", "not permitted"),
        ("become-root", "", "not permitted"),
    ] {
        let output = run("auto", "off", "main", attempt, argument);
        let said = said(&output);
        assert!(
            said.contains("refused") && said.contains(why),
            "{attempt} {argument}: {said}"
        );
    }
    let output = run("auto", "off", "main", "list", "");
    assert!(said(&output).contains("done 0"), "{}", said(&output));
    assert!(victim.0.try_wait().unwrap().is_none(), "it still runs");
}

struct Victim(Child);

impl Victim {
    fn spawn() -> Self {
        let mut command = Command::new("sleep");
        Self(command.arg("600").stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_not_in_force_is_told_or_refused() {
    let output = run("auto", "off", "main", "nothing", "");
    let told = said(&output);
    assert!(
        told.contains("lacking lists of system calls: --seccomp off"),
        "{told}"
    );
    let output = run("full", "off", "main", "nothing", "");
    assert!(!output.status.success());
    let output = run("off", "kill", "main", "open", "/proc/self/status");
    assert!(said(&output).contains("lacking sandbox"));
    assert!(said(&output).contains("done"), "{}", said(&output));
}

/// What the branch asks before it starts desktops.
#[test]
fn what_a_host_lacks_is_told_without_a_machine() {
    let lacking = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_splice-vmm"));
        let output = command.arg("sandbox").args(words).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let report: vmm_api::SandboxReport = serde_json::from_slice(&output.stdout).unwrap();
        report.lacking
    };
    let parts = lacking(&["--seccomp", "off"]);
    let lists = parts.iter().find(|part| part.contains("system calls"));
    assert!(lists.unwrap().contains("--seccomp off"), "{parts:?}");
    let folder = tempfile::tempdir().unwrap();
    let group = folder.path().to_str().unwrap();
    let parts = lacking(&["--cgroup", group]);
    let named = parts.iter().find(|part| part.starts_with("control group"));
    assert!(named.unwrap().contains(group), "{parts:?}");
    if is_root() {
        assert_eq!(lacking(&["--uid", UID]), Vec::<String>::new());
    }
}

#[test]
fn only_root_gives_a_machine_another_user() {
    let words = ["auto", "kill", "20017", "main", "nothing", ""];
    let output = probe().args(words).output().unwrap();
    assert_eq!(output.status.success(), is_root(), "{}", said(&output));
}

/// A user that nobody else is may start a machine as well as root; it gets what the host lets it have.
#[test]
fn an_unprivileged_user_gets_a_sandbox_too() {
    if !is_root() {
        return;
    }
    use std::os::unix::process::CommandExt;
    let folder = tempfile::tempdir().unwrap();
    // The build folder may be closed to others.
    let copy = folder.path().join("probe");
    std::fs::copy(probe().get_program(), &copy).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let run = |words: [&str; 6]| {
        let mut command = Command::new(&copy);
        command.args(words).uid(20018).gid(20018);
        command.output().unwrap()
    };
    let output = run(["auto", "kill", "-", "vcpu", "open", "/etc/passwd"]);
    assert_eq!(output.status.code(), Some(FORBIDDEN), "{}", said(&output));
    let output = run(["auto", "off", "-", "main", "open", "/etc/passwd"]);
    let said = said(&output);
    let has_namespaces = !said.contains("lacking namespaces");
    assert_eq!(
        said.contains("refused No such file"),
        has_namespaces,
        "{said}"
    );
}

/// As in many a container: root that may make no namespace and, in a user namespace of its own, become nobody else.
#[test]
fn a_root_without_rights_gets_what_it_can_have() {
    if !is_root() {
        return;
    }
    let probe = probe();
    let run = |mode: &str, violation: &str, attempt: [&str; 2]| {
        let mut command = Command::new("setpriv");
        command
            .arg("--bounding-set=-sys_admin")
            .arg(probe.get_program());
        let words = [mode, violation, UID, "vcpu"];
        command.args(words).args(attempt).output().unwrap()
    };
    let output = run("auto", "kill", ["nothing", ""]);
    let said = said(&output);
    assert!(
        said.contains("lacking a user of its own: ") && said.contains("done"),
        "{said}"
    );
    let output = run("auto", "kill", ["open", "/etc/passwd"]);
    assert_eq!(output.status.code(), Some(FORBIDDEN));
    assert!(!run("full", "kill", ["nothing", ""]).status.success());
}

#[test]
fn devices_work_inside() {
    let folder = tempfile::tempdir().unwrap();
    drop(RawFile::create(&folder.path().join("disk"), 1 << 20).unwrap());
    let port = folder.path().join("port");
    // Somebody who opens a port, again and again.
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let client = std::thread::spawn(move || {
        let mut opened = 0;
        while !stop.load(std::sync::atomic::Ordering::Acquire) {
            if let Ok(mut client) = std::os::unix::net::UnixStream::connect(&port) {
                opened += usize::from(std::io::Write::write(&mut client, b"hello").is_ok());
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        opened
    });
    let argument = folder.path().to_str().unwrap();
    let output = run(mode(), "kill", "main", "devices", argument);
    done.store(true, std::sync::atomic::Ordering::Release);
    assert!(client.join().unwrap() > 0);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("done"), "{}", said(&output));
}

#[test]
fn memory_of_a_snapshot_comes_inside() {
    let output = run(mode(), "kill", "main", "page", "");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    // Where the kernel has no userfaultfd for us, it comes before the machine goes on.
    let told = said(&output);
    assert!(
        told.contains("done lazily") || told.contains("done at once"),
        "{told}"
    );
}

fn serve(socket: &Path, disk: &Arc<MemoryDevice>) -> VhostUserServer {
    let disk = DiskSpec {
        device: Arc::clone(disk) as _,
        serial: String::new(),
        queues: 1,
    };
    // Only its owner may open it: it is the outer process that does.
    VhostUserServer::listen(socket, 0o600, disk).unwrap()
}

#[test]
fn a_disks_server_that_comes_back_is_met_again_from_inside() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("disk.sock");
    let disk = Arc::new(MemoryDevice::new(1 << 20));
    let mut server = Some(serve(&socket, &disk));
    let uid = if is_root() { UID } else { "-" };
    let mut probe = probe();
    probe
        .args([mode(), "kill", uid, "main", "remote"])
        .arg(&socket);
    let mut probe = probe.stdout(Stdio::piped()).spawn().unwrap();
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(150));
        server.take().unwrap().stop();
        server = Some(serve(&socket, &disk));
    }
    let output = probe.wait().unwrap();
    assert!(output.success(), "{output}");
    drop(server);
    let content = disk.content();
    for sector in 0..400u64 {
        let at = sector as usize * SECTOR_BYTES;
        assert_ne!(content[at..at + 16], [0; 16], "{sector}");
    }
}

/// Only their owner may open them: it is the outer process that does.
#[test]
fn a_guest_calls_programs_of_one_name_and_not_too_often() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("agent");
    let service = UnixListener::bind(folder.path().join("agent_5")).unwrap();
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(folder.path().join("agent_5"), closed).unwrap();
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = service.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let output = run(mode(), "kill", "main", "services", name.to_str().unwrap());
    let said = said(&output);
    assert!(said.contains("done No such file"), "{said}");
    assert!(said.contains("temporarily unavailable"), "{said}");
    assert_eq!(heard.join().unwrap(), "from inside");
}

#[test]
fn the_outer_process_opens_nothing_that_it_was_not_started_with() {
    let output = run(mode(), "kill", "main", "stranger", "");
    assert!(
        said(&output).contains("refused No such file"),
        "{}",
        said(&output)
    );
}
