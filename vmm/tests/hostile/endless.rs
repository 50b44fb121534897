//! Rings that never end: the device comes back to what else there is, such as that it is to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm::virtio::block::{Block, Disk, Limits};
use vmm::virtio::hostile::{BUFFERS, Descriptor, Driver, KINDS, NEXT, SIZE, WRITE, make};
use vmm_block::{BlockDevice, MemoryDevice};

/// How long something may take that ends at all; on the busiest machine it takes less.
const PATIENCE: Duration = Duration::from_secs(20);

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

/// What a disk reads for the guest asks for the next read: its answer goes into the available ring's index and into the next request.
#[test]
fn a_ring_that_feeds_itself_does_not_keep_its_disk_from_stopping() {
    const SECTOR: usize = 512;
    const SECTORS: usize = 1 << 16;
    let mut content = Vec::with_capacity(SECTORS * SECTOR);
    for sector in 0..SECTORS as u64 {
        // How far the available ring will go, and the sector of the next request: after the last one comes the first.
        content.extend((sector as u16).wrapping_add(2).to_le_bytes());
        content.extend(((sector + 1) % SECTORS as u64).to_le_bytes());
        content.resize((sector as usize + 1) * SECTOR, 0);
    }
    let device = MemoryDevice::new(content.len());
    device.write(0, &content, false).unwrap();
    let disk = Disk {
        device: Arc::new(device),
        serial: String::new(),
        queues: 1,
        limits: Limits::default(),
    };
    let mut driver = Driver::new(Box::new(Block::new(disk)));
    driver.start(0, u32::MAX).unwrap();
    let index = driver.places(0)[1] + 2;
    let parts = [
        (BUFFERS, 16, 0),
        (index, 2, WRITE),
        (BUFFERS + 8, 8, WRITE),
        (BUFFERS + 4096, SECTOR as u32 - 10, WRITE),
        (BUFFERS + 8192, 1, WRITE),
    ];
    for (number, (at, len, flags)) in (0u16..).zip(parts) {
        let flags = flags | if number < 4 { NEXT } else { 0 };
        let next = number + 1;
        driver.describe(
            0,
            number,
            Descriptor {
                at,
                len,
                flags,
                next,
            },
        );
    }
    driver.publish(0, 0);
    driver.kick(0);
    // It goes round by itself, and is still to be stopped.
    let deadline = Instant::now() + PATIENCE;
    while driver.used(0) < 1000 {
        assert!(Instant::now() < deadline, "it does not feed itself");
        std::thread::yield_now();
    }
    let (done, stopped) = channel();
    std::thread::spawn(move || {
        driver.stop();
        let _ = done.send(());
    });
    assert!(stopped.recv_timeout(PATIENCE).is_ok(), "it does not stop");
}
