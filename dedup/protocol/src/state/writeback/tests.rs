//! Parts, segments and snapshots, one rule at a time.
#![allow(clippy::unwrap_used, missing_docs)]

mod parts;
mod segments;
mod sending;
mod snapshots;

use dedup::{ChunkId, DesktopId, NodeId};

use super::*;
use crate::records::TreeRef;
use crate::state::authority::Standing;
use crate::state::message::{Cut, OfferPart, PartChunks, PartStaged, SegmentApplied, WantChunks};
use crate::state::{Ended, Generation, Head, Line, Nonce, Position};

const DISKS: [u64; 2] = [1 << 40, 1 << 20];
const LINE: Line = Line {
    desktop: DesktopId([1; 16]),
    generation: Generation(1),
    fork: None,
};
const SEGMENT: Nonce = Nonce([5; 16]);
const NOW: u64 = 1_700_000_000;

fn range(disk: u16, offset: u64, len: u64, chunk: Option<u8>) -> Range {
    let source = match chunk {
        Some(chunk) => RangeSource::Chunk(ChunkId([chunk; 32])),
        None => RangeSource::Zero,
    };
    Range {
        disk,
        offset,
        len,
        source,
    }
}

fn part(chunks: &[u8]) -> Part {
    let ranges = (0u64..).zip(chunks);
    let ranges = ranges.map(|(at, chunk)| range(0, at * 4096, 4096, Some(*chunk)));
    Part::new(ranges.collect(), &DISKS).unwrap()
}

fn tree(name: u8) -> Vec<TreeRef> {
    vec![TreeRef {
        root: NodeId([name; 32]),
        size_bytes: DISKS[0],
    }]
}

/// The head behind an offered part.
fn behind(offer: &OfferPart) -> Head {
    offer
        .head
        .part(offer.to, offer.part, offer.is_last, &offer.ranges)
}
