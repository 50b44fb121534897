//! A driver of a virtio disk in plain memory, for tests of what serves it. One queue each; requests have one piece of data.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub type Memory = GuestMemoryMmap<()>;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const SECTOR: usize = 512;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// Entries of a queue.
pub const SIZE: u16 = 64;
/// Bytes that a queue with its buffers takes.
pub const QUEUE_BYTES: u64 = 0x10_0000;
/// Most data of a request.
pub const DATA_BYTES: usize = 0x8000;

const SLOTS: u16 = 20;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;
const BUFFER_BYTES: u64 = 0x9000;
const STATUS: u64 = 16;
const DATA: u64 = 0x1000;

/// What nobody has answered yet.
const NO_STATUS: u8 = 0xee;

/// How long an answer may take; on the busiest machine it takes less.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Data of a request.
#[derive(Clone, Copy)]
pub enum Data<'a> {
    In(usize),
    Out(&'a [u8]),
    None,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub head: u16,
    pub written: u32,
    pub status: u8,
    pub data: Vec<u8>,
}

pub struct Driver {
    memory: Memory,
    base: u64,
    free: Vec<u16>,
    available: u16,
    used: u16,
}

impl Driver {
    /// A queue at a guest address, empty.
    pub fn new(memory: &Memory, base: u64) -> Self {
        memory
            .write_slice(&vec![0; QUEUE_BYTES as usize], GuestAddress(base))
            .expect("inside of memory");
        Self {
            memory: memory.clone(),
            base,
            free: (0..SLOTS).rev().collect(),
            available: 0,
            used: 0,
        }
    }

    /// Descriptor table, available and used ring.
    pub fn rings(&self) -> [u64; 3] {
        [self.base, self.base + AVAILABLE, self.base + USED]
    }

    pub fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(self.base + at))
            .expect("inside of memory");
    }

    /// Writes a descriptor; `at` is an address in memory.
    pub fn describe(&self, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let place = 16 * u64::from(index);
        self.put(place, at);
        self.put(place + 8, len);
        self.put(place + 12, flags);
        self.put(place + 14, next);
    }

    fn buffer(&self, slot: u16) -> u64 {
        self.base + BUFFERS + BUFFER_BYTES * u64::from(slot)
    }

    /// Makes a head available, whatever it is.
    pub fn publish(&mut self, head: u16) {
        let place = self.base + AVAILABLE + 4 + 2 * u64::from(self.available % SIZE);
        self.memory
            .store(head, GuestAddress(place), Ordering::SeqCst)
            .expect("inside of memory");
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(self.base + AVAILABLE + 2);
        self.memory
            .store(self.available, index, Ordering::SeqCst)
            .expect("inside of memory");
    }

    /// Puts a request in; the head is told.
    pub fn submit(&mut self, kind: u32, sector: u64, data: Data<'_>) -> u16 {
        let slot = self.free.pop().expect("a free slot");
        let (buffer, head) = (self.buffer(slot), 3 * slot);
        let mut request = kind.to_le_bytes().to_vec();
        request.extend([0; 4]);
        request.extend(sector.to_le_bytes());
        request.push(NO_STATUS);
        self.memory
            .write_slice(&request, GuestAddress(buffer))
            .expect("inside of memory");
        let (len, flags) = match data {
            Data::In(len) => (len, WRITE),
            Data::Out(bytes) => {
                let place = GuestAddress(buffer + DATA);
                self.memory
                    .write_slice(bytes, place)
                    .expect("inside of memory");
                (bytes.len(), 0)
            }
            Data::None => (0, 0),
        };
        assert!(len <= DATA_BYTES);
        let has_data = len > 0;
        let second = if has_data { head + 1 } else { head + 2 };
        self.describe(head, buffer, 16, NEXT, second);
        self.describe(head + 1, buffer + DATA, len as u32, flags | NEXT, head + 2);
        self.describe(head + 2, buffer + STATUS, 1, WRITE, 0);
        self.publish(head);
        head
    }

    /// The next answer, if there is one.
    pub fn answer(&mut self) -> Option<Answer> {
        let used = self.base + USED;
        let index: u16 = self
            .memory
            .load(GuestAddress(used + 2), Ordering::SeqCst)
            .expect("inside of memory");
        if index == self.used {
            return None;
        }
        let place = used + 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        let head: u32 = self.read(place);
        let written: u32 = self.read(place + 4);
        let slot = head as u16 / 3;
        let buffer = self.buffer(slot);
        let status: u8 = self.read(buffer + STATUS);
        let mut data = vec![0; (written as usize).saturating_sub(1)];
        self.memory
            .read_slice(&mut data, GuestAddress(buffer + DATA))
            .expect("inside of memory");
        assert!(!self.free.contains(&slot), "head {head} is answered twice");
        self.free.push(slot);
        Some(Answer {
            head: head as u16,
            written,
            status,
            data,
        })
    }

    fn read<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.memory
            .read_obj(GuestAddress(at))
            .expect("inside of memory")
    }

    /// The next answer, which must come.
    pub fn wait(&mut self) -> Answer {
        self.wait_for(PATIENCE).expect("an answer in time")
    }

    /// The next answer, if it comes within this time.
    pub fn wait_for(&mut self, patience: Duration) -> Option<Answer> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(answer) = self.answer() {
                return Some(answer);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Requests that can be put in now.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Requests that nobody has answered.
    pub fn in_flight(&self) -> usize {
        usize::from(SLOTS) - self.free.len()
    }

    /// Where the available ring is.
    pub fn available(&self) -> u16 {
        self.available
    }
}

/// Data that tells where it belongs.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| {
            (seed
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .wrapping_add(at * 31)
                >> 7) as u8
        })
        .collect()
}
