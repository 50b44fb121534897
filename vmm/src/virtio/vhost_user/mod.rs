//! A disk that another process serves over vhost-user: the branch server, so that this process, which the guest may break into, holds no
//! chunk and no key.
//!
//! The server reads and writes the guest's memory and its rings by itself; here is only who tells it where they are. It may go away at
//! any time and come back (an upgrade of the branch): the guest waits meanwhile, nothing is lost. For a snapshot its server answers what it
//! can and gives the queues back; what it cannot answer, because the WAN does not bring it, is kept in the snapshot as being in flight
//! (`inflight`), and the server of the machine that goes on does it. A server that is gone with requests in work is waited for first.

mod inflight;
mod keeper;
mod link;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_block::virtio::{CONFIG_BYTES, CONFIG_QUEUES_AT, features};
use vmm_sys_util::eventfd::EventFd;

pub use inflight::InflightState;
pub use link::{DiskInfo, LinkError};

use super::ring::Ring;
use super::state::{DeviceState, DeviceStateError};
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::bus::lock;
use crate::machine::memory::Memory;
use crate::sandbox::door::Door;
use crate::snapshot::Loading;
use crate::threads::{self, Role};
use inflight::Left;
use keeper::{Back, Keeper};
use link::Link;

const QUEUE_SIZE: u16 = 256;
/// Most queues, see [`super::block::QUEUES_MAX`].
const QUEUES_MAX: u16 = super::block::QUEUES_MAX as u16;
/// Between two attempts to reach a server that is not there yet.
const PAUSE: Duration = Duration::from_millis(50);

/// Features of disks that are passed on: those that are about data and its places. Others may need something of a VMM.
const FEATURES: u64 = features::SEG_MAX
    | features::RO
    | features::BLK_SIZE
    | features::FLUSH
    | features::TOPOLOGY
    | features::MQ
    | features::DISCARD
    | features::WRITE_ZEROES;

/// What the guest reads: the server's configuration with the number of queues that it has here.
fn told_config(info: &DiskInfo, queues: usize) -> [u8; CONFIG_BYTES] {
    let mut config = info.config;
    let number = (queues as u16).to_le_bytes();
    config[CONFIG_QUEUES_AT..CONFIG_QUEUES_AT + number.len()].copy_from_slice(&number);
    config
}

struct Kept {
    stop: EventFd,
    thread: JoinHandle<Back>,
}

/// See the module.
pub struct RemoteBlock {
    door: Door,
    features: u64,
    queues: u16,
    config: Arc<Mutex<[u8; CONFIG_BYTES]>>,
    kept: Option<Kept>,
    /// Requests that were left when it was stopped.
    left: Option<Left>,
    loading: Loading,
}

impl RemoteBlock {
    /// The disk whose server is behind `door`, a Unix socket, with at most `queues` queues. A server that is not there yet is waited for as long as
    /// `patience` says.
    ///
    /// # Errors
    /// There is none, or it lacks something.
    pub fn open(
        door: impl Into<Door>,
        queues: usize,
        patience: Duration,
    ) -> Result<Self, LinkError> {
        let door = door.into();
        let deadline = Instant::now() + patience;
        let link = loop {
            match Link::connect(&door, None) {
                Ok(link) => break link,
                Err(error @ LinkError::Lacks(_)) => return Err(error),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => std::thread::sleep(PAUSE),
            }
        };
        // The connection is closed now and made again when the driver is ready: a machine that does not use a disk holds up nobody.
        let info = link.info();
        let wanted = u16::try_from(queues).unwrap_or(QUEUES_MAX);
        let queues = wanted.clamp(1, QUEUES_MAX).min(info.queues.max(1));
        Ok(Self {
            door,
            features: info.features & FEATURES,
            queues,
            config: Arc::new(Mutex::new(told_config(info, queues.into()))),
            kept: None,
            left: None,
            loading: Loading::default(),
        })
    }

    /// Has it wait for the memory of a machine that goes on.
    pub fn after(mut self, loading: Loading) -> Self {
        self.loading = loading;
        self
    }

    fn bytes(&self) -> u64 {
        const SECTOR_BYTES: u64 = 512;
        let mut sectors = [0; 8];
        self.read_config(0, &mut sectors);
        u64::from_le_bytes(sectors).saturating_mul(SECTOR_BYTES)
    }
}

impl Device for RemoteBlock {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_from(&*lock(&self.config), offset, data);
    }

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        if started.rings.iter().all(Option::is_none) {
            return Err(StartError::Queue(0));
        }
        let failed = |error| StartError::Host("a remote disk's thread", error);
        let stop = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(failed)?;
        let keeper = Keeper {
            door: self.door.clone(),
            memory: started.memory,
            features: started.features,
            rings: started.rings,
            interrupt: started.interrupt,
            config: Arc::clone(&self.config),
            stop: stop.try_clone().map_err(failed)?,
            // Whatever was left before is as it was until a server has it.
            is_at_rest: self.left.as_ref().is_none_or(|left| left.is_at_rest),
            inflight: self.left.take().map(|left| left.inflight),
            loading: self.loading.clone(),
        };
        let thread = threads::spawn(Role::Remote, "disk-keeper", move || keeper.run());
        let thread = thread.map_err(failed)?;
        self.kept = Some(Kept { stop, thread });
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Ring>> {
        let Some(kept) = self.kept.take() else {
            return Vec::new();
        };
        // One write to a new event cannot fail.
        let _ = kept.stop.write(1);
        match kept.thread.join() {
            Ok(back) => {
                self.left = back.left;
                back.rings
            }
            // A defect of ours; its thread has told where.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn reset(&mut self) {
        self.left = None;
    }

    fn save(&self, _: &Memory) -> Result<DeviceState, DeviceStateError> {
        let inflight = match &self.left {
            None => None,
            Some(left) if left.is_at_rest => Some(InflightState::of(&left.inflight)?),
            Some(_) => {
                return Err(DeviceStateError::Busy(
                    "its server is away and has requests in work; try again when it is back",
                ));
            }
        };
        Ok(DeviceState::Disk {
            bytes: self.bytes(),
            inflight,
        })
    }

    fn restore(&mut self, state: DeviceState, _: &Memory) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Disk { bytes, inflight } if bytes == self.bytes() => {
                let inflight = inflight.map(|inflight| inflight.inflight(self.queues));
                self.left = inflight.transpose()?.map(|inflight| Left {
                    inflight,
                    is_at_rest: true,
                });
                Ok(())
            }
            DeviceState::Disk { bytes, .. } => Err(DeviceStateError::Differs(format!(
                "it had {bytes} bytes, now {}",
                self.bytes()
            ))),
            other => Err(other.other()),
        }
    }
}
