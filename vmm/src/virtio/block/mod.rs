//! A disk in this process: any [`BlockDevice`], each queue on a thread of its own, all together within its limits.

mod limit;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use vmm_block::virtio::{Parsed, config_of, features_of};
use vmm_block::{BlockDevice, Geometry, Seldom};
use vmm_sys_util::timerfd::TimerFd;

pub use limit::Limits;

use super::ring::{Chain, Ring};
use super::state::{DeviceState, DeviceStateError};
use super::worker::{Handler, Worker};
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::memory::Memory;
use crate::threads::Role;
use limit::Toll;

const QUEUE_SIZE: u16 = 256;
/// Data segments of a request; with head and status a chain fits its queue.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most queues: more than a desktop has processors gains nothing.
pub const QUEUES_MAX: usize = 16;

/// A disk and what guests are told of it.
#[derive(Clone)]
pub struct Disk {
    /// Its bytes.
    pub device: Arc<dyn BlockDevice>,
    /// Serial number, 20 bytes at most.
    pub serial: String,
    /// Queues, one for each processor as a rule.
    pub queues: usize,
    /// How much it may do.
    pub limits: Limits,
}

/// Shortest time that a request waits: a timer that is set to nothing never rings.
const WAIT_MIN: Duration = Duration::from_micros(1);
/// The timer's token; the queue's is 0.
const TIMER: u64 = 1;

/// What a queue pays, and how it waits until it can.
struct Paying {
    toll: Arc<Toll>,
    timer: TimerFd,
}

struct Server {
    ring: Ring,
    memory: Memory,
    disk: Disk,
    buffer: Vec<u8>,
    paying: Option<Paying>,
    seldom: Arc<Seldom>,
}

impl Server {
    /// Serves a chain; the bytes that were written. `Err` says how long it has to wait for its turn: nothing was done.
    fn serve(&mut self, chain: Chain<'_>, memory: &Memory) -> Result<u32, Duration> {
        let disk = &self.disk;
        let parsed = match Parsed::read(memory, chain) {
            Ok(parsed) => parsed,
            Err(reason) => {
                tracing::debug!(disk = disk.serial, %reason, "not a request");
                return Ok(0);
            }
        };
        // What was read is what is paid for: a guest may change its descriptors at any time.
        if let Some(paying) = &self.paying {
            paying.toll.pass(parsed.request.data_bytes())?;
        }
        let served = parsed.serve(&*disk.device, &disk.serial, &mut self.buffer);
        if let Some(error) = served.error {
            if !error.kind.is_askers() && self.seldom.passes() {
                tracing::warn!(disk = disk.serial, %error, "request failed; not every such failure is told");
            } else {
                tracing::debug!(disk = disk.serial, %error, "request failed");
            }
        }
        Ok(served.written)
    }
}

impl Handler for Server {
    const ROLE: Role = Role::Disk;

    fn ready(&mut self, _: u64) {
        let memory = self.memory.clone();
        let mut any = false;
        let mut turn = self.ring.turn();
        while let Some(chain) = self.ring.next_of(&mut turn, &memory) {
            let head = chain.head_index();
            match self.serve(chain, &memory) {
                Ok(written) => self.ring.done(&memory, head, written),
                Err(wait) => {
                    self.ring.put_back();
                    // There is a timer wherever there is something to wait for.
                    let paying = self.paying.as_mut();
                    let set = paying.map(|paying| paying.timer.reset(wait.max(WAIT_MIN), None));
                    if let Some(Err(error)) = set
                        && self.seldom.passes()
                    {
                        tracing::error!(%error, "a disk's timer; its queue waits for the next request");
                    }
                    break;
                }
            }
            any = true;
        }
        if any {
            self.ring.signal(&memory);
        }
    }
}

/// See the module.
pub struct Block {
    disk: Disk,
    geometry: Geometry,
    /// What may be told of requests that fail.
    seldom: Arc<Seldom>,
    /// By queue.
    workers: Vec<Option<Worker<Server>>>,
}

impl Block {
    /// A disk with one to [`QUEUES_MAX`] queues.
    pub fn new(disk: Disk) -> Self {
        let geometry = disk.device.geometry();
        let queues = disk.queues.clamp(1, QUEUES_MAX);
        Self {
            disk: Disk { queues, ..disk },
            geometry,
            seldom: Arc::default(),
            workers: Vec::new(),
        }
    }
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        features_of(&self.geometry)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.disk.queues]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let queues = self.disk.queues as u16;
        read_from(
            &config_of(&self.geometry, queues, SEGMENTS_MAX),
            offset,
            data,
        );
    }

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        if started.rings.iter().all(Option::is_none) {
            return Err(StartError::Queue(0));
        }
        let toll = Toll::new(self.disk.limits).map(Arc::new);
        for ring in started.rings {
            let worker = ring.map(|ring| {
                let mut waits = vec![(ring.kick().as_raw_fd(), 0)];
                let mut paying = None;
                if let Some(toll) = &toll {
                    let timer = TimerFd::new().map_err(std::io::Error::from)?;
                    waits.push((timer.as_raw_fd(), TIMER));
                    let toll = Arc::clone(toll);
                    paying = Some(Paying { toll, timer });
                }
                let name = format!("disk-{}", ring.index());
                let server = Server {
                    ring,
                    memory: started.memory.clone(),
                    disk: self.disk.clone(),
                    buffer: Vec::new(),
                    paying,
                    seldom: Arc::clone(&self.seldom),
                };
                Worker::spawn(&name, server, &waits)
            });
            let worker = worker.transpose();
            self.workers
                .push(worker.map_err(|error| StartError::Host("a disk's thread", error))?);
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<Option<Ring>> {
        let workers = std::mem::take(&mut self.workers);
        workers
            .into_iter()
            .map(|worker| worker.map(|worker| worker.stop().ring))
            .collect()
    }

    fn save(&self, _: &Memory) -> Result<DeviceState, DeviceStateError> {
        // A snapshot that outlives a power cut is of no use without what its guest had been told is written.
        self.disk.device.flush().map_err(DeviceStateError::Flush)?;
        Ok(DeviceState::Disk {
            bytes: self.geometry.size_bytes,
            inflight: None,
        })
    }

    fn restore(&mut self, state: DeviceState, _: &Memory) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Disk {
                inflight: Some(_), ..
            } => Err(DeviceStateError::Differs(
                "it has requests in flight, with which only a server over vhost-user can go on"
                    .into(),
            )),
            DeviceState::Disk { bytes, .. } if bytes == self.geometry.size_bytes => Ok(()),
            DeviceState::Disk { bytes, .. } => Err(DeviceStateError::Differs(format!(
                "it had {bytes} bytes, now {}",
                self.geometry.size_bytes
            ))),
            other => Err(other.other()),
        }
    }
}
