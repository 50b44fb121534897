//! `splice-vmm run` and `splice-vmm resume`: a machine from command-line options, and one from a snapshot.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use vmm::control::Control;
use vmm::legacy::serial::SerialLine;
use vmm::machine::boot::BootSource;
use vmm::machine::bus::lock;
use vmm::machine::event::{Event, Events};
use vmm::machine::{self, Devices, End, Machine, MachineSpec, ResumeSpec};
use vmm::rfb::{self, Inputs};
use vmm::screen::{Screen, Size};
use vmm::snapshot::{Loading, PagerError, Snapshot};
use vmm::virtio::Device;
use vmm::virtio::balloon::{Balloon, BalloonSize};
use vmm::virtio::block::{Block, Disk};
use vmm::virtio::console::{Console, PORTS_MAX, PortSpec};
use vmm::virtio::gpu::Gpu;
use vmm::virtio::input::{Input, Model};
use vmm::virtio::net::{Net, Tap};
use vmm::virtio::rng::Rng;
use vmm::virtio::vhost_user::RemoteBlock;
use vmm_block::RawFile;

use crate::options::{DiskOption, DiskSource, NetOption, PortOption};

/// Options of a machine.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Kernel: a bzImage or an ELF file.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    #[command(flatten)]
    boot: BootArguments,
    /// Memory, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u64,
    /// Processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u8,
    #[command(flatten)]
    host: HostArguments,
}

/// Options of a machine that goes on.
#[derive(Args)]
#[command(after_help = RESUME_EXAMPLES)]
pub struct ResumeArguments {
    /// The snapshot's folder.
    dir: PathBuf,
    /// Kernel that the guest boots when it resets; without, the machine ends then.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    #[command(flatten)]
    boot: BootArguments,
    #[command(flatten)]
    host: HostArguments,
}

// What is booted beside the kernel. (A doc comment would be shown in place of the command's own.)
#[derive(Args)]
struct BootArguments {
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    command_line: String,
}

impl BootArguments {
    fn open(&self, kernel: &Path) -> Result<BootSource> {
        let source = BootSource::open(kernel, self.initrd.as_deref(), &self.command_line);
        Ok(source?)
    }
}

// What the host gives a machine.
#[derive(Args)]
struct HostArguments {
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
    /// A network card: the tap interface's name, and behind a comma `mac=ADDRESS`. The interface is made if it is not there.
    #[arg(long, value_name = "TAP[,mac=ADDRESS]")]
    net: Vec<NetOption>,
    /// A port of the guest's agents: its name in the guest, and the Unix socket where the host's side is.
    #[arg(long, value_name = "NAME=PATH")]
    port: Vec<PortOption>,
    /// Take commands at this Unix socket, one JSON object a line.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Have a screen, a keyboard and a tablet; the guest is asked for this size first.
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

const RESUME_EXAMPLES: &str = "\
Examples:
  echo '{\"do\":\"snapshot\",\"dir\":\"/var/lib/splice/alice.snap\",\"then\":\"quit\"}' | socat - UNIX:control.sock
  splice-vmm resume /var/lib/splice/alice.snap --disk desktop.raw --serial-socket console.sock

Disks, network cards, ports and the display must be those that the machine had, in the same order; disks with the content that they
had when it was saved. Sockets may be elsewhere.";

impl DiskOption {
    fn open(&self, queues: usize, loading: &Loading) -> Result<Box<dyn Device>> {
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
                // Its server would find zeros where memory is not loaded yet.
                Ok(Box::new(disk.after(loading.clone())))
            }
        }
    }
}

/// How long a machine's start waits for a disk's server.
const SERVER_PATIENCE: Duration = Duration::from_secs(30);

impl HostArguments {
    fn serial(&self) -> Result<SerialLine> {
        let serial = SerialLine::default();
        if let Some(path) = &self.serial_log {
            let opened = serial.log_to(path);
            opened.with_context(|| format!("serial log {}", path.display()))?;
        }
        if let Some(path) = &self.serial_socket {
            let listens = serial.listen(path);
            listens.with_context(|| format!("serial console {}", path.display()))?;
        }
        if self.serial_stdout {
            serial.to_stdout();
        }
        Ok(serial)
    }

    fn display(&self) -> Result<Option<Display>> {
        let Some(size) = self.display else {
            return Ok(None);
        };
        let (screen, inputs) = (Screen::new(size), Inputs::default());
        if let Some(path) = &self.rfb_socket {
            let listening = rfb::listen(path, screen.clone(), inputs.clone(), "Splice desktop");
            listening.with_context(|| format!("screen at {}", path.display()))?;
        }
        Ok(Some(Display { screen, inputs }))
    }

    fn devices(
        &self,
        vcpus: u8,
        balloon: &BalloonSize,
        display: Option<&Display>,
        loading: &Loading,
    ) -> Result<Devices> {
        let mut devices = Devices::new();
        for (index, disk) in self.disk.iter().enumerate() {
            let disk = disk.open(vcpus.into(), loading)?;
            devices.push((format!("disk-{index}"), disk));
        }
        for (index, net) in self.net.iter().enumerate() {
            let tap = Tap::open(&net.tap)?;
            // Locally administered, and another one for each card of a process.
            let [a, b] = (std::process::id() as u16).to_be_bytes();
            let card = match net.mac {
                Some(mac) => Net::new(mac, tap).with_chosen_address(),
                None => Net::new([0x52, 0x54, 0, a, b, index as u8], tap),
            };
            devices.push((format!("net-{index}"), Box::new(card)));
        }
        let ports: Vec<PortSpec> = self.port.iter().map(|port| port.0.clone()).collect();
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
        Ok(devices)
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

/// Exit status when a guest that has no kernel to boot resets itself.
const RESET: u8 = 3;

/// Runs a machine; resets start it anew.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let boot = arguments.boot.open(&arguments.kernel)?;
    let life = Life {
        host: &arguments.host,
        boot: Some(boot),
        memory_mib: arguments.memory,
        vcpus: arguments.vcpus,
    };
    life.live(None)
}

/// Runs a machine that was saved; resets start it anew, if there is a kernel.
pub fn resume(arguments: &ResumeArguments) -> Result<ExitCode> {
    let kernel = arguments.kernel.as_deref();
    let boot = kernel
        .map(|kernel| arguments.boot.open(kernel))
        .transpose()?;
    let snapshot = Snapshot::open(&arguments.dir);
    let snapshot = snapshot.with_context(|| format!("snapshot {}", arguments.dir.display()))?;
    let life = Life {
        host: &arguments.host,
        boot,
        memory_mib: snapshot.saved.shape.memory_mib,
        vcpus: snapshot.saved.shape.vcpus,
    };
    life.live(Some(snapshot))
}

/// The machines of this process, one after another.
struct Life<'a> {
    host: &'a HostArguments,
    /// What they boot.
    boot: Option<BootSource>,
    memory_mib: u64,
    vcpus: u8,
}

impl Life<'_> {
    /// The first one goes on from a snapshot, if there is one.
    fn live(&self, snapshot: Option<Snapshot>) -> Result<ExitCode> {
        let host = self.host;
        let signals = Signals::watch()?;
        let serial = host.serial()?;
        if let Some(path) = &host.control {
            let control = Control::listen(path);
            let control = control.with_context(|| format!("control socket {}", path.display()))?;
            let running = Arc::clone(&signals.0);
            control.serve(move || lock(&running).clone())?;
        }
        let kvm = machine::open_kvm()?;
        let balloon = BalloonSize::default();
        let display = host.display()?;
        let loading = match snapshot {
            Some(_) => Loading::begun(),
            None => Loading::default(),
        };
        let mut snapshot = snapshot;
        let mut devices = host.devices(self.vcpus, &balloon, display.as_ref(), &loading)?;
        for resets in 0.. {
            let (serial, balloon) = (serial.clone(), Some(balloon.clone()));
            let machine = match (snapshot.take(), &self.boot) {
                (Some(snapshot), _) => {
                    let spec = ResumeSpec {
                        devices,
                        serial,
                        balloon,
                        loading: loading.clone(),
                        on_damage: Box::new(end_damaged),
                    };
                    Machine::resume(&kvm, snapshot, spec)?
                }
                (None, Some(boot)) => {
                    let spec = MachineSpec {
                        memory_mib: self.memory_mib,
                        vcpus: self.vcpus,
                        boot,
                        devices,
                        serial,
                        balloon,
                    };
                    Machine::build(&kvm, spec)?
                }
                (None, None) => return Ok(ExitCode::from(RESET)),
            };
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
}

/// A guest whose memory is damaged must not write one more block: whoever waits for the memory waits until the process is gone.
fn end_damaged(error: PagerError) {
    eprintln!("Error: {:#}", anyhow::Error::from(error));
    std::process::exit(1);
}
