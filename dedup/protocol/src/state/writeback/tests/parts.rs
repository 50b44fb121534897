//! Ranges and their spelling.

use dedup::codec::{CodecError, write_varint};
use proptest::prelude::*;

use super::*;

#[test]
fn a_part_says_ranges_of_several_disks() {
    let ranges = vec![
        range(0, 0, 512, Some(1)),
        range(0, 512, 1 << 39, None),
        range(0, (1 << 40) - 512, 512, Some(1)),
        range(1, 4096, 8192, Some(2)),
    ];
    let part = Part::new(ranges.clone(), &DISKS).unwrap();
    let decoded = Part::decode(&part.encode(), &DISKS).unwrap();
    assert_eq!(decoded.ranges(), ranges);
    let names = [(ChunkId([1; 32]), 512), (ChunkId([2; 32]), 8192)];
    assert_eq!(decoded.chunks(), names);
}

#[test]
fn what_does_not_fit_the_disks_is_refused() {
    for (ranges, why) in [
        (vec![range(2, 0, 512, None)], "no such disk"),
        (vec![range(0, 0, 0, None)], "not whole sectors"),
        (vec![range(0, 100, 512, None)], "not whole sectors"),
        (vec![range(1, 1 << 20, 512, None)], "outside the disk"),
        (
            vec![range(1, u64::MAX - 511, 512, None)],
            "outside the disk",
        ),
        (vec![range(0, 0, 512 << 10, Some(1))], "longer than a chunk"),
        (
            vec![range(0, 0, 1024, None), range(0, 512, 512, None)],
            "not behind the range before it",
        ),
        (
            vec![range(1, 0, 512, None), range(0, 0, 512, None)],
            "not behind the range before it",
        ),
    ] {
        let index = ranges.len() - 1;
        let refused = Part::new(ranges, &DISKS);
        assert_eq!(refused, Err(PartError::Range { index, what: why }));
    }
    let many = (0..=PART_RANGES_MAX as u64).map(|at| range(0, at * 512, 512, None));
    let refused = Part::new(many.collect(), &DISKS);
    assert_eq!(refused, Err(PartError::Count(PART_RANGES_MAX as u64 + 1)));
    let large = (0..65u64).map(|at| range(0, at << 18, 1 << 18, Some(at as u8)));
    let refused = Part::new(large.collect(), &DISKS);
    assert_eq!(refused, Err(PartError::Bytes(65 << 18)));
}

#[test]
fn claims_of_a_part_cost_nothing() {
    let mut claim = Vec::new();
    write_varint(&mut claim, u64::MAX);
    assert_eq!(
        Part::decode(&claim, &DISKS),
        Err(PartError::Count(u64::MAX))
    );
    let mut claim = Vec::new();
    write_varint(&mut claim, PART_RANGES_MAX as u64);
    let len = claim.len();
    assert_eq!(
        Part::decode(&claim, &DISKS),
        Err(PartError::Codec(CodecError::Truncated(len)))
    );
    let mut longer = part(&[1]).encode();
    longer.push(0);
    assert_eq!(Part::decode(&longer, &DISKS), Err(PartError::Trailing(1)));
}

#[test]
fn a_full_part_fits_a_request() {
    let ranges = (0..PART_RANGES_MAX as u64).map(|at| range(0, at << 28, 4096, Some(at as u8)));
    let part = Part::new(ranges.collect(), &DISKS).unwrap();
    assert!(part.encode().len() < 120 << 10);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parts_have_one_spelling(
        steps in prop::collection::vec((0u8..20, 0u64..100, 1u64..64, prop::option::of(any::<u8>())), 0..60)
    ) {
        let mut ranges: Vec<Range> = Vec::new();
        let (mut disk, mut at) = (0, 0);
        for (turn, gap, sectors, chunk) in steps {
            if turn == 0 && disk == 0 {
                (disk, at) = (1, 0);
            }
            let next = range(disk, at + gap * 512, sectors * 512, chunk);
            at = next.offset + next.len;
            ranges.push(next);
        }
        let disks = [1 << 40, 1 << 40];
        let bytes = Part::new(ranges.clone(), &disks).unwrap().encode();
        let decoded = Part::decode(&bytes, &disks).unwrap();
        prop_assert_eq!(decoded.ranges(), ranges);
    }

    #[test]
    fn foreign_parts_are_refused_or_have_one_spelling(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(part) = Part::decode(&bytes, &DISKS) {
            prop_assert_eq!(part.encode(), bytes);
        }
    }
}
