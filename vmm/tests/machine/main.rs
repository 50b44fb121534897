//! The whole machine on this host's /dev/kvm, used by a guest that is made for that (`tests/guest`): it finds its devices and drives each
//! by polling and by interrupt. Where there is no KVM these tests say so and do nothing.

#![allow(clippy::unwrap_used, missing_docs)]

mod agents;
mod disk;
mod lab;
mod power;
mod screen;
mod sockets;
mod tap;

use lab::Lab;
use vmm::virtio::balloon::{Balloon, BalloonSize};
use vmm::virtio::rng::Rng;

#[test]
fn the_bus_shows_every_device() {
    let Some(mut lab) = Lab::new() else { return };
    lab.add("rng", Rng::default());
    lab.add("balloon", Balloon::default());
    let said = lab.run("pci off");
    said.has("CHECK pci ok");
    // Both devices, at their places.
    said.has("NOTE pci 10441af4 BAR c0000000 of 0x8000");
    said.has("NOTE pci 10451af4 BAR c0008000 of 0x8000");
}

#[test]
fn entropy_comes() {
    let Some(mut lab) = Lab::new() else { return };
    lab.add("rng", Rng::default());
    lab.run("rng off").has("CHECK rng ok");
}

#[test]
fn a_balloon_takes_pages_and_gives_them_back() {
    let Some(mut lab) = Lab::new() else { return };
    let size = BalloonSize::default();
    size.ask_mib(1);
    lab.add("balloon", Balloon::new(size.clone()));
    lab.run("balloon off").has("CHECK balloon ok");
    assert_eq!(size.given_mib(), 1, "what the guest said last");
}
