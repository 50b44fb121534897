//! Memory that comes page by page, as the host's kernel has it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::sync_channel;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::memory::{self, Memory};
use crate::snapshot::memory::{Blocks, write};
use crate::snapshot::uffd::Faults;
use crate::snapshot::working_set;

const MIB: u64 = 1 << 20;

/// A memory with a byte in each of a thousand blocks, in a file.
fn saved() -> (tempfile::TempDir, Blocks) {
    let temp = tempfile::tempdir().expect("a folder");
    let memory = memory::create(64).expect("memory");
    for block in 0..1000u64 {
        let at = GuestAddress(block * BLOCK_BYTES as u64 + 100);
        memory.write_obj(block as u8 | 1, at).expect("memory");
    }
    let file = File::create_new(temp.path().join("memory")).expect("made");
    let blocks = write(&memory, &file).expect("written");
    (temp, blocks)
}

fn begin(
    temp: &tempfile::TempDir,
    blocks: &Blocks,
    on_damage: OnDamage,
) -> Option<(Memory, Pager, Loading)> {
    let memory = memory::create(64).expect("memory");
    let file = File::open(temp.path().join("memory")).expect("opened");
    let image = Image::new(file, 64 * MIB, blocks.clone()).expect("as long as it is");
    let uffd = Faults::open()
        .and_then(|faults| Uffd::register(faults, &memory))
        .inspect_err(|error| eprintln!("no userfaultfd here ({error}): nothing to test"))
        .ok()?;
    let loading = Loading::begun();
    let working_set = WorkingSet::open(temp.path());
    let pager = Pager::begin(uffd, image, working_set, loading.clone(), on_damage);
    Some((memory, pager.expect("a thread"), loading))
}

fn never() -> OnDamage {
    Box::new(|error| panic!("{error}"))
}

#[test]
fn what_is_touched_comes_and_what_was_written_stays() {
    let (temp, blocks) = saved();
    let Some((memory, pager, loading)) = begin(&temp, &blocks, never()) else {
        return;
    };
    let at = |block: u64| GuestAddress(block * BLOCK_BYTES as u64 + 100);
    assert_eq!(
        memory.read_obj::<u8>(at(700)).expect("memory"),
        700u64 as u8 | 1
    );
    // Written before it came.
    memory.write_obj(77u8, at(800)).expect("memory");
    assert_eq!(
        memory
            .read_obj::<u8>(GuestAddress(63 * MIB + 9))
            .expect("memory"),
        0
    );
    assert!(!loading.is_over(), "nobody wanted the rest");
    pager.finish();
    assert!(loading.is_over());
    for block in 0..1000 {
        let expected = if block == 800 { 77 } else { block as u8 | 1 };
        assert_eq!(
            memory.read_obj::<u8>(at(block)).expect("memory"),
            expected,
            "{block}"
        );
    }
}

#[test]
fn a_known_working_set_is_loaded_without_being_touched() {
    let (temp, blocks) = saved();
    let known = WorkingSet::open(temp.path()).write(&[3, 999, 3]);
    known.expect("written");
    let Some((memory, _pager, loading)) = begin(&temp, &blocks, never()) else {
        return;
    };
    // With the working set known, the rest follows at once.
    loading.wait();
    let at = GuestAddress(999 * BLOCK_BYTES as u64 + 100);
    assert_eq!(memory.read_obj::<u8>(at).expect("memory"), 999u64 as u8 | 1);
}

#[test]
fn whoever_hurries_waits_for_an_order_where_one_is_wanted() {
    let loading = Loading::begun();
    assert!(!loading.is_urgent());
    loading.hurry();
    assert!(loading.is_urgent());
    let patient = Loading::begun();
    patient.be_patient();
    patient.hurry();
    assert!(!patient.is_urgent() && !patient.is_over());
}

#[test]
fn damage_is_told_and_given_to_nobody() {
    let (temp, blocks) = saved();
    let file = File::options().write(true).open(temp.path().join("memory"));
    let file = file.expect("opened");
    file.write_all_at(&[99], 5 * BLOCK_BYTES as u64 + 100)
        .expect("damaged");
    let (told, tells) = sync_channel(1);
    let on_damage = Box::new(move |error| {
        let _ = told.send(error);
        // As a process that ends: nobody who waits goes on.
        std::thread::park();
    });
    let Some((memory, pager, _)) = begin(&temp, &blocks, on_damage) else {
        return;
    };
    let was_read = Arc::new(AtomicBool::new(false));
    let reads = Arc::clone(&was_read);
    std::thread::spawn(move || {
        let _ = memory.read_obj::<u8>(GuestAddress(5 * BLOCK_BYTES as u64));
        reads.store(true, Ordering::Release);
    });
    let error = tells.recv_timeout(Duration::from_secs(20)).expect("told");
    assert!(matches!(error, PagerError::Image(ImageError::Damaged(5))));
    assert!(!was_read.load(Ordering::Acquire));
    // Its thread is parked for good.
    std::mem::forget(pager);
}

#[test]
fn a_machine_that_ends_early_waits_for_nothing() {
    let (temp, blocks) = saved();
    let Some((memory, pager, loading)) = begin(&temp, &blocks, never()) else {
        return;
    };
    memory.read_obj::<u8>(GuestAddress(0)).expect("memory");
    drop(pager);
    assert!(loading.is_over());
    let kept = std::fs::metadata(temp.path().join(working_set::FILE));
    assert_eq!(kept.expect("made").len(), 0, "cut short");
}
