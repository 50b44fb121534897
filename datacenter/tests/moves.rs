//! Desktops that are moved between branches: one owner at every step, whatever commit fails, and nothing lost that was sent.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::any::Any;
use std::sync::Arc;

use datacenter::catalog::audit::AuditRow;
use datacenter::catalog::volumes::LineKey;
use datacenter::realm::files::DataDir;
use datacenter::volumes::StateError;
use datacenter_api::{
    AssignRequest, BreakLeaseRequest, Move, MoveRequest, MoveState, RollBackRequest, WipeRequest,
};
use dedup::{BranchId, DesktopId};
use dedup_protocol::state::Generation;
use dedup_protocol::state::message::{DenyReason, ReturnLease};
use dedup_protocol::wire::Message;
use dedup_store::disk::HostDisk;
use dedup_store::kv::MemKv;
use support::cuts::Cuts;
use support::site::{Site, join, line_row, read_disk};
use support::{Bench, sparse_disk};

const DISK_BYTES: u64 = 4 << 20;

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
        sparse_disk(&file, DISK_BYTES, &[(0, 100_000)], 9);
        bench.publish("deb", &file).unwrap();
        let base = std::fs::read(&file).unwrap();
        let [ny, la] = ["ny", "la"].map(|name| {
            let branch = join(&bench, name);
            assign(&bench, name, "office", false);
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

    /// A desktop's system volume at New York, with some writes that came here.
    fn site(&self, number: u8) -> Site {
        let dc = &self.bench.dc;
        let volume = DesktopId([number; 16]);
        let mut site = Site::new(&self.bench, self.ny, volume, self.base.clone());
        site.report(&self.bench, &self.version);
        site.ask(dc).unwrap();
        assert!(site.holds(), "{:?}", site.denied);
        for place in 0..4 {
            site.write(place, place as u8 + 1);
        }
        site.sync(dc).unwrap();
        site
    }

    /// The links of both branches, up while the answer lives.
    fn links(&self) -> Vec<Box<dyn Any>> {
        let up = |branch, port| -> Box<dyn Any> {
            Box::new(self.bench.dc.link_up(branch, ([127, 0, 0, 1], port).into()))
        };
        vec![up(self.ny, 1), up(self.la, 2)]
    }

    fn state(&self, site: &Site) -> Move {
        self.bench.dc.move_of(&site.volume.to_string()).unwrap()
    }

    fn holder(&self, site: &Site) -> Option<String> {
        let state = self.bench.dc.volume_state(&site.volume.to_string());
        state.unwrap().volume.lease.map(|lease| lease.branch)
    }

    fn home(&self, site: &Site) -> String {
        let state = self.bench.dc.volume_state(&site.volume.to_string());
        state.unwrap().volume.home
    }
}

fn assign(bench: &Bench, branch: &str, pool: &str, pooled: bool) {
    let request = AssignRequest {
        version: "deb@1".into(),
        pooled: Some(pooled),
        ..AssignRequest::default()
    };
    bench.dc.assign_pool(branch, pool, &request).unwrap();
}

fn request() -> MoveRequest {
    MoveRequest {
        desktop: "alice".into(),
        from: "ny".into(),
        to: "la".into(),
        reason: "carol: alice moves".into(),
        ..MoveRequest::default()
    }
}

fn refused(world: &World, request: &MoveRequest, words: &str) {
    let error = world.bench.dc.move_desktop(request).unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn a_desktop_is_handed_over_when_it_stands_still_and_all_of_it_is_here() {
    let world = World::new();
    let dc = &world.bench.dc;
    let mut site = world.site(1);
    site.write(9, 99);
    let _links = world.links();
    let begun = dc.move_desktop(&request()).unwrap();
    assert_eq!(begun.state, MoveState::Leaving);
    assert_eq!(
        (world.home(&site), world.holder(&site)),
        ("la".into(), Some("ny".into()))
    );
    let told = dc.take_notices(world.ny);
    assert!(
        matches!(&told[..], [Message::RecallLease(r)] if r.generation == Generation(1)),
        "{told:?}"
    );
    assert!(dc.take_notices(world.la).is_empty(), "it is not there yet");
    // Nobody else is granted it meanwhile, and its holder goes on.
    let mut other = Site::new(&world.bench, world.la, site.volume, Vec::new());
    other.ask(dc).unwrap();
    assert_eq!(other.denied, Some(DenyReason::Held));
    site.ask(dc).unwrap();
    assert!(
        site.holds() && site.hold.is_recalled(),
        "a renewal says it again"
    );
    site.sync(dc).unwrap();
    let whole = site.disk_at(5);
    site.give_back(dc).unwrap();
    assert!(!site.holds());
    assert_eq!(world.state(&site).state, MoveState::Arriving);
    let told = dc.take_notices(world.la);
    let Some(Message::Moved(moved)) = told.last() else {
        panic!("{told:?}");
    };
    assert_eq!(moved.volumes(), [site.volume]);
    // What the new branch goes on behind is what the former one wrote.
    other.base = whole.clone();
    other.ask(dc).unwrap();
    assert_eq!(other.generation(), Generation(2));
    let row = line_row(dc, LineKey::own(site.volume)).unwrap();
    assert!(read_disk(dc, &row.disks[0]) == whole);
    assert_eq!(world.state(&site).state, MoveState::Done);
    assert_eq!(world.holder(&site), Some("la".into()));
    // The former one hears why it gets it no more, and it can be moved back.
    site.ask(dc).unwrap();
    assert_eq!(site.denied, Some(DenyReason::Unknown));
    let audit = dc.audit_log(None, 10).unwrap();
    assert_eq!(audit[0].facts.event, "moved");
}

#[test]
fn who_cannot_be_reached_is_waited_for_unless_the_lease_is_broken() {
    let world = World::new();
    let dc = &world.bench.dc;
    let mut site = world.site(1);
    refused(&world, &request(), "not reachable");
    let la = dc.link_up(world.la, ([127, 0, 0, 1], 2).into());
    refused(&world, &request(), "holds the desktop and is not reachable");
    assert_eq!(world.home(&site), "ny", "nothing was changed");
    site.write(9, 99);
    let broken = MoveRequest {
        break_lease: true,
        ..request()
    };
    let moved = dc.move_desktop(&broken).unwrap();
    assert_eq!(moved.state, MoveState::Arriving);
    let told = dc.take_notices(world.la);
    assert!(matches!(told.last(), Some(Message::Moved(_))), "{told:?}");
    let mut other = Site::new(&world.bench, world.la, site.volume, site.disk_at(4));
    other.ask(dc).unwrap();
    assert_eq!(other.generation(), Generation(2));
    assert_eq!(world.state(&site).state, MoveState::Done);
    // What had not been sent is kept aside.
    site.sync(dc).unwrap();
    site.sync(dc).unwrap();
    let state = dc.volume_state(&site.volume.to_string()).unwrap();
    assert_eq!(state.forks.len(), 1);
    let events = dc.audit_log(None, 10).unwrap();
    let events: Vec<&str> = events
        .iter()
        .map(|entry| entry.facts.event.as_str())
        .collect();
    assert_eq!(events, ["lease_broken", "moved"]);
    drop(la);
}

/// IT's word ends the wait for a branch that does not give it back, by either command.
#[test]
fn a_move_goes_on_when_the_lease_is_broken_while_it_waits() {
    for rolls_back in [false, true] {
        let world = World::new();
        let dc = &world.bench.dc;
        let site = world.site(1);
        let id = site.volume.to_string();
        let _links = world.links();
        let cut = dc.snapshot_volume(&id).unwrap();
        dc.move_desktop(&request()).unwrap();
        assert!(dc.take_notices(world.la).is_empty(), "it is not there yet");
        let reason = "carol: the branch hangs".to_owned();
        if rolls_back {
            let request = RollBackRequest {
                reason,
                force: true,
            };
            dc.roll_back(&id, cut.number, &request).unwrap();
        } else {
            let request = BreakLeaseRequest {
                reason,
                force: true,
                home: None,
            };
            dc.break_lease(&id, &request).unwrap();
        }
        let told = dc.take_notices(world.la);
        assert!(matches!(told.last(), Some(Message::Moved(_))), "{told:?}");
        let mut other = Site::new(&world.bench, world.la, site.volume, site.disk_at(4));
        other.ask(dc).unwrap();
        assert!(other.holds(), "{:?}", other.denied);
        assert_eq!(world.state(&site).state, MoveState::Done);
    }
}

#[test]
fn a_move_is_taken_back_as_long_as_nothing_has_arrived() {
    let world = World::new();
    let dc = &world.bench.dc;
    let mut site = world.site(1);
    let id = site.volume.to_string();
    let _links = world.links();
    dc.cancel_move(&id, "carol").unwrap_err();
    dc.move_desktop(&request()).unwrap();
    site.give_back(dc).unwrap();
    let cancelled = dc.cancel_move(&id, "carol: stays").unwrap();
    assert_eq!(cancelled.state, MoveState::Cancelled);
    let mut other = Site::new(&world.bench, world.la, site.volume, Vec::new());
    other.ask(dc).unwrap();
    assert_eq!(other.denied, Some(DenyReason::Unknown));
    site.ask(dc).unwrap();
    assert_eq!(site.generation(), Generation(2));
    assert!(!site.hold.is_recalled());
    // Once it has arrived it is too late.
    dc.move_desktop(&request()).unwrap();
    let returned = ReturnLease {
        desktop: site.volume,
        generation: site.generation(),
        at: site.hold.aim().unwrap().1,
    };
    dc.return_lease(world.ny, &returned).unwrap();
    other.ask(dc).unwrap();
    let late = dc.cancel_move(&id, "carol").unwrap_err();
    assert!(late.to_string().contains("over"), "{late}");
}

#[test]
fn what_cannot_go_there_is_refused_with_the_reason() {
    let world = World::new();
    let _site = world.site(1);
    let _links = world.links();
    let to_itself = MoveRequest {
        to: "ny".into(),
        ..request()
    };
    refused(&world, &to_itself, "another branch");
    let nobody = MoveRequest {
        desktop: "bob".into(),
        ..request()
    };
    refused(&world, &nobody, "no desktop");
    let nowhere = MoveRequest {
        pool: Some("lab".into()),
        ..request()
    };
    refused(&world, &nowhere, "no pool");
    assign(&world.bench, "la", "lab", true);
    refused(&world, &nowhere, "would be lost");
    let silent = MoveRequest {
        reason: " ".into(),
        ..request()
    };
    refused(&world, &silent, "audit log");
}

#[test]
fn a_wipe_of_one_of_its_branches_ends_the_lease_of_that_one_alone() {
    for (wiped, holder) in [("la", Some("ny")), ("ny", None)] {
        let world = World::new();
        let dc = &world.bench.dc;
        let site = world.site(1);
        let _links = world.links();
        dc.move_desktop(&request()).unwrap();
        let request = WipeRequest {
            desktop: None,
            reason: "carol: burnt".into(),
        };
        let order = dc.order_wipe(wiped, &request).unwrap();
        let branch = if wiped == "la" { world.la } else { world.ny };
        dc.record_wiped(branch, order.number).unwrap();
        assert_eq!(world.holder(&site).as_deref(), holder, "{wiped}");
        assert_eq!(world.home(&site), "la");
        let told = dc.take_notices(world.la);
        let is_told = matches!(told.last(), Some(Message::Moved(_)));
        assert_eq!(is_told, holder.is_none(), "{told:?}");
    }
}

#[test]
fn what_is_given_up_at_a_branch_is_held_by_nobody() {
    let world = World::new();
    let dc = &world.bench.dc;
    let mut site = world.site(1);
    site.write(9, 99);
    site.drop_writes(dc).unwrap();
    assert_eq!(world.holder(&site), None);
    // What was sent before is here still.
    let row = line_row(dc, LineKey::own(site.volume)).unwrap();
    assert!(read_disk(dc, &row.disks[0]) == site.disk_at(4));
    dc.delete_volume(&site.volume.to_string(), "carol: alice left")
        .unwrap();
}

/// Moves a desktop as far as commits go through, as its two branches and IT would.
fn hand_over(world: &World, site: &mut Site, other: &mut Site) -> Result<(), String> {
    let dc = &world.bench.dc;
    let told = |error: StateError| error.to_string();
    dc.move_desktop(&request()).map_err(|e| e.to_string())?;
    if site.holds() {
        site.ask(dc).map_err(told)?;
        site.give_back(dc).map_err(told)?;
    }
    other.ask(dc).map_err(told)
}

#[test]
fn one_branch_owns_it_whatever_commit_fails() {
    let mut number = 0;
    for last_is_durable in [false, true] {
        for commits in 0.. {
            number += 1;
            let world = World::new();
            let mut site = world.site(1);
            let mut other = Site::new(&world.bench, world.la, site.volume, site.disk_at(4));
            let _links = world.links();
            world.cuts.cut(commits, last_is_durable);
            let _ = hand_over(&world, &mut site, &mut other);
            let was_cut = world.cuts.heal();
            // As after a start of the datacenter: who holds it, else where it is at home, and never two.
            assert!(!(site.holds() && other.holds()), "{commits}");
            if other.holds() {
                assert_eq!(world.holder(&site), Some("la".into()));
            }
            // Whatever was lost, the same request ends well.
            for _ in 0..3 {
                let _ = hand_over(&world, &mut site, &mut other);
            }
            assert!(
                other.holds() && !site.holds(),
                "{commits}: {:?}",
                other.denied
            );
            assert_eq!(world.state(&site).state, MoveState::Done, "{commits}");
            let row = line_row(&world.bench.dc, LineKey::own(site.volume)).unwrap();
            assert!(read_disk(&world.bench.dc, &row.disks[0]) == site.disk_at(4));
            let audited = world.bench.dc.catalog().read(|tx| {
                Ok::<_, datacenter::catalog::CatalogError>(
                    !tx.list::<AuditRow>(&[], None, 1)?.is_empty(),
                )
            });
            assert!(audited.unwrap());
            if !was_cut {
                break;
            }
        }
    }
    assert!(number > 8, "each of some commits was cut: {number}");
}
