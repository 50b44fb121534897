//! Requests that cannot be done for now: they wait, whatever becomes of connections and servers, and their guest never sees an error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::{Client, Guest};
use crate::devices::CutOff;
use crate::guest::{Data, IN, OUT, PATIENCE, SECTOR, pattern};
use crate::serve::{DISK_BYTES, place, serve, wait_until};

/// Waits at sector 8 within the device, and at sector 0 between attempts.
fn submit_all(guest: &mut Guest) -> Vec<u16> {
    let queue = &mut guest.queues[0];
    let heads = vec![
        queue.submit(IN, 0, Data::In(SECTOR)),
        queue.submit(OUT, 0, Data::Out(&pattern(4, SECTOR))),
        queue.submit(IN, 8, Data::In(SECTOR)),
    ];
    guest.kick(0);
    heads
}

fn all_are_done(guest: &mut Guest, mut heads: Vec<u16>) {
    let mut done = Vec::new();
    for _ in 0..heads.len() {
        let answer = guest.queues[0].wait();
        assert_eq!(answer.status, 0);
        done.push(answer.head);
    }
    done.sort_unstable();
    heads.sort_unstable();
    assert_eq!(done, heads);
}

#[test]
fn what_cannot_be_done_for_now_waits_and_is_done_later() {
    let place = place();
    let disk = CutOff::new(DISK_BYTES);
    let server = serve(&place, Arc::clone(&disk) as _);
    let mut guest = Guest::new(1);
    let _client = Client::attach(&place.socket, &mut guest);
    assert_eq!(server.waits_for(), None);
    let heads = submit_all(&mut guest);
    wait_until("several attempts", || disk.tries() >= 4);
    assert_eq!(server.waits_for().as_deref(), Some("cut off"));
    assert_eq!(guest.queues[0].answer(), None);
    // Others are served meanwhile.
    let other = guest.queues[0].submit(OUT, 20, Data::Out(&[7; SECTOR]));
    guest.kick(0);
    assert_eq!(guest.queues[0].wait().head, other);
    disk.restore();
    all_are_done(&mut guest, heads);
    wait_until("nothing waits", || server.waits_for().is_none());
    assert_eq!(disk.disk.content()[..SECTOR], pattern(4, SECTOR));
}

#[test]
fn what_waits_does_not_hold_up_the_end_of_a_server_and_the_next_one_does_it() {
    let place = place();
    let disk = CutOff::new(DISK_BYTES);
    let server = serve(&place, Arc::clone(&disk) as _);
    let mut guest = Guest::new(1);
    let client = Client::attach(&place.socket, &mut guest);
    let heads = submit_all(&mut guest);
    wait_until("both have been tried", || disk.tries() >= 2);
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
    drop(client);
    assert_eq!(guest.queues[0].answer(), None, "nobody is told of an error");

    // The front-end goes away from the next one, too, and comes back.
    let _server = serve(&place, Arc::clone(&disk) as _);
    let tried = disk.tries();
    let client = Client::attach(&place.socket, &mut guest);
    wait_until("both are tried again", || disk.tries() >= tried + 2);
    drop(client);
    let client = Client::attach(&place.socket, &mut guest);
    disk.restore();
    all_are_done(&mut guest, heads);
    assert_eq!(client.stop(0), 3);
}

#[test]
fn a_queue_that_is_stopped_leaves_what_waits_after_its_grace_and_goes_on_with_it() {
    let place = place();
    let disk = CutOff::new(DISK_BYTES);
    let _server = serve(&place, Arc::clone(&disk) as _);
    let mut guest = Guest::new(1);
    let client = Client::attach(&place.socket, &mut guest);
    let heads = submit_all(&mut guest);
    wait_until("both have been tried", || disk.tries() >= 2);
    assert_eq!(client.stop(0), 3, "all three are taken");
    let quiet = guest.queues[0].wait_for(Duration::from_millis(100));
    assert_eq!(quiet, None);
    client.start(&guest, 0, 3);
    disk.restore();
    all_are_done(&mut guest, heads);
}

#[test]
fn without_memory_for_requests_in_flight_a_guest_is_told_at_the_end() {
    let place = place();
    let disk = CutOff::new(DISK_BYTES);
    let _server = serve(&place, Arc::clone(&disk) as _);
    let mut guest = Guest::new(1);
    let client = Client::connect(&place.socket);
    client.negotiate();
    client.share(&guest);
    client.start(&guest, 0, 0);
    guest.queues[0].submit(IN, 0, Data::In(SECTOR));
    guest.kick(0);
    wait_until("it has been tried", || disk.tries() >= 1);
    assert_eq!(client.stop(0), 1);
    assert_eq!(guest.queues[0].answer().map(|a| a.status), Some(1));
}
