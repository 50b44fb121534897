//! Reading payloads back from the log, verified.
//!
//! Invariant: no byte leaves here whose piece did not verify (its tag, in a segment of an earlier release its checksum). A failed read fails
//! that read only, every time it is tried: like a bad sector, it goes away when the guest writes the place again.

use std::cell::RefCell;
use std::io::IoSliceMut;
use std::sync::atomic::Ordering;

use super::Overlay;
use super::error::OverlayError;
use super::format::{PIECE_BYTES, RECORD_HEADER_BYTES, open_piece, pieces};
use super::index::LogPlace;
use super::map::{Part, Source};
use super::seal::Form;

thread_local! {
    /// Pieces and their fronts as they lie in the log, decrypted in place; at most one record (1 MiB and its fronts) per thread.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Overlay {
    /// Where the bytes of a range are: consecutive parts that cover it exactly.
    pub(crate) fn parts(
        &self,
        disk: u16,
        offset: u64,
        len: u64,
    ) -> Result<Vec<Part>, OverlayError> {
        self.check_request(disk, offset, len)?;
        Ok(self.map_read().lookup(disk, offset, offset + len))
    }

    /// Whether anything was written, zeroed or discarded in a range of `disk`, that still shows.
    pub fn has_records(&self, disk: u16, range: &std::ops::Range<u64>) -> bool {
        let map = self.map_read();
        let mut found = false;
        if let Some(index) = map.disks.get(usize::from(disk)) {
            index.lookup(range.start, range.end, &mut |_, _, content| {
                found |= content.is_some();
            });
        }
        found
    }

    /// Fills `buf` with a part that is in the log or zero. False, unless it `may_wait`: the host would have to ask the medium.
    pub(crate) fn read_part(
        &self,
        disk: u16,
        part: &Part,
        buf: &mut [u8],
        may_wait: bool,
    ) -> Result<bool, OverlayError> {
        match &part.source {
            Source::Base => unreachable!("the caller reads the base's parts from the base"),
            Source::Zero { .. } => {
                buf.fill(0);
                Ok(true)
            }
            Source::Log {
                place,
                seq,
                name,
                file,
                form,
            } => SCRATCH
                .with_borrow_mut(|scratch| {
                    let (from, span) = span_of(place, *form, part.start, part.end);
                    if scratch.len() < span {
                        scratch.resize(span, 0);
                    }
                    let scratch = &mut scratch[..span];
                    let read = file
                        .read_parts_at(from, &mut [IoSliceMut::new(scratch)], may_wait)
                        .map_err(|e| OverlayError::io(name, "read", e))?;
                    if !read {
                        return Ok(false);
                    }
                    self.copy_verified((disk, *seq, *form), place, part, scratch, buf)
                        .map(|()| true)
                        .map_err(|at| OverlayError::Corrupt {
                            file: name.to_string(),
                            offset: from + at as u64,
                            why: format!("the payload of record {seq} is not what was written"),
                        })
                })
                .inspect_err(|error| {
                    self.read_faults.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(overlay = %self.dir, %error, "a read from the overlay fails");
                }),
        }
    }

    /// Copies the part out of the pieces in `span`; fails with the place in `span` of a piece that does not verify.
    fn copy_verified(
        &self,
        (disk, seq, form): (u16, u64, Form),
        place: &LogPlace,
        part: &Part,
        span: &mut [u8],
        buf: &mut [u8],
    ) -> Result<(), usize> {
        let mut at = 0;
        for (start, end) in pieces(
            first_piece(place, part.start),
            end_of_piece(place, part.end),
        ) {
            let data = at + form.front_bytes() as usize;
            let next = data + (end - start) as usize;
            let (front, piece) = span[at..next].split_at_mut(data - at);
            if !open_piece(&self.key, form, (disk, seq, start), front, piece) {
                return Err(at);
            }
            let (from, to) = (start.max(part.start), end.min(part.end));
            buf[(from - part.start) as usize..(to - part.start) as usize]
                .copy_from_slice(&piece[(from - start) as usize..(to - start) as usize]);
            at = next;
        }
        Ok(())
    }
}

/// Start of the piece that holds byte `at` of the disk.
fn first_piece(place: &LogPlace, at: u64) -> u64 {
    (at / PIECE_BYTES * PIECE_BYTES).max(place.record_start)
}

/// End of the piece that holds the byte before `end`.
fn end_of_piece(place: &LogPlace, end: u64) -> u64 {
    let record_end = place.record_start + u64::from(place.record_len.get());
    end.next_multiple_of(PIECE_BYTES).min(record_end)
}

/// Where in the segment the pieces around `start..end` lie, their fronts included: (position, length).
fn span_of(place: &LogPlace, form: Form, start: u64, end: u64) -> (u64, usize) {
    let (start, end) = (first_piece(place, start), end_of_piece(place, end));
    let front = form.front_bytes();
    let fronts = |at: u64| front * (at / PIECE_BYTES - place.record_start / PIECE_BYTES);
    let body = place.position() + RECORD_HEADER_BYTES as u64;
    let from = body + (start - place.record_start) + fronts(start);
    let to = body + (end - place.record_start) + fronts(end - 1) + front;
    (from, (to - from) as usize)
}
