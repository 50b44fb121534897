//! Devices that stop, as when a machine pauses, and go on.

use vm_memory::{Bytes, GuestAddress};
use vmm::virtio::F_VERSION_1;
use vmm::virtio::hostile::{BUFFERS, Descriptor, Driver, KINDS, Kind, NEXT, WRITE, make};
use vmm::virtio::state::DeviceState;

const BYTES: u32 = 64;

/// A queue whose chains are answered whatever they say.
fn queue_of(kind: Kind) -> usize {
    match kind {
        Kind::Block | Kind::LimitedBlock | Kind::Rng | Kind::Gpu => 0,
        Kind::Net | Kind::Balloon | Kind::Keyboard | Kind::Vsock => 1,
        Kind::Console => 3,
    }
}

/// A chain of zeros to read and room to write.
fn ask(driver: &mut Driver, queue: usize) {
    let part = |at, flags, next| Descriptor {
        at,
        len: BYTES,
        flags,
        next,
    };
    driver.describe(queue, 0, part(BUFFERS, NEXT, 1));
    driver.describe(queue, 1, part(BUFFERS + 4096, WRITE, 0));
    driver.publish(queue, 0);
    driver.kick(queue);
}

#[test]
fn queues_go_on_where_they_were() {
    for kind in KINDS {
        let (device, _host) = make(kind);
        let (mut driver, queue) = (Driver::new(device), queue_of(kind));
        driver.start(0, u32::MAX).unwrap();
        for round in 1..=3 {
            ask(&mut driver, queue);
            let rings = driver.stop();
            assert_eq!(driver.used(queue), round, "{kind:?}");
            driver.resume(F_VERSION_1, rings).unwrap();
        }
        driver.stop();
    }
}

/// The event that all connections are gone (virtio 1.2, section 5.10.6.7).
#[test]
fn a_guest_whose_machine_goes_on_hears_that_its_connections_are_gone() {
    const EVENTS: usize = 2;
    let (device, _host) = make(Kind::Vsock);
    let mut driver = Driver::new(device);
    driver.start(0, u32::MAX).unwrap();
    driver.write(BUFFERS, &[0xff; 8]);
    let room = Descriptor {
        at: BUFFERS,
        len: 8,
        flags: WRITE,
        next: 0,
    };
    driver.describe(EVENTS, 0, room);
    driver.publish(EVENTS, 0);
    // In the machine that was saved they are still there.
    ask(&mut driver, 1);
    let rings = driver.stop();
    driver.resume(F_VERSION_1, rings).unwrap();
    assert_eq!(driver.used(EVENTS), 0);
    let rings = driver.stop();
    let memory = driver.memory().clone();
    let taken_up = driver.device().restore(DeviceState::Nothing, &memory);
    taken_up.unwrap();
    driver.resume(F_VERSION_1, rings).unwrap();
    assert_eq!(driver.used(EVENTS), 1);
    assert!(driver.was_interrupted(EVENTS));
    let event: u64 = driver.memory().read_obj(GuestAddress(BUFFERS)).unwrap();
    assert_eq!(event, 0xffff_ffff_0000_0000);
    driver.stop();
}
