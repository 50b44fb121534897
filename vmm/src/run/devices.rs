//! Devices from options: files, sockets and interfaces are opened here.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vmm::machine::Devices;
use vmm::rfb::{self, Inputs};
use vmm::screen::Screen;
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

use super::options::{Arguments, DiskOption, DiskSource};

/// A screen and hands for it, which outlive machines: viewers stay when the guest resets.
pub(super) struct Display {
    screen: Screen,
    inputs: Inputs,
}

/// How long a machine's start waits for a disk's server.
const SERVER_PATIENCE: Duration = Duration::from_secs(30);

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

impl Arguments {
    pub(super) fn display(&self) -> Result<Option<Display>> {
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

    pub(super) fn devices(
        &self,
        balloon: &BalloonSize,
        display: Option<&Display>,
    ) -> Result<Devices> {
        let mut devices = Devices::new();
        for (index, disk) in self.disk.iter().enumerate() {
            devices.push((format!("disk-{index}"), disk.open(self.vcpus.into())?));
        }
        for (index, net) in self.net.iter().enumerate() {
            let tap = Tap::open(&net.tap)?;
            // Locally administered, and another one for each card of a process.
            let [a, b] = (std::process::id() as u16).to_be_bytes();
            let mac = net.mac.unwrap_or([0x52, 0x54, 0, a, b, index as u8]);
            devices.push((format!("net-{index}"), Box::new(Net::new(mac, tap))));
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
