//! Chunks that are fetched by themselves: only those, as fill, each once, and beside a fill of the whole tree.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use super::tests::publish;
use super::*;

const PATH: u64 = 4 << 20;

fn order(indexes: &[u32]) -> Arc<[u32]> {
    indexes.into()
}

/// Lets everything come; answers what was asked for, in order.
fn drain(queue: &mut Queue, here: &mut HashSet<ChunkId>) -> Vec<ChunkId> {
    let mut asked = Vec::new();
    // Long after the last demand.
    loop {
        let known = here.clone();
        let Some(request) = queue.next_request(1_000_000, PATH, &|id| known.contains(id)) else {
            return asked;
        };
        assert_eq!(request.urgency, Urgency::Fill);
        for (id, _) in &request.expected {
            assert!(here.insert(*id), "{id} is asked for twice");
            asked.push(*id);
            queue.arrived(id);
        }
        queue.ended(request);
    }
}

#[test]
fn only_what_was_asked_for_comes_and_nothing_that_is_here() {
    let tree = publish(1, 600, 1);
    let mut queue = Queue::new();
    let mut here = HashSet::from([tree.id(40)]);
    queue.fill_only(tree.handle.clone(), order(&[300, 40, 7, 300, 8]));
    let asked: HashSet<ChunkId> = drain(&mut queue, &mut here).into_iter().collect();
    assert_eq!(asked, HashSet::from([300, 7, 8].map(|n| tree.id(n))));
    assert!(queue.fills.is_empty(), "it is done");
}

#[test]
fn asked_again_it_starts_over_and_the_list_stays_short() {
    let tree = publish(1, 600, 1);
    let mut queue = Queue::new();
    queue.fill_first(tree.handle.clone(), order(&[1, 2]));
    for n in 0..50 {
        queue.fill_only(tree.handle.clone(), order(&[n]));
    }
    assert_eq!(
        queue.fills.len(),
        3,
        "the fill in two parts, and the last wish"
    );
    let mut here = HashSet::new();
    drain(&mut queue, &mut here);
    let all: HashSet<ChunkId> = tree.handle.map.chunks().iter().map(|c| c.id).collect();
    assert_eq!(here, all, "the fill of the whole tree goes on");
}

#[test]
fn it_ends_with_the_version_and_comes_again_after_a_cut() {
    let (tree, other) = (publish(1, 600, 1), publish(2, 600, 1));
    let mut queue = Queue::new();
    queue.fill_only(tree.handle.clone(), order(&[5, 6]));
    queue.fill_only(other.handle.clone(), order(&[5]));
    let cut = queue.next_request(1_000_000, PATH, &|_| false).unwrap();
    queue.ended(cut);
    queue.stop_fill(other.handle.version, other.handle.tree);
    let asked: HashSet<ChunkId> = drain(&mut queue, &mut HashSet::new()).into_iter().collect();
    assert_eq!(asked, HashSet::from([5, 6].map(|n| tree.id(n))));
}

#[test]
fn it_keeps_the_hours_and_yields_to_guests() {
    let tree = publish(1, 600, 1);
    let mut queue = Queue::new();
    queue.fill_only(tree.handle.clone(), order(&[5]));
    queue.set_fill_hour(false);
    assert!(queue.next_request(1_000_000, PATH, &|_| false).is_none());
    queue.set_fill_hour(true);
    queue.demand(tree.want(9), 1_000_000);
    let first = queue.next_request(1_000_000, PATH, &|_| false).unwrap();
    assert_eq!(first.urgency, Urgency::Demand);
}
