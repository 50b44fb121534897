//! The store and the life of versions over a real port, with the typed client.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::time::Duration;

use datacenter_api::{
    Client, ClientError, CollectRequest, CreateImage, ExportRequest, Operation, OperationResult,
    PinRequest, ProblemCode, PublishRequest, Retention, ScrubRequest, VerifyMode,
};
use support::daemon::{Daemon, init};
use support::sparse_disk;

fn code(result: Result<impl std::fmt::Debug, ClientError>) -> ProblemCode {
    match result {
        Err(ClientError::Problem(problem)) => problem.error,
        other => panic!("{other:?}"),
    }
}

async fn done(client: &Client, started: Operation) -> OperationResult {
    let interval = Duration::from_millis(5);
    let done = client.follow(started.id, interval, tokio::time::sleep, |_| {});
    done.await.unwrap().result.unwrap()
}

/// Until the update between the two versions, which reads both, is encoded.
async fn encoded(client: &Client) {
    let ends = ("deb@1".parse().unwrap(), "deb@2".parse().unwrap());
    loop {
        let diff = client.diff(&ends.0, &ends.1).await.unwrap();
        let running = client.status().await.unwrap().operations_running;
        if diff.update.is_some_and(|update| update.whole) && running == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_version_is_pinned_deleted_had_back_exported_and_collected() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    init(&data);
    let daemon = Daemon::start(&data);
    let client = daemon.client();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let disk = dir.path().join("disk.raw");
    runtime.block_on(async {
        let image = CreateImage {
            name: "deb".into(),
            chunk_avg_bytes: None,
        };
        client.create_image(&image).await.unwrap();
        for seed in 1..=2 {
            sparse_disk(&disk, 8 << 20, &[(0, 2 << 20)], seed);
            let request = PublishRequest {
                path: disk.to_str().unwrap().into(),
                format: None,
                note: None,
                allow_same: false,
                verify: VerifyMode::Full,
            };
            let started = client.publish("deb", &request).await.unwrap();
            done(&client, started).await;
        }
        tokio::time::timeout(Duration::from_secs(60), encoded(&client))
            .await
            .expect("a small update is encoded in a moment");
        let first = "deb@1".parse().unwrap();
        let latest = "deb".parse().unwrap();

        let note = PinRequest {
            note: Some("why".into()),
        };
        client.pin_version(&first, &note).await.unwrap();
        let shown = client.version(&first).await.unwrap();
        assert_eq!(shown.pinned.and_then(|pin| pin.note), note.note);
        assert_eq!(
            code(client.delete_version(&first).await),
            ProblemCode::Conflict
        );
        client.unpin_version(&first).await.unwrap();
        assert_eq!(
            code(client.unpin_version(&first).await),
            ProblemCode::Conflict
        );
        assert_eq!(
            code(client.delete_version(&latest).await),
            ProblemCode::Conflict
        );
        let deleted = client.delete_version(&first).await.unwrap();
        assert_eq!(client.deleted_versions("deb").await.unwrap(), [deleted]);
        assert_eq!(code(client.version(&first).await), ProblemCode::NotFound);
        assert_eq!(client.undelete_version(&first).await.unwrap().number, 1);
        assert_eq!(
            code(client.undelete_version(&first).await),
            ProblemCode::NotFound
        );

        let keep = Retention {
            last: Some(1),
            newer_s: None,
        };
        assert_eq!(client.set_retention("deb", &keep).await.unwrap(), keep);
        assert_eq!(client.retention("deb").await.unwrap(), keep);
        let rehearsal = CollectRequest {
            dry_run: true,
            ..CollectRequest::default()
        };
        let started = client.collect(&rehearsal).await.unwrap();
        let OperationResult::Collect(told) = done(&client, started).await else {
            panic!("a collection's result");
        };
        assert!(told.dry_run && told.retired_versions == 0, "{told:?}");
        let started = client.collect(&CollectRequest::default()).await.unwrap();
        let OperationResult::Collect(collected) = done(&client, started).await else {
            panic!("a collection's result");
        };
        // It can still be had back, so nothing of it is condemned.
        assert_eq!((collected.retired_versions, collected.condemned), (1, 0));
        let report = client.store().await.unwrap();
        assert_eq!((report.deleted_versions, report.damaged), (1, 0));
        assert_eq!(report.last_collection, Some(collected));

        let started = client.scrub(&ScrubRequest::default()).await.unwrap();
        let OperationResult::Scrub(scrubbed) = done(&client, started).await else {
            panic!("a scrub's result");
        };
        assert!(
            scrubbed.records > 0 && scrubbed.damaged == 0,
            "{scrubbed:?}"
        );

        let export = ExportRequest {
            path: dir.path().join("out.raw").to_str().unwrap().into(),
            format: "raw".into(),
        };
        let started = client.export(&latest, &export).await.unwrap();
        let OperationResult::Export(exported) = done(&client, started).await else {
            panic!("an export's result");
        };
        assert_eq!(exported.version, "deb@2");
        assert!(std::fs::read(&export.path).unwrap() == std::fs::read(&disk).unwrap());
        assert_eq!(
            code(client.export(&latest, &export).await),
            ProblemCode::Invalid
        );
        let vhd = ExportRequest {
            format: "vhd".into(),
            ..export
        };
        assert_eq!(
            code(client.export(&latest, &vhd).await),
            ProblemCode::Invalid
        );
    });
}
