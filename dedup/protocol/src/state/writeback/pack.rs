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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use dedup::{CHUNK_BYTES_MAX, DesktopId, IdKey};

    use super::*;
    use crate::client::ChunkExchange;
    use crate::state::{Generation, Line, Nonce};

    fn want(wanted: Vec<u16>) -> WantChunks {
        WantChunks {
            line: Line {
                desktop: DesktopId([1; 16]),
                generation: Generation(1),
                fork: None,
            },
            segment: Nonce([2; 16]),
            part: 3,
            wanted,
        }
    }

    #[test]
    fn what_is_wanted_is_packed_and_unpacks() {
        let key = IdKey::new([7; 32]);
        let chunks: Vec<Bytes> = (0..40u8).map(|i| vec![i; CHUNK_BYTES_MAX].into()).collect();
        let wanted: Vec<u16> = (0..40).filter(|i| i % 3 != 0).collect();
        let expected = wanted.iter().map(|index| {
            let chunk = &chunks[usize::from(*index)];
            (key.chunk_id(chunk), chunk.len() as u32)
        });
        let mut exchange = ChunkExchange::new(key.clone(), expected.collect());
        let frames = pack(&want(wanted.clone()), &chunks).unwrap();
        assert!(frames.len() > 1, "6 MiB do not go in one");
        let mut came = Vec::new();
        for frame in frames {
            assert_eq!((frame.part, frame.segment), (3, Nonce([2; 16])));
            came.extend(exchange.batch(&frame.batch).unwrap());
        }
        assert_eq!(came.len(), wanted.len());
        assert_eq!(exchange.remaining(), 0);
    }

    #[test]
    fn what_is_no_list_of_them_is_packed_by_nobody() {
        let chunks = vec![Bytes::from_static(&[1; 512]); 3];
        for wanted in [vec![], vec![3], vec![0, 0], vec![2, 1], vec![0, 9]] {
            assert_eq!(pack(&want(wanted), &chunks), None);
        }
        assert!(pack(&want(vec![0, 2]), &chunks).is_some());
    }
}
