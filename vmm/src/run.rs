//! `splice-vmm run`: a machine from command-line options.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use vmm::clipboard::{self, Clipboard};
use vmm::control::Control;
use vmm::legacy::serial::SerialLine;
use vmm::machine::boot::BootSource;
use vmm::machine::bus::lock;
use vmm::machine::event::{Event, Events};
use vmm::machine::{self, Devices, End, Machine, MachineSpec};
use vmm::rfb::{self, Inputs};
use vmm::screen::{Screen, Size};
use vmm::virtio::Device;
use vmm::virtio::balloon::{Balloon, BalloonSize};
use vmm::virtio::block::{Block, Disk, Limits};
use vmm::virtio::console::{Console, HostEnd, PORTS_MAX, PortSpec};
use vmm::virtio::gpu::Gpu;
use vmm::virtio::input::{Input, Model};
use vmm::virtio::net::{Link, Net, Tap};
use vmm::virtio::rng::Rng;
use vmm::virtio::vhost_user::RemoteBlock;
use vmm_block::RawFile;

use crate::net_option::{NetOption, positive};

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
    /// A network card: the tap interface's name, and options behind commas: `mac=ADDRESS`, and limits for each direction, `mbps=N`
    /// megabits (10^6 bits) and `pps=N` packets a second. The interface is made if it is not there.
    #[arg(long, value_name = "TAP[,OPTION…]")]
    net: Vec<NetOption>,
    /// A port of the guest's agents: its name in the guest, and the Unix socket where the host's side is.
    #[arg(long, value_name = "NAME=PATH")]
    port: Vec<PortOption>,
    /// Take commands at this Unix socket, one JSON object a line.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Have a screen, a keyboard and a tablet; the guest is asked for this size first. Its clipboard is shared with viewers if the
    /// guest's agent (spice-vdagent) runs.
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    display: Option<Size>,
    /// Have the screen at this Unix socket, for viewers that speak RFB (VNC). Whoever may open it may see and type.
    #[arg(long, value_name = "PATH", requires = "display")]
    rfb_socket: Option<PathBuf>,
}

/// A screen and hands for it, which outlive machines: viewers stay when the guest resets.
struct Display {
    screen: Screen,
    inputs: Inputs,
}

const EXAMPLES: &str = "\
Examples:
  splice-vmm run --kernel vmlinuz --initrd initrd.img --command-line 'root=/dev/vda1 ro console=ttyS0' \\
      --disk desktop.raw --memory 2048 --vcpus 2 --serial-stdout
  splice-vmm run --kernel vmlinuz --disk vhost-user=disk.sock
  splice-vmm run --kernel vmlinuz --serial-socket console.sock    (then: socat - UNIX:console.sock)
  splice-vmm run --kernel vmlinuz --disk desktop.raw --command-line 'root=/dev/vda1' --display 1280x800 \\
      --rfb-socket screen.sock    (then: splice-vmm screenshot screen.sock screen.png)";

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
struct PortOption(PortSpec);

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
    fn display(&self) -> Result<Option<Display>> {
        let Some(size) = self.display else {
            return Ok(None);
        };
        let screen = Screen::new(size);
        let viewers = screen.clone();
        let inputs = Inputs {
            clipboard: Clipboard::new(move || viewers.wake()),
            ..Inputs::default()
        };
        if let Some(path) = &self.rfb_socket {
            let listening = rfb::listen(path, screen.clone(), inputs.clone(), "Splice desktop");
            listening.with_context(|| format!("screen at {}", path.display()))?;
        }
        Ok(Some(Display { screen, inputs }))
    }

    /// The devices, and the cables of network cards.
    fn devices(
        &self,
        balloon: &BalloonSize,
        display: Option<&Display>,
    ) -> Result<(Devices, Vec<Link>)> {
        let (mut devices, mut links) = (Devices::new(), Vec::new());
        for (index, disk) in self.disk.iter().enumerate() {
            devices.push((format!("disk-{index}"), disk.open(self.vcpus.into())?));
        }
        for (index, net) in self.net.iter().enumerate() {
            let tap = Tap::open(&net.tap)?;
            // Locally administered, and another one for each card of a process.
            let [a, b] = (std::process::id() as u16).to_be_bytes();
            let mac = net.mac.unwrap_or([0x52, 0x54, 0, a, b, index as u8]);
            let card = Net::new(mac, tap, net.limits);
            links.push(card.link());
            devices.push((format!("net-{index}"), Box::new(card)));
        }
        let ports = self.ports(display);
        if ports.len() > PORTS_MAX {
            bail!("{} ports: {PORTS_MAX} are possible", ports.len());
        }
        if !ports.is_empty() {
            let console = Console::new(&ports).context("a port's socket")?;
            devices.push(("ports".into(), Box::new(console)));
        }
        devices.push(("balloon".into(), Box::new(Balloon::new(balloon.clone()))));
        devices.push(("rng".into(), Box::<Rng>::default()));
        if let Some(Display { screen, inputs }) = display {
            let keyboard = Input::new(Model::Keyboard, inputs.keyboard.clone());
            let tablet = Input::new(Model::Tablet, inputs.tablet.clone());
            devices.push(("gpu".into(), Box::new(Gpu::new(screen.clone()))));
            devices.push(("keyboard".into(), Box::new(keyboard)));
            devices.push(("tablet".into(), Box::new(tablet)));
        }
        Ok((devices, links))
    }

    /// Ports of the guest's agents: those that were asked for, and with a display the one of its clipboard, if that is not among them.
    fn ports(&self, display: Option<&Display>) -> Vec<PortSpec> {
        let mut ports: Vec<PortSpec> = self.port.iter().map(|port| port.0.clone()).collect();
        let is_taken = ports.iter().any(|port| port.name == clipboard::PORT_NAME);
        if let Some(display) = display.filter(|_| !is_taken) {
            ports.push(PortSpec {
                name: clipboard::PORT_NAME.into(),
                end: HostEnd::Clipboard(display.inputs.clipboard.clone()),
            });
        }
        ports
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
    let serial = SerialLine::default();
    if let Some(path) = &arguments.serial_log {
        let opened = serial.log_to(path);
        opened.with_context(|| format!("serial log {}", path.display()))?;
    }
    if let Some(path) = &arguments.serial_socket {
        let listens = serial.listen(path);
        listens.with_context(|| format!("serial console {}", path.display()))?;
    }
    if arguments.serial_stdout {
        serial.to_stdout();
    }
    let signals = Signals::watch()?;
    if let Some(path) = &arguments.control {
        let control = Control::listen(path);
        let control = control.with_context(|| format!("control socket {}", path.display()))?;
        let running = Arc::clone(&signals.0);
        control.serve(move || lock(&running).clone())?;
    }
    let kvm = machine::open_kvm()?;
    let boot = BootSource::open(
        &arguments.kernel,
        arguments.initrd.as_deref(),
        &arguments.command_line,
    )?;
    let balloon = BalloonSize::default();
    let display = arguments.display()?;
    let (mut devices, links) = arguments.devices(&balloon, display.as_ref())?;
    for resets in 0.. {
        let spec = MachineSpec {
            memory_mib: arguments.memory,
            vcpus: arguments.vcpus,
            boot: &boot,
            devices,
            serial: serial.clone(),
            balloon: Some(balloon.clone()),
            links: links.clone(),
        };
        let machine = Machine::build(&kvm, spec)?;
        signals.end(machine.events());
        let (end, back) = machine.run(resets);
        devices = back;
        match end {
            End::Off => return Ok(ExitCode::SUCCESS),
            End::Reset => {}
            End::Failed(reason) => bail!(reason),
        }
    }
    Ok(ExitCode::SUCCESS)
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
