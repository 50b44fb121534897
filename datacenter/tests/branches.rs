//! Enrolment and assignment, as the sync server and the API use them.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use datacenter::problem::ManageError;
use datacenter::{JoinError, RenewError};
use datacenter_api::{
    AssignRequest, BranchState, BranchStatus, DesktopStatus, MachineType, PolicyRequest, StartMode,
    TokenRequest,
};
use dedup::{BranchId, VersionId};
use dedup_protocol::join::JoinToken;
use dedup_protocol::policy::Policy;
use dedup_protocol::trust::Trust;
use dedup_transport::identity::{BranchKey, PeerIdentity};
use support::{Bench, START};

fn token(bench: &Bench, name: &str, request: &TokenRequest) -> JoinToken {
    let made = bench.dc.create_join_token(name, request).unwrap();
    made.token.parse().unwrap()
}

fn join(bench: &Bench, name: &str) -> BranchId {
    let token = token(bench, name, &TokenRequest::default());
    let key = BranchKey::generate();
    let joined = bench
        .dc
        .redeem_join_token(&token.secret, key.csr_der(), START)
        .unwrap();
    joined.branch
}

fn assign(bench: &Bench, branch: &str, version: &str) -> Result<VersionId, ManageError> {
    let request = AssignRequest {
        version: version.into(),
        ..AssignRequest::default()
    };
    let pool = bench.dc.assign_pool(branch, "office", &request)?;
    Ok(pool.version_id.parse().unwrap())
}

#[test]
fn caps_and_hours_are_changed_field_by_field_and_follow_a_replaced_server() {
    let bench = Bench::new();
    let branch = join(&bench, "ny");
    assert_eq!(bench.dc.branch_policy(branch).unwrap(), Policy::default());
    let set = |request: PolicyRequest| bench.dc.set_branch_policy("ny", &request);
    let shown = set(PolicyRequest {
        fill_cap_bits_per_s: Some(5_000_000),
        fill_hours: Some("20:00-06:00".into()),
        utc_offset: Some("-05:00".into()),
        ..PolicyRequest::default()
    })
    .unwrap();
    assert_eq!(shown.link_cap_bits_per_s, None);
    assert_eq!(shown.utc_offset, "-05:00");
    let shown = set(PolicyRequest {
        link_cap_bits_per_s: Some(20_000_000),
        ..PolicyRequest::default()
    })
    .unwrap();
    assert_eq!(shown.fill_cap_bits_per_s, Some(5_000_000), "it is kept");
    assert_eq!(shown.fill_hours.as_deref(), Some("20:00-06:00"));
    assert_eq!(bench.dc.branch("ny").unwrap().policy, shown);
    let told = bench.dc.branch_policy(branch).unwrap();
    assert_eq!(told.fill_bytes_per_s, 625_000);
    for bad in [
        PolicyRequest {
            fill_cap_bits_per_s: Some(63_999),
            ..PolicyRequest::default()
        },
        PolicyRequest {
            fill_hours: Some("soon".into()),
            ..PolicyRequest::default()
        },
        PolicyRequest {
            fill_hours: Some("always".into()),
            utc_offset: Some("+01:00".into()),
            ..PolicyRequest::default()
        },
    ] {
        assert!(matches!(set(bad), Err(ManageError::Invalid { .. })));
    }
    assert_eq!(bench.dc.branch_policy(branch).unwrap(), told);

    let request = TokenRequest {
        replace: true,
        ..TokenRequest::default()
    };
    let token = token(&bench, "ny", &request);
    let key = BranchKey::generate();
    let joined = bench
        .dc
        .redeem_join_token(&token.secret, key.csr_der(), START)
        .unwrap();
    assert_ne!(joined.branch, branch);
    assert_eq!(bench.dc.branch_policy(joined.branch).unwrap(), told);
}

#[test]
fn a_token_pays_for_one_server_even_when_many_ask_at_once() {
    let bench = Bench::new();
    let token = token(&bench, "ny", &TokenRequest::default());
    assert_eq!(token.realm, bench.dc.realm());
    assert_eq!(token.ca_hash, bench.dc.ca().cert_hash());
    assert_eq!(token.address, "dc.test:7443");
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let key = BranchKey::generate();
                    let joined = bench
                        .dc
                        .redeem_join_token(&token.secret, key.csr_der(), START);
                    joined.map(|joined| (key, joined))
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let (joined, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(joined.len(), 1);
    for refused in refused {
        assert!(matches!(refused.err(), Some(JoinError::Used { .. })));
    }
    let (key, joined) = joined.into_iter().next().unwrap().ok().unwrap();
    assert_eq!(joined.name, "ny");
    let identity = key
        .with_certificate(&joined.cert_der)
        .unwrap()
        .identity()
        .unwrap();
    let expected = PeerIdentity::Branch {
        realm: bench.dc.realm(),
        branch: joined.branch,
    };
    assert_eq!(identity, expected);
    assert!(!bench.dc.is_revoked(joined.branch).unwrap());
}

#[test]
fn an_answer_lost_on_the_way_can_be_asked_for_again_with_the_same_key() {
    let bench = Bench::new();
    let token = token(&bench, "ny", &TokenRequest::default());
    let key = BranchKey::generate();
    let first = bench
        .dc
        .redeem_join_token(&token.secret, key.csr_der(), START)
        .unwrap();
    // The request is made anew after a restart: same key, another signature.
    let again = BranchKey::from_pem(&key.key_pem()).unwrap();
    let second = bench
        .dc
        .redeem_join_token(&token.secret, again.csr_der(), START + 99)
        .unwrap();
    assert_eq!(first, second);
}

#[test]
fn tokens_that_are_unknown_old_or_malformed_are_refused() {
    let bench = Bench::new();
    let request = TokenRequest {
        expires_s: Some(60),
        ..TokenRequest::default()
    };
    let token = token(&bench, "ny", &request);
    let key = BranchKey::generate();
    let redeem = |secret: &[u8; 32], csr: &[u8], now| bench.dc.redeem_join_token(secret, csr, now);
    assert!(matches!(
        redeem(&[0; 32], key.csr_der(), START),
        Err(JoinError::Unknown)
    ));
    assert!(matches!(
        redeem(&token.secret, b"junk", START),
        Err(JoinError::Request(_))
    ));
    assert!(matches!(
        redeem(&token.secret, key.csr_der(), START + 61),
        Err(JoinError::Expired { .. })
    ));
    redeem(&token.secret, key.csr_der(), START + 60).unwrap();
    for (name, request) in [
        ("a/b", TokenRequest::default()),
        (
            "ok",
            TokenRequest {
                expires_s: Some(0),
                ..TokenRequest::default()
            },
        ),
        (
            "ok",
            TokenRequest {
                expires_s: Some(u64::MAX),
                ..TokenRequest::default()
            },
        ),
    ] {
        let refused = bench.dc.create_join_token(name, &request);
        assert!(
            matches!(refused, Err(ManageError::Invalid { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn a_replaced_server_loses_its_identity_and_the_new_one_inherits_its_pools() {
    let bench = Bench::new();
    bench.image_with_versions("deb", 1);
    let old = join(&bench, "ny");
    let version = assign(&bench, "ny", "deb").unwrap();
    let refused = bench.dc.create_join_token("ny", &TokenRequest::default());
    assert!(
        matches!(refused, Err(ManageError::Conflict { .. })),
        "{refused:?}"
    );

    let replace = TokenRequest {
        replace: true,
        ..TokenRequest::default()
    };
    let token = token(&bench, "ny", &replace);
    assert!(
        !bench.dc.is_revoked(old).unwrap(),
        "until the new server joins, the old one serves"
    );
    let key = BranchKey::generate();
    let new = bench
        .dc
        .redeem_join_token(&token.secret, key.csr_der(), START)
        .unwrap()
        .branch;
    assert_ne!(old, new);
    assert!(bench.dc.is_revoked(old).unwrap());
    assert!(!bench.dc.may_read(old, version).unwrap());
    assert!(bench.dc.may_read(new, version).unwrap());
    let assignment = bench
        .dc
        .assignment(new)
        .unwrap()
        .unwrap()
        .open_own()
        .unwrap();
    assert_eq!((assignment.branch, assignment.pools.len()), (new, 1));
    assert_eq!(bench.dc.branches(None, 10).unwrap().len(), 1);
}

#[test]
fn a_revoked_branch_gets_nothing_and_may_be_invited_again() {
    let bench = Bench::new();
    bench.image_with_versions("deb", 1);
    let branch = join(&bench, "ny");
    let version = assign(&bench, "ny", "deb").unwrap();
    let key = BranchKey::generate();
    bench
        .dc
        .renew_branch_certificate(branch, key.csr_der())
        .unwrap();
    assert!(bench.dc.may_read(branch, version).unwrap());

    let changes = bench.dc.assignment_changes();
    assert_eq!(
        bench.dc.revoke_branch("ny").unwrap().state,
        BranchState::Revoked
    );
    assert!(
        changes.has_changed().unwrap(),
        "the sync server hears of it"
    );
    assert!(bench.dc.is_revoked(branch).unwrap());
    assert!(!bench.dc.may_read(branch, version).unwrap());
    let renewed = bench.dc.renew_branch_certificate(branch, key.csr_der());
    assert!(
        matches!(renewed, Err(RenewError::NotEnrolled { .. })),
        "{renewed:?}"
    );
    let assigned = assign(&bench, "ny", "deb");
    assert!(
        matches!(assigned, Err(ManageError::Conflict { .. })),
        "{assigned:?}"
    );

    let again = join(&bench, "ny");
    assert_ne!(again, branch);
    assert!(bench.dc.is_revoked(branch).unwrap());
    assert!(
        bench.dc.may_read(again, version).unwrap(),
        "its pools were kept"
    );
    assert!(
        bench.dc.is_revoked(BranchId([1; 16])).unwrap(),
        "a stranger counts as revoked"
    );
}

#[test]
fn a_token_made_before_a_revocation_is_worthless_after_it() {
    let bench = Bench::new();
    let token = token(&bench, "ny", &TokenRequest::default());
    bench.dc.revoke_branch("ny").unwrap();
    let key = BranchKey::generate();
    let refused = bench
        .dc
        .redeem_join_token(&token.secret, key.csr_der(), START);
    assert!(matches!(refused, Err(JoinError::Unknown)), "{refused:?}");
}

#[test]
fn assignments_are_signed_count_up_and_are_renewed_before_half_their_time() {
    let bench = Bench::new();
    bench.image_with_versions("deb", 2);
    let branch = join(&bench, "ny");
    assert!(bench.dc.assignment(branch).unwrap().is_none());
    assign(&bench, "ny", "deb@1").unwrap();
    assign(&bench, "ny", "deb@2").unwrap();
    let opened = || {
        let signed = bench.dc.assignment(branch).unwrap().unwrap();
        let trust = Trust::New {
            now_unix_s: bench.dc.now_unix_s(),
        };
        signed
            .open(&bench.dc.anchor(), &bench.dc.endorsements(), trust)
            .unwrap()
    };
    let first = opened();
    assert_eq!((first.counter, first.issued_unix_s), (2, START));
    assert_eq!(first.expires_unix_s, START + 7 * 86_400);
    assert_eq!(first.offline_grace_s, 14 * 86_400);
    bench.clock.advance(3 * 86_400);
    assert_eq!(opened(), first, "more than half is left");
    bench.clock.advance(86_400);
    let second = opened();
    assert_eq!(
        (second.counter, second.issued_unix_s),
        (3, START + 4 * 86_400)
    );
    assert_eq!(second.pools, first.pools);
    // Going back is a new assignment.
    assign(&bench, "ny", "deb@1").unwrap();
    assert_eq!(opened().counter, 4);
    bench.dc.remove_pool("ny", "office").unwrap();
    assert_eq!((opened().counter, opened().pools.len()), (5, 0));
}

#[test]
fn a_branch_reads_what_its_pools_run_or_pin_and_what_a_desktop_still_runs() {
    let bench = Bench::new();
    bench.image_with_versions("deb", 3);
    let id = |n: u32| bench.dc.version_named(&format!("deb@{n}")).unwrap().id;
    let version = |n: u32| id(n).parse::<VersionId>().unwrap();
    let ny = join(&bench, "ny");
    let la = join(&bench, "la");
    let request = AssignRequest {
        version: "deb@2".into(),
        pinned: Some(vec!["deb@1".into()]),
        ..AssignRequest::default()
    };
    bench.dc.assign_pool("ny", "office", &request).unwrap();
    let may = |branch, n| bench.dc.may_read(branch, version(n)).unwrap();
    assert_eq!([may(ny, 1), may(ny, 2), may(ny, 3)], [true, true, false]);
    assert_eq!([may(la, 1), may(la, 2), may(la, 3)], [false; 3]);

    let request = AssignRequest {
        version: "deb@3".into(),
        pinned: Some(vec![]),
        ..AssignRequest::default()
    };
    bench.dc.assign_pool("ny", "office", &request).unwrap();
    assert_eq!([may(ny, 1), may(ny, 2), may(ny, 3)], [false, false, true]);
    let running = |n| BranchStatus {
        desktops: vec![DesktopStatus {
            version: id(n),
            ..DesktopStatus::default()
        }],
        ..BranchStatus::default()
    };
    bench.dc.record_branch_status(ny, running(2)).unwrap();
    assert_eq!(
        [may(ny, 1), may(ny, 2)],
        [false, true],
        "a desktop must not lose its disk"
    );
    // Saying so is not enough: it must have been assigned there once.
    bench.dc.record_branch_status(la, running(2)).unwrap();
    assert!(!may(la, 2));
}

#[test]
fn fields_left_out_of_an_assignment_keep_what_the_pool_has() {
    let bench = Bench::new();
    bench.image_with_versions("deb", 2);
    join(&bench, "ny");
    let request = AssignRequest {
        version: "deb@1".into(),
        pinned: Some(vec!["deb@2".into()]),
        memory_mib: Some(2048),
        vcpus: Some(4),
        prestage: Some(false),
        machine: Some(MachineType::Qemu),
        tpm: Some(true),
        user_volume_mib: Some(8192),
        pooled: Some(true),
        start: Some(StartMode::Boot),
        channel: None,
    };
    bench.dc.assign_pool("ny", "office", &request).unwrap();
    assign(&bench, "ny", "deb").unwrap();
    let pool = bench.dc.pools("ny").unwrap().remove(0);
    assert_eq!(
        (pool.version.as_str(), pool.pinned.as_slice()),
        ("deb@2", &["deb@2".to_owned()][..])
    );
    assert_eq!(
        (pool.memory_mib, pool.vcpus, pool.prestage),
        (2048, 4, false)
    );
    assert_eq!((pool.machine, pool.tpm), (MachineType::Qemu, true));
    assert_eq!((pool.user_volume_mib, pool.pooled), (8192, true));
    let request = AssignRequest {
        version: "deb".into(),
        user_volume_mib: Some(63),
        ..AssignRequest::default()
    };
    let refused = bench.dc.assign_pool("ny", "office", &request).unwrap_err();
    assert!(refused.to_string().contains("64 MiB"), "{refused}");
    let request = AssignRequest {
        version: "deb".into(),
        machine: Some(MachineType::Splice),
        ..AssignRequest::default()
    };
    let refused = bench.dc.assign_pool("ny", "office", &request).unwrap_err();
    assert!(refused.to_string().contains("no TPM"), "{refused}");
    // What a desktop that resumes cannot have is refused as one that boots has it.
    let request = AssignRequest {
        version: "deb".into(),
        start: Some(StartMode::Resume),
        ..AssignRequest::default()
    };
    let refused = bench.dc.assign_pool("ny", "office", &request).unwrap_err();
    assert!(refused.to_string().contains("--start boot"), "{refused}");
    for (version, memory) in [("nope", 1024), ("deb@9", 1024), ("deb", 1)] {
        let request = AssignRequest {
            version: version.into(),
            memory_mib: Some(memory),
            ..AssignRequest::default()
        };
        bench.dc.assign_pool("ny", "office", &request).unwrap_err();
    }
    assert_eq!(
        bench.dc.branch("ny").unwrap().assignment_counter,
        2,
        "refused requests sign nothing"
    );
    let request = |start| AssignRequest {
        version: "deb".into(),
        start,
        ..AssignRequest::default()
    };
    let resume = request(Some(StartMode::Resume));
    let first = bench.dc.assign_pool("ny", "kiosk", &resume).unwrap();
    let kept = bench.dc.assign_pool("ny", "kiosk", &request(None)).unwrap();
    assert_eq!([first.start, kept.start], [StartMode::Resume; 2]);
}

#[test]
fn a_branch_is_online_while_a_link_is_up() {
    let bench = Bench::new();
    let branch = join(&bench, "ny");
    let remote = "192.0.2.1:5".parse().unwrap();
    let first = bench.dc.link_up(branch, remote);
    let second = bench.dc.link_up(branch, remote);
    drop(first);
    let shown = bench.dc.branch("ny").unwrap();
    assert!(shown.online);
    assert_eq!(shown.remote_address.as_deref(), Some("192.0.2.1:5"));
    drop(second);
    assert!(!bench.dc.branch("ny").unwrap().online);
    assert_eq!(bench.dc.online_count(), 0);
}
