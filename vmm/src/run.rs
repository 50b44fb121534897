//! `splice-vmm run`: a machine from command-line options.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use clap::Args;
use vmm::legacy::serial::Output;
use vmm::machine::boot::BootSource;
use vmm::machine::bus::lock;
use vmm::machine::event::{Event, Events};
use vmm::machine::{End, Machine, MachineSpec};
use vmm::rfb::{self, Inputs};
use vmm::screen::{Screen, Size};
use vmm::virtio::Device;
use vmm::virtio::block::{Block, Disk};
use vmm::virtio::gpu::Gpu;
use vmm::virtio::input::{Input, Model};
use vmm::virtio::rng::Rng;
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
    /// A disk: a raw file, and options behind commas: `readonly`, `serial=TEXT`. The first is /dev/vda.
    #[arg(long, value_name = "FILE[,OPTION…]")]
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
    /// Have a screen, a keyboard and a tablet; the guest is asked for this size first.
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    display: Option<Size>,
    /// Have the screen at this Unix socket, for viewers that speak RFB (VNC). Whoever may open it may see and type.
    #[arg(long, value_name = "PATH", requires = "display")]
    rfb_socket: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  splice-vmm run --kernel vmlinuz --initrd initrd.img --command-line 'root=/dev/vda1 ro console=ttyS0' \\
      --disk desktop.raw --memory 2048 --vcpus 2 --serial-stdout
  splice-vmm run --kernel vmlinuz --serial-socket console.sock    (then: socat - UNIX:console.sock)
  splice-vmm run --kernel vmlinuz --disk desktop.raw --command-line 'root=/dev/vda1' --display 1280x800 \\
      --rfb-socket screen.sock    (then: splice-vmm screenshot screen.sock screen.png)";

/// A screen and hands for it, which outlive machines: viewers stay when the guest resets.
struct Display {
    screen: Screen,
    inputs: Inputs,
}

/// One `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DiskOption {
    path: PathBuf,
    read_only: bool,
    serial: String,
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts.next().filter(|path| !path.is_empty());
        let mut this = Self {
            path: path.ok_or("a file is needed")?.into(),
            read_only: false,
            serial: String::new(),
        };
        for part in parts {
            match part.split_once('=') {
                None if part == "readonly" => this.read_only = true,
                Some(("serial", serial)) if serial.len() <= 20 => this.serial = serial.into(),
                Some(("serial", _)) => return Err("a serial number has 20 bytes at most".into()),
                _ => {
                    return Err(format!(
                        "unknown option {part:?}: readonly and serial=TEXT are known"
                    ));
                }
            }
        }
        Ok(this)
    }
}

impl Arguments {
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

    fn devices(&self, display: Option<&Display>) -> Result<Vec<(String, Box<dyn Device>)>> {
        let mut devices: Vec<(String, Box<dyn Device>)> = Vec::new();
        for (index, disk) in self.disk.iter().enumerate() {
            let file = RawFile::open(&disk.path, disk.read_only);
            let file = file.with_context(|| format!("disk {}", disk.path.display()))?;
            let block = Block::new(Disk {
                device: Arc::new(file),
                serial: disk.serial.clone(),
                queues: self.vcpus.into(),
            });
            devices.push((format!("disk-{index}"), Box::new(block)));
        }
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

    fn spec(&self, serial: &Output, display: Option<&Display>) -> Result<MachineSpec> {
        Ok(MachineSpec {
            memory_mib: self.memory,
            vcpus: self.vcpus,
            boot: BootSource {
                kernel: self.kernel.clone(),
                initrd: self.initrd.clone(),
                command_line: self.command_line.clone(),
            },
            devices: self.devices(display)?,
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
    let display = arguments.display()?;
    loop {
        let machine = Machine::build(arguments.spec(&serial, display.as_ref())?)?;
        signals.end(machine.events());
        match machine.run() {
            End::Off => return Ok(ExitCode::SUCCESS),
            End::Reset => {}
            End::Failed(reason) => bail!(reason),
        }
    }
}
