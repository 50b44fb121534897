//! Entries survive their encoding, merging does not depend on order, and what is foreign is refused in bounds.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;

use bytes::Bytes;
use dedup::codec::write_varint;
use dedup::manifest::{DISK_BYTES_MAX, LEAF_BYTES};
use dedup::{ChunkerParams, IdKey, Manifest, ManifestBuilder, NodeId, NodeSource};
use proptest::prelude::*;

use super::*;

fn entry(leaf: u32, extent: u16, at_ms: u32) -> Entry {
    Entry {
        place: Place { leaf, extent },
        at_ms,
        seen: 1,
    }
}

fn arbitrary_entries(most: usize) -> impl Strategy<Value = Entries> {
    let leaf = prop_oneof![
        0u32..4,
        Just(999),
        Just((DISK_BYTES_MAX / LEAF_BYTES) as u32 - 1)
    ];
    let one = (leaf, 0u16..8192, 0..AT_MS_MAX, 1u16..20, 1u16..6);
    prop::collection::vec(one, 0..most).prop_map(|runs| {
        let mut entries = Vec::new();
        for (leaf, extent, at_ms, seen, len) in runs {
            for extent in extent..(extent + len).min(8192) {
                entries.push(Entry {
                    place: Place { leaf, extent },
                    at_ms,
                    seen,
                });
            }
        }
        Entries::new(entries)
    })
}

proptest! {
    #[test]
    fn entries_survive_encoding(entries in arbitrary_entries(200)) {
        prop_assert_eq!(Entries::decode(&entries.encode()), Ok(entries));
    }

    #[test]
    fn shortening_keeps_the_earliest(entries in arbitrary_entries(200), room in 0usize..900) {
        let short = entries.clone().within(room);
        prop_assert!(short.encode().len() <= room.max(3));
        prop_assert_eq!(short.as_slice(), &entries.as_slice()[..short.len()]);
    }

    #[test]
    fn any_bytes_are_refused_or_ordered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(entries) = Entries::decode(&bytes) {
            prop_assert_eq!(Entries::new(entries.as_slice().to_vec()), entries);
        }
    }

    #[test]
    fn merging_does_not_depend_on_order(
        boots in prop::collection::vec(arbitrary_entries(60), 1..BOOTS_MAX),
        turn in 0usize..BOOTS_MAX,
    ) {
        let merged = merge(&boots, 1);
        let mut turned = boots.clone();
        turned.rotate_left(turn % boots.len());
        prop_assert_eq!(&merge(&turned, 1), &merged);
        turned.reverse();
        prop_assert_eq!(&merge(&turned, 1), &merged);
        for entry in merged.as_slice() {
            let seen = boots.iter().filter(|b| b.as_slice().iter().any(|e| e.place == entry.place));
            let (seen, counted) = (seen.count(), usize::from(entry.seen));
            // Of three and more, what is far behind in a long one does not count.
            prop_assert!(counted == seen || (counted < seen && boots.len() > 2));
            prop_assert!(usize::from(entry.seen) * 4 >= boots.len());
        }
    }
}

#[test]
fn merging_takes_the_median_at_the_leader_s_pace() {
    // The second host is ten times slower, the third stopped early; the fourth place is one boot's own.
    let boots = [
        Entries::new(vec![entry(0, 1, 100), entry(0, 2, 200), entry(0, 3, 300)]),
        Entries::new(vec![
            entry(0, 1, 1000),
            entry(0, 3, 3000),
            entry(0, 2, 2000),
        ]),
        Entries::new(vec![entry(0, 1, 100)]),
        Entries::new(vec![entry(0, 1, 90), entry(0, 2, 210)]),
        Entries::new(vec![entry(0, 1, 100), entry(5, 5, 5)]),
    ];
    let merged = merge(&boots, 1);
    let told: Vec<_> = merged
        .as_slice()
        .iter()
        .map(|e| (e.place.extent, e.seen))
        .collect();
    assert_eq!(told, [(1, 5), (2, 3), (3, 2)]);
    assert!(merge(&[], 1).is_empty());
    let one = Entries::new(vec![entry(7, 7, 7), entry(1, 1, 9)]);
    assert_eq!(merge(std::slice::from_ref(&one), 1), one);
}

/// One branch that says that everything is touched at once, or whose desktop reads its whole disk, beside two that tell the truth.
#[test]
fn one_of_three_has_no_more_to_say_than_the_others() {
    let honest = || Entries::new((0..50).map(|n| entry(n, 1, 100 * n)).collect());
    let liar = Entries::new((0..5000).map(|n| entry(n, 2, 0)).collect());
    let merged = merge(&[liar, honest(), honest()], 2);
    assert_eq!(merged.len(), 50);
    assert!(merged.as_slice().iter().all(|e| e.seen == 2));
    let times: Vec<u32> = merged.as_slice().iter().map(|e| e.at_ms).collect();
    assert_eq!(times, (0..50).map(|n| 100 * n).collect::<Vec<_>>());
}

#[test]
fn merged_entries_stay_below_the_limit() {
    let boot = |from: u32| {
        let all = (0..ENTRIES_MAX as u32).map(|n| {
            let n = n + from;
            entry(n / 200, (n % 200) as u16, n)
        });
        Entries::new(all.collect())
    };
    let merged = merge(&[boot(0), boot(ENTRIES_MAX as u32 / 2)], 1);
    assert_eq!(merged.len(), ENTRIES_MAX);
    let both = merged.as_slice().iter().filter(|e| e.seen == 2).count();
    assert_eq!(both, ENTRIES_MAX / 2, "what both touch stays");
}

/// A boot as they are: requests of a few consecutive chunks all over the disk.
#[test]
fn an_entry_takes_three_bytes_at_most() {
    let mut entries = Vec::new();
    let mut random = 12_345u64;
    let mut at_ms = 0;
    while entries.len() < 26_000 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let (leaf, extent) = ((random >> 33) as u32 % 2560, (random >> 20) as u16 % 250);
        at_ms += (random >> 50) as u32 % 3;
        for extent in extent..extent + 1 + (random >> 60) as u16 % 5 {
            entries.push(entry(leaf, extent, at_ms));
        }
    }
    let entries = Entries::new(entries);
    let per_entry = entries.encode().len() as f64 / entries.len() as f64;
    assert!(per_entry <= 3.0, "{per_entry} bytes an entry");
}

fn words(values: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        write_varint(&mut bytes, *value);
    }
    bytes
}

#[test]
fn hostile_entries_are_refused() {
    let refused = |values: &[u64]| Entries::decode(&words(values)).unwrap_err();
    let out_of = |index, what| EntriesError::Range { index, what };
    assert_eq!(refused(&[65_537]), EntriesError::Count(65_537));
    // A claim without bytes behind it makes no room.
    assert!(matches!(refused(&[65_536]), EntriesError::Codec(_)));
    assert_eq!(refused(&[1, 3_600_001, 0, 0]), out_of(0, "time"));
    assert_eq!(refused(&[1, u64::MAX, 0, 0]), out_of(0, "time"));
    assert_eq!(refused(&[1, 0, 1, 0]), out_of(0, "place"));
    assert_eq!(refused(&[1, 0, u64::MAX - 1, 0]), out_of(0, "place"));
    assert_eq!(refused(&[1, 0, 0, 2]), out_of(0, "run"));
    assert_eq!(refused(&[9000, 0, 0, 8192 << 1]), out_of(0, "run"));
    // Across the end of a leaf.
    assert_eq!(refused(&[9, 0, 8191 << 1, 2]), out_of(0, "run"));
    assert_eq!(refused(&[1, 0, 0, 1, 0]), out_of(0, "count of boots"));
    assert_eq!(refused(&[1, 0, 0, 1, 65_536]), out_of(0, "count of boots"));
    // The second run stands before the first at the same time, or names it again later.
    assert_eq!(refused(&[2, 0, 10, 0, 0, 5, 0]), EntriesError::Order(1));
    assert_eq!(refused(&[2, 0, 10, 0, 1, 1, 0]), EntriesError::Twice(1));
    assert_eq!(refused(&[1, 0, 0, 0, 7]), EntriesError::Trailing(1));
    assert_eq!(refused(&[0, 0]), EntriesError::Trailing(1));
}

#[derive(Default)]
struct Nodes(HashMap<NodeId, Bytes>);

#[derive(Debug, thiserror::Error)]
#[error("missing")]
struct Missing;

impl NodeSource for Nodes {
    type Error = Missing;
    fn node(&self, id: NodeId) -> Result<Bytes, Missing> {
        self.0.get(&id).cloned().ok_or(Missing)
    }
}

/// A disk of chunks of 64 KiB (64 a leaf) named by number; 0 is a hole.
fn disk(nodes: &mut Nodes, chunks: &[u32]) -> Manifest {
    let key = IdKey::new([1; 32]);
    let mut builder = ManifestBuilder::new(key.clone(), ChunkerParams::default());
    for number in chunks {
        match number {
            0 => builder.push_zero(64 << 10),
            _ => builder.push_chunk(key.chunk_id(&number.to_le_bytes()), 64 << 10),
        }
    }
    let (manifest, leaves) = builder.finish();
    let leaves = leaves.into_iter().map(|(id, bytes)| (id, bytes.into()));
    nodes.0.extend(leaves);
    manifest
}

#[test]
fn a_profile_is_carried_over_by_content_and_by_place() {
    let mut nodes = Nodes::default();
    let old: Vec<u32> = (1..=192).collect();
    let mut new = old.clone();
    // In the second leaf: chunk 70 moves to the third leaf, 80 is replaced, 90 becomes a hole.
    new[69] = 1000;
    new[185] = 70;
    new[79] = 1001;
    new[89] = 0;
    let (from, to) = (disk(&mut nodes, &old), disk(&mut nodes, &new));
    let entries = Entries::new(vec![
        entry(0, 5, 10),
        entry(1, 5, 20),
        entry(1, 15, 30),
        entry(1, 25, 40),
        entry(2, 60, 50),
        entry(2, 57, 60),
    ]);
    let carried = carry(&nodes, &from, &to, &entries, &Kin::new()).unwrap();
    let expected = Entries::new(vec![
        // Its leaf is the same.
        entry(0, 5, 10),
        // Chunk 70 where it went; 1000 in its place is not what the boot wants.
        entry(2, 57, 20),
        // Chunk 80 is gone: what is there now.
        entry(1, 15, 30),
        // A hole needs nothing; chunk 189 stands where it stood though its leaf changed; chunk 186 is gone, 70 is there.
        entry(2, 60, 50),
    ]);
    assert_eq!(carried, expected);
    assert_eq!(measure(&nodes, &to, &carried).unwrap(), (4, 4 * 65_536));
    let same = carry(&nodes, &from, &from, &entries, &Kin::new()).unwrap();
    assert_eq!(same, entries);
    let shorter = disk(&mut nodes, &old[..64]);
    let kept = carry(&nodes, &from, &shorter, &entries, &Kin::new()).unwrap();
    assert_eq!(kept.as_slice(), &[entry(0, 5, 10)]);
}

#[test]
fn what_took_a_chunk_s_place_is_named_wherever_it_stands() {
    let mut nodes = Nodes::default();
    let key = IdKey::new([1; 32]);
    let id = |number: u32| key.chunk_id(&number.to_le_bytes());
    let old: Vec<u32> = (1..=192).collect();
    let mut new = old.clone();
    // In the second leaf 80, 81 and 82 are gone. What took 80's place stands in the third leaf and at the end of the second.
    (new[79], new[80], new[81]) = (1001, 1002, 1003);
    (new[127], new[187]) = (1004, 1005);
    let (from, to) = (disk(&mut nodes, &old), disk(&mut nodes, &new));
    let kin = Kin::from([
        (id(80), vec![id(1004), id(1005)]),
        // Not on the disk: as if nothing were known.
        (id(81), vec![id(7777)]),
        // Still there, and replaced elsewhere.
        (id(90), vec![id(1003)]),
    ]);
    let entries = Entries::new(vec![
        entry(1, 15, 10),
        entry(1, 16, 20),
        entry(1, 17, 30),
        entry(1, 25, 40),
    ]);
    let carried = carry(&nodes, &from, &to, &entries, &kin).unwrap();
    let expected = Entries::new(vec![
        entry(1, 63, 10),
        entry(2, 59, 10),
        entry(1, 16, 20),
        // The bytes of 82, before it is named once more.
        entry(1, 17, 30),
        entry(1, 25, 40),
    ]);
    assert_eq!(carried, expected);
    assert!(measure(&nodes, &to, &carried).is_ok());
}

#[test]
fn places_that_show_no_chunk_are_refused() {
    let mut nodes = Nodes::default();
    let disk = disk(&mut nodes, &[1, 0, 2]);
    for (leaf, extent, ok) in [(0, 0, true), (0, 1, false), (0, 3, false), (1, 0, false)] {
        let entries = Entries::new(vec![entry(leaf, extent, 1)]);
        assert_eq!(measure(&nodes, &disk, &entries).is_ok(), ok);
    }
}
