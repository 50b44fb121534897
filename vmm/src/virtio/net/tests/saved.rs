//! Cards that come to rest, and cards of machines that go on.

use std::os::unix::net::UnixDatagram;

use super::super::card::{CONTROL, RX};
use super::super::filter::Filter;
use super::super::{HEADER_BYTES, Limits, Link, Mac, Net, NetState, Tap};
use crate::virtio::hostile::{BUFFERS, Descriptor, Driver, NEXT, WRITE};
use crate::virtio::state::DeviceState;
use crate::virtio::{Device, F_VERSION_1};

const OWN: Mac = [0x52, 0x54, 0, 0, 0, 1];
/// What the driver makes of it, what another machine's card has, and somebody else's.
const SET: Mac = [0x52, 0x54, 0, 0, 0, 2];
const NEW: Mac = [0x52, 0x54, 0, 0, 0, 3];
const OTHER: Mac = [0x52, 0x54, 0, 0, 0, 9];

/// A card, the other end of its wire, and its cable.
fn card(mac: Mac) -> (Net, UnixDatagram, Link) {
    let (tap, wire) = Tap::wire().expect("sockets");
    let net = Net::new(mac, tap, Limits::default());
    let link = net.link();
    (net, wire, link)
}

/// Has the card do what it was kicked for: it comes to rest, and works again.
fn settle(driver: &mut Driver) {
    let rings = driver.stop();
    driver.resume(F_VERSION_1, rings).expect("it goes on");
}

fn command(driver: &mut Driver, command: &[u8]) {
    driver.write(BUFFERS, command);
    let command = Descriptor {
        at: BUFFERS,
        len: command.len() as u32,
        flags: NEXT,
        next: 1,
    };
    let answer = Descriptor {
        at: BUFFERS + 4096,
        len: 1,
        flags: WRITE,
        next: 0,
    };
    driver.describe(CONTROL, 0, command);
    driver.describe(CONTROL, 1, answer);
    driver.publish(CONTROL, 0);
    driver.kick(CONTROL);
    settle(driver);
}

/// Whether a packet for `to` reaches the guest.
fn comes(driver: &mut Driver, wire: &UnixDatagram, to: Mac) -> bool {
    let before = driver.used(RX);
    let room = Descriptor {
        at: BUFFERS + 8192,
        len: 2048,
        flags: WRITE,
        next: 0,
    };
    driver.describe(RX, 0, room);
    driver.publish(RX, 0);
    let packet = [[0; HEADER_BYTES].as_slice(), &to, &[7; 40]].concat();
    wire.send(&packet).expect("sent");
    driver.kick(RX);
    settle(driver);
    driver.used(RX) != before
}

fn address(driver: &mut Driver) -> Mac {
    let mut mac = [0; 6];
    driver.device().read_config(0, &mut mac);
    mac
}

#[test]
fn a_driver_finds_its_card_as_it_left_it() {
    let (net, wire, link) = card(OWN);
    let mut before = Driver::new(Box::new(net));
    before.start(0, u32::MAX).expect("started");
    assert!(comes(&mut before, &wire, OTHER), "everything does");
    command(&mut before, &[0, 0, 0]);
    command(&mut before, &[[1, 1].as_slice(), &SET].concat());
    assert!(!comes(&mut before, &wire, OTHER), "it comes to rest again");
    assert!(comes(&mut before, &wire, SET));
    link.set(false);
    before.stop();
    let memory = before.memory().clone();
    let saved = before.device().save(&memory).expect("saved");
    let bytes = postcard::to_stdvec(&saved).expect("bytes");
    for is_chosen in [false, true] {
        let (net, wire, link) = card(NEW);
        let mut net = if is_chosen {
            net.with_chosen_address()
        } else {
            net
        };
        let state: DeviceState = postcard::from_bytes(&bytes).expect("the same");
        net.restore(state, &memory).expect("taken up");
        let again = net.save(&memory).expect("saved");
        assert_eq!(again == saved, !is_chosen, "{again:?}");
        assert!(!link.is_up());
        link.set(true);
        let mut after = Driver::new(Box::new(net));
        after.start(0, u32::MAX).expect("started");
        assert_eq!(address(&mut after), SET);
        assert!(!comes(&mut after, &wire, OTHER));
        assert!(comes(&mut after, &wire, SET));
        after.stop();
        // A driver that binds anew.
        after.start(0, u32::MAX).expect("started");
        assert_eq!(address(&mut after), if is_chosen { NEW } else { OWN });
        assert!(comes(&mut after, &wire, OTHER));
        after.stop();
    }
}

#[test]
fn what_no_driver_can_have_said_is_refused() {
    const GROUP: Mac = [1, 0, 0, 0, 0, 1];
    let memory = crate::machine::memory::create(64).expect("memory");
    for (mac, filter, what) in [
        (GROUP, None, "hardware address"),
        (OWN, Some(Filter::new(GROUP)), "filter"),
    ] {
        let (mut net, _wire, _link) = card(OWN);
        let state = DeviceState::Net(NetState {
            mac,
            is_up: true,
            filter,
        });
        let refused = net.restore(state, &memory).expect_err("no guest's");
        assert_eq!(refused.to_string(), format!("its {what} makes no sense"));
    }
}
