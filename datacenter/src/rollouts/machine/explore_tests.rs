//! A small explorer: every order of everything that can happen to two branches in two waves. [`World::look`] checks what is promised after each step.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::super::health::{Gate, Life};
use super::tests::{GATE, Happens, World, rollout, site};
use super::*;

/// Enough for all of it; more would be a mistake in the world's size.
const STATES_MAX: usize = 2_000_000;

/// Instead of the world itself, which is large; one in 2⁶⁴ of what is new is taken for known.
fn name(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

fn steps(world: &World) -> Vec<Happens> {
    let mut steps = vec![
        Happens::Look,
        Happens::Pause,
        Happens::Resume,
        Happens::Abort,
    ];
    // Time matters once: when patience is over.
    if world.now == 0 {
        steps.push(Happens::Time(GATE.wait_s));
    }
    for at in 0..world.pools.len() {
        steps.push(Happens::Whole(at));
        steps.push(Happens::Desktop(at, Life::Up, true));
        steps.push(Happens::Desktop(at, Life::Failed, false));
    }
    steps.push(Happens::Follows(0));
    // Of one branch is enough: they differ by their waves alone, and the other one's is the property tests'.
    steps.push(Happens::ByHand(0));
    steps
}

#[test]
fn every_order_of_two_branches_in_two_waves() {
    let sites = vec![site(1, "office", 0), site(2, "office", 1)];
    let gate = Gate {
        desktops: 1,
        ..GATE
    };
    let first = World::new(rollout(gate, sites), &[vec![], vec![]]);
    let mut known = HashSet::from([name(&first)]);
    let mut waiting = vec![first];
    let (mut done, mut returned) = (false, false);
    while let Some(world) = waiting.pop() {
        for what in steps(&world) {
            let mut next = world.clone();
            next.apply(&what);
            // The second branch is always quick to follow.
            next.pools[1].follows = true;
            match next.rollout.stage {
                Stage::Done => done = true,
                Stage::Returned(Cause::Unhealthy) => returned = true,
                _ => {}
            }
            // What is over is checked, and leads nowhere else.
            if known.insert(name(&next)) && !next.rollout.stage.is_over() {
                waiting.push(next);
            }
        }
        assert!(known.len() < STATES_MAX, "the world is too large");
    }
    assert!(done && returned, "both ends are reached");
}

/// From each state that is not over somebody can end it, and the explorer's own checks hold on the way.
#[test]
fn nothing_is_stuck() {
    let sites = vec![site(1, "office", 0), site(1, "lab", 0)];
    let mut world = World::new(rollout(GATE, sites), &[vec![], vec![]]);
    for what in [
        Happens::Look,
        Happens::Whole(0),
        Happens::Follows(0),
        Happens::Look,
    ] {
        world.apply(&what);
        let mut ended = world.clone();
        ended.rollout.abort().unwrap();
        ended.look();
        assert_eq!(ended.rollout.stage, Stage::Returned(Cause::Person));
    }
    // One pool of the branch is there, the other one is not: neither is flipped.
    let is_flipped = |site: &Site| site.state == SiteState::Flipped;
    assert!(!world.rollout.sites.iter().any(is_flipped));
    world.apply(&Happens::Whole(1));
    world.apply(&Happens::Follows(1));
    world.look();
    assert!(world.rollout.sites.iter().all(is_flipped));
}
