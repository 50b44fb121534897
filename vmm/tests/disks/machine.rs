//! A device with drivers on its queues, without a machine around it.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vmm::machine::memory::{self, Memory};
use vmm::virtio::ring::{Interrupt, Ring};
use vmm::virtio::{Device, F_VERSION_1, Started};
use vmm_sys_util::eventfd::EventFd;

use crate::guest::{Driver, QUEUE_BYTES, SIZE};

/// Where queues are: no available ring is at 0.
const QUEUES: u64 = 1 << 20;

pub struct Machine {
    pub device: Box<dyn Device>,
    pub drivers: Vec<Driver>,
    pub memory: Memory,
    kicks: Vec<EventFd>,
    events: Vec<EventFd>,
    interrupt: Arc<Interrupt>,
}

fn event() -> EventFd {
    EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).unwrap()
}

impl Machine {
    /// With all queues of the device, not started.
    pub fn new(device: Box<dyn Device>) -> Self {
        let memory = memory::create(64).unwrap();
        let queues = device.queue_sizes().len();
        let events: Vec<EventFd> = (0..=queues).map(|_| event()).collect();
        let copies = events.iter().map(|event| event.try_clone().unwrap());
        let interrupt = Interrupt::new(copies.collect(), queues);
        let driver = |index| Driver::new(&memory, QUEUES + index as u64 * QUEUE_BYTES);
        Self {
            drivers: (0..queues).map(driver).collect(),
            device,
            memory,
            kicks: (0..queues).map(|_| event()).collect(),
            events,
            interrupt: Arc::new(interrupt),
        }
    }

    /// The driver is ready: queues go on at these places.
    pub fn start(&mut self, places: &[u16]) {
        let mut rings = Vec::new();
        for (index, driver) in self.drivers.iter().enumerate() {
            let mut queue = Queue::new(256).unwrap();
            queue.set_size(SIZE);
            let [descriptors, available, used] = driver.rings().map(|at| at as u32);
            queue.set_desc_table_address(Some(descriptors), None);
            queue.set_avail_ring_address(Some(available), None);
            queue.set_used_ring_address(Some(used), None);
            queue.set_ready(true);
            queue.set_next_avail(places[index]);
            queue.set_next_used(places[index]);
            assert!(queue.is_valid(&self.memory));
            self.interrupt.set_vector(Some(index), index as u16 + 1);
            let kick = self.kicks[index].try_clone().unwrap();
            let interrupt = Arc::clone(&self.interrupt);
            rings.push(Some(Ring::new(index, queue, kick, interrupt)));
        }
        let started = Started {
            memory: self.memory.clone(),
            features: self.device.features() | F_VERSION_1,
            rings,
            interrupt: Arc::clone(&self.interrupt),
        };
        self.device.start(started).unwrap();
        for queue in 0..self.kicks.len() {
            self.kick(queue);
        }
    }

    /// Stops; where the queues are.
    pub fn stop(&mut self) -> Vec<(u16, u16)> {
        let rings = self.device.stop();
        let place = |ring: Option<Ring>| {
            let queue = ring.unwrap().into_queue();
            (queue.next_avail(), queue.next_used())
        };
        rings.into_iter().map(place).collect()
    }

    pub fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// Whether a queue's interrupt was raised since the last look.
    pub fn was_interrupted(&self, queue: usize) -> bool {
        self.events[queue + 1].read().is_ok()
    }

    pub fn config(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.device.read_config(offset, &mut data);
        data
    }
}
