//! Breadth first through all worlds, each once.

use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};

use super::heal::heal;
use super::world::{Budget, Event, World};
use crate::wire::Message;

/// More worlds than any bound here has: a mistake in the bounds ends as a failure and not as a full memory.
const WORLDS_MAX: usize = 4_000_000;

/// What a search found.
#[derive(Debug)]
pub(super) struct Found {
    /// How many worlds there are.
    pub(super) worlds: usize,
    /// What does not hold somewhere, with the shortest way there.
    pub(super) wrong: Option<(&'static str, Vec<String>)>,
}

/// A name for a world, too long to meet another's by chance.
fn name(world: &World) -> u128 {
    struct Wide(Vec<u8>);
    impl Hasher for Wide {
        fn write(&mut self, bytes: &[u8]) {
            self.0.extend_from_slice(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut wide = Wide(Vec::with_capacity(8192));
    world.hash(&mut wide);
    let hash = blake3::hash(&wide.0);
    u128::from_le_bytes(hash.as_bytes()[..16].try_into().expect("16 of 32 bytes"))
}

/// How a world was reached: from which, by what, and after how many actions its actor crashed.
struct Step {
    from: usize,
    event: Option<Event>,
    stop_after: Option<usize>,
}

/// Visits every world that can be reached. Of one in `heal_every` it is tried that all ends well.
pub(super) fn search(sites: usize, holds_chunks: bool, budget: Budget, heal_every: u128) -> Found {
    let first = World::new(sites, holds_chunks, budget);
    let mut seen = HashSet::from([name(&first)]);
    let mut steps = vec![Step {
        from: 0,
        event: None,
        stop_after: None,
    }];
    let mut queue = VecDeque::from([(0, first)]);
    while let Some((at, world)) = queue.pop_front() {
        for (event, stop_after, next) in successors(&world) {
            let next_name = name(&next);
            if !seen.insert(next_name) {
                continue;
            }
            let number = steps.len();
            steps.push(Step {
                from: at,
                event: Some(event),
                stop_after,
            });
            let wrong = next.check().or_else(|| {
                let is_tried = next_name.is_multiple_of(heal_every);
                is_tried.then(|| heal(&next)).flatten()
            });
            if let Some(wrong) = wrong {
                return Found {
                    worlds: steps.len(),
                    wrong: Some((wrong, way(&steps, number))),
                };
            }
            assert!(steps.len() < WORLDS_MAX, "the bounds are too wide");
            queue.push_back((number, next));
        }
    }
    Found {
        worlds: steps.len(),
        wrong: None,
    }
}

/// All worlds that one event leads to, whole or with a crash in it.
fn successors(world: &World) -> Vec<(Event, Option<usize>, World)> {
    let mut next = Vec::new();
    for event in world.events() {
        let mut whole = world.clone();
        let actions = whole.perform(&event, None);
        // Most messages say nothing new. A crash besides is one of `Event::Poll`'s.
        let is_idle = actions == 0 && whole == *world && !matches!(event, Event::Poll(_));
        if is_idle {
            continue;
        }
        if world.budget.crashes > 0 {
            for stop in 0..=actions {
                let mut stopped = world.clone();
                stopped.perform(&event, Some(stop));
                next.push((event.clone(), Some(stop), stopped));
            }
        }
        next.push((event, None, whole));
    }
    next
}

fn way(steps: &[Step], mut at: usize) -> Vec<String> {
    let mut way = Vec::new();
    while let Some(event) = &steps[at].event {
        let crash = match steps[at].stop_after {
            Some(actions) => format!(", and a crash after {actions} actions"),
            None => String::new(),
        };
        way.push(format!("{}{crash}", told(event)));
        at = steps[at].from;
    }
    way.reverse();
    way
}

/// An event for people.
fn told(event: &Event) -> String {
    match event {
        Event::Deliver(packet) => {
            let message = Message::decode(&packet.frame);
            format!(
                "{:?} of branch {} hears {message:?}",
                packet.to, packet.site
            )
        }
        other => format!("{other:?}"),
    }
}
