//! A driver in plain memory. It does what it is told, whether a driver may or not.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::memory::{self, Memory};
use crate::virtio::ring::{Interrupt, Ring};
use crate::virtio::{Device, F_RINGS, StartError, Started};

/// Bytes of the guest's memory; what lies beyond does not exist.
pub const MEMORY_BYTES: u64 = 1 << 20;
/// Where buffers may be; rings are before it.
pub const BUFFERS: u64 = 0x8_0000;
/// Most entries of a queue.
pub const SIZE: u16 = 32;

/// Flags of descriptors.
pub const NEXT: u16 = 1;
/// See [`NEXT`].
pub const WRITE: u16 = 2;
/// See [`NEXT`].
pub const INDIRECT: u16 = 4;

/// The first queue's rings: no available ring is at 0.
const QUEUES: u64 = 0x1000;
const QUEUE_BYTES: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Bytes of a used ring with what is behind it.
const USED_BYTES: u64 = 6 + 8 * SIZE as u64;
const DESCRIPTOR_BYTES: u64 = 16;

/// An entry of a descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address.
    pub at: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Where the chain goes on.
    pub next: u16,
}

impl Descriptor {
    /// As it lies in memory.
    pub fn bytes(self) -> [u8; DESCRIPTOR_BYTES as usize] {
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        bytes[..8].copy_from_slice(&self.at.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// See the module.
pub struct Driver {
    memory: Memory,
    device: Box<dyn Device>,
    kicks: Vec<EventFd>,
    interrupts: Vec<EventFd>,
    interrupt: Arc<Interrupt>,
    /// Entries of each queue, and where its available ring is.
    sizes: Vec<u16>,
    available: Vec<u16>,
    is_started: bool,
    /// It was stopped; a driver that sets it up anew resets it.
    was_stopped: bool,
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).expect("the host has events")
}

impl Driver {
    /// Of this device, in memory of zeros.
    ///
    /// # Panics
    /// The host has no room.
    pub fn new(device: Box<dyn Device>) -> Self {
        let memory = memory::small(MEMORY_BYTES).expect("the host has memory");
        let sizes: Vec<u16> = device
            .queue_sizes()
            .iter()
            .map(|max| SIZE.min(*max))
            .collect();
        let queues = sizes.len();
        assert!(QUEUES + queues as u64 * QUEUE_BYTES <= BUFFERS);
        let interrupts: Vec<EventFd> = (0..=queues).map(|_| event()).collect();
        let copies = interrupts
            .iter()
            .map(|event| event.try_clone().expect("a copy"));
        let interrupt = Interrupt::new(copies.collect(), queues);
        Self {
            memory,
            device,
            kicks: (0..queues).map(|_| event()).collect(),
            interrupts,
            interrupt: Arc::new(interrupt),
            sizes,
            available: vec![0; queues],
            is_started: false,
            was_stopped: false,
        }
    }

    /// Queues that the device has.
    pub fn queues(&self) -> usize {
        self.available.len()
    }

    /// Entries of a queue.
    pub fn size(&self, queue: usize) -> u16 {
        self.sizes[queue]
    }

    /// How far a queue's available ring goes.
    pub fn available(&self, queue: usize) -> u16 {
        self.available[queue]
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where a queue's descriptors, available and used ring are, with the end of the last.
    pub fn places(&self, queue: usize) -> [u64; 4] {
        let base = QUEUES + queue as u64 * QUEUE_BYTES;
        [
            base,
            base + AVAILABLE,
            base + USED,
            base + USED + USED_BYTES,
        ]
    }

    /// The driver is ready: of the device's own features it takes `features`, and sets up the queues whose bits are set in `queues`, each
    /// with as many entries as the device allows, [`SIZE`] at most. Rings are empty.
    ///
    /// # Errors
    /// The device does not start.
    pub fn start(&mut self, features: u64, queues: u32) -> Result<(), StartError> {
        if self.is_started {
            return Ok(());
        }
        if std::mem::take(&mut self.was_stopped) {
            self.device.reset();
        }
        let features = (self.device.features() | F_RINGS) & features | crate::virtio::F_VERSION_1;
        let mut rings = Vec::new();
        for (index, size_max) in self.device.queue_sizes().into_iter().enumerate() {
            let [descriptors, available, used, end] = self.places(index);
            self.available[index] = 0;
            self.write(available, &vec![0; (end - available) as usize]);
            let mut queue = Queue::new(size_max).expect("devices' queue sizes are powers of two");
            queue.set_size(self.sizes[index]);
            queue.set_desc_table_address(Some(descriptors as u32), None);
            queue.set_avail_ring_address(Some(available as u32), None);
            queue.set_used_ring_address(Some(used as u32), None);
            queue.set_event_idx(features & crate::virtio::F_EVENT_IDX != 0);
            queue.set_ready(true);
            let kick = self.kicks[index].try_clone().expect("a copy");
            let ring = Ring::new(index, queue, kick, Arc::clone(&self.interrupt));
            self.interrupt.set_vector(Some(index), index as u16 + 1);
            rings.push((queues >> index & 1 != 0).then_some(ring));
        }
        self.resume(features, rings)
    }

    /// Goes on with rings that [`Driver::stop`] gave back, as a machine that was paused.
    ///
    /// # Errors
    /// The device does not start.
    pub fn resume(&mut self, features: u64, rings: Vec<Option<Ring>>) -> Result<(), StartError> {
        let started = Started {
            memory: self.memory.clone(),
            features,
            rings,
            interrupt: Arc::clone(&self.interrupt),
        };
        (self.is_started, self.was_stopped) = (true, false);
        self.device.start(started)
    }

    /// The device comes to rest: what it was kicked for is done before, for one turn at least. It goes on with [`Driver::resume`], or is reset
    /// by the next [`Driver::start`].
    pub fn stop(&mut self) -> Vec<Option<Ring>> {
        let rings = self.device.stop();
        for kick in &self.kicks {
            let _ = kick.read();
        }
        (self.is_started, self.was_stopped) = (false, true);
        rings
    }

    /// The device.
    pub fn device(&mut self) -> &mut dyn Device {
        &mut *self.device
    }

    /// Writes into memory, as far as there is memory.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let room = MEMORY_BYTES.saturating_sub(at).min(bytes.len() as u64) as usize;
        let written = self.memory.write_slice(&bytes[..room], GuestAddress(at));
        written.expect("inside of memory");
    }

    /// All of memory.
    pub fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY_BYTES as usize];
        let read = self.memory.read_slice(&mut bytes, GuestAddress(0));
        read.expect("inside of memory");
        bytes
    }

    /// Writes a descriptor into a queue's table.
    pub fn describe(&self, queue: usize, index: u16, descriptor: Descriptor) {
        let at = self.places(queue)[0] + DESCRIPTOR_BYTES * u64::from(index % SIZE);
        self.write(at, &descriptor.bytes());
    }

    /// Makes a head available, whatever it is.
    pub fn publish(&mut self, queue: usize, head: u16) {
        let available = self.places(queue)[1];
        let place = available + 4 + 2 * u64::from(self.available[queue] % self.sizes[queue]);
        self.write(place, &head.to_le_bytes());
        self.set_available(queue, self.available[queue].wrapping_add(1));
    }

    /// Says that the available ring goes so far.
    pub fn set_available(&mut self, queue: usize, index: u16) {
        self.available[queue] = index;
        let place = GuestAddress(self.places(queue)[1] + 2);
        let stored = self.memory.store(index, place, Ordering::SeqCst);
        stored.expect("inside of memory");
    }

    /// How far the device has come.
    pub fn used(&self, queue: usize) -> u16 {
        let place = GuestAddress(self.places(queue)[2] + 2);
        let loaded = self.memory.load(place, Ordering::SeqCst);
        loaded.expect("inside of memory")
    }

    /// Tells the device to look at a queue.
    pub fn kick(&self, queue: usize) {
        let _ = self.kicks[queue].write(1);
    }

    /// Whether a queue's interrupt was raised since the last look.
    pub fn was_interrupted(&self, queue: usize) -> bool {
        self.interrupts[queue + 1].read().is_ok()
    }
}
