//! When a snapshot is cut, and which are kept.

use super::*;

fn snapshot(number: u64, taken_unix_s: u64) -> Snapshot {
    Snapshot {
        number,
        line: LINE,
        at: Position {
            seq: number,
            head: Head([number as u8; 32]),
        },
        cut: Cut::None,
        sealed_unix_s: taken_unix_s,
        taken_unix_s,
        is_pinned: false,
        disks: tree(number as u8),
    }
}

#[test]
fn snapshots_are_cut_by_time_by_wish_and_only_of_something_new() {
    let policy = SnapshotPolicy::default();
    let mut line = LineRow::new(LINE, tree(0));
    line.applied = snapshot(1, NOW).at;
    let newest = snapshot(1, NOW);
    let later = NOW + policy.every_s;
    assert_eq!(
        next_cut(&policy, None, &line, Cut::None, NOW),
        Some(Cut::None)
    );
    let cut = |line: &LineRow, cut, now| next_cut(&policy, Some(&newest), line, cut, now);
    assert_eq!(cut(&line, Cut::None, later), None, "nothing new");
    assert_eq!(cut(&line, Cut::LogOff, later), None);
    assert_eq!(cut(&line, Cut::Asked, later), Some(Cut::Asked));
    line.applied = snapshot(2, NOW).at;
    assert_eq!(cut(&line, Cut::None, later - 1), None, "too early");
    assert_eq!(cut(&line, Cut::None, later), Some(Cut::None));
    assert_eq!(cut(&line, Cut::LogOff, NOW + 1), Some(Cut::LogOff));
    assert_eq!(cut(&line, Cut::Frozen, NOW), Some(Cut::Frozen));
    let none = SnapshotPolicy {
        every_s: 0,
        at_log_off: false,
        ..policy
    };
    for wish in [Cut::None, Cut::LogOff] {
        assert_eq!(next_cut(&none, Some(&newest), &line, wish, later), None);
    }
}

#[test]
fn retention_thins_out_with_age_and_never_drops_what_was_asked_for() {
    // One every six hours for thirty days.
    let start = 1_699_833_600;
    let mut all: Vec<Snapshot> = (1..=120)
        .map(|number| snapshot(number, start + number * 6 * 3600))
        .collect();
    all[0].is_pinned = true;
    all[1].cut = Cut::Asked;
    let keep = Retention {
        newest: 2,
        hourly: 4,
        daily: 3,
        weekly: 2,
    };
    let dropped = to_drop(&all, &keep);
    let kept: Vec<u64> = (1..=120).filter(|n| !dropped.contains(n)).collect();
    // Two by wish; the newest of a week, of a day and of four hours before that, and so the newest of all.
    assert_eq!(kept, [1, 2, 95, 115, 117, 118, 119, 120]);
    let rest: Vec<Snapshot> = all
        .into_iter()
        .filter(|s| kept.contains(&s.number))
        .collect();
    assert_eq!(to_drop(&rest, &keep), Vec::<u64>::new(), "at rest");
}
