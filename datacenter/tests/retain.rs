//! The life of versions and of their content: who keeps a version from being deleted, what a collection removes and what it must not,
//! damage traced and repaired from a branch, and versions as files again.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datacenter::export::{ExportError, ExportFormat, export};
use datacenter::operations::Meter;
use datacenter::problem::ManageError;
use datacenter::publish::{self, PublishError};
use datacenter::realm::files::DataDir;
use datacenter::upkeep::collect::collect_garbage;
use datacenter::upkeep::scrub::scrub_all;
use datacenter_api::{
    AssignRequest, BranchStatus, CollectRequest, CollectResult, DesktopStatus, PinRequest, Problem,
    ProblemCode, Retention, ScrubRequest, TokenRequest,
};
use dedup::walk::{Visitor, walk};
use dedup::{BranchId, ChunkId, Leaf, Manifest, NodeId, NodeSource};
use dedup_image::{OpenOptions, open};
use dedup_protocol::join::JoinToken;
use dedup_protocol::records::Tree;
use dedup_protocol::restore::offers;
use dedup_store::disk::HostDisk;
use dedup_store::kv::{Batch, Durability, Kv, KvError, MemKv};
use dedup_store::{RecordName, StoreError};
use dedup_transport::identity::BranchKey;
use support::{Bench, START, request, sparse_disk, write_runs};

const MIB: usize = 1 << 20;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

fn later(bench: &Bench, seconds: u64) {
    bench.clock.advance(seconds);
}

fn collect(bench: &Bench) -> CollectResult {
    collect_garbage(&bench.dc, &CollectRequest::default(), &Meter::default()).unwrap()
}

/// Gives up what was deleted and lets two collections remove it.
fn settle(bench: &Bench) -> CollectResult {
    later(bench, 8 * DAY);
    collect(bench);
    later(bench, 25 * HOUR);
    collect(bench)
}

/// An image with three versions of 8 MiB, half of each like the one before.
fn three(bench: &Bench) {
    bench.dc.create_image("deb", None).unwrap();
    let path = bench.path("disk.raw");
    sparse_disk(&path, 16 << 20, &[(0, 4 * MIB), (8 << 20, 4 * MIB)], 1);
    bench.publish("deb", &path).unwrap();
    for seed in 2..=3 {
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        write_runs(&file, &[(0, 4 * MIB)], seed);
        later(bench, DAY);
        bench.publish("deb", &path).unwrap();
    }
}

fn join(bench: &Bench, name: &str) -> BranchId {
    let made = bench.dc.create_join_token(name, &TokenRequest::default());
    let token: JoinToken = made.unwrap().token.parse().unwrap();
    let key = BranchKey::generate();
    let joined = bench
        .dc
        .redeem_join_token(&token.secret, key.csr_der(), START)
        .unwrap();
    joined.branch
}

fn assign(bench: &Bench, branch: &str, version: &str, pinned: &[&str]) {
    let request = AssignRequest {
        version: version.into(),
        pinned: Some(pinned.iter().map(|pin| (*pin).to_owned()).collect()),
        ..AssignRequest::default()
    };
    bench.dc.assign_pool(branch, "office", &request).unwrap();
}

/// A report of a branch server that follows this assignment, or does not tell.
fn report(bench: &Bench, branch: BranchId, assignment_counter: Option<u64>) {
    let status = BranchStatus {
        assignment_counter,
        ..BranchStatus::default()
    };
    bench.dc.record_branch_status(branch, status).unwrap();
}

fn is_intact(bench: &Bench, version: &str) -> bool {
    let verified = bench.dc.verify_version(version, &Meter::default());
    verified.unwrap().damaged_count == 0
}

fn refusal(result: Result<datacenter_api::DeletedVersion, ManageError>) -> String {
    let error = result.unwrap_err();
    assert_eq!(Problem::from(&error).error, ProblemCode::Conflict);
    error.to_string()
}

#[test]
fn a_version_in_use_is_not_deleted_and_the_refusal_says_by_whom() {
    let bench = Bench::new();
    three(&bench);
    let ny = join(&bench, "ny");
    let delete = |version: &str| bench.dc.delete_version(version);
    assert!(refusal(delete("deb@3")).contains("the latest of deb"));
    assign(&bench, "ny", "deb@1", &["deb@2"]);
    assert!(refusal(delete("deb@1")).contains("pool office at branch ny runs it"));
    assert!(refusal(delete("deb@2")).contains("pool office at branch ny pins it"));

    // The pool moves on; the branch has not told that it knows, then a desktop is left.
    assign(&bench, "ny", "deb@3", &[]);
    assert!(refusal(delete("deb@1")).contains("branch ny once ran it and has not reported"));
    later(&bench, 1);
    let version = bench.dc.version_named("deb@1").unwrap().id;
    let desktop = DesktopStatus {
        id: "alice".into(),
        identity: String::new(),
        pool: "office".into(),
        version,
        state: "running".into(),
        started_unix_s: START,
        boot: None,
        volumes: Vec::new(),
    };
    let status = BranchStatus {
        desktops: vec![desktop],
        ..BranchStatus::default()
    };
    bench.dc.record_branch_status(ny, status).unwrap();
    assert!(refusal(delete("deb@1")).contains("desktop alice at branch ny has it"));
    bench
        .dc
        .record_branch_status(ny, BranchStatus::default())
        .unwrap();

    let note = Some("the auditors".to_owned());
    bench.dc.pin_version("deb@1", &PinRequest { note }).unwrap();
    assert!(refusal(delete("deb@1")).contains("it is pinned (the auditors)"));
    assert!(bench.dc.version_named("deb@1").unwrap().pinned.is_some());
    bench.dc.unpin_version("deb@1").unwrap();
    {
        let id = bench.dc.version_named("deb@1").unwrap().id;
        let _use = bench.dc.use_version(id.parse().unwrap());
        assert!(refusal(delete("deb@1")).contains("it is being read"));
    }
    delete("deb@1").unwrap();
    assert!(matches!(delete("deb@1"), Err(ManageError::NotFound { .. })));
}

#[test]
fn a_deleted_version_can_be_had_back_until_it_is_given_up() {
    let bench = Bench::new();
    three(&bench);
    let before = bench.dc.version_named("deb@2").unwrap();
    let deleted = bench.dc.delete_version("deb@2").unwrap();
    assert_eq!(deleted.purge_unix_s, bench.dc.now_unix_s() + 7 * DAY);
    assert!(
        bench
            .dc
            .version(before.id.parse().unwrap())
            .unwrap()
            .is_none()
    );
    assert_eq!(bench.dc.versions("deb", None, 10).unwrap().len(), 2);
    assert_eq!(bench.dc.deleted_versions("deb").unwrap(), [deleted]);
    // Collections keep it whole meanwhile.
    later(&bench, 3 * DAY);
    assert_eq!(collect(&bench).condemned, 0);
    assert_eq!(bench.dc.undelete_version("deb@2").unwrap(), before);
    assert!(is_intact(&bench, "deb@2"));

    // Half of the pack, so that rewriting it pays.
    bench.dc.delete_version("deb@1").unwrap();
    bench.dc.delete_version("deb@2").unwrap();
    let gone = settle(&bench);
    assert!(gone.erased > 0 && gone.packs_rewritten > 0, "{gone:?}");
    assert!(gone.freed_bytes > 6 * MIB as u64, "{gone:?}");
    assert!(matches!(
        bench.dc.undelete_version("deb@2"),
        Err(ManageError::NotFound { .. })
    ));
    assert!(is_intact(&bench, "deb@3"));
    assert!(bench.dc.store().halted().is_none());
    // Its number is not used again.
    let path = bench.path("disk.raw");
    let again = publish::Publish {
        allow_same: true,
        ..request("deb", &path)
    };
    assert_eq!(bench.publish_as(&again).unwrap().number, 4);
}

#[test]
fn a_branch_keeps_what_it_was_assigned_before_until_it_follows_the_present_assignment() {
    let bench = Bench::new();
    three(&bench);
    let ny = join(&bench, "ny");
    let counter = || bench.dc.branch("ny").unwrap().assignment_counter;
    assign(&bench, "ny", "deb@1", &[]);
    report(&bench, ny, Some(counter()));
    let request = AssignRequest {
        version: "deb@3".into(),
        user_volume_mib: Some(8192),
        ..AssignRequest::default()
    };
    bench.dc.assign_pool("ny", "office", &request).unwrap();
    later(&bench, 60);
    // Its report was on its way when the pool moved on.
    report(&bench, ny, Some(counter() - 1));
    let refused = |why: &str| {
        let refusal = refusal(bench.dc.delete_version("deb@1"));
        assert!(
            refusal.contains("branch ny once ran it"),
            "{why}: {refusal}"
        );
    };
    refused("it follows the one before");
    // One that is too old to read of user volumes is not sent this assignment, however often it reports.
    report(&bench, ny, None);
    refused("it cannot read it");
    report(&bench, ny, Some(counter()));
    bench.dc.delete_version("deb@1").unwrap();
}

/// A branch that was cut off may have started one from what it was assigned before.
#[test]
fn a_deleted_version_that_a_desktop_has_is_not_given_up() {
    let bench = Bench::new();
    three(&bench);
    let ny = join(&bench, "ny");
    let version = bench.dc.version_named("deb@1").unwrap().id;
    bench.dc.delete_version("deb@1").unwrap();
    let desktop = DesktopStatus {
        id: "alice".into(),
        identity: String::new(),
        version,
        ..DesktopStatus::default()
    };
    let status = BranchStatus {
        desktops: vec![desktop],
        ..BranchStatus::default()
    };
    bench.dc.record_branch_status(ny, status).unwrap();
    later(&bench, 8 * DAY);
    assert_eq!(bench.dc.purge_deleted().unwrap(), 0);
    bench
        .dc
        .record_branch_status(ny, BranchStatus::default())
        .unwrap();
    assert_eq!(bench.dc.purge_deleted().unwrap(), 1);
}

/// A catalog whose medium fails when it is told to.
struct Failing(MemKv, AtomicBool);

impl Kv for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.0.get(key)
    }
    fn scan(
        &self,
        prefix: &[u8],
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), KvError> {
        self.0.scan(prefix, from, visit)
    }
    fn commit(&self, batch: Batch, durability: Durability) -> Result<(), KvError> {
        if self.1.load(Ordering::Relaxed) {
            return Err(KvError::Engine {
                path: "here".into(),
                message: "input/output error".into(),
            });
        }
        self.0.commit(batch, durability)
    }
}

/// The version may be on the disk all the same, and be there after the next start.
#[test]
fn what_a_publish_stored_stays_when_nobody_can_tell_whether_its_version_does() {
    let dir = tempfile::tempdir().unwrap();
    let disk = HostDisk::new(DataDir::new(dir.path()).store()).unwrap();
    let catalog = Arc::new(Failing(MemKv::new(), AtomicBool::new(false)));
    let index = Arc::new(MemKv::new());
    let bench = Bench::on_disk(dir, Arc::new(disk), catalog.clone(), index);
    bench.dc.create_image("deb", None).unwrap();
    let path = bench.path("disk.raw");
    sparse_disk(&path, 4 << 20, &[(0, MIB)], 1);
    catalog.1.store(true, Ordering::Relaxed);
    let failed = bench.publish("deb", &path).unwrap_err();
    assert!(matches!(failed, PublishError::Catalog(_)), "{failed}");
    catalog.1.store(false, Ordering::Relaxed);
    let kept = collect(&bench);
    assert!(kept.held > 0 && kept.condemned == 0, "{kept:?}");
}

#[test]
fn a_retention_keeps_what_either_rule_keeps_and_what_is_in_use() {
    let bench = Bench::new();
    three(&bench);
    let numbers = || -> Vec<u32> {
        let versions = bench.dc.versions("deb", None, 10).unwrap();
        versions.iter().map(|version| version.number).collect()
    };
    let keep = |last, newer_s| {
        let retention = Retention { last, newer_s };
        bench.dc.set_retention("deb", &retention).unwrap();
        bench.dc.follow_retentions().unwrap()
    };
    // Published two days ago, one day ago, now.
    assert_eq!(keep(None, None), 0);
    assert_eq!(keep(Some(1), Some(3 * DAY)), 0);
    assert_eq!(keep(Some(2), Some(HOUR)), 1);
    assert_eq!(numbers(), [3, 2]);
    assert!(bench.dc.deleted_versions("deb").unwrap()[0].by_retention);
    bench
        .dc
        .pin_version("deb@2", &PinRequest::default())
        .unwrap();
    assert_eq!(keep(Some(1), None), 0, "pinned");
    bench.dc.unpin_version("deb@2").unwrap();
    assert_eq!(collect(&bench).retired_versions, 1);
    assert_eq!(numbers(), [3], "the latest stays");
    assert!(
        bench
            .dc
            .set_retention(
                "deb",
                &Retention {
                    last: Some(0),
                    newer_s: None
                }
            )
            .is_err()
    );
}

#[test]
fn publishes_go_on_beside_collections_and_are_whole() {
    let bench = Bench::on_rocks();
    three(&bench);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                // So that what one collection condemns the next erases.
                later(&bench, 2 * DAY);
                collect(&bench);
                rounds += 1;
            }
            rounds
        });
        let publisher = scope.spawn(|| {
            let path = bench.path("other.raw");
            bench.dc.create_image("other", None).unwrap();
            for seed in 0..6 {
                // The same content comes and goes: what one publish finds known a collection has just condemned.
                sparse_disk(&path, 16 << 20, &[(0, 3 * MIB)], seed % 2);
                let publish = publish::Publish {
                    allow_same: true,
                    ..request("other", &path)
                };
                bench.publish_as(&publish).unwrap();
                if seed > 0 {
                    // Somebody may be reading it for a moment.
                    bench.dc.delete_version(&format!("other@{seed}")).ok();
                }
            }
        });
        // Whatever becomes of it, the collector is told to end.
        let published = publisher.join();
        stop.store(true, Ordering::Relaxed);
        assert!(collector.join().unwrap() > 0);
        published.unwrap();
    });
    assert!(bench.dc.store().halted().is_none());
    for version in ["deb@1", "deb@2", "deb@3", "other"] {
        assert!(is_intact(&bench, version), "{version}");
    }
}

struct Nodes<'a>(&'a Bench);

impl NodeSource for Nodes<'_> {
    type Error = StoreError;
    fn node(&self, id: NodeId) -> Result<bytes::Bytes, StoreError> {
        self.0.dc.store().node(id)
    }
}

#[derive(Default)]
struct Chunks(BTreeSet<ChunkId>);

impl Visitor for Chunks {
    fn enter(&mut self, _: NodeId) -> bool {
        true
    }
    fn leaf(&mut self, _: u64, leaf: &Leaf) {
        self.0.extend(leaf.chunks().map(|(id, _)| id));
    }
}

fn root(bench: &Bench, version: &str) -> NodeId {
    let version = bench.dc.version_named(version).unwrap();
    version.disk.root.parse().unwrap()
}

#[test]
fn a_rehearsal_changes_nothing_and_a_second_collection_is_refused_while_one_runs() {
    let bench = Bench::new();
    three(&bench);
    bench.dc.delete_version("deb@1").unwrap();
    later(&bench, 8 * DAY);
    bench.dc.purge_deleted().unwrap();
    let rehearsal = CollectRequest {
        dry_run: true,
        ..CollectRequest::default()
    };
    let stats = bench.dc.store().stats();
    let told = collect_garbage(&bench.dc, &rehearsal, &Meter::default()).unwrap();
    assert!(told.dry_run && told.condemned > 0);
    assert_eq!(bench.dc.store().stats(), stats);
    let done = collect(&bench);
    assert_eq!(done.condemned, told.condemned);
    let cancelled = Meter::default();
    cancelled.cancel();
    let ended = collect_garbage(&bench.dc, &rehearsal, &cancelled).unwrap_err();
    assert!(matches!(ended, ManageError::Conflict { .. }), "{ended}");
}

#[test]
fn damage_is_traced_to_versions_and_healed_by_what_a_branch_holds() {
    let bench = Bench::new();
    three(&bench);
    let mut shared = Chunks::default();
    walk(&Nodes(&bench), root(&bench, "deb@3"), &mut shared).unwrap();
    // What the branch has; then the datacenter loses some of it.
    let held: Vec<_> = shared
        .0
        .iter()
        .map(|id| (*id, bench.dc.store().chunk(*id).unwrap().bytes().clone()))
        .collect();
    let lost: Vec<ChunkId> = shared.0.iter().copied().step_by(7).take(20).collect();
    for id in &lost {
        bench.dc.store().quarantine(RecordName::chunk(*id)).unwrap();
    }
    let found = scrub_all(&bench.dc, &ScrubRequest::default(), &Meter::default()).unwrap();
    assert_eq!((found.found, found.damaged), (0, lost.len() as u64));
    assert_eq!(found.items.len(), lost.len());
    assert!(found.versions.contains(&"deb@3".to_owned()));
    assert!(!is_intact(&bench, "deb@3"));

    let branch = join(&bench, "ny");
    assign(&bench, "ny", "deb@3", &[]);
    let versions = bench.dc.versions_assigned(branch).unwrap();
    let wanted = bench.dc.upkeep().damage().wanted(&versions);
    assert_eq!(
        wanted.iter().map(|w| w.runs.len()).sum::<usize>(),
        lost.len()
    );
    let manifest = Manifest::load(&Nodes(&bench), root(&bench, "deb@3")).unwrap();
    let mut back = 0;
    for wanted in &wanted {
        assert_eq!(wanted.tree, Tree::Disk);
        let leaf = |index: u32| manifest.leaf(&Nodes(&bench), index as usize);
        let read =
            |id: ChunkId, _: u32| held.iter().find(|(h, _)| *h == id).map(|(_, b)| b.clone());
        for (restore, batch) in offers(wanted, leaf, read).unwrap() {
            back += datacenter::sync::take_back(&bench.dc, branch, &restore, &batch).unwrap();
            assert!(
                datacenter::sync::take_back(
                    &bench.dc,
                    join(&bench, &format!("b{back}")),
                    &restore,
                    &batch
                )
                .is_err(),
                "a branch that may not read the version"
            );
        }
    }
    assert_eq!(back as usize, lost.len());
    assert!(bench.dc.store().damaged().is_empty());
    assert!(is_intact(&bench, "deb@3") && is_intact(&bench, "deb@1"));
    assert_eq!(bench.dc.trace_damage().unwrap().count(), 0);
}

#[test]
fn what_cannot_be_told_to_be_reachable_ends_the_collection_and_names_the_version() {
    let bench = Bench::new();
    three(&bench);
    let name = RecordName::node(root(&bench, "deb@2"));
    bench.dc.store().quarantine(name).unwrap();
    let request = CollectRequest::default();
    let error = collect_garbage(&bench.dc, &request, &Meter::default()).unwrap_err();
    assert!(error.to_string().contains("deb@2"), "{error}");
    let found = scrub_all(&bench.dc, &ScrubRequest::default(), &Meter::default()).unwrap();
    assert_eq!(found.versions, ["deb@2"]);
}

fn compare(file: &Path, expected: &Path) {
    let mut image = open(file, &OpenOptions::new()).unwrap();
    let expected = std::fs::read(expected).unwrap();
    let mut bytes = vec![0; image.size_bytes() as usize];
    image.read_at(0, &mut bytes).unwrap();
    assert!(bytes == expected, "{}", file.display());
}

#[test]
fn a_version_is_exported_whole_and_nothing_is_written_over() {
    let bench = Bench::new();
    three(&bench);
    let disk = bench.path("disk.raw");
    for (name, format) in [
        ("out.raw", ExportFormat::Raw),
        ("out.qcow2", ExportFormat::Qcow2),
    ] {
        let file = bench.path(name);
        let done = export(&bench.dc, "deb", &file, format, &Meter::default()).unwrap();
        assert_eq!(
            (done.version.as_str(), done.disk_bytes),
            ("deb@3", 16 << 20)
        );
        assert_eq!(done.verified_bytes, 16 << 20);
        compare(&file, &disk);
        let again = export(&bench.dc, "deb", &file, format, &Meter::default());
        assert!(matches!(again, Err(ExportError::Path { .. })));
    }
    // Holes are holes.
    use std::os::unix::fs::MetadataExt;
    let blocks = std::fs::metadata(bench.path("out.raw")).unwrap().blocks();
    assert!(blocks * 512 < 10 << 20, "{blocks} blocks");

    // A version that cannot be read leaves nothing.
    let mut chunks = Chunks::default();
    walk(&Nodes(&bench), root(&bench, "deb@2"), &mut chunks).unwrap();
    let lost = *chunks.0.first().unwrap();
    bench
        .dc
        .store()
        .quarantine(RecordName::chunk(lost))
        .unwrap();
    let file = bench.path("broken.raw");
    let failed = export(
        &bench.dc,
        "deb@2",
        &file,
        ExportFormat::Raw,
        &Meter::default(),
    );
    assert!(matches!(failed, Err(ExportError::Store(_))));
    let left: Vec<_> = std::fs::read_dir(bench.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("broken"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let meter = Meter::default();
    meter.cancel();
    let ended = export(&bench.dc, "deb@1", &file, ExportFormat::Qcow2, &meter);
    assert!(matches!(ended, Err(ExportError::Cancelled)));
}
