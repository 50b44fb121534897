//! The pack reader against hostile files: the target of the fuzzer and of a property test.
//!
//! A fuzzer does not find checksums, so the file is read twice: as it is, and with the checksums of what looks like records made
//! right, so that the checks behind them are reached.

use bytes::Bytes;
use dedup::IdKey;
use xxhash_rust::xxh3::xxh3_64;

use crate::codec;
use crate::pack::{
    Found, HEADER_LEN, PackHeader, PackNumber, RECORD_HEADER_LEN, Records, SEAL_LEN, mend, u32_at,
};

/// Reads a hostile pack file from its first byte to its last. It must neither panic nor allocate more than the file and one record.
pub fn fuzz_pack(data: &[u8]) {
    let pack = PackHeader::parse(data).map_or(PackNumber(0), |h| h.pack);
    read_all(Bytes::copy_from_slice(data), pack);
    let mut mended = data.to_vec();
    let mut at = HEADER_LEN;
    while at + RECORD_HEADER_LEN <= mended.len() {
        let body = at + RECORD_HEADER_LEN;
        let stored_len = u32_at(&mended, at + 44) as usize;
        if let Some(stored) = mended.get(body..body.saturating_add(stored_len)) {
            let sum = xxh3_64(stored);
            mended[at + 48..at + 56].copy_from_slice(&sum.to_le_bytes());
        }
        mend(&mut mended[at..body], pack, at as u64);
        at = body.saturating_add(stored_len);
    }
    read_all(mended.into(), pack);
}

fn read_all(bytes: Bytes, pack: PackNumber) {
    let key = IdKey::new([0; 32]);
    let len = bytes.len();
    let body = bytes.slice(HEADER_LEN.min(len)..);
    let mut end = HEADER_LEN as u64;
    for found in Records::new(body, HEADER_LEN as u64, pack) {
        let (offset, len) = match found {
            Found::Record {
                offset,
                header,
                stored,
                ..
            } => {
                // The results are of no interest: most records of a hostile file are refused.
                header.open(&key, &stored).ok();
                codec::decode(header.encoding, &stored, header.raw_len as usize).ok();
                (offset, header.record_len())
            }
            Found::Seal { end, .. } => (end - SEAL_LEN as u64, SEAL_LEN as u64),
            Found::Damage { offset, len, .. } => (offset, len),
        };
        assert_eq!(offset, end, "the reader passes over no byte silently");
        assert!(len > 0, "the reader advances");
        end = offset + len;
    }
    assert!(len < HEADER_LEN || end == len as u64);
}
