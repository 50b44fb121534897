//! Taps that are handed in as descriptors, to a machine in its sandbox.

use std::os::fd::AsRawFd;
use std::process::Command;

use vmm::virtio::net::Tap;

use crate::guest::OFF;
use crate::machine::Machine;

/// As the branch makes it: opened in a network that the machine is not in, for programs that are started while it is there.
fn tap(name: &'static str) -> Option<Tap> {
    let made = std::thread::spawn(move || {
        // SAFETY: plain numbers; only this thread is moved.
        let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        moved.then(|| Tap::open(name).ok()).flatten()
    });
    let Some(tap) = made.join().unwrap() else {
        eprintln!("no tap in a network namespace: none was handed in");
        return None;
    };
    // SAFETY: plain numbers; the descriptor is open.
    let kept = unsafe { libc::fcntl(tap.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(kept, 0);
    Some(tap)
}

/// Of a machine that starts, and of one that goes on.
#[test]
fn a_tap_that_is_handed_in_is_the_machine_s() {
    let said = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_splice-vmm"));
        let output = command.args(["run", "--kernel", "none"]).args(words);
        let output = output.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&["--net", "fd=999"]).contains("handed in"));
    assert!(said(&["--net", "fd=9", "--net", "fd=9"]).contains("one thing only"));
    let Some(first) = tap("handed0") else {
        return;
    };
    let card = format!("fd={},mac=52:53:0a:d5:00:02", first.as_raw_fd());
    let Some(mut machine) = Machine::start_with(&["--net", &card]) else {
        return;
    };
    drop(first);
    machine.wait_started(1);
    machine.is_answered();
    // The outer process has let go of it.
    let files = std::fs::read_dir(format!("/proc/{}/fd", machine.process.id())).unwrap();
    assert_eq!(files.count(), 5);
    assert!(machine.save("saved", &["--quit"]), "{}", machine.said());
    assert_eq!(machine.end().code(), Some(0), "{}", machine.said());

    let Some(second) = tap("handed1") else {
        return;
    };
    let card = format!("fd={},mbps=100", second.as_raw_fd());
    let mut next = machine.resume("saved", &["--net", &card]);
    drop(second);
    next.is_answered();
    next.type_letter(OFF);
    let end = next.end();
    assert_eq!(end.code(), Some(0), "{end}: {}", next.said());
}
