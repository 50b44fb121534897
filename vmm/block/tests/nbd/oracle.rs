//! Random requests through the real socket, on a real file, against a byte array that knows the answer.

use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

use crate::client::{
    BLOCK_STATUS, DF, FUA, NO_HOLE, READ, Raw, TRIM, WRITE, WRITE_ZEROES, assemble,
};
use crate::lab::{Lab, noise};

const SIZE: u64 = 2 << 20;

#[derive(Debug, Clone)]
enum Step {
    Read {
        offset: u64,
        len: u32,
        flags: u16,
    },
    Write {
        offset: u64,
        len: u32,
        seed: u64,
        flags: u16,
    },
    Zero {
        offset: u64,
        len: u32,
        flags: u16,
    },
    Trim {
        offset: u64,
        len: u32,
    },
    Status {
        offset: u64,
        len: u32,
    },
}

/// Ranges around every size at which something changes: sectors, pages, the inline limit.
fn range() -> impl Strategy<Value = (u64, u32)> {
    let len = prop_oneof![
        1u32..600,
        Just(4096),
        4000u32..20_000,
        Just(65_536),
        250_000u32..270_000,
        300_000u32..600_000
    ];
    (0..SIZE, len, any::<bool>()).prop_map(|(offset, len, aligned)| {
        let offset = if aligned {
            offset / 4096 * 4096
        } else {
            offset
        };
        (offset, u64::from(len).min(SIZE - offset) as u32)
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (range(), prop_oneof![Just(0), Just(DF)])
            .prop_map(|((offset, len), flags)| Step::Read { offset, len, flags }),
        3 => (range(), any::<u64>(), prop_oneof![4 => Just(0), 1 => Just(FUA)])
            .prop_map(|((offset, len), seed, flags)| Step::Write { offset, len, seed, flags }),
        1 => (range(), prop_oneof![Just(0), Just(NO_HOLE), Just(FUA)])
            .prop_map(|((offset, len), flags)| Step::Zero { offset, len, flags }),
        1 => range().prop_map(|(offset, len)| Step::Trim { offset, len }),
        1 => range().prop_map(|(offset, len)| Step::Status { offset, len }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_disk_is_a_byte_array(steps in proptest::collection::vec(step(), 1..60)) {
        let (lab, path) = Lab::with_raw_file(SIZE);
        // Two connections take turns: what one wrote, the other reads.
        let mut clients = [Raw::ready(&lab.socket(), "disk"), Raw::ready(&lab.socket(), "disk")];
        let mut oracle = vec![0; SIZE as usize];
        for (turn, step) in steps.into_iter().enumerate() {
            let client = &mut clients[turn % 2];
            match step {
                Step::Read { offset, len, flags } => {
                    let reply = client.call(READ, flags, offset, len, &[]);
                    prop_assert_eq!(reply.error, 0);
                    prop_assert!(flags != DF || reply.content.len() == 1);
                    let expected = &oracle[offset as usize..][..len as usize];
                    prop_assert!(assemble(&reply, offset, len) == expected, "read of {} at {}", len, offset);
                }
                Step::Write { offset, len, seed, flags } => {
                    let bytes = noise(seed, len as usize);
                    prop_assert_eq!(client.call(WRITE, flags, offset, len, &bytes).error, 0);
                    oracle[offset as usize..][..len as usize].copy_from_slice(&bytes);
                }
                Step::Zero { offset, len, flags } => {
                    prop_assert_eq!(client.call(WRITE_ZEROES, flags, offset, len, &[]).error, 0);
                    oracle[offset as usize..][..len as usize].fill(0);
                }
                Step::Trim { offset, len } => {
                    prop_assert_eq!(client.call(TRIM, 0, offset, len, &[]).error, 0);
                    // Old bytes or zeroes, per byte; from here on what it now reads as must stay.
                    let now = client.read(offset, len);
                    for (now, old) in now.iter().zip(&oracle[offset as usize..]) {
                        prop_assert!(now == old || *now == 0);
                    }
                    oracle[offset as usize..][..len as usize].copy_from_slice(&now);
                }
                Step::Status { offset, len } => {
                    let reply = client.call(BLOCK_STATUS, 0, offset, len, &[]);
                    prop_assert_eq!(reply.error, 0);
                    let mut at = offset as usize;
                    for (extent, state) in reply.extents {
                        prop_assert!(extent > 0);
                        let bytes = &oracle[at..at + extent as usize];
                        prop_assert!(state & 2 == 0 || bytes.iter().all(|byte| *byte == 0), "zero at {}", at);
                        at += extent as usize;
                    }
                    prop_assert!(at > offset as usize && at <= (offset + u64::from(len)) as usize);
                }
            }
        }
        for client in &mut clients {
            prop_assert!(client.read(0, SIZE as u32) == oracle);
        }
        prop_assert!(std::fs::read(path).unwrap() == oracle);
    }
}
