//! The head of a desktop's template: what it says of memory and disk is read by it, so that all of it must be within bounds.
//!
//! The format is compiled in by its file, because its crate links RocksDB, which is neither wanted under instrumentation nor needed to read it.
#![no_main]
// The writing half of this file is not used here.
#![allow(dead_code, missing_docs)]

#[path = "../../../../branch/src/template/head.rs"]
mod head;

use head::{Head, WRITTEN_BYTES_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(head) = Head::decode(data) else {
        return;
    };
    assert_eq!(Head::decode(&head.encode()), Ok(head.clone()));
    assert!(head.shared_bytes() <= head.used_bytes());
    assert!(head.used_bytes() <= head.identity.memory_bytes());
    assert!(head.written_bytes() <= WRITTEN_BYTES_MAX);
    assert_eq!(head.body_bytes(), head.extents_at() + head.written_bytes());
    for extent in &head.extents {
        assert!(extent.start + extent.len <= head.disk_bytes);
    }
});
