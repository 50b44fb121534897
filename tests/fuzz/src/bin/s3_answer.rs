//! What an S3 answers: texts of elements are found in any bytes, and are never longer than these.
//!
//! The reader is compiled in by its file, because its crate links RocksDB.
#![no_main]

#[path = "../../../../datacenter/src/backup/bucket/answer.rs"]
mod answer;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    answer::fuzz_answer(data);
    let text = String::from_utf8_lossy(data);
    // What is written is found again.
    if !text.contains(['<', '&']) {
        let xml = format!("<A><Key>{text}</Key></A>");
        assert_eq!(answer::text(&xml, "Key").as_deref(), Some(&*text));
    }
});
