//! Limits of a disk hold, and are no more than that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm::virtio::block::{Block, Disk, Limits};
use vmm_block::MemoryDevice;

use crate::guest::{Data, IN, SECTOR};
use crate::machine::Machine;

fn disk(limits: Limits) -> Machine {
    let disk = Disk {
        device: Arc::new(MemoryDevice::new(1 << 20)),
        serial: String::new(),
        queues: 2,
        limits,
    };
    let mut machine = Machine::new(Box::new(Block::new(disk)));
    machine.start(&[0, 0]);
    machine
}

/// How long requests of so many bytes take, on both queues.
fn time(machine: &mut Machine, requests: usize, bytes: usize) -> Duration {
    let start = Instant::now();
    for round in 0..requests.div_ceil(20) {
        let now = (requests - round * 20).min(20);
        for index in 0..now {
            machine.drivers[index % 2].submit(IN, 0, Data::In(bytes));
        }
        for queue in 0..2 {
            machine.kick(queue);
        }
        for queue in 0..2 {
            while machine.drivers[queue].in_flight() > 0 {
                assert_eq!(machine.drivers[queue].wait().status, 0);
            }
        }
    }
    start.elapsed()
}

#[test]
fn requests_a_second_are_limited_over_all_queues() {
    let mut machine = disk(Limits {
        requests_per_s: Some(200),
        bytes_per_s: None,
    });
    // 20 pass at once, 80 at the rate.
    let took = time(&mut machine, 100, SECTOR);
    assert!(took >= Duration::from_millis(390), "{took:?}");
    let places = machine.stop();
    assert_eq!(
        places
            .iter()
            .map(|place| usize::from(place.0))
            .sum::<usize>(),
        100
    );
}

#[test]
fn bytes_a_second_are_limited_over_all_queues() {
    let mut machine = disk(Limits {
        requests_per_s: None,
        bytes_per_s: Some(1_000_000),
    });
    // 100 kB pass at once, the rest of 480 kB at the rate.
    let took = time(&mut machine, 60, 8192);
    assert!(took >= Duration::from_millis(370), "{took:?}");
    machine.stop();
}

#[test]
fn a_request_that_waits_for_its_turn_is_given_back_when_the_disk_stops() {
    let mut machine = disk(Limits {
        requests_per_s: Some(1),
        bytes_per_s: None,
    });
    machine.drivers[0].submit(IN, 0, Data::In(SECTOR));
    machine.drivers[0].submit(IN, 0, Data::In(SECTOR));
    machine.kick(0);
    machine.drivers[0].wait();
    assert_eq!(machine.stop()[0], (1, 1));
    machine.start(&[1, 0]);
    assert_eq!(machine.drivers[0].wait().status, 0);
}
