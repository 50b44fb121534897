//! The overlay in memory: extent index per disk, and what is live in each segment.
//!
//! Invariant: applying a log's records in order gives the same map whether they come from a guest or from replay, because
//! both go through [`Map::apply`].

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use dedup_store::disk::DiskFile;

use super::format::{Kind, RecordHeader, SegmentHeader};
use super::index::{Content, Index, LogPlace};
use super::packed::Packed;
use super::seal::Form;

/// What an extent takes in a log written anew besides its payload: a record header, the front of a piece, and room for a second one.
const EXTENT_BYTES: u64 = 160;

/// A segment file and its tallies.
pub struct Segment {
    /// Path of the file within the disk.
    pub name: Arc<str>,
    /// The open file. Its handle outlives the name, so that a reader is safe from a dropped segment.
    pub file: Arc<dyn DiskFile>,
    /// How its records are kept.
    pub form: Form,
    /// Checksum of the header of the record before its first one.
    pub chain: u64,
    /// Sequence number of its first record.
    pub first_seq: u64,
    /// Sequence number of its last record; one less than `first_seq` while it is empty.
    pub last_seq: u64,
    /// Length in bytes.
    pub len: u64,
    /// Disk bytes whose newest record is in here, zeros included. At 0 nothing needs the segment.
    pub live: u64,
    /// Of these, bytes with a payload.
    pub live_payload: u64,
    /// The record that made `live` 0.
    pub dead_since: u64,
}

impl Segment {
    /// A segment without records, of which `len` bytes are known.
    pub fn new(
        name: Arc<str>,
        file: Arc<dyn DiskFile>,
        form: Form,
        header: &SegmentHeader,
        len: u64,
    ) -> Self {
        Self {
            name,
            file,
            form,
            chain: header.chain,
            first_seq: header.first_seq,
            last_seq: header.first_seq - 1,
            len,
            live: 0,
            live_payload: 0,
            dead_since: 0,
        }
    }
}

/// One part of a range, and where its bytes are.
pub struct Part {
    /// First byte on the disk.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Where its bytes are.
    pub source: Source,
}

/// Where bytes are.
#[derive(Clone)]
pub enum Source {
    /// In the read-only version below.
    Base,
    /// They are zeros.
    Zero {
        /// Whether the guest gave the storage back.
        hole: bool,
    },
    /// In a record of the log.
    Log {
        /// The record.
        place: LogPlace,
        /// Its sequence number.
        seq: u64,
        /// Path of its segment, for errors.
        name: Arc<str>,
        /// Its segment.
        file: Arc<dyn DiskFile>,
        /// How the segment's records are kept.
        form: Form,
    },
}

/// The whole.
pub struct Map {
    /// By disk number.
    pub disks: Vec<Index>,
    /// By segment number.
    pub segments: BTreeMap<u32, Segment>,
}

impl Map {
    /// An empty map of `disks` disks.
    pub fn new(disks: usize) -> Self {
        Self {
            disks: (0..disks).map(|_| Index::default()).collect(),
            segments: BTreeMap::new(),
        }
    }

    /// Applies a validated record that begins at byte `position` of `segment` and ends at byte `end`.
    pub fn apply(&mut self, record: &RecordHeader, segment: u32, position: u64, end: u64) {
        let home = self
            .segments
            .get_mut(&segment)
            .expect("a segment is registered before its first record");
        home.last_seq = record.seq;
        home.len = end;
        let payload = match record.kind {
            Kind::Mark => return,
            Kind::Write => record.len,
            Kind::Zero | Kind::Discard => 0,
        };
        home.live += record.len;
        home.live_payload += payload;
        let content = match NonZeroU32::new(payload as u32) {
            Some(len) => {
                let delta = (record.seq - home.first_seq) as u32;
                Content::Log(LogPlace::new(record.offset, len, segment, position, delta))
            }
            None => Content::Zero {
                segment,
                hole: record.kind == Kind::Discard,
            },
        };
        let Self { disks, segments } = self;
        disks[usize::from(record.disk)].insert(
            record.offset,
            record.offset + record.len,
            content,
            &mut |old, bytes| {
                // Dropped segments hold nothing live, so an extent's segment is always here.
                let old_home = segments
                    .get_mut(&old.segment())
                    .expect("live extents keep their segment");
                old_home.live -= bytes;
                if matches!(old, Content::Log(_)) {
                    old_home.live_payload -= bytes;
                }
                if old_home.live == 0 {
                    old_home.dead_since = record.seq;
                }
            },
        );
    }

    /// Takes in an extent of an index snapshot, which lies behind those that `disk` has. False, and no change: it does not, or it lies
    /// outside the disk's `size` bytes or its segment.
    pub fn restore(&mut self, disk: u16, size: u64, extent: Packed) -> bool {
        let content = extent.content();
        let Some(home) = self.segments.get_mut(&content.segment()) else {
            return false;
        };
        let payload = match content {
            Content::Log(place) => {
                let sound = place.position() < home.len
                    && home.first_seq + u64::from(place.seq_delta) <= home.last_seq;
                if !sound {
                    return false;
                }
                extent.end() - extent.start()
            }
            Content::Zero { .. } => 0,
        };
        if extent.end() > size || !self.disks[usize::from(disk)].push(extent) {
            return false;
        }
        home.live += extent.end() - extent.start();
        home.live_payload += payload;
        true
    }

    /// Extents of all disks.
    pub fn extents(&self) -> u64 {
        self.disks.iter().map(|index| index.len() as u64).sum()
    }

    /// Bytes in all segments.
    pub fn log_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.len).sum()
    }

    /// About what a log would take that holds nothing but what is live.
    pub fn needed_bytes(&self) -> u64 {
        let payload: u64 = self.segments.values().map(|s| s.live_payload).sum();
        // The front of each 4 KiB is an 85th of it.
        payload + payload / 64 + EXTENT_BYTES * self.extents()
    }

    /// Consecutive parts that cover `start..end` of `disk` exactly.
    pub fn lookup(&self, disk: u16, start: u64, end: u64) -> Vec<Part> {
        let mut parts = Vec::with_capacity(1);
        self.disks[usize::from(disk)].lookup(start, end, &mut |start, end, content| {
            let source = match content {
                None => Source::Base,
                Some(Content::Zero { hole, .. }) => Source::Zero { hole },
                Some(Content::Log(place)) => {
                    let home = &self.segments[&place.segment];
                    Source::Log {
                        place,
                        seq: home.first_seq + u64::from(place.seq_delta),
                        name: home.name.clone(),
                        file: home.file.clone(),
                        form: home.form,
                    }
                }
            };
            parts.push(Part { start, end, source });
        });
        parts
    }
}
