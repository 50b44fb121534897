//! Appending records.
//!
//! Invariant: appends are serialised, one `pwrite` each, so that a later record never stands behind a hole that this process
//! left, and the map changes in the order of the sequence. A record is applied to the map, and so acknowledged, only once it
//! is in the kernel.
//!
//! Zeros ahead: an append that makes the file longer makes its fdatasync commit the file system's journal too, which doubles what a
//! small flush takes. So while flushes come after little, zeros are written [`AHEAD_BYTES`] ahead of the log, and the flushes in between
//! sync data only. They are no part of the log: replay ends there as at a torn tail, and the next segment begins only after they are cut off.
//!
//! Sealing happens under the lock, because a record's number is part of what its tags cover: 4 KiB take about as long as the `pwrite`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dedup_store::disk::{DiskFile, Open};

use super::error::{OverlayError, is_full};
use super::format::{
    Kind, PAYLOAD_BYTES_MAX, RECORD_HEADER_BYTES, RecordHeader, SECTOR_BYTES, SEGMENT_HEADER_BYTES,
    SegmentHeader, piece_count, pieces, push_piece,
};
use super::map::Segment;
use super::packed::{Packed, SEGMENT_BYTES_MAX};
use super::seal::{Form, NONCE_BYTES, Nonce};
use super::{Overlay, lock, segment_name};

/// Zeros written ahead of the log at a time: 60 flushed writes of 4 KiB, while an idle overlay takes little.
const AHEAD_BYTES: u64 = 256 << 10;
static ZEROS: [u8; AHEAD_BYTES as usize] = [0; AHEAD_BYTES as usize];

/// What is appended between two flushes counts as little up to this: larger appends share the journal's commit among more bytes, and
/// zeros ahead of them would double what is written.
const LITTLE_BYTES: u64 = 64 << 10;

/// Who has a record written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A guest.
    Guest,
    /// The overlay itself: it says nothing new to anybody.
    Own,
    /// Compaction, of what is not at the datacenter yet. The record that said it first may be dropped, so this one says it.
    Unsent,
}

/// What a record is to say.
pub struct Entry<'a> {
    pub kind: Kind,
    /// Who has it written.
    pub origin: Origin,
    pub disk: u16,
    pub offset: u64,
    pub len: u64,
    /// Of a write, `len` bytes.
    pub data: &'a [u8],
}

impl Entry<'_> {
    /// Carries the watermark, and nothing else.
    const MARK: Entry<'static> = Entry {
        kind: Kind::Mark,
        origin: Origin::Own,
        disk: 0,
        offset: 0,
        len: 0,
        data: &[],
    };

    /// Whether it is to carry the flag *moved*.
    fn is_moved(&self) -> bool {
        self.origin == Origin::Own && self.kind != Kind::Mark
    }
}

/// Where the next record goes.
pub struct Writer {
    pub number: u32,
    name: Arc<str>,
    file: Arc<dyn DiskFile>,
    form: Form,
    len: u64,
    /// The file may reach up to here, with zeros behind `len`.
    reach: u64,
    /// Bytes appended since the last sync began.
    unsynced_bytes: u64,
    /// Whether zeros are written ahead: the last sync covered little.
    writes_ahead: bool,
    pub last_seq: u64,
    chain: u64,
    /// Segments with appends that no sync has covered, oldest first.
    pub unsynced: Vec<(u32, Arc<str>, Arc<dyn DiskFile>)>,
    /// Whether a segment's name may not be durable.
    pub new_names: bool,
    /// Bytes of guests' data that may be appended before the room on the host's disk is looked at again.
    allowed_bytes: u64,
    buffer: Vec<u8>,
    nonces: Vec<Nonce>,
}

impl Writer {
    /// Goes on behind the last record of a log.
    pub fn resume(number: u32, segment: &Segment, last_seq: u64, chain: u64) -> Self {
        Self {
            number,
            name: segment.name.clone(),
            file: segment.file.clone(),
            form: segment.form,
            len: segment.len,
            reach: segment.len,
            unsynced_bytes: 0,
            writes_ahead: false,
            last_seq,
            chain,
            unsynced: Vec::new(),
            new_names: false,
            allowed_bytes: 0,
            buffer: Vec::new(),
            nonces: Vec::new(),
        }
    }

    /// Whether a sync now would have little to write.
    pub fn little_is_unsynced(&self) -> bool {
        self.unsynced_bytes <= LITTLE_BYTES
    }

    /// Notes that what was appended so far is being synced.
    pub fn begin_sync(&mut self) {
        self.writes_ahead = self.little_is_unsynced();
        self.unsynced_bytes = 0;
    }

    fn mark_unsynced(&mut self) {
        if self
            .unsynced
            .last()
            .is_none_or(|(number, ..)| *number != self.number)
        {
            self.unsynced
                .push((self.number, self.name.clone(), self.file.clone()));
        }
    }
}

impl Overlay {
    /// Appends a guest's write. In the kernel on return; its sequence number (of its last record) is returned. Where the disk has no
    /// room it waits for some, as long as the options say.
    ///
    /// # Errors
    /// [`OverlayError::NoSpace`] and [`OverlayError::IndexFull`] (a part of a long write may have been applied),
    /// [`OverlayError::Invalid`], or the overlay is closed.
    pub fn write(&self, disk: u16, offset: u64, data: &[u8]) -> Result<u64, OverlayError> {
        self.check_request(disk, offset, data.len() as u64)?;
        self.with_room(data.len() as u64, || self.append_write(disk, offset, data))
    }

    /// As [`Overlay::write`], but only if that is one record and waits for nothing: else `Ok(false)`, and nothing was written.
    ///
    /// # Errors
    /// As [`Overlay::write`].
    pub fn try_write(&self, disk: u16, offset: u64, data: &[u8]) -> Result<bool, OverlayError> {
        self.check_request(disk, offset, data.len() as u64)?;
        if data.len() as u64 > PAYLOAD_BYTES_MAX || self.room.is_short() {
            return Ok(false);
        }
        match self.append_write(disk, offset, data) {
            Ok(_) => self.check_alive().map(|()| true),
            Err(error) if error.is_full() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the range read as zeros; `hole` says that the guest gives its storage back.
    ///
    /// # Errors
    /// As [`Overlay::write`].
    pub fn zero(&self, disk: u16, offset: u64, len: u64, hole: bool) -> Result<u64, OverlayError> {
        self.check_request(disk, offset, len)?;
        let entry = || Entry {
            kind: if hole { Kind::Discard } else { Kind::Zero },
            origin: Origin::Guest,
            disk,
            offset,
            len,
            data: &[],
        };
        self.with_room(0, || {
            let mut writer = lock(&self.writer);
            if len > 0 {
                self.append(&mut writer, &entry())?;
            }
            Ok(writer.last_seq)
        })
    }

    fn append_write(&self, disk: u16, offset: u64, data: &[u8]) -> Result<u64, OverlayError> {
        let mut writer = lock(&self.writer);
        let mut at = offset;
        for part in data.chunks(PAYLOAD_BYTES_MAX as usize) {
            let entry = Entry {
                kind: Kind::Write,
                origin: Origin::Guest,
                disk,
                offset: at,
                len: part.len() as u64,
                data: part,
            };
            self.append(&mut writer, &entry)?;
            at += part.len() as u64;
        }
        Ok(writer.last_seq)
    }

    /// Refuses what does not lie on whole sectors inside the disk.
    pub(super) fn check_request(
        &self,
        disk: u16,
        offset: u64,
        len: u64,
    ) -> Result<(), OverlayError> {
        self.check_alive()?;
        let size = self
            .identity
            .disks
            .get(usize::from(disk))
            .copied()
            .unwrap_or(0);
        let inside = offset.checked_add(len).is_some_and(|end| end <= size);
        if inside && offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES) {
            return Ok(());
        }
        Err(OverlayError::Invalid {
            dir: self.dir.clone(),
            why: format!(
                "{len} bytes at {offset} are not whole {SECTOR_BYTES}-byte sectors of disk {disk} ({size} bytes)"
            ),
        })
    }

    /// Notes in the log that every record up to the watermark is durable. It takes no space worth failing for.
    pub(super) fn append_mark(&self) -> Result<(), OverlayError> {
        let mut writer = lock(&self.writer);
        match self.append(&mut writer, &Entry::MARK) {
            Err(OverlayError::NoSpace { .. }) => Ok(()),
            other => other,
        }
    }

    /// Appends one record, and applies it to the map.
    pub(super) fn append(
        &self,
        writer: &mut Writer,
        entry: &Entry<'_>,
    ) -> Result<(), OverlayError> {
        self.check_alive()?;
        if entry.origin == Origin::Guest {
            self.check_index(entry)?;
            self.check_floor(&mut writer.allowed_bytes, entry.data.len() as u64)?;
        }
        let full = self.options.segment_bytes.min(SEGMENT_BYTES_MAX);
        // A mark goes where the records are that it speaks of, and never begins a segment. A segment in the clear takes no more.
        match (entry.kind, writer.form) {
            (Kind::Mark, Form::Plain) => return Ok(()),
            (Kind::Mark, Form::Sealed) => {}
            (_, form) if form == Form::Plain || writer.len >= full => self.rotate(writer)?,
            _ => {}
        }
        let record = RecordHeader {
            kind: entry.kind,
            moved: entry.is_moved(),
            disk: entry.disk,
            seq: writer.last_seq + 1,
            durable: self.durable.load(Ordering::Acquire),
            offset: entry.offset,
            len: entry.len,
            chain: writer.chain,
        };
        let check = self.fill_buffer(writer, &record, entry.data);
        let position = writer.len;
        let end = position + writer.buffer.len() as u64;
        if let Err(error) = writer.file.write_at(position, &writer.buffer) {
            return Err(self.undo(writer, position, error));
        }
        writer.len = end;
        writer.unsynced_bytes += end - position;
        writer.last_seq = record.seq;
        writer.chain = check;
        writer.mark_unsynced();
        let extents = {
            let mut map = self.map_write();
            map.apply(&record, writer.number, position, end);
            map.extents()
        };
        self.extents.store(extents, Ordering::Relaxed);
        self.appended.fetch_add(end - position, Ordering::Relaxed);
        if entry.origin != Origin::Own {
            self.guest_seq.store(record.seq, Ordering::Release);
        }
        self.write_ahead(writer, full)
    }

    /// Puts the sealed record into the writer's buffer; returns its header's checksum.
    fn fill_buffer(&self, writer: &mut Writer, record: &RecordHeader, data: &[u8]) -> u64 {
        let count = match record.kind {
            Kind::Write => piece_count(record.offset, record.len) as usize,
            Kind::Zero | Kind::Discard | Kind::Mark => 0,
        };
        let Writer { buffer, nonces, .. } = writer;
        nonces.resize(count + 1, [0; NONCE_BYTES]);
        self.key.fill_nonces(nonces);
        let (header, check) = record.encode(&self.key, &nonces[count]);
        buffer.clear();
        buffer.extend_from_slice(&header);
        if count > 0 {
            buffer.reserve_exact(record.body_bytes(Form::Sealed) as usize);
            let cuts = pieces(record.offset, record.offset + record.len);
            for ((start, end), nonce) in cuts.zip(&*nonces) {
                let piece = &data[(start - record.offset) as usize..(end - record.offset) as usize];
                let place = (record.disk, record.seq, start);
                push_piece(buffer, &self.key, nonce, place, piece);
            }
        }
        debug_assert_eq!(
            buffer.len() as u64,
            RECORD_HEADER_BYTES as u64 + record.body_bytes(Form::Sealed)
        );
        check
    }

    /// Refuses a guest's record that makes the index larger while it is as large as it may be. One that replaces a whole extent does not,
    /// so a guest can give back what it wrote.
    fn check_index(&self, entry: &Entry<'_>) -> Result<(), OverlayError> {
        let extents = self.extents.load(Ordering::Relaxed);
        if extents < self.options.extents_max {
            return Ok(());
        }
        let end = entry.offset + entry.len;
        let there = self.map_read().disks[usize::from(entry.disk)].scan(entry.offset, 2);
        let is_whole = |extent: &Packed| extent.start() >= entry.offset && extent.end() <= end;
        if there.iter().any(is_whole) {
            return Ok(());
        }
        Err(OverlayError::IndexFull {
            dir: self.dir.clone(),
            extents,
        })
    }

    /// Writes zeros behind the last record, if it reached the end of the file and small flushes are to be expected.
    fn write_ahead(&self, writer: &mut Writer, full: u64) -> Result<(), OverlayError> {
        let end = writer.len;
        if end < writer.reach {
            return Ok(());
        }
        writer.reach = end;
        let ahead = full.saturating_sub(end).min(AHEAD_BYTES);
        if ahead == 0 || !writer.writes_ahead || !writer.little_is_unsynced() {
            return Ok(());
        }
        // Also if not all of it could be written: that is where the next segment's beginning cuts.
        writer.reach = end + ahead;
        match writer.file.write_at(end, &ZEROS[..ahead as usize]) {
            // The record itself is there.
            Err(error) if is_full(&error) => {
                writer.writes_ahead = false;
                Ok(())
            }
            Err(error) => Err(self.fail(OverlayError::io(&writer.name, "write ahead", error))),
            Ok(()) => Ok(()),
        }
    }

    /// A full disk takes the record back; any other error closes the overlay.
    fn undo(&self, writer: &mut Writer, position: u64, error: std::io::Error) -> OverlayError {
        if !is_full(&error) {
            return self.fail(OverlayError::io(&writer.name, "append", error));
        }
        match writer.file.truncate(position) {
            Ok(()) => {
                writer.reach = position;
                // Else a power cut could bring the remains back behind the last record of a segment that was flushed.
                writer.mark_unsynced();
                self.no_space()
            }
            Err(e) => self.fail(OverlayError::io(
                &writer.name,
                "take back an append on a full disk",
                e,
            )),
        }
    }

    /// Begins the next segment. Its name and content become durable with the next flush.
    fn rotate(&self, writer: &mut Writer) -> Result<(), OverlayError> {
        let number = writer
            .number
            .checked_add(1)
            .expect("2^32 segments of 64 MiB are never written");
        let name: Arc<str> = segment_name(&self.dir, number).into();
        let header = SegmentHeader {
            number,
            first_seq: writer.last_seq + 1,
            chain: writer.chain,
            durable: self.durable.load(Ordering::Acquire),
        };
        if writer.len < writer.reach {
            // A segment that the next one follows ends with its last record, and is synced before the next one.
            writer
                .file
                .truncate(writer.len)
                .map_err(|e| self.fail(OverlayError::io(&writer.name, "cut the zeros off", e)))?;
            writer.reach = writer.len;
            writer.mark_unsynced();
        }
        let made = self.disk.open(&name, Open::CreateNew).and_then(|file| {
            let written = file.write_at(0, &header.encode(&self.key));
            if written.is_err() {
                self.disk.remove(&name)?;
            }
            written.map(|()| file)
        });
        let file = match made {
            Ok(file) => file,
            Err(e) if is_full(&e) => return Err(self.no_space()),
            Err(e) => return Err(self.fail(OverlayError::io(&name, "begin a segment", e))),
        };
        self.map_write().segments.insert(
            number,
            Segment::new(
                name.clone(),
                file.clone(),
                Form::Sealed,
                &header,
                SEGMENT_HEADER_BYTES as u64,
            ),
        );
        writer.number = number;
        writer.name = name;
        writer.file = file;
        writer.form = Form::Sealed;
        writer.len = SEGMENT_HEADER_BYTES as u64;
        writer.reach = writer.len;
        writer.new_names = true;
        writer.mark_unsynced();
        Ok(())
    }
}
