//! Machines that go on from files that are handed in, as the branch hands in those of its templates.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::guest::OFF;
use crate::machine::Machine;

/// Opened for programs that are started while it is there.
fn open(path: &Path) -> File {
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false);
    let file = file.open(path).unwrap();
    // SAFETY: plain numbers; the descriptor is open.
    let kept = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(kept, 0);
    file
}

#[test]
fn machines_go_on_from_files_that_are_handed_in() {
    let Some(mut machine) = Machine::start_with(&[]) else {
        return;
    };
    machine.wait_started(1);
    assert!(machine.save("saved", &["--quit"]), "{}", machine.said());
    assert_eq!(machine.end().code(), Some(0), "{}", machine.said());
    for _ in 0..2 {
        let files = ["state", "memory", "order"].map(|name| {
            let path = machine.path("saved").join(name);
            open(&path)
        });
        let [state, memory, order] = files.each_ref().map(AsRawFd::as_raw_fd);
        let place = format!("fd={state},{memory},{order}");
        let mut next = machine.resume_from(&place, &["--record"]);
        drop(files);
        next.is_answered();
        next.type_letter(OFF);
        let end = next.end();
        assert_eq!(end.code(), Some(0), "{end}: {}", next.said());
    }
}
