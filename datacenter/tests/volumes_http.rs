//! Volumes over a real port, with the typed client: what a branch left is shown, kept, exported, taken from it and deleted.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use datacenter::clock::SetClock;
use datacenter::daemon::{RunOptions, open};
use datacenter_api::{
    AssignRequest, BreakLeaseRequest, ClientError, ExportRequest, OperationResult, ProblemCode,
    ReasonRequest, StatePolicyRequest, VolumeKind,
};
use dedup::DesktopId;
use support::daemon::{Daemon, init};
use support::site::{Site, join};
use support::{Bench, START, sparse_disk};

fn code(result: Result<impl std::fmt::Debug, ClientError>) -> ProblemCode {
    match result {
        Err(ClientError::Problem(problem)) => problem.error,
        other => panic!("{other:?}"),
    }
}

/// A branch holds a volume and has written to it. Answers what that shows.
fn lived_in(data: &Path) -> Vec<u8> {
    let (dc, _lock) = open(data, &RunOptions::default()).unwrap();
    let bench = Bench {
        dc,
        clock: Arc::new(SetClock::new(START)),
        dir: tempfile::tempdir().unwrap(),
    };
    bench.dc.create_image("deb", None).unwrap();
    let file = bench.path("disk.raw");
    sparse_disk(&file, 1 << 20, &[(0, 300_000)], 9);
    bench.publish("deb", &file).unwrap();
    let branch = join(&bench, "ny");
    let request = AssignRequest {
        version: "deb@1".into(),
        ..AssignRequest::default()
    };
    bench.dc.assign_pool("ny", "office", &request).unwrap();
    let base = std::fs::read(&file).unwrap();
    let mut site = Site::new(&bench, branch, DesktopId([0xab; 16]), base);
    site.report(&bench, &bench.dc.version_named("deb@1").unwrap().id);
    site.ask(&bench.dc).unwrap();
    for place in [0, 9, 200] {
        site.write(place, place as u8 + 1);
    }
    site.sync(&bench.dc).unwrap();
    site.disk_at(3)
}

#[test]
fn a_volume_is_shown_kept_exported_taken_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&data);
    let shown = lived_in(&data);
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let target = dir.path().join("alice.raw");
    let why = ReasonRequest {
        reason: "carol: a test".into(),
    };
    runtime.block_on(async {
        let volumes = client.volumes(None).await.unwrap();
        assert_eq!(volumes.len(), 1);
        let volume = &volumes[0];
        assert_eq!((volume.kind, &*volume.home), (VolumeKind::System, "ny"));
        assert_eq!(volume.version.as_deref(), Some("deb@1"));
        assert_eq!(volume.snapshots, 1, "the first state");
        assert_eq!(client.volumes(Some("ny")).await.unwrap(), volumes);
        assert_eq!(
            code(client.volumes(Some("la")).await),
            ProblemCode::NotFound
        );
        for unknown in ["abab", "0123456789"] {
            assert_eq!(
                code(client.volume(unknown).await),
                ProblemCode::NotFound,
                "{unknown}"
            );
        }

        let id = "ababababa";
        let cut = client.snapshot_volume(id).await.unwrap();
        let state = client.volume(id).await.unwrap();
        assert_eq!(state.snapshots.last(), Some(&cut));
        let request = ExportRequest {
            path: target.to_str().unwrap().into(),
            format: "raw".into(),
        };
        let started = client.export_snapshot(id, cut.number, &request);
        let started = started.await.unwrap();
        let interval = Duration::from_millis(5);
        let done = client.follow(started.id, interval, tokio::time::sleep, |_| {});
        let done = done.await.unwrap();
        assert!(
            matches!(done.result, Some(OperationResult::Export(_))),
            "{done:?}"
        );
        client.drop_snapshot(id, cut.number, &why).await.unwrap();
        assert_eq!(
            code(client.drop_snapshot(id, cut.number, &why).await),
            ProblemCode::NotFound
        );

        assert_eq!(
            code(client.delete_volume(id, &why).await),
            ProblemCode::Conflict,
            "a branch holds it"
        );
        let mut request = BreakLeaseRequest {
            reason: " ".into(),
            force: true,
            home: None,
        };
        assert_eq!(
            code(client.break_lease(id, &request).await),
            ProblemCode::Invalid,
            "nobody says why"
        );
        request.reason = "carol: a test".into();
        let state = client.break_lease(id, &request).await.unwrap();
        assert_eq!(state.volume.lease, None);
        assert_eq!(state.ended.len(), 1);
        assert_eq!(
            code(client.break_lease(id, &request).await),
            ProblemCode::Conflict
        );
        assert_eq!(
            code(client.discard_fork(id, "1-00", &why).await),
            ProblemCode::NotFound
        );
        let settled = client.settle_generation(id, 1, &why).await.unwrap();
        assert_eq!(settled.ended, vec![]);
        client.delete_volume(id, &why).await.unwrap();
        assert_eq!(client.volumes(None).await.unwrap(), vec![]);
        let audit = client.audit().await.unwrap();
        let events: Vec<&str> = audit
            .iter()
            .map(|entry| entry.facts.event.as_str())
            .filter(|event| *event != "call")
            .collect();
        assert_eq!(
            events,
            [
                "volume_deleted",
                "generation_settled",
                "lease_broken",
                "snapshot_deleted"
            ]
        );

        let policy = client.state_policy("ny", "office").await.unwrap();
        assert_eq!((policy.lease_s, policy.offline_grace_s), (86_400, 604_800));
        let request = StatePolicyRequest {
            offline_grace_s: Some(0),
            ..StatePolicyRequest::default()
        };
        let set = client.set_state_policy("ny", "office", &request);
        let set = set.await.unwrap();
        assert_eq!((set.lease_s, set.offline_grace_s), (86_400, 0));
        assert_eq!(client.state_policy("ny", "office").await.unwrap(), set);
        assert_eq!(
            code(client.state_policy("ny", "other").await),
            ProblemCode::NotFound
        );
    });
    assert!(std::fs::read(&target).unwrap() == shown);
    daemon.stop();
}
