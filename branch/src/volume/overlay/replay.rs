//! Reading a log back after a stop of any kind.
//!
//! Invariant: what replay accepts is a prefix of the records that were appended, and it contains every record that an
//! acknowledged flush covered, or replay fails. At the first record that does not verify, it looks at everything behind for
//! proof that this record had been durable: each record, mark and segment header carries the watermark of its day. With
//! proof, the disk lost flushed data and the overlay stays closed; without, it is the torn tail of a power cut and is cut off.
//! Replay only reads; [`super::open`] does the cutting.
//!
//! It begins at the first segment, or where an index snapshot ends. What the snapshot covers was durable as a whole, so nothing before
//! it can be a torn tail; its payloads are verified when they are read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dedup_store::disk::DiskFile;

use super::error::OverlayError;
use super::format::{
    Fault, Kind, RECORD_ALIGN_BYTES, RECORD_HEADER_BYTES, RECORD_MAGIC, RecordHeader,
    SEGMENT_HEADER_BYTES, SegmentHeader, open_piece, pieces,
};
use super::map::{Map, Segment};
use super::meta::Meta;
use super::packed::SEQ_DELTA_MAX;
use super::seal::{Form, LogKey};

/// Bytes read ahead at a time; a record (1 MiB and its checks) fits twice.
const WINDOW_BYTES: u64 = 4 << 20;
/// Longest segment believed: positions are stored in 32 bits of 16-byte units, and segments are 64 MiB.
const SEGMENT_BYTES_MAX: u64 = 16 << 30;

/// A segment file found in the overlay's directory.
pub struct Found {
    /// Path within the disk.
    pub name: Arc<str>,
    /// The open file.
    pub file: Arc<dyn DiskFile>,
}

/// What is known of the log when replay begins.
pub struct Start {
    /// The map of all segments before.
    pub map: Map,
    /// The first segment to read.
    pub segment: u32,
    /// Sequence number of the last record before it.
    pub last_seq: u64,
    /// That record's header checksum.
    pub chain: u64,
    /// Every record up to this one is known to have been durable.
    pub durable: u64,
}

impl Start {
    /// Nothing is known: the whole log of a desktop with so many disks is read.
    pub fn nothing(disks: usize) -> Self {
        Self {
            map: Map::new(disks),
            segment: 1,
            last_seq: 0,
            chain: 0,
            durable: 0,
        }
    }
}

/// Where the log ends for lack of a valid record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Segment with the first invalid record.
    pub segment: u32,
    /// Where it begins; 0 if the segment's own header is not valid.
    pub position: u64,
    /// What is wrong with it.
    pub why: String,
    /// Nothing is: the log just ends there, and only the zeros follow that were written ahead of it.
    pub is_end: bool,
}

/// A log that was read back.
pub struct Replayed {
    /// The map after the last accepted record.
    pub map: Map,
    /// Sequence number of the last accepted record.
    pub last_seq: u64,
    /// Its header checksum.
    pub chain: u64,
    /// Highest watermark found: proof of durability for every record up to it.
    pub durable: u64,
    /// The last accepted record that says something new. Where none was read, the last one that was not.
    pub guest_seq: u64,
    /// The accepted records above that watermark: (sequence number, segment, position).
    pub unproven: VecDeque<(u64, u32, u64)>,
    /// Where to cut, if the log does not end cleanly.
    pub cut: Option<Cut>,
}

/// Reads the log that `meta` describes from the segments found (by number), from `start` on.
pub fn replay(
    meta: &Meta,
    found: &BTreeMap<u32, Found>,
    dir: &str,
    key: &LogKey,
    start: Start,
) -> Result<Replayed, OverlayError> {
    let mut replay = Replayed {
        map: start.map,
        last_seq: start.last_seq,
        chain: start.chain,
        durable: start.durable,
        guest_seq: start.last_seq,
        unproven: VecDeque::new(),
        cut: None,
    };
    let last = found.keys().next_back().copied().unwrap_or(0);
    let mut gap = false;
    let last = last.max(meta.segments_synced);
    let mut next = Some(start.segment);
    while let Some(number) = next.filter(|number| *number <= last) {
        if let Some(run_end) = meta.dropped_until(number) {
            gap = true;
            next = run_end.checked_add(1);
            continue;
        }
        next = number.checked_add(1);
        let Some(segment) = found.get(&number) else {
            replay.cut = Some(Cut {
                segment: number,
                position: 0,
                why: "the segment file is missing".to_owned(),
                is_end: false,
            });
            break;
        };
        if let Some((position, why)) = replay.segment(meta, key, number, segment, gap)? {
            replay.cut = Some(Cut {
                segment: number,
                position,
                why,
                is_end: number == last
                    && position > 0
                    && Window::new(segment)?.is_blank(position)?,
            });
            break;
        }
        gap = false;
    }
    if let Some(cut) = &replay.cut {
        replay.refuse_if_flushed(meta, key, found, cut, dir)?;
    }
    Ok(replay)
}

impl Replayed {
    /// Reads one segment up to its end or to the first invalid record: where that is, and what is wrong with it.
    fn segment(
        &mut self,
        meta: &Meta,
        key: &LogKey,
        number: u32,
        found: &Found,
        gap: bool,
    ) -> Result<Option<(u64, String)>, OverlayError> {
        let mut window = Window::new(found)?;
        let (header, form) = match window.get(0, SEGMENT_HEADER_BYTES as u64)? {
            None => return Ok(Some((0, "the segment header is not complete".to_owned()))),
            Some(bytes) => {
                let bytes = (&*bytes).try_into().expect("as long as asked for");
                match SegmentHeader::decode(bytes, key, number) {
                    Ok(found) => found,
                    Err(Fault::Damaged(why)) => return Ok(Some((0, why))),
                    Err(fault) => return Err(unsupported(found, fault)),
                }
            }
        };
        if form == Form::Plain && number > meta.plain_until {
            let why = "it is in the clear, and this overlay is encrypted".to_owned();
            return Ok(Some((0, why)));
        }
        let follows = if gap {
            header.first_seq > self.last_seq
        } else {
            header.first_seq == self.last_seq + 1 && header.chain == self.chain
        };
        if !follows {
            let why = format!(
                "it begins at record {}, after {}",
                header.first_seq, self.last_seq
            );
            return Ok(Some((0, why)));
        }
        self.last_seq = header.first_seq - 1;
        self.chain = header.chain;
        self.learn_durable(header.durable);
        self.map.segments.insert(
            number,
            Segment::new(
                found.name.clone(),
                found.file.clone(),
                form,
                &header,
                SEGMENT_HEADER_BYTES as u64,
            ),
        );
        let mut position = SEGMENT_HEADER_BYTES as u64;
        while position < window.len {
            let read = self.record(&mut window, position, (key, form), &meta.disks)?;
            let (record, check) = match read {
                Ok(next) => next,
                Err(Fault::Damaged(why)) => return Ok(Some((position, why))),
                // Its checksum matches, so it was written like this: by a later release.
                Err(fault) => return Err(unsupported(found, fault)),
            };
            if record.seq - header.first_seq > SEQ_DELTA_MAX {
                let why = format!("it has more than {SEQ_DELTA_MAX} records");
                return Err(unsupported(found, Fault::Unsupported(why)));
            }
            let end = position + RECORD_HEADER_BYTES as u64 + record.body_bytes(form);
            self.last_seq = record.seq;
            self.chain = check;
            if record.kind != Kind::Mark && !record.moved {
                self.guest_seq = record.seq;
            }
            self.unproven.push_back((record.seq, number, position));
            self.learn_durable(record.durable);
            self.map.apply(&record, number, position, end);
            position = end;
        }
        Ok(None)
    }

    /// Reads and verifies the record at `position`, payload included.
    fn record(
        &self,
        window: &mut Window<'_>,
        position: u64,
        (key, form): (&LogKey, Form),
        disks: &[u64],
    ) -> Result<Result<(RecordHeader, u64), Fault>, OverlayError> {
        let damaged = |why: String| Ok(Err(Fault::Damaged(why)));
        let Some(bytes) = window.get(position, RECORD_HEADER_BYTES as u64)? else {
            return damaged("the record header is not complete".to_owned());
        };
        let bytes = (&*bytes).try_into().expect("as long as asked for");
        let decoded = RecordHeader::decode(bytes, key, form);
        let (record, check) = match decoded {
            None => return damaged("not a record header".to_owned()),
            Some((Err(fault), _)) => return Ok(Err(fault)),
            Some((Ok(record), check)) => (record, check),
        };
        if record.seq != self.last_seq + 1 || record.chain != self.chain {
            return damaged(format!(
                "record {} does not follow record {}",
                record.seq, self.last_seq
            ));
        }
        // The checksum matches and the place is right: this is no torn write but a record that nobody may have written.
        if let Err(fault) = record.validate(disks) {
            return Err(OverlayError::Corrupt {
                file: window.found.name.to_string(),
                offset: position,
                why: fault.to_string(),
            });
        }
        if record.kind == Kind::Write {
            let body = position + RECORD_HEADER_BYTES as u64;
            let Some(body) = window.get(body, record.body_bytes(form))? else {
                return damaged(format!(
                    "the payload of record {} is not complete",
                    record.seq
                ));
            };
            if !body_verifies(&record, key, form, body) {
                return damaged(format!(
                    "the payload of record {} is not what was written",
                    record.seq
                ));
            }
        }
        Ok(Ok((record, check)))
    }

    fn learn_durable(&mut self, durable: u64) {
        self.durable = self.durable.max(durable);
        while self
            .unproven
            .front()
            .is_some_and(|&(seq, ..)| seq <= self.durable)
        {
            self.unproven.pop_front();
        }
    }

    /// Fails if anything says that the record missing at `cut` had been durable.
    fn refuse_if_flushed(
        &self,
        meta: &Meta,
        key: &LogKey,
        found: &BTreeMap<u32, Found>,
        cut: &Cut,
        dir: &str,
    ) -> Result<(), OverlayError> {
        let missing = self.last_seq + 1;
        let refuse = |proof: String| {
            let file = found.get(&cut.segment).map_or_else(
                || super::segment_name(dir, cut.segment),
                |f| f.name.to_string(),
            );
            Err(OverlayError::Corrupt {
                file,
                offset: cut.position,
                why: format!("{}, but {proof}", cut.why),
            })
        };
        if cut.segment < meta.segments_synced
            || (cut.segment == meta.segments_synced && cut.position == 0)
        {
            return refuse(format!("segment {} was flushed", meta.segments_synced));
        }
        if self.durable >= missing {
            return refuse(format!("record {} was flushed", self.durable));
        }
        for (&number, segment) in found.range(cut.segment..) {
            let from = if number == cut.segment {
                cut.position
            } else {
                0
            };
            if let Some((position, durable)) = proof_behind(key, number, segment, from, missing)? {
                return refuse(format!(
                    "byte {position} of {} proves that record {durable} was flushed",
                    segment.name
                ));
            }
        }
        Ok(())
    }
}

fn unsupported(found: &Found, fault: Fault) -> OverlayError {
    OverlayError::Unsupported {
        file: found.name.to_string(),
        why: fault.to_string(),
    }
}

/// Whether every piece of the record's body verifies. The body is decrypted on the way, and not looked at again.
fn body_verifies(record: &RecordHeader, key: &LogKey, form: Form, mut body: &mut [u8]) -> bool {
    for (start, end) in pieces(record.offset, record.offset + record.len) {
        let (front, rest) = std::mem::take(&mut body).split_at_mut(form.front_bytes() as usize);
        let (piece, rest) = rest.split_at_mut((end - start) as usize);
        if !open_piece(key, form, (record.disk, record.seq, start), front, piece) {
            return false;
        }
        body = rest;
    }
    true
}

/// Searches a segment from byte `from` on for a header whose watermark is at least `missing`.
fn proof_behind(
    key: &LogKey,
    number: u32,
    found: &Found,
    from: u64,
    missing: u64,
) -> Result<Option<(u64, u64)>, OverlayError> {
    let mut window = Window::new(found)?;
    let header = match window.get(0, SEGMENT_HEADER_BYTES as u64)? {
        Some(bytes) => SegmentHeader::decode((&*bytes).try_into().expect("length"), key, number),
        None => return Ok(None),
    };
    if from == 0
        && let Ok((header, _)) = &header
        && header.durable >= missing
    {
        return Ok(Some((0, header.durable)));
    }
    // Behind a header that is damaged nobody knows.
    let forms: &[Form] = match &header {
        Ok((_, Form::Plain)) => &[Form::Plain],
        Ok((_, Form::Sealed)) => &[Form::Sealed],
        Err(_) => &[Form::Sealed, Form::Plain],
    };
    let mut position = from.next_multiple_of(RECORD_ALIGN_BYTES);
    while let Some(bytes) = window.get(position, RECORD_HEADER_BYTES as u64)? {
        if bytes[..4] == RECORD_MAGIC {
            let bytes = (&*bytes).try_into().expect("as long as asked for");
            let proof = forms.iter().find_map(|form| {
                let (record, _) = RecordHeader::decode(bytes, key, *form)?;
                let durable = record.ok().filter(|r| r.durable < r.seq)?.durable;
                (durable >= missing).then_some(durable)
            });
            if let Some(durable) = proof {
                return Ok(Some((position, durable)));
            }
        }
        position += RECORD_ALIGN_BYTES;
    }
    Ok(None)
}

/// A file read front to back through a buffer of bounded size.
pub struct Window<'a> {
    found: &'a Found,
    len: u64,
    buffer: Vec<u8>,
    start: u64,
}

impl<'a> Window<'a> {
    /// At its beginning. What is appended later is not seen.
    pub fn new(found: &'a Found) -> Result<Self, OverlayError> {
        let len = found
            .file
            .len()
            .map_err(|e| OverlayError::io(&found.name, "find its length", e))?;
        if len > SEGMENT_BYTES_MAX {
            return Err(OverlayError::Corrupt {
                file: found.name.to_string(),
                offset: SEGMENT_BYTES_MAX,
                why: format!("it has {len} bytes"),
            });
        }
        Ok(Self {
            found,
            len,
            buffer: Vec::new(),
            start: 0,
        })
    }

    /// Whether only zeros follow from `position` on.
    fn is_blank(&mut self, mut position: u64) -> Result<bool, OverlayError> {
        while position < self.len {
            let len = (self.len - position).min(WINDOW_BYTES);
            let bytes = self.get(position, len)?.unwrap_or_default();
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            position += len;
        }
        Ok(true)
    }

    /// The bytes `position..position + len`, or `None` if the file ends before. Whoever changes them gets them changed the next time.
    pub fn get(&mut self, position: u64, len: u64) -> Result<Option<&mut [u8]>, OverlayError> {
        if position.checked_add(len).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        let held = self.start..self.start + self.buffer.len() as u64;
        if !(held.start <= position && position + len <= held.end) {
            let fill = len.max(WINDOW_BYTES).min(self.len - position);
            self.buffer.resize(fill as usize, 0);
            self.start = position;
            self.found
                .file
                .read_at(position, &mut self.buffer)
                .map_err(|e| OverlayError::io(&self.found.name, "replay", e))?;
        }
        let at = (position - self.start) as usize;
        Ok(Some(&mut self.buffer[at..at + len as usize]))
    }
}
