//! Chains that no driver makes.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_block::MemoryDevice;
use vmm_block::virtio::{Request, Status, Unusable};

use crate::chains::{Guest, MEMORY_BYTES, READABLE, WRITABLE, range, request};
use crate::guest::{DISCARD, GET_ID, IN, NEXT, OUT, SIZE, WRITE, WRITE_ZEROES};

const DISK_BYTES: usize = 1 << 16;

fn parsed(bytes: &[u8], room: usize) -> Result<Request, Unusable> {
    let mut guest = Guest::new();
    guest.submit(bytes, room, &[], false);
    guest.parse()
}

#[test]
fn requests_that_make_no_sense_are_answered_with_an_error() {
    let error = Ok(Request::Bad(Status::Error));
    let unsupported = Ok(Request::Bad(Status::Unsupported));
    assert_eq!(parsed(&[0; 15], 513), error, "half a head");
    assert_eq!(parsed(&request(IN, 0, &[]), 100), error, "no whole sector");
    assert_eq!(parsed(&request(OUT, 0, &[1; 511]), 1), error);
    assert_eq!(parsed(&request(IN, u64::MAX, &[]), 513), error);
    assert_eq!(parsed(&request(IN, 1 << 55, &[]), 513), error);
    assert_eq!(parsed(&request(GET_ID, 0, &[]), 20), error, "no room");
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(parsed(&request(kind, 0, &[]), 1), error, "no range");
        assert_eq!(parsed(&request(kind, 0, &[0; 17]), 1), error);
        assert_eq!(parsed(&request(kind, 0, &[0; 257 * 16]), 1), error);
        assert_eq!(
            parsed(&request(kind, 0, &range(1, 1, 2)), 1),
            unsupported,
            "flags that are not known"
        );
    }
    assert_eq!(
        parsed(&request(DISCARD, 0, &range(1, 1, 1)), 1),
        unsupported
    );
    let known = [IN, OUT, 4, GET_ID, DISCARD, WRITE_ZEROES];
    for kind in (0..64).filter(|kind| !known.contains(kind)) {
        assert_eq!(parsed(&request(kind, 0, &[]), 1), unsupported, "{kind}");
    }
}

#[test]
fn chains_without_a_place_for_the_status_are_no_requests() {
    let mut guest = Guest::new();
    guest.driver.describe(0, READABLE, 16, 0, 0);
    guest.driver.publish(0);
    assert_eq!(guest.parse(), Err(Unusable::NoStatus));
    // A head that does not exist has nothing at all.
    guest.driver.publish(SIZE);
    assert_eq!(guest.parse(), Err(Unusable::NoStatus));
}

#[test]
fn descriptors_outside_of_memory_are_no_requests() {
    for (at, len) in [
        (MEMORY_BYTES as u64, 1),
        (MEMORY_BYTES as u64 - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, u32::MAX),
        (0, u32::MAX),
    ] {
        for flags in [0, WRITE] {
            let mut guest = Guest::new();
            guest.driver.describe(0, READABLE, 16, NEXT, 1);
            guest.driver.describe(1, at, len, flags | NEXT, 2);
            guest.driver.describe(2, WRITABLE, 1, WRITE, 0);
            guest.driver.publish(0);
            assert!(guest.parse().is_err(), "{len} bytes at {at:#x}");
        }
    }
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let mut guest = Guest::new();
    guest.driver.describe(0, READABLE, 16, NEXT, 1);
    guest.driver.describe(1, WRITABLE, 512, WRITE | NEXT, 1);
    guest.driver.publish(0);
    // As many descriptors as the queue has, all at one place: a read whose length is no whole number of sectors, by its status.
    assert_eq!(guest.parse(), Ok(Request::Bad(Status::Error)));
}

#[test]
fn more_data_than_a_request_may_have_is_not_read() {
    let mut guest = Guest::new();
    guest.driver.describe(0, READABLE, 16, NEXT, 1);
    let len = MEMORY_BYTES as u32 / 2;
    for index in 1..=5 {
        guest.driver.describe(index, 0, len, NEXT, index + 1);
    }
    guest.driver.describe(6, WRITABLE, 1, WRITE, 0);
    guest.memory.write_obj(OUT, GuestAddress(READABLE)).unwrap();
    guest.driver.publish(0);
    // Ten mebibytes, and nothing was allocated for them.
    assert_eq!(guest.parse(), Ok(Request::Bad(Status::Error)));
}

#[test]
fn an_answer_that_lies_over_its_request_is_the_guests_own_affair() {
    let disk = MemoryDevice::new(DISK_BYTES);
    let mut guest = Guest::new();
    let bytes = request(IN, 0, &[]);
    guest
        .memory
        .write_slice(&bytes, GuestAddress(READABLE))
        .unwrap();
    guest.driver.describe(0, READABLE, 16, NEXT, 1);
    guest.driver.describe(1, READABLE, 512, WRITE | NEXT, 2);
    guest.driver.describe(2, READABLE, 1, WRITE, 0);
    guest.driver.publish(0);
    let served = guest.serve(&disk).unwrap();
    assert_eq!(served.written, 513);
}

/// An address that is mostly in memory.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..64u64).prop_map(|n| WRITABLE + n * 512),
        2 => (0..64u64).prop_map(|n| READABLE + n * 16),
        1 => 0..MEMORY_BYTES as u64,
        1 => any::<u64>(),
    ]
}

proptest! {
    #[test]
    fn nothing_but_what_is_writable_is_written(
        descriptors in proptest::collection::vec(
            (
                place(),
                prop_oneof![Just(1u32), Just(16), Just(512), Just(1024), 0..5000u32, any::<u32>()],
                prop_oneof![4 => Just(NEXT), 4 => Just(NEXT | WRITE), 1 => 0..8u16],
                prop_oneof![8 => Just(None), 1 => (0..80u16).prop_map(Some)],
            ),
            1..20,
        ),
        kind in prop_oneof![Just(IN), Just(OUT), Just(GET_ID), 0..16u32],
        sector in prop_oneof![0..140u64, any::<u64>()],
    ) {
        let disk = MemoryDevice::new(DISK_BYTES);
        let mut guest = Guest::new();
        for n in 0..64 {
            let head = request(kind, sector, &[]);
            guest.memory.write_slice(&head, GuestAddress(READABLE + n * 16)).unwrap();
        }
        for (index, (at, len, flags, next)) in descriptors.iter().enumerate() {
            let next = next.unwrap_or(index as u16 + 1);
            guest.driver.describe(index as u16, *at, *len, *flags, next);
        }
        guest.driver.publish(0);
        let mut before = vec![0; MEMORY_BYTES];
        guest.memory.read_slice(&mut before, GuestAddress(0)).unwrap();
        let is_indirect = descriptors.iter().any(|one| one.2 & 4 != 0);
        let served = guest.serve(&disk);
        let mut after = vec![0; MEMORY_BYTES];
        guest.memory.read_slice(&mut after, GuestAddress(0)).unwrap();
        let mut room = 0u64;
        for (at, len, flags, _) in &descriptors {
            if flags & WRITE != 0 {
                room += u64::from(*len);
                // What may be written is as it was for the comparison.
                let end = at.saturating_add((*len).into()).min(MEMORY_BYTES as u64);
                if *at < end {
                    let range = *at as usize..end as usize;
                    after[range.clone()].copy_from_slice(&before[range]);
                }
            }
        }
        // Tables of descriptors may say anything: they are read from memory that the test fills with requests.
        if !is_indirect {
            prop_assert!(before == after);
        }
        if let Ok(served) = served {
            let looped = descriptors.iter().any(|one| one.3.is_some());
            prop_assert!(looped || is_indirect || u64::from(served.written) <= room);
        }
    }
}
