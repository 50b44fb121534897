//! Chunks of a part on their way: packed by the branch as fills are by the datacenter, which unpacks them with
//! [`ChunkExchange`](crate::client::ChunkExchange).

use bytes::Bytes;

use super::super::message::{PartChunks, WantChunks};
use crate::wire::{BATCH_RAW_BYTES, Batch, BatchEncoding};

/// zstd level: a line that is the bottleneck is worth it, and a part is made while the one before crosses it.
const PACK_LEVEL: i32 = 3;

/// The frames that answer `want`. `chunks` are the part's distinct chunks, in order of first appearance.
///
/// `None`: that is no list of some of them.
pub fn pack(want: &WantChunks, chunks: &[Bytes]) -> Option<Vec<PartChunks>> {
    let is_ascending = want.wanted.windows(2).all(|pair| pair[0] < pair[1]);
    if want.wanted.is_empty() || !is_ascending {
        return None;
    }
    let mut frames = Vec::new();
    let (mut plain, mut count) = (Vec::new(), 0);
    for index in &want.wanted {
        plain.extend_from_slice(chunks.get(usize::from(*index))?);
        count += 1;
        if plain.len() >= BATCH_RAW_BYTES {
            frames.push(frame(want, count, &plain));
            plain.clear();
            count = 0;
        }
    }
    if count > 0 {
        frames.push(frame(want, count, &plain));
    }
    Some(frames)
}

fn frame(want: &WantChunks, count: u32, plain: &[u8]) -> PartChunks {
    let packed = zstd::bulk::compress(plain, PACK_LEVEL)
        .expect("zstd compresses into a buffer of its own bound");
    PartChunks {
        line: want.line,
        segment: want.segment,
        part: want.part,
        batch: Batch {
            count,
            encoding: BatchEncoding::Solid,
            packed,
        },
    }
}
