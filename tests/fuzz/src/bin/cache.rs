//! The branch cache's headers and its residency index: the input is a slab's number of slots, then pieces, each an index value
//! that is placed as opening a cache does it.
//!
//! The formats are compiled in by their files, because their crate links RocksDB, which is neither wanted under instrumentation
//! nor needed to read them.
#![no_main]
// The writing half of these files is not used here.
#![allow(dead_code, missing_docs)]

#[path = "../../../../branch/src/cache/format.rs"]
mod format;
#[path = "../../../../branch/src/cache/slots.rs"]
mod slots;

use format::{META_BYTES, Meta, Residency, decode_slab_header, slots_of};
use libfuzzer_sys::fuzz_target;
use slots::{Run, Slots};
use splice_fuzz::script::Script;
use xxhash_rust::xxh3::xxh3_64;

/// Headers as they are, and with the checksum made right, which a fuzzer does not find.
fn headers(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<META_BYTES>() else {
        return;
    };
    let mut mended = *bytes;
    let check = xxh3_64(&mended[..72]);
    mended[72..].copy_from_slice(&check.to_le_bytes());
    for bytes in [bytes, &mended] {
        if let Ok(meta) = Meta::decode(bytes) {
            assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
            let _ = decode_slab_header(&meta, 0, bytes);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    headers(data);
    let mut script = Script::new(data);
    let slab_slots = u32::from(script.word()) + 1;
    let mut slots = Slots::default();
    for slab in 0..2 {
        slots.add_slab(slab, slab_slots);
    }
    let mut taken: Vec<Run> = Vec::new();
    loop {
        let value = script.piece();
        if value.is_empty() {
            break;
        }
        let Some(found) = Residency::decode(value) else {
            continue;
        };
        assert_eq!(found.encode(), value, "an index value has one encoding");
        let run = Run {
            slab: found.slab,
            slot: found.slot,
            count: slots_of(found.len),
        };
        if slots.take_exactly(run) {
            let end = run.slot + run.count;
            assert!(end <= slab_slots, "a run ends in its slab");
            let apart = |other: &Run| {
                other.slab != run.slab || end <= other.slot || other.slot + other.count <= run.slot
            };
            assert!(taken.iter().all(apart), "two chunks share a slot");
            taken.push(run);
        }
    }
    let used: u64 = taken.iter().map(|run| u64::from(run.count)).sum();
    assert_eq!(slots.used(), used);
    for run in taken {
        slots.give(run);
    }
    assert_eq!(
        (slots.used(), slots.free_runs().len()),
        (0, 2),
        "two whole slabs are free"
    );
});
