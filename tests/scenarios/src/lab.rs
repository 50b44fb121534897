//! The folder of one scenario, its ports, its line, and the end of everything that was started in it.

use std::fmt::Display;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sim_wan::Profile;
use sim_wan::proxy::{Proxy, UdpProxy};

use crate::daemon::read_lossy;
use crate::datacenter::text;
use crate::run::run;

/// How often a condition is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Where ports are looked for: below the range that the kernel gives to clients, so that a port stays free between restarts.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Waits until `done`, for at most `limit`.
pub fn wait_for(what: impl Display, limit: Duration, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(TICK);
    }
}

/// A scenario's folder. To be declared before what runs in it, so that it is dropped last.
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// A new one. Its path is short: Unix sockets in it must stay below 108 bytes.
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("s").tempdir_in("/tmp");
        Self {
            dir: dir.expect("/tmp takes a folder"),
        }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }
}

/// A port of loopback that nobody has, neither for UDP nor for TCP.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    let first = (std::process::id() as u16).wrapping_mul(97);
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + first.wrapping_add(step) % span;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

/// Processes whose arguments name the folder, and their command lines.
fn processes_of(dir: &Path) -> Vec<(i32, String)> {
    let needle = dir.to_string_lossy().into_owned();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(|pid: i32| (pid, read_lossy(Path::new(&format!("/proc/{pid}/cmdline")))))
        .filter(|(_, line)| line.contains(&needle))
        .collect()
}

fn logs_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            logs_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "log") {
            found.push(path);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Machines of desktops are sessions of their own and outlive their branch server. The folder's name is random: nothing that is
        // not ours has it in its arguments.
        let gone = Instant::now() + Duration::from_secs(10);
        loop {
            let left = processes_of(self.dir());
            if left.is_empty() || Instant::now() > gone {
                break;
            }
            for pid in left.iter().filter_map(|(pid, _)| Pid::from_raw(*pid)) {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(TICK);
        }
        if std::thread::panicking() {
            if std::env::var_os("SPLICE_KEEP").is_some() {
                eprintln!("the folder is kept: {}", self.dir().display());
                self.dir.disable_cleanup(true);
            }
            return;
        }
        let mut logs = Vec::new();
        logs_below(self.dir(), &mut logs);
        for log in logs {
            let text = read_lossy(&log);
            if let Some(line) = text.lines().find(|line| line.contains("panicked")) {
                panic!("{}: {line}", log.display());
            }
        }
    }
}

/// A file system of its own in the lab, so small that it can be filled. To be declared before what runs in it.
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    const COMMAND: Duration = Duration::from_secs(60);

    /// A new folder `name` of `mib` MiB; none, and a word about it, where nothing can be mounted.
    pub fn mount(lab: &Lab, name: &str, mib: u64) -> Option<Self> {
        let folder = lab.path(name);
        std::fs::create_dir(&folder).expect("the folder is new");
        let size = format!("size={mib}m,mode=755");
        let mount = ["-t", "tmpfs", "-o", &size, "splice-test", text(&folder)];
        let mounted = run("mount", &mount, Self::COMMAND);
        if !mounted.succeeded() {
            println!("skipped: no tmpfs can be mounted here: {}", mounted.err);
            return None;
        }
        Some(Self { folder })
    }

    /// Makes it larger.
    pub fn resize(&self, mib: u64) {
        let options = format!("remount,size={mib}m");
        let mount = ["-o", &options, text(&self.folder)];
        run("mount", &mount, Self::COMMAND).ok();
    }

    /// Bytes that are free in it.
    pub fn free_bytes(&self) -> u64 {
        let df = ["--output=avail", "-B1", text(&self.folder)];
        let out = run("df", &df, Self::COMMAND).ok();
        let free = out
            .lines()
            .next_back()
            .and_then(|line| line.trim().parse().ok());
        free.unwrap_or_else(|| panic!("df: {out}"))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", text(&self.folder)], Self::COMMAND);
    }
}

/// The line between a branch and the datacenter.
pub struct Wan {
    proxy: Proxy,
}

impl Wan {
    /// A line of that profile to the datacenter's link port.
    pub fn new(profile: &str, datacenter_port: u16) -> Self {
        let profile = Profile::named(profile).expect("the profile is built in");
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let proxy = UdpProxy::spawn(address(free_port()), address(datacenter_port), &profile, 1);
        Self {
            proxy: proxy.expect("the port is free"),
        }
    }

    /// Where branches reach the datacenter through it.
    pub fn address(&self) -> String {
        self.proxy.local_addr().to_string()
    }

    /// Nothing passes any more.
    pub fn cut(&self) {
        self.proxy.cut();
    }

    /// Ends a cut.
    pub fn restore(&self) {
        self.proxy.restore();
    }
}
