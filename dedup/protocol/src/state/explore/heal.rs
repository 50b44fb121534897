//! From now on nothing bad happens: links are up, messages arrive once and in order, nobody crashes. All must end well.

use std::collections::VecDeque;

use super::super::authority::Stage;
use super::world::{Event, World};

/// So many times every branch does what it has to do. Each round ends with no message on its way.
const ROUNDS: usize = 8;
/// More messages than any round takes.
const MESSAGES_MAX: usize = 500;

/// Lets a world come to rest, and says what is wrong then.
pub(super) fn heal(world: &World) -> Option<&'static str> {
    let mut world = world.clone();
    world.net.clear();
    world.line = Some(VecDeque::new());
    world.budget.proofs = u8::MAX;
    world.budget.answers = u8::MAX;
    for _ in 0..ROUNDS {
        build(&mut world);
        for index in 0..world.sites.len() {
            for event in duties(&world, index) {
                world.perform(&event, None);
            }
            world.site_links(index);
        }
        for sent in 0.. {
            let line = world.line.as_mut().expect("set above");
            let Some(packet) = line.pop_front() else {
                break;
            };
            world.perform(&Event::Deliver(packet), None);
            build(&mut world);
            if sent == MESSAGES_MAX {
                return Some("messages go to and fro without end");
            }
        }
        if let Some(wrong) = world.check() {
            return Some(wrong);
        }
    }
    world.check_rest()
}

fn build(world: &mut World) {
    while let Some(build) = world.center.builds.first().copied() {
        world.perform(&Event::Built(build), None);
    }
}

/// What a branch does by itself.
fn duties(world: &World, index: usize) -> Vec<Event> {
    let row = world.sites[index].hold.row();
    let disk = &world.center.disk;
    let is_free = disk.authority.holder.is_none();
    let mut duties = vec![Event::Poll(index)];
    if world.sites[index].hold.is_recalled() {
        // As soon as all of it is there.
        duties.push(Event::GiveBack(index));
    }
    match &row.stage {
        // Whoever it was moved to wants it.
        Stage::Idle { .. } if is_free && disk.home == Some(index) => duties.push(Event::Ask(index)),
        Stage::Idle { .. } if row.asking.is_none() => {}
        Stage::Held {
            is_returning: true, ..
        } => duties.push(Event::GiveBack(index)),
        Stage::Idle { .. } | Stage::Held { .. } => duties.push(Event::Ask(index)),
        Stage::Dropped { .. } => duties.push(Event::Drop(index)),
        Stage::Fenced { .. } => {}
    }
    duties
}
