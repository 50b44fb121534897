//! One leaf as edits of another. The first byte chooses: the bytes as a delta against a fixed leaf, or as two leaves of which
//! the delta is made, which must lead back.
#![no_main]

use dedup::Leaf;
use dedup::diff::LeafDelta;
use dedup::manifest::{LEAF_BYTES, LEAF_EXTENTS_MAX};
use libfuzzer_sys::fuzz_target;
use splice_fuzz::content::Fixed;
use splice_fuzz::script::Script;

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let choice = script.byte().unwrap_or(0);
    let content = Fixed::content();
    let leaves = &content.versions[0].disk.leaves;
    let id = leaves[usize::from(choice >> 1) % 2];
    let bytes = content.node(id).expect("leaves of the content are kept");
    let fixed = Leaf::decode(&bytes, LEAF_BYTES).expect("leaves of the content are sound");
    if choice & 1 == 0 {
        let Ok(delta) = LeafDelta::decode(script.rest()) else {
            return;
        };
        assert_eq!(LeafDelta::decode(&delta.encode()).as_ref(), Ok(&delta));
        if let Ok(leaf) = delta.apply(&fixed) {
            assert!(leaf.extents.len() <= LEAF_EXTENTS_MAX);
            let range = leaf.extents.iter().map(|e| u64::from(e.len)).sum();
            assert_eq!(Leaf::decode(&leaf.encode(), range).as_ref(), Ok(&leaf));
        }
    } else {
        // The fixed leaf's extents in another order, some dropped, some twice.
        let picked = script.rest().iter().map(|&at| usize::from(at));
        let extents = picked
            .filter_map(|at| fixed.extents.get(at).copied())
            .collect();
        let new = Leaf { extents };
        let delta = LeafDelta::between(&fixed, &new).encode();
        let delta = LeafDelta::decode(&delta).expect("our own delta decodes");
        assert_eq!(delta.apply(&fixed).as_ref(), Ok(&new));
    }
});
