//! Boot profiles at the datacenter: what is taken of whom, what is signed, and what the next version starts with.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::os::unix::fs::FileExt;

use datacenter::operations::Meter;
use datacenter::profiles::RecordError;
use datacenter::update::Pair;
use datacenter_api::{AssignRequest, TokenRequest};
use dedup::{BranchId, VersionId};
use dedup_protocol::join::JoinToken;
use dedup_protocol::profile::{BootProfile, BootScore, Entries, Entry, Place, accept};
use dedup_protocol::wire::{BootRecorded, ProfileAvailable};
use dedup_transport::identity::BranchKey;
use support::{Bench, START, sparse_disk, write_runs};

const MIB: u64 = 1 << 20;

fn branch(bench: &Bench, name: &str, version: &str) -> BranchId {
    let made = bench.dc.create_join_token(name, &TokenRequest::default());
    let token: JoinToken = made.unwrap().token.parse().unwrap();
    let key = BranchKey::generate();
    let joined = bench
        .dc
        .redeem_join_token(&token.secret, key.csr_der(), START)
        .unwrap();
    assign(bench, name, version);
    joined.branch
}

fn assign(bench: &Bench, name: &str, version: &str) {
    let request = AssignRequest {
        version: version.into(),
        ..AssignRequest::default()
    };
    bench.dc.assign_pool(name, "office", &request).unwrap();
}

/// An image whose versions are given by their runs of data (offset, length, seed).
fn publish(bench: &Bench, runs: &[(u64, usize, u64)]) -> VersionId {
    let path = bench.path("disk.raw");
    sparse_disk(&path, 16 * MIB, &[], 0);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for (offset, len, seed) in runs {
        write_runs(&file, &[(*offset, *len)], *seed);
    }
    bench
        .publish("deb", &path)
        .unwrap()
        .version
        .parse()
        .unwrap()
}

fn entry(leaf: u32, extent: u16, at_ms: u32) -> Entry {
    Entry {
        place: Place { leaf, extent },
        at_ms,
        seen: 1,
    }
}

fn recorded(version: VersionId, entries: Vec<Entry>) -> BootRecorded {
    BootRecorded {
        version,
        score: BootScore {
            touched_bytes: 1000,
            ..BootScore::default()
        },
        entries: Entries::new(entries),
    }
}

fn signed_profile(bench: &Bench, branch: BranchId, version: VersionId, have: u64) -> BootProfile {
    let bytes = bench.dc.profile_newer_than(branch, version, have);
    let bytes = bytes.unwrap().unwrap();
    let endorsed = bench.dc.endorsements();
    let taken = accept(&bytes, version, have, &bench.dc.anchor(), &endorsed, START);
    taken.unwrap().1
}

#[test]
fn recordings_become_a_signed_profile_of_that_version_only() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let version = publish(&bench, &[(0, 2 << 20, 1), (8 * MIB, 1 << 20, 2)]);
    let ny = branch(&bench, "ny", "deb");
    let none = bench.dc.profile_newer_than(ny, version, 0).unwrap();
    let available = |counter| ProfileAvailable { version, counter };
    assert_eq!(none, Err(available(0)));
    assert!(bench.dc.profiles_of(ny).unwrap().is_empty());
    let mut changes = bench.dc.assignment_changes();
    changes.mark_unchanged();

    let boot = vec![entry(2, 1, 50), entry(0, 3, 10), entry(0, 4, 10)];
    let told = bench.dc.record_boot(ny, recorded(version, boot.clone()));
    assert_eq!(told.unwrap(), available(1));
    assert!(changes.has_changed().unwrap(), "branches are told");
    assert_eq!(bench.dc.profiles_of(ny).unwrap(), [available(1)]);
    let profile = signed_profile(&bench, ny, version, 0);
    assert_eq!(
        (profile.counter, profile.boots, profile.carried_from),
        (1, 1, None)
    );
    assert_eq!(profile.entries, Entries::new(boot.clone()));
    let current = bench.dc.profile_newer_than(ny, version, 1).unwrap();
    assert_eq!(current, Err(available(1)));

    // Whose signature it is, and of what, is checked by who takes it.
    let bytes = bench
        .dc
        .profile_newer_than(ny, version, 0)
        .unwrap()
        .unwrap();
    let (anchor, endorsed) = (bench.dc.anchor(), bench.dc.endorsements());
    let other = VersionId([9; 32]);
    assert!(accept(&bytes, other, 0, &anchor, &endorsed, START).is_err());
    assert!(accept(&bytes, version, 1, &anchor, &endorsed, START).is_err());
    assert!(accept(&bytes, version, 0, &anchor, &[], START).is_err());
    for at in (0..bytes.len()).step_by(7) {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(
            accept(&bad, version, 0, &anchor, &endorsed, START).is_err(),
            "byte {at}"
        );
    }

    // The second boot doubles what is known, the third does not, the fourth does.
    let mut counters = Vec::new();
    for extra in 5..8 {
        bench.clock.advance(60);
        let mut boot = boot.clone();
        boot.push(entry(0, extra, 100));
        let told = bench.dc.record_boot(ny, recorded(version, boot)).unwrap();
        counters.push(told.counter);
    }
    assert_eq!(counters, [2, 2, 3]);
    let profile = signed_profile(&bench, ny, version, 2);
    assert_eq!(profile.boots, 3, "one branch has no more than its share");
    assert_eq!(profile.entries.as_slice()[0].seen, 3);
    let shown = bench.dc.version_named("deb").unwrap().profile.unwrap();
    assert_eq!((shown.counter, shown.boots_reported), (3, 4));
    assert_eq!(shown.last_boots.len(), 4);
    assert_eq!(shown.last_boots[0].branch, ny.to_string());
    assert_eq!(shown.chunks, 6);
}

#[test]
fn foreign_malformed_and_hasty_recordings_are_refused_and_change_nothing() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let version = publish(&bench, &[(0, 2 << 20, 1)]);
    let ny = branch(&bench, "ny", "deb");
    let stranger = BranchId([7; 16]);
    let record = |branch, boot| bench.dc.record_boot(branch, boot);
    let boot = || recorded(version, vec![entry(0, 1, 1)]);
    let refused = record(stranger, boot());
    assert!(matches!(refused, Err(RecordError::NotReadable(_))));
    let refused = bench.dc.profile_newer_than(stranger, version, 0);
    assert!(matches!(refused, Err(RecordError::NotReadable(_))));
    let refused = record(ny, recorded(VersionId([8; 32]), vec![entry(0, 1, 1)]));
    assert!(matches!(refused, Err(RecordError::NotReadable(_))));
    let refused = record(ny, recorded(version, vec![]));
    assert!(matches!(refused, Err(RecordError::Empty)));
    // A leaf that the disk lacks, an extent that its leaf lacks, and a hole.
    for (leaf, extent) in [(99, 0), (0, 8000), (1, 0)] {
        let refused = record(
            ny,
            recorded(version, vec![entry(0, 1, 1), entry(leaf, extent, 2)]),
        );
        assert!(
            matches!(refused, Err(RecordError::Place(_))),
            "{leaf} {extent}"
        );
    }
    let scattered = (0..60_000u32).map(|n| entry(n * 7919 % 60_013, (n % 8000) as u16, n));
    let refused = record(ny, recorded(version, scattered.collect()));
    assert!(matches!(refused, Err(RecordError::TooLong { .. })));
    assert!(bench.dc.version_named("deb").unwrap().profile.is_none());

    record(ny, boot()).unwrap();
    assert!(matches!(
        record(ny, boot()),
        Err(RecordError::TooSoon { .. })
    ));
    bench.clock.advance(60);
    record(ny, boot()).unwrap();
}

#[test]
fn the_next_version_starts_with_what_is_known_of_its_parent() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let first = publish(&bench, &[(0, 4 << 20, 1), (8 * MIB, 4 << 20, 2)]);
    let ny = branch(&bench, "ny", "deb@1");
    let boot: Vec<_> = (0..40)
        .map(|n| entry(n % 2 * 2, (40 - n) as u16, n))
        .collect();
    bench
        .dc
        .record_boot(ny, recorded(first, boot.clone()))
        .unwrap();

    // The third leaf changes at its beginning, the first stays.
    let second = publish(
        &bench,
        &[
            (0, 4 << 20, 1),
            (8 * MIB, 4 << 20, 2),
            (8 * MIB + 100_000, 200_000, 3),
        ],
    );
    assign(&bench, "ny", "deb@2");
    let carried = signed_profile(&bench, ny, second, 0);
    assert_eq!(carried.carried_from, Some(first));
    let places = |p: &BootProfile, leaf| {
        let at = p.entries.as_slice().iter().filter(|e| e.place.leaf == leaf);
        at.map(|e| e.place.extent).collect::<Vec<_>>()
    };
    let own = signed_before(&boot, 0);
    assert_eq!(places(&carried, 0), own, "a leaf that both share");
    assert!(!places(&carried, 2).is_empty());
    let shown = bench.dc.version_named("deb@2").unwrap().profile.unwrap();
    assert_eq!(shown.carried_from, Some(first.to_string()));
    assert_eq!(shown.chunks, carried.entries.len() as u64);

    // A boot of its own: together with what was carried over, until there are two.
    let own = vec![entry(0, 1, 5), entry(0, 2, 6)];
    bench
        .dc
        .record_boot(ny, recorded(second, own.clone()))
        .unwrap();
    let both = signed_profile(&bench, ny, second, 1);
    assert_eq!((both.counter, both.boots, both.carried_from), (2, 2, None));
    assert!(both.entries.len() >= carried.entries.len());
    bench.clock.advance(60);
    bench
        .dc
        .record_boot(ny, recorded(second, own.clone()))
        .unwrap();
    let measured = signed_profile(&bench, ny, second, 2);
    assert_eq!(measured.entries.len(), own.len());
}

fn signed_before(boot: &[Entry], leaf: u32) -> Vec<u16> {
    let entries = Entries::new(boot.to_vec());
    let at = entries.as_slice().iter().filter(|e| e.place.leaf == leaf);
    at.map(|e| e.place.extent).collect()
}

/// What an upgrade moved and changed a little is not at the bytes of what it replaced, nor by its name: the update's planner knows it.
#[test]
fn an_update_s_plan_tells_which_chunks_took_the_place_of_those_that_boots_touched() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let first = publish(&bench, &[(0, 2 << 20, 1)]);
    let ny = branch(&bench, "ny", "deb@1");
    let boot: Vec<_> = (0..60).map(|n| entry(0, n, u32::from(n))).collect();
    let told = bench.dc.record_boot(ny, recorded(first, boot.clone()));
    told.unwrap();

    let path = bench.path("disk.raw");
    sparse_disk(&path, 16 * MIB, &[], 0);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    write_runs(&file, &[(8 * MIB, 2 << 20)], 1);
    for at in (8 * MIB..10 * MIB).step_by(20_000) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
    let second = bench.publish("deb", &path).unwrap();
    let second: VersionId = second.version.parse().unwrap();
    assign(&bench, "ny", "deb@2");
    let by_name = signed_profile(&bench, ny, second, 0);
    assert!(by_name.entries.len() < 40, "{}", by_name.entries.len());

    let pair = Pair {
        parent: first,
        version: second,
    };
    let made = bench.dc.updates().make(&bench.dc, pair, &Meter::default());
    made.unwrap();
    let by_plan = signed_profile(&bench, ny, second, by_name.counter);
    assert_eq!(by_plan.carried_from, Some(first));
    assert!(by_plan.entries.len() >= 58, "{}", by_plan.entries.len());
    let in_order = by_plan.entries.as_slice().windows(2);
    let as_before = in_order.filter(|e| e[0].place < e[1].place).count();
    assert!(as_before >= 57, "in the order of the parent's boot");

    // What is learned of the parent later comes by the same way.
    bench.clock.advance(60);
    assign(&bench, "ny", "deb@1");
    let longer = (0..80).map(|n| entry(0, n, u32::from(n))).collect();
    let told = bench.dc.record_boot(ny, recorded(first, longer));
    told.unwrap();
    assign(&bench, "ny", "deb@2");
    let again = signed_profile(&bench, ny, second, by_plan.counter);
    assert!(again.entries.len() > by_plan.entries.len());
}

/// A version that was published before anybody booted its parent learns of the parent's first boot.
#[test]
fn what_is_learned_late_reaches_the_next_version_too() {
    let bench = Bench::new();
    bench.dc.create_image("deb", None).unwrap();
    let first = publish(&bench, &[(0, 2 << 20, 1)]);
    let second = publish(&bench, &[(0, 2 << 20, 1), (8 * MIB, 1 << 20, 2)]);
    let ny = branch(&bench, "ny", "deb@1");
    assert!(bench.dc.version_named("deb@2").unwrap().profile.is_none());
    let boot = vec![entry(0, 3, 10)];
    bench
        .dc
        .record_boot(ny, recorded(first, boot.clone()))
        .unwrap();
    assign(&bench, "ny", "deb@2");
    let carried = signed_profile(&bench, ny, second, 0);
    assert_eq!(carried.entries, Entries::new(boot));
}
