//! The files of a branch's keys: as they are, and with the checksum made right, which a fuzzer does not find.
//!
//! The formats are compiled in by their files, because their crate links RocksDB, which is neither wanted under instrumentation nor
//! needed to read them.
#![no_main]
// The writing half of these files is not used here.
#![allow(dead_code, missing_docs)]

use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

/// The name by which the files below know where nonces come from.
mod volume {
    pub type FillRandom = fn(&mut [u8]);
}

#[path = "../../../../branch/src/keys"]
mod keys {
    pub mod tpm;
    pub mod unlock;
    pub mod wrap;
}

use keys::unlock::{BranchKeyFile, Mode, Unlock};
use keys::wrap::{DataKey, Secret};

fuzz_target!(|data: &[u8]| {
    let mut mended = data.to_vec();
    if let Some(end) = mended.len().checked_sub(8) {
        let check = xxh3_64(&mended[..end]);
        mended[end..].copy_from_slice(&check.to_le_bytes());
    }
    for bytes in [data, &mended[..]] {
        if let Ok(key) = DataKey::decode(bytes) {
            assert_eq!(key.encode(), bytes, "a key file has one encoding");
            assert!(
                key.open(&Secret::new([1; 32])).is_err(),
                "a tag was guessed"
            );
        }
        if let Ok(file) = BranchKeyFile::decode(bytes) {
            assert_eq!(file.encode(), bytes, "a key file has one encoding");
            // A passphrase costs what the file says, and a TPM is asked: neither is for a fuzzer.
            if file.mode == Mode::KeyFile {
                let unlock = Unlock::KeyFile(Secret::new([1; 32]));
                assert!(file.open(&unlock).is_err(), "a tag was guessed");
            }
        }
    }
});
