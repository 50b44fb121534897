//! Chains of any shape: what is written, and how much is taken for them.

use proptest::prelude::*;
use vmm::virtio::hostile::{
    BUFFERS, Descriptor, Driver, INDIRECT, Kind, MEMORY_BYTES, NEXT, SIZE, WRITE, make,
};

use crate::kind;
use crate::memory::{bound, most};

/// Entries of the longest table that a descriptor can have.
const TABLE_MAX: u32 = u16::MAX as u32;

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => BUFFERS..MEMORY_BYTES,
        1 => 0..MEMORY_BYTES,
        1 => MEMORY_BYTES - 16..MEMORY_BYTES + 16,
        1 => any::<u64>(),
        1 => u64::MAX - 4096..u64::MAX,
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => 0..2048u32,
        1 => 0..MEMORY_BYTES as u32 * 2,
        1 => any::<u32>(),
        1 => u32::MAX - 4096..u32::MAX,
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let flags =
        prop_oneof![6 => Just(NEXT), 6 => Just(NEXT | WRITE), 1 => Just(WRITE), 1 => 0..4u16];
    let next = prop_oneof![4 => 0..SIZE, 1 => any::<u16>()];
    (address(), length(), flags, next).prop_map(|(at, len, flags, next)| Descriptor {
        at,
        len,
        flags,
        next,
    })
}

/// What devices read: mostly things that begin as some device's requests do.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let heads = prop::sample::select(vec![
        vec![0u8, 0, 0, 0],
        vec![1, 0, 0, 0],
        vec![8, 0, 0, 0],
        vec![11, 0, 0, 0],
        vec![13, 0, 0, 0],
        vec![1, 1, 0, 0],
        vec![5, 1, 0, 0],
        vec![6, 1, 0, 0],
    ]);
    (heads, prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(mut head, rest)| {
        head.extend(rest);
        head
    })
}

/// Whether a byte may be written: by a descriptor of a table that says so, or as a used ring.
fn writable(driver: &Driver, descriptors: &[Descriptor]) -> Vec<bool> {
    let mut may = vec![false; MEMORY_BYTES as usize];
    let mut allow = |from: u64, to: u64| {
        let to = to.min(MEMORY_BYTES);
        if from < to {
            may[from as usize..to as usize].fill(true);
        }
    };
    for descriptor in descriptors.iter().filter(|one| one.flags & WRITE != 0) {
        allow(
            descriptor.at,
            descriptor.at.saturating_add(descriptor.len.into()),
        );
    }
    for queue in 0..driver.queues() {
        let [_, _, used, end] = driver.places(queue);
        allow(used, end);
    }
    may
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Loops, overlaps, ranges that wrap or that leave memory, chains without a part to write: nothing else is written.
    #[test]
    fn only_what_a_chain_lets_be_written_is(
        kind in kind().prop_filter("a balloon empties pages that a chain names", |kind| *kind != Kind::Balloon),
        queue in 0..6usize,
        descriptors in prop::collection::vec(descriptor(), SIZE as usize),
        heads in prop::collection::vec(0..SIZE + 2, 1..8),
        content in content(),
        event_idx in any::<bool>(),
    ) {
        // A device that writes over tables and rings makes others of them.
        prop_assume!(descriptors.iter().all(|one| one.flags & WRITE == 0 || one.at >= BUFFERS));
        let (device, _host) = make(kind);
        let mut driver = Driver::new(device);
        let queue = queue % driver.queues();
        let features = if event_idx { u64::MAX } else { 0 };
        driver.start(features, u32::MAX).unwrap();
        for at in 0..64 {
            driver.write(BUFFERS + at * 4096, &content);
        }
        for (index, descriptor) in (0..).zip(&descriptors) {
            driver.describe(queue, index, *descriptor);
        }
        for head in &heads {
            driver.publish(queue, *head);
        }
        let before = driver.content();
        driver.kick(queue);
        driver.stop();
        let after = driver.content();
        let may = writable(&driver, &descriptors);
        let wrong = (0..before.len()).find(|at| before[*at] != after[*at] && !may[*at]);
        prop_assert_eq!(wrong, None);
        // Heads that exist are given back once each, as far as there was something to do with them.
        prop_assert!(usize::from(driver.used(queue)) <= heads.len());
    }
}

/// A head whose table has as many entries as a table can have, all of them the same.
fn long_chain(driver: &mut Driver, queue: usize, flags: u16, len: u32) {
    // The table takes all of memory behind rings and round again: its last entries lie beyond memory's end, where the chain ends.
    let entries = ((MEMORY_BYTES - BUFFERS) / 16) as u32;
    let mut table = Vec::new();
    for index in 0..entries {
        let entry = Descriptor {
            at: BUFFERS,
            len,
            flags: flags | NEXT,
            next: (index + 1) as u16,
        };
        table.extend(entry.bytes());
    }
    driver.write(BUFFERS, &table);
    let whole = Descriptor {
        at: BUFFERS,
        len: TABLE_MAX * 16,
        flags: INDIRECT,
        next: 0,
    };
    driver.describe(queue, 0, whole);
    driver.publish(queue, 0);
    driver.kick(queue);
}

#[test]
fn the_longest_chains_take_no_more_memory_than_a_device_says() {
    for kind in vmm::virtio::hostile::KINDS {
        for flags in [0, WRITE] {
            // Together, below and beyond 2^32 bytes.
            for len in [1, 4096, 131_000, 1 << 20] {
                let taken = most(|| {
                    let (device, _host) = make(kind);
                    let mut driver = Driver::new(device);
                    driver.start(u64::MAX, u32::MAX).unwrap();
                    for queue in 0..driver.queues() {
                        long_chain(&mut driver, queue, flags, len);
                    }
                    driver.stop();
                });
                assert!(taken <= bound(kind), "{kind:?} takes {taken} bytes");
            }
        }
    }
}

#[test]
fn a_device_without_some_of_its_queues_starts_or_says_why_not() {
    for kind in vmm::virtio::hostile::KINDS {
        for queues in 0..64 {
            let (device, _host) = make(kind);
            let mut driver = Driver::new(device);
            let _ = driver.start(u64::MAX, queues);
            for queue in 0..driver.queues() {
                driver.publish(queue, 0);
                driver.kick(queue);
            }
            driver.stop();
            // And again, as if nothing had been.
            driver.start(0, u32::MAX).unwrap();
            driver.stop();
        }
    }
}
