//! What a good front-end and its guest see.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_block::vhost_user::channel::ChannelError;
use vmm_block::vhost_user::wire::{Region, VringState, code};
use vmm_block::vhost_user::{DiskSpec, VhostUserServer};
use vmm_block::{BlockDevice, MemoryDevice};

use crate::client::{Client, Guest};
use crate::devices::Gated;
use crate::guest::{
    DISCARD, Data, FLUSH, GET_ID, IN, OUT, PATIENCE, SECTOR, WRITE_ZEROES, pattern,
};

pub const DISK_BYTES: usize = 1 << 20;

pub struct Place {
    _folder: tempfile::TempDir,
    pub socket: PathBuf,
}

pub fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("disk.sock");
    Place {
        _folder: folder,
        socket,
    }
}

pub fn serve(place: &Place, device: Arc<dyn BlockDevice>) -> VhostUserServer {
    let disk = DiskSpec {
        device,
        serial: "splice-1".into(),
        queues: 4,
    };
    VhostUserServer::listen(&place.socket, 0o600, disk).unwrap()
}

fn range(sector: u64, sectors: u32) -> Vec<u8> {
    let mut range = sector.to_le_bytes().to_vec();
    range.extend(sectors.to_le_bytes());
    range.extend([0; 4]);
    range
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn every_kind_of_request_is_served() {
    let place = place();
    let disk = Arc::new(MemoryDevice::new(DISK_BYTES));
    let _server = serve(&place, Arc::clone(&disk) as _);
    let mut guest = Guest::new(1);
    let _client = Client::attach(&place.socket, &mut guest);
    let data = pattern(1, 4 * SECTOR);
    let mut ask = |kind, sector, data: Data<'_>| {
        guest.queues[0].submit(kind, sector, data);
        guest.kick(0);
        guest.queues[0].wait()
    };
    assert_eq!(ask(OUT, 8, Data::Out(&data)).status, 0);
    let answer = ask(IN, 8, Data::In(data.len()));
    assert_eq!((answer.status, answer.data), (0, data.clone()));
    assert_eq!(ask(FLUSH, 0, Data::None).status, 0);
    let answer = ask(GET_ID, 0, Data::In(20));
    assert_eq!(answer.data, *b"splice-1\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(ask(WRITE_ZEROES, 0, Data::Out(&range(9, 1))).status, 0);
    assert_eq!(ask(DISCARD, 0, Data::Out(&range(10, 1))).status, 0);
    let end = (DISK_BYTES / SECTOR) as u64;
    assert_eq!(ask(IN, end, Data::In(SECTOR)).status, 1);
    assert_eq!(ask(99, 0, Data::None).status, 2);
    let content = disk.content();
    assert_eq!(content[8 * SECTOR..9 * SECTOR], data[..SECTOR]);
    assert_eq!(content[9 * SECTOR..11 * SECTOR], [0; 2 * SECTOR]);
    assert_eq!(content[11 * SECTOR..12 * SECTOR], data[3 * SECTOR..]);
    assert_eq!(disk.flushes(), 1);
    wait_until("a call", || guest.was_called(0));
}

#[test]
fn a_driver_is_told_what_disk_it_has() {
    let place = place();
    let _server = serve(&place, Arc::new(MemoryDevice::new(DISK_BYTES)));
    let client = Client::connect(&place.socket);
    client.negotiate();
    assert_eq!(client.number(code::GET_QUEUE_NUM), 4);
    let sectors = (DISK_BYTES / SECTOR) as u64;
    assert_eq!(client.config(0, 8), sectors.to_le_bytes());
    assert_eq!(client.config(34, 2), [4, 0]);
    assert_eq!(client.config(0, 256)[60..], [0; 196]);
}

#[test]
fn queues_work_side_by_side() {
    let place = place();
    let disk = Arc::new(MemoryDevice::new(DISK_BYTES));
    let _server = serve(&place, Arc::clone(&disk) as _);
    let mut guest = Guest::new(4);
    let _client = Client::attach(&place.socket, &mut guest);
    let mut written = vec![0; DISK_BYTES];
    for round in 0..50u64 {
        for queue in 0..4u64 {
            let sector = queue * 500 + round * 8;
            let data = pattern(sector, 8 * SECTOR);
            let at = sector as usize * SECTOR;
            written[at..at + data.len()].copy_from_slice(&data);
            let driver = &mut guest.queues[queue as usize];
            while driver.room() == 0 {
                assert_eq!(driver.wait().status, 0);
            }
            driver.submit(OUT, sector, Data::Out(&data));
            guest.kick(queue as usize);
        }
    }
    for driver in &mut guest.queues {
        while driver.in_flight() > 0 {
            assert_eq!(driver.wait().status, 0);
        }
    }
    assert!(disk.content() == written);
}

#[test]
fn one_request_that_waits_holds_up_no_other() {
    let place = place();
    let disk = Gated::new(DISK_BYTES);
    let _server = serve(&place, Arc::clone(&disk) as _);
    let mut guest = Guest::new(1);
    let _client = Client::attach(&place.socket, &mut guest);
    let slow: Vec<u16> = (0..3)
        .map(|_| guest.queues[0].submit(IN, 0, Data::In(SECTOR)))
        .collect();
    let quick = guest.queues[0].submit(IN, 8, Data::In(SECTOR));
    guest.kick(0);
    assert_eq!(guest.queues[0].wait().head, quick);
    wait_until("all wait at once", || disk.came() == 3);
    disk.open();
    let mut heads: Vec<u16> = (0..3).map(|_| guest.queues[0].wait().head).collect();
    heads.sort_unstable();
    let mut slow = slow;
    slow.sort_unstable();
    assert_eq!(heads, slow);
}

#[test]
fn a_queue_that_is_stopped_tells_where_and_goes_on_there() {
    let place = place();
    let _server = serve(&place, Arc::new(MemoryDevice::new(DISK_BYTES)));
    let mut guest = Guest::new(1);
    let client = Client::attach(&place.socket, &mut guest);
    for sector in 0..5 {
        guest.queues[0].submit(OUT, sector, Data::Out(&[1; SECTOR]));
    }
    guest.kick(0);
    for _ in 0..5 {
        guest.queues[0].wait();
    }
    assert_eq!(client.stop(0), 5);
    guest.queues[0].submit(IN, 0, Data::In(SECTOR));
    guest.kick(0);
    let quiet = guest.queues[0].wait_for(Duration::from_millis(100));
    assert_eq!(quiet, None, "a stopped queue does nothing");
    client.start(&guest, 0, 5);
    assert_eq!(guest.queues[0].wait().data, [1; SECTOR]);
}

#[test]
fn a_queue_that_is_disabled_waits() {
    let place = place();
    let _server = serve(&place, Arc::new(MemoryDevice::new(DISK_BYTES)));
    let mut guest = Guest::new(1);
    let client = Client::attach(&place.socket, &mut guest);
    let enable = |num| VringState { index: 0, num }.body();
    client.must(code::SET_VRING_ENABLE, &enable(0), &[]);
    guest.queues[0].submit(IN, 0, Data::In(SECTOR));
    guest.kick(0);
    let quiet = guest.queues[0].wait_for(Duration::from_millis(100));
    assert_eq!(quiet, None);
    client.must(code::SET_VRING_ENABLE, &enable(1), &[]);
    assert_eq!(guest.queues[0].wait().status, 0);
}

#[test]
fn memory_may_change_while_queues_work() {
    let place = place();
    let _server = serve(&place, Arc::new(MemoryDevice::new(DISK_BYTES)));
    let mut guest = Guest::new(2);
    let client = Client::attach(&place.socket, &mut guest);
    for round in 0..20 {
        for queue in 0..2 {
            guest.queues[queue].submit(IN, round, Data::In(SECTOR));
            guest.kick(queue);
        }
        if round % 2 == 0 {
            client.share(&guest);
        } else {
            // Only the half where the queues are.
            let table = Region::table(&guest.regions()[1..]);
            client.must(code::SET_MEM_TABLE, &table, &[&guest.file]);
        }
        for queue in 0..2 {
            assert_eq!(guest.queues[queue].wait().status, 0);
        }
    }
}

#[test]
fn a_server_that_stops_finishes_what_it_has_begun() {
    let place = place();
    let disk = Gated::new(DISK_BYTES);
    let server = serve(&place, Arc::clone(&disk) as _);
    let mut guest = Guest::new(1);
    let client = Client::attach(&place.socket, &mut guest);
    let data = pattern(3, SECTOR);
    guest.queues[0].submit(OUT, 0, Data::Out(&data));
    guest.kick(0);
    wait_until("the write has begun", || disk.came() == 1);
    let stopping = std::thread::spawn(move || server.stop());
    disk.open();
    stopping.join().unwrap();
    assert_eq!(
        guest.queues[0].answer().map(|answer| answer.status),
        Some(0)
    );
    assert_eq!(disk.disk.content()[..SECTOR], data);
    let gone = client.channel.receive(Some(PATIENCE), None);
    assert!(matches!(gone, Err(ChannelError::Closed)));
    assert!(!place.socket.exists());
}

#[test]
fn a_second_front_end_has_its_turn_when_the_first_is_gone() {
    let place = place();
    let _server = serve(&place, Arc::new(MemoryDevice::new(DISK_BYTES)));
    let first = Client::connect(&place.socket);
    first.negotiate();
    let second = Client::connect(&place.socket);
    second
        .channel
        .send(code::GET_QUEUE_NUM, 0, &[], &[])
        .unwrap();
    let early = second
        .channel
        .receive(Some(Duration::from_millis(100)), None);
    assert!(matches!(early, Err(ChannelError::Silent)));
    drop(first);
    let answer = second.channel.receive(Some(PATIENCE), None).unwrap();
    assert_eq!(answer.body, 4u64.to_le_bytes());
}
