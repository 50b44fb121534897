//! Clients that lie, stall, vanish or come in crowds. The server goes on serving the others.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::{ProptestConfig, any, proptest};
use vmm_block::nbd::{fuzz_handshake, fuzz_transmission, limits};
use vmm_block::{BlockDevice, MemoryDevice};

use crate::client::{GO, READ, Raw, TRIM, WRITE, info_request, request};
use crate::lab::{Lab, noise, wait_until};

fn lab() -> Lab {
    Lab::with(Arc::new(MemoryDevice::new(64 << 20)))
}

fn still_serves(lab: &Lab) {
    assert_eq!(Raw::ready(&lab.socket(), "disk").read(0, 4096).len(), 4096);
}

#[test]
fn garbage_ends_the_handshake() {
    let lab = lab();
    for garbage in [
        noise(1, 4096),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 64],
        vec![0xff; 64],
    ] {
        let mut client = Raw::connect(&lab.socket());
        client.stream.read_exact(&mut [0; 18]).unwrap();
        // The server may hang up before all is sent.
        let _ = client.stream.write_all(&garbage);
        assert!(client.is_ended());
    }
    still_serves(&lab);
}

#[test]
fn absurd_lengths_are_not_believed() {
    let lab = lab();
    let mut option = Raw::hello(&lab.socket());
    option
        .stream
        .write_all(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff")
        .unwrap();
    assert!(option.is_ended());

    let mut write = Raw::ready(&lab.socket(), "disk");
    write
        .stream
        .write_all(&request(WRITE, 0, 1, 0, u32::MAX, &[]))
        .unwrap();
    assert!(write.is_ended());

    let mut trim = Raw::ready(&lab.socket(), "disk");
    assert_eq!(trim.call(TRIM, 0, u64::MAX - 5, u32::MAX, &[]).error, 22);
    assert_eq!(trim.call(READ, 0, u64::MAX, u32::MAX, &[]).error, 75);
    still_serves(&lab);
}

#[test]
fn a_request_without_magic_ends_the_connection() {
    let lab = lab();
    let mut client = Raw::ready(&lab.socket(), "disk");
    client.stream.write_all(&noise(2, 28)).unwrap();
    assert!(client.is_ended());
    still_serves(&lab);
}

#[test]
fn too_many_options_end_the_handshake() {
    let lab = lab();
    let mut client = Raw::hello(&lab.socket());
    for _ in 0..limits::OPTIONS_MAX {
        if client.send_option(99, &[]).is_err() {
            break;
        }
    }
    let mut replies = Vec::new();
    let ended = client.stream.read_to_end(&mut replies);
    assert!(ended.is_ok() || replies.len() >= 20, "{ended:?}");
    assert!(replies.len() <= limits::OPTIONS_MAX * 20);
}

#[test]
fn a_client_that_vanishes_in_the_middle_of_a_write_writes_nothing() {
    let device = Arc::new(MemoryDevice::new(1 << 20));
    let lab = Lab::with(Arc::clone(&device) as _);
    for sent in [0, 1, 4096, 400_000] {
        let mut client = Raw::ready(&lab.socket(), "disk");
        client
            .stream
            .write_all(&request(WRITE, 0, 1, 0, 500_000, &vec![9; sent]))
            .unwrap();
        drop(client);
    }
    wait_until("the connections are gone", || lab.server.connections() == 0);
    let mut all = vec![1; 1 << 20];
    device.read(0, &mut all).unwrap();
    assert!(
        all.iter().all(|byte| *byte == 0),
        "a part of a write reached the disk"
    );
    still_serves(&lab);
}

#[test]
fn a_client_that_takes_no_replies_holds_up_only_itself() {
    let lab = lab();
    let mut deaf = Raw::ready(&lab.socket(), "disk");
    deaf.stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    assert_eq!(deaf.call(WRITE, 0, 0, 1 << 20, &noise(3, 1 << 20)).error, 0);
    // Large reads go to the workers, small ones are answered by the reader; nobody fetches the replies.
    for round in 0..200 {
        let len = if u64::is_multiple_of(round, 2) {
            1 << 20
        } else {
            65_536
        };
        if deaf
            .stream
            .write_all(&request(READ, 0, round, 0, len, &[]))
            .is_err()
        {
            break;
        }
    }
    let started = Instant::now();
    for _ in 0..20 {
        let mut other = Raw::ready(&lab.socket(), "disk");
        assert_eq!(other.read(0, 1 << 20), noise(3, 1 << 20));
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "others waited {:?}",
        started.elapsed()
    );
    drop(deaf);
    wait_until("the deaf client is gone", || lab.server.connections() == 0);
}

#[test]
fn half_a_connection_is_enough_to_be_answered() {
    let lab = lab();
    let mut client = Raw::ready(&lab.socket(), "disk");
    client.send(READ, 0, 0, 65_536, &[]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.reply().error, 0);
    assert!(client.is_ended());
}

#[test]
fn a_crowd_is_turned_away_and_a_place_comes_free() {
    let lab = lab();
    let mut crowd: Vec<Raw> = (0..limits::EXPORT_CONNECTIONS_MAX)
        .map(|_| Raw::ready(&lab.socket(), "disk"))
        .collect();
    let mut late = Raw::hello(&lab.socket());
    let refused = late.option(GO, &info_request("disk"));
    assert_eq!(refused[0].0, (1 << 31) + 2, "{refused:?}");
    crowd.pop();
    let export = lab.exports.remove("disk").unwrap();
    wait_until("a place is free", || {
        export.connections() < limits::EXPORT_CONNECTIONS_MAX
    });
    lab.exports.insert(export).unwrap();
    assert_eq!(late.option(GO, &info_request("disk")).last().unwrap().0, 1);
    assert_eq!(crowd[0].call(READ, 0, 0, 512, &[]).error, 0);
}

#[test]
fn connections_that_say_nothing_do_not_keep_others_out() {
    let lab = lab();
    let silent: Vec<Raw> = (0..200).map(|_| Raw::connect(&lab.socket())).collect();
    still_serves(&lab);
    assert!(lab.server.connections() >= 200);
    drop(silent);
    wait_until("the silent ones are gone", || lab.server.connections() == 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_panic_the_handshake(bytes: Vec<u8>) {
        fuzz_handshake(&[&3u32.to_be_bytes()[..], &bytes].concat());
        fuzz_handshake(&bytes);
    }

    #[test]
    fn no_requests_panic_the_transmission(
        choice: u8,
        requests in proptest::collection::vec((0u16..10, 0u16..64, 0u64..300_000, 0u32..300_000, any::<bool>()), 0..20),
    ) {
        let mut bytes = vec![choice];
        for (at, (command, flags, offset, len, wild)) in requests.into_iter().enumerate() {
            let payload = vec![7; if command == WRITE { len as usize } else { 0 }];
            let offset = if wild { u64::MAX - offset } else { offset };
            bytes.extend(request(command, flags, at as u64, offset, len, &payload));
        }
        fuzz_transmission(&bytes);
    }
}
