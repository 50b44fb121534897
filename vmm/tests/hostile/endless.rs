//! Rings that never end: the device comes back to what else there is, such as that it is to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes, GuestAddress};
use vmm::virtio::hostile::{BUFFERS, Descriptor, Driver, KINDS, SIZE, WRITE, make};

/// Another processor puts in as fast as the device takes out.
#[test]
fn a_guest_that_never_stops_asking_does_not_keep_its_device_from_stopping() {
    for kind in KINDS {
        let (device, _host) = make(kind);
        let mut driver = Driver::new(device);
        driver.start(0, u32::MAX).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        for queue in 0..driver.queues() {
            for index in 0..SIZE {
                let flags = if index % 2 == 0 { WRITE } else { 0 };
                let descriptor = Descriptor {
                    at: BUFFERS + u64::from(index) * 64,
                    len: 64,
                    flags,
                    next: 0,
                };
                driver.describe(queue, index, descriptor);
            }
            driver.set_available(queue, driver.size(queue));
        }
        let memory = driver.memory().clone();
        let queues = 0..driver.queues();
        let places: Vec<([u64; 4], u16)> = queues
            .map(|queue| (driver.places(queue), driver.size(queue)))
            .collect();
        let stopping = Arc::clone(&ended);
        let other = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                for ([_, available, used, _], size) in &places {
                    let used: u16 = memory
                        .load(GuestAddress(used + 2), Ordering::SeqCst)
                        .unwrap();
                    let index = used.wrapping_add(*size);
                    let place = GuestAddress(available + 2);
                    memory.store(index, place, Ordering::SeqCst).unwrap();
                }
            }
        });
        for queue in 0..driver.queues() {
            driver.kick(queue);
        }
        // Returns.
        driver.stop();
        ended.store(true, Ordering::Relaxed);
        other.join().unwrap();
    }
}
