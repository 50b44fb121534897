//! Encoded manifest leaves. The first three bytes are the length of the range that the leaf must cover.
#![no_main]

use dedup::Leaf;
use dedup::manifest::{LEAF_BYTES, LEAF_EXTENTS_MAX};
use libfuzzer_sys::fuzz_target;
use splice_fuzz::script::Script;

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let range = u64::from(script.word()) | u64::from(script.byte().unwrap_or(0)) << 16;
    // 0 stands for a whole leaf, the most common one.
    let range = if range == 0 {
        LEAF_BYTES
    } else {
        range.min(LEAF_BYTES)
    };
    let Ok(leaf) = Leaf::decode(script.rest(), range) else {
        return;
    };
    assert!(leaf.extents.len() <= LEAF_EXTENTS_MAX);
    let covered: u64 = leaf.extents.iter().map(|e| u64::from(e.len)).sum();
    assert_eq!(covered, range);
    assert_eq!(Leaf::decode(&leaf.encode(), range).as_ref(), Ok(&leaf));
    assert!(leaf.chunks().count() <= leaf.extents.len());
});
