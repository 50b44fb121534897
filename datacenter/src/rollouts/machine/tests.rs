//! What a rollout promises, over random worlds, and by hand.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;

use super::super::health::{DesktopSeen, Gate, Life, Seen};
use super::*;

pub(super) const OLD: VersionId = VersionId([1; 32]);
pub(super) const NEW: VersionId = VersionId([2; 32]);
const OTHER: VersionId = VersionId([3; 32]);

pub(super) const GATE: Gate = Gate {
    boot: true,
    log_in: false,
    alive: false,
    desktops: 1,
    boot_s: 600,
    soak_s: 0,
    wait_s: 10_000,
    failures: 0,
};

pub(super) fn site(branch: u8, pool: &str, wave: u16) -> Site {
    Site {
        branch: BranchId([branch; 16]),
        pool: pool.into(),
        wave,
        from: OLD,
        had_from: false,
        had_target: false,
        state: SiteState::Waiting,
        since_unix_s: 0,
        healthy: BTreeSet::new(),
        failed: BTreeSet::new(),
    }
}

pub(super) fn rollout(gate: Gate, sites: Vec<Site>) -> Rollout {
    Rollout {
        target: NEW,
        gate,
        waves: sites.iter().map(|site| site.wave + 1).max().unwrap(),
        wave: 0,
        stage: Stage::Running,
        patience_unix_s: 0,
        sites,
    }
}

pub(super) fn desktop(name: &str, life: Life, boot: bool) -> DesktopSeen {
    DesktopSeen {
        name: name.into(),
        life,
        up_s: if boot { 60 } else { 600 },
        boot,
        log_in: false,
        alive: false,
    }
}

/// The pools as a catalog has them, and what their branches have and say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pool {
    pub version: VersionId,
    pub pins: Vec<VersionId>,
    pub before: Vec<VersionId>,
    pub whole: bool,
    pub follows: bool,
    pub by_hand: bool,
    pub desktops: Vec<DesktopSeen>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub rollout: Rollout,
    pub pools: Vec<Pool>,
    pub now: u64,
}

impl World {
    pub fn new(mut rollout: Rollout, pins: &[Vec<VersionId>]) -> Self {
        let pools = pins.iter().map(|pins| Pool {
            version: OLD,
            pins: pins.clone(),
            before: pins.clone(),
            whole: false,
            follows: true,
            by_hand: false,
            desktops: Vec::new(),
        });
        let pools: Vec<Pool> = pools.collect();
        for (site, pool) in rollout.sites.iter_mut().zip(&pools) {
            site.had_from = pool.pins.contains(&OLD);
            site.had_target = pool.pins.contains(&NEW);
        }
        Self {
            rollout,
            pools,
            now: 0,
        }
    }

    /// A look as it is made: what is seen goes in, what was decided is carried out, and all that is promised holds.
    pub fn look(&mut self) -> Vec<Event> {
        let seen: Vec<Seen> = self.pools.iter().map(seen).collect();
        let before = self.rollout.clone();
        let events = self.rollout.look(self.now, &seen);
        let is_done = self.rollout.stage == Stage::Done;
        for (at, pool) in self.pools.iter_mut().enumerate() {
            let site = &self.rollout.sites[at];
            if site.state == before.sites[at].state && !(is_done && before.stage != Stage::Done) {
                continue;
            }
            let pins = self.rollout.pins(site, &pool.pins);
            let version = match site.state {
                SiteState::Left => pool.version,
                _ => self.rollout.runs(site),
            };
            if (version, &pins) != (pool.version, &pool.pins) {
                pool.follows = false;
            }
            (pool.version, pool.pins) = (version, pins);
        }
        self.check(&before);
        events
    }

    fn check(&self, before: &Rollout) {
        let rollout = &self.rollout;
        for (at, (site, pool)) in rollout.sites.iter().zip(&self.pools).enumerate() {
            let was = &before.sites[at];
            if was.is_over() {
                assert_eq!(site, was, "what is over is not touched");
            }
            if pool.by_hand {
                assert!(pool.version == OTHER, "a person's choice stays");
                continue;
            }
            let flipped = site.runs_target() && !was.runs_target();
            if flipped {
                assert!(pool.whole, "flipped before it was there");
                // A look hears that it is there and flips it.
                assert!(matches!(was.state, SiteState::Staging | SiteState::Staged));
                let mut earlier = rollout.sites.iter().filter(|other| other.wave < site.wave);
                assert!(earlier.all(Site::is_settled), "a wave began too early");
                let mut same = rollout.sites.iter().filter(|s| s.branch == site.branch);
                let is_in_time = |s: &Site| s.is_over() || s.runs_target();
                assert!(same.all(is_in_time), "a branch was flipped in parts");
                assert!(before.stage == Stage::Running);
            }
            if pool.version == NEW && rollout.stage != Stage::Done {
                assert!(pool.pins.contains(&OLD), "nothing to go back to");
            }
            if rollout.stage.is_over() {
                let is_done = rollout.stage == Stage::Done;
                assert_eq!(pool.version, if is_done { NEW } else { OLD });
                assert_eq!(pool.pins, pool.before, "pins are as they were");
            }
        }
        if before.stage.is_over() {
            assert_eq!(rollout, before);
        }
    }
}

fn seen(pool: &Pool) -> Seen {
    Seen {
        version: Some(pool.version),
        follows: pool.follows,
        whole: pool.whole && (pool.pins.contains(&NEW) || pool.version == NEW),
        desktops: pool
            .desktops
            .iter()
            .filter(|_| pool.version == NEW)
            .cloned()
            .collect(),
    }
}

/// What can happen to a world.
#[derive(Debug, Clone)]
pub(super) enum Happens {
    Look,
    Time(u64),
    Whole(usize),
    Follows(usize),
    Desktop(usize, Life, bool),
    ByHand(usize),
    Pause,
    Resume,
    Abort,
    /// The datacenter starts again: all that is left is what it kept.
    Restart,
}

impl World {
    pub fn apply(&mut self, what: &Happens) {
        let count = self.pools.len();
        match what {
            Happens::Look => drop(self.look()),
            Happens::Time(seconds) => self.now += seconds,
            Happens::Whole(at) => {
                let pool = &mut self.pools[at % count];
                pool.whole |= pool.pins.contains(&NEW);
            }
            Happens::Follows(at) => self.pools[at % count].follows = true,
            Happens::Desktop(at, life, boot) => {
                let pool = &mut self.pools[at % count];
                pool.desktops = vec![desktop("alice", *life, *boot)];
            }
            Happens::ByHand(at) => {
                let pool = &mut self.pools[at % count];
                // Whose rollout is over is as free as any.
                if !self.rollout.stage.is_over() {
                    (pool.version, pool.by_hand) = (OTHER, true);
                }
            }
            // Refusals change nothing, which the next look sees to.
            Happens::Pause => {
                let _ = self.rollout.pause();
            }
            Happens::Resume => {
                let _ = self.rollout.resume(self.now);
            }
            Happens::Abort => {
                let _ = self.rollout.abort();
            }
            Happens::Restart => {
                let kept = postcard::to_allocvec(&self.rollout).unwrap();
                let read: Rollout = postcard::from_bytes(&kept).unwrap();
                assert_eq!(read, self.rollout);
                self.rollout = read;
            }
        }
    }
}

fn happens() -> impl Strategy<Value = Happens> {
    let at = 0..6_usize;
    let life = prop_oneof![
        4 => Just((Life::Up, true)),
        1 => Just((Life::Up, false)),
        1 => Just((Life::Failed, false)),
        1 => Just((Life::Held, false)),
        1 => Just((Life::Down, false)),
    ];
    prop_oneof![
        12 => Just(Happens::Look),
        3 => (1..20_000_u64).prop_map(Happens::Time),
        8 => at.clone().prop_map(Happens::Whole),
        8 => at.clone().prop_map(Happens::Follows),
        6 => (at.clone(), life).prop_map(|(at, (life, boot))| Happens::Desktop(at, life, boot)),
        1 => at.prop_map(Happens::ByHand),
        1 => Just(Happens::Pause),
        3 => Just(Happens::Resume),
        1 => Just(Happens::Abort),
        1 => Just(Happens::Restart),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_all_that_is_promised_holds(
        waves in proptest::collection::vec((0..3_u16, 1..3_usize, 0..4_u8), 1..4),
        soak_s in 0..100_u64,
        failures in 0..2_u32,
        story in proptest::collection::vec(happens(), 1..200),
    ) {
        let gate = Gate { soak_s, failures, ..GATE };
        let mut sites = Vec::new();
        let mut pins: Vec<Vec<VersionId>> = Vec::new();
        for (branch, (wave, pools, had)) in waves.iter().enumerate() {
            for pool in 0..*pools {
                sites.push(site(branch as u8, &format!("p{pool}"), *wave));
                let all = [OLD, NEW];
                let chosen = all.iter().enumerate().filter(|(bit, _)| (had >> bit) & 1 == 1);
                pins.push(chosen.map(|(_, id)| *id).collect());
            }
        }
        let mut world = World::new(rollout(gate, sites), &pins);
        for what in &story {
            world.apply(what);
        }
        // However it stands then, somebody can end it.
        let _ = world.rollout.abort();
        world.look();
        prop_assert!(world.rollout.stage.is_over());
    }

    #[test]
    fn a_good_version_arrives_everywhere(branches in 1..5_u8, waves in 1..4_u16) {
        let sites = (0..branches).map(|b| site(b, "office", u16::from(b) % waves)).collect();
        let mut world = World::new(rollout(GATE, sites), &vec![Vec::new(); branches.into()]);
        for _ in 0..20 {
            for pool in &mut world.pools {
                pool.whole |= pool.pins.contains(&NEW);
                pool.follows = true;
                pool.desktops = vec![desktop("alice", Life::Up, true)];
            }
            world.now += 60;
            world.look();
        }
        prop_assert_eq!(world.rollout.stage, Stage::Done);
    }
}

/// A world whose canary is flipped.
fn flipped() -> World {
    let sites = vec![site(1, "office", 0), site(2, "office", 1)];
    let mut world = World::new(rollout(GATE, sites), &[vec![], vec![]]);
    world.look();
    for at in 0..2 {
        world.apply(&Happens::Whole(at));
        world.apply(&Happens::Follows(at));
    }
    let events = world.look();
    assert_eq!(
        events,
        [Event::Staged(0), Event::Staged(1), Event::Flipped(0)]
    );
    world
}

#[test]
fn a_bad_version_goes_back_and_reaches_nobody_else() {
    let mut world = flipped();
    world.apply(&Happens::Desktop(0, Life::Up, false));
    let events = world.look();
    let failed = Event::Failed {
        site: 0,
        desktop: "alice".into(),
    };
    assert_eq!(
        events,
        [
            failed,
            Event::Unhealthy(0),
            Event::Returned(0),
            Event::Returned(1),
            Event::RolledBack
        ]
    );
    assert_eq!(world.rollout.stage, Stage::Returned(Cause::Unhealthy));
    let are_as_before = |pool: &Pool| pool.version == OLD && pool.pins.is_empty();
    assert!(world.pools.iter().all(are_as_before));
}

#[test]
fn silence_pauses_and_a_person_lets_it_go_on() {
    let mut world = flipped();
    world.now = GATE.wait_s;
    assert_eq!(world.look(), [Event::NoWord(0)]);
    assert_eq!(world.rollout.stage, Stage::Paused(Pause::NoWord));
    assert!(world.look().is_empty());
    world.rollout.resume(world.now).unwrap();
    assert!(world.look().is_empty(), "its time begins anew");
    world.apply(&Happens::Desktop(0, Life::Up, true));
    let events = world.look();
    assert_eq!(
        events,
        [Event::Healthy(0), Event::Opened(1), Event::Flipped(1)]
    );
    assert_eq!(world.rollout.resume(0), Err(Refused::NotPaused));
}

#[test]
fn what_was_flipped_is_watched_while_it_is_paused() {
    let mut world = flipped();
    world.rollout.pause().unwrap();
    world.apply(&Happens::Desktop(0, Life::Failed, false));
    world.look();
    assert_eq!(world.rollout.stage, Stage::Returned(Cause::Unhealthy));
    assert_eq!(world.rollout.pause(), Err(Refused::Over));
    assert_eq!(world.rollout.abort(), Err(Refused::Over));
}

#[test]
fn large_realms_are_turned_back_in_bounded_steps() {
    let count = 2 * CHANGES_MAX + 1;
    let branch = |at: usize| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(at as u64).to_be_bytes());
        BranchId(id)
    };
    let sites = (0..count).map(|at| Site {
        branch: branch(at),
        ..site(0, "office", 0)
    });
    let sites = sites.collect();
    let mut world = World::new(rollout(GATE, sites), &vec![Vec::new(); count]);
    assert_eq!(world.look().len(), CHANGES_MAX);
    world.rollout.abort().unwrap();
    for _ in 0..2 {
        assert_eq!(world.look().len(), CHANGES_MAX);
    }
    assert_eq!(world.look().len(), 2, "the last one, and the end");
    assert!(world.rollout.stage.is_over());
}
