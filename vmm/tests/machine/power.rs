//! How machines end.

use vmm::machine::End;
use vmm::machine::event::Event;
use vmm::virtio::rng::Rng;

use crate::lab::Lab;

#[test]
fn a_guest_powers_off() {
    let Some(mut lab) = Lab::new() else { return };
    let said = lab.run("off");
    assert_eq!((said.end, said.text.as_str()), (End::Off, ""));
}

#[test]
fn a_guest_resets_and_the_next_one_finds_its_devices() {
    let Some(mut lab) = Lab::new() else { return };
    lab.add("rng", Rng::default());
    assert_eq!(lab.run("rng reset").end, End::Reset);
    let said = lab.run("rng off");
    let done = said.text.lines().filter(|line| *line == "CHECK rng ok");
    assert_eq!(done.count(), 2, "{}", said.text);
    assert_eq!(said.end, End::Off);
}

#[test]
fn a_triple_fault_resets() {
    let Some(mut lab) = Lab::new() else { return };
    assert_eq!(lab.run("fall").end, End::Reset);
}

#[test]
fn a_guest_that_goes_on_is_ended() {
    let Some(mut lab) = Lab::new() else { return };
    let said = lab.run_with("hold", |events| events.put(Event::Quit));
    assert_eq!(said.end, End::Off);
}
