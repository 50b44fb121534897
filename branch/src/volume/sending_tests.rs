//! What write-back reads, against a byte array: with compaction, held records and openings in between.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use proptest::prelude::*;

use super::tests::{BUSY, KIB, SMALL, open, segment_files};
use super::{Changes, Overlay};

const SECTORS: u64 = 400;
const DISKS: [u64; 2] = [SECTORS * 512, 100 * 512];

/// A range, joined with its neighbours, with its content; `None` for zeros.
type Told = (u16, u64, Option<Vec<u8>>);

/// All that is told, joined where it touches.
fn told(overlay: &Overlay, mut changes: Changes) -> Vec<Told> {
    let mut ranges: Vec<Told> = Vec::new();
    let mut end = (0, 0);
    while let Some(change) = changes.next_change().unwrap() {
        let place = (change.disk(), change.start());
        assert!(place >= end, "ascending, without overlap");
        let mut bytes = vec![0xEE; (change.end() - change.start()) as usize];
        overlay.read_change(&change, &mut bytes).unwrap();
        let is_zero = change.is_zero();
        assert!(!is_zero || bytes.iter().all(|byte| *byte == 0));
        match ranges.last_mut() {
            Some((_, _, Some(data))) if place == end && !is_zero => data.extend(bytes),
            Some((_, _, None)) if place == end && is_zero => {}
            _ => ranges.push((place.0, place.1, (!is_zero).then_some(bytes))),
        }
        end = (change.disk(), change.end());
    }
    ranges
}

fn apply(state: &mut [Vec<u8>; 2], overlay: &Overlay, mut changes: Changes) {
    while let Some(change) = changes.next_change().unwrap() {
        let span = change.start() as usize..change.end() as usize;
        let into = &mut state[usize::from(change.disk())][span];
        overlay.read_change(&change, into).unwrap();
    }
}

fn blank() -> [Vec<u8>; 2] {
    DISKS.map(|size| vec![0; size as usize])
}

/// What a guest did, and the number of the record that says it.
struct Deed {
    seq: u64,
    disk: u16,
    at: u64,
    data: Vec<u8>,
}

/// What the disks showed behind a record.
fn shown(deeds: &[Deed], seq: u64) -> [Vec<u8>; 2] {
    let mut state = blank();
    for deed in deeds.iter().filter(|deed| deed.seq <= seq) {
        let span = deed.at as usize..deed.at as usize + deed.data.len();
        state[usize::from(deed.disk)][span].copy_from_slice(&deed.data);
    }
    state
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        disk: u16,
        at: u64,
        len: u64,
        fill: u8,
    },
    Zero {
        disk: u16,
        at: u64,
        len: u64,
        hole: bool,
    },
    Flush,
    Tend {
        budget: u64,
    },
    Reopen,
    /// Seals, if nothing is sealed.
    Seal,
    /// The segment is read once more, and is at the datacenter.
    Apply,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || {
        (
            0..2u16,
            0..SECTORS,
            prop_oneof![5 => 1..24u64, 1 => 1..SECTORS],
        )
            .prop_map(|(disk, at, len)| {
                let sectors = DISKS[usize::from(disk)] / 512;
                let at = at % sectors;
                (disk, at * 512, len.min(sectors - at) * 512)
            })
    };
    prop_oneof![
        8 => (range(), any::<u8>()).prop_map(|((disk, at, len), fill)| Step::Write { disk, at, len, fill }),
        2 => (range(), any::<bool>()).prop_map(|((disk, at, len), hole)| Step::Zero { disk, at, len, hole }),
        2 => Just(Step::Flush),
        5 => (0..64 * KIB).prop_map(|budget| Step::Tend { budget }),
        1 => Just(Step::Reopen),
        2 => Just(Step::Seal),
        2 => Just(Step::Apply),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn segments_are_what_the_disks_showed(leased_later in any::<bool>(), steps in prop::collection::vec(step(), 1..200)) {
        let root = tempfile::tempdir().unwrap();
        let make = || open(root.path(), &DISKS, BUSY).unwrap();
        let mut overlay = make();
        let mut deeds: Vec<Deed> = Vec::new();
        let (mut acked, mut sent) = (0, blank());
        let mut sealed: Option<(u64, Vec<Told>)> = None;
        let (leased_at, count) = (if leased_later { steps.len() / 3 } else { 0 }, steps.len());
        // At the end all that is left is sent.
        let last = [Step::Apply, Step::Flush, Step::Seal, Step::Apply];
        for (i, step) in steps.into_iter().chain(last).enumerate() {
            if i == leased_at {
                overlay.send_after(0).unwrap();
            }
            match step {
                Step::Write { disk, at, len, fill } => {
                    let data: Vec<u8> = (0..len).map(|j| fill ^ (i as u8) ^ (j / 97) as u8).collect();
                    if let Ok(seq) = overlay.write(disk, at, &data) {
                        deeds.push(Deed { seq, disk, at, data });
                    }
                }
                Step::Zero { disk, at, len, hole } => {
                    if let Ok(seq) = overlay.zero(disk, at, len, hole) {
                        deeds.push(Deed { seq, disk, at, data: vec![0; len as usize] });
                    }
                }
                Step::Flush => overlay.flush().unwrap(),
                Step::Tend { budget } => {
                    overlay.tend(budget).unwrap();
                }
                Step::Reopen => {
                    drop(overlay);
                    overlay = make();
                    if i >= leased_at {
                        overlay.send_after(acked).unwrap();
                    }
                    if let Some((to, _)) = &sealed {
                        overlay.hold(acked, *to);
                    }
                }
                Step::Seal if i >= leased_at && sealed.is_none() => {
                    let to = overlay.hold(acked, u64::MAX);
                    prop_assert!(to <= overlay.flushed_seq());
                    if to > acked {
                        overlay.hold(acked, to);
                        sealed = Some((to, told(&overlay, overlay.changes(acked, to))));
                    } else {
                        overlay.release(acked);
                    }
                }
                Step::Apply => {
                    if let Some((to, ranges)) = sealed.take() {
                        let again = told(&overlay, overlay.changes(acked, to));
                        prop_assert!(again == ranges, "made again it is another segment");
                        apply(&mut sent, &overlay, overlay.changes(acked, to));
                        prop_assert!(sent == shown(&deeds, to), "not what the disks showed at record {to}");
                        acked = to;
                        overlay.release(acked);
                    }
                }
                Step::Seal => {}
            }
        }
        prop_assert!(count == 0 || sent == shown(&deeds, u64::MAX), "all of it is there");
        let mut fork = blank();
        apply(&mut fork, &overlay, overlay.changes_to_base());
        prop_assert!(fork == shown(&deeds, u64::MAX));
        let before = told(&overlay, overlay.changes_to_base());
        drop(overlay);
        let overlay = make();
        prop_assert!(told(&overlay, overlay.changes_to_base()) == before);
    }
}

#[test]
fn more_places_than_a_window_holds_are_told_in_several() {
    const DISK: u64 = 1 << 20;
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[DISK], BUSY).unwrap();
    overlay.send_after(0).unwrap();
    // 60 to a window, and each range is apart.
    let places: Vec<u64> = (0..500).map(|i| (i * 7919 % 1000) * 1024).collect();
    for (i, at) in places.iter().enumerate() {
        overlay.write(0, *at, &[i as u8 | 1; 512]).unwrap();
    }
    overlay.flush().unwrap();
    let to = overlay.hold(0, u64::MAX);
    let ranges = told(&overlay, overlay.changes(0, to));
    let mut expected: Vec<Told> = places
        .iter()
        .enumerate()
        .map(|(i, at)| (0, *at, Some(vec![i as u8 | 1; 512])))
        .collect();
    expected.sort_by_key(|(_, at, _)| *at);
    assert!(ranges == expected);
}

#[test]
fn what_is_held_stays_and_goes_when_it_is_released() {
    let root = tempfile::tempdir().unwrap();
    let overlay = open(root.path(), &[64 * KIB], SMALL).unwrap();
    let fill = |byte: u8| {
        overlay.write(0, 0, &vec![byte; 64 << 10]).unwrap();
        overlay.flush().unwrap();
    };
    overlay.send_after(0).unwrap();
    fill(1);
    let to = overlay.hold(0, u64::MAX);
    overlay.hold(0, to);
    (2..40).for_each(fill);
    while overlay.tend(1 << 20).unwrap().has_more {}
    let files = segment_files(root.path());
    assert!(files[0].ends_with("0000000001.seg"), "{files:?}");
    // Behind the segment nothing is held.
    assert!(files.len() < 8, "{files:?}");
    let ranges = told(&overlay, overlay.changes(0, to));
    assert!(ranges == [(0, 0, Some(vec![1; 64 << 10]))]);
    overlay.release(to);
    fill(40);
    fill(41);
    let files = segment_files(root.path());
    assert!(!files[0].ends_with("0000000001.seg"), "{files:?}");
    let newest = overlay.hold(to, u64::MAX);
    let ranges = told(&overlay, overlay.changes(to, newest));
    assert!(ranges == [(0, 0, Some(vec![41; 64 << 10]))]);
}

#[test]
fn marks_and_moves_of_what_was_sent_make_nothing_to_send() {
    let root = tempfile::tempdir().unwrap();
    let overlay: Arc<Overlay> = open(root.path(), &[80 * 4096], BUSY).unwrap();
    overlay.send_after(0).unwrap();
    // In each segment of the log one block stays live.
    for round in 0..60u8 {
        for block in 0..6 {
            overlay.write(0, block * 4096, &[round; 2048]).unwrap();
        }
        let cold = 10 + u64::from(round);
        overlay.write(0, cold * 4096, &[round; 2048]).unwrap();
    }
    overlay.flush().unwrap();
    let newest = overlay.guest_flushed_seq();
    overlay.release(newest);
    let mut moved = 0;
    for _ in 0..50 {
        moved += overlay.tend(1 << 20).unwrap().moved_bytes;
        overlay.flush().unwrap();
    }
    assert!(moved > 0, "there was something to compact");
    assert!(overlay.flushed_seq() > newest);
    assert_eq!(overlay.guest_flushed_seq(), newest);
}
