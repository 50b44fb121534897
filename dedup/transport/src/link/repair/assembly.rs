//! A stream's bytes put together from what QUIC delivers, in any order, and from repairs.
//!
//! A pure value. It keeps what has come since the end of the last frame taken: the bytes in one piece at the front, pieces with holes
//! before them, and repair symbols of blocks that are not whole. As soon as a block's symbols, of either kind, are as many
//! as its data symbols, the holes in it are computed.
//!
//! Bounds: pieces with holes before them hold at most [`HELD_BYTES_MAX`], their keeping counted in, else the stream fails: bytes read out of
//! order give the peer credit for more at once, so flow control is no bound. Repairs must lie
//! within [`AHEAD_BYTES_MAX`] of the front, of at most [`BLOCKS_MAX`] blocks, each of at most [`code::REPAIR_MAX`] symbols.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::code;
use super::datagram::{Body, Repair};
use crate::link::LinkError;

/// Bytes of a frame's length.
const HEADER_BYTES: usize = 4;
/// What a hole may keep waiting, in bytes. A hole is filled within a few round trips, and a stream's window is 2 MiB a round trip.
const HELD_BYTES_MAX: usize = 16 << 20;
/// What keeping a piece costs beside its bytes, at most.
const PIECE_COST_BYTES: usize = 128;
/// Blocks with symbols that are kept at once: those of one large answer.
const BLOCKS_MAX: usize = 8;
/// How far beyond the front a repair may reach, in bytes: no demand answer is longer.
const AHEAD_BYTES_MAX: u64 = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::link) struct Assembly {
    /// Offset in the stream of `front`.
    base: u64,
    front: BytesMut,
    /// Not overlapping, none touching `front`'s end.
    ahead: BTreeMap<u64, Bytes>,
    /// What `ahead` holds, with its cost.
    held_bytes: usize,
    blocks: Vec<Block>,
    /// Bytes that were computed, since the stream began.
    pub(super) repaired_bytes: u64,
}

#[derive(Debug)]
struct Block {
    offset: u64,
    bytes: u32,
    symbol_bytes: usize,
    symbols: Vec<(u8, Bytes)>,
}

impl Block {
    fn end(&self) -> u64 {
        self.offset + u64::from(self.bytes)
    }

    fn data_count(&self) -> usize {
        (self.bytes as usize).div_ceil(self.symbol_bytes)
    }

    fn range(&self, data: usize) -> std::ops::Range<u64> {
        let start = self.offset + (data * self.symbol_bytes) as u64;
        start..(start + self.symbol_bytes as u64).min(self.end())
    }
}

impl Assembly {
    /// Takes the next whole frame's payload, of at most `bytes_max`.
    ///
    /// # Errors
    /// [`LinkError::FrameTooLarge`] as soon as the length is known.
    pub(in crate::link) fn take_frame(
        &mut self,
        bytes_max: usize,
    ) -> Result<Option<Bytes>, LinkError> {
        let Some(header) = self.front.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*header) as usize;
        if length > bytes_max {
            return Err(LinkError::FrameTooLarge {
                bytes: length as u64,
                bytes_max,
            });
        }
        let whole = HEADER_BYTES + length;
        if self.front.len() < whole {
            return Ok(None);
        }
        let mut frame = self.front.split_to(whole).freeze();
        self.base += whole as u64;
        let base = self.base;
        self.blocks.retain(|block| block.offset >= base);
        Ok(Some(frame.split_off(HEADER_BYTES)))
    }

    /// Whether the stream may end here.
    pub(in crate::link) fn is_between_frames(&self) -> bool {
        self.front.is_empty() && self.ahead.is_empty()
    }

    /// Bytes that QUIC delivered.
    ///
    /// # Errors
    /// [`LinkError::TooFarAhead`]: a hole keeps too much waiting.
    pub(in crate::link) fn insert(&mut self, offset: u64, bytes: &[u8]) -> Result<(), LinkError> {
        self.insert_once(offset, bytes);
        self.repair_blocks();
        if self.held_bytes > HELD_BYTES_MAX {
            return Err(LinkError::TooFarAhead {
                bytes_max: HELD_BYTES_MAX,
            });
        }
        Ok(())
    }

    /// A repair for this stream.
    pub(in crate::link) fn repair(&mut self, repair: &Repair) {
        let reach = match &repair.body {
            Body::Piece(bytes) => bytes.len() as u64,
            Body::Symbols { block_bytes, .. } => u64::from(*block_bytes),
        };
        if repair.offset + reach > self.base + AHEAD_BYTES_MAX {
            return;
        }
        match &repair.body {
            Body::Piece(bytes) => self.repaired_bytes += self.insert_once(repair.offset, bytes),
            Body::Symbols {
                block_bytes,
                symbol_bytes,
                first,
                symbols,
            } => self.keep_symbols(
                repair.offset,
                *block_bytes,
                usize::from(*symbol_bytes),
                *first,
                symbols,
            ),
        }
        self.repair_blocks();
    }

    fn keep_symbols(
        &mut self,
        offset: u64,
        bytes: u32,
        symbol_bytes: usize,
        first: u8,
        symbols: &Bytes,
    ) {
        if offset < self.base {
            return; // Its frame has been taken.
        }
        let same = |b: &Block| (b.offset, b.bytes, b.symbol_bytes) == (offset, bytes, symbol_bytes);
        let at = match self.blocks.iter().position(same) {
            Some(at) => at,
            None if self.blocks.len() < BLOCKS_MAX => {
                self.blocks.push(Block {
                    offset,
                    bytes,
                    symbol_bytes,
                    symbols: Vec::new(),
                });
                self.blocks.len() - 1
            }
            None => return,
        };
        let block = &mut self.blocks[at];
        for (number, symbol) in (first..).zip(symbols.chunks(symbol_bytes)) {
            if !block.symbols.iter().any(|(kept, _)| *kept == number) {
                block.symbols.push((number, Bytes::copy_from_slice(symbol)));
            }
        }
    }

    /// Keeps those of `bytes` that are new; returns how many.
    fn insert_once(&mut self, mut offset: u64, mut bytes: &[u8]) -> u64 {
        let mut new = 0;
        let front_end = self.base + self.front.len() as u64;
        let known = front_end.saturating_sub(offset).min(bytes.len() as u64);
        offset += known;
        bytes = &bytes[known as usize..];
        while !bytes.is_empty() {
            // A piece that begins at or before this offset may cover its beginning.
            let before = self.ahead.range(..=offset).next_back();
            let covered = before.map_or(offset, |(at, piece)| at + piece.len() as u64);
            if covered > offset {
                let skip = (covered - offset).min(bytes.len() as u64);
                offset += skip;
                bytes = &bytes[skip as usize..];
                continue;
            }
            let next = self.ahead.range(offset + 1..).next().map(|(at, _)| *at);
            let room = next.map_or(bytes.len() as u64, |next| next - offset);
            let (now, later) = bytes.split_at((bytes.len() as u64).min(room) as usize);
            if offset == self.base + self.front.len() as u64 {
                self.front.extend_from_slice(now);
            } else {
                self.held_bytes += now.len() + PIECE_COST_BYTES;
                self.ahead.insert(offset, Bytes::copy_from_slice(now));
            }
            new += now.len() as u64;
            offset += now.len() as u64;
            bytes = later;
        }
        // What was waiting for the hole that has closed.
        while let Some(entry) = self.ahead.first_entry()
            && *entry.key() == self.base + self.front.len() as u64
        {
            let piece = entry.remove();
            self.held_bytes -= piece.len() + PIECE_COST_BYTES;
            self.front.extend_from_slice(&piece);
        }
        new
    }

    fn has(&self, range: std::ops::Range<u64>) -> bool {
        let mut at = range.start.max(self.base + self.front.len() as u64);
        while at < range.end {
            match self.ahead.range(..=at).next_back() {
                Some((start, piece)) if start + piece.len() as u64 > at => {
                    at = start + piece.len() as u64;
                }
                _ => return false,
            }
        }
        true
    }

    /// Copies a range that is here, at or behind the base.
    fn copy(&self, range: std::ops::Range<u64>, to: &mut [u8]) {
        let mut at = range.start;
        while at < range.end {
            let front_end = self.base + self.front.len() as u64;
            let (start, piece): (u64, &[u8]) = if at < front_end {
                (self.base, &self.front)
            } else {
                let (start, piece) = self
                    .ahead
                    .range(..=at)
                    .next_back()
                    .expect("the range is here");
                (*start, piece)
            };
            let from = &piece[(at - start) as usize..];
            let count = (from.len() as u64).min(range.end - at) as usize;
            let done = (at - range.start) as usize;
            to[done..done + count].copy_from_slice(&from[..count]);
            at += count as u64;
        }
    }

    fn repair_blocks(&mut self) {
        let mut index = 0;
        while index < self.blocks.len() {
            let block = &self.blocks[index];
            let missing: Vec<usize> = (0..block.data_count())
                .filter(|data| !self.has(block.range(*data)))
                .take(block.symbols.len() + 1)
                .collect();
            if missing.len() > block.symbols.len() {
                index += 1;
                continue;
            }
            let block = self.blocks.swap_remove(index);
            if missing.is_empty() {
                continue;
            }
            let size = block.symbol_bytes;
            let mut plain = vec![0; block.data_count() * size];
            for data in 0..block.data_count() {
                if missing.binary_search(&data).is_err() {
                    let range = block.range(data);
                    let len = (range.end - range.start) as usize;
                    self.copy(range, &mut plain[data * size..][..len]);
                }
            }
            let found = code::decode(block.data_count(), size, &missing, &block.symbols, |data| {
                &plain[data * size..][..size]
            })
            .expect("as many repair symbols as holes, all different");
            for (data, bytes) in missing.iter().zip(found) {
                let range = block.range(*data);
                let len = (range.end - range.start) as usize;
                self.repaired_bytes += self.insert_once(range.start, &bytes[..len]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::plan;
    use super::*;

    fn random(state: &mut u64) -> u64 {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Frames of any length, cut into packets, shuffled, some lost, some twice, beside symbols of which some are lost too:
    /// what comes out is what went in, and a frame that lost no more than its repair covers is there before any
    /// retransmission.
    #[test]
    fn frames_come_out_whole_whatever_is_lost() {
        for seed in 1..400u64 {
            let mut state = seed;
            let payload: Vec<u8> = (0..random(&mut state) % 70_000)
                .map(|_| random(&mut state) as u8)
                .collect();
            let mut stream = (payload.len() as u32).to_le_bytes().to_vec();
            stream.extend_from_slice(&payload);
            let lost_max = 1 + (random(&mut state) % 4) as usize;
            let layout = plan::Layout::of(stream.len(), 1172).unwrap();
            let repairs = plan::symbols(8, 0, &stream, &layout, lost_max, 0);
            assert!(!repairs.is_empty());
            let mut packets = Vec::new();
            let mut at = 0;
            while at < stream.len() {
                let len = (1100 + random(&mut state) as usize % 60).min(stream.len() - at);
                packets.push((at as u64, stream[at..at + len].to_vec()));
                at += len;
            }
            let mut lost = Vec::new();
            for _ in 0..lost_max.min(packets.len()) {
                let at = random(&mut state) as usize % packets.len();
                lost.push(packets.swap_remove(at));
            }
            for i in (1..packets.len()).rev() {
                packets.swap(i, random(&mut state) as usize % (i + 1));
            }
            let mut assembly = Assembly::default();
            let early = random(&mut state).is_multiple_of(2);
            if early {
                repairs.iter().for_each(|repair| assembly.repair(repair));
            }
            for (offset, bytes) in &packets {
                assembly.insert(*offset, bytes).unwrap();
                if random(&mut state).is_multiple_of(8) {
                    assembly.insert(*offset, bytes).unwrap();
                }
            }
            if !early {
                repairs.iter().for_each(|repair| assembly.repair(repair));
            }
            let frame = assembly.take_frame(1 << 20).unwrap();
            assert_eq!(frame.as_deref(), Some(&payload[..]), "seed {seed}");
            assert!(assembly.repaired_bytes > 0);
            // The retransmissions come all the same, and change nothing.
            for (offset, bytes) in &lost {
                assembly.insert(*offset, bytes).unwrap();
            }
            assert!(assembly.is_between_frames(), "seed {seed}");
            assert_eq!(assembly.take_frame(1 << 20).unwrap(), None);
        }
    }

    #[test]
    fn repairs_from_beyond_all_answers_are_not_kept() {
        let mut assembly = Assembly::default();
        let far = |offset, block_bytes| Repair {
            loss: 0,
            stream: 0,
            offset,
            body: Body::Symbols {
                block_bytes,
                symbol_bytes: 1000,
                first: 0,
                symbols: Bytes::from(vec![1; 1000]),
            },
        };
        assembly.repair(&far(AHEAD_BYTES_MAX, 5000));
        assert!(assembly.blocks.is_empty());
        for i in 0..100 {
            assembly.repair(&far(i * 10, 5000));
        }
        assert_eq!(assembly.blocks.len(), BLOCKS_MAX);
        assembly.repair(&Repair {
            loss: 0,
            stream: 0,
            offset: 1 << 61,
            body: Body::Piece(Bytes::from_static(b"x")),
        });
        assert!(assembly.ahead.is_empty());
    }

    #[test]
    fn a_peer_that_never_fills_a_hole_is_refused_before_it_fills_memory() {
        for step in [2u64, 1 << 16] {
            let mut assembly = Assembly::default();
            let piece = vec![7; step as usize - 1];
            let refused = (1..1_000_000u64).find_map(|n| {
                let refused = assembly.insert(n * step, &piece).err();
                refused.map(|error| (error, n))
            });
            let (error, pieces) = refused.unwrap();
            assert!(matches!(error, LinkError::TooFarAhead { .. }), "{error}");
            let held: usize = assembly.ahead.values().map(Bytes::len).sum();
            assert!(held <= HELD_BYTES_MAX, "{held} bytes in {pieces} pieces");
            assert!(pieces as usize <= HELD_BYTES_MAX / PIECE_COST_BYTES + 1);
        }
    }

    /// Whatever a peer sends, nothing breaks and memory stays within the bounds of the module.
    #[test]
    fn hostile_repairs_do_no_harm() {
        for seed in 1..300u64 {
            let mut state = seed;
            let mut assembly = Assembly::default();
            for _ in 0..200 {
                let offset = random(&mut state) % 5000;
                match random(&mut state) % 3 {
                    0 => assembly
                        .insert(
                            offset,
                            &vec![seed as u8; (random(&mut state) % 300) as usize],
                        )
                        .unwrap(),
                    1 => assembly.repair(&Repair {
                        loss: 1,
                        stream: 0,
                        offset,
                        body: Body::Piece(vec![3; 1 + (random(&mut state) % 50) as usize].into()),
                    }),
                    _ => {
                        let symbol_bytes = 1 + (random(&mut state) % 40) as u16;
                        let count = 1 + random(&mut state) % 4;
                        let repair = Repair {
                            loss: 1,
                            stream: 0,
                            offset,
                            body: Body::Symbols {
                                block_bytes: 1 + (random(&mut state) % 3000) as u32,
                                symbol_bytes,
                                first: (random(&mut state) % 31) as u8,
                                symbols: vec![9; usize::from(symbol_bytes) * count as usize].into(),
                            },
                        };
                        // As it would come over the wire.
                        if let Some(repair) = Repair::decode(&repair.encode()) {
                            assembly.repair(&repair);
                        }
                    }
                }
                let _ = assembly.take_frame(2000);
                let kept: usize = assembly.ahead.values().map(Bytes::len).sum();
                assert!(kept + assembly.front.len() < 20_000, "seed {seed}");
                assert!(assembly.blocks.len() <= BLOCKS_MAX);
            }
        }
    }
}
