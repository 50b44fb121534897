//! The control stream: which assignments a branch follows, and what ends the stream.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{BRANCH, REALM, anchor, endorsement, publisher_key, root_key};
use dedup::{BranchId, DesktopId, RealmId, VersionId};
use dedup_protocol::control::{
    BranchAction, BranchControl, ControlError, DatacenterAction, DatacenterControl,
};
use dedup_protocol::people::verifier::Verifier;
use dedup_protocol::people::{Person, Roster};
use dedup_protocol::policy::{Hours, Policy};
use dedup_protocol::records::{Assignment, MachineType};
use dedup_protocol::state::checkout::{Checkout, UserVolume};
use dedup_protocol::state::message::{FenceLease, ProveLease, RecallLease};
use dedup_protocol::state::moved::MovedDesktop;
use dedup_protocol::state::{Ended, Generation};
use dedup_protocol::trust::{Endorsement, SigningKey, TrustError};
use dedup_protocol::wipe::{Target, Wipe, Wiped};
use dedup_protocol::wire::{
    Der, Hello, Message, PROTOCOL_MINOR, Refuse, RefuseCode, SignedBytes, StatusReport, Welcome,
    WireError,
};

const NOW: u64 = 1_700_000_000;

fn assignment(counter: u64) -> Assignment {
    Assignment {
        realm: REALM,
        branch: BRANCH,
        counter,
        issued_unix_s: NOW,
        expires_unix_s: NOW + 100,
        offline_grace_s: 1000,
        pools: vec![],
    }
}

fn frame(key: &SigningKey, assignment: &Assignment) -> Vec<u8> {
    let bytes = key.sign(assignment).to_bytes();
    Message::Assign(SignedBytes { bytes }).encode()
}

fn welcome(minor: u16, endorsements: Vec<Endorsement>) -> Vec<u8> {
    Message::Welcome(Welcome {
        minor,
        software: "9.9".into(),
        now_unix_s: NOW,
        endorsements,
    })
    .encode()
}

/// A branch past its greeting, that follows assignment `counter`.
fn greeted(counter: u64) -> BranchControl {
    let mut control = BranchControl::new(BRANCH, anchor(), vec![], counter);
    let action = control.handle(&welcome(PROTOCOL_MINOR, vec![endorsement()]), NOW);
    assert!(matches!(action, Ok(BranchAction::Welcomed(_))));
    control
}

#[test]
fn caps_and_hours_are_kept_when_they_make_sense_and_only_after_the_greeting() {
    let policy = Policy {
        link_bytes_per_s: 0,
        fill_bytes_per_s: 1000,
        fill_hours: Some(Hours {
            from_min: 1439,
            until_min: 0,
            utc_offset_min: 840,
        }),
    };
    let frame = Message::Policy(policy).encode();
    let kept = greeted(0).handle(&frame, NOW);
    assert!(matches!(kept, Ok(BranchAction::Keep(p)) if p == policy));
    let mut early = BranchControl::new(BRANCH, anchor(), vec![], 0);
    assert!(early.handle(&frame, NOW).is_err(), "before the greeting");
    let beyond = Policy {
        fill_hours: Some(Hours {
            from_min: 1440,
            until_min: 0,
            utc_offset_min: 0,
        }),
        ..policy
    };
    let refused = greeted(0).handle(&Message::Policy(beyond).encode(), NOW);
    assert!(matches!(
        refused,
        Err(ControlError::Wire(WireError::Malformed { name: "Policy" }))
    ));
}

#[test]
fn counters_only_go_up() {
    let key = publisher_key();
    let mut control = greeted(5);
    let Ok(BranchAction::Follow(followed, signed)) =
        control.handle(&frame(&key, &assignment(6)), NOW)
    else {
        panic!("a newer assignment is followed");
    };
    assert_eq!(
        (*followed, signed.open_own()),
        (assignment(6), Ok(assignment(6)))
    );
    for stale in [6, 5, 1, 0] {
        let action = control
            .handle(&frame(&key, &assignment(stale)), NOW)
            .unwrap();
        assert!(matches!(action, BranchAction::Stale { counter } if counter == stale));
    }
    // The hello of the next connection tells how far it is.
    let Message::Hello(hello) = control.hello("0.1") else {
        panic!()
    };
    assert_eq!(hello.assignment_counter, 6);
}

#[test]
fn an_assignment_that_ran_out_is_not_followed_and_does_not_block_the_next() {
    let key = publisher_key();
    let mut control = greeted(0);
    let mut late = assignment(9);
    late.expires_unix_s = NOW - 1;
    let action = control.handle(&frame(&key, &late), NOW).unwrap();
    assert!(
        matches!(action, BranchAction::Expired { expires_unix_s } if expires_unix_s == NOW - 1)
    );
    // At its last second it still counts.
    late.expires_unix_s = NOW;
    let action = control.handle(&frame(&key, &late), NOW).unwrap();
    assert!(matches!(action, BranchAction::Follow(..)));
}

#[test]
fn foreign_forged_and_bent_assignments_end_the_stream() {
    let key = publisher_key();
    let mut other_branch = assignment(6);
    other_branch.branch = BranchId([9; 16]);
    let refused = greeted(0).handle(&frame(&key, &other_branch), NOW);
    assert!(matches!(refused, Err(ControlError::WrongBranch(id)) if id == BranchId([9; 16])));

    let mut other_realm = assignment(6);
    other_realm.realm = RealmId([9; 16]);
    let refused = greeted(0).handle(&frame(&key, &other_realm), NOW);
    assert!(matches!(
        refused,
        Err(ControlError::Trust(TrustError::Realm { .. }))
    ));

    // By a stranger, and by the root, which endorses and never signs records.
    for signer in [SigningKey::generate().0, root_key()] {
        let refused = greeted(0).handle(&frame(&signer, &assignment(6)), NOW);
        assert!(matches!(
            refused,
            Err(ControlError::Trust(TrustError::Signature { .. }))
        ));
    }
    // A stranger who brings an endorsement of his own in the greeting.
    let (stranger, _) = SigningKey::generate();
    let forged = stranger.endorse(REALM, stranger.public(), u64::MAX);
    let mut control = BranchControl::new(BRANCH, anchor(), vec![], 0);
    control.handle(&welcome(1, vec![forged]), NOW).unwrap();
    assert!(
        control
            .handle(&frame(&stranger, &assignment(6)), NOW)
            .is_err()
    );

    let bent = {
        let mut bytes = frame(&key, &assignment(6));
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    assert!(greeted(0).handle(&bent, NOW).is_err());
    assert!(
        greeted(0).handle(&[1, 0x03, 0], NOW).is_err(),
        "an empty envelope"
    );
}

#[test]
fn an_endorsement_that_ended_gives_no_new_trust() {
    let until = 2_000_000_000;
    let mut far = assignment(6);
    far.expires_unix_s = u64::MAX;
    let frame = frame(&publisher_key(), &far);
    assert!(matches!(
        greeted(0).handle(&frame, until),
        Ok(BranchAction::Follow(..))
    ));
    let refused = greeted(0).handle(&frame, until + 1);
    assert!(matches!(
        refused,
        Err(ControlError::Trust(TrustError::EndorsementExpired { .. }))
    ));
}

/// Within a major version the older end must be able to talk to the newer.
#[test]
fn a_newer_minor_is_greeted_and_its_unknown_messages_are_named() {
    let mut control = BranchControl::new(BRANCH, anchor(), vec![], 0);
    let action = control
        .handle(&welcome(PROTOCOL_MINOR + 7, vec![endorsement()]), NOW)
        .unwrap();
    assert!(matches!(action, BranchAction::Welcomed(w) if w.minor == PROTOCOL_MINOR + 7));
    let error = control.handle(&[1, 0x7F, 0], NOW).unwrap_err();
    assert!(matches!(error, ControlError::Wire(WireError::Tag(0x7F))));
    assert!(
        error.to_string().contains("upgrade the older end"),
        "{error}"
    );

    let mut datacenter = DatacenterControl::new();
    let hello = Message::Hello(Hello {
        minor: PROTOCOL_MINOR + 7,
        software: "9.9".into(),
        assignment_counter: 3,
    });
    let action = datacenter.handle(&hello.encode()).unwrap();
    assert!(matches!(
        action,
        DatacenterAction::Greeted {
            assignment_counter: 3,
            ..
        }
    ));
}

#[test]
fn frames_that_are_not_due_end_the_stream() {
    let assign = frame(&publisher_key(), &assignment(6));
    let renewed = Message::Renewed(Der { bytes: vec![1] }).encode();
    let status = Message::Status(StatusReport { json: "{}".into() }).encode();
    let mut control = BranchControl::new(BRANCH, anchor(), vec![endorsement()], 0);
    for early in [&assign, &renewed, &status] {
        let error = control.handle(early, NOW).unwrap_err();
        assert!(
            error.to_string().ends_with("where Welcome was due"),
            "{error}"
        );
    }
    let mut control = greeted(0);
    let again = control.handle(&welcome(1, vec![]), NOW).unwrap_err();
    assert!(matches!(
        again,
        ControlError::Wire(WireError::Unexpected { got: "Welcome", .. })
    ));
    assert!(
        matches!(control.handle(&renewed, NOW), Ok(BranchAction::Certificate(der)) if der == [1])
    );

    let mut datacenter = DatacenterControl::new();
    assert!(datacenter.handle(&status).is_err());
    datacenter.handle(&control.hello("0.1").encode()).unwrap();
    assert!(datacenter.handle(&control.hello("0.1").encode()).is_err());
    assert!(datacenter.handle(&assign).is_err());
    assert!(matches!(
        datacenter.handle(&status),
        Ok(DatacenterAction::Report(_))
    ));

    let no = Message::Refuse(Refuse {
        code: RefuseCode::Revoked,
        message: "certificate revoked".into(),
    });
    let error = greeted(0).handle(&no.encode(), NOW).unwrap_err();
    assert!(error.to_string().contains("certificate revoked"), "{error}");
}

#[test]
fn word_of_a_lease_comes_behind_the_greeting_only() {
    let fence = Message::FenceLease(FenceLease {
        desktop: DesktopId([1; 16]),
        generation: Generation(3),
        ended: Ended::Broken,
    });
    let prove = Message::ProveLease(ProveLease {
        desktop: DesktopId([1; 16]),
        generation: Generation(3),
        challenge: 9,
    });
    let recall = Message::RecallLease(RecallLease {
        desktop: DesktopId([1; 16]),
        generation: Generation(3),
    });
    let mut control = greeted(0);
    for told in [fence, prove, recall] {
        let heard = control.handle(&told.encode(), NOW).unwrap();
        assert!(matches!(heard, BranchAction::Lease(message) if message == told));
        let mut early = BranchControl::new(BRANCH, anchor(), vec![], 0);
        assert!(early.handle(&told.encode(), NOW).is_err());
    }
}

fn roster(counter: u64) -> Roster {
    let verifier = Verifier::with_cost(b"correct horse", [1; 16], (8, 1, 1)).unwrap();
    let person = |name: &str| Person {
        name: name.into(),
        verifier: verifier.clone(),
        totp: None,
        pools: vec!["office".into()],
    };
    Roster {
        realm: REALM,
        branch: BRANCH,
        counter,
        issued_unix_s: NOW,
        people: vec![person("alice"), person("bob")],
    }
}

fn roster_frame(key: &SigningKey, roster: &Roster) -> Vec<u8> {
    let bytes = key.sign(roster).to_bytes();
    Message::Roster(SignedBytes { bytes }).encode()
}

#[test]
fn a_roster_is_taken_once_signed_for_this_branch_and_in_order() {
    let key = publisher_key();
    let mut control = greeted(0).with_roster(4);
    let action = control
        .handle(&roster_frame(&key, &roster(5)), NOW)
        .unwrap();
    let BranchAction::Admit(taken, signed) = action else {
        panic!("a newer roster is taken");
    };
    assert_eq!((*taken, signed.open_own()), (roster(5), Ok(roster(5))));
    for stale in [5, 4, 0] {
        let frame = roster_frame(&key, &roster(stale));
        let action = control.handle(&frame, NOW).unwrap();
        assert!(matches!(action, BranchAction::Stale { counter } if counter == stale));
    }
    let other = Roster {
        branch: BranchId([0x77; 16]),
        ..roster(6)
    };
    let refused = control.handle(&roster_frame(&key, &other), NOW);
    assert!(matches!(refused, Err(ControlError::WrongBranch(_))));
    let mut twice = roster(6);
    twice.people[1].name = "alice".into();
    let refused = control.handle(&roster_frame(&key, &twice), NOW);
    assert!(matches!(
        refused,
        Err(ControlError::Wire(WireError::Malformed { name: "Roster" }))
    ));
    let (stranger, _) = SigningKey::generate();
    let refused = control.handle(&roster_frame(&stranger, &roster(6)), NOW);
    assert!(matches!(refused, Err(ControlError::Trust(_))));
    let mut early = BranchControl::new(BRANCH, anchor(), vec![], 0);
    let frame = roster_frame(&key, &roster(6));
    assert!(early.handle(&frame, NOW).is_err(), "before the greeting");
}

fn checkout() -> Checkout {
    Checkout {
        realm: REALM,
        branch: BRANCH,
        number: 7,
        name: "alice".into(),
        pool: "office".into(),
        system: DesktopId([1; 16]),
        user: None,
        version: VersionId([2; 32]),
        memory_mib: 1024,
        vcpus: 1,
        machine: MachineType::Auto,
        tpm: false,
        until_unix_s: NOW + 100,
        is_recalled: false,
    }
}

fn wipe(target: Target) -> Wipe {
    Wipe {
        realm: REALM,
        branch: BRANCH,
        number: 8,
        issued_unix_s: NOW,
        target,
    }
}

fn check_out(key: &SigningKey, checkout: &Checkout) -> Vec<u8> {
    let bytes = key.sign(checkout).to_bytes();
    Message::CheckOut(SignedBytes { bytes }).encode()
}

fn wipe_frame(key: &SigningKey, wipe: &Wipe) -> Vec<u8> {
    let bytes = key.sign(wipe).to_bytes();
    Message::Wipe(SignedBytes { bytes }).encode()
}

#[test]
fn checkouts_and_wipes_are_believed_by_their_signature_and_for_this_branch_only() {
    let key = publisher_key();
    let told = greeted(0).handle(&check_out(&key, &checkout()), NOW);
    assert!(matches!(told, Ok(BranchAction::CheckedOut(c, _)) if *c == checkout()));
    let whole = wipe(Target::Branch);
    let told = greeted(0).handle(&wipe_frame(&key, &whole), NOW);
    assert!(matches!(told, Ok(BranchAction::Wipe(w, _)) if *w == whole));
    let noted = Message::Wiped(Wiped { number: 8 }).encode();
    let told = greeted(0).handle(&noted, NOW);
    assert!(matches!(told, Ok(BranchAction::WipeNoted(8))));

    let stranger = SigningKey::generate().0;
    let mut foreign = (checkout(), wipe(Target::Branch));
    foreign.0.branch = BranchId([9; 16]);
    foreign.1.branch = BranchId([9; 16]);
    let mut bent = (checkout(), wipe(Target::Branch));
    bent.0.name.clear();
    bent.1.target = Target::Desktop {
        name: "alice".into(),
        volumes: vec![],
    };
    for (signer, checkout, wipe) in [
        (&stranger, checkout(), wipe(Target::Branch)),
        (&root_key(), checkout(), wipe(Target::Branch)),
        (&key, foreign.0, foreign.1),
        (&key, bent.0, bent.1),
    ] {
        for frame in [check_out(signer, &checkout), wipe_frame(signer, &wipe)] {
            assert!(greeted(0).handle(&frame, NOW).is_err());
        }
    }
    // One does not pass as the other.
    let bytes = key.sign(&wipe(Target::Branch)).to_bytes();
    let mixed = Message::CheckOut(SignedBytes { bytes }).encode();
    assert!(greeted(0).handle(&mixed, NOW).is_err());
    for early in [
        check_out(&key, &checkout()),
        wipe_frame(&key, &whole),
        noted,
    ] {
        let mut control = BranchControl::new(BRANCH, anchor(), vec![endorsement()], 0);
        assert!(control.handle(&early, NOW).is_err(), "before the greeting");
    }
}

/// A thief sets the clock.
#[test]
fn a_wipe_is_believed_also_when_the_endorsement_has_ended() {
    let late = endorsement().until_unix_s + 1;
    let key = publisher_key();
    let told = greeted(0).handle(&wipe_frame(&key, &wipe(Target::Branch)), late);
    assert!(matches!(told, Ok(BranchAction::Wipe(..))));
    let refused = greeted(0).handle(&check_out(&key, &checkout()), late);
    assert!(matches!(
        refused,
        Err(ControlError::Trust(TrustError::EndorsementExpired { .. }))
    ));
}

#[test]
fn that_a_wipe_was_done_is_heard_behind_the_greeting() {
    let done = Message::Wiped(Wiped { number: 8 }).encode();
    let mut datacenter = DatacenterControl::new();
    assert!(datacenter.handle(&done).is_err());
    let hello = greeted(0).hello("0.1").encode();
    datacenter.handle(&hello).unwrap();
    let heard = datacenter.handle(&done);
    assert!(matches!(heard, Ok(DatacenterAction::Wiped(8))));
}

#[test]
fn a_moved_desktop_is_heard_of_behind_the_greeting_and_if_it_makes_sense() {
    let moved = MovedDesktop {
        name: "alice".into(),
        pool: "office".into(),
        identity: DesktopId([1; 16]),
        system: None,
        user: Some(UserVolume {
            id: DesktopId([2; 16]),
            size_bytes: 1 << 30,
        }),
    };
    let frame = |moved: &MovedDesktop| Message::Moved(moved.clone()).encode();
    let told = greeted(0).handle(&frame(&moved), NOW);
    assert!(matches!(told, Ok(BranchAction::Moved(m)) if *m == moved));
    let mut early = BranchControl::new(BRANCH, anchor(), vec![], 0);
    assert!(early.handle(&frame(&moved), NOW).is_err());
    let nothing = MovedDesktop {
        user: None,
        ..moved
    };
    assert!(greeted(0).handle(&frame(&nothing), NOW).is_err());
}
