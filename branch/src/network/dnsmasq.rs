//! DHCP and names for desktops behind the NAT: dnsmasq, a process of its own that outlives the branch server as machines do.
//!
//! Each place of the subnet has its address by its card's, so that nothing is to be said to dnsmasq when desktops come and go. It is known
//! again by process id and start time, never by name.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::subnet::{Subnet, mac_of, mac_text};
use super::{NetworkError, host};
use crate::desktop::machine::start_ticks;

/// How long it may take until it serves, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const TICK: Duration = Duration::from_millis(20);
/// For how long an address is told to hold; it is the same ever after.
const LEASE: &str = "12h";

/// A process, so that a later one of the same number is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: u32,
    start_ticks: u64,
}

/// Its files, in a folder that its user may enter too.
pub(super) struct Dnsmasq {
    folder: PathBuf,
}

fn config(bridge: &str, subnet: Subnet, folder: &Path) -> String {
    let folder = folder.display();
    let mut lines = format!(
        "# Made by splice-branch.
interface={bridge}
bind-interfaces
except-interface=lo
no-hosts
domain-needed
dhcp-authoritative
dhcp-no-override
dhcp-range={network},static,{mask},{LEASE}
dhcp-leasefile={folder}/leases
pid-file={folder}/ready
",
        network = subnet.network(),
        mask = subnet.mask(),
    );
    for place in subnet.places() {
        let mac = mac_text(mac_of(place));
        lines.push_str(&format!("dhcp-host={mac},{place}\n"));
    }
    lines
}

impl Dnsmasq {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn failed(&self, what: &str) -> impl Fn(io::Error) -> NetworkError + use<> {
        let what = format!("{what} in {}", self.folder.display());
        move |source| NetworkError::Io {
            what: what.clone(),
            source,
        }
    }

    /// The process that was started last, if it still runs.
    fn process(&self) -> Option<Process> {
        let text = std::fs::read_to_string(self.file("process")).ok()?;
        let (pid, ticks) = text.trim().split_once(' ')?;
        let process = Process {
            pid: pid.parse().ok()?,
            start_ticks: ticks.parse().ok()?,
        };
        (start_ticks(process.pid) == Some(process.start_ticks)).then_some(process)
    }

    /// Whether it runs, for this subnet.
    pub(super) fn serves(&self, bridge: &str, subnet: Subnet) -> bool {
        let wanted = config(bridge, subnet, &self.folder);
        let has = std::fs::read_to_string(self.file("dnsmasq.conf"));
        has.is_ok_and(|has| has == wanted) && self.process().is_some()
    }

    /// Has it serve; nothing happens if it does. The bridge is up, with its address.
    pub(super) fn serve(&self, bridge: &str, subnet: Subnet) -> Result<(), NetworkError> {
        if self.serves(bridge, subnet) {
            return Ok(());
        }
        let program = host::program("dnsmasq")?;
        self.end()?;
        std::fs::create_dir_all(&self.folder).map_err(self.failed("make the folder"))?;
        let (conf, ready) = (self.file("dnsmasq.conf"), self.file("ready"));
        let _ = std::fs::remove_file(&ready);
        let text = config(bridge, subnet, &self.folder);
        std::fs::write(&conf, text).map_err(self.failed("write dnsmasq.conf"))?;
        let log = std::fs::File::create(self.file("log")).map_err(self.failed("make the log"))?;
        let mut command = Command::new(program);
        command
            .args(["--keep-in-foreground", "--log-facility=-"])
            .arg(format!("--conf-file={}", conf.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: setsid is async-signal-safe and touches no memory of ours; nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(self.failed("start dnsmasq"))?;
        let process = format!("{} {}\n", child.id(), start_ticks(child.id()).unwrap_or(0));
        let kept = std::fs::write(self.file("process"), process);
        let begun = Instant::now();
        let served = loop {
            // It writes its number when it serves.
            let is_ready = std::fs::metadata(&ready).is_ok_and(|ready| ready.len() > 0);
            if is_ready {
                break kept.map_err(self.failed("keep its number"));
            }
            let has_ended = matches!(child.try_wait(), Ok(Some(_)));
            if has_ended || begun.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.file("log")).unwrap_or_default();
                let log = log
                    .trim()
                    .lines()
                    .next_back()
                    .unwrap_or_default()
                    .to_owned();
                break Err(NetworkError::Dnsmasq { log });
            }
            std::thread::sleep(TICK);
        };
        if served.is_err() {
            let _ = child.kill();
        }
        // Only reaps it.
        std::thread::spawn(move || child.wait());
        served
    }

    /// Ends it, if it runs.
    pub(super) fn end(&self) -> Result<(), NetworkError> {
        let Some(process) = self.process() else {
            return Ok(());
        };
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
            if let Some(pid) = rustix::process::Pid::from_raw(process.pid as i32) {
                let _ = rustix::process::kill_process(pid, signal);
            }
            let begun = Instant::now();
            while begun.elapsed() < PATIENCE {
                if self.process().is_none() {
                    return Ok(());
                }
                std::thread::sleep(TICK);
            }
        }
        Err(NetworkError::Dnsmasq {
            log: format!("process {} does not end", process.pid),
        })
    }

    /// Ends it and removes what it kept.
    pub(super) fn remove(&self) -> Result<(), NetworkError> {
        self.end()?;
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove the folder")(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn each_place_has_its_address_and_nobody_else_gets_one() {
        let subnet: Subnet = "192.168.7.0/29".parse().unwrap();
        let text = config("splice0", subnet, Path::new("/run/splice/splice0"));
        assert!(text.contains("\ninterface=splice0\nbind-interfaces\nexcept-interface=lo\n"));
        assert!(text.contains("\ndhcp-range=192.168.7.0,static,255.255.255.248,12h\n"));
        assert_eq!(text.matches("dhcp-host=").count(), 5);
        assert!(text.ends_with("dhcp-host=52:53:c0:a8:07:06,192.168.7.6\n"));
    }

    #[test]
    fn a_process_is_known_by_its_start_too() {
        let folder = tempfile::tempdir().unwrap();
        let dnsmasq = Dnsmasq::new(folder.path().into());
        assert_eq!(dnsmasq.process(), None);
        let own = std::process::id();
        let ticks = start_ticks(own).unwrap();
        let write = |text: String| std::fs::write(folder.path().join("process"), text).unwrap();
        write(format!("{own} {ticks}\n"));
        assert_eq!(dnsmasq.process().unwrap().pid, own);
        for other in [
            format!("{own} {}", ticks + 1),
            format!("{own}"),
            "x y".into(),
        ] {
            write(other);
            assert_eq!(dnsmasq.process(), None);
        }
    }
}
