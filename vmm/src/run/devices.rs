//! Devices from options. Files, sockets and interfaces are opened here, or taken over, before the sandbox is entered; servers of disks are
//! met inside.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vmm::clipboard::{self, Clipboard};
use vmm::machine::Devices;
use vmm::rfb::{self, Inputs};
use vmm::sandbox::door::{Clerk, Desk, Door};
use vmm::screen::Screen;
use vmm::snapshot::Loading;
use vmm::threads::Service;
use vmm::virtio::Device;
use vmm::virtio::balloon::{Balloon, BalloonSize};
use vmm::virtio::block::{Block, Disk};
use vmm::virtio::console::{Console, HostEnd, PORTS_MAX, PortSpec};
use vmm::virtio::gpu::Gpu;
use vmm::virtio::input::{Input, Model};
use vmm::virtio::net::{self, Link, Net, Tap, inherited};
use vmm::virtio::rng::Rng;
use vmm::virtio::vhost_user::RemoteBlock;
use vmm::virtio::vsock::Vsock;
use vmm_block::RawFile;

use super::options::{DiskOption, DiskSource, HostArguments, VsockOption};

/// A screen and hands for it, which outlive machines: viewers stay when the guest resets.
pub(super) struct Display {
    screen: Screen,
    inputs: Inputs,
}

/// How long a machine's start waits for a disk's server.
const SERVER_PATIENCE: Duration = Duration::from_secs(30);

/// A disk before the sandbox is entered. How many queues it has is known inside.
enum OpenedDisk {
    /// Whole.
    File(Disk),
    /// To be met at this socket.
    Server(PathBuf),
}

/// A machine's devices before the sandbox is entered.
pub(super) struct Opened {
    disks: Vec<OpenedDisk>,
    /// What the guest may call, and where whoever connects it is to be left.
    services: Option<PathBuf>,
    desk: Desk,
    others: Devices,
    links: Vec<Link>,
}

impl DiskOption {
    fn open(&self) -> Result<OpenedDisk> {
        let path = match &self.source {
            DiskSource::VhostUser(path) => return Ok(OpenedDisk::Server(path.clone())),
            DiskSource::File(path) => path,
        };
        let file = RawFile::open(path, self.read_only);
        let file = file.with_context(|| format!("disk {}", path.display()))?;
        Ok(OpenedDisk::File(Disk {
            device: Arc::new(file),
            serial: self.serial.clone(),
            queues: 1,
            limits: self.limits,
        }))
    }
}

impl Opened {
    /// Cables of network cards.
    pub(super) fn links(&self) -> &[Link] {
        &self.links
    }

    /// What the guest may call: see [`vmm::sandbox::Needs`].
    pub(super) fn services(&self) -> Option<PathBuf> {
        self.services.clone()
    }

    /// Sockets of disks' servers.
    pub(super) fn servers(&self) -> Vec<PathBuf> {
        let servers = self.disks.iter().filter_map(|disk| match disk {
            OpenedDisk::Server(path) => Some(path.clone()),
            OpenedDisk::File(_) => None,
        });
        servers.collect()
    }

    /// Bytes of the longest file that guests write to.
    pub(super) fn file_bytes_max(&self) -> u64 {
        let files = self.disks.iter().map(|disk| match disk {
            OpenedDisk::File(disk) => disk.device.geometry().size_bytes,
            OpenedDisk::Server(_) => 0,
        });
        files.max().unwrap_or(0)
    }

    /// All devices, in the order of the options. Servers are met by `clerk`, who has them in the order of [`Self::servers`], and get the
    /// guest's memory when `loading` is over: they would find zeros where it is not there yet.
    pub(super) fn connect(
        self,
        queues: usize,
        clerk: Option<&Clerk>,
        loading: &Loading,
    ) -> Result<Devices> {
        if let Some(clerk) = clerk {
            self.desk.leave(clerk);
        }
        let mut devices = Devices::new();
        let mut number = 0;
        for (index, disk) in self.disks.into_iter().enumerate() {
            let device: Box<dyn Device> = match disk {
                OpenedDisk::File(disk) => Box::new(Block::new(Disk { queues, ..disk })),
                OpenedDisk::Server(path) => {
                    number += 1;
                    let disk = meet(&path, queues, clerk, number - 1)?;
                    Box::new(disk.after(loading.clone()))
                }
            };
            devices.push((format!("disk-{index}"), device));
        }
        devices.extend(self.others);
        Ok(devices)
    }
}

fn meet(path: &Path, queues: usize, clerk: Option<&Clerk>, number: u8) -> Result<RemoteBlock> {
    let door = match clerk {
        Some(clerk) => Door::with_clerk(path, clerk.clone(), number),
        None => path.into(),
    };
    RemoteBlock::open(door, queues, SERVER_PATIENCE)
        .with_context(|| format!("disk served at {}", path.display()))
}

impl HostArguments {
    /// Descriptors that were handed in, in order: those of taps, and these.
    pub(super) fn handed_in(&self, others: &[RawFd]) -> Result<Vec<RawFd>> {
        let taps = self.net.iter().filter_map(|net| inherited(&net.tap));
        let mut files: Vec<RawFd> = taps.chain(others.iter().copied()).collect();
        files.sort_unstable();
        if let Some(twice) = files.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("fd={}: it can be one thing only", twice[0]);
        }
        Ok(files)
    }

    /// A display, if there shall be one; who serves its socket is added to `services`.
    pub(super) fn display(&self, services: &mut Vec<Service>) -> Result<Option<Display>> {
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
            services.push(listening.with_context(|| format!("screen at {}", path.display()))?);
        }
        Ok(Some(Display { screen, inputs }))
    }

    /// Network cards without a chosen address keep the one of a snapshot, unless they are `new`.
    pub(super) fn devices(
        &self,
        balloon: &BalloonSize,
        display: Option<&Display>,
        new: bool,
    ) -> Result<Opened> {
        let disks = self.disk.iter().map(DiskOption::open);
        let disks = disks.collect::<Result<_>>()?;
        let (mut others, mut links) = (Devices::new(), Vec::new());
        for (index, option) in self.net.iter().enumerate() {
            let tap = match inherited(&option.tap) {
                Some(number) => Tap::take_over(number)?,
                None => Tap::open(&option.tap)?,
            };
            let is_chosen = option.mac.is_some() || new;
            let mac = match option.mac {
                Some(mac) => mac,
                None => net::new_address().context("a hardware address")?,
            };
            let card = Net::new(mac, tap, option.limits);
            let card = if is_chosen {
                card.with_chosen_address()
            } else {
                card
            };
            links.push(card.link());
            others.push((format!("net-{index}"), Box::new(card)));
        }
        let ports = self.ports(display);
        if ports.len() > PORTS_MAX {
            bail!("{} ports: {PORTS_MAX} are possible", ports.len());
        }
        if !ports.is_empty() {
            let console = Console::new(&ports).context("a port's socket")?;
            others.push(("ports".into(), Box::new(console)));
        }
        let (mut services, desk) = (None, Desk::default());
        if let Some(VsockOption(spec)) = &self.vsock {
            let vsock = Vsock::new(spec);
            let vsock = vsock.with_context(|| format!("sockets at {}", spec.socket.display()))?;
            others.push(("vsock".into(), Box::new(vsock.with_desk(desk.clone()))));
            services = Some(spec.socket.clone());
        }
        others.push(("balloon".into(), Box::new(Balloon::new(balloon.clone()))));
        others.push(("rng".into(), Box::<Rng>::default()));
        if let Some(Display { screen, inputs }) = display {
            let keyboard = Input::new(Model::Keyboard, inputs.keyboard.clone());
            let tablet = Input::new(Model::Tablet, inputs.tablet.clone());
            others.push(("gpu".into(), Box::new(Gpu::new(screen.clone()))));
            others.push(("keyboard".into(), Box::new(keyboard)));
            others.push(("tablet".into(), Box::new(tablet)));
        }
        Ok(Opened {
            disks,
            services,
            desk,
            others,
            links,
        })
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
