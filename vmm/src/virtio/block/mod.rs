//! A disk in this process: any [`BlockDevice`], each queue on a thread of its own.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_block::virtio::{Parsed, SECTOR_BYTES, features};
use vmm_block::{BlockDevice, Geometry};

use super::ring::{Chain, Ring};
use super::worker::{Handler, Worker};
use super::{Device, Kind, StartError, Started, read_from};
use crate::machine::memory::Memory;

const QUEUE_SIZE: u16 = 256;
/// Data segments of a request; with head and status a chain fits its queue.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most queues: more than a desktop has processors gains nothing.
pub const QUEUES_MAX: usize = 16;
/// Sectors of one range of a discard or zeroing: 1 GiB.
const RANGE_SECTORS_MAX: u32 = 1 << 21;

/// A disk and what guests are told of it.
#[derive(Clone)]
pub struct Disk {
    /// Its bytes.
    pub device: Arc<dyn BlockDevice>,
    /// Serial number, 20 bytes at most.
    pub serial: String,
    /// Queues, one for each processor as a rule.
    pub queues: usize,
}

struct Server {
    ring: Ring,
    memory: Memory,
    disk: Disk,
    buffer: Vec<u8>,
}

impl Server {
    fn serve(disk: &Disk, buffer: &mut Vec<u8>, chain: Chain<'_>, memory: &Memory) -> u32 {
        let parsed = match Parsed::read(memory, chain) {
            Ok(parsed) => parsed,
            Err(reason) => {
                tracing::warn!(disk = disk.serial, %reason, "not a request");
                return 0;
            }
        };
        let served = parsed.serve(&*disk.device, &disk.serial, buffer);
        if let Some(error) = served.error {
            tracing::warn!(disk = disk.serial, %error, "request failed");
        }
        served.written
    }
}

impl Handler for Server {
    fn ready(&mut self, _: u64) {
        let (memory, disk, buffer) = (&self.memory, &self.disk, &mut self.buffer);
        self.ring
            .drain(memory, |chain| Self::serve(disk, buffer, chain, memory));
    }
}

/// See the module.
pub struct Block {
    disk: Disk,
    geometry: Geometry,
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
            workers: Vec::new(),
        }
    }

    /// The configuration in its wire form (virtio 1.2, section 5.2.4).
    fn config(&self) -> Vec<u8> {
        let block = self.geometry.block_bytes_preferred.clamp(512, 4096);
        // Guests use 512-byte blocks and are told to prefer the device's.
        let exponent = (block / 512).trailing_zeros() as u8;
        let mut config = Vec::with_capacity(60);
        config.extend((self.geometry.size_bytes / SECTOR_BYTES).to_le_bytes());
        config.extend(0u32.to_le_bytes()); // size_max: none
        config.extend(SEGMENTS_MAX.to_le_bytes());
        config.extend([0; 4]); // cylinders, heads and sectors
        config.extend(512u32.to_le_bytes());
        config.extend([exponent, 0]);
        config.extend(1u16.to_le_bytes()); // best smallest transfer, blocks
        config.extend(0u32.to_le_bytes()); // best transfer: none
        config.extend([0, 0]); // writeback, unused
        config.extend((self.disk.queues as u16).to_le_bytes());
        config.extend(RANGE_SECTORS_MAX.to_le_bytes()); // discard
        config.extend(64u32.to_le_bytes());
        config.extend((block / 512).to_le_bytes());
        config.extend(RANGE_SECTORS_MAX.to_le_bytes()); // zeroing
        config.extend(64u32.to_le_bytes());
        config.extend([1, 0, 0, 0]); // zeroing may give storage back
        config
    }
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let may_write = if self.geometry.read_only {
            features::RO
        } else {
            features::DISCARD | features::WRITE_ZEROES
        };
        let always = features::SEG_MAX
            | features::BLK_SIZE
            | features::FLUSH
            | features::TOPOLOGY
            | features::MQ;
        always | may_write
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.disk.queues]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_from(&self.config(), offset, data);
    }

    fn start(&mut self, started: Started) -> Result<(), StartError> {
        if started.rings.iter().all(Option::is_none) {
            return Err(StartError::Queue(0));
        }
        for ring in started.rings {
            let worker = ring.map(|ring| {
                let kick = ring.kick().as_raw_fd();
                let name = format!("disk-{}", ring.index());
                let server = Server {
                    ring,
                    memory: started.memory.clone(),
                    disk: self.disk.clone(),
                    buffer: Vec::new(),
                };
                Worker::spawn(&name, server, &[(kick, 0)])
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
}
