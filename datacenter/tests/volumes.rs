//! Volumes of desktops at the datacenter: leases, segments that arrive as prefixes whatever commit fails, snapshots, forks, and collections
//! beside all of it.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;

use datacenter::catalog::Catalog;
use datacenter::catalog::audit::AuditRow;
use datacenter::catalog::rows::Meta;
use datacenter::catalog::volumes::{BeginRow, LineKey};
use datacenter::export::snapshot_operation;
use datacenter::operations::Meter;
use datacenter::realm::files::DataDir;
use datacenter::restored::mark_restored;
use datacenter::upkeep::collect::collect_garbage;
use datacenter_api::{
    AssignRequest, BreakLeaseRequest, CollectRequest, ExportRequest, RollBackRequest,
    SnapshotCause, StatePolicyRequest,
};
use dedup::{BranchId, DesktopId};
use dedup_protocol::state::Generation;
use dedup_protocol::state::began::StateName;
use dedup_protocol::state::message::{Cut, DenyReason, ReturnLease};
use dedup_protocol::wire::Message;
use dedup_store::disk::HostDisk;
use dedup_store::kv::MemKv;
use proptest::prelude::*;
use support::cuts::Cuts;
use support::site::{BLOCK, Site, block, join, line_row, read_disk};
use support::{Bench, START, sparse_disk};

const DISK_BYTES: u64 = 6 << 20;
const HOUR: u64 = 3600;

/// A datacenter with an image, and two branches that run it.
struct World {
    bench: Bench,
    cuts: Arc<Cuts>,
    version: String,
    base: Vec<u8>,
    ny: BranchId,
    la: BranchId,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = HostDisk::new(DataDir::new(dir.path()).store()).unwrap();
        let cuts = Arc::new(Cuts::default());
        let index = Arc::new(MemKv::new());
        let bench = Bench::on_disk(dir, Arc::new(disk), cuts.clone(), index);
        bench.dc.create_image("deb", None).unwrap();
        let file = bench.path("disk.raw");
        sparse_disk(&file, DISK_BYTES, &[(0, 300_000), (4 << 20, 70_000)], 9);
        bench.publish("deb", &file).unwrap();
        let base = std::fs::read(&file).unwrap();
        let [ny, la] = ["ny", "la"].map(|name| {
            let branch = join(&bench, name);
            let request = AssignRequest {
                version: "deb@1".into(),
                ..AssignRequest::default()
            };
            bench.dc.assign_pool(name, "office", &request).unwrap();
            branch
        });
        let version = bench.dc.version_named("deb@1").unwrap().id;
        Self {
            bench,
            cuts,
            version,
            base,
            ny,
            la,
        }
    }

    /// A new desktop's volume at a branch.
    fn site(&self, branch: BranchId, number: u8) -> Site {
        let volume = DesktopId([number; 16]);
        let site = Site::new(&self.bench, branch, volume, self.base.clone());
        site.report(&self.bench, &self.version);
        site
    }

    /// As if the datacenter was started anew: its machines are gone, and what a crash left is finished.
    fn restart(&self) {
        for branch in [self.ny, self.la] {
            drop(self.bench.dc.link_up(branch, ([127, 0, 0, 1], 1).into()));
        }
        self.bench.dc.finish_segments().unwrap();
    }

    /// What the datacenter shows of a volume is what its branch's disk showed at the position it says. Answers that.
    fn check_prefix(&self, site: &Site) -> u64 {
        let row = line_row(&self.bench.dc, LineKey::own(site.volume)).unwrap();
        let seq = row.applied.seq;
        let shown = read_disk(&self.bench.dc, &row.disks[0]);
        assert!(
            shown == site.disk_at(seq),
            "the state at record {seq} is no prefix"
        );
        seq
    }

    fn collect_all(&self) {
        for _ in 0..3 {
            let request = CollectRequest::default();
            collect_garbage(&self.bench.dc, &request, &Meter::default()).unwrap();
            self.bench.clock.advance(25 * HOUR);
        }
        assert_eq!(self.bench.dc.store().halted(), None, "no alarm");
    }
}

/// A day of a desktop: it writes here and there, and is written back now and then.
fn live(world: &World, site: &mut Site) -> Result<(), datacenter::volumes::StateError> {
    let dc = &world.bench.dc;
    if !site.holds() {
        site.ask(dc)?;
    }
    assert!(site.holds(), "{:?}", site.denied);
    while site.log.len() < 16 {
        let n = site.log.len();
        // Within a leaf, over its end, twice at one place, and zeros.
        site.write([0, 3, 1023, 1024, 5, 3, 70][n % 7], (n % 5) as u8);
        if n % 8 == 7 {
            site.wish(Cut::LogOff);
            site.sync(dc)?;
        }
    }
    site.sync(dc)
}

#[test]
fn what_is_here_is_a_prefix_whatever_commit_fails() {
    let world = World::new();
    let mut number = 0;
    for last_is_durable in [false, true] {
        for commits in 0.. {
            number += 1;
            let mut site = world.site(world.ny, number);
            world.cuts.cut(commits, last_is_durable);
            let first = live(&world, &mut site);
            let was_cut = world.cuts.heal();
            assert_eq!(first.is_err(), was_cut, "{first:?}");
            world.restart();
            world.check_prefix(&site);
            live(&world, &mut site).unwrap();
            assert_eq!(world.check_prefix(&site), 16, "{commits}");
            assert_eq!(site.generation(), Generation(1));
            assert_eq!(site.sender.facts().acked.seq, 16);
            if !was_cut {
                break;
            }
        }
    }
    assert!(number > 12, "each of many commits was cut: {number}");
}

#[test]
fn a_lease_is_given_back_and_goes_to_whoever_is_at_home() {
    let world = World::new();
    let dc = &world.bench.dc;
    let mut site = world.site(world.ny, 1);
    live(&world, &mut site).unwrap();
    // Renewals go on with the generation.
    site.ask(dc).unwrap();
    let shown = dc.volume_state(&site.volume.to_string()).unwrap().volume;
    let lease = shown.lease.unwrap();
    assert_eq!((lease.generation, lease.renewal), (1, 2));
    assert_eq!(
        (shown.lag_records, shown.rpo_s),
        (Some(0), Some(0)),
        "nothing is behind"
    );
    // Another branch learns nothing.
    let mut stranger = Site::new(&world.bench, world.la, site.volume, site.base.clone());
    stranger.report(&world.bench, &world.version);
    stranger.ask(dc).unwrap();
    assert_eq!(stranger.denied, Some(DenyReason::Unknown));

    site.give_back(dc).unwrap();
    assert!(!site.holds());
    site.ask(dc).unwrap();
    assert_eq!(site.generation(), Generation(2));
    let own = line_row(dc, LineKey::own(site.volume)).unwrap();
    let stage = site.hold.aim().unwrap();
    assert_eq!(
        stage.1.head, own.applied.head,
        "it goes on behind what is here"
    );

    // While nobody holds it, IT names another home, whose first question is answered.
    let moved = BreakLeaseRequest {
        reason: "carol: alice moved".into(),
        force: false,
        home: Some("la".into()),
    };
    let id = site.volume.to_string();
    dc.break_lease(&id, &moved).unwrap_err();
    let generation = site.generation();
    dc.return_lease(
        world.ny,
        &ReturnLease {
            desktop: site.volume,
            generation,
            at: stage.1,
        },
    )
    .unwrap();
    dc.break_lease(&id, &moved).unwrap();
    let mut other = Site::new(&world.bench, world.la, site.volume, site.disk_at(16));
    other.ask(dc).unwrap();
    assert_eq!(other.generation(), Generation(3));
    let audit = dc.audit_log(None, 10).unwrap();
    assert_eq!(audit[0].facts.event, "home_changed");
}

#[test]
fn a_broken_lease_becomes_a_fork_that_is_restored() {
    let world = World::new();
    let dc = &world.bench.dc;
    let mut site = world.site(world.ny, 1);
    let id = site.volume.to_string();
    live(&world, &mut site).unwrap();
    let state_before = site.disk_at(16);
    site.write(9, 77);

    let mut request = BreakLeaseRequest {
        reason: "carol: the branch does not answer".into(),
        force: false,
        home: Some("la".into()),
    };
    let refused = dc.break_lease(&id, &request).unwrap_err();
    assert!(
        refused.to_string().contains("may run the desktop"),
        "{refused}"
    );
    request.force = true;
    let link = dc.link_up(world.ny, ([127, 0, 0, 1], 1).into());
    let state = dc.break_lease(&id, &request).unwrap();
    assert_eq!(state.volume.lease, None);
    let told = dc.take_notices(world.ny);
    assert!(matches!(told[..], [Message::FenceLease(_)]), "{told:?}");
    drop(link);

    // The other branch goes on with what was here.
    let mut other = Site::new(&world.bench, world.la, site.volume, state_before.clone());
    other.ask(dc).unwrap();
    assert_eq!(other.generation(), Generation(2));

    // The first one hears of it, and sends all that it has.
    site.sync(dc).unwrap();
    site.sync(dc).unwrap();
    assert!(!site.holds());
    let state = dc.volume_state(&id).unwrap();
    assert_eq!(state.forks.len(), 1, "{state:?}");
    assert!(state.forks[0].whole);
    let own = line_row(dc, LineKey::own(site.volume)).unwrap();
    assert!(
        read_disk(dc, &own.disks[0]) == state_before,
        "the state is as it was"
    );

    // Nothing of it is collected before somebody decides.
    world.collect_all();
    let fork = state.forks[0].name.clone();
    let held = dc.restore_fork(&id, &fork, "carol").unwrap_err();
    assert!(held.to_string().contains("holds the volume"), "{held}");
    other.give_back(dc).unwrap();
    let state = dc
        .restore_fork(&id, &fork, "carol: alice wants it")
        .unwrap();
    assert_eq!(state.forks, vec![]);
    assert!(
        state.snapshots.last().unwrap().pinned,
        "the state before is kept"
    );
    let own = line_row(dc, LineKey::own(site.volume)).unwrap();
    assert!(read_disk(dc, &own.disks[0]) == site.disk_at(17));
    other.ask(dc).unwrap();
    let (_, start) = other.hold.aim().unwrap();
    assert_eq!(
        start.head, own.applied.head,
        "the next lease goes on behind the fork"
    );

    // What is settled brings nothing more, and its beginning is forgotten.
    let state = dc.settle_generation(&id, 1, "carol").unwrap();
    assert!(state.ended.iter().all(|ended| ended.generation != 1));
    let begins = dc.catalog().read(|tx| tx.list::<BeginRow>(&[], None, 10));
    let generations: Vec<u64> = begins
        .unwrap()
        .iter()
        .map(|(k, _)| k.generation.0)
        .collect();
    assert_eq!(generations, [2, 3]);
    let audit = dc.audit_log(None, 10).unwrap();
    let events: Vec<&str> = audit
        .iter()
        .map(|entry| entry.facts.event.as_str())
        .collect();
    assert_eq!(
        events,
        ["generation_settled", "fork_restored", "lease_broken"]
    );
    assert_eq!(audit[2].facts.branch.as_deref(), Some("ny"));
    let rows = dc.catalog().read(|tx| tx.list::<AuditRow>(&[], None, 10));
    assert_eq!(rows.unwrap().len(), 3);
}

/// More could not be seen, nor dropped by who sees them.
#[test]
fn a_roll_back_that_cannot_keep_the_state_before_is_refused_with_the_lease_as_it_was() {
    let world = World::new();
    let dc = &world.bench.dc;
    let mut site = world.site(world.ny, 1);
    let id = site.volume.to_string();
    live(&world, &mut site).unwrap();
    let first = dc.snapshot_volume(&id).unwrap().number;
    let full = loop {
        if let Err(error) = dc.snapshot_volume(&id) {
            break error.to_string();
        }
    };
    assert!(full.contains("512 snapshots"), "{full}");
    let request = RollBackRequest {
        reason: "carol: a test".into(),
        force: true,
    };
    let refused = dc.roll_back(&id, first, &request).unwrap_err();
    assert!(refused.to_string().contains("512 snapshots"), "{refused}");
    let state = dc.volume_state(&id).unwrap();
    assert!(state.volume.lease.is_some(), "nothing was broken for it");
    assert_eq!(state.snapshots.len(), 512);
    dc.drop_snapshot(&id, first + 1, "carol: a test").unwrap();
    dc.roll_back(&id, first, &request).unwrap();
    assert_eq!(dc.volume_state(&id).unwrap().snapshots.len(), 512);
}

#[test]
fn a_volume_goes_on_behind_a_snapshot() {
    let world = World::new();
    let dc = &world.bench.dc;
    let mut site = world.site(world.ny, 1);
    let id = site.volume.to_string();
    live(&world, &mut site).unwrap();
    let number = dc.snapshot_volume(&id).unwrap().number;
    let at_snapshot = site.disk_at(16);
    site.write(9, 77);
    site.wish(Cut::LogOff);
    site.sync(dc).unwrap();
    let mut request = RollBackRequest {
        reason: "carol: alice asked for it".into(),
        force: false,
    };
    dc.roll_back(&id, number + 100, &request).unwrap_err();
    let refused = dc.roll_back(&id, number, &request).unwrap_err();
    assert!(
        refused.to_string().contains("may run the desktop"),
        "{refused}"
    );
    request.force = true;
    let state = dc.roll_back(&id, number, &request).unwrap();
    assert_eq!(state.volume.lease, None);
    let former = state.snapshots.last().unwrap();
    assert!(former.pinned, "the state before is kept");
    let (_, disk) = dc.snapshot_disk(&id, former.number).unwrap();
    assert!(read_disk(dc, &disk) == site.disk_at(17));
    let own = line_row(dc, LineKey::own(site.volume)).unwrap();
    assert!(read_disk(dc, &own.disks[0]) == at_snapshot);
    let audit = dc.audit_log(None, 10).unwrap();
    assert_eq!(audit[0].facts.event, "rolled_back");

    // The branch hears of it, sends what it has as a fork, and goes on behind the snapshot.
    site.ask(dc).unwrap();
    site.sync(dc).unwrap();
    site.sync(dc).unwrap();
    assert!(!site.holds());
    site.ask(dc).unwrap();
    assert_eq!(site.generation(), Generation(2));
    let (_, start) = site.hold.aim().unwrap();
    assert_eq!(start.head, own.applied.head);

    // What the generation goes on behind is read by who holds it, and by nobody else.
    let begun = |generation| StateName {
        desktop: site.volume,
        generation: Generation(generation),
    };
    assert!(dc.may_read_state(world.ny, begun(2)).unwrap());
    assert!(!dc.may_read_state(world.la, begun(2)).unwrap());
    assert!(!dc.may_read_state(world.ny, begun(1)).unwrap());
    assert!(!dc.may_read_state(world.ny, begun(3)).unwrap());
    world.collect_all();
    assert!(read_disk(dc, &own.disks[0]) == at_snapshot);
}

#[test]
fn collections_beside_write_back_take_nothing_that_is_needed() {
    let world = World::new();
    let dc = &world.bench.dc;
    let mut site = world.site(world.ny, 1);
    site.ask(dc).unwrap();
    for (n, place) in [0, 3, 1023, 1024, 5, 70, 900].into_iter().enumerate() {
        site.write(place, n as u8 + 1);
    }
    // Two parts of three are staged, then the link goes and time passes.
    site.offers_left = 2;
    site.sync(dc).unwrap();
    let staged = line_row(dc, LineKey::own(site.volume)).unwrap().staged;
    assert_eq!(staged.unwrap().parts, 2);
    world.restart();
    world.collect_all();
    site.offers_left = usize::MAX;
    site.sync(dc).unwrap();
    assert_eq!(world.check_prefix(&site), 7);
    world.collect_all();
    world.check_prefix(&site);

    // A snapshot keeps what the state gave up; without it, it goes.
    let kept = dc.snapshot_volume(&site.volume.to_string()).unwrap();
    let shown = site.disk_at(7);
    site.write(0, 99);
    site.sync(dc).unwrap();
    world.collect_all();
    let target = world.bench.path("alice.raw");
    let (volume, number) = (site.volume.to_string(), kept.number);
    let (_, tree) = dc.snapshot_disk(&volume, number).unwrap();
    assert!(read_disk(dc, &tree) == shown);
    let request = ExportRequest {
        path: target.display().to_string(),
        format: "raw".into(),
    };
    snapshot_operation(dc, &volume, number, &request).unwrap();
    support::wait_for(std::time::Duration::from_secs(60), "the export", || {
        (dc.operations().running_count() == 0).then_some(())
    });
    assert!(std::fs::read(&target).unwrap() == shown);
    let only_there = dc.id_key().chunk_id(&block(1));
    assert!(dc.store().contains_chunk(only_there).unwrap());
    for snapshot in dc.volume_state(&volume).unwrap().snapshots {
        dc.drop_snapshot(&volume, snapshot.number, "carol").unwrap();
    }
    world.collect_all();
    assert!(!dc.store().contains_chunk(only_there).unwrap());
    world.check_prefix(&site);
}

#[test]
fn snapshots_are_cut_by_policy_and_kept_by_retention() {
    let world = World::new();
    let dc = &world.bench.dc;
    let request = StatePolicyRequest {
        snapshot_every_s: Some(HOUR),
        keep_newest: Some(2),
        keep_hourly: Some(0),
        keep_daily: Some(0),
        keep_weekly: Some(0),
        ..StatePolicyRequest::default()
    };
    dc.set_state_policy("ny", "office", &request).unwrap();
    let mut site = world.site(world.ny, 1);
    site.ask(dc).unwrap();
    let causes = || -> Vec<SnapshotCause> {
        let state = dc.volume_state(&DesktopId([1; 16]).to_string()).unwrap();
        state.snapshots.iter().map(|s| s.cause).collect()
    };
    let mut step = |value: u8, cut: Option<Cut>, later_s: u64| {
        world.bench.clock.advance(later_s);
        site.write(3, value);
        if let Some(cut) = cut {
            site.wish(cut);
        }
        site.sync(dc).unwrap();
    };
    step(1, None, 0);
    assert_eq!(causes(), [SnapshotCause::Policy], "the first state is new");
    step(2, None, 60);
    assert_eq!(causes().len(), 1, "not every segment");
    step(3, Some(Cut::LogOff), 60);
    assert_eq!(causes(), [SnapshotCause::Policy, SnapshotCause::LogOff]);
    step(4, Some(Cut::Asked), 60);
    step(5, None, HOUR);
    step(6, None, HOUR);
    assert_eq!(
        causes(),
        [
            SnapshotCause::Asked,
            SnapshotCause::Policy,
            SnapshotCause::Policy
        ],
        "two of the newest, and what was asked for"
    );
    let refused = dc.set_state_policy(
        "ny",
        "office",
        &StatePolicyRequest {
            lease_s: Some(1),
            ..StatePolicyRequest::default()
        },
    );
    assert!(refused.is_err());
}

#[test]
fn former_programs_refuse_a_catalog_with_volumes() {
    let world = World::new();
    let format = || {
        let meta = world.bench.dc.catalog().read(|tx| tx.get::<Meta>(&()));
        meta.unwrap().unwrap().format
    };
    assert_eq!(format(), 1);
    world.site(world.ny, 1);
    assert_eq!(format(), 2);
    Catalog::open(world.cuts.clone(), world.bench.dc.realm()).unwrap();
}

#[test]
fn generations_go_on_above_a_restore() {
    let world = World::new();
    let dc = &world.bench.dc;
    let mut before = world.site(world.ny, 1);
    before.ask(dc).unwrap();
    assert_eq!(before.generation(), Generation(1));
    mark_restored(dc.catalog(), START, START + 10).unwrap();
    world.restart();
    let mut after = world.site(world.ny, 2);
    after.ask(dc).unwrap();
    assert!(after.generation().0 > (START + 10) << 16);
    // Who has a lease keeps it.
    before.ask(dc).unwrap();
    assert_eq!(before.generation(), Generation(1));
    before.give_back(dc).unwrap();
    before.ask(dc).unwrap();
    assert!(before.generation() > Generation((START + 10) << 16));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Writes anywhere, written back now and then: the state is always what the disk showed.
    #[test]
    fn states_are_what_disks_showed(
        writes in prop::collection::vec((0..(DISK_BYTES as usize / BLOCK), 0u8..30, prop::bool::weighted(0.2)), 1..60),
    ) {
        let world = World::new();
        let dc = &world.bench.dc;
        let mut site = world.site(world.ny, 1);
        site.ask(dc).unwrap();
        for (place, value, syncs) in writes {
            site.write(place, value);
            if syncs {
                site.sync(dc).unwrap();
                prop_assert_eq!(world.check_prefix(&site), site.log.len() as u64);
            }
        }
    }
}
