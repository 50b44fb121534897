//! Prefetching by a boot profile: in the guest's order, in bounds, before fill and after demand, each chunk once.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use super::tests::publish;
use super::*;

const PATH: u64 = 4 << 20;

fn order(indexes: impl IntoIterator<Item = u32>) -> Arc<[u32]> {
    indexes.into_iter().collect()
}

/// Every chunk of 600, in an order that is not the disk's, each once.
fn shuffled() -> Vec<u32> {
    (0..600).map(|n| n * 263 % 600).collect()
}

fn indexes(request: &Request) -> HashSet<usize> {
    request.wants.iter().map(|w| w.index).collect()
}

fn land(queue: &mut Queue, here: &mut HashSet<ChunkId>, request: Request) {
    for (id, _) in &request.expected {
        here.insert(*id);
        queue.arrived(id);
    }
    queue.ended(request);
}

#[test]
fn chunks_come_in_the_guest_s_order_and_a_bounded_number_of_bytes_ahead() {
    let tree = publish(1, 600, 1);
    let mut queue = Queue::new();
    let wanted = shuffled();
    queue.prefetch(tree.handle.clone(), order(wanted.clone()));
    let mut here = HashSet::new();
    let mut came = Vec::new();
    let mut flying = VecDeque::new();
    loop {
        let known = here.clone();
        while let Some(request) = queue.next_request(0, PATH, &|id| known.contains(id)) {
            assert_eq!(request.urgency, Urgency::Boot);
            let bytes = request_bytes(&request.expected);
            assert!(
                bytes <= PATH / PREFETCH_REQUESTS_IN_FLIGHT + (64 << 10),
                "{bytes}"
            );
            came.push(indexes(&request));
            flying.push_back(request);
        }
        let bytes: u64 = flying
            .iter()
            .map(|r: &Request| request_bytes(&r.expected))
            .sum();
        assert!(bytes <= PATH + (1 << 20), "{bytes} in flight");
        let Some(first) = flying.pop_front() else {
            break;
        };
        land(&mut queue, &mut here, first);
    }
    assert!(queue.prefetches.is_empty() && queue.prefetch_bytes_flying == 0);
    // Each request is the next part of the order; what the disk shows twice comes once.
    let mut rest = wanted.iter().map(|index| *index as usize).peekable();
    let mut asked = HashSet::new();
    for request in came {
        let mut left = request;
        while !left.is_empty() {
            let index = rest.next().unwrap();
            let again = !asked.insert(tree.id(index));
            assert!(left.remove(&index) || again, "{index} is out of turn");
        }
    }
    assert!(rest.all(|index| asked.contains(&tree.id(index))));
}

#[test]
fn demand_and_read_ahead_go_before_it_and_fill_after_it() {
    let tree = publish(1, 600, 1);
    let mut queue = Queue::new();
    queue.fill(tree.handle.clone());
    let number = queue.prefetch(tree.handle.clone(), order(shuffled()));
    queue.demand(tree.want(300), 0);
    queue.read_ahead(tree.want(301));
    // Long after the last demand: only the prefetch keeps the fill away.
    let next = |queue: &mut Queue| queue.next_request(1_000_000, PATH, &|_| false);
    let demand = next(&mut queue).unwrap();
    assert_eq!(
        (demand.urgency, indexes(&demand)),
        (Urgency::Demand, [300].into())
    );
    let ahead = next(&mut queue).unwrap();
    assert_eq!(
        (ahead.urgency, indexes(&ahead)),
        (Urgency::Boot, [301].into())
    );
    let mut prefetched = HashSet::new();
    let mut flying = Vec::new();
    while let Some(request) = next(&mut queue) {
        if request.urgency == Urgency::Fill {
            // The reserved share, one at a time.
            flying.push(request);
            break;
        }
        prefetched.extend(indexes(&request));
        flying.push(request);
    }
    assert!(!prefetched.contains(&300) && !prefetched.contains(&301));
    assert!(next(&mut queue).is_none());
    // Stopped: what is in flight still comes, and the line is the fill's.
    queue.stop_prefetch(number);
    // The reserved request may already be all that a path of this size holds.
    let fill = queue.next_request(1_000_000, 2 * PATH, &|_| false).unwrap();
    assert_eq!(fill.urgency, Urgency::Fill);
    flying.push(fill);
    for request in flying {
        request
            .expected
            .iter()
            .for_each(|(id, _)| queue.arrived(id));
        queue.ended(request);
    }
    assert_eq!(queue.prefetch_bytes_flying, 0);
}

#[test]
fn what_a_cut_took_away_comes_again_before_the_rest() {
    let tree = publish(1, 600, 1);
    let mut queue = Queue::new();
    let wanted = shuffled();
    queue.prefetch(tree.handle.clone(), order(wanted.clone()));
    let none = |_: &ChunkId| false;
    let first = queue.next_request(0, PATH, &none).unwrap();
    let lost = indexes(&first);
    let demanded = wanted[0] as usize;
    queue.demand(tree.want(demanded), 1);
    queue.ended(first);
    let demand = queue.next_request(2, PATH, &none).unwrap();
    assert_eq!(
        (demand.urgency, indexes(&demand)),
        (Urgency::Demand, [demanded].into())
    );
    let again = queue.next_request(3, PATH, &none).unwrap();
    let mut expected = lost;
    expected.remove(&demanded);
    assert!(expected.is_subset(&indexes(&again)), "{expected:?}");
}

#[test]
fn two_desktops_of_a_version_fetch_each_chunk_once() {
    let tree = publish(1, 600, 1);
    let mut queue = Queue::new();
    for _ in 0..2 {
        queue.prefetch(tree.handle.clone(), order(shuffled()));
    }
    let mut here = HashSet::new();
    let mut asked = HashSet::new();
    loop {
        let known = here.clone();
        let Some(request) = queue.next_request(0, PATH, &|id| known.contains(id)) else {
            break;
        };
        for (id, _) in &request.expected {
            assert!(asked.insert(*id), "asked for twice");
        }
        land(&mut queue, &mut here, request);
    }
    let all: HashSet<_> = (0..600).map(|index| tree.id(index)).collect();
    assert_eq!(asked, all);
    assert!(queue.prefetches.is_empty());
}

#[test]
fn a_fill_brings_what_boots_touch_first_and_then_everything() {
    let tree = publish(1, 600, 1);
    let mut queue = Queue::new();
    let first: Vec<u32> = (500..520).rev().collect();
    queue.fill_first(tree.handle.clone(), order(first.clone()));
    let mut here = HashSet::new();
    let mut requests = Vec::new();
    loop {
        let known = here.clone();
        let Some(request) = queue.next_request(1_000_000, u64::MAX, &|id| known.contains(id))
        else {
            break;
        };
        assert_eq!(request.urgency, Urgency::Fill);
        requests.push(indexes(&request));
        land(&mut queue, &mut here, request);
    }
    let expected: HashSet<usize> = first.iter().map(|index| *index as usize).collect();
    assert_eq!(requests[0], expected);
    assert_eq!(
        here.len(),
        (0..600).map(|i| tree.id(i)).collect::<HashSet<_>>().len()
    );
    assert!(queue.filling().next().is_none());
}

/// As kernel and initrd before what a boot profile names: whoever reads the first to its end asks for nothing that is not on its way,
/// and the second follows without a gap.
#[test]
fn one_prefetch_follows_another_without_a_gap() {
    let (first, second) = (publish(1, 400, 1), publish(2, 400, 1));
    let mut queue = Queue::new();
    for tree in [&first, &second] {
        queue.prefetch(tree.handle.clone(), order(0..400));
    }
    let mut here = HashSet::new();
    let mut flying: VecDeque<Request> = VecDeque::new();
    // The reader waits for the first chunk that is not here, and reads on when it is.
    let mut reader = 0;
    let mut of_second_while_first_flies = false;
    let mut seen_second = false;
    while reader < 400 {
        let known = here.clone();
        while let Some(request) = queue.next_request(0, PATH, &|id| known.contains(id)) {
            let is_second = request.version == second.handle.version;
            assert!(is_second || !seen_second, "the first is asked for whole");
            seen_second |= is_second;
            flying.push_back(request);
        }
        of_second_while_first_flies |=
            seen_second && flying.iter().any(|r| r.version == first.handle.version);
        while reader < 400 && here.contains(&first.id(reader)) {
            reader += 1;
        }
        if reader < 400 {
            let queued = queue.demand(first.want(reader), 0);
            assert!(!queued, "chunk {reader} is on its way");
            let request = flying.pop_front().unwrap();
            land(&mut queue, &mut here, request);
        }
    }
    assert!(of_second_while_first_flies);
}
