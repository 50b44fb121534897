//! Updates: what is encoded decodes to the version, survives a kill batch by batch, and is thrown away when it is damaged.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use datacenter::operations::Meter;
use datacenter::update::{NoUpdate, Pair, Stage, Update, UpdateError, Updates};
use datacenter_api::{OperationState, Phase};
use dedup::update::{NewChunks, UpdateBatch, decode_batch};
use dedup::{ChunkId, Manifest, VersionId};
use dedup_protocol::update::UpdateSource;
use dedup_store::RecordName;
use support::{Bench, sparse_disk};

const MIB: usize = 1 << 20;

/// An image with two versions: so many MiB of data, then a byte changed in every 20,000, which is new to two thirds of its chunks.
fn bench(data_mib: usize) -> (Bench, Pair) {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let path = bench.path("disk.raw");
    sparse_disk(
        &path,
        64 * MIB as u64,
        &[(5 * MIB as u64, data_mib * MIB)],
        7,
    );
    let first = bench.publish("deb", &path).unwrap();
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    for at in (5 * MIB..(5 + data_mib) * MIB).step_by(20_000) {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at as u64).unwrap();
        disk.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
    }
    let second = bench.publish("deb", &path).unwrap();
    let pair = Pair {
        parent: first.version.parse().unwrap(),
        version: second.version.parse().unwrap(),
    };
    (bench, pair)
}

fn make(bench: &Bench, pair: Pair) -> datacenter_api::UpdateSummary {
    bench
        .dc
        .updates()
        .make(&bench.dc, pair, &Meter::default())
        .unwrap()
}

fn found(bench: &Bench, pair: Pair) -> Arc<Update> {
    bench.dc.updates().find(&bench.dc, pair).unwrap().unwrap()
}

fn file(bench: &Bench, extension: &str) -> PathBuf {
    let files = std::fs::read_dir(bench.dc.dir().updates()).unwrap();
    let mut files = files.map(|entry| entry.unwrap().path());
    let wanted = |path: &PathBuf| path.to_str().unwrap().ends_with(extension);
    files
        .find(wanted)
        .unwrap_or_else(|| panic!("no {extension}"))
}

fn manifest(bench: &Bench, id: VersionId) -> Manifest {
    let record = bench.dc.version(id).unwrap().unwrap().open_own().unwrap();
    Manifest::load(&Nodes(bench), record.disk.root).unwrap()
}

struct Nodes<'a>(&'a Bench);

impl dedup::NodeSource for Nodes<'_> {
    type Error = dedup_store::StoreError;
    fn node(&self, id: dedup::NodeId) -> Result<Bytes, dedup_store::StoreError> {
        self.0.dc.store().node(id)
    }
}

/// Decodes all batches as a branch does that holds the parent and nothing else.
fn decode(bench: &Bench, pair: Pair, update: &Update) -> HashMap<ChunkId, Bytes> {
    let (old, new) = (manifest(bench, pair.parent), manifest(bench, pair.version));
    let numbering = NewChunks::of_manifests(&Nodes(bench), &old, &new).unwrap();
    let chunk = |id| bench.dc.store().chunk(id).unwrap().bytes().clone();
    let mut held: HashMap<ChunkId, Bytes> = numbering
        .parent
        .iter()
        .map(|(id, _)| (*id, chunk(*id)))
        .collect();
    for number in 0..update.sizes().unwrap().unwrap().len() as u32 {
        let bytes = update.batch(number).unwrap().unwrap();
        let batch = UpdateBatch::decode(&bytes).unwrap();
        let chunks = decode_batch(&batch, &numbering, bench.dc.id_key(), |id| {
            held.get(&id).cloned()
        });
        held.extend(chunks.unwrap().iter().map(|c| (c.id(), c.bytes().clone())));
    }
    for (id, _) in &numbering.new {
        assert_eq!(held[id], chunk(*id));
    }
    held
}

#[test]
fn an_update_decodes_to_the_version_and_is_made_once() {
    let (bench, pair) = bench(10);
    assert_eq!(
        bench
            .dc
            .diff("deb@1", "deb@2")
            .unwrap()
            .update
            .map(|u| u.whole),
        None
    );
    let summary = make(&bench, pair);
    assert_eq!(
        (summary.from.as_str(), summary.to.as_str()),
        ("deb@1", "deb@2")
    );
    assert!(summary.whole && summary.batches > 0, "{summary:?}");
    assert_eq!(summary.encoded_batches, summary.batches);
    assert!(summary.plain_bytes > 5_000_000, "{summary:?}");
    assert!(
        summary.packed_bytes * 10 < summary.plain_bytes,
        "each chunk resembles an old one: {summary:?}"
    );
    let diff = bench.dc.diff("deb@1", "deb@2").unwrap();
    assert_eq!(diff.update.as_ref(), Some(&summary));
    assert_eq!(diff.new_bytes, summary.plain_bytes);
    decode(&bench, pair, &found(&bench, pair));

    let path = file(&bench, ".update");
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(make(&bench, pair), summary);
    assert_eq!(
        std::fs::metadata(&path).unwrap().modified().unwrap(),
        before
    );
    // Whoever opens the folder next finds it as well.
    let next = Updates::new(bench.dc.dir().updates());
    let update = next.find(&bench.dc, pair).unwrap().unwrap();
    decode(&bench, pair, &update);
    // The way back is another update.
    let back = Pair {
        parent: pair.version,
        version: pair.parent,
    };
    let summary = make(&bench, back);
    assert_eq!(
        (summary.from.as_str(), summary.to.as_str()),
        ("deb@2", "deb@1")
    );
    decode(&bench, back, &found(&bench, back));
}

#[test]
fn what_is_encoded_when_the_process_dies_is_not_encoded_again() {
    let (bench, pair) = bench(36);
    let meter = Arc::new(Meter::default());
    let updates = Arc::new(Updates::new(bench.dc.dir().updates()));
    let waiting = updates.find_or_want(&bench.dc, pair).unwrap();
    let mut stage = waiting.subscribe();
    std::thread::scope(|scope| {
        let made = scope.spawn(|| updates.make(&bench.dc, pair, &meter));
        support::wait_for(Duration::from_secs(60), "a batch", || {
            matches!(&*stage.borrow_and_update(), Stage::Growing(1..)).then_some(())
        });
        meter.cancel();
        let ended = made.join().unwrap();
        // A fast machine may have been done before it was told to stop; then there is nothing to resume.
        assert!(
            matches!(ended, Err(UpdateError::Cancelled) | Ok(_)),
            "{ended:?}"
        );
    });
    if let Stage::Failed(_) = &*stage.borrow_and_update() {
        let part = file(&bench, ".update.part");
        let left = std::fs::read(&part).unwrap();
        // The last write was torn.
        OpenOptions::new()
            .append(true)
            .open(&part)
            .unwrap()
            .write_all_at(b"URECtorn", left.len() as u64)
            .unwrap();
        let meter = Meter::default();
        let next = Updates::new(bench.dc.dir().updates());
        next.make(&bench.dc, pair, &meter).unwrap();
        let whole = std::fs::read(file(&bench, ".update")).unwrap();
        assert!(whole.starts_with(&left), "what was there was kept");
        assert!(whole.len() > left.len());
    }
    let reader = Updates::new(bench.dc.dir().updates());
    let update = reader.find(&bench.dc, pair).unwrap().unwrap();
    decode(&bench, pair, &update);
}

#[test]
fn a_damaged_file_is_found_by_its_checksums_and_made_anew() {
    let (bench, pair) = bench(10);
    let summary = make(&bench, pair);
    let path = file(&bench, ".update");
    let sound = std::fs::read(&path).unwrap();
    let flip = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, bytes).unwrap();
    };
    // In the bytes of a batch: found when it is read.
    flip(sound.len() - 1000);
    let update = found(&bench, pair);
    let last = summary.batches as u32 - 1;
    let damaged = (0..=last).filter(|n| update.batch(*n).is_err()).count();
    assert_eq!(damaged, 1);
    bench.dc.updates().discard(&update, "test");
    assert!(!path.exists());
    assert_eq!(make(&bench, pair), summary);
    decode(&bench, pair, &found(&bench, pair));
    // In header, plan and record heads: found when it is opened.
    for at in [0, 9, 50, 125, 130] {
        flip(at);
        let fresh = Updates::new(bench.dc.dir().updates());
        assert!(fresh.find(&bench.dc, pair).unwrap().is_none(), "byte {at}");
        assert!(!path.exists(), "byte {at}");
    }
    std::fs::write(&path, &sound[..sound.len() - 1]).unwrap();
    let fresh = Updates::new(bench.dc.dir().updates());
    assert!(
        fresh.find(&bench.dc, pair).unwrap().is_none(),
        "a file that ends early"
    );
}

#[test]
fn a_damaged_chunk_ends_the_update_with_its_name() {
    let (bench, pair) = bench(10);
    let (old, new) = (
        manifest(&bench, pair.parent),
        manifest(&bench, pair.version),
    );
    let numbering = NewChunks::of_manifests(&Nodes(&bench), &old, &new).unwrap();
    let lost = numbering.new[numbering.new.len() / 2].0;
    bench
        .dc
        .store()
        .quarantine(RecordName::chunk(lost))
        .unwrap();
    let waiting = bench.dc.updates().find_or_want(&bench.dc, pair).unwrap();
    let error = bench
        .dc
        .updates()
        .make(&bench.dc, pair, &Meter::default())
        .unwrap_err();
    assert!(
        matches!(&error, UpdateError::Chunk { version, .. } if version == "deb@2"),
        "{error}"
    );
    // Those who wait are told, and those who come.
    assert!(matches!(&*waiting.subscribe().borrow(), Stage::Failed(_)));
    let refused = bench.dc.updates().find_or_want(&bench.dc, pair);
    assert!(matches!(refused, Err(NoUpdate::Failed(_))));
    // Publishing the same file stores the chunk anew; then it can be made by hand.
    let mut request = support::request("deb", &bench.path("disk.raw"));
    request.allow_same = true;
    bench.publish_as(&request).unwrap();
    assert!(make(&bench, pair).whole);
}

#[test]
fn an_update_is_between_two_versions_of_one_image() {
    let (bench, pair) = bench(10);
    bench.image_with_versions("other", 1);
    let other: VersionId = bench.dc.version_named("other").unwrap().id.parse().unwrap();
    for wrong in [
        Pair {
            parent: other,
            ..pair
        },
        Pair {
            parent: pair.version,
            ..pair
        },
    ] {
        let error = bench.dc.updates().make(&bench.dc, wrong, &Meter::default());
        assert!(matches!(error, Err(UpdateError::OtherImage { .. })));
    }
    let nowhere = Pair {
        parent: VersionId([9; 32]),
        ..pair
    };
    let error = bench
        .dc
        .updates()
        .make(&bench.dc, nowhere, &Meter::default());
    assert!(matches!(error, Err(UpdateError::Missing(_))));
    for (from, to) in [("deb@1", "other"), ("deb@1", "deb@1"), ("deb@1", "deb@9")] {
        assert!(bench.dc.pair_named(from, to).is_err(), "{from} {to}");
    }
    assert_eq!(bench.dc.pair_named("deb@1", "deb").unwrap(), pair);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_version_s_update_is_made_in_the_background_as_an_operation() {
    let (bench, pair) = tokio::task::spawn_blocking(|| bench(14)).await.unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(datacenter::update::run(bench.dc.clone(), cancel.clone()));
    // Nobody asked for it: the publish did.
    let update = found(&bench, pair);
    let mut stage = update.subscribe();
    stage
        .wait_for(|stage| *stage == Stage::Whole)
        .await
        .unwrap();
    let ended = || {
        let operations = bench.dc.operations().list(None, 10).unwrap();
        let update = operations
            .into_iter()
            .find(|o| o.subject == "deb@1..deb@2")?;
        (update.state == OperationState::Succeeded).then_some(update)
    };
    let operation = support::wait_for(Duration::from_secs(20), "the operation's end", ended);
    assert_eq!(operation.progress.phase, Phase::Done);
    assert!(operation.result.is_some());
    // Half-made ones that a former process left are taken up.
    cancel.cancel();
    running.await.unwrap();
    let (path, part) = (
        file(&bench, ".update"),
        file(&bench, ".update").with_extension("update.part"),
    );
    let bytes = std::fs::read(&path).unwrap();
    bench.dc.updates().discard(&found(&bench, pair), "test");
    std::fs::write(&part, &bytes[..bytes.len() / 2]).unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(datacenter::update::run(bench.dc.clone(), cancel.clone()));
    support::wait_for(Duration::from_secs(60), "the update", || {
        path.exists().then_some(())
    });
    cancel.cancel();
    running.await.unwrap();
    assert!(!part.exists());
}
