//! The catalog in a backup: the same rows whatever the pieces, and what is read is written back as it was.
//!
//! The reader is compiled in by its file, because its crate links RocksDB. The first byte chooses the size of the pieces; the realm is
//! the one that the bytes name, so that nothing is lost on that check.
#![no_main]
// The limits are public for those who link the crate.
#![allow(dead_code)]

#[path = "../../../../datacenter/src/backup/snapshot.rs"]
mod snapshot;

use libfuzzer_sys::fuzz_target;
use snapshot::{Decoder, Encoder, SnapshotError};

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn decode(realm: [u8; 16], bytes: &[u8], piece: usize) -> Result<Rows, SnapshotError> {
    let mut decoder = Decoder::new(realm);
    let mut rows = Rows::new();
    for part in bytes.chunks(piece) {
        decoder.feed(part, &mut |key, row| {
            rows.push((key.to_vec(), row.to_vec()));
        })?;
    }
    assert_eq!(decoder.finish()?, rows.len() as u64);
    Ok(rows)
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else {
        return;
    };
    let mut realm = [0; 16];
    if let Some(named) = bytes.get(16..32) {
        realm.copy_from_slice(named);
    }
    let whole = decode(realm, bytes, usize::MAX);
    let pieces = decode(realm, bytes, 1 + usize::from(choice));
    assert_eq!(whole.is_ok(), pieces.is_ok());
    let (Ok(rows), Ok(same)) = (whole, pieces) else {
        return;
    };
    assert_eq!(rows, same);
    let mut again = Vec::new();
    let mut encoder = Encoder::begin(realm, &mut again);
    for (key, row) in &rows {
        assert!(encoder.row(key, row, &mut again), "it was read");
    }
    encoder.end(&mut again);
    assert_eq!(again, bytes);
});
