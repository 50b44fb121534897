//! Reading several chunks that lie side by side in one slab by one system call, straight to where the bytes are wanted.
//!
//! A fill comes in disk order and slots are given out in turn, so what is sequential on the disk mostly is in the slab. Whole
//! blocks go right into the reader's buffer. A block of which only a part is wanted, and the gap between a chunk's end and its
//! slot's, go to a buffer of the thread's own: a tag covers a whole block. Blocks are decrypted where they are. Invariant: [`read`] says
//! [`Gathered::Whole`] only if every block that it touched matched its tag.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};

use super::format::{BLOCK_BYTES, slot_position};
use super::read::Wanted;
use super::residency::Stay;
use super::seal::{CacheKey, TagCell};
use super::slab::Slab;

/// Most chunks of one system call: 512 KiB at 16 KiB a chunk, so that its lists fit on the stack.
pub const GATHER_MAX: usize = 32;

const BLOCK: u32 = BLOCK_BYTES as u32;

thread_local! {
    /// Parts of blocks and gaps: at most 12 KiB a chunk.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How a read of several chunks ended.
pub enum Gathered {
    /// Every byte is there, verified.
    Whole,
    /// It would have had to wait for the disk.
    WouldWait,
    /// Some block does not match its tag.
    Mismatch,
}

/// The blocks around a slice of a chunk.
#[derive(Clone, Copy)]
struct Span {
    /// First block.
    first: u32,
    /// Last block.
    last: u32,
    /// The slice, bytes of the chunk.
    start: u32,
    end: u32,
    /// Length of the chunk.
    len: u32,
}

impl Span {
    /// The slice must not be empty.
    fn new(wanted: &Wanted<'_>, stay: &Stay) -> Self {
        let (start, end) = (wanted.offset, wanted.offset + wanted.buf.len() as u32);
        Self {
            first: start / BLOCK,
            last: (end - 1) / BLOCK,
            start,
            end,
            len: stay.len,
        }
    }

    /// Bytes of the chunk that block `number` holds.
    fn block(&self, number: u32) -> (u32, u32) {
        (number * BLOCK, (number * BLOCK + BLOCK).min(self.len))
    }

    /// Whether only a part of block `number` is wanted.
    fn is_partial(&self, number: u32) -> bool {
        let (from, to) = self.block(number);
        from < self.start || self.end < to
    }

    /// Bytes of the blocks before the first whole one, of the whole ones, and of those after.
    fn sizes(&self) -> (usize, usize, usize) {
        let (from, _) = self.block(self.first);
        let (last_from, to) = self.block(self.last);
        if self.first == self.last {
            let len = (to - from) as usize;
            return if self.is_partial(self.first) {
                (len, 0, 0)
            } else {
                (0, len, 0)
            };
        }
        let head = if self.is_partial(self.first) {
            BLOCK
        } else {
            0
        };
        let tail = if self.is_partial(self.last) {
            to - last_from
        } else {
            0
        };
        let whole = (to - from) - head - tail;
        (head as usize, whole as usize, tail as usize)
    }

    /// Unused bytes behind the chunk's part of the last block.
    fn gap(&self) -> usize {
        let (_, to) = self.block(self.last);
        (to.next_multiple_of(BLOCK) - to) as usize
    }
}

/// Whether `next` begins in the slot behind the last one that `wanted` needs, so that one call reads both.
pub fn adjoins(wanted: &Wanted<'_>, stay: &Stay, next: &Wanted<'_>, next_stay: &Stay) -> bool {
    if wanted.buf.is_empty() || next.buf.is_empty() || stay.slab != next_stay.slab {
        return false;
    }
    let last = Span::new(wanted, stay).last;
    stay.slot + last + 1 == next_stay.slot + Span::new(next, next_stay).first
}

/// Fills the buffers of `wanted`, whose chunks are where `stays` says and adjoin each other.
pub fn read(
    slab: &Slab,
    key: &CacheKey,
    wanted: &mut [Wanted<'_>],
    stays: &[Stay],
    may_wait: bool,
) -> io::Result<Gathered> {
    debug_assert!(wanted.len() == stays.len() && wanted.len() <= GATHER_MAX);
    if wanted.iter().all(|w| w.buf.is_empty()) {
        return Ok(Gathered::Whole);
    }
    let tags = match slab.tags_at_hand() {
        Some(tags) => tags,
        None if may_wait => slab.tags()?,
        None => return Ok(Gathered::WouldWait),
    };
    let mut spans = [None; GATHER_MAX];
    let mut scratch_len = 0;
    for ((span, wanted), stay) in spans.iter_mut().zip(&*wanted).zip(stays) {
        let new = Span::new(wanted, stay);
        let (head, _, tail) = new.sizes();
        scratch_len += head + tail + new.gap();
        *span = Some(new);
    }
    let spans = || spans.iter().flatten();
    let first = spans().next().expect("at least one slice").first;
    let position = slot_position(slab.slots, stays[0].slot + first);
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < scratch_len {
            scratch.resize(scratch_len, 0);
        }
        let mut parts: [IoSliceMut<'_>; 2 * GATHER_MAX + 1] =
            std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let (mut used, mut rest, mut pending) = (0, &mut scratch[..], 0);
        for (span, wanted) in spans().zip(wanted.iter_mut()) {
            let (head, whole, tail) = span.sizes();
            pending += head;
            if whole > 0 {
                // Runs of scratch join across chunks: the tail of one, its gap and the head of the next.
                if pending > 0 {
                    let (part, behind) = std::mem::take(&mut rest).split_at_mut(pending);
                    parts[used] = IoSliceMut::new(part);
                    (used, rest, pending) = (used + 1, behind, 0);
                }
                let from = span.whole_from();
                parts[used] = IoSliceMut::new(&mut wanted.buf[from..from + whole]);
                used += 1;
            }
            pending += tail + span.gap();
        }
        // What lies behind the last byte of the last chunk is not needed.
        pending -= spans().next_back().expect("at least one slice").gap();
        if pending > 0 {
            parts[used] = IoSliceMut::new(&mut rest[..pending]);
            used += 1;
        }
        if !slab
            .file
            .read_parts_at(position, &mut parts[..used], may_wait)?
        {
            return Ok(Gathered::WouldWait);
        }
        let mut scratch = &mut scratch[..];
        for ((span, wanted), stay) in spans().zip(wanted.iter_mut()).zip(stays) {
            let tags = &tags[stay.slot as usize..];
            if !take(span, wanted, (key, tags), &mut scratch) {
                return Ok(Gathered::Mismatch);
            }
        }
        Ok(Gathered::Whole)
    })
}

impl Span {
    /// Where in the reader's buffer the whole blocks begin.
    fn whole_from(&self) -> usize {
        let (from, to) = self.block(self.first);
        if from < self.start {
            (to - self.start) as usize
        } else {
            0
        }
    }
}

/// Verifies and decrypts the blocks of one slice and copies out the parts of blocks, which come first in `scratch`.
fn take(
    span: &Span,
    wanted: &mut Wanted<'_>,
    (key, tags): (&CacheKey, &[TagCell]),
    scratch: &mut &mut [u8],
) -> bool {
    let cipher = key.of(wanted.id);
    let opens =
        |number: u32, block: &mut [u8]| cipher.open(number, block, tags[number as usize].load());
    for number in span.first..=span.last {
        let (from, to) = span.block(number);
        if span.is_partial(number) {
            let (block, behind) = std::mem::take(scratch).split_at_mut((to - from) as usize);
            *scratch = behind;
            if !opens(number, block) {
                return false;
            }
            let (start, end) = (from.max(span.start), to.min(span.end));
            wanted.buf[(start - span.start) as usize..(end - span.start) as usize]
                .copy_from_slice(&block[(start - from) as usize..(end - from) as usize]);
        } else {
            let at = (from - span.start) as usize;
            if !opens(number, &mut wanted.buf[at..at + (to - from) as usize]) {
                return false;
            }
        }
    }
    // Behind the last slice there was no gap to read, and nobody looks any more.
    *scratch = std::mem::take(scratch)
        .get_mut(span.gap()..)
        .unwrap_or_default();
    true
}
