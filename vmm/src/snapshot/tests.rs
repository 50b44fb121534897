//! What can be filled, what can be handed in, and how much of it there may be.

use super::*;

#[test]
fn only_two_empty_files_can_be_filled() {
    let temp = tempfile::tempdir().expect("a folder");
    let empty = |name: &str| {
        let file = File::create(temp.path().join(name)).expect("made");
        OwnedFd::from(file)
    };
    assert!(Target::new(vec![empty("a"), empty("b")]).is_ok());
    let one = Target::new(vec![empty("a")]).err().expect("refused");
    assert!(one.to_string().contains("two files and 1 came"), "{one}");
    std::fs::write(temp.path().join("full"), "x").expect("written");
    let full = || File::open(temp.path().join("full")).expect("opened");
    let full = Target::new(vec![empty("a"), full().into()]);
    assert!(matches!(full, Err(SnapshotError::NotEmpty(MEMORY))));
    let (pipe, _other) = std::io::pipe().expect("a pipe");
    let pipe = Target::new(vec![pipe.into(), empty("b")]);
    assert!(matches!(pipe, Err(SnapshotError::Write(STATE, _))));
}

#[test]
fn files_that_are_handed_in_are_a_snapshot_and_others_are_refused() {
    use std::os::fd::IntoRawFd;
    let temp = tempfile::tempdir().expect("a folder");
    let make = |name: &str, bytes: u64| {
        let path = temp.path().join(name);
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(path);
        let file = file.expect("made");
        file.set_len(bytes).expect("a length");
        file.into_raw_fd()
    };
    let files = [make("state", 0), make("memory", 64 * MIB), make("order", 0)];
    let files = Snapshot::handed_in(files).expect("three files");
    assert_eq!(files.memory_mib(), 64);
    assert!(files.working_set.is_writable());
    assert!(files.read().is_err(), "its state is empty");
    let (pipe, _other) = std::io::pipe().expect("a pipe");
    let pipe = OwnedFd::from(pipe).into_raw_fd();
    let refused = Snapshot::handed_in([pipe, make("m", 0), make("o", 0)]);
    let refused = refused.err().expect("a pipe is no file");
    assert!(refused.to_string().contains("fd="), "{refused}");
    let none = Snapshot::handed_in([1 << 20, 1 << 20, 1 << 20]);
    assert!(matches!(none, Err(SnapshotError::Open { .. })));
}

#[test]
fn limits_leave_room_for_the_largest_machine() {
    let bytes = crate::machine::memory::MEMORY_MIB_MAX * MIB;
    assert_eq!(file_bytes_max(bytes), bytes);
    assert!(state_bytes_max(bytes) < 1 << 30);
    assert!(file_bytes_max(64 * MIB) > IMAGE_BYTES_MAX as u64);
    assert_eq!(state_bytes_max(u64::MAX), state_bytes_max(bytes));
}
