//! Any requests, in chains of any shape, do to the disk what they do to an array of bytes.

use proptest::prelude::*;
use vmm_block::MemoryDevice;

use crate::chains::{Guest, range, request};
use crate::guest::{DISCARD, FLUSH, GET_ID, IN, OUT, SECTOR, WRITE_ZEROES, pattern};

const SECTORS: u64 = 64;
const OK: u8 = 0;
const ERROR: u8 = 1;

#[derive(Debug, Clone)]
enum Op {
    Read(u64, usize),
    Write(u64, usize, u64),
    Zero(Vec<(u64, u32)>, bool),
    Discard(Vec<(u64, u32)>),
    Flush,
    Id(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let sector = || 0..SECTORS + 4;
    let ranges = || proptest::collection::vec((sector(), 0..8u32), 1..5);
    prop_oneof![
        (sector(), 0..9usize).prop_map(|(sector, len)| Op::Read(sector, len)),
        (sector(), 0..9usize, any::<u64>()).prop_map(|(at, len, seed)| Op::Write(at, len, seed)),
        (ranges(), any::<bool>()).prop_map(|(ranges, unmap)| Op::Zero(ranges, unmap)),
        ranges().prop_map(Op::Discard),
        Just(Op::Flush),
        (0..40usize).prop_map(Op::Id),
    ]
}

/// Zeros ranges one after the other, up to the first that does not fit.
fn zero(oracle: &mut [u8], ranges: &[(u64, u32)]) -> u8 {
    for (sector, sectors) in ranges {
        let at = *sector as usize * SECTOR;
        let end = at + *sectors as usize * SECTOR;
        match oracle.get_mut(at..end) {
            Some(range) => range.fill(0),
            None => return ERROR,
        }
    }
    OK
}

fn body(kind: u32, ranges: &[(u64, u32)], flags: u32) -> Vec<u8> {
    let ranges = ranges
        .iter()
        .flat_map(|(sector, sectors)| range(*sector, *sectors, flags));
    request(kind, 0, &ranges.collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn disk_and_oracle_agree(
        ops in proptest::collection::vec(
            (op(), proptest::collection::vec(0..700usize, 0..6), any::<bool>()),
            1..30,
        ),
    ) {
        let disk = MemoryDevice::new(SECTORS as usize * SECTOR);
        let mut oracle = vec![0; SECTORS as usize * SECTOR];
        let mut guest = Guest::new();
        for (op, pieces, indirect) in ops {
            let (bytes, data) = match &op {
                Op::Read(sector, len) => (request(IN, *sector, &[]), len * SECTOR),
                Op::Write(sector, len, seed) => {
                    (request(OUT, *sector, &pattern(*seed, len * SECTOR)), 0)
                }
                Op::Zero(ranges, unmap) => (body(WRITE_ZEROES, ranges, (*unmap).into()), 0),
                Op::Discard(ranges) => (body(DISCARD, ranges, 0), 0),
                Op::Flush => (request(FLUSH, 0, &[]), 0),
                Op::Id(len) => (request(GET_ID, 0, &[]), *len),
            };
            guest.submit(&bytes, data + 1, &pieces, indirect);
            let served = guest.serve(&disk).unwrap();
            let mut expected = Vec::new();
            let status = match &op {
                Op::Read(sector, len) => {
                    let at = *sector as usize * SECTOR;
                    match oracle.get(at..at + len * SECTOR) {
                        Some(bytes) => {
                            expected.extend(bytes);
                            OK
                        }
                        None => ERROR,
                    }
                }
                Op::Write(sector, len, seed) => {
                    let at = *sector as usize * SECTOR;
                    match oracle.get_mut(at..at + len * SECTOR) {
                        Some(bytes) => {
                            bytes.copy_from_slice(&pattern(*seed, len * SECTOR));
                            OK
                        }
                        None => ERROR,
                    }
                }
                Op::Zero(ranges, _) | Op::Discard(ranges) => zero(&mut oracle, ranges),
                Op::Flush => OK,
                Op::Id(len) if *len < 20 => ERROR,
                Op::Id(_) => {
                    expected.extend(b"serial");
                    expected.resize(20, 0);
                    OK
                }
            };
            let answer = guest.answer(data + 1);
            prop_assert_eq!(answer[data], status, "{:?}", op);
            prop_assert_eq!(&answer[..expected.len()], &expected[..]);
            prop_assert_eq!(served.written as usize, expected.len() + 1);
            prop_assert_eq!(served.error.is_some(), status == ERROR && !matches!(op, Op::Id(_)));
        }
        prop_assert!(disk.content() == oracle);
    }
}
