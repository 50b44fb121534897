//! A queue as a device uses it: take chains, give them back, raise the interrupt if the driver wants it.
//!
//! A guest can have a ring that never ends: another processor puts in as fast as the device takes out, or what the device writes is the
//! ring itself. So a device works in turns ([`Turn`]) of as many chains as the ring has entries, and looks at what else there is in
//! between, such as that it should stop. Nothing here is logged: a guest can spoil its ring as often as it likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::machine::memory::Memory;

/// No vector: the driver wants no interrupt.
pub const NO_VECTOR: u16 = 0xffff;

/// A chain of descriptors.
pub type Chain<'a> = DescriptorChain<&'a Memory>;

/// Interrupts of one device.
pub struct Interrupt {
    events: Vec<EventFd>,
    /// Vector of configuration changes, then of each queue.
    vectors: Vec<AtomicU16>,
    generation: AtomicU8,
}

impl Interrupt {
    /// By these events, one for each vector; `queues` queues.
    pub fn new(events: Vec<EventFd>, queues: usize) -> Self {
        let unset = || AtomicU16::new(NO_VECTOR);
        Self {
            events,
            vectors: std::iter::repeat_with(unset).take(queues + 1).collect(),
            generation: AtomicU8::new(0),
        }
    }

    fn slot(queue: Option<usize>) -> usize {
        queue.map_or(0, |queue| queue + 1)
    }

    /// Which vector a queue, or else the configuration, has.
    pub fn vector(&self, queue: Option<usize>) -> u16 {
        let slot = self.vectors.get(Self::slot(queue));
        slot.map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Sets it; one that does not exist becomes none, which the driver reads back.
    pub fn set_vector(&self, queue: Option<usize>, vector: u16) {
        let exists = usize::from(vector) < self.events.len();
        if let Some(slot) = self.vectors.get(Self::slot(queue)) {
            slot.store(if exists { vector } else { NO_VECTOR }, Ordering::Release);
        }
    }

    /// All vectors, for a snapshot: of configuration changes, then of each queue.
    pub fn vectors(&self) -> Vec<u16> {
        let vectors = self.vectors.iter();
        vectors
            .map(|vector| vector.load(Ordering::Acquire))
            .collect()
    }

    /// Takes up a generation.
    pub fn set_generation(&self, generation: u8) {
        self.generation.store(generation, Ordering::Release);
    }

    /// The event of a queue's interrupt, for whoever raises it from outside of this process.
    pub fn event(&self, queue: usize) -> Option<&EventFd> {
        self.events.get(usize::from(self.vector(Some(queue))))
    }

    fn raise(&self, queue: Option<usize>) {
        if let Some(event) = self.events.get(usize::from(self.vector(queue))) {
            // It fails only when 2^64 - 2 interrupts wait to be seen: one more changes nothing.
            let _ = event.write(1);
        }
    }

    /// The driver should look at a queue.
    pub fn queue(&self, queue: usize) {
        self.raise(Some(queue));
    }

    /// The driver should read the configuration again.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(None);
    }

    /// Changes whenever the configuration does.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }
}

/// Chains that a device may still take before it looks at what else there is.
pub struct Turn {
    left: u16,
}

/// See the module.
pub struct Ring {
    index: usize,
    queue: Queue,
    /// The driver has put something in.
    kick: EventFd,
    interrupt: Arc<Interrupt>,
    /// Several chains were given back at once, which the queue does not count: the interrupt is raised whatever it says.
    jumped: bool,
}

impl Ring {
    /// Queue number `index`.
    pub fn new(index: usize, queue: Queue, kick: EventFd, interrupt: Arc<Interrupt>) -> Self {
        Self {
            index,
            queue,
            kick,
            interrupt,
            jumped: false,
        }
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Becomes readable when the driver has put something in.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The queue with its places.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The queue was worked on by somebody else, who has come this far in the available and the used ring.
    pub fn set_places(&mut self, next_available: u16, next_used: u16) {
        self.queue.set_next_avail(next_available);
        self.queue.set_next_used(next_used);
    }

    /// Gives the queue back.
    pub fn into_queue(self) -> Queue {
        self.queue
    }

    /// The next chain that the driver has put in. When there is none, the driver will kick for the next one.
    pub fn next<'a>(&mut self, memory: &'a Memory) -> Option<Chain<'a>> {
        if let Some(chain) = self.pop(memory) {
            return Some(chain);
        }
        // One may come between the look and the asking. A ring that a guest has spoilt has no next chain: the guest resets the device,
        // or is without it.
        let came = self.queue.enable_notification(memory).unwrap_or(false);
        came.then(|| self.pop(memory))?
    }

    /// Not `pop_descriptor_chain`, which logs what a guest has spoilt.
    fn pop<'a>(&mut self, memory: &'a Memory) -> Option<Chain<'a>> {
        self.queue.iter(memory).ok()?.next()
    }

    /// A turn begins.
    pub fn turn(&self) -> Turn {
        Turn {
            left: self.queue.size(),
        }
    }

    /// As [`Ring::next`], as long as the turn lasts. When it is over the device is kicked, so that it comes back here after everything
    /// else.
    pub fn next_of<'a>(&mut self, turn: &mut Turn, memory: &'a Memory) -> Option<Chain<'a>> {
        if turn.left == 0 {
            self.again();
            return None;
        }
        turn.left -= 1;
        self.next(memory)
    }

    /// Has the device come back to this ring as if the driver had kicked.
    pub fn again(&self) {
        // It fails only when it has been kicked 2^64 - 2 times already.
        let _ = self.kick.write(1);
    }

    /// Puts a chain back that could not be worked on yet.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back, with `written` bytes written into it.
    pub fn done(&mut self, memory: &Memory, head: u16, written: u32) {
        // A head that does not exist cannot be given back; `add_used` would log it.
        if head < self.queue.size() {
            // The rings were in the guest's memory when the queue began, and memory does not go away.
            let _ = self.queue.add_used(memory, head, written);
        }
    }

    /// Gives chains back that belong together, each with the bytes written into it: the driver sees all of them or none.
    pub fn done_together(&mut self, memory: &Memory, chains: &[(u16, u32)]) {
        let Some(((head, written), others)) = chains.split_last() else {
            return;
        };
        const ENTRIES_AT: u64 = 4;
        const ENTRY_BYTES: u64 = 8;
        let first = self.queue.next_used();
        for (place, (head, written)) in (0u16..).zip(others) {
            let entry = first.wrapping_add(place) % self.queue.size();
            let at = self.queue.used_ring() + ENTRIES_AT + u64::from(entry) * ENTRY_BYTES;
            let mut bytes = u32::from(*head).to_le_bytes().to_vec();
            bytes.extend(written.to_le_bytes());
            // The ring was valid when the device was started, and lies in memory that stays.
            let _ = memory.write_slice(&bytes, GuestAddress(at));
        }
        self.jumped |= !others.is_empty();
        self.queue
            .set_next_used(first.wrapping_add(others.len() as u16));
        self.done(memory, *head, *written);
    }

    /// Works for a turn on what is in the ring and on what comes meanwhile; each chain's answer is the bytes written into it. Raises the
    /// interrupt if the driver wants it.
    pub fn drain(&mut self, memory: &Memory, mut work: impl FnMut(Chain<'_>) -> u32) {
        let mut any = false;
        let mut turn = self.turn();
        while let Some(chain) = self.next_of(&mut turn, memory) {
            let head = chain.head_index();
            let written = work(chain);
            self.done(memory, head, written);
            any = true;
        }
        if any {
            self.signal(memory);
        }
    }

    /// Raises the interrupt if the driver wants it.
    pub fn signal(&mut self, memory: &Memory) {
        let is_needed = self.queue.needs_notification(memory).unwrap_or(true);
        if std::mem::take(&mut self.jumped) || is_needed {
            self.interrupt.queue(self.index);
        }
    }
}
