//! What the datacenter takes, and when.

use super::*;
use crate::wire::{Batch, BatchEncoding};

fn offer(from: Position, segment: Nonce, number: u32, is_last: bool, part: &Part) -> OfferPart {
    OfferPart {
        line: LINE,
        from,
        segment,
        to: from.seq + 10,
        part: number,
        is_last,
        head: from.head,
        cut: Cut::LogOff,
        sealed_unix_s: NOW,
        ranges: part.encode(),
    }
}

fn receiver() -> Receiver {
    Receiver::open(LineRow::new(LINE, tree(0))).0
}

fn names(actions: &[ReceiveAction]) -> Vec<&'static str> {
    let name = |action: &ReceiveAction| match action {
        ReceiveAction::Keep { .. } => "keep",
        ReceiveAction::Build { .. } => "build",
        ReceiveAction::Want(_) => "want",
        ReceiveAction::Staged(_) => "staged",
        ReceiveAction::Applied(_) => "applied",
        ReceiveAction::Restart(_) => "restart",
        ReceiveAction::Doubt(_) => "doubt",
        ReceiveAction::Fence(_) => "fence",
    };
    actions.iter().map(name).collect()
}

#[test]
fn a_segment_is_applied_when_all_of_it_is_durable() {
    let mut receiver = receiver();
    let (first, second) = (part(&[1, 2]), part(&[3]));
    let current = Standing::Current;
    let one = offer(Position::START, SEGMENT, 0, false, &first);
    let actions = receiver.offer(current, &one, &first, &[1]).unwrap();
    let [ReceiveAction::Want(want)] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(want.wanted, [1]);
    let frame = |count| PartChunks {
        line: LINE,
        segment: SEGMENT,
        part: 0,
        batch: Batch {
            count,
            encoding: BatchEncoding::Each,
            packed: vec![],
        },
    };
    assert!(receiver.expected(&frame(2)).is_err(), "one is due");
    assert!(receiver.expected(&frame(0)).is_err(), "nothing");
    let due = receiver.expected(&frame(1)).unwrap();
    assert_eq!(due, [(ChunkId([2; 32]), 4096)]);
    let actions = receiver.stored(current, 1);
    assert_eq!(names(&actions), ["keep", "staged"]);
    assert!(receiver.expected(&frame(1)).is_err(), "no longer due");
    // Once more: its answer was lost.
    let again = receiver.offer(current, &one, &first, &[]).unwrap();
    assert_eq!(again, actions[1..]);
    assert_eq!(receiver.row().applied, Position::START);
    let two = OfferPart {
        head: behind(&one),
        ..offer(Position::START, SEGMENT, 1, true, &second)
    };
    let actions = receiver.offer(current, &two, &second, &[]).unwrap();
    assert_eq!(names(&actions), ["keep", "staged", "build"]);
    // A crash here: the row says what is to be done.
    let (mut receiver, left) = Receiver::open(receiver.row().clone());
    assert_eq!(left, [ReceiveAction::Build { segment: SEGMENT }]);
    assert!(receiver.built(current, Nonce([6; 16]), tree(9)).is_empty());
    let actions = receiver.built(current, SEGMENT, tree(1));
    assert_eq!(names(&actions), ["keep", "applied"]);
    let ReceiveAction::Keep {
        row,
        drops_parts,
        part,
        cut,
    } = &actions[0]
    else {
        panic!("{actions:?}");
    };
    assert_eq!((*drops_parts, part, *cut), (true, &None, Cut::LogOff));
    assert_eq!(
        row.applied,
        Position {
            seq: 10,
            head: behind(&two)
        }
    );
    assert_eq!((&row.disks, row.newest), (&tree(1), SEGMENT));
    // Whichever part is repeated now, the answer is that it is done.
    for late in [&one, &two] {
        let again = receiver.offer(current, late, &first, &[]).unwrap();
        assert_eq!(again, actions[1..]);
    }
}

#[test]
fn parts_follow_the_very_bytes_before_them() {
    let mut receiver = receiver();
    let part = part(&[1]);
    let current = Standing::Current;
    let one = offer(Position::START, SEGMENT, 0, false, &part);
    let two = |head| OfferPart {
        head,
        ..offer(Position::START, SEGMENT, 1, true, &part)
    };
    let early = receiver.offer(current, &two(behind(&one)), &part, &[]);
    assert_eq!(names(&early.unwrap()), ["restart"]);
    receiver.offer(current, &one, &part, &[]).unwrap();
    let other = receiver.offer(current, &two(Head([9; 32])), &part, &[]);
    assert_eq!(names(&other.unwrap()), ["restart"]);
    // Another segment from the same place takes the place of what is staged.
    let another = offer(Position::START, Nonce([6; 16]), 0, true, &part);
    let actions = receiver.offer(current, &another, &part, &[]).unwrap();
    let ReceiveAction::Keep { drops_parts, .. } = &actions[0] else {
        panic!("{actions:?}");
    };
    assert!(*drops_parts);
    let late = receiver.offer(current, &two(behind(&one)), &part, &[]);
    assert_eq!(names(&late.unwrap()), ["restart"]);
    // From elsewhere: the branch is asked where it is.
    let from = Position {
        seq: 5,
        head: Head([5; 32]),
    };
    let elsewhere = offer(from, Nonce([7; 16]), 0, true, &part);
    let actions = receiver.offer(current, &elsewhere, &part, &[]).unwrap();
    assert_eq!(actions, [ReceiveAction::Doubt(Generation(1))]);
}

#[test]
fn what_may_not_be_written_is_refused_at_every_step() {
    let part = part(&[1]);
    let broken = Standing::Past(Ended::Broken);
    let one = offer(Position::START, SEGMENT, 0, true, &part);
    let mut receiver = receiver();
    let actions = receiver.offer(broken, &one, &part, &[]).unwrap();
    assert_eq!(actions, [ReceiveAction::Fence(Ended::Broken)]);
    assert_eq!(
        receiver.offer(Standing::Unknown, &one, &part, &[]),
        Err(ReceiveError::NotYours)
    );
    // Broken while chunks are on their way, and while the manifest is built.
    receiver
        .offer(Standing::Current, &one, &part, &[0])
        .unwrap();
    assert!(receiver.stored(broken, 1).is_empty());
    receiver.offer(Standing::Current, &one, &part, &[]).unwrap();
    assert!(receiver.built(broken, SEGMENT, tree(1)).is_empty());
    assert_eq!(receiver.row().applied, Position::START);
    // A fork is for what has ended.
    let fork = OfferPart {
        line: Line {
            fork: Some(Nonce([8; 16])),
            ..LINE
        },
        ..one.clone()
    };
    assert_eq!(
        receiver.offer(Standing::Current, &fork, &part, &[]),
        Err(ReceiveError::NotYours)
    );
    let empty = OfferPart {
        to: 0,
        ..one.clone()
    };
    let huge = OfferPart {
        part: u32::MAX,
        ..one.clone()
    };
    let missing = receiver.offer(Standing::Current, &one, &Part::default(), &[0]);
    for refused in [
        receiver.offer(Standing::Current, &empty, &part, &[]),
        receiver.offer(Standing::Current, &huge, &part, &[]),
    ] {
        assert!(refused.is_err());
    }
    // The very part is staged already, so its chunks are not looked at.
    assert_eq!(names(&missing.unwrap()), ["staged"]);
}

#[test]
fn a_later_generation_goes_on_behind_what_is_applied() {
    let part = part(&[1]);
    let mut receiver = receiver();
    let one = offer(Position::START, SEGMENT, 0, true, &part);
    receiver.offer(Standing::Current, &one, &part, &[]).unwrap();
    receiver.built(Standing::Current, SEGMENT, tree(1));
    // Of the next segment only a part came when the lease was broken.
    let applied = receiver.row().applied;
    let left = offer(applied, Nonce([6; 16]), 0, false, &part);
    receiver
        .offer(Standing::Current, &left, &part, &[])
        .unwrap();
    let begun = receiver.row().progress(Generation(2));
    assert_eq!(begun.applied, Position::begin(applied.head));
    let next = OfferPart {
        line: Line {
            generation: Generation(2),
            ..LINE
        },
        ..offer(begun.applied, Nonce([7; 16]), 0, true, &part)
    };
    let actions = receiver.offer(Standing::Current, &next, &part, &[]);
    assert_eq!(names(&actions.unwrap()), ["keep", "staged", "build"]);
    let actions = receiver.built(Standing::Current, Nonce([7; 16]), tree(2));
    assert_eq!(names(&actions), ["keep", "applied"]);
    assert_eq!(receiver.row().line.generation, Generation(2));
    assert_eq!(receiver.row().applied.seq, 10);
}
