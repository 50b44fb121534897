//! What the branch sends, and when.

use super::*;

fn sender(flushed: u64) -> Sender {
    let row = SendRow {
        line: LINE,
        acked: Position::START,
        sealed: None,
    };
    let mut sender = Sender::open(row, flushed, NOW);
    assert_eq!(sender.linked(), vec![]);
    sender
}

const POLICY: SealPolicy = SealPolicy {
    after_s: 30,
    after_records: 1000,
};

#[test]
fn a_segment_is_sealed_when_it_is_old_large_or_wanted() {
    let mut idle = sender(0);
    assert_eq!(idle.poll(&POLICY, SEGMENT, NOW + 1000), vec![]);
    idle.flushed(7, NOW + 1000);
    assert_eq!(idle.poll(&POLICY, SEGMENT, NOW + 1029), vec![]);
    assert_eq!(
        idle.lag(NOW + 1029),
        Lag {
            records: 7,
            behind_s: 29
        }
    );
    let mut wanted = idle.clone();
    let mut large = idle.clone();
    let mut cut = idle.clone();
    assert_eq!(idle.poll(&POLICY, SEGMENT, NOW + 1030).len(), 2);
    wanted.wish(Cut::Asked, 8);
    assert_eq!(
        wanted.poll(&POLICY, SEGMENT, NOW + 1001),
        vec![],
        "not durable yet"
    );
    wanted.flushed(9, NOW + 1001);
    let sealed = wanted.poll(&POLICY, SEGMENT, NOW + 1001);
    let SendAction::Keep(row) = &sealed[0] else {
        panic!("{sealed:?}");
    };
    let sealed = row.sealed.as_ref().unwrap();
    assert_eq!((sealed.to, sealed.cut), (9, Cut::Asked));
    large.flushed(1000, NOW + 1001);
    assert_eq!(large.poll(&POLICY, SEGMENT, NOW + 1001).len(), 2);
    cut.unlinked();
    assert_eq!(cut.poll(&POLICY, SEGMENT, NOW + 5000), vec![], "no link");
    assert_eq!(cut.lag(NOW + 5000).behind_s, 4000);
}

#[test]
fn a_cut_costs_one_part_and_a_crash_changes_nothing() {
    let mut sender = sender(10);
    let actions = sender.poll(&POLICY, SEGMENT, NOW + 30);
    let make = |part| SendAction::Make {
        after: 0,
        to: 10,
        part,
    };
    assert_eq!(actions[1], make(0));
    let ranges = part(&[1]).encode();
    let offered = sender.made(10, 0, ranges.clone(), false);
    let [SendAction::Offer(offer)] = &offered[..] else {
        panic!("{offered:?}");
    };
    assert_eq!(sender.made(10, 0, ranges.clone(), false), vec![], "once");
    let want = WantChunks {
        line: LINE,
        segment: SEGMENT,
        part: 0,
        wanted: vec![0],
    };
    let sent = sender.wanted(&want);
    assert_eq!(sent, [SendAction::SendChunks(want.clone())]);
    let staged = PartStaged {
        line: LINE,
        segment: SEGMENT,
        part: 0,
        head: behind(offer),
    };
    let actions = sender.staged(&staged);
    let [SendAction::Keep(row), next] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(*next, make(1));
    assert_eq!(sender.staged(&staged), vec![], "a repetition");
    // A crash: from the row it goes on with the same part of the same segment, though more is durable now.
    let mut again = Sender::open(row.clone(), 12, NOW + 31);
    assert_eq!(again.linked(), [make(1)]);
    again.unlinked();
    assert_eq!(again.linked(), [make(1)]);
    let offered = again.made(10, 1, ranges, true);
    let [SendAction::Offer(last)] = &offered[..] else {
        panic!("{offered:?}");
    };
    assert_eq!((last.head, last.segment), (behind(offer), SEGMENT));
    let applied = SegmentApplied {
        line: LINE,
        segment: SEGMENT,
        at: Position {
            seq: 10,
            head: behind(last),
        },
    };
    let foreign = SegmentApplied {
        segment: Nonce([6; 16]),
        ..applied.clone()
    };
    assert_eq!(again.applied(&foreign), vec![]);
    let actions = again.applied(&applied);
    assert!(matches!(
        actions[..],
        [SendAction::Keep(_), SendAction::Release(10)]
    ));
    assert_eq!(again.row().acked, applied.at);
    assert_eq!(
        again.lag(NOW + 40),
        Lag {
            records: 2,
            behind_s: 10
        }
    );
    assert_eq!(again.applied(&applied), vec![]);
}

#[test]
fn a_fork_is_all_of_the_overlay_and_settles_when_it_is_there() {
    let mut sender = sender(10);
    sender.poll(&POLICY, SEGMENT, NOW + 30);
    let fork = Nonce([8; 16]);
    let line = Line {
        fork: Some(fork),
        ..LINE
    };
    let kept = sender.aim(line, Position::START, 10, NOW);
    assert!(matches!(kept[..], [SendAction::Keep(_)]));
    assert_eq!(sender.aim(line, Position::START, 10, NOW), vec![]);
    let actions = sender.poll(&POLICY, Nonce([9; 16]), NOW);
    let make = SendAction::Make {
        after: 0,
        to: 10,
        part: 0,
    };
    assert_eq!(actions[1], make);
    sender.made(10, 0, part(&[1]).encode(), true);
    let applied = SegmentApplied {
        line,
        segment: Nonce([9; 16]),
        at: Position {
            seq: 10,
            head: Head([1; 32]),
        },
    };
    let actions = sender.applied(&applied);
    assert_eq!(actions[2], SendAction::Settled(fork));
    // And after a crash between the two.
    let mut again = Sender::open(sender.row().clone(), 10, NOW);
    let actions = again.poll(&POLICY, Nonce([10; 16]), NOW);
    assert_eq!(actions, [SendAction::Settled(fork)]);
}
