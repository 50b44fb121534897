//! Clocks, repetitions, refusals: what the explorer does not look at one by one.
#![allow(clippy::unwrap_used, missing_docs)]

use dedup::{BranchId, DesktopId, RealmId};

use super::*;
use crate::state::lease::Lease;
use crate::state::message::{
    AskLease, DenyLease, DenyReason, DropLease, FenceLease, LeaseReturned, ProveLease, RecallLease,
};
use crate::state::{Ended, Generation, Head, Nonce, Position};

const DESKTOP: DesktopId = DesktopId([1; 16]);
const A: BranchId = BranchId([0xA; 16]);
const B: BranchId = BranchId([0xB; 16]);
const TERMS: Terms = Terms {
    lease_s: 100,
    offline_grace_s: 1000,
};
const NOW: u64 = 1_700_000_000;

fn nonce(number: u8) -> Nonce {
    Nonce([number; 16])
}

fn at(seq: u64, head: u8) -> Position {
    Position {
        seq,
        head: Head([head; 32]),
    }
}

/// Nothing was written in this generation.
fn fresh_line() -> Progress {
    Progress {
        applied: Position::START,
        before: Position::START,
        newest: Nonce::NONE,
    }
}

fn nothing() -> Facts {
    Facts {
        acked: Position::START,
        sealed: Nonce::NONE,
        flushed: 0,
    }
}

fn asked(actions: &[HoldAction]) -> AskLease {
    match actions.last() {
        Some(HoldAction::Ask(ask)) => ask.clone(),
        other => panic!("a question, not {other:?}"),
    }
}

/// The lease that an answer grants, as it would be signed.
fn granted(branch: BranchId, actions: &[AuthorityAction]) -> Lease {
    let Some(AuthorityAction::Grant(generation, holder)) = actions.last() else {
        panic!("a grant, not {actions:?}");
    };
    assert_eq!(holder.branch, branch);
    Lease {
        realm: RealmId([9; 16]),
        desktop: DESKTOP,
        branch,
        generation: *generation,
        renewal: holder.renewal,
        nonce: holder.nonce,
        base: holder.base,
        issued_unix_s: holder.issued_unix_s,
        expires_unix_s: holder.expires_unix_s,
        offline_grace_s: holder.offline_grace_s,
    }
}

fn authority() -> Authority {
    Authority::open(AuthorityRow::new(DESKTOP))
}

/// A branch that has just been given the desktop.
fn holding(authority: &mut Authority, branch: BranchId, question: u8) -> Hold {
    let mut hold = Hold::open(branch, HoldRow::new(DESKTOP));
    let ask = asked(&hold.ask(nonce(question), &nothing()).unwrap());
    let answer = authority.ask(branch, &ask, &fresh_line(), &TERMS, 7, NOW);
    let actions = hold.granted(granted(branch, &answer));
    assert!(matches!(
        actions[..],
        [HoldAction::Keep(_), HoldAction::Aim]
    ));
    hold
}

#[test]
fn a_question_is_kept_before_it_is_asked_and_the_same_when_repeated() {
    let mut hold = Hold::open(A, HoldRow::new(DESKTOP));
    let actions = hold.ask(nonce(1), &nothing()).unwrap();
    let HoldAction::Keep(row) = &actions[0] else {
        panic!("kept first: {actions:?}");
    };
    let mut again = Hold::open(A, row.clone());
    let repeated = again.ask(nonce(2), &nothing()).unwrap();
    assert_eq!(repeated, actions[1..]);
}

#[test]
fn a_lease_ends_by_the_latest_time_that_was_seen() {
    let mut authority = authority();
    let mut hold = holding(&mut authority, A, 1);
    for (now, right) in [
        (NOW, Right::Run),
        (NOW + 99, Right::Run),
        (NOW + 100, Right::Grace),
        (NOW + 1099, Right::Grace),
        (NOW + 1100, Right::Over),
    ] {
        assert_eq!(hold.right(now), right, "{now}");
    }
    // Also before it was signed: a clock that is slow wins nothing.
    assert_eq!(hold.right(NOW - 5000), Right::Run);
    let kept = hold.tick(NOW + 1000);
    assert!(matches!(kept[..], [HoldAction::Keep(_)]), "{kept:?}");
    assert_eq!(hold.right(NOW), Right::Grace, "the clock was set back");
    assert_eq!(hold.tick(NOW + 1001), vec![], "not every second");
    let over = hold.tick(NOW + 1100);
    assert_eq!(over[0], HoldAction::Stop);
    // The branch may still ask, and a clock that ran ahead is forgotten with the answer.
    let _ = hold.tick(NOW + 1_000_000);
    let ask = asked(&hold.ask(nonce(2), &nothing()).unwrap());
    let answer = authority.ask(A, &ask, &fresh_line(), &TERMS, 7, NOW + 1200);
    let _ = hold.granted(granted(A, &answer));
    assert_eq!(hold.right(NOW + 1200), Right::Run);
}

#[test]
fn an_answer_that_was_lost_is_given_again_and_one_from_before_is_passed_over() {
    let mut authority = authority();
    let mut hold = holding(&mut authority, A, 1);
    let first = asked(&hold.ask(nonce(2), &nothing()).unwrap());
    let lost = authority.ask(A, &first, &fresh_line(), &TERMS, 7, NOW);
    let again = authority.ask(A, &first, &fresh_line(), &TERMS, 7, NOW + 50);
    assert_eq!(granted(A, &lost), granted(A, &again), "the very same lease");
    assert_eq!(again.len(), 1, "nothing new is kept");
    let lease = granted(A, &again);
    assert_eq!(hold.granted(lease.clone()).len(), 1);
    assert_eq!(hold.granted(lease), vec![], "a repetition");
    // The first lease's question once more: the datacenter asks back, and takes the answer.
    let old = AskLease {
        renewal: 0,
        ..first
    };
    let doubt = authority.ask(A, &old, &fresh_line(), &TERMS, 8, NOW);
    let [AuthorityAction::Prove(prove)] = &doubt[..] else {
        panic!("{doubt:?}");
    };
    let answer = asked(&hold.prove(prove, nonce(3), &nothing()));
    assert_eq!(answer.challenge, 8);
    let fine = authority.ask(A, &answer, &fresh_line(), &TERMS, 9, NOW);
    assert_eq!(granted(A, &fine).renewal, 3);
}

#[test]
fn an_older_copy_is_fenced_by_its_own_answer_only() {
    let mut authority = authority();
    let mut hold = holding(&mut authority, A, 1);
    let copy = hold.clone();
    for question in 2..4 {
        let ask = asked(&hold.ask(nonce(question), &nothing()).unwrap());
        let answer = authority.ask(A, &ask, &fresh_line(), &TERMS, 7, NOW);
        let _ = hold.granted(granted(A, &answer));
    }
    let mut copy = copy;
    let ask = asked(&copy.ask(nonce(9), &nothing()).unwrap());
    let doubt = authority.ask(A, &ask, &fresh_line(), &TERMS, 11, NOW);
    let [AuthorityAction::Prove(prove)] = &doubt[..] else {
        panic!("{doubt:?}");
    };
    let wrong = ProveLease {
        challenge: 10,
        ..prove.clone()
    };
    let guessed = asked(&copy.prove(&wrong, nonce(9), &nothing()));
    let still = authority.ask(A, &guessed, &fresh_line(), &TERMS, 12, NOW);
    assert_eq!(still, doubt, "the same question");
    let proven = asked(&copy.prove(prove, nonce(9), &nothing()));
    let fenced = authority.ask(A, &proven, &fresh_line(), &TERMS, 13, NOW);
    let [
        AuthorityAction::Keep(row, Some(audit)),
        AuthorityAction::Fence(fence),
    ] = &fenced[..]
    else {
        panic!("{fenced:?}");
    };
    assert_eq!(row.holder, None);
    assert!(audit.reason.contains("renewal 1"), "{}", audit.reason);
    let actions = copy.fenced(fence, nonce(20));
    assert_eq!(actions[0], HoldAction::Stop);
    assert_eq!(copy.right(NOW), Right::None);
    let (line, start) = copy.aim().unwrap();
    assert_eq!((line.fork, start), (Some(nonce(20)), Position::START));
    assert_eq!(copy.fenced(fence, nonce(21)), vec![], "a fork has one name");
    assert_eq!(copy.settled(nonce(21)), vec![], "another fork");
    assert_eq!(copy.settled(nonce(20)).len(), 2);
    assert_eq!(copy.aim(), None);
}

#[test]
fn where_a_branch_is_may_lag_by_the_segment_under_way_only() {
    let line = Progress {
        applied: at(20, 2),
        before: at(10, 1),
        newest: nonce(50),
    };
    for (acked, sealed, is_fine) in [
        (at(20, 2), Nonce::NONE, true),
        (at(20, 2), nonce(51), true),
        (at(10, 1), nonce(50), true),
        (at(10, 1), nonce(51), false),
        (at(10, 1), Nonce::NONE, false),
        (at(20, 3), Nonce::NONE, false),
        (at(5, 9), nonce(50), false),
    ] {
        let mut authority = authority();
        let mut hold = holding(&mut authority, A, 1);
        let facts = Facts {
            acked,
            sealed,
            flushed: 30,
        };
        let ask = asked(&hold.ask(nonce(2), &facts).unwrap());
        let answer = authority.ask(A, &ask, &line, &TERMS, 7, NOW);
        let is_granted = matches!(answer.last(), Some(AuthorityAction::Grant(..)));
        assert_eq!(is_granted, is_fine, "{acked:?} {sealed:?}");
    }
}

#[test]
fn a_datacenter_that_was_set_back_fences_nobody() {
    let mut authority = authority();
    let backup = authority.clone();
    let mut hold = holding(&mut authority, A, 1);
    let mut old = backup;
    let ask = asked(&hold.ask(nonce(2), &nothing()).unwrap());
    let denied = old.ask(A, &ask, &fresh_line(), &TERMS, 7, NOW);
    let [AuthorityAction::Deny(deny)] = &denied[..] else {
        panic!("{denied:?}");
    };
    assert_eq!(deny.reason, DenyReason::Behind);
    let told = hold.denied(deny);
    assert_eq!(told, vec![HoldAction::Denied(DenyReason::Behind)]);
    assert_eq!(hold.right(NOW), Right::Run);
    // The same when only the desktop's state is older.
    let facts = Facts {
        acked: at(5, 1),
        sealed: Nonce::NONE,
        flushed: 5,
    };
    let ask = asked(&hold.ask(nonce(2), &facts).unwrap());
    let denied = authority.ask(A, &ask, &fresh_line(), &TERMS, 7, NOW);
    assert!(matches!(&denied[..], [AuthorityAction::Deny(d)] if d.reason == DenyReason::Behind));
}

#[test]
fn a_break_needs_a_reason_and_time_or_force() {
    let mut authority = authority();
    assert_eq!(
        authority.break_lease("why not", true, NOW),
        Err(BreakError::NotHeld)
    );
    let mut hold = holding(&mut authority, A, 1);
    assert_eq!(
        authority.break_lease(" ", true, NOW),
        Err(BreakError::NoReason)
    );
    let early = authority.break_lease("stolen", false, NOW + 1100);
    assert!(matches!(early, Err(BreakError::MayRun { branch: A, .. })));
    let broken = authority.clone().break_lease("stolen", false, NOW + 1400);
    assert!(broken.is_ok(), "all of its time is over");
    let broken = authority.break_lease("stolen", true, NOW).unwrap();
    let AuthorityAction::Keep(_, Some(audit)) = &broken[0] else {
        panic!("{broken:?}");
    };
    assert_eq!(
        (audit.reason.as_str(), audit.ended, audit.branch),
        ("stolen", Ended::Broken, A)
    );
    // Another branch gets it, under a higher generation; what the first one says is only good for a fork.
    let other = holding(&mut authority, B, 2);
    assert_eq!(other.aim().unwrap().0.generation, Generation(2));
    assert_eq!(
        authority.standing(A, Generation(1)),
        Standing::Past(Ended::Broken)
    );
    assert_eq!(authority.standing(B, Generation(1)), Standing::Unknown);
    assert_eq!(authority.standing(A, Generation(2)), Standing::Unknown);
    assert_eq!(authority.standing(B, Generation(2)), Standing::Current);
    assert_eq!(authority.standing_of(Generation(2)), Standing::Current);
    assert_eq!(
        authority.standing_of(Generation(1)),
        Standing::Past(Ended::Broken)
    );
    let ask = asked(&hold.ask(nonce(3), &nothing()).unwrap());
    let fenced = authority.ask(A, &ask, &fresh_line(), &TERMS, 7, NOW);
    assert!(matches!(&fenced[..], [AuthorityAction::Fence(f)] if f.ended == Ended::Broken));
    // Settled by IT: nothing of it is taken any more.
    assert_eq!(authority.forget(Generation(1)).len(), 1);
    assert_eq!(authority.standing(A, Generation(1)), Standing::Unknown);
}

#[test]
fn what_is_given_back_is_drained_and_a_late_question_is_not_granted_again() {
    let mut authority = authority();
    let mut hold = holding(&mut authority, A, 1);
    let behind = Facts {
        acked: Position::START,
        sealed: Nonce::NONE,
        flushed: 3,
    };
    assert_eq!(
        hold.give_back(&behind),
        Err(HoldError::NotDrained {
            acked: 0,
            flushed: 3
        })
    );
    let actions = hold.give_back(&nothing()).unwrap();
    let [
        HoldAction::Stop,
        HoldAction::Keep(_),
        HoldAction::Return(message),
    ] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!(hold.ask(nonce(5), &nothing()), Err(HoldError::Ended));
    let answer = authority.give_back(A, message, &fresh_line(), 7, NOW);
    let again = authority.give_back(A, message, &fresh_line(), 7, NOW);
    assert_eq!(answer[1..], again[..], "the answer was lost");
    let returned = LeaseReturned {
        desktop: DESKTOP,
        generation: Generation(1),
    };
    assert_eq!(hold.returned(&returned).len(), 2);
    assert_eq!(hold.returned(&returned), vec![]);
    // The first question, overtaken by everything.
    let late = AskLease {
        desktop: DESKTOP,
        generation: Generation::NONE,
        renewal: 0,
        nonce: nonce(1),
        challenge: 0,
        acked: Position::START,
        sealed: Nonce::NONE,
        flushed: 0,
    };
    let denied = authority.ask(A, &late, &fresh_line(), &TERMS, 7, NOW);
    assert!(matches!(&denied[..], [AuthorityAction::Deny(d)] if d.reason == DenyReason::Spent));
}

#[test]
fn a_question_that_was_denied_stays_the_same_until_it_is_spent() {
    let mut hold = Hold::open(A, HoldRow::new(DESKTOP));
    let ask = asked(&hold.ask(nonce(1), &nothing()).unwrap());
    let deny = |reason| DenyLease {
        desktop: DESKTOP,
        nonce: nonce(1),
        reason,
        message: String::new(),
    };
    assert_eq!(hold.denied(&deny(DenyReason::Held)).len(), 1);
    assert_eq!(asked(&hold.ask(nonce(2), &nothing()).unwrap()), ask);
    assert_eq!(hold.denied(&deny(DenyReason::Spent)).len(), 2);
    let anew = asked(&hold.ask(nonce(2), &nothing()).unwrap());
    assert_eq!(anew.nonce, nonce(2));
}

#[test]
fn a_lease_that_nobody_asked_for_is_given_back() {
    let mut authority = authority();
    let ask = AskLease {
        desktop: DESKTOP,
        generation: Generation::NONE,
        renewal: 0,
        nonce: nonce(1),
        challenge: 0,
        acked: Position::START,
        sealed: Nonce::NONE,
        flushed: 0,
    };
    let answer = authority.ask(A, &ask, &fresh_line(), &TERMS, 7, NOW);
    let lease = granted(A, &answer);
    let mut hold = Hold::open(A, HoldRow::new(DESKTOP));
    let actions = hold.granted(lease.clone());
    let [HoldAction::Return(message)] = &actions[..] else {
        panic!("{actions:?}");
    };
    let freed = authority.give_back(A, message, &fresh_line(), 7, NOW);
    assert_eq!(freed.len(), 2);
    // Nor is one for somebody else, or of no sense.
    let foreign = Lease {
        branch: B,
        ..lease.clone()
    };
    let endless = Lease {
        offline_grace_s: u64::MAX,
        ..lease
    };
    assert_eq!(hold.granted(foreign), vec![]);
    assert_eq!(hold.granted(endless), vec![]);
}

#[test]
fn a_fence_for_another_desktop_or_generation_does_nothing() {
    let mut authority = authority();
    let mut hold = holding(&mut authority, A, 1);
    for (desktop, generation) in [(DesktopId([2; 16]), 1), (DESKTOP, 2), (DESKTOP, 0)] {
        let fence = FenceLease {
            desktop,
            generation: Generation(generation),
            ended: Ended::Broken,
        };
        assert_eq!(hold.fenced(&fence, nonce(9)), vec![]);
    }
    assert_eq!(hold.right(NOW), Right::Run);
}

#[test]
fn generations_that_may_come_back_are_bounded() {
    let mut authority = authority();
    for round in 0..PAST_MAX {
        let _ = holding(&mut authority, A, 100 + round as u8);
        let _ = authority.break_lease("again", true, NOW).unwrap();
    }
    let mut hold = Hold::open(B, HoldRow::new(DESKTOP));
    let ask = asked(&hold.ask(nonce(1), &nothing()).unwrap());
    let denied = authority.ask(B, &ask, &fresh_line(), &TERMS, 7, NOW);
    assert!(matches!(&denied[..], [AuthorityAction::Deny(d)] if d.reason == DenyReason::Unsettled));
    let _ = authority.forget(Generation(3));
    let answer = authority.ask(B, &ask, &fresh_line(), &TERMS, 7, NOW);
    assert_eq!(
        granted(B, &answer).generation,
        Generation(PAST_MAX as u64 + 1)
    );
}

fn told(actions: &[HoldAction]) -> DropLease {
    match actions.last() {
        Some(HoldAction::Drop(told)) => told.clone(),
        other => panic!("told that it was given up, not {other:?}"),
    }
}

#[test]
fn what_is_given_up_is_told_until_it_is_known_and_comes_back_as_nothing() {
    let mut authority = authority();
    let mut hold = holding(&mut authority, A, 1);
    let actions = hold.drop_writes().unwrap();
    assert!(matches!(
        actions[..],
        [HoldAction::Stop, HoldAction::Keep(_), HoldAction::Leave]
    ));
    assert_eq!(hold.right(NOW), Right::None);
    assert_eq!(hold.aim(), None);
    assert_eq!(hold.ask(nonce(5), &nothing()), Err(HoldError::Ended));
    assert_eq!(hold.drop_writes(), Ok(vec![]), "once");
    let message = told(&hold.tell_dropped(&nothing()));
    assert_eq!(message, told(&hold.tell_dropped(&nothing())));
    let first = authority.drop_lease(A, &message, NOW);
    let again = authority.drop_lease(A, &message, NOW);
    assert_eq!(first[1..], again[..], "the answer was lost");
    assert_eq!(authority.row().holder, None);
    // Not another's, nor one that is unknown.
    for (branch, generation) in [(B, 1), (A, 2)] {
        let message = DropLease {
            desktop: DESKTOP,
            generation: Generation(generation),
        };
        let denied = authority.drop_lease(branch, &message, NOW);
        assert!(
            matches!(&denied[..], [AuthorityAction::Deny(d)] if d.reason == DenyReason::Unknown)
        );
    }
    let returned = LeaseReturned {
        desktop: DESKTOP,
        generation: Generation(1),
    };
    assert_eq!(hold.returned(&returned).len(), 2);
    assert_eq!(hold.tell_dropped(&nothing()), vec![]);
    // A copy of the disk from before: what it wrote is kept aside.
    let ask = AskLease {
        generation: Generation(1),
        renewal: 1,
        ..first_question(1)
    };
    let fenced = authority.ask(A, &ask, &fresh_line(), &TERMS, 7, NOW);
    assert!(matches!(&fenced[..], [AuthorityAction::Fence(f)] if f.ended == Ended::Returned));
}

fn first_question(number: u8) -> AskLease {
    AskLease {
        desktop: DESKTOP,
        generation: Generation::NONE,
        renewal: 0,
        nonce: nonce(number),
        challenge: 0,
        acked: Position::START,
        sealed: Nonce::NONE,
        flushed: 0,
    }
}

#[test]
fn what_a_question_that_is_out_is_granted_is_given_up_as_well() {
    let mut authority = authority();
    let mut hold = Hold::open(A, HoldRow::new(DESKTOP));
    assert_eq!(hold.drop_writes(), Ok(vec![]), "nobody thinks it is here");
    let ask = asked(&hold.ask(nonce(1), &nothing()).unwrap());
    let answer = authority.ask(A, &ask, &fresh_line(), &TERMS, 7, NOW);
    assert_eq!(hold.drop_writes().unwrap().len(), 3);
    assert_eq!(asked(&hold.tell_dropped(&nothing())), ask);
    let actions = hold.granted(granted(A, &answer));
    assert!(matches!(actions[0], HoldAction::Keep(_)));
    let message = told(&actions);
    assert_eq!(message.generation, Generation(1));
    assert_eq!(authority.drop_lease(A, &message, NOW).len(), 2);
    // Where the datacenter knows of nothing, there is nothing to be told.
    let mut other = Hold::open(B, HoldRow::new(DESKTOP));
    let _ = other.ask(nonce(2), &nothing()).unwrap();
    let _ = other.drop_writes().unwrap();
    let mut deny = DenyLease {
        desktop: DESKTOP,
        nonce: nonce(2),
        reason: DenyReason::Held,
        message: String::new(),
    };
    assert_eq!(other.denied(&deny).len(), 1, "it may be granted yet");
    deny.reason = DenyReason::Unknown;
    let of_former = DenyLease {
        nonce: Nonce::NONE,
        ..deny.clone()
    };
    assert_eq!(other.denied(&of_former), vec![], "not of this question");
    assert_eq!(asked(&other.tell_dropped(&nothing())).nonce, nonce(2));
    assert_eq!(other.denied(&deny).len(), 2);
    assert_eq!(other.tell_dropped(&nothing()), vec![]);
}

#[test]
fn what_is_fenced_is_sent_before_it_can_be_given_up() {
    let mut authority = authority();
    let mut hold = holding(&mut authority, A, 1);
    let fence = FenceLease {
        desktop: DESKTOP,
        generation: Generation(1),
        ended: Ended::Broken,
    };
    let mut given_up = hold.clone();
    let _ = hold.fenced(&fence, nonce(9));
    assert_eq!(hold.drop_writes(), Err(HoldError::Ended));
    // The other way round there is nothing left that could be sent.
    let _ = given_up.drop_writes().unwrap();
    assert!(matches!(
        given_up.fenced(&fence, nonce(9))[..],
        [HoldAction::Keep(_), HoldAction::Leave]
    ));
}

#[test]
fn a_recall_holds_until_the_next_lease_says_otherwise() {
    let mut authority = authority();
    let mut hold = holding(&mut authority, A, 1);
    let recall = |generation| RecallLease {
        desktop: DESKTOP,
        generation: Generation(generation),
    };
    hold.recalled(&recall(2));
    assert!(!hold.is_recalled());
    hold.recalled(&recall(1));
    assert!(hold.is_recalled());
    assert_eq!(
        hold.right(NOW),
        Right::Run,
        "it goes on until it is given back"
    );
    let ask = asked(&hold.ask(nonce(2), &nothing()).unwrap());
    let answer = authority.ask(A, &ask, &fresh_line(), &TERMS, 7, NOW);
    let _ = hold.granted(granted(A, &answer));
    assert!(!hold.is_recalled());
}
