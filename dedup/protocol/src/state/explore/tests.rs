//! The bounds that are searched, the defects that must be found within them, and random schedules beyond.

use proptest::prelude::*;

use super::heal::heal;
use super::search::{Found, search};
use super::world::{Budget, Event, World};
use crate::state::mutant::{Mutant, with_mutant};

/// One in so many worlds is healed. Which ones follows from their names, so it is a fair and a fixed choice.
const HEAL_EVERY: u128 = 16;

/// What is searched.
struct Bound {
    sites: usize,
    holds_chunks: bool,
    budget: Budget,
}

impl Bound {
    fn search(&self, heal_every: u128) -> Found {
        search(self.sites, self.holds_chunks, self.budget, heal_every)
    }

    /// All is well in every world.
    fn holds(&self, name: &str) {
        let found = self.search(HEAL_EVERY);
        println!("{name}: {} worlds", found.worlds);
        if let Some((wrong, way)) = found.wrong {
            panic!("{name}: {wrong}, after\n  {}", way.join("\n  "));
        }
        // A bound in which nothing happens would prove nothing.
        assert!(found.worlds > 200, "{} worlds only", found.worlds);
    }
}

/// One branch, two crashes: granted, written, renewed, given back.
const ALONE: Bound = Bound {
    sites: 1,
    holds_chunks: true,
    budget: Budget {
        writes: 2,
        asks: 2,
        returns: 1,
        crashes: 2,
        proofs: 1,
        answers: 1,
        ..Budget::NOTHING
    },
};

/// Chunks that have to be sent.
const CHUNKS: Bound = Bound {
    sites: 1,
    holds_chunks: false,
    budget: Budget {
        writes: 2,
        asks: 1,
        crashes: 2,
        ..Budget::NOTHING
    },
};

/// Two branches, and a lease that is broken between them.
const BROKEN: Bound = Bound {
    sites: 2,
    holds_chunks: true,
    budget: Budget {
        writes: 2,
        asks: 2,
        breaks: 1,
        crashes: 1,
        proofs: 1,
        answers: 1,
        ..Budget::NOTHING
    },
};

/// The same with three crashes and one write.
const CRASHING: Bound = Bound {
    budget: Budget {
        writes: 1,
        crashes: 3,
        ..BROKEN.budget
    },
    ..BROKEN
};

/// A branch whose disk is replaced by an older copy of it.
const COPIED: Bound = Bound {
    sites: 1,
    holds_chunks: true,
    budget: Budget {
        writes: 2,
        asks: 1,
        backups: 1,
        restores: 1,
        crashes: 1,
        proofs: 1,
        answers: 1,
        ..Budget::NOTHING
    },
};

/// The same where only leases tell how old it is.
const RENEWED: Bound = Bound {
    sites: 1,
    holds_chunks: true,
    budget: Budget {
        writes: 1,
        asks: 3,
        backups: 1,
        restores: 1,
        proofs: 1,
        answers: 1,
        ..Budget::NOTHING
    },
};

/// A branch that is offline for longer than its lease allows, while another asks.
const EXPIRED: Bound = Bound {
    sites: 2,
    holds_chunks: true,
    budget: Budget {
        writes: 2,
        asks: 2,
        expiries: 1,
        breaks: 1,
        proofs: 1,
        answers: 1,
        ..Budget::NOTHING
    },
};

/// All of it at once. Hours, and gigabytes: for a machine that has both.
const EVERYTHING: Bound = Bound {
    sites: 2,
    holds_chunks: true,
    budget: Budget {
        writes: 3,
        asks: 3,
        returns: 1,
        crashes: 3,
        proofs: 2,
        answers: 2,
        breaks: 1,
        backups: 1,
        restores: 1,
        expiries: 0,
        drops: 1,
        moves: 1,
    },
};

/// What a desktop wrote is given up at its branch, which has to tell it until it is known.
const DROPPED: Bound = Bound {
    sites: 1,
    holds_chunks: true,
    budget: Budget {
        writes: 1,
        asks: 2,
        drops: 2,
        crashes: 3,
        proofs: 1,
        answers: 1,
        ..Budget::NOTHING
    },
};

/// A desktop goes from one branch to the other.
const MOVED: Bound = Bound {
    sites: 2,
    holds_chunks: true,
    budget: Budget {
        writes: 1,
        asks: 2,
        moves: 1,
        crashes: 1,
        proofs: 1,
        answers: 1,
        ..Budget::NOTHING
    },
};

#[test]
fn what_is_given_up_is_not_held_for_ever() {
    DROPPED.holds("dropped");
}

#[test]
fn a_desktop_that_is_moved_has_one_branch_at_every_step() {
    MOVED.holds("moved");
}

#[test]
fn a_branch_that_crashes_loses_nothing() {
    ALONE.holds("alone");
}

#[test]
fn chunks_on_their_way_are_asked_for_again() {
    CHUNKS.holds("chunks");
}

#[test]
fn a_broken_lease_leaves_a_fork_and_one_writer() {
    BROKEN.holds("broken");
}

#[test]
fn nor_do_three_crashes_of_anybody_change_that() {
    CRASHING.holds("crashing");
}

#[test]
fn an_older_copy_of_a_disk_is_noticed_and_kept_aside() {
    COPIED.holds("copied");
    RENEWED.holds("renewed");
}

#[test]
fn an_expired_lease_stays_its_branchs_until_it_is_broken() {
    EXPIRED.holds("expired");
}

#[test]
#[ignore = "takes very long; run it by name after a change of the state machines"]
fn everything_at_once() {
    EVERYTHING.holds("everything");
}

/// As [`ALONE`], with one crash: defects show early.
const ONE_CRASH: Bound = Bound {
    budget: Budget {
        crashes: 1,
        ..ALONE.budget
    },
    ..ALONE
};

/// As [`BROKEN`], without crashes.
const BROKEN_CALMLY: Bound = Bound {
    budget: Budget {
        crashes: 0,
        ..BROKEN.budget
    },
    ..BROKEN
};

/// As [`COPIED`], without crashes.
const COPIED_CALMLY: Bound = Bound {
    budget: Budget {
        crashes: 0,
        ..COPIED.budget
    },
    ..COPIED
};

/// As [`DROPPED`], with one crash and room for a write behind it.
const DROPPED_ONCE: Bound = Bound {
    budget: Budget {
        crashes: 1,
        ..DROPPED.budget
    },
    ..DROPPED
};

/// Each defect, and a bound within which it must be seen.
const DEFECTS: [(Mutant, &Bound); 10] = [
    (Mutant::StaleGeneration, &BROKEN_CALMLY),
    (Mutant::PartialSegment, &ONE_CRASH),
    (Mutant::UnkeptApply, &ONE_CRASH),
    (Mutant::UnkeptSeal, &ONE_CRASH),
    (Mutant::UnkeptQuestion, &ONE_CRASH),
    (Mutant::AcceptAfterBreak, &BROKEN_CALMLY),
    (Mutant::TrustOldCopy, &COPIED_CALMLY),
    (Mutant::FenceUnproven, &RENEWED),
    (Mutant::ReturnEarly, &ONE_CRASH),
    (Mutant::UnkeptDrop, &DROPPED_ONCE),
];

#[test]
fn every_defect_is_noticed() {
    for (mutant, bound) in DEFECTS {
        let found = with_mutant(mutant, || bound.search(HEAL_EVERY));
        let Some((wrong, way)) = found.wrong else {
            panic!("{mutant:?} goes unnoticed in {} worlds", found.worlds);
        };
        println!("{mutant:?}: {wrong}, after {} steps", way.len());
    }
}

/// More of everything than can be searched.
const WIDE: Budget = Budget {
    writes: 12,
    asks: 60,
    returns: 4,
    crashes: u8::MAX,
    proofs: 40,
    answers: 60,
    breaks: 3,
    backups: 3,
    restores: 2,
    expiries: 2,
    drops: 2,
    moves: 2,
};

/// Performs what a number chooses: mostly the arrival of a message, which is then gone or may arrive again.
fn step(world: &mut World, choice: u32) {
    let (messages, others): (Vec<_>, Vec<_>) = world
        .events()
        .into_iter()
        .partition(|event| matches!(event, Event::Deliver(_) | Event::Built(_)));
    let events = if choice.is_multiple_of(3) || messages.is_empty() {
        others
    } else {
        messages
    };
    let event = &events[(choice >> 16) as usize % events.len()];
    let stop_after = (choice >> 4 & 7 == 0).then_some((choice >> 8) as usize & 7);
    world.perform(event, stop_after);
    if let Event::Deliver(packet) = event
        && choice & 8 == 0
    {
        world.net.remove(packet);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_schedules_lose_nothing_and_end_well(
        sites in 1usize..4,
        holds_chunks in any::<bool>(),
        choices in prop::collection::vec(any::<u32>(), 0..300),
    ) {
        let mut world = World::new(sites, holds_chunks, WIDE);
        for choice in choices {
            step(&mut world, choice);
            prop_assert_eq!(world.check(), None);
        }
        prop_assert_eq!(heal(&world), None);
    }
}
