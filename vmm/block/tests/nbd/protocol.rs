//! Details of the protocol that no client program shows.

use std::io::{Read, Write};
use std::sync::Arc;

use vmm_block::{BlockDevice, MemoryDevice};

use crate::client::{
    BLOCK_STATUS, CACHE, DF, FAST_ZERO, FLUSH, FUA, GO, NO_HOLE, READ, REQ_ONE, Raw, Reply, TRIM,
    WRITE, WRITE_ZEROES, assemble, info_request, meta_request,
};
use crate::lab::{Lab, noise};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;

const ERR_UNSUP: u32 = (1 << 31) + 1;
const ERR_POLICY: u32 = (1 << 31) + 2;
const ERR_INVALID: u32 = (1 << 31) + 3;
const ERR_UNKNOWN: u32 = (1 << 31) + 6;
const ERR_TOO_BIG: u32 = (1 << 31) + 9;

#[test]
fn a_read_of_data_and_holes_comes_in_chunks_unless_told_not_to() {
    let device = Arc::new(MemoryDevice::new(1 << 20));
    let bytes = noise(3, 4096);
    device.write(8192, &bytes, false).unwrap();
    let lab = Lab::with(device);
    let mut client = Raw::ready(&lab.socket(), "disk");
    let mut whole = vec![0; 16_384];
    whole[8192..12_288].copy_from_slice(&bytes);

    let fragmented = client.call(READ, 0, 0, 16_384, &[]);
    assert_eq!((fragmented.content.len(), fragmented.holes), (3, 2));
    assert_eq!(assemble(&fragmented, 0, 16_384), whole);

    let one = client.call(READ, DF, 0, 16_384, &[]);
    assert_eq!((one.content.len(), one.holes), (1, 0));
    assert_eq!(assemble(&one, 0, 16_384), whole);

    let hole = client.call(READ, DF, 65_536, 65_536, &[]);
    assert_eq!((hole.content.len(), hole.holes), (1, 1));
}

#[test]
fn simple_replies_carry_everything_too() {
    let lab = Lab::with(Arc::new(MemoryDevice::new(1 << 20)));
    let mut client = Raw::simple(&lab.socket(), "disk");
    assert_eq!(client.call(WRITE, 0, 100, 3, b"abc").error, 0);
    let cookie = client.send(READ, 0, 99, 5, &[]);
    let mut reply = [0; 21];
    client.stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
    assert_eq!(reply[4..8], [0; 4]);
    assert_eq!(reply[8..16], cookie.to_be_bytes());
    assert_eq!(&reply[16..], b"\0abc\0");
    // DF belongs to structured replies, block status to metadata contexts.
    assert_eq!(client.call(READ, DF, 0, 4, &[]).error, EINVAL);
    assert_eq!(client.call(BLOCK_STATUS, 0, 0, 4096, &[]).error, EINVAL);
}

#[test]
fn every_mistake_has_its_error_and_the_connection_goes_on() {
    let lab = Lab::with(Arc::new(MemoryDevice::new(1 << 20)));
    lab.add("gold", Arc::new(MemoryDevice::read_only(vec![5; 1 << 20])));
    let mut client = Raw::ready(&lab.socket(), "disk");
    let size = 1 << 20;
    assert_eq!(client.call(READ, 0, size, 1, &[]).error, EINVAL);
    assert_eq!(client.call(READ, 0, u64::MAX, 2, &[]).error, EINVAL);
    assert_eq!(
        client.call(READ, 0, 0, (32 << 20) + 1, &[]).error,
        EOVERFLOW
    );
    assert_eq!(client.call(READ, NO_HOLE, 0, 1, &[]).error, EINVAL);
    assert_eq!(client.call(WRITE, 0, size - 1, 2, b"xx").error, ENOSPC);
    assert_eq!(client.call(WRITE, DF, 0, 2, b"xx").error, EINVAL);
    assert_eq!(client.call(WRITE_ZEROES, 0, size, 1, &[]).error, ENOSPC);
    assert_eq!(client.call(TRIM, 0, 1, u32::MAX, &[]).error, EINVAL);
    assert_eq!(client.call(BLOCK_STATUS, 0, 0, 0, &[]).error, EINVAL);
    assert_eq!(client.call(77, 0, 0, 0, &[]).error, EINVAL);
    assert_eq!(client.call(CACHE, 0, 0, 4096, &[]).error, 0);
    assert_eq!(client.read(0, 4), [0; 4]);

    let mut client = Raw::ready(&lab.socket(), "gold");
    assert_eq!(client.call(WRITE, FUA, 0, 2, b"xx").error, EPERM);
    assert_eq!(client.call(TRIM, 0, 0, 4096, &[]).error, EPERM);
    assert_eq!(client.call(WRITE_ZEROES, 0, 0, 4096, &[]).error, EPERM);
    assert_eq!(client.call(FLUSH, 0, 0, 0, &[]).error, 0);
    assert_eq!(client.read(0, 4), [5; 4]);
    // The largest read there is, in a disk that is large enough.
    lab.add("large", Arc::new(MemoryDevice::new(33 << 20)));
    let mut client = Raw::ready(&lab.socket(), "large");
    assert_eq!(client.read(1 << 20, 32 << 20).len(), 32 << 20);
}

#[test]
fn zeroing_respects_no_hole_and_fast_zero() {
    let lab = Lab::with(Arc::new(MemoryDevice::new(1 << 20)));
    let mut client = Raw::ready(&lab.socket(), "disk");
    assert_eq!(client.call(WRITE, 0, 0, 65_536, &noise(4, 65_536)).error, 0);
    assert_eq!(client.call(WRITE_ZEROES, NO_HOLE, 0, 16_384, &[]).error, 0);
    assert_eq!(
        client
            .call(WRITE_ZEROES, FAST_ZERO | FUA, 32_768, 16_384, &[])
            .error,
        0
    );
    let status = client.call(BLOCK_STATUS, 0, 0, 65_536, &[]);
    assert_eq!(status.extents, [(32_768, 0), (16_384, 3), (16_384, 0)]);
    let one = client.call(BLOCK_STATUS, REQ_ONE, 0, 4096, &[]);
    assert_eq!(one.extents, [(4096, 0)]);
    assert_eq!(client.read(0, 16_384), vec![0; 16_384]);
    assert_eq!(client.read(32_768, 16_384), vec![0; 16_384]);
}

#[test]
fn requests_sent_at_once_are_all_answered_once() {
    let lab = Lab::with(Arc::new(MemoryDevice::new(1 << 20)));
    let mut client = Raw::ready(&lab.socket(), "disk");
    let mut waiting = std::collections::BTreeSet::new();
    for round in 0..100_u64 {
        let at = round * 4096;
        waiting.insert(client.send(
            WRITE,
            if round.is_multiple_of(3) { FUA } else { 0 },
            at,
            4096,
            &noise(round, 4096),
        ));
        waiting.insert(client.send(READ, 0, 500_000, 100, &[]));
        waiting.insert(client.send(FLUSH, 0, 0, 0, &[]));
        if round % 10 == 9 {
            while let Some(first) = waiting.first().copied() {
                let Reply { cookie, error, .. } = client.reply();
                assert_eq!(error, 0);
                assert!(
                    waiting.remove(&cookie),
                    "{cookie} was not asked, or is answered twice (waiting: {first}…)"
                );
            }
        }
    }
    for round in 0..100 {
        assert_eq!(client.read(round * 4096, 4096), noise(round, 4096));
    }
}

#[test]
fn haggling_refuses_what_it_must() {
    let lab = Lab::with(Arc::new(MemoryDevice::new(1 << 20)));
    let mut client = Raw::hello(&lab.socket());
    let kind = |replies: Vec<(u32, Vec<u8>)>| replies.last().unwrap().0;
    assert_eq!(kind(client.option(99, b"what?")), ERR_UNSUP);
    assert_eq!(kind(client.option(11, &[])), ERR_UNSUP, "extended headers");
    assert_eq!(kind(client.option(5, &[])), ERR_POLICY, "no TLS here");
    assert_eq!(kind(client.option(3, b"data")), ERR_INVALID);
    assert_eq!(kind(client.option(8, b"data")), ERR_INVALID);
    assert_eq!(kind(client.option(GO, &info_request("none"))), ERR_UNKNOWN);
    assert_eq!(
        kind(client.option(GO, b"\xff\xff\xff\xffdisk\0\0")),
        ERR_INVALID
    );
    assert_eq!(
        kind(client.option(10, &meta_request("disk", &["base:allocation"]))),
        ERR_INVALID,
        "not structured yet"
    );
    assert_eq!(kind(client.option(GO, &vec![0; 70_000])), ERR_TOO_BIG);
    assert_eq!(kind(client.option(8, &[])), 1);
    assert_eq!(
        client.option(9, &meta_request("disk", &[])).len(),
        2,
        "listing without a query lists all"
    );
    assert_eq!(client.option(9, &meta_request("disk", &["base:"])).len(), 2);
    assert_eq!(
        client.option(10, &meta_request("disk", &["base:"])).len(),
        1,
        "a wildcard selects nothing"
    );
    assert_eq!(
        client
            .option(10, &meta_request("disk", &["x:y", "base:allocation"]))
            .len(),
        2
    );
    assert_eq!(
        kind(client.option(10, &meta_request("none", &["base:allocation"]))),
        ERR_UNKNOWN
    );
    // The failed SET took the selection away.
    assert_eq!(kind(client.option(GO, &info_request("disk"))), 1);
    assert_eq!(client.call(BLOCK_STATUS, 0, 0, 4096, &[]).error, EINVAL);
}

#[test]
fn export_name_and_abort_still_work() {
    let lab = Lab::with(Arc::new(MemoryDevice::new(1 << 20)));
    let mut old = Raw::hello(&lab.socket());
    old.send_option(1, b"disk").unwrap();
    let mut reply = [0; 10];
    old.stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..8], (1u64 << 20).to_be_bytes());
    assert_eq!(old.call(WRITE, 0, 0, 1, b"x").error, 0);

    // Without NO_ZEROES, 124 bytes of padding follow.
    let mut older = Raw::connect(&lab.socket());
    older.stream.read_exact(&mut [0; 18]).unwrap();
    older.stream.write_all(&1u32.to_be_bytes()).unwrap();
    older.send_option(1, b"disk").unwrap();
    let mut reply = [1; 134];
    older.stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[10..], [0; 124]);

    let mut unknown = Raw::hello(&lab.socket());
    unknown.send_option(1, b"none").unwrap();
    assert!(unknown.is_ended());

    let mut leaving = Raw::hello(&lab.socket());
    assert_eq!(leaving.option(2, &[]), [(1, vec![])]);
    assert!(leaving.is_ended());
}

#[test]
fn whatever_asks_for_durability_reaches_the_device() {
    let device = Arc::new(MemoryDevice::new(1 << 20));
    let lab = Lab::with(Arc::clone(&device) as _);
    let mut client = Raw::ready(&lab.socket(), "disk");
    let large = noise(5, 600_000);
    for (command, flags, len, data, flushes) in [
        (WRITE, 0, 4096, &large[..4096], 0),
        (WRITE, FUA, 4096, &large[..4096], 1),
        (WRITE, 0, 600_000, &large[..], 1),
        (WRITE, FUA, 600_000, &large[..], 2),
        (TRIM, FUA, 4096, &[], 3),
        (WRITE_ZEROES, FUA, 4096, &[], 4),
        (FLUSH, 0, 0, &[], 5),
        // Flags that mean nothing here do no harm.
        (READ, FUA, 4096, &[], 5),
    ] {
        assert_eq!(client.call(command, flags, 0, len, data).error, 0);
        assert_eq!(
            device.flushes(),
            flushes,
            "command {command} with flags {flags}"
        );
    }
}
