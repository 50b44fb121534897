//! A volume that is wanted elsewhere: given back when it stands still and all of it is at the datacenter, whatever dies meanwhile.

use std::sync::atomic::Ordering;

use dedup_protocol::state::Generation;
use dedup_protocol::state::message::RecallLease;
use dedup_protocol::wire::Message;

use super::{NoRight, VOLUME, World};

fn recall(generation: Generation) -> Message {
    Message::RecallLease(RecallLease {
        desktop: VOLUME,
        generation,
    })
}

#[test]
fn what_is_recalled_goes_when_it_stands_still_and_all_of_it_is_there() {
    for dies_at in [None, Some(0), Some(1), Some(2), Some(3)] {
        let mut world = World::new(13);
        world.line.linked(world.now).unwrap();
        world.write();
        world.settle();
        let generation = world.center.authority.row().last;
        let (wrong, right) = (recall(generation.next()), recall(generation));
        world.line.hear(wrong, world.now).unwrap();
        world.line.set_in_use(false, world.now);
        for _ in 0..3 {
            world.round(0).unwrap();
        }
        assert!(world.center.authority.row().holder.is_some());
        world.line.set_in_use(true, world.now);
        world.line.hear(right.clone(), world.now).unwrap();
        world.write();
        for _ in 0..6 {
            world.round(0).unwrap();
        }
        assert_eq!(world.line.may_run(world.now), Ok(()), "it is in use");
        world.write();
        world.line.set_in_use(false, world.now);
        let keeps = world.rows.keeps.load(Ordering::Relaxed);
        *world.rows.dies.lock().unwrap() = dies_at.map(|at| (keeps + at, at % 2 == 0));
        for _ in 0..8 {
            if world.round(0).is_err() {
                world.restart();
                world.line.set_in_use(false, world.now);
                // The datacenter says it on each connection.
                world.line.hear(right.clone(), world.now).unwrap();
            }
        }
        assert!(world.center.authority.row().holder.is_none());
        assert!(world.center.state() == world.disk);
        assert!(world.line.is_to_leave());
        *world.rows.dies.lock().unwrap() = None;
        world.overlay = None;
        world.line.left().unwrap();
        assert!(world.line.is_away());
        // Asked for again, it is another generation, and nothing recalls that.
        world.line.want();
        world.round(0).unwrap();
        assert_eq!(world.center.authority.row().last, generation.next());
        assert_eq!(world.line.may_run(world.now), Err(NoRight::Coming));
        // Renewed before its state has come, it is no older copy; and it can go again at once.
        world.now += 400;
        world.round(0).unwrap();
        assert!(world.center.authority.row().holder.is_some());
        world.line.hand_back();
        for _ in 0..3 {
            world.round(0).unwrap();
        }
        assert!(world.center.authority.row().holder.is_none());
        assert!(world.line.is_away());
        assert_eq!(world.center.lines.len(), 1, "no forks");
    }
}
