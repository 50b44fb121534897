//! A datacenter that was restored from a backup, and branches that went on without it.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use datacenter_api::{BranchState, TokenRequest};
use dedup::BranchId;
use dedup_protocol::join::JoinToken;
use dedup_protocol::records::Assignment;
use dedup_protocol::trust::Signed;
use dedup_transport::identity::BranchKey;
use support::backup::{
    assign, backup, counter, current, introduce, join, open, options, publish, restored,
};
use support::{Bench, START};

/// What was lost with the datacenter: a version, assignments, a renewal, a branch that joined, a revocation.
#[test]
fn branches_go_on_with_what_they_follow_and_nothing_is_rolled_back_silently() {
    let bench = Bench::on_rocks();
    let place = bench.path("elsewhere");
    let dc = &bench.dc;
    dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    let (ny, la, sf) = (join(dc, "ny"), join(dc, "la"), join(dc, "sf"));
    for branch in ["ny", "la", "sf"] {
        assign(dc, branch, "office", "deb@1");
    }
    let invited = dc
        .create_join_token("rome", &TokenRequest::default())
        .unwrap();
    backup(&bench, &place).unwrap();

    // After the backup: la gets a pool of a version that the backup has, ny one of a version that it lacks.
    publish(&bench, "deb", 2);
    assign(dc, "la", "lab", "deb@1");
    assign(dc, "ny", "office", "deb@2");
    assign(dc, "ny", "lab", "deb@1");
    let token: JoinToken = invited.token.parse().unwrap();
    let key = BranchKey::generate();
    let rome = dc
        .redeem_join_token(&token.secret, key.csr_der(), START)
        .unwrap()
        .branch;
    let oslo = join(dc, "oslo");
    assign(dc, "oslo", "office", "deb@1");
    let follow = |branch| current(dc, branch);
    let (of_ny, of_la, of_sf, of_oslo) = (follow(ny), follow(la), follow(sf), follow(oslo));
    let stale = counter(dc, ny);

    let mut wanted = options(&bench, &place, &bench.path("data"));
    wanted.revoke = vec!["sf".into()];
    restored(&wanted).unwrap();
    let restored = open(&bench.path("data"));
    let dc = &restored.dc;
    assert!(dc.restored().unwrap().is_some());
    assert_eq!(dc.branch("sf").unwrap().state, BranchState::Revoked);
    assert!(dc.is_revoked(sf).unwrap());
    assert!(of_sf.open_own().is_ok());

    // la's decision is learned from la: nothing is to be done.
    dc.note_follows(la, counter_of(&of_la)).unwrap();
    assert!(dc.branch("la").unwrap().ahead.is_some());
    introduce(dc, la, "la", Some(&of_la));
    let shown = dc.branch("la").unwrap();
    assert_eq!(shown.ahead, None);
    let pools: Vec<_> = shown.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(pools, ["lab", "office"]);
    assert_eq!(current(dc, la), of_la, "the very record that it follows");

    // ny runs a version that is gone: it goes on, and is told nothing before somebody decided.
    dc.note_follows(ny, counter_of(&of_ny)).unwrap();
    introduce(dc, ny, "ny", Some(&of_ny));
    let ahead = dc.branch("ny").unwrap().ahead.unwrap();
    assert_eq!(
        (ahead.counter, ahead.lost_pools),
        (stale, vec!["office".to_owned()])
    );
    assert!(
        counter(dc, ny) < stale,
        "no renewal, nothing newer to be told"
    );
    assert_eq!(
        dc.branch("ny").unwrap().pools.len(),
        2,
        "what could be learned was"
    );
    assign(dc, "ny", "lab", "deb@1");
    assert!(counter(dc, ny) < stale, "its other pool is not decided yet");
    assign(dc, "ny", "office", "deb@1");
    assert!(counter(dc, ny) > stale);
    assert_eq!(dc.branch("ny").unwrap().ahead, None);
    let warnings = dc.restore_warnings().unwrap();
    assert!(
        warnings.iter().any(|w| w.contains("restored")),
        "{warnings:?}"
    );

    // Who joined since is adopted: by the invitation that is known, or by an unknown one.
    assert!(dc.adopt_branch(rome).unwrap());
    assert_eq!(dc.branch("rome").unwrap().state, BranchState::Joined);
    assert!(dc.adopt_branch(oslo).unwrap());
    assert!(!dc.adopt_branch(oslo).unwrap(), "once");
    assert!(!dc.is_revoked(oslo).unwrap());
    dc.note_follows(oslo, counter_of(&of_oslo)).unwrap();
    introduce(dc, oslo, "oslo", Some(&of_oslo));
    let shown = dc.branch("oslo").unwrap();
    assert_eq!((shown.id, shown.pools.len()), (oslo.to_string(), 1));
    assert!(!dc.adopt_branch(sf).unwrap(), "who is revoked stays so");
    // Its token is spent, whatever the catalog thought.
    let again = dc.redeem_join_token(&token.secret, BranchKey::generate().csr_der(), START);
    assert!(again.is_err());
}

fn counter_of(signed: &Signed<Assignment>) -> u64 {
    signed.open_own().unwrap().counter
}

#[test]
fn what_a_branch_makes_up_is_not_believed() {
    let (bench, other) = (Bench::on_rocks(), Bench::on_rocks());
    let place = bench.path("elsewhere");
    bench.image_with_versions("deb", 1);
    other.image_with_versions("deb", 1);
    let (ny, la) = (join(&bench.dc, "ny"), join(&bench.dc, "la"));
    assign(&bench.dc, "ny", "office", "deb@1");
    backup(&bench, &place).unwrap();
    assign(&bench.dc, "ny", "lab", "deb@1");
    let of_ny = current(&bench.dc, ny);
    let theirs = join(&other.dc, "ny");
    assign(&other.dc, "ny", "office", "deb@1");
    let of_other = current(&other.dc, theirs);
    restored(&options(&bench, &place, &bench.path("data"))).unwrap();
    let restored = open(&bench.path("data"));
    let dc = &restored.dc;

    dc.note_follows(la, u64::MAX).unwrap();
    assert_eq!(
        dc.branch("la").unwrap().ahead,
        None,
        "nobody gives out such counters"
    );
    dc.note_follows(la, 1 << 61).unwrap();
    introduce(dc, la, "ny", Some(&of_ny));
    introduce(dc, la, "la", Some(&of_other));
    let shown = dc.branch("la").unwrap();
    assert!(shown.ahead.is_some() && shown.pools.is_empty(), "{shown:?}");
    assert_eq!(dc.branch("ny").unwrap().id, ny.to_string());
    // Its own lie is all that it pays for.
    assign(dc, "la", "office", "deb@1");
    assert!(counter(dc, la) > 1 << 61);
    assert_eq!(dc.branch("ny").unwrap().ahead, None);
    // A datacenter that was never restored adopts nobody.
    assert!(!bench.dc.adopt_branch(BranchId([9; 16])).unwrap());
    assert!(bench.dc.restore_warnings().unwrap().is_empty());
}
