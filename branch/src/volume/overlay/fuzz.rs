//! Replay of hostile logs, for the fuzz target.
//!
//! The first byte chooses: the bytes as a segment file as they are, or as fields of records whose checksums are made right, so
//! that what lies behind the checksums is reached too.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use dedup_store::disk::DiskFile;

use super::format::{LogKey, Meta, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::replay::{Found, replay};

const LOG_ID: [u8; 16] = *b"fuzzed overlay 1";

struct Bytes(Vec<u8>);

impl DiskFile for Bytes {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let source = start.and_then(|start| self.0.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn truncate(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn punch_hole(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Replays `data` as the log of a desktop with disks of 1 MiB and 16 TiB, and looks up what it left. Must never panic,
/// whatever the bytes.
pub fn fuzz_overlay(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    if let Ok(meta) = Meta::decode(data) {
        assert_eq!(
            meta.encode(),
            data,
            "a header file that is accepted has one encoding"
        );
    }
    let key = LogKey::new(&LOG_ID);
    let segment = if choice.is_multiple_of(2) {
        data.to_vec()
    } else {
        resealed(data, key)
    };
    let meta = Meta {
        desktop: [0; 16],
        base: [0; 32],
        log_id: LOG_ID,
        disks: vec![1 << 20, 16 << 40],
        segments_synced: u32::from(choice & 2 != 0),
        dropped: Vec::new(),
    };
    let segment = Found {
        name: "fuzz.seg".into(),
        file: Arc::new(Bytes(segment)),
    };
    let Ok(replayed) = replay(&meta, &BTreeMap::from([(1, segment)]), "fuzz") else {
        return;
    };
    for (disk, &size) in meta.disks.iter().enumerate() {
        let mut at = 0;
        for part in replayed.map.lookup(disk as u16, 0, size) {
            assert!(part.start == at && part.end > at, "parts are consecutive");
            at = part.end;
        }
        assert_eq!(at, size, "parts cover the disk");
    }
}

/// A sound segment header, then each 96 bytes of `data` as a record header with right chain and checksum, each followed by as
/// many of the bytes behind it as it says it has.
fn resealed(data: &[u8], key: LogKey) -> Vec<u8> {
    let header = SegmentHeader {
        number: 1,
        first_seq: 1,
        chain: 0,
        durable: 0,
    };
    let mut out = header.encode(&LOG_ID).to_vec();
    debug_assert_eq!(out.len(), SEGMENT_HEADER_BYTES);
    let (mut rest, mut chain, mut seq) = (data, 0, 0u64);
    while rest.len() >= RECORD_HEADER_BYTES {
        let (fields, behind) = rest.split_at(RECORD_HEADER_BYTES);
        let fields: &[u8; RECORD_HEADER_BYTES] = fields.try_into().expect("split at this length");
        seq += 1;
        let (bytes, check, body) = super::format::reseal(fields, seq, chain, key);
        out.extend_from_slice(&bytes);
        let body = (body.min(behind.len() as u64)) as usize;
        out.extend_from_slice(&behind[..body]);
        (rest, chain) = (&behind[body..], check);
    }
    out
}
