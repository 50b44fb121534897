//! Desktops that are checked out to laptops and come back, and orders to wipe: what each branch is told, leased and denied.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use datacenter::problem::ManageError;
use datacenter_api::{
    AssignRequest, BranchKind, BreakLeaseRequest, CheckInRequest, CheckOutRequest, CheckoutStage,
    ExtendRequest, MoveRequest, TokenRequest, WipeRequest,
};
use dedup::{BranchId, DesktopId};
use dedup_protocol::join::JoinToken;
use dedup_protocol::state::authority::{Right, Stage};
use dedup_protocol::state::checkout::Checkout;
use dedup_protocol::state::lease::Lease;
use dedup_protocol::state::message::DenyReason;
use dedup_protocol::trust::Signed;
use dedup_protocol::wipe::{Target, Wipe};
use dedup_protocol::wire::Message;
use dedup_transport::identity::BranchKey;
use support::site::{Site, join, line_row, read_disk};
use support::{Bench, START, sparse_disk};

const VOLUME: DesktopId = DesktopId([0xab; 16]);
const DAY: u64 = 86_400;
const WHY: &str = "carol: a test";

struct World {
    bench: Bench,
    laptop: BranchId,
    /// The desktop at its branch.
    ny: Site,
}

fn join_laptop(bench: &Bench, name: &str) -> BranchId {
    let request = TokenRequest {
        laptop: true,
        ..TokenRequest::default()
    };
    let made = bench.dc.create_join_token(name, &request).unwrap();
    let token: JoinToken = made.token.parse().unwrap();
    let key = BranchKey::generate();
    let joined = bench
        .dc
        .redeem_join_token(&token.secret, key.csr_der(), START);
    joined.unwrap().branch
}

impl World {
    fn new() -> Self {
        let bench = Bench::new();
        bench.dc.create_image("deb", None).unwrap();
        let file = bench.path("disk.raw");
        sparse_disk(&file, 1 << 20, &[(0, 300_000)], 9);
        bench.publish("deb", &file).unwrap();
        let branch = join(&bench, "ny");
        let request = AssignRequest {
            version: "deb@1".into(),
            memory_mib: Some(2048),
            ..AssignRequest::default()
        };
        bench.dc.assign_pool("ny", "office", &request).unwrap();
        let laptop = join_laptop(&bench, "lap");
        let base = std::fs::read(&file).unwrap();
        let mut ny = Site::new(&bench, branch, VOLUME, base);
        ny.report(&bench, &bench.dc.version_named("deb@1").unwrap().id);
        ny.ask(&bench.dc).unwrap();
        ny.write(3, 7);
        ny.sync(&bench.dc).unwrap();
        Self { bench, laptop, ny }
    }

    fn check_out(&self, days: u64) -> datacenter_api::Checkout {
        let request = CheckOutRequest {
            to: "lap".into(),
            for_s: days * DAY,
            reason: WHY.into(),
        };
        let made = self.bench.dc.check_out("ny", "alice", &request);
        made.unwrap()
    }

    /// The desktop at the laptop, once its branch has given it back.
    fn out(&mut self, days: u64) -> Site {
        self.check_out(days);
        self.ny.give_back(&self.bench.dc).unwrap();
        let disk = self.ny.disk_at(self.ny.log.len() as u64);
        let mut site = Site::new(&self.bench, self.laptop, VOLUME, disk);
        site.ask(&self.bench.dc).unwrap();
        site
    }

    fn told(&self) -> Vec<Checkout> {
        let told = self.bench.dc.checkouts_of(self.laptop).unwrap();
        let told = told.into_iter().map(|(_, number, bytes)| {
            let signed = Signed::<Checkout>::from_bytes(&bytes).unwrap();
            let record = signed.open_own().unwrap();
            assert_eq!(record.number, number);
            record
        });
        told.collect()
    }

    fn stage(&self) -> Option<CheckoutStage> {
        let checkouts = self.bench.dc.checkouts().unwrap();
        checkouts.first().map(|checkout| checkout.stage)
    }

    fn events(&self) -> Vec<String> {
        let log = self.bench.dc.audit_log(None, 100).unwrap();
        log.into_iter()
            .rev()
            .map(|entry| entry.facts.event)
            .collect()
    }
}

fn lease(site: &Site) -> Lease {
    match &site.hold.row().stage {
        Stage::Held { lease, .. } => lease.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_desktop_goes_to_a_laptop_when_it_was_given_back_and_runs_until_the_date() {
    let mut world = World::new();
    let dc = world.bench.dc.clone();
    assert_eq!(dc.branch("lap").unwrap().kind, BranchKind::Laptop);
    let made = world.check_out(14);
    assert_eq!(made.stage, CheckoutStage::Waiting);
    assert_eq!((&*made.from, &*made.laptop), ("ny", "lap"));
    assert!(world.told().is_empty(), "it is not its yet");
    let mut early = Site::new(&world.bench, world.laptop, VOLUME, vec![]);
    early.ask(&dc).unwrap();
    assert_eq!(early.denied, Some(DenyReason::Unknown));
    // Its branch is told when it connects, as often as it does.
    for _ in 0..2 {
        let recalls = dc.meet_checkouts(world.ny.branch).unwrap();
        let [Message::RecallLease(recall)] = &recalls[..] else {
            panic!("{recalls:?}");
        };
        assert_eq!((recall.desktop, recall.generation.0), (VOLUME, 1));
    }
    assert!(dc.meet_checkouts(world.laptop).unwrap().is_empty());
    world.ny.give_back(&dc).unwrap();
    assert_eq!(world.stage(), Some(CheckoutStage::Out));
    let told = world.told();
    assert_eq!(told.len(), 1);
    let record = &told[0];
    assert_eq!((&*record.name, &*record.pool), ("alice", "office"));
    assert_eq!((record.memory_mib, record.vcpus), (2048, 1));
    assert!(record.is_valid() && !record.is_recalled && record.user.is_none());

    let disk = world.ny.disk_at(1);
    let mut lap = Site::new(&world.bench, world.laptop, VOLUME, disk);
    lap.ask(&dc).unwrap();
    let until = START + 14 * DAY;
    assert_eq!(record.until_unix_s, until);
    assert_eq!(lease(&lap).ends_unix_s(), until);
    assert_eq!(lap.hold.right(until - 1), Right::Run);
    assert_eq!(lap.hold.right(until), Right::Over, "no grace");
    // Its branch does not get it meanwhile.
    world.ny.denied = None;
    world.ny.ask(&dc).unwrap();
    assert_eq!(world.ny.denied, Some(DenyReason::Unknown));

    // When the date has come what was written still arrives, and a renewal gives no time.
    world.bench.clock.advance(15 * DAY);
    lap.write(5, 9);
    lap.ask(&dc).unwrap();
    assert_eq!(lap.hold.right(until + DAY), Right::Over);
    lap.sync(&dc).unwrap();
    let own = datacenter::catalog::volumes::LineKey::own(VOLUME);
    let row = line_row(&dc, own).unwrap();
    assert!(read_disk(&dc, &row.disks[0]) == lap.disk_at(1));
    // IT's word does.
    let request = ExtendRequest {
        for_s: 2 * DAY,
        reason: WHY.into(),
    };
    let extended = dc.extend_checkout("abababab", &request).unwrap();
    assert_eq!(extended.until_unix_s, until + 3 * DAY);
    lap.ask(&dc).unwrap();
    assert_eq!(lap.hold.right(until + 2 * DAY), Right::Run);
    assert!(world.told()[0].number > record.number);
}

/// Its branch does not answer, so IT ends its lease.
#[test]
fn a_lease_that_is_broken_lets_the_laptop_have_the_desktop() {
    let world = World::new();
    let dc = world.bench.dc.clone();
    world.check_out(14);
    let request = BreakLeaseRequest {
        reason: WHY.into(),
        force: true,
        home: None,
    };
    dc.break_lease(&VOLUME.to_string(), &request).unwrap();
    assert_eq!(world.stage(), Some(CheckoutStage::Out));
    let mut lap = Site::new(&world.bench, world.laptop, VOLUME, world.ny.disk_at(1));
    lap.ask(&dc).unwrap();
    assert!(lap.holds(), "{:?}", lap.denied);
}

#[test]
fn a_desktop_comes_back_by_its_user_or_by_it() {
    for by_it in [false, true] {
        let mut world = World::new();
        let dc = world.bench.dc.clone();
        let mut lap = world.out(14);
        lap.write(5, 9);
        lap.sync(&dc).unwrap();
        if by_it {
            let request = CheckInRequest {
                reason: WHY.into(),
                force: false,
            };
            dc.check_in("abababab", &request).unwrap();
            assert_eq!(world.stage(), Some(CheckoutStage::Returning));
            assert!(world.told()[0].is_recalled);
        }
        lap.give_back(&dc).unwrap();
        assert_eq!(world.stage(), None);
        assert!(world.told().is_empty());
        let disk = lap.disk_at(1);
        let mut ny = Site::new(&world.bench, world.ny.branch, VOLUME, disk);
        ny.ask(&dc).unwrap();
        assert!(ny.holds());
        assert_eq!(ny.generation().0, 3);
        // By the terms of its pool again.
        let lease = lease(&ny);
        assert_eq!(lease.offline_grace_s, 7 * DAY);
        lap.denied = None;
        lap.ask(&dc).unwrap();
        assert_eq!(lap.denied, Some(DenyReason::Unknown));
        let came = world.events().iter().filter(|e| *e == "checked_in").count();
        assert_eq!(came, 1 + usize::from(by_it));
    }
}

#[test]
fn a_laptop_that_is_gone_is_done_without_and_one_that_has_not_begun_is_spared() {
    let mut world = World::new();
    let dc = world.bench.dc.clone();
    let request = CheckInRequest {
        reason: WHY.into(),
        force: false,
    };
    world.check_out(1);
    dc.check_in("abababab", &request).unwrap();
    assert_eq!(world.stage(), None, "it never left");
    let mut lap = world.out(1);
    lap.write(5, 9);
    let request = CheckInRequest {
        force: true,
        ..request
    };
    dc.check_in("abababab", &request).unwrap();
    assert_eq!(world.stage(), None);
    lap.ask(&dc).unwrap();
    assert!(matches!(lap.hold.row().stage, Stage::Fenced { .. }));
    lap.sync(&dc).unwrap();
    let state = dc.volume_state("abababab").unwrap();
    assert_eq!(state.forks.len(), 1, "what it had not sent");
    assert_eq!(state.volume.home, "ny");
}

#[test]
fn what_cannot_be_checked_out_is_refused_with_the_way_out() {
    let mut world = World::new();
    let dc = world.bench.dc.clone();
    join(&world.bench, "la");
    let ask = |branch: &str, desktop: &str, to: &str, for_s: u64, reason: &str| {
        let request = CheckOutRequest {
            to: to.into(),
            for_s,
            reason: reason.into(),
        };
        dc.check_out(branch, desktop, &request).unwrap_err()
    };
    use ManageError::{Conflict, Invalid, NotFound};
    assert!(matches!(
        ask("ny", "alice", "la", DAY, WHY),
        Conflict { .. }
    ));
    assert!(matches!(ask("ny", "bob", "lap", DAY, WHY), NotFound { .. }));
    assert!(matches!(
        ask("sf", "alice", "lap", DAY, WHY),
        NotFound { .. }
    ));
    assert!(matches!(
        ask("ny", "alice", "lap", DAY, " "),
        Invalid { .. }
    ));
    let long = ask("ny", "alice", "lap", 367 * DAY, WHY);
    assert!(matches!(long, Invalid { .. }));
    world.check_out(1);
    assert!(matches!(
        ask("ny", "alice", "lap", DAY, WHY),
        Conflict { .. }
    ));
    world.ny.give_back(&dc).unwrap();
    let away = ask("ny", "alice", "lap", DAY, WHY);
    assert!(matches!(away, Conflict { .. }), "{away:?}");
    // A site that has joined does not become a laptop.
    let request = TokenRequest {
        laptop: true,
        replace: true,
        ..TokenRequest::default()
    };
    let refused = dc.create_join_token("la", &request);
    assert!(matches!(refused, Err(Conflict { .. })), "{refused:?}");
}

#[test]
fn a_desktop_is_not_moved_and_checked_out_at_once() {
    let world = World::new();
    let dc = world.bench.dc.clone();
    let la = join(&world.bench, "la");
    let office = AssignRequest {
        version: "deb@1".into(),
        ..AssignRequest::default()
    };
    dc.assign_pool("la", "office", &office).unwrap();
    let branches = [(world.ny.branch, 1_u16), (la, 2), (world.laptop, 3)];
    let _links = branches.map(|(branch, port)| dc.link_up(branch, ([127, 0, 0, 1], port).into()));
    let move_to = |to: &str| {
        dc.move_desktop(&MoveRequest {
            desktop: "alice".into(),
            from: "ny".into(),
            to: to.into(),
            reason: WHY.into(),
            ..MoveRequest::default()
        })
    };
    let refused = move_to("lap").unwrap_err().to_string();
    assert!(refused.contains("is a laptop"), "{refused}");
    move_to("la").unwrap();
    let request = CheckOutRequest {
        to: "lap".into(),
        for_s: DAY,
        reason: WHY.into(),
    };
    let refused = dc.check_out("ny", "alice", &request);
    assert!(
        matches!(refused, Err(ManageError::Conflict { .. })),
        "{refused:?}"
    );
    dc.cancel_move(&VOLUME.to_string(), WHY).unwrap();
    world.check_out(1);
    let refused = move_to("la").unwrap_err().to_string();
    assert!(refused.contains("checked out"), "{refused}");
}

#[test]
fn a_renewal_says_again_that_it_is_wanted_for_a_checkout() {
    let mut world = World::new();
    let dc = world.bench.dc.clone();
    world.check_out(1);
    world.ny.ask(&dc).unwrap();
    assert!(world.ny.holds() && world.ny.hold.is_recalled());
}

fn order(bytes: &[u8]) -> Wipe {
    let signed = Signed::<Wipe>::from_bytes(bytes).unwrap();
    signed.open_own().unwrap()
}

#[test]
fn a_lost_laptop_is_told_nothing_but_to_wipe_itself_and_its_desktops_go_on_at_their_branch() {
    let mut world = World::new();
    let dc = world.bench.dc.clone();
    let mut lap = world.out(14);
    lap.write(5, 9);
    lap.sync(&dc).unwrap();
    lap.write(6, 9);
    let laptop = world.laptop;
    assert!(!dc.is_wiped_whole(laptop).unwrap());
    let request = WipeRequest {
        desktop: None,
        reason: WHY.into(),
    };
    let made = dc.order_wipe("lap", &request).unwrap();
    assert_eq!(made.done_unix_s, None);
    assert!(dc.is_revoked(laptop).unwrap() && dc.is_wiped_whole(laptop).unwrap());
    let told = dc.wipes_to_tell(laptop, true).unwrap();
    let wipe = order(&told[0].1);
    assert_eq!((wipe.branch, wipe.target.clone()), (laptop, Target::Branch));
    assert_eq!((wipe.number, told.len()), (made.number, 1));
    assert!(dc.wipes_to_tell(laptop, false).unwrap().is_empty());
    // Said once or several times, it is noted once; of what was not ordered nothing is.
    for number in [made.number, made.number, 1] {
        dc.record_wiped(laptop, number).unwrap();
    }
    let orders = dc.wipes("lap").unwrap();
    assert_eq!(orders.len(), 1);
    assert!(orders[0].done_unix_s.is_some());
    assert_eq!(world.stage(), None);
    let state = dc.volume_state("abababab").unwrap();
    assert_eq!(state.volume.lease, None);
    let is_settled = state.ended.iter().all(|ended| ended.generation != 2);
    assert!(is_settled, "nothing can come of it: {state:?}");
    assert_eq!(state.volume.home, "ny");
    let disk = lap.disk_at(1);
    let mut ny = Site::new(&world.bench, world.ny.branch, VOLUME, disk);
    ny.ask(&dc).unwrap();
    assert!(ny.holds());
    let events = world.events();
    assert_eq!(events.iter().filter(|e| *e == "wipe_ordered").count(), 1);
    assert_eq!(events.iter().filter(|e| *e == "wiped").count(), 1);
    // One that comes back with an old disk is told again.
    assert_eq!(dc.wipes_to_tell(laptop, true).unwrap().len(), 1);
}

#[test]
fn one_desktop_is_wiped_and_its_branch_goes_on() {
    let world = World::new();
    let dc = world.bench.dc.clone();
    let ny = world.ny.branch;
    let request = |desktop: &str| WipeRequest {
        desktop: Some(desktop.into()),
        reason: WHY.into(),
    };
    let refused = dc.order_wipe("ny", &request("bob"));
    assert!(matches!(refused, Err(ManageError::NotFound { .. })));
    let made = dc.order_wipe("ny", &request("alice")).unwrap();
    assert!(!dc.is_revoked(ny).unwrap());
    let told = dc.wipes_to_tell(ny, false).unwrap();
    let target = Target::Desktop {
        name: "alice".into(),
        volumes: vec![VOLUME],
    };
    assert_eq!(order(&told[0].1).target, target);
    dc.record_wiped(ny, made.number).unwrap();
    assert!(dc.wipes_to_tell(ny, false).unwrap().is_empty());
    let state = dc.volume_state("abababab").unwrap();
    assert_eq!(state.volume.lease, None);
    assert_eq!(state.volume.snapshots, 1, "what was written back stays");
    let next = dc.order_wipe("ny", &request("alice")).unwrap();
    assert!(next.number > made.number);
}
