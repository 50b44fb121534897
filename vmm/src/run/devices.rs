//! Devices from options. Files, sockets and interfaces are opened here, before the sandbox is entered; servers of disks are met inside.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vmm::machine::Devices;
use vmm::rfb::{self, Inputs};
use vmm::sandbox::Reachable;
use vmm::sandbox::door::{Clerk, Desk, Door};
use vmm::screen::Screen;
use vmm::threads::Service;
use vmm::virtio::Device;
use vmm::virtio::balloon::{Balloon, BalloonSize};
use vmm::virtio::block::{Block, Disk};
use vmm::virtio::console::{Console, PORTS_MAX, PortSpec};
use vmm::virtio::gpu::Gpu;
use vmm::virtio::input::{Input, Model};
use vmm::virtio::net::{Net, Tap, inherited};
use vmm::virtio::rng::Rng;
use vmm::virtio::vhost_user::RemoteBlock;
use vmm::virtio::vsock::Vsock;
use vmm_block::{BlockDevice, RawFile};

use super::options::{Arguments, DiskOption, DiskSource, VsockOption};

/// A screen and hands for it, which outlive machines: viewers stay when the guest resets.
pub(super) struct Display {
    screen: Screen,
    inputs: Inputs,
}

/// How long a machine's start waits for a disk's server.
const SERVER_PATIENCE: Duration = Duration::from_secs(30);

/// A disk before the sandbox is entered.
enum OpenedDisk {
    /// Whole.
    File { disk: Box<Block>, bytes: u64 },
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
}

impl DiskOption {
    fn open(&self, queues: usize) -> Result<OpenedDisk> {
        let path = match &self.source {
            DiskSource::VhostUser(path) => return Ok(OpenedDisk::Server(path.clone())),
            DiskSource::File(path) => path,
        };
        let file = RawFile::open(path, self.read_only);
        let file = file.with_context(|| format!("disk {}", path.display()))?;
        Ok(OpenedDisk::File {
            bytes: file.geometry().size_bytes,
            disk: Box::new(Block::new(Disk {
                device: Arc::new(file),
                serial: self.serial.clone(),
                queues,
                limits: self.limits,
            })),
        })
    }
}

impl Opened {
    /// Sockets that are to be opened from inside.
    pub(super) fn reachable(&self) -> Reachable {
        let servers = self.disks.iter().filter_map(|disk| match disk {
            OpenedDisk::Server(path) => Some(path.clone()),
            OpenedDisk::File { .. } => None,
        });
        Reachable {
            servers: servers.collect(),
            services: self.services.clone(),
        }
    }

    /// Bytes of the longest file that guests write to.
    pub(super) fn file_bytes_max(&self) -> u64 {
        let files = self.disks.iter().map(|disk| match disk {
            OpenedDisk::File { bytes, .. } => *bytes,
            OpenedDisk::Server(_) => 0,
        });
        files.max().unwrap_or(0)
    }

    /// All devices, in the order of the options. Servers are met by `clerk`, who has them in the order of [`Self::reachable`].
    pub(super) fn connect(self, queues: usize, clerk: Option<&Clerk>) -> Result<Devices> {
        if let Some(clerk) = clerk {
            self.desk.leave(clerk);
        }
        let mut devices = Devices::new();
        let mut number = 0;
        for (index, disk) in self.disks.into_iter().enumerate() {
            let device: Box<dyn Device> = match disk {
                OpenedDisk::File { disk, .. } => disk,
                OpenedDisk::Server(path) => {
                    number += 1;
                    Box::new(meet(&path, queues, clerk, number - 1)?)
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

impl Arguments {
    /// A display, if there shall be one; who serves its socket is added to `services`.
    pub(super) fn display(&self, services: &mut Vec<Service>) -> Result<Option<Display>> {
        let Some(size) = self.display else {
            return Ok(None);
        };
        let (screen, inputs) = (Screen::new(size), Inputs::default());
        if let Some(path) = &self.rfb_socket {
            let listening = rfb::listen(path, screen.clone(), inputs.clone(), "Splice desktop");
            services.push(listening.with_context(|| format!("screen at {}", path.display()))?);
        }
        Ok(Some(Display { screen, inputs }))
    }

    pub(super) fn devices(
        &self,
        balloon: &BalloonSize,
        display: Option<&Display>,
    ) -> Result<Opened> {
        let disks = self.disk.iter();
        let disks = disks
            .map(|disk| disk.open(self.vcpus.into()))
            .collect::<Result<_>>()?;
        let mut others = Devices::new();
        for (index, net) in self.net.iter().enumerate() {
            let tap = match inherited(&net.tap) {
                Some(number) => Tap::take_over(number)?,
                None => Tap::open(&net.tap)?,
            };
            // Locally administered, and another one for each card of a process.
            let [a, b] = (std::process::id() as u16).to_be_bytes();
            let mac = net.mac.unwrap_or([0x52, 0x54, 0, a, b, index as u8]);
            others.push((format!("net-{index}"), Box::new(Net::new(mac, tap))));
        }
        let ports: Vec<PortSpec> = self.port.iter().map(|port| port.0.clone()).collect();
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
        })
    }
}
