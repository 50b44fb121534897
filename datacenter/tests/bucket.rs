//! Backups into a bucket and back, against an S3 that checks signatures: incremental, cut and gone on with, refused with the way out.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;
use std::time::Duration;

use datacenter::backup::bucket::settings::{BucketPlace, Settings};
use datacenter::backup::bucket::{Bucket, BucketError, Upload};
use datacenter::backup::folder::Folder;
use datacenter::backup::manifest::MANIFEST;
use datacenter::backup::{BackupError, operation};
use datacenter::operations::Meter;
use datacenter::problem::describe;
use datacenter_api::BackupResult;
use rand::{RngCore, SeedableRng};
use support::Bench;
use support::backup::{open, options, publish, restored};
use support::http::{BUCKET, S3, SECRET};

const PLACE: &str = "s3://backups/splice/nightly";

fn bucket(settings: &Path, place: &str) -> Bucket {
    let place = BucketPlace::parse(place).unwrap();
    let bucket = Bucket::new(place, Settings::read(settings).unwrap()).unwrap();
    bucket.with_pause(Duration::from_millis(1))
}

fn backup(bench: &Bench, settings: &Path, verify: bool) -> Result<BackupResult, BackupError> {
    let folder = Folder::in_bucket(bucket(settings, PLACE), PLACE);
    operation::run(&bench.dc, &folder, verify, &Meter::default())
}

fn names(s3: &S3) -> Vec<String> {
    let content = s3.content();
    let names = content.objects.keys();
    names
        .map(|name| name.strip_prefix("splice/nightly/").unwrap().to_owned())
        .collect()
}

#[test]
fn a_bucket_holds_a_backup_that_grows_and_is_restored_from() {
    let s3 = S3::start();
    let bench = Bench::on_rocks();
    let settings = s3.settings(bench.dir.path(), SECRET);
    bench.dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    let first = backup(&bench, &settings, false).unwrap();
    assert_eq!((first.number, first.packs_copied), (1, 1));
    publish(&bench, "deb", 2);
    publish(&bench, "deb", 3);
    let second = backup(&bench, &settings, false).unwrap();
    assert_eq!(
        (second.number, second.packs, second.packs_copied),
        (2, 2, 1)
    );
    assert_eq!(
        names(&s3),
        [
            MANIFEST,
            "catalog.2",
            "config.2",
            "packs/0000000000000001.pack",
            "packs/0000000000000002.pack",
            "realm.2",
            "secrets.2"
        ]
    );
    // What is damaged there is found and mended.
    let pack = "splice/nightly/packs/0000000000000001.pack";
    s3.content().objects.get_mut(pack).unwrap()[200_000] ^= 1;
    let mended = backup(&bench, &settings, true).unwrap();
    assert_eq!((mended.number, mended.packs_copied), (3, 1));

    let data = bench.path("restored");
    let mut options = options(&bench, Path::new(PLACE), &data);
    let refused = restored(&options).unwrap_err();
    assert!(
        describe(refused.as_ref()).contains("--s3-file"),
        "{refused}"
    );
    options.s3_file = Some(settings);
    restored(&options).unwrap();
    let again = open(&data);
    let version = again.dc.version_named("deb@3").unwrap();
    assert_eq!(version.id, bench.dc.version_named("deb@3").unwrap().id);
}

#[test]
fn a_backup_that_is_cut_anywhere_leaves_the_one_before_and_is_gone_on_with() {
    let s3 = S3::start();
    let bench = Bench::on_rocks();
    let settings = s3.settings(bench.dir.path(), SECRET);
    bench.dc.create_image("deb", None).unwrap();
    publish(&bench, "deb", 1);
    backup(&bench, &settings, false).unwrap();
    publish(&bench, "deb", 2);
    let mut cuts = 0;
    for left in 0.. {
        let before = s3.content().objects["splice/nightly/backup.manifest"].clone();
        s3.content().left = Some(left);
        let cut = backup(&bench, &settings, false);
        let requests = s3.content().requests;
        s3.content().left = None;
        match cut {
            Ok(done) => {
                assert!(done.number > 1, "after {requests} requests");
                break;
            }
            Err(error) => {
                cuts += 1;
                let words = describe(&error);
                // The answer to HEAD has no words, only the number.
                let is_told = words.contains("AccessDenied") || words.contains("(403)");
                assert!(is_told, "{words}");
                // Whatever is there is whole: the one before, or at the very end the new one.
                let data = bench.path(&format!("restored-{left}"));
                let mut options = options(&bench, Path::new(PLACE), &data);
                options.s3_file = Some(settings.clone());
                restored(&options).unwrap();
                let now = s3.content().objects["splice/nightly/backup.manifest"].clone();
                let is_new = now != before;
                drop(open(&data));
                std::fs::remove_dir_all(&data).unwrap();
                if is_new {
                    break;
                }
            }
        }
    }
    assert!(cuts > 5, "{cuts}");
    // The pack that a cut backup brought there was not brought again.
    let last = backup(&bench, &settings, false).unwrap();
    assert_eq!((last.packs, last.packs_copied), (2, 0));
    assert_eq!(names(&s3).len(), 7, "nothing is left over");
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_told_with_the_way_out() {
    let s3 = S3::start();
    let bench = Bench::on_rocks();
    let settings = s3.settings(bench.dir.path(), SECRET);
    s3.content().failures.extend([503, 500, 429]);
    backup(&bench, &settings, false).unwrap();
    s3.content().failures.extend([503; 6]);
    let error = backup(&bench, &settings, false).unwrap_err();
    assert!(describe(&error).contains("(503)"), "{}", describe(&error));
    s3.content().failures.clear();
    s3.content().failures.extend([503; 6]);
    let error = bucket(&settings, PLACE).list("").unwrap_err();
    assert!(
        error.to_string().contains("SlowDown (503, no & no)"),
        "{error}"
    );
    s3.content().failures.clear();
    // A refusal that is longer than what was asked for is one all the same.
    let short = bucket(&settings, PLACE);
    short.put("short", bytes::Bytes::from_static(b"x")).unwrap();
    s3.content().failures.push_back(503);
    assert_eq!(short.read("short", 0, 1).unwrap(), b"x");
    short.remove("short").unwrap();
    let absent = bucket(&settings, "s3://nowhere/x").list("").unwrap_err();
    assert!(
        absent.to_string().contains("make the bucket first"),
        "{absent}"
    );
    let wrong = s3.settings(bench.dir.path(), "another");
    let error = bucket(&wrong, PLACE).list("").unwrap_err();
    assert!(error.to_string().contains("secret_access_key"), "{error}");
    assert!(!error.is_passing());
    // Nobody there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let text = std::fs::read_to_string(&wrong).unwrap();
    let text = text.replace(&s3.endpoint, &format!("http://{address}"));
    let nobody = Settings::parse(&text).unwrap();
    let nobody = Bucket::new(BucketPlace::parse(PLACE).unwrap(), nobody).unwrap();
    let error = nobody.with_pause(Duration::from_millis(1)).len("x");
    assert!(
        matches!(error, Err(BucketError::Unreachable { .. })),
        "{error:?}"
    );
}

#[test]
fn long_objects_go_in_parts_and_appear_when_they_are_whole() {
    let s3 = S3::start();
    let dir = tempfile::tempdir().unwrap();
    let settings = s3.settings(dir.path(), SECRET);
    let bucket = bucket(&settings, PLACE);
    let mut bytes = vec![0; 37 << 20];
    rand::rngs::StdRng::seed_from_u64(1).fill_bytes(&mut bytes);
    let mut upload = Upload::new(&bucket, "catalog.1");
    for piece in bytes.chunks(1_300_000) {
        upload.write(piece).unwrap();
    }
    assert!(s3.content().objects.is_empty() && !s3.content().uploads.is_empty());
    upload.finish().unwrap();
    assert!(s3.content().uploads.is_empty());
    let mut shown = Vec::new();
    let len = bucket.stream("catalog.1", &mut |piece| shown.extend_from_slice(piece));
    assert_eq!(len.unwrap(), Some(bytes.len() as u64));
    assert!(shown == bytes);
    // One that is not finished leaves nothing, whether it is given up or its process dies.
    let mut given_up = Upload::new(&bucket, "catalog.2");
    given_up.write(&bytes).unwrap();
    drop(given_up);
    assert!(s3.content().uploads.is_empty());
    let mut killed = Upload::new(&bucket, "catalog.3");
    killed.write(&bytes).unwrap();
    std::mem::forget(killed);
    assert_eq!(s3.content().uploads.len(), 1);
    bucket.give_up_parts().unwrap();
    assert!(s3.content().uploads.is_empty());
    assert_eq!(s3.content().objects.len(), 1);
    assert_eq!(bucket.len("catalog.3").unwrap(), None);
    // What is no backup's is somebody else's.
    let mut theirs = Upload::new(&bucket, "film.mkv");
    theirs.write(&bytes).unwrap();
    std::mem::forget(theirs);
    bucket.give_up_parts().unwrap();
    assert_eq!(s3.content().uploads.len(), 1);
    assert_eq!(BUCKET, "backups");
}
