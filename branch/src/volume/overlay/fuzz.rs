//! Replay of hostile logs and index snapshots, for the fuzz targets.
//!
//! The first byte chooses: the bytes as a file as they are, or as fields whose checksums and tags are made right, so that what lies
//! behind these is reached too.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use dedup_store::disk::DiskFile;

use super::format::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::map::Map;
use super::meta::Meta;
use super::replay::{Found, Start, replay};
use super::seal::{Form, LogKey, OverlayKey};
use super::snapshot;

const LOG_ID: [u8; 16] = *b"fuzzed overlay 1";

fn key() -> OverlayKey {
    OverlayKey::new([0x5A; 32], |buf| buf.fill(9)).taking_plain()
}

#[derive(Default)]
struct Bytes(Mutex<Vec<u8>>);

impl Bytes {
    fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(bytes))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskFile for Bytes {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.lock();
        let start = usize::try_from(offset).ok();
        let source = start.and_then(|start| bytes.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.lock();
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len() as u64)
    }

    fn truncate(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn punch_hole(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

fn meta(segments_synced: u32) -> Meta {
    Meta {
        desktop: [0; 16],
        base: [0; 32],
        log_id: LOG_ID,
        key_id: key().key_id(),
        disks: vec![1 << 20, 16 << 40],
        segments_synced,
        plain_until: u32::MAX,
        dropped: Vec::new(),
    }
}

fn found(bytes: Vec<u8>) -> Found {
    Found {
        name: "fuzz.seg".into(),
        file: Arc::new(Bytes::new(bytes)),
    }
}

/// Every part of every disk can be looked up.
fn walk(map: &Map, disks: &[u64]) {
    for (disk, &size) in disks.iter().enumerate() {
        let mut at = 0;
        for part in map.lookup(disk as u16, 0, size) {
            assert!(part.start == at && part.end > at, "parts are consecutive");
            at = part.end;
        }
        assert_eq!(at, size, "parts cover the disk");
    }
}

/// Replays `data` as the log of a desktop with disks of 1 MiB and 16 TiB, and looks up what it left. Must never panic,
/// whatever the bytes.
pub fn fuzz_overlay(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    if let Ok((meta, log)) = Meta::decode(data, &key()) {
        let again = Meta::decode(&meta.encode(&log), &key()).map(|(again, _)| again);
        // One of version 1 has become one of version 2, and lost what only the former has.
        assert!(meta.key_id == [0; 8] || again == Ok(meta));
    }
    let log = LogKey::new(&LOG_ID, &key());
    let form = if choice & 4 == 0 {
        Form::Sealed
    } else {
        Form::Plain
    };
    let segment = if choice.is_multiple_of(2) {
        data.to_vec()
    } else {
        resealed(data, &log, form)
    };
    let meta = meta(u32::from(choice & 2 != 0));
    let start = Start::nothing(meta.disks.len());
    let segments = BTreeMap::from([(1, found(segment))]);
    if let Ok(replayed) = replay(&meta, &segments, "fuzz", &log, start) {
        walk(&replayed.map, &meta.disks);
    }
}

/// Reads `data` as an index snapshot of the first of two segments, or as the contents of its parts: kind, length and bytes of each.
/// Must never panic, whatever the bytes.
pub fn fuzz_index_snapshot(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let log = LogKey::new(&LOG_ID, &key());
    let meta = meta(2);
    let header = |number, first_seq| {
        let header = SegmentHeader {
            number,
            first_seq,
            chain: 7,
            durable: 0,
        };
        header.encode(&log).to_vec()
    };
    let first = [header(1, 1), vec![0; 64 << 10]].concat();
    let segments = BTreeMap::from([(1, found(first)), (2, found(header(2, 100)))]);
    let file = if choice.is_multiple_of(2) {
        Bytes::new(data.to_vec())
    } else {
        let Some(file) = parts(data, &log) else {
            return;
        };
        file
    };
    if let Ok(start) = snapshot::read(&file, &meta, &log, &segments) {
        walk(&start.map, &meta.disks);
    }
}

/// A snapshot with parts of these contents, ended as it should be.
fn parts(mut data: &[u8], log: &LogKey) -> Option<Bytes> {
    let file = Bytes::default();
    let mut out = snapshot::Parts::begin(&file, log, 2, 99).ok()?;
    while let Some((&[kind, len], rest)) = data.split_first_chunk() {
        let (body, rest) = rest.split_at(usize::from(len).min(rest.len()));
        out.raw(u32::from(kind % 4), body).ok()?;
        data = rest;
    }
    out.end(7, 99).ok()?;
    Some(file)
}

/// A sound segment header, then each 96 bytes of `data` as a record header with right chain, tag and checksum, each followed by as
/// many of the bytes behind it as it says it has.
fn resealed(data: &[u8], log: &LogKey, form: Form) -> Vec<u8> {
    let header = SegmentHeader {
        number: 1,
        first_seq: 1,
        chain: 0,
        durable: 0,
    };
    let mut out = header.encode(log).to_vec();
    debug_assert_eq!(out.len(), SEGMENT_HEADER_BYTES);
    if form == Form::Plain {
        // As an earlier release wrote it.
        out[8..12].copy_from_slice(&1u32.to_le_bytes());
        out[56..120].fill(0);
        let check = log.header_check(&out[..120]);
        out[120..].copy_from_slice(&check.to_le_bytes());
    }
    let (mut rest, mut chain, mut seq) = (data, 0, 0u64);
    while rest.len() >= RECORD_HEADER_BYTES {
        let (fields, behind) = rest.split_at(RECORD_HEADER_BYTES);
        let fields: &[u8; RECORD_HEADER_BYTES] = fields.try_into().expect("split at this length");
        seq += 1;
        let (bytes, check, body) = super::format::reseal(fields, seq, chain, log, form);
        out.extend_from_slice(&bytes);
        let body = (body.min(behind.len() as u64)) as usize;
        out.extend_from_slice(&behind[..body]);
        (rest, chain) = (&behind[body..], check);
    }
    out
}
