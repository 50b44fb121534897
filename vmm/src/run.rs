//! `splice-vmm run`: a machine from command-line options.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use vmm::legacy::serial::Output;
use vmm::machine::boot::BootSource;
use vmm::machine::bus::lock;
use vmm::machine::event::{Event, Events};
use vmm::machine::{End, Machine, MachineSpec};
use vmm::virtio::Device;
use vmm::virtio::block::{Block, Disk, Limits};
use vmm::virtio::rng::Rng;
use vmm::virtio::vhost_user::RemoteBlock;
use vmm_block::RawFile;

/// Options of a machine.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Kernel: a bzImage or an ELF file.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    command_line: String,
    /// Memory, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u64,
    /// Processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u8,
    /// A disk, the first is /dev/vda: a raw file, and options behind commas: `readonly`, `serial=TEXT`, and limits, `iops=N` requests
    /// and `mbps=N` megabytes (10^6 bytes) a second. Or `vhost-user=SOCKET`, which a server such as the branch serves.
    #[arg(long, value_name = "FILE[,OPTION…]|vhost-user=SOCKET")]
    disk: Vec<DiskOption>,
    /// Append the serial port's output to this file.
    #[arg(long, value_name = "FILE")]
    serial_log: Option<PathBuf>,
    /// Have the serial console at this Unix socket.
    #[arg(long, value_name = "PATH")]
    serial_socket: Option<PathBuf>,
    /// Show the serial port's output on standard output.
    #[arg(long)]
    serial_stdout: bool,
}

const EXAMPLES: &str = "\
Examples:
  splice-vmm run --kernel vmlinuz --initrd initrd.img --command-line 'root=/dev/vda1 ro console=ttyS0' \\
      --disk desktop.raw --memory 2048 --vcpus 2 --serial-stdout
  splice-vmm run --kernel vmlinuz --disk vhost-user=disk.sock
  splice-vmm run --kernel vmlinuz --serial-socket console.sock    (then: socat - UNIX:console.sock)";

/// Where a disk's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum DiskSource {
    /// A raw file.
    File(PathBuf),
    /// A server's socket.
    VhostUser(PathBuf),
}

/// One `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DiskOption {
    source: DiskSource,
    read_only: bool,
    serial: String,
    limits: Limits,
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
        let positive = |number: &str| {
            let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
            // Far beyond any disk, far below what cannot be counted.
            Some(number.min(u64::from(u32::MAX)))
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

impl DiskOption {
    fn open(&self, queues: usize) -> Result<Box<dyn Device>> {
        match &self.source {
            DiskSource::File(path) => {
                let file = RawFile::open(path, self.read_only);
                let file = file.with_context(|| format!("disk {}", path.display()))?;
                Ok(Box::new(Block::new(Disk {
                    device: Arc::new(file),
                    serial: self.serial.clone(),
                    queues,
                    limits: self.limits,
                })))
            }
            DiskSource::VhostUser(path) => {
                let disk = RemoteBlock::open(path, queues, SERVER_PATIENCE);
                let disk = disk.with_context(|| format!("disk served at {}", path.display()))?;
                Ok(Box::new(disk))
            }
        }
    }
}

/// How long a machine's start waits for a disk's server.
const SERVER_PATIENCE: Duration = Duration::from_secs(30);

impl Arguments {
    fn devices(&self) -> Result<Vec<(String, Box<dyn Device>)>> {
        let mut devices: Vec<(String, Box<dyn Device>)> = Vec::new();
        for (index, disk) in self.disk.iter().enumerate() {
            devices.push((format!("disk-{index}"), disk.open(self.vcpus.into())?));
        }
        devices.push(("rng".into(), Box::<Rng>::default()));
        Ok(devices)
    }

    fn spec(&self, serial: &Output) -> Result<MachineSpec> {
        Ok(MachineSpec {
            memory_mib: self.memory,
            vcpus: self.vcpus,
            boot: BootSource {
                kernel: self.kernel.clone(),
                initrd: self.initrd.clone(),
                command_line: self.command_line.clone(),
            },
            devices: self.devices()?,
            serial: serial.clone(),
            console: self.serial_socket.clone(),
        })
    }
}

/// SIGTERM and SIGINT end the machine that runs now.
struct Signals(Arc<Mutex<Option<Events>>>);

impl Signals {
    /// To be called before any other thread is there: they inherit that these signals do not reach them.
    fn watch() -> Result<Self> {
        let running: Arc<Mutex<Option<Events>>> = Arc::default();
        // SAFETY: the set is initialised by the first call, and outlives the others.
        let set = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            set
        };
        let shared = Arc::clone(&running);
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                loop {
                    let mut signal = 0;
                    // SAFETY: both outlive the call.
                    unsafe { libc::sigwait(&raw const set, &raw mut signal) };
                    if let Some(events) = &*lock(&shared) {
                        events.put(Event::Quit);
                    }
                }
            })?;
        Ok(Self(running))
    }

    fn end(&self, events: Events) {
        *lock(&self.0) = Some(events);
    }
}

/// Runs a machine; resets start it anew.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let serial = Output::default();
    if let Some(path) = &arguments.serial_log {
        let opened = serial.log_to(path);
        opened.with_context(|| format!("serial log {}", path.display()))?;
    }
    if arguments.serial_stdout {
        serial.to_stdout();
    }
    let signals = Signals::watch()?;
    loop {
        let machine = Machine::build(arguments.spec(&serial)?)?;
        signals.end(machine.events());
        match machine.run() {
            End::Off => return Ok(ExitCode::SUCCESS),
            End::Reset => {}
            End::Failed(reason) => bail!(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskOption, String> {
        text.parse()
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
