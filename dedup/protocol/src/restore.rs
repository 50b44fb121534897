//! Chunks that are damaged at the datacenter come back from a branch that holds them: both ends of an offer, as values.
//!
//! ```text
//!   datacenter ──Wanted (control stream)──► branch: looks which of them are here
//!   branch ──Restore, Batch (request stream)──► datacenter: proves each by its name ──Restored──► branch
//! ```
//!
//! Invariant: a chunk leaves [`Intake`] only with the name that the version's manifest, which is the datacenter's own, has at the place
//! offered. So a branch can give back what was published and nothing else. What is done with it is the owner's.

use bytes::Bytes;
use dedup::{Chunk, ChunkId, IdKey, Leaf};

use crate::client::{AnswerRefused, ChunkExchange};
use crate::server::{self, AnswerError, Content, expand};
use crate::wire::{Batch, BatchEncoding, RESTORE_CHUNKS_MAX, Restore, Run, Wanted};

/// Plain bytes after which an offer ends and another begins: what a cut costs.
const OFFER_BYTES: usize = 1 << 20;

/// zstd level of offered chunks: the branch has guests to serve.
const OFFER_LEVEL: i32 = 1;

/// What of `wanted` is here, as offers: each a request frame and the batch that follows it. `leaf` gives the version's leaves, `read` a chunk
/// of a length, if it is here and sound.
pub fn offers<E>(
    wanted: &Wanted,
    mut leaf: impl FnMut(u32) -> Result<Leaf, E>,
    mut read: impl FnMut(ChunkId, u32) -> Option<Bytes>,
) -> Result<Vec<(Restore, Batch)>, E> {
    let mut offers = Vec::new();
    let mut offer = Offer::default();
    let mut open: Option<(u32, Leaf)> = None;
    let mut looked_at = 0;
    // Places that are offered ascend, whatever was asked for.
    let mut next = (0, 0);
    'wanted: for run in &wanted.runs {
        if open.as_ref().is_none_or(|(index, _)| *index != run.leaf) {
            open = Some((run.leaf, leaf(run.leaf)?));
        }
        let Some((_, leaf)) = &open else { continue };
        let behind = usize::from(run.first) + usize::from(run.count);
        let places = usize::from(run.first)..behind.min(leaf.extents.len());
        for place in places {
            if looked_at == RESTORE_CHUNKS_MAX {
                break 'wanted;
            }
            if (run.leaf, place) < next {
                continue;
            }
            next = (run.leaf, place + 1);
            let dedup::ExtentSource::Chunk { id, chunk_len, .. } = leaf.extents[place].source
            else {
                continue;
            };
            looked_at += 1;
            // Both ends leave out what repeats the chunk before it.
            if offer.last == Some(id) {
                continue;
            }
            if let Some(bytes) = read(id, chunk_len) {
                offer.add(run.leaf, place as u16, id, &bytes);
            }
            if offer.plain_bytes >= OFFER_BYTES {
                offers.extend(std::mem::take(&mut offer).finish(wanted));
            }
        }
    }
    offers.extend(offer.finish(wanted));
    Ok(offers)
}

#[derive(Default)]
struct Offer {
    runs: Vec<Run>,
    packed: Vec<u8>,
    plain_bytes: usize,
    last: Option<ChunkId>,
}

impl Offer {
    fn add(&mut self, leaf: u32, first: u16, id: ChunkId, plain: &[u8]) {
        let frame = zstd::bulk::compress(plain, OFFER_LEVEL).ok();
        let frame = frame.filter(|frame| frame.len() < plain.len());
        let stored = frame.as_deref().unwrap_or(plain);
        let head = (stored.len() as u32) << 1 | u32::from(frame.is_some());
        self.packed.extend_from_slice(&head.to_le_bytes());
        self.packed.extend_from_slice(stored);
        self.plain_bytes += plain.len();
        self.last = Some(id);
        self.runs.push(Run {
            leaf,
            first,
            count: 1,
        });
    }

    fn finish(self, wanted: &Wanted) -> Option<(Restore, Batch)> {
        if self.runs.is_empty() {
            return None;
        }
        let batch = Batch {
            count: self.runs.len() as u32,
            encoding: BatchEncoding::Each,
            packed: self.packed,
        };
        let restore = Restore {
            version: wanted.version,
            tree: wanted.tree,
            runs: self.runs,
        };
        Some((restore, batch))
    }
}

/// The datacenter's end of one offer.
#[derive(Debug)]
pub struct Intake {
    exchange: ChunkExchange,
}

impl Intake {
    /// Takes the request. `readable` says whether the branch may read a version: it can only give what it could have got.
    pub fn new<C: Content>(
        content: &C,
        key: IdKey,
        restore: &Restore,
        readable: impl Fn(dedup::VersionId) -> bool,
    ) -> Result<Self, AnswerError> {
        let version = restore.version;
        if !readable(version) {
            return Err(AnswerError::NotReadable(version));
        }
        let manifest = server::tree(content, version, restore.tree)?;
        server::check_leaf_indexes(&manifest, restore.runs.iter().map(|run| run.leaf))?;
        let expected = expand(&restore.runs, |index| {
            manifest
                .leaf(content, index as usize)
                .map_err(|e| AnswerError::Content {
                    version,
                    source: Box::new(e),
                })
        })?;
        if expected.is_empty() || expected.len() > RESTORE_CHUNKS_MAX {
            return Err(AnswerError::BadRequest(format!(
                "{} chunks in one offer, between 1 and {RESTORE_CHUNKS_MAX} are possible",
                expected.len()
            )));
        }
        Ok(Self {
            exchange: ChunkExchange::new(key, expected),
        })
    }

    /// Chunks still to come.
    pub fn remaining(&self) -> usize {
        self.exchange.remaining()
    }

    /// Takes a batch; returns its chunks, each proven by name.
    pub fn batch(&mut self, batch: &Batch) -> Result<Vec<Chunk>, AnswerRefused> {
        self.exchange.batch(batch)
    }
}
