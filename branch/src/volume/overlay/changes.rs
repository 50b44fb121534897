//! What changed behind one record up to another, or since the beginning: net ranges, in disk order.
//!
//! Invariant: of a byte that several records wrote the last one's content is told, and each byte once; what it was before is not asked. So ranges joined where
//! they touch depend on what guests wrote and not on how the log lies, and are the same each time, as long as the records are held
//! ([`Overlay::hold`]).
//!
//! Memory is bounded by windows: of the first places of the disk that the records speak of so many are kept as fit, and the records are gone through
//! again for the next ones. Only headers are looked at on the way; payloads are read, verified, when they are asked for. A fork is told from the map itself.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::Overlay;
use super::error::OverlayError;
use super::format::{Kind, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES};
use super::index::{Content, Index, LogPlace};
use super::map::{Part, Source};
use super::packed::Packed;
use super::replay::{Found, Window};
use super::seal::Form;

/// Most extents of a window: 6 MB. A segment of write-back has seldom more, so the log is read once.
const WINDOW_EXTENTS: u64 = 1 << 18;
/// Least of them.
const WINDOW_EXTENTS_MIN: u64 = 16;
/// Extents of the map that are looked at under one hold of its lock.
const SCAN_EXTENTS: usize = 256;

/// A range that changed, and where its content is.
pub struct Change {
    disk: u16,
    part: Part,
}

impl Change {
    /// On which disk.
    pub fn disk(&self) -> u16 {
        self.disk
    }

    /// Its first byte.
    pub fn start(&self) -> u64 {
        self.part.start
    }

    /// One past its last byte.
    pub fn end(&self) -> u64 {
        self.part.end
    }

    /// Cuts it at a byte inside it, a multiple of 512.
    pub fn split(self, at: u64) -> (Self, Self) {
        debug_assert!(self.part.start < at && at < self.part.end);
        let Self { disk, part } = self;
        let Part { start, end, source } = part;
        let front = Self {
            disk,
            part: Part {
                start,
                end: at,
                source: source.clone(),
            },
        };
        let part = Part {
            start: at,
            end,
            source,
        };
        (front, Self { disk, part })
    }

    /// Whether it is zeros now.
    pub fn is_zero(&self) -> bool {
        matches!(self.part.source, Source::Zero { .. })
    }
}

/// A segment of the log.
struct Log {
    first_seq: u64,
    /// The last record in it that is told.
    last_seq: u64,
    form: Form,
    found: Found,
}

/// What is told.
enum Scope {
    /// Records of these segments behind `after`; those that compaction moved as well, if `with_moved`.
    Records {
        logs: BTreeMap<u32, Log>,
        after: u64,
        with_moved: bool,
    },
    /// What the map has.
    Live,
}

/// See the module. Ends with `Ok(None)`.
pub struct Changes {
    overlay: Arc<Overlay>,
    scope: Scope,
    disk: u16,
    /// What lies before this on the disk was told or is in `next`.
    at: u64,
    next: VecDeque<Change>,
}

impl Overlay {
    /// What the records behind `after` up to `to` changed. Both are durable, and held.
    pub fn changes(self: &Arc<Self>, after: u64, to: u64) -> Changes {
        let map = self.map_read();
        let held = map
            .segments
            .iter()
            .filter(|(_, segment)| segment.last_seq > after && segment.first_seq <= to);
        let logs = held.map(|(&number, segment)| {
            let log = Log {
                first_seq: segment.first_seq,
                last_seq: segment.last_seq.min(to),
                form: segment.form,
                found: Found {
                    name: Arc::clone(&segment.name),
                    file: Arc::clone(&segment.file),
                },
            };
            (number, log)
        });
        let scope = Scope::Records {
            logs: logs.collect(),
            after,
            // Of all that there is nothing was sent, so what moved says something new.
            with_moved: after == 0,
        };
        drop(map);
        Changes::new(self, scope)
    }

    /// What differs from the base. Nobody writes meanwhile.
    pub fn changes_to_base(self: &Arc<Self>) -> Changes {
        Changes::new(self, Scope::Live)
    }

    /// Fills `buf`, as long as the change, with its content.
    ///
    /// # Errors
    /// It cannot be read, or does not verify.
    pub fn read_change(&self, change: &Change, buf: &mut [u8]) -> Result<(), OverlayError> {
        let read = self.read_part(change.disk, &change.part, buf, true)?;
        debug_assert!(read, "a read that may wait never declines");
        Ok(())
    }

    /// Calls `visit` with the records of a segment of the log that tell something, and where they begin.
    fn each_record(
        &self,
        log: &Log,
        (after, with_moved): (u64, bool),
        visit: &mut dyn FnMut(&RecordHeader, u64),
    ) -> Result<(), OverlayError> {
        let mut window = Window::new(&log.found)?;
        let mut position = SEGMENT_HEADER_BYTES as u64;
        for seq in log.first_seq..=log.last_seq {
            let corrupt = |why: String| OverlayError::Corrupt {
                file: log.found.name.to_string(),
                offset: position,
                why,
            };
            let bytes = window.get(position, RECORD_HEADER_BYTES as u64)?;
            let bytes = bytes.ok_or_else(|| corrupt(format!("record {seq} is not there")))?;
            let bytes = (&*bytes).try_into().expect("as long as asked for");
            let decoded = RecordHeader::decode(bytes, &self.key, log.form);
            let Some((Ok(record), _)) = decoded else {
                return Err(corrupt(format!("not the header of record {seq}")));
            };
            if record.seq != seq {
                let why = format!("record {} where record {seq} was", record.seq);
                return Err(corrupt(why));
            }
            record
                .validate(&self.identity.disks)
                .map_err(|fault| corrupt(fault.to_string()))?;
            let tells = record.kind != Kind::Mark && (with_moved || !record.moved);
            if tells && seq > after {
                visit(&record, position);
            }
            position += RECORD_HEADER_BYTES as u64 + record.body_bytes(log.form);
        }
        Ok(())
    }
}

impl Changes {
    fn new(overlay: &Arc<Overlay>, scope: Scope) -> Self {
        Self {
            overlay: Arc::clone(overlay),
            scope,
            disk: 0,
            at: 0,
            next: VecDeque::new(),
        }
    }

    /// The next change; `None` behind the last.
    ///
    /// # Errors
    /// The log cannot be read, or does not verify.
    pub fn next_change(&mut self) -> Result<Option<Change>, OverlayError> {
        loop {
            if let Some(change) = self.next.pop_front() {
                return Ok(Some(change));
            }
            let sizes = &self.overlay.identity.disks;
            let Some(&size) = sizes.get(usize::from(self.disk)) else {
                return Ok(None);
            };
            if self.at >= size {
                (self.disk, self.at) = (self.disk + 1, 0);
                continue;
            }
            self.at = match &self.scope {
                Scope::Live => self.look_at_map(size),
                Scope::Records { .. } => self.look_at_log(size)?,
            };
        }
    }

    /// Takes the next extents of the map; returns what they reach to.
    fn look_at_map(&mut self, size: u64) -> u64 {
        let map = self.overlay.map_read();
        let batch = map.disks[usize::from(self.disk)].scan(self.at, SCAN_EXTENTS);
        let Some(last) = batch.last() else {
            return size;
        };
        let end = last.end();
        for part in map.lookup(self.disk, self.at, end) {
            if !matches!(part.source, Source::Base) {
                let disk = self.disk;
                self.next.push_back(Change { disk, part });
            }
        }
        end
    }

    /// Goes through the records for the next window; returns what it reaches to.
    fn look_at_log(&mut self, size: u64) -> Result<u64, OverlayError> {
        let Scope::Records {
            logs,
            after,
            with_moved,
        } = &self.scope
        else {
            return Ok(size);
        };
        let options = &self.overlay.options;
        let most = WINDOW_EXTENTS.min(options.extents_max / 16);
        let most = most.max(WINDOW_EXTENTS_MIN) as usize;
        let (disk, at) = (self.disk, self.at);
        let (mut index, mut end) = (Index::default(), size);
        for (&number, log) in logs {
            self.overlay
                .each_record(log, (*after, *with_moved), &mut |record, position| {
                    let start = record.offset.max(at);
                    let stop = (record.offset + record.len).min(end);
                    if record.disk != disk || start >= stop {
                        return;
                    }
                    let content = content_of(record, number, log.first_seq, position);
                    index.insert(start, stop, content, &mut |_, _| {});
                    if index.len() >= most {
                        let kept = index.scan(at, most / 2);
                        end = kept.last().map_or(end, Packed::end);
                        index = Index::default();
                        for extent in kept {
                            index.push(extent);
                        }
                    }
                })?;
        }
        let mut found = at;
        loop {
            let batch = index.scan(found, SCAN_EXTENTS);
            let Some(last) = batch.last() else { break };
            found = last.end();
            let changes = batch.iter().map(|extent| Change {
                disk,
                part: part_of(extent, logs),
            });
            self.next.extend(changes);
        }
        Ok(end)
    }
}

fn content_of(record: &RecordHeader, segment: u32, first_seq: u64, position: u64) -> Content {
    let payload = match record.kind {
        Kind::Write => record.len,
        Kind::Zero | Kind::Discard | Kind::Mark => 0,
    };
    match NonZeroU32::new(payload as u32) {
        Some(len) => {
            let delta = (record.seq - first_seq) as u32;
            Content::Log(LogPlace::new(record.offset, len, segment, position, delta))
        }
        None => Content::Zero {
            segment,
            hole: record.kind == Kind::Discard,
        },
    }
}

fn part_of(extent: &Packed, logs: &BTreeMap<u32, Log>) -> Part {
    let source = match extent.content() {
        Content::Zero { hole, .. } => Source::Zero { hole },
        Content::Log(place) => {
            let log = &logs[&place.segment];
            Source::Log {
                place,
                seq: log.first_seq + u64::from(place.seq_delta),
                name: Arc::clone(&log.found.name),
                file: Arc::clone(&log.found.file),
                form: log.form,
            }
        }
    };
    Part {
        start: extent.start(),
        end: extent.end(),
        source,
    }
}
