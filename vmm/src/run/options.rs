//! Options of a machine, one that boots or one that goes on, parsed and checked as far as words go.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use vmm::machine::boot::{BootError, BootSource};
use vmm::screen::Size;
use vmm::virtio::block::Limits;
use vmm::virtio::console::{HostEnd, PortSpec};
use vmm::virtio::vsock::{CIDS, VsockSpec};

use super::confinement::Confinement;
use super::net_option::{NetOption, positive};

/// Options of a machine.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Kernel: a bzImage or an ELF file.
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: PathBuf,
    #[command(flatten)]
    pub(super) boot: BootArguments,
    /// Memory, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(super) memory: u64,
    /// Processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) vcpus: u8,
    #[command(flatten)]
    pub(super) host: HostArguments,
}

/// Options of a machine that goes on.
#[derive(Args)]
#[command(after_help = RESUME_EXAMPLES)]
pub struct ResumeArguments {
    /// The snapshot's folder. Or, as the branch hands them in, the descriptors of its state, its memory, and the order in which that is
    /// needed, which may be empty.
    #[arg(value_name = "DIR|fd=STATE,MEMORY,ORDER")]
    pub(super) place: Place,
    /// Kernel that the guest boots when it resets; without, the machine ends then.
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: Option<PathBuf>,
    #[command(flatten)]
    pub(super) boot: BootArguments,
    /// It is one of several machines of this snapshot: network cards without a chosen address get new ones. The guest's driver takes them
    /// when it binds to the card anew.
    #[arg(long = "clone")]
    pub(super) is_clone: bool,
    /// Record the order in which it touches its memory, if none is known, for ten seconds, for which disks over vhost-user wait. Without, they
    /// cut that short.
    #[arg(long = "record")]
    pub(super) records: bool,
    #[command(flatten)]
    pub(super) host: HostArguments,
}

// What is booted beside the kernel. (A doc comment would be shown in place of the command's own.)
#[derive(Args)]
pub(super) struct BootArguments {
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    command_line: String,
}

impl BootArguments {
    pub(super) fn open(&self, kernel: &Path) -> Result<BootSource, BootError> {
        BootSource::open(kernel, self.initrd.as_deref(), &self.command_line)
    }
}

// What the host gives a machine.
#[derive(Args)]
pub(super) struct HostArguments {
    /// A disk, the first is /dev/vda: a raw file, and options behind commas: `readonly`, `serial=TEXT`, and limits, `iops=N` requests
    /// and `mbps=N` megabytes (10^6 bytes) a second. Or `vhost-user=SOCKET`, which a server such as the branch serves.
    #[arg(long, value_name = "FILE[,OPTION…]|vhost-user=SOCKET")]
    pub(super) disk: Vec<DiskOption>,
    /// Append the serial port's output to this file.
    #[arg(long, value_name = "FILE")]
    pub(super) serial_log: Option<PathBuf>,
    /// Have the serial console at this Unix socket.
    #[arg(long, value_name = "PATH")]
    pub(super) serial_socket: Option<PathBuf>,
    /// Show the serial port's output on standard output.
    #[arg(long)]
    pub(super) serial_stdout: bool,
    /// A network card: the tap interface's name, and options behind commas: `mac=ADDRESS`, and limits for each direction, `mbps=N`
    /// megabits (10^6 bits) and `pps=N` packets a second. The interface is made if it is not there. Or, as `fd=N` in the name's place, a
    /// tap that was opened before and is handed in as descriptor N, such as the branch does.
    #[arg(long, value_name = "TAP|fd=N[,OPTION…]")]
    pub(super) net: Vec<NetOption>,
    /// A port of the guest's agents: its name in the guest, and the Unix socket where the host's side is.
    #[arg(long, value_name = "NAME=PATH")]
    pub(super) port: Vec<PortOption>,
    /// Sockets between guest and host: the guest's address, 3 or more, and the Unix socket where programs call the guest by saying
    /// `CONNECT PORT`. The guest's calls go to PATH_PORT.
    #[arg(long, value_name = "cid=N,socket=PATH")]
    pub(super) vsock: Option<VsockOption>,
    /// Take commands at this Unix socket, one JSON object a line.
    #[arg(long, value_name = "PATH")]
    pub(super) control: Option<PathBuf>,
    /// Have a screen, a keyboard and a tablet; the guest is asked for this size first. Its clipboard is shared with viewers if the
    /// guest's agent (spice-vdagent) runs.
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub(super) display: Option<Size>,
    /// Have the screen at this Unix socket, for viewers that speak RFB (VNC). Whoever may open it may see and type.
    #[arg(long, value_name = "PATH", requires = "display")]
    pub(super) rfb_socket: Option<PathBuf>,
    #[command(flatten)]
    pub(super) confinement: Confinement,
}

const EXAMPLES: &str = "\
Examples:
  splice-vmm run --kernel vmlinuz --initrd initrd.img --command-line 'root=/dev/vda1 ro console=ttyS0' \\
      --disk desktop.raw --memory 2048 --vcpus 2 --serial-stdout
  splice-vmm run --kernel vmlinuz --disk vhost-user=disk.sock
  splice-vmm run --kernel vmlinuz --serial-socket console.sock    (then: socat - UNIX:console.sock)
  splice-vmm run --kernel vmlinuz --disk desktop.raw --command-line 'root=/dev/vda1' --display 1280x800 \\
      --rfb-socket screen.sock    (then: splice-vmm screenshot screen.sock screen.png)
  splice-vmm run --kernel vmlinuz --disk vhost-user=disk.sock --sandbox full --uid 20017 --cgroup /sys/fs/cgroup/desktops \
      --memory-max 1280 --cpu-max 200";

const RESUME_EXAMPLES: &str = "\
Examples:
  splice-vmm snapshot control.sock /var/lib/splice/alice.snap --quit
  splice-vmm resume /var/lib/splice/alice.snap --disk desktop.raw --serial-socket console.sock
  splice-vmm resume /var/lib/splice/golden.snap --clone --disk vhost-user=bob.sock --net tap7 --sandbox full --uid 20018

Disks, network cards, ports and the display must be those that the machine had, in the same order; disks with the content that they
had when it was saved. Sockets may be elsewhere.";

/// Where a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In this folder.
    Folder(PathBuf),
    /// In files that were opened before: state, memory, order.
    Files([RawFd; 3]),
}

impl Place {
    /// The descriptors that it needs.
    pub(super) fn descriptors(&self) -> &[RawFd] {
        match self {
            Self::Folder(_) => &[],
            Self::Files(files) => files,
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(numbers) = text.strip_prefix("fd=") else {
            return Ok(Self::Folder(text.into()));
        };
        let numbers = numbers.split(',').map(str::parse::<RawFd>);
        let numbers: Vec<RawFd> = numbers.collect::<Result<_, _>>().unwrap_or_default();
        let files = <[RawFd; 3]>::try_from(numbers).ok();
        let files = files.filter(|files| files.iter().all(|number| *number > libc::STDERR_FILENO));
        let files = files.ok_or_else(|| {
            format!("{text:?}: three descriptors, 3 or more, are needed; a folder of that name is ./{text}")
        })?;
        Ok(Self::Files(files))
    }
}

/// Where a disk's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DiskSource {
    /// A raw file.
    File(PathBuf),
    /// A server's socket.
    VhostUser(PathBuf),
}

/// One `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskOption {
    pub(super) source: DiskSource,
    pub(super) read_only: bool,
    pub(super) serial: String,
    pub(super) limits: Limits,
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let first = parts.next().filter(|first| !first.is_empty());
        let first = first.ok_or("a file or vhost-user=SOCKET is needed")?;
        let source = match first.strip_prefix("vhost-user=") {
            Some("") => return Err("vhost-user needs the path of a socket".into()),
            Some(socket) => DiskSource::VhostUser(socket.into()),
            None => DiskSource::File(first.into()),
        };
        let mut this = Self {
            source,
            read_only: false,
            serial: String::new(),
            limits: Limits::default(),
        };
        for part in parts {
            if matches!(this.source, DiskSource::VhostUser(_)) {
                return Err(format!(
                    "{part:?}: the server of a vhost-user disk decides on that"
                ));
            }
            match part.split_once('=') {
                None if part == "readonly" => this.read_only = true,
                Some(("serial", serial)) if serial.len() <= 20 => this.serial = serial.into(),
                Some(("serial", _)) => return Err("a serial number has 20 bytes at most".into()),
                Some((name @ ("iops" | "mbps"), number)) => {
                    let number = positive(number);
                    let number = number.ok_or_else(|| format!("{part:?}: a number above 0"))?;
                    if name == "iops" {
                        this.limits.requests_per_s = Some(number);
                    } else {
                        this.limits.bytes_per_s = Some(number * 1_000_000);
                    }
                }
                _ => {
                    return Err(format!(
                        "unknown option {part:?}: readonly, serial=TEXT, iops=N and mbps=N are known"
                    ));
                }
            }
        }
        Ok(this)
    }
}

/// One `--port`.
#[derive(Clone)]
pub(super) struct PortOption(pub(super) PortSpec);

impl FromStr for PortOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, socket)) if !name.is_empty() && name.len() <= 64 && !socket.is_empty() => {
                Ok(Self(PortSpec {
                    name: name.into(),
                    end: HostEnd::Socket(socket.into()),
                }))
            }
            _ => Err("NAME=PATH is needed, such as org.qemu.guest_agent.0=agent.sock".into()),
        }
    }
}

/// `--vsock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VsockOption(pub(super) VsockSpec);

impl FromStr for VsockOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "cid=N,socket=PATH is needed, such as cid=3,socket=agent.sock";
        let (cid, socket) = text.split_once(',').ok_or(FORM)?;
        let cid = cid.strip_prefix("cid=").ok_or(FORM)?;
        let socket = socket.strip_prefix("socket=").ok_or(FORM)?;
        let cid = cid.parse().ok().filter(|cid| CIDS.contains(cid));
        let cid =
            cid.ok_or_else(|| format!("{text:?}: a cid is a number from {} on", CIDS.start()))?;
        if socket.is_empty() {
            return Err(FORM.into());
        }
        let socket = socket.into();
        Ok(Self(VsockSpec { cid, socket }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskOption, String> {
        text.parse()
    }

    #[test]
    fn sockets_have_an_address_and_a_place() {
        let parse = |text: &str| text.parse::<VsockOption>();
        let spec = parse("cid=3,socket=/run/a,b.sock")
            .expect("both are there")
            .0;
        assert_eq!((spec.cid, spec.socket), (3, "/run/a,b.sock".into()));
        for wrong in [
            "",
            "cid=3",
            "socket=a,cid=3",
            "cid=2,socket=a",
            "cid=4294967295,socket=a",
            "cid=x,socket=a",
            "cid=3,socket=",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_snapshot_is_a_folder_or_three_descriptors() {
        let parse = |text: &str| text.parse::<Place>();
        assert_eq!(parse("a/b"), Ok(Place::Folder("a/b".into())));
        assert_eq!(parse("./fd=3"), Ok(Place::Folder("./fd=3".into())));
        let files = parse("fd=7,3,12").expect("three");
        assert_eq!(files.descriptors(), [7, 3, 12]);
        for wrong in [
            "fd=",
            "fd=3,4",
            "fd=3,4,5,6",
            "fd=2,3,4",
            "fd=3,4,x",
            "fd=-1,3,4",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn disks_are_files_with_options_or_sockets() {
        let disk = parse("a.raw,readonly,serial=one,iops=500,mbps=20").expect("all are known");
        assert_eq!(disk.source, DiskSource::File("a.raw".into()));
        assert!(disk.read_only);
        assert_eq!(disk.serial, "one");
        assert_eq!(disk.limits.requests_per_s, Some(500));
        assert_eq!(disk.limits.bytes_per_s, Some(20_000_000));
        let disk = parse("vhost-user=/run/disk.sock").expect("a socket");
        assert_eq!(disk.source, DiskSource::VhostUser("/run/disk.sock".into()));
        for wrong in [
            "",
            "vhost-user=",
            "vhost-user=a,readonly",
            "a,iops=0",
            "a,mbps=many",
            "a,iops=-1",
            "a,fast",
            "a,serial=123456789012345678901",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
