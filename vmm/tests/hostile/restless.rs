//! Memory that changes while devices work on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes, GuestAddress};
use vmm::virtio::hostile::{
    BUFFERS, Descriptor, Driver, KINDS, MEMORY_BYTES, NEXT, SIZE, WRITE, make,
};

/// Kicks of a device: each works on a whole ring.
const ROUNDS: u64 = 150;

/// Numbers that are not random, but look so (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn descriptor(&mut self) -> Descriptor {
        let at = match self.next() % 8 {
            0 => self.next(),
            1 => MEMORY_BYTES - self.next() % 64,
            _ => BUFFERS + self.next() % (MEMORY_BYTES - BUFFERS),
        };
        let len = match self.next() % 8 {
            0 => self.next() as u32,
            _ => (self.next() % 1024) as u32,
        };
        Descriptor {
            at,
            len,
            flags: (self.next() % 8) as u16 & !4 | if self.next() & 3 > 0 { NEXT } else { WRITE },
            next: (self.next() % u64::from(SIZE)) as u16,
        }
    }
}

#[test]
fn descriptors_and_requests_that_change_meanwhile_do_no_harm() {
    for kind in KINDS {
        let (device, mut host) = make(kind);
        let mut driver = Driver::new(device);
        driver.start(u64::MAX, u32::MAX).unwrap();
        let memory = driver.memory().clone();
        let tables: Vec<u64> = (0..driver.queues())
            .map(|queue| driver.places(queue)[0])
            .collect();
        let ended = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&ended);
        let other = std::thread::spawn(move || {
            let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
            while !stopping.load(Ordering::Relaxed) {
                for table in &tables {
                    let at = table + 16 * (numbers.next() % u64::from(SIZE));
                    let bytes = numbers.descriptor().bytes();
                    memory.write_slice(&bytes, GuestAddress(at)).unwrap();
                }
                // Kinds of requests, lengths in them, and anything.
                let at = BUFFERS + numbers.next() % (MEMORY_BYTES - BUFFERS - 8);
                let word = numbers.next() >> (numbers.next() % 64);
                memory.write_obj(word, GuestAddress(at)).unwrap();
            }
        });
        for round in 0..ROUNDS {
            for queue in 0..driver.queues() {
                // A ring is filled again when it has been worked on.
                if driver.used(queue) == driver.available(queue) {
                    for head in 0..driver.size(queue) {
                        driver.publish(queue, head);
                    }
                }
                driver.kick(queue);
                for _ in 0..100 {
                    if driver.used(queue) == driver.available(queue) {
                        break;
                    }
                    std::thread::yield_now();
                }
            }
            host(&[(round % 3) as u8, 1, 2, 3]);
            if round % 50 == 49 {
                driver.stop();
                driver.start(u64::MAX, u32::MAX).unwrap();
            }
        }
        driver.stop();
        ended.store(true, Ordering::Relaxed);
        other.join().unwrap();
    }
}
