//! Where the newest bytes of each range of a disk are.
//!
//! Invariant: extents are disjoint, never empty, and the newest insert wins. What is not covered belongs to the base.
//!
//! An extent takes 20 bytes ([`super::packed`]), in sorted blocks of at most [`BLOCK_EXTENTS`] under a tree of blocks: 20 to 24 bytes in
//! all, 6 MB per GiB of scattered 4 KiB writes. A volume has at most one extent for each 512 bytes; a guest that writes
//! blocks of 4 KiB has 262,144 a GiB.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use super::format::RECORD_ALIGN_BYTES;
use super::packed::Packed;

/// Most extents of one block. A change moves 1.3 KB on the average; the tree above costs less than a byte an extent.
const BLOCK_EXTENTS: usize = 128;
/// How many extents a block has room for beyond those it has: what is wasted against how often it moves.
const ROOM_EXTENTS: usize = 8;

/// A payload in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPlace {
    /// First byte of the record's whole range on the disk; pieces are counted from there.
    pub record_start: u64,
    /// Length of the record's whole range in bytes.
    pub record_len: NonZeroU32,
    /// Segment that holds it.
    pub segment: u32,
    /// Where the record begins in the segment, in units of [`RECORD_ALIGN_BYTES`].
    pub(super) position: u32,
    /// The record's sequence number, counted from the segment's first.
    pub seq_delta: u32,
}

impl LogPlace {
    /// Describes a record at byte `position` of `segment`.
    pub fn new(
        record_start: u64,
        record_len: NonZeroU32,
        segment: u32,
        position: u64,
        seq_delta: u32,
    ) -> Self {
        debug_assert!(position.is_multiple_of(RECORD_ALIGN_BYTES));
        Self {
            record_start,
            record_len,
            segment,
            position: (position / RECORD_ALIGN_BYTES) as u32,
            seq_delta,
        }
    }

    /// Byte at which the record begins in its segment.
    pub fn position(&self) -> u64 {
        u64::from(self.position) * RECORD_ALIGN_BYTES
    }
}

/// What a range holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Bytes in the log.
    Log(LogPlace),
    /// Zeros, by a record in `segment`; `hole` if the guest gave the storage back.
    Zero {
        /// Segment of the record.
        segment: u32,
        /// Whether the guest gave the storage back.
        hole: bool,
    },
}

impl Content {
    /// The segment that holds the record.
    pub fn segment(&self) -> u32 {
        match self {
            Self::Log(place) => place.segment,
            Self::Zero { segment, .. } => *segment,
        }
    }
}

/// The extents of one disk.
#[derive(Debug)]
pub struct Index {
    /// Blocks by a lower bound of the starts in them, which is above every start in the blocks before. The first has bound 0 and may
    /// be empty, no other may.
    blocks: BTreeMap<u64, Vec<Packed>>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            blocks: BTreeMap::from([(0, Vec::new())]),
            len: 0,
        }
    }
}

impl Index {
    /// Puts `content` over `start..end`, whole sectors. Calls `freed(content, bytes)` for each part of an older extent that it
    /// replaces.
    pub fn insert(
        &mut self,
        start: u64,
        end: u64,
        content: Content,
        freed: &mut dyn FnMut(&Content, u64),
    ) {
        debug_assert!(start < end);
        let mut tail = None;
        if let Some(before) = self.last_below(start)
            && before.end() > start
        {
            let (old, old_end) = (before.content(), before.end());
            *before = Packed::new(before.start(), start, old);
            freed(&old, old_end.min(end) - start);
            if old_end > end {
                tail = Some((old_end, old));
            }
        }
        self.remove_within(start, end, &mut |old| {
            freed(&old.content(), old.end().min(end) - old.start());
            if old.end() > end {
                tail = Some((old.end(), old.content()));
            }
        });
        if let Some((tail_end, old)) = tail {
            self.put(Packed::new(end, tail_end, old));
        }
        self.insert_merged(start, end, content);
    }

    /// The last extent that begins before `start`.
    fn last_below(&mut self, start: u64) -> Option<&mut Packed> {
        let block = self
            .blocks
            .range_mut(..start)
            .map(|(_, block)| block)
            // The block's bound may be below its first extent: then it is the last one of the block before.
            .rfind(|block| block.first().is_some_and(|first| first.start() < start))?;
        let after = block.partition_point(|extent| extent.start() < start);
        block.get_mut(after - 1)
    }

    /// Takes out the extents that begin in `start..end`.
    fn remove_within(&mut self, start: u64, end: u64, taken: &mut dyn FnMut(Packed)) {
        let (&first_bound, _) = self
            .blocks
            .range(..=start)
            .next_back()
            .expect("there is a block with bound 0");
        let mut empty = Vec::new();
        let mut removed = 0;
        for (&bound, block) in self.blocks.range_mut(first_bound..end) {
            let from = block.partition_point(|extent| extent.start() < start);
            let to = block.partition_point(|extent| extent.start() < end);
            if from == to {
                continue;
            }
            removed += to - from;
            block.drain(from..to).for_each(&mut *taken);
            if block.len() + BLOCK_EXTENTS / 2 < block.capacity() {
                block.shrink_to(block.len() + ROOM_EXTENTS);
            }
            if block.is_empty() && bound != 0 {
                empty.push(bound);
            }
        }
        self.len -= removed;
        for bound in empty {
            self.blocks.remove(&bound);
        }
    }

    /// Inserts into a free range, joining neighbours of the very same content.
    fn insert_merged(&mut self, start: u64, mut end: u64, content: Content) {
        if matches!(content, Content::Zero { .. }) {
            let mut joined = end;
            let follows = self.first_from(end).copied();
            if follows.is_some_and(|next| next.start() == end && next.content() == content) {
                self.remove_within(end, end + 1, &mut |after| joined = after.end());
            }
            end = joined;
            if let Some(before) = self.last_below(start)
                && before.end() == start
                && before.content() == content
            {
                *before = Packed::new(before.start(), end, content);
                return;
            }
        }
        self.put(Packed::new(start, end, content));
    }

    /// The first extent that begins at `start` or later.
    fn first_from(&self, start: u64) -> Option<&Packed> {
        let own = self.blocks.range(..=start).next_back();
        let later = self.blocks.range(start + 1..).next();
        own.into_iter().chain(later).find_map(|(_, block)| {
            block.get(block.partition_point(|extent| extent.start() < start))
        })
    }

    /// Adds an extent to a range that is free.
    fn put(&mut self, extent: Packed) {
        self.len += 1;
        let (_, block) = self
            .blocks
            .range_mut(..=extent.start())
            .next_back()
            .expect("there is a block with bound 0");
        let at = block.partition_point(|other| other.start() < extent.start());
        if block.len() < BLOCK_EXTENTS {
            if block.len() == block.capacity() {
                block.reserve_exact(ROOM_EXTENTS);
            }
            return block.insert(at, extent);
        }
        if at == block.len() {
            // Ascending writes leave full blocks behind.
            let mut next = Vec::with_capacity(ROOM_EXTENTS);
            next.push(extent);
            self.blocks.insert(extent.start(), next);
            return;
        }
        let mut upper = Vec::with_capacity(BLOCK_EXTENTS / 2 + ROOM_EXTENTS);
        upper.extend(block.drain(BLOCK_EXTENTS / 2..));
        block.shrink_to(BLOCK_EXTENTS / 2 + ROOM_EXTENTS);
        let bound = upper[0].start();
        if extent.start() < bound {
            block.insert(at, extent);
        } else {
            upper.insert(at - BLOCK_EXTENTS / 2, extent);
        }
        self.blocks.insert(bound, upper);
    }

    /// Calls `visit(start, end, content)` for consecutive parts that cover `start..end` exactly; `None` is the base's.
    pub fn lookup(&self, start: u64, end: u64, visit: &mut dyn FnMut(u64, u64, Option<Content>)) {
        let mut at = start;
        if self.len > 0 {
            let mut bounds = self.blocks.range(..=start).rev();
            let own = bounds.next().map_or(0, |(&bound, _)| bound);
            let before = bounds.next().map_or(own, |(&bound, _)| bound);
            let blocks = self.blocks.range(before..end);
            'blocks: for (_, block) in blocks {
                let from = block.partition_point(|extent| extent.end() <= start);
                for extent in &block[from..] {
                    if extent.start() >= end {
                        break 'blocks;
                    }
                    if extent.start() > at {
                        visit(at, extent.start(), None);
                        at = extent.start();
                    }
                    let to = extent.end().min(end);
                    visit(at, to, Some(extent.content()));
                    at = to;
                }
            }
        }
        if at < end {
            visit(at, end, None);
        }
    }

    /// At most `max` extents in order, from the one on that holds byte `from` or follows it.
    pub fn scan(&self, from: u64, max: usize) -> Vec<Packed> {
        let mut bounds = self.blocks.range(..=from).rev();
        let own = bounds.next().map_or(0, |(&bound, _)| bound);
        let before = bounds.next().map_or(own, |(&bound, _)| bound);
        self.blocks
            .range(before..)
            .flat_map(|(_, block)| {
                let first = block.partition_point(|extent| extent.end() <= from);
                &block[first..]
            })
            .take(max)
            .copied()
            .collect()
    }

    /// Adds an extent behind all others; false, and no change, if it does not lie there.
    pub fn push(&mut self, extent: Packed) -> bool {
        let last = self.blocks.values().next_back().and_then(|b| b.last());
        if last.is_some_and(|last| last.end() > extent.start()) {
            return false;
        }
        self.put(extent);
        true
    }

    /// How many extents there are.
    pub fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use proptest::prelude::*;

    use crate::volume::overlay::format::{PAYLOAD_BYTES_MAX, SECTOR_BYTES};

    /// Sectors of the small disk.
    const SIZE: u64 = 3000;

    /// The content of write number `i`; the record covers more than the extent where there is room for it.
    fn content(i: usize, zero: bool, start: u64, len: u64) -> Content {
        if zero {
            return Content::Zero {
                segment: i as u32 / 4,
                hole: i.is_multiple_of(2),
            };
        }
        let before = (i as u64 % 7).min(start);
        let record_len = (before + len + i as u64 % 5) * SECTOR_BYTES;
        let record_len = NonZeroU32::new(record_len as u32).unwrap();
        let record_start = (start - before) * SECTOR_BYTES;
        Content::Log(LogPlace::new(
            record_start,
            record_len,
            i as u32 / 4,
            16 * i as u64,
            i as u32,
        ))
    }

    /// Where in its record byte `at` is, so that cut extents are told from whole ones.
    fn origin(content: Option<Content>, at: u64) -> Option<(Content, u64)> {
        content.map(|content| match content {
            Content::Log(place) => (content, at - place.record_start),
            Content::Zero { .. } => (content, 0),
        })
    }

    fn check(index: &Index, oracle: &[Option<Content>], from: u64, to: u64) {
        let mut at = from;
        index.lookup(
            from * SECTOR_BYTES,
            to * SECTOR_BYTES,
            &mut |start, end, content| {
                assert!(start < end && start == at * SECTOR_BYTES);
                while at * SECTOR_BYTES < end {
                    let byte = at * SECTOR_BYTES;
                    assert_eq!(origin(content, byte), origin(oracle[at as usize], byte));
                    at += 1;
                }
            },
        );
        assert_eq!(at, to);
    }

    proptest! {
        #[test]
        fn newest_insert_wins(ops in prop::collection::vec((0..SIZE, 1..80u64, any::<bool>()), 1..400)) {
            let mut index = Index::default();
            let mut oracle: Vec<Option<Content>> = vec![None; SIZE as usize];
            let mut live = std::collections::HashMap::<u32, i64>::new();
            for (i, (start, len, zero)) in ops.into_iter().enumerate() {
                let end = (start + len).min(SIZE);
                let content = content(i, zero, start, end - start);
                *live.entry(content.segment()).or_default() += ((end - start) * SECTOR_BYTES) as i64;
                index.insert(start * SECTOR_BYTES, end * SECTOR_BYTES, content, &mut |old, bytes| {
                    *live.entry(old.segment()).or_default() -= bytes as i64;
                });
                oracle[start as usize..end as usize].fill(Some(content));
                if i % 8 == 0 {
                    check(&index, &oracle, 0, SIZE);
                }
            }
            check(&index, &oracle, 0, SIZE);
            for (&segment, &bytes) in &live {
                let want = oracle.iter().flatten().filter(|c| c.segment() == segment).count() as u64;
                prop_assert_eq!(bytes as u64, want * SECTOR_BYTES);
            }
            for start in (0..SIZE).step_by(7) {
                check(&index, &oracle, start, SIZE.min(start + 50));
            }
            let mut extents = 0;
            index.lookup(0, SIZE * SECTOR_BYTES, &mut |_, _, content| extents += usize::from(content.is_some()));
            prop_assert_eq!(index.len(), extents);
            // What a scan in small steps finds is the whole, and pushed in that order it is the same index again.
            let (mut copy, mut at) = (Index::default(), 0);
            loop {
                let step = index.scan(at, 7);
                let Some(last) = step.last() else { break };
                at = last.end();
                for extent in step {
                    prop_assert_eq!(Packed::from_bytes(&extent.to_bytes()).map(|e| e.to_bytes()), Some(extent.to_bytes()));
                    prop_assert!(copy.push(extent));
                    prop_assert!(!copy.push(extent));
                }
            }
            prop_assert_eq!(copy.len(), index.len());
            check(&copy, &oracle, 0, SIZE);
        }

        #[test]
        fn an_extent_unpacks_to_what_was_packed(
            start in 0..(1u64 << 40) - 2048, into in 0..2048u64, len in 1..=2048u64, after in 0..2048u64,
            position in any::<u32>(), segment in any::<u32>(), delta in 0..1u32 << 21, zero_len in 1..1u64 << 40,
        ) {
            let (into, len) = (into.min(start), len.min(2048 - into));
            let record = (into + len + after).min(2048) * SECTOR_BYTES;
            let place = LogPlace::new(
                (start - into) * SECTOR_BYTES,
                NonZeroU32::new(record as u32).unwrap(),
                segment,
                u64::from(position) * RECORD_ALIGN_BYTES,
                delta,
            );
            prop_assert!(record <= PAYLOAD_BYTES_MAX);
            let zero_end = (start + zero_len).min(1 << 40);
            for (end, content) in [
                (start + len, Content::Log(place)),
                (zero_end, Content::Zero { segment, hole: false }),
                (zero_end, Content::Zero { segment, hole: true }),
            ] {
                let packed = Packed::new(start * SECTOR_BYTES, end * SECTOR_BYTES, content);
                prop_assert_eq!(packed.start(), start * SECTOR_BYTES);
                prop_assert_eq!(packed.end(), end * SECTOR_BYTES);
                prop_assert_eq!(packed.content(), content);
            }
        }
    }

    #[test]
    fn zeros_side_by_side_join() {
        let mut index = Index::default();
        let zero = Content::Zero {
            segment: 1,
            hole: true,
        };
        for start in [0, 20, 10] {
            index.insert(
                start * SECTOR_BYTES,
                (start + 10) * SECTOR_BYTES,
                zero,
                &mut |_, _| panic!("nothing is replaced"),
            );
        }
        assert_eq!(index.len(), 1);
    }

    /// Resident memory of this process, bytes.
    fn resident_bytes() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    /// Ten million scattered extents, as a guest leaves them that writes every second block of 80 GB in random order.
    #[test]
    fn ten_million_extents_take_at_most_24_bytes_each() {
        const EXTENTS: u64 = 10_000_000;
        const BLOCK: u64 = 4096;
        // A full-period walk over 2^24 places, of which the first ten million are taken: random order, no repetition.
        let place = |i: u64| (i.wrapping_mul(0x9E37_79B1) ^ 0x5A_5A5A) & 0xFF_FFFF;
        let len = NonZeroU32::new(BLOCK as u32).unwrap();
        let at = |i: u64| {
            let start = place(i) * 2 * BLOCK;
            let position = (i % 16_384) * 4208;
            (
                start,
                LogPlace::new(
                    start,
                    len,
                    (i / 16_384) as u32,
                    position,
                    (i % 16_384) as u32,
                ),
            )
        };
        let before = resident_bytes();
        let mut index = Index::default();
        for i in 0..EXTENTS {
            let (start, log) = at(i);
            index.insert(start, start + BLOCK, Content::Log(log), &mut |_, _| {
                panic!("every place is written once")
            });
        }
        let each = (resident_bytes() - before) as f64 / EXTENTS as f64;
        assert_eq!(index.len() as u64, EXTENTS);
        assert!(each <= 24.0, "{each:.1} bytes an extent");
        for i in (0..EXTENTS).step_by(97) {
            let (start, log) = at(i);
            let mut seen = Vec::new();
            index.lookup(start, start + 2 * BLOCK, &mut |from, to, content| {
                seen.push((from, to, content))
            });
            assert_eq!(
                seen,
                [
                    (start, start + BLOCK, Some(Content::Log(log))),
                    (start + BLOCK, start + 2 * BLOCK, None)
                ]
            );
        }
    }
}
