//! Golden values of format version 2: nonces are fixed here, and keys, ciphertexts and tags were computed by another implementation
//! (BLAKE3 and HChaCha20 in Python, ChaCha20-Poly1305 of its `cryptography` package), from what `docs/disk-formats/overlay.md` says.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io;
use std::sync::Mutex;

use dedup_store::disk::DiskFile;

use super::format::{Kind, RecordHeader, SegmentHeader, open_piece, push_piece};
use super::meta::Meta;
use super::seal::{Form, LogKey, OverlayKey};
use super::snapshot::Parts;

const LOG_ID: [u8; 16] = [3; 16];

fn key() -> OverlayKey {
    OverlayKey::new([0x77; 32], |buf| buf.fill(9))
}

fn log() -> LogKey {
    LogKey::new(&LOG_ID, &key())
}

#[test]
fn a_piece() {
    let mut out = Vec::new();
    let place = (1, 5, 8192);
    push_piece(&mut out, &log(), &[9; 24], place, &[b'A'; 512]);
    assert_eq!(out.len(), 48 + 512);
    assert_eq!(out[..24], [9; 24]);
    assert_eq!(
        hex::encode(&out[24..40]),
        "80744e33a9568e3ca2f0c569fe2ea2c1"
    );
    assert_eq!(out[40..48], [0; 8]);
    assert_eq!(
        hex::encode(&out[48..64]),
        "6fb8617d2a78c56bf702115e71406c0b"
    );
    let (front, piece) = out.split_at_mut(48);
    assert!(open_piece(&log(), Form::Sealed, place, front, piece));
    assert_eq!(piece, [b'A'; 512]);
}

#[test]
fn a_record_header() {
    let record = RecordHeader {
        kind: Kind::Write,
        moved: true,
        disk: 1,
        seq: 5,
        durable: 3,
        offset: 8192,
        len: 512,
        chain: 7,
    };
    let (bytes, check) = record.encode(&log(), &[9; 24]);
    assert_eq!(
        hex::encode(&bytes[..48]),
        "53504f520101010005000000000000000300000000000000002000000000000000020000000000000700000000000000"
    );
    assert_eq!(
        hex::encode(&bytes[72..88]),
        "a50a8830bda0a90b96bb46ede8e2fcf6"
    );
    assert_eq!(bytes[88..], check.to_le_bytes());
    let read = RecordHeader::decode(&bytes, &log(), Form::Sealed);
    assert_eq!(read, Some((Ok(record), check)));
}

#[test]
fn a_segment_header() {
    let header = SegmentHeader {
        number: 4,
        first_seq: 5,
        chain: 7,
        durable: 3,
    };
    let bytes = header.encode(&log());
    assert_eq!(
        hex::encode(&bytes[80..96]),
        "c2bed3d6363baea5e4e01961086bd477"
    );
    let read = SegmentHeader::decode(&bytes, &log(), 4);
    assert_eq!(read, Ok((header, Form::Sealed)));
}

#[test]
fn a_header_file() {
    assert_eq!(hex::encode(key().key_id()), "e395f285488baa1b");
    let meta = Meta {
        desktop: [7; 16],
        base: [9; 32],
        log_id: LOG_ID,
        key_id: key().key_id(),
        disks: vec![65_536],
        segments_synced: 4,
        plain_until: 2,
        dropped: vec![(2, 3)],
    };
    let bytes = meta.encode(&log());
    assert_eq!(bytes.len(), 128 + 24 + 16 + 8);
    assert_eq!(
        hex::encode(&bytes[152..168]),
        "1243826b2a2af7ba786f69240d9f5556"
    );
    let (read, _) = Meta::decode(&bytes, &key()).unwrap();
    assert_eq!(read, meta);
}

/// What is written to it.
#[derive(Default)]
struct Written(Mutex<Vec<u8>>);

impl DiskFile for Written {
    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        assert_eq!(bytes.len() as u64, offset, "front to back");
        bytes.extend_from_slice(data);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }
    fn truncate(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn punch_hole(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_index_snapshot() {
    let (file, log) = (Written::default(), log());
    let parts = Parts::begin(&file, &log, 2, 99).unwrap();
    assert_eq!(parts.end(7, 99).unwrap(), 64 + 48 + 32);
    let bytes = file.0.lock().unwrap();
    assert_eq!(&bytes[..8], b"SPLOVIDX");
    assert_eq!(
        hex::encode(&bytes[64..72]),
        "2000000003000000",
        "length and kind"
    );
    assert_eq!(
        hex::encode(&bytes[96..]),
        "d3ea10349a6cdd9db426cb2a1299cf9029f9203c6b39842ad543501f30012d4a8256883d69db3625819117d399cff842"
    );
}
