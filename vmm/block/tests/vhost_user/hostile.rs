//! Front-ends and guests that send anything: they spoil their own disk at most.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vm_memory::{Bytes, GuestAddress};
use vmm_block::vhost_user::channel::Channel;
use vmm_block::vhost_user::wire::{
    InflightPlace, NEED_REPLY, Region, VringAddresses, VringState, code, event_body,
};
use vmm_block::vhost_user::{DiskSpec, VhostUserServer};
use vmm_block::{BlockDevice, MemoryDevice};

use crate::client::{Client, Guest, HALF, HIGH, USER};
use crate::guest::{Data, IN, NEXT, SECTOR, SIZE, WRITE, pattern};
use crate::serve::{DISK_BYTES, Place, place, serve};

const NOW: Option<Duration> = Some(Duration::from_millis(20));

/// A good front-end is served still.
fn is_well(place: &Place) {
    let mut guest = Guest::new(1);
    let client = Client::attach(&place.socket, &mut guest);
    guest.queues[0].submit(IN, 3, Data::In(SECTOR));
    guest.kick(0);
    assert_eq!(guest.queues[0].wait().status, 0);
    assert_eq!(client.stop(0), 1);
}

fn check<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let run = TestRunner::new(config).run(strategy, |value| {
        test(value);
        Ok(())
    });
    run.unwrap();
}

#[test]
fn any_bytes_end_the_connection_or_are_refused() {
    let place = place();
    let _server = serve(&place, Arc::new(MemoryDevice::new(DISK_BYTES)));
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    check(64, &bytes, |bytes| {
        let mut socket = UnixStream::connect(&place.socket).unwrap();
        let _ = socket.write_all(&bytes);
    });
    is_well(&place);
}

/// Descriptors of all sorts.
fn descriptor(guest: &Guest, which: u8) -> OwnedFd {
    let null = || std::fs::File::open("/dev/null").unwrap().into();
    match which % 6 {
        0 => guest.file.try_clone().unwrap(),
        1 => guest.kicks[0].try_clone().unwrap(),
        2 => std::io::pipe().unwrap().0.into(),
        3 => UnixStream::pair().unwrap().0.into(),
        4 => tempfile::tempfile().unwrap().into(),
        _ => null(),
    }
}

/// Bodies that look right, with numbers at the edges.
fn body(code: u32, a: u64, b: u64, c: u64) -> Vec<u8> {
    let index = (a % 6) as u32;
    match code {
        code::SET_MEM_TABLE => Region::table(&[Region {
            guest: a,
            len: b,
            user: c,
            offset: a % 3 * 4096,
        }]),
        code::SET_VRING_ADDR => VringAddresses {
            index,
            descriptors: b,
            used: c,
            available: b ^ c,
        }
        .body(),
        code::SET_VRING_NUM
        | code::SET_VRING_BASE
        | code::GET_VRING_BASE
        | code::SET_VRING_ENABLE => VringState {
            index,
            num: b as u32,
        }
        .body(),
        code::SET_VRING_KICK | code::SET_VRING_CALL | code::SET_VRING_ERR => {
            event_body(a as u8 % 6, b.is_multiple_of(2))
        }
        code::GET_INFLIGHT_FD | code::SET_INFLIGHT_FD => InflightPlace {
            len: b,
            offset: c,
            queues: a as u16 % 6,
            queue_size: b as u16,
        }
        .body(),
        code::SET_FEATURES | code::SET_PROTOCOL_FEATURES => b.to_le_bytes().to_vec(),
        _ => vec![a as u8; (b % 64) as usize],
    }
}

fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::from(SIZE)),
        Just(4096),
        Just(HALF),
        Just(HIGH),
        Just(USER),
        Just(USER + HALF - 4096),
        Just(1 << 52),
        Just(u64::MAX - 4095),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

#[test]
fn messages_that_look_right_spoil_nothing() {
    let place = place();
    let _server = serve(&place, Arc::new(MemoryDevice::new(DISK_BYTES)));
    let message = (
        0..40u32,
        edge(),
        edge(),
        edge(),
        proptest::collection::vec(any::<u8>(), 0..3),
    );
    let messages = proptest::collection::vec(message, 1..12);
    let any_start = (any::<bool>(), messages);
    check(96, &any_start, |(is_set_up, messages)| {
        let mut guest = Guest::new(1);
        let client = if is_set_up {
            Client::attach(&place.socket, &mut guest)
        } else {
            Client::connect(&place.socket)
        };
        for (code, a, b, c, which) in messages {
            let fds: Vec<OwnedFd> = which.iter().map(|one| descriptor(&guest, *one)).collect();
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            let body = body(code, a, b, c);
            if client.channel.send(code, NEED_REPLY, &body, &fds).is_err() {
                break;
            }
            let _ = client.channel.receive(NOW, None);
        }
    });
    is_well(&place);
}

#[test]
fn a_guest_that_writes_anything_into_its_rings_spoils_its_own_disk() {
    let place = place();
    let disk = Arc::new(MemoryDevice::new(DISK_BYTES));
    let _server = serve(&place, Arc::clone(&disk) as _);
    let one = (
        0..SIZE,
        prop_oneof![Just(HIGH), Just(HIGH + HALF - 8), Just(0), edge()],
        prop_oneof![Just(16u32), Just(1), Just(512), any::<u32>()],
        prop_oneof![
            Just(NEXT),
            Just(WRITE),
            Just(NEXT | WRITE),
            Just(4u16),
            any::<u16>()
        ],
        prop_oneof![0..SIZE, any::<u16>()],
    );
    let descriptors = proptest::collection::vec(one, 1..40);
    let heads = proptest::collection::vec(prop_oneof![0..SIZE, any::<u16>()], 0..80);
    let spoilt = (descriptors, heads, any::<u16>());
    check(64, &spoilt, |(descriptors, heads, index)| {
        let mut guest = Guest::new(1);
        let client = Client::attach(&place.socket, &mut guest);
        for (n, at, len, flags, next) in descriptors {
            guest.queues[0].describe(n, at, len, flags, next);
        }
        for head in heads {
            guest.queues[0].publish(head);
            guest.kick(0);
        }
        // And a place in the available ring that cannot be.
        let [_, available, _] = guest.queues[0].rings();
        guest
            .memory
            .write_obj(index, GuestAddress(available + 2))
            .unwrap();
        guest.kick(0);
        client.stop(0);
    });
    is_well(&place);
}

#[test]
fn memory_for_requests_in_flight_may_hold_anything() {
    let place = place();
    let _server = serve(&place, Arc::new(MemoryDevice::new(DISK_BYTES)));
    let bytes = proptest::collection::vec(any::<u8>(), 1100);
    check(32, &(bytes, 0..3u16), |(bytes, version)| {
        let mut guest = Guest::new(1);
        let client = Client::attach(&place.socket, &mut guest);
        client.stop(0);
        let (_, file) = guest.inflight.as_ref().unwrap();
        rustix::io::pwrite(file, &bytes[..1040], 0).unwrap();
        rustix::io::pwrite(file, &version.to_le_bytes(), 8).unwrap();
        let place = guest.inflight.as_ref().unwrap().0;
        client.tell(code::SET_INFLIGHT_FD, &place.body(), &[file]);
        let body = event_body(0, true);
        client.tell(code::SET_VRING_KICK, &body, &[&guest.kicks[0]]);
        client.stop(0);
    });
    is_well(&place);
}

#[test]
fn a_front_end_that_falls_silent_in_a_message_is_cut_off() {
    let place = place();
    let _server = serve(&place, Arc::new(MemoryDevice::new(DISK_BYTES)));
    let mut silent = UnixStream::connect(&place.socket).unwrap();
    silent.write_all(&[1, 0, 0]).unwrap();
    // Served when the time of the other one is over, though it has not gone.
    is_well(&place);
    drop(silent);
}

#[test]
fn a_disk_that_is_read_only_stays_as_it_is() {
    let place = place();
    let content = pattern(9, DISK_BYTES);
    let disk = Arc::new(MemoryDevice::read_only(content.clone()));
    let spec = DiskSpec {
        device: Arc::clone(&disk) as Arc<dyn BlockDevice>,
        serial: String::new(),
        queues: 1,
    };
    let _server = VhostUserServer::listen(&place.socket, 0o600, spec).unwrap();
    let mut guest = Guest::new(1);
    let _client = Client::attach(&place.socket, &mut guest);
    guest.queues[0].submit(crate::guest::OUT, 0, Data::Out(&[1; SECTOR]));
    guest.kick(0);
    assert_eq!(guest.queues[0].wait().status, 1);
    assert!(disk.content() == content);
}

#[test]
fn what_is_not_a_message_is_not_answered() {
    let place = place();
    let _server = serve(&place, Arc::new(MemoryDevice::new(DISK_BYTES)));
    let socket = UnixStream::connect(&place.socket).unwrap();
    let channel = Channel::new(socket.into());
    channel.send(77, 0, &[], &[]).unwrap();
    assert!(
        channel
            .receive(Some(Duration::from_secs(20)), None)
            .is_err()
    );
}
