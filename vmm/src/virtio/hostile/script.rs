//! Bytes read as what a hostile driver does. Reading never fails: what is not there is 0.

use super::driver::{BUFFERS, Descriptor, Driver, INDIRECT, MEMORY_BYTES, NEXT, WRITE};
use super::subject::{Host, Kind, make};

/// Steps of one script: enough for anything that is found, few enough to be quick.
const STEPS_MAX: usize = 64;
/// Parts of a chain that is well made.
const PARTS_MAX: usize = 8;

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> u8 {
        match self.0 {
            [first, rest @ ..] => {
                self.0 = rest;
                *first
            }
            [] => 0,
        }
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// An address: mostly of a buffer, or anywhere in memory, at its end, or nowhere.
    fn address(&mut self) -> u64 {
        let word = u64::from(self.word());
        match self.byte() % 8 {
            0 => word * 16,
            1 => MEMORY_BYTES - (word & 0xff),
            2 => u64::MAX - word,
            _ => BUFFERS + word * 8 % (MEMORY_BYTES - BUFFERS),
        }
    }

    fn length(&mut self) -> u32 {
        let word = u32::from(self.word());
        match self.byte() % 8 {
            0 => u32::MAX - word,
            1 => word << 8,
            2 => word,
            _ => word & 0xfff,
        }
    }
}

struct Guest {
    driver: Driver,
    host: Host,
    /// Where the next part of a chain that is well made goes.
    buffer: u64,
    descriptor: u16,
}

impl Guest {
    fn start(&mut self, features: u8, queues: u32) {
        let features = match features & 3 {
            0 => u64::MAX,
            1 => !crate::virtio::F_EVENT_IDX,
            2 => 0,
            _ => 1 << (features >> 2),
        };
        // A device that does not start is one that a driver can have too.
        let _ = self.driver.start(features, queues);
    }

    fn room(&mut self, len: u64) -> u64 {
        if self.buffer + len > MEMORY_BYTES {
            self.buffer = BUFFERS;
        }
        let at = self.buffer;
        self.buffer += len;
        at
    }

    /// A chain of what `bytes` has to say: parts to read with what is in them, then parts to write.
    fn chain(&mut self, queue: usize, bytes: &mut Bytes<'_>) {
        let (readable, writable) = (
            bytes.byte() as usize % PARTS_MAX,
            bytes.byte() as usize % PARTS_MAX,
        );
        let indirect = bytes.byte() & 7 == 0;
        let mut parts = Vec::new();
        for _ in 0..readable {
            let len = usize::from(bytes.byte());
            let content = bytes.take(len);
            let at = self.room(content.len() as u64);
            self.driver.write(at, content);
            parts.push((at, content.len() as u32, 0));
        }
        for _ in 0..writable {
            let len = bytes.length() & 0x3fff;
            let at = self.room(u64::from(len));
            parts.push((at, len, WRITE));
        }
        if parts.is_empty() {
            return;
        }
        let last = parts.len() - 1;
        let first = if indirect { 0 } else { self.descriptor };
        let descriptors: Vec<Descriptor> = parts
            .into_iter()
            .enumerate()
            .map(|(number, (at, len, flags))| Descriptor {
                at,
                len,
                flags: flags | if number < last { NEXT } else { 0 },
                next: first.wrapping_add(number as u16 + 1) % super::driver::SIZE,
            })
            .collect();
        if indirect {
            let table: Vec<u8> = descriptors.iter().flat_map(|one| one.bytes()).collect();
            let at = self.room(table.len() as u64);
            self.driver.write(at, &table);
            let whole = Descriptor {
                at,
                len: table.len() as u32,
                flags: INDIRECT,
                next: 0,
            };
            self.driver.describe(queue, self.descriptor, whole);
        } else {
            for (number, descriptor) in descriptors.into_iter().enumerate() {
                let index = first.wrapping_add(number as u16);
                self.driver.describe(queue, index, descriptor);
            }
        }
        let head = self.descriptor % super::driver::SIZE;
        self.descriptor = self.descriptor.wrapping_add(PARTS_MAX as u16);
        self.driver.publish(queue, head);
        self.driver.kick(queue);
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let what = bytes.byte();
        let queue = usize::from(what >> 4) % self.driver.queues();
        match what & 15 {
            0..=5 => self.chain(queue, bytes),
            6 => {
                let index = bytes.word();
                let descriptor = Descriptor {
                    at: bytes.address(),
                    len: bytes.length(),
                    flags: u16::from(bytes.byte()),
                    next: u16::from(bytes.byte()),
                };
                self.driver.describe(queue, index, descriptor);
            }
            7 => self.driver.publish(queue, bytes.word()),
            8 => self.driver.kick(queue),
            9 => {
                let index = bytes.word();
                self.driver.set_available(queue, index);
                self.driver.kick(queue);
            }
            10 => {
                let (at, len) = (bytes.address(), usize::from(bytes.byte()));
                self.driver.write(at, bytes.take(len));
            }
            11 => {
                self.driver.stop();
                let (features, queues) = (bytes.byte(), bytes.byte());
                self.start(features, u32::MAX ^ u32::from(queues & 3));
            }
            12 => {
                let (at, len) = (usize::from(bytes.word()), usize::from(bytes.byte() % 9));
                self.driver.device().write_config(at, bytes.take(len));
            }
            13 => {
                let (at, len) = (usize::from(bytes.word()), usize::from(bytes.byte() % 9));
                self.driver.device().read_config(at, &mut vec![0; len]);
            }
            _ => {
                let len = usize::from(bytes.byte());
                (self.host)(bytes.take(len));
            }
        }
    }
}

/// Has a device used as `data` says, until it is reset in the end. Never panics, and never takes long.
pub fn run(kind: Kind, data: &[u8]) {
    let (device, host) = make(kind);
    let mut guest = Guest {
        driver: Driver::new(device),
        host,
        buffer: BUFFERS,
        descriptor: 0,
    };
    let mut bytes = Bytes(data);
    let features = bytes.byte();
    guest.start(features, u32::MAX);
    for _ in 0..STEPS_MAX {
        if bytes.0.is_empty() {
            break;
        }
        guest.step(&mut bytes);
    }
    guest.driver.stop();
}
