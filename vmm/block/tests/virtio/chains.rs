//! Chains of any shape, and serving one.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_block::BlockDevice;
use vmm_block::virtio::{Parsed, Request, Served, Unusable};

use crate::guest::{Driver, Memory, NEXT, QUEUE_BYTES, SIZE, WRITE};

const INDIRECT: u16 = 4;
/// Where requests, room for answers and tables of descriptors are.
pub const READABLE: u64 = QUEUE_BYTES;
pub const WRITABLE: u64 = QUEUE_BYTES * 2;
const TABLE: u64 = QUEUE_BYTES * 3;
pub const MEMORY_BYTES: usize = QUEUE_BYTES as usize * 4;

pub struct Guest {
    pub memory: Memory,
    pub driver: Driver,
    queue: Queue,
}

impl Guest {
    pub fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        let driver = Driver::new(&memory, 0);
        let mut queue = Queue::new(SIZE).unwrap();
        let [descriptors, available, used] = driver.rings().map(|at| at as u32);
        queue.set_desc_table_address(Some(descriptors), None);
        queue.set_avail_ring_address(Some(available), None);
        queue.set_used_ring_address(Some(used), None);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        Self {
            memory,
            driver,
            queue,
        }
    }

    /// Puts in a request of these bytes with so much room for the answer, each in pieces of these lengths (the last takes the rest).
    pub fn submit(&mut self, request: &[u8], room: usize, pieces: &[usize], indirect: bool) {
        self.memory
            .write_slice(request, GuestAddress(READABLE))
            .unwrap();
        let mut parts = split(READABLE, request.len(), pieces, 0);
        parts.extend(split(WRITABLE, room, pieces, WRITE));
        let last = parts.len() - 1;
        for (index, (at, len, flags)) in parts.into_iter().enumerate() {
            let next = index as u16 + 1;
            let flags = flags | if index == last { 0 } else { NEXT };
            if indirect {
                let place = TABLE + 16 * index as u64;
                self.driver.put(place, at);
                self.driver.put(place + 8, len as u32);
                self.driver.put(place + 12, flags);
                self.driver.put(place + 14, next);
            } else {
                self.driver
                    .describe(index as u16, at, len as u32, flags, next);
            }
        }
        if indirect {
            let bytes = 16 * (last as u32 + 1);
            self.driver.describe(0, TABLE, bytes, INDIRECT, 0);
        }
        self.driver.publish(0);
    }

    /// What the next chain asks for, if it is a request.
    pub fn parse(&mut self) -> Result<Request, Unusable> {
        let chain = self.queue.pop_descriptor_chain(&self.memory).unwrap();
        Parsed::read(&self.memory, chain).map(|parsed| parsed.request)
    }

    /// Serves the next chain; the status is the last byte of the room.
    pub fn serve(&mut self, device: &dyn BlockDevice) -> Result<Served, Unusable> {
        let chain = self.queue.pop_descriptor_chain(&self.memory).unwrap();
        let parsed = Parsed::read(&self.memory, chain)?;
        Ok(parsed.serve(device, "serial", &mut Vec::new()))
    }

    pub fn answer(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(WRITABLE))
            .unwrap();
        bytes
    }
}

fn split(mut at: u64, mut len: usize, pieces: &[usize], flags: u16) -> Vec<(u64, usize, u16)> {
    let mut parts = Vec::new();
    for piece in pieces {
        if len > *piece && *piece > 0 {
            parts.push((at, *piece, flags));
            at += *piece as u64;
            len -= piece;
        }
    }
    if len > 0 {
        parts.push((at, len, flags));
    }
    parts
}

/// A request's bytes.
pub fn request(kind: u32, sector: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes.extend(data);
    bytes
}

/// One range of a discard or zeroing.
pub fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}
