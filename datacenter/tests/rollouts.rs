//! Rollouts over the real catalog, with branches that say what a test has them say; the datacenter begins anew between any two steps.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;
use std::sync::Arc;

use datacenter::clock::SetClock;
use datacenter::daemon::{RunOptions, open};
use datacenter::identity::rights::Place;
use datacenter::problem::ManageError;
use datacenter::realm::files::DataLock;
use datacenter::rollouts::Wish;
use datacenter_api::{
    AssignRequest, BranchStatus, CacheStatus, ChannelRequest, DesktopSigns, DesktopStatus,
    HealthGate, PolicyRequest, PriceBasis, Rollout, RolloutPoolState, RolloutRequest, RolloutState,
    VersionResidency,
};
use dedup::BranchId;
use support::daemon::init;
use support::site::join;
use support::{Bench, START};

/// A datacenter in a folder, with two branches that have pools of version 1.
struct World {
    bench: Option<(Bench, DataLock)>,
    data: tempfile::TempDir,
    branches: Vec<(String, BranchId)>,
}

fn everybody(_: &Place) -> Result<(), ManageError> {
    Ok(())
}

fn bench(data: &Path) -> (Bench, DataLock) {
    let (dc, lock) = open(data, &RunOptions::default()).unwrap();
    let bench = Bench {
        dc,
        clock: Arc::new(SetClock::new(START)),
        dir: tempfile::tempdir().unwrap(),
    };
    (bench, lock)
}

impl World {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        init(&data.path().join("data"));
        let mut world = Self {
            bench: Some(bench(&data.path().join("data"))),
            data,
            branches: Vec::new(),
        };
        world.dc().image_with_versions("deb", 2);
        let stable = ChannelRequest { number: 1 };
        world.dc().dc.set_channel("deb", "stable", &stable).unwrap();
        for name in ["la", "ny"] {
            let id = join(world.dc(), name);
            world.branches.push((name.into(), id));
            let request = AssignRequest {
                version: "deb".into(),
                channel: Some("stable".into()),
                ..AssignRequest::default()
            };
            let pool = world.dc().dc.assign_pool(name, "office", &request).unwrap();
            assert_eq!(pool.version, "deb@1", "its channel's, not the latest");
        }
        world
    }

    fn dc(&self) -> &Bench {
        &self.bench.as_ref().unwrap().0
    }

    /// The datacenter ends, and begins again with what it kept.
    fn restart(&mut self) {
        self.bench = None;
        self.bench = Some(bench(&self.data.path().join("data")));
    }

    fn look(&mut self) -> Rollout {
        self.restart();
        self.dc().dc.look_after_rollouts().unwrap();
        self.dc().dc.rollout(1).unwrap()
    }

    fn id_of(&self, version: &str) -> String {
        self.dc().dc.version_named(version).unwrap().id
    }

    /// A branch reports that it follows what it was told, and holds these versions, with a desktop on one of them.
    fn report(&self, branch: &str, held: &[&str], desktop: Option<(&str, DesktopSigns, u64)>) {
        let id = self.branches.iter().find(|(name, _)| name == branch);
        let (_, id) = id.unwrap();
        let counter = self.dc().dc.branch(branch).unwrap().assignment_counter;
        let versions = held.iter().map(|version| VersionResidency {
            version: self.id_of(version),
            complete: true,
            ..VersionResidency::default()
        });
        let desktops = desktop.map(|(version, signs, up_s)| DesktopStatus {
            id: "alice".into(),
            pool: "office".into(),
            version: self.id_of(version),
            state: "running".into(),
            started_unix_s: START - up_s,
            signs: Some(signs),
            ..DesktopStatus::default()
        });
        let status = BranchStatus {
            versions: versions.collect(),
            desktops: desktops.into_iter().collect(),
            assignment_counter: Some(counter),
            cache: CacheStatus {
                bytes: 10,
                capacity_bytes: 20,
                ..CacheStatus::default()
            },
            reported_unix_s: START,
            ..BranchStatus::default()
        };
        self.dc().dc.record_branch_status(*id, status).unwrap();
    }

    /// What a branch's pool runs, and what it pins.
    fn pool(&self, branch: &str) -> (String, Vec<String>) {
        let pool = self.dc().dc.pools(branch).unwrap().remove(0);
        (pool.version, pool.pinned)
    }

    fn start(&self) -> Rollout {
        let dc = &self.dc().dc;
        dc.start_rollout("carol", &request(), &everybody).unwrap()
    }
}

fn request() -> RolloutRequest {
    RolloutRequest {
        version: "deb@2".into(),
        channel: Some("stable".into()),
        canary: vec!["ny".into()],
        gate: HealthGate {
            boot_s: 600,
            soak_s: 0,
            ..HealthGate::default()
        },
        ..RolloutRequest::default()
    }
}

fn booted() -> DesktopSigns {
    DesktopSigns {
        booted: true,
        ..DesktopSigns::default()
    }
}

fn states(rollout: &Rollout) -> Vec<(&str, RolloutPoolState)> {
    let pools = rollout.pools.iter();
    pools
        .map(|pool| (pool.branch.as_str(), pool.state))
        .collect()
}

fn runs(version: &str, pins: &[&str]) -> (String, Vec<String>) {
    let pins = pins.iter().map(|pin| (*pin).to_owned());
    (version.to_owned(), pins.collect())
}

#[test]
fn a_good_version_goes_from_the_canary_to_all_and_the_channel_follows() {
    use RolloutPoolState::{Flipped, Healthy, Staging};
    let mut world = World::new();
    let begun = world.start();
    assert_eq!((begun.id, begun.waves, begun.wave), (1, 2, 1));
    let again = world.dc().dc.start_rollout("carol", &request(), &everybody);
    assert!(matches!(again, Err(ManageError::Conflict { .. })));

    let staging = world.look();
    assert_eq!(states(&staging), [("ny", Staging), ("la", Staging)]);
    assert_eq!(world.pool("ny"), runs("deb@1", &["deb@2"]));
    world.report("ny", &["deb@1"], None);
    assert_eq!(
        states(&world.look())[0].1,
        Staging,
        "not all of it is there"
    );
    world.report("ny", &["deb@1", "deb@2"], None);
    world.report("la", &["deb@1", "deb@2"], None);
    let flipped = world.look();
    assert_eq!(states(&flipped)[0].1, Flipped);
    assert_eq!(world.pool("ny"), runs("deb@2", &["deb@1"]));
    assert_eq!(world.pool("la").0, "deb@1", "its wave has not begun");

    world.report("ny", &["deb@1", "deb@2"], Some(("deb@2", booted(), 60)));
    assert_eq!(states(&world.look()), [("ny", Healthy), ("la", Flipped)]);
    assert_eq!(world.pool("la"), runs("deb@2", &["deb@1"]));
    world.report("la", &["deb@1", "deb@2"], Some(("deb@2", booted(), 60)));
    let done = world.look();
    assert_eq!(done.state, RolloutState::Done);
    assert!(done.ended_unix_s.is_some());
    for branch in ["ny", "la"] {
        assert_eq!(world.pool(branch), runs("deb@2", &[]));
    }
    let channel = world.dc().dc.channels("deb").unwrap().remove(0);
    assert_eq!((channel.version.as_str(), channel.pools), ("deb@2", 2));
    let figures = world.dc().dc.rollout_figures().unwrap();
    assert_eq!(figures.rollouts, [0, 0, 0, 1, 0]);
}

#[test]
fn a_bad_version_rolls_itself_back_to_what_was_pinned() {
    let mut world = World::new();
    world.start();
    world.look();
    for branch in ["ny", "la"] {
        world.report(branch, &["deb@1", "deb@2"], None);
    }
    world.look();
    assert_eq!(world.pool("ny").0, "deb@2");
    let down = DesktopSigns::default();
    world.report("ny", &["deb@1", "deb@2"], Some(("deb@2", down, 600)));
    let back = world.look();
    assert_eq!(back.state, RolloutState::RolledBack);
    assert_eq!(back.why.as_deref(), Some("desktops failed"));
    assert_eq!(back.pools[0].failed, ["alice"]);
    for branch in ["ny", "la"] {
        assert_eq!(world.pool(branch), runs("deb@1", &[]));
    }
    let channel = world.dc().dc.channels("deb").unwrap().remove(0);
    assert_eq!(channel.version, "deb@1");
    let wish = world
        .dc()
        .dc
        .steer_rollout("carol", 1, Wish::Pause, &everybody);
    assert!(matches!(wish, Err(ManageError::Conflict { .. })));
}

#[test]
fn it_is_paused_resumed_and_aborted_and_who_may_not_is_refused() {
    let mut world = World::new();
    let nobody = |_: &Place| -> Result<(), ManageError> {
        Err(ManageError::Forbidden {
            message: "no".into(),
        })
    };
    let refused = world.dc().dc.start_rollout("eve", &request(), &nobody);
    assert!(matches!(refused, Err(ManageError::Forbidden { .. })));
    world.start();
    let steer = |world: &World, wish| {
        let dc = &world.dc().dc;
        dc.steer_rollout("carol", 1, wish, &everybody)
            .unwrap()
            .state
    };
    assert_eq!(steer(&world, Wish::Pause), RolloutState::Paused);
    let waiting = world.look();
    assert_eq!(waiting.pools[0].state, RolloutPoolState::Waiting);
    let refused = world.dc().dc.steer_rollout("eve", 1, Wish::Resume, &nobody);
    assert!(matches!(refused, Err(ManageError::Forbidden { .. })));
    assert_eq!(steer(&world, Wish::Resume), RolloutState::Running);
    world.look();
    assert_eq!(steer(&world, Wish::Abort), RolloutState::RollingBack);
    assert_eq!(world.look().state, RolloutState::RolledBack);
    assert_eq!(world.pool("ny"), runs("deb@1", &[]));
    // What it did is remembered, and another one can begin.
    world.start();
    assert_eq!(world.dc().dc.rollouts(None, 10).unwrap().len(), 2);
}

#[test]
fn a_pool_that_is_assigned_by_hand_is_let_be() {
    let mut world = World::new();
    world.start();
    world.look();
    let request = AssignRequest {
        version: "deb@2".into(),
        ..AssignRequest::default()
    };
    world.dc().dc.assign_pool("la", "office", &request).unwrap();
    let left = world.look();
    assert_eq!(states(&left)[1], ("la", RolloutPoolState::Left));
    assert_eq!(world.pool("la"), runs("deb@2", &[]));
}

#[test]
fn versions_of_a_rollout_and_of_a_channel_are_not_deleted() {
    let world = World::new();
    world.start();
    let refused = world.dc().dc.delete_version("deb@1");
    assert!(matches!(refused, Err(ManageError::Conflict { .. })));
    let followed = world.dc().dc.delete_channel("deb", "stable");
    assert!(matches!(followed, Err(ManageError::Conflict { .. })));
}

#[test]
fn a_price_says_what_each_branch_fetches_evicts_and_when() {
    let world = World::new();
    world.report("ny", &["deb@1"], Some(("deb@1", booted(), 60)));
    let caps = PolicyRequest {
        fill_cap_bits_per_s: Some(80_000),
        ..PolicyRequest::default()
    };
    world.dc().dc.set_branch_policy("ny", &caps).unwrap();
    let price = world.dc().dc.price_rollout(&request()).unwrap();
    assert_eq!(price.version, "deb@2");
    let [ny, la] = &price.branches[..] else {
        panic!("{price:?}")
    };
    assert_eq!((ny.branch.as_str(), ny.wave), ("ny", 1));
    assert_eq!((la.branch.as_str(), la.wave), ("la", 2));
    assert_eq!(ny.basis, PriceBasis::Stored, "nothing is encoded yet");
    assert!(ny.missing_bytes >= 65_536 && ny.line_bytes > 0);
    assert_eq!(ny.bits_per_s, Some(80_000));
    assert_eq!(ny.transfer_s, Some(ny.line_bytes.div_ceil(10_000)));
    assert!(ny.ready_unix_s.is_some());
    assert_eq!((ny.desktops, ny.running), (1, 1));
    assert_eq!(ny.evicted_bytes, Some(ny.missing_bytes - 10));
    assert_eq!((la.bits_per_s, la.evicted_bytes), (None, None));
    assert_eq!(price.notes.len(), 2, "{:?}", price.notes);
    assert!(world.dc().dc.rollouts(None, 1).unwrap().is_empty());
}
