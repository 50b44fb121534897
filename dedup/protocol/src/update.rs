//! Updates on the wire: the datacenter's answer to [`GetUpdate`], and what a branch believes of it.
//!
//! ```text
//!   branch                                   datacenter
//!     GetUpdate { head }            ──────►    (plans, if nobody asked before)
//!                                   ◄──────  UpdateHead
//!     GetUpdate { batches 3..5, 9 } ──────►    (waits for a batch that is still being encoded)
//!                                   ◄──────  UpdatePart 3, UpdatePart 4, UpdatePart 9
//! ```
//!
//! Invariant: a [`UpdateExchange`] hands out only batches that were asked for, in order, cut as the head said. What is in them is
//! believed only after `dedup::update::decode_batch` has hashed every chunk. Both ends are values: no sockets, no waiting; an answer
//! that has to wait says [`Next::Later`]. Encoding and storing updates are the datacenter's, choosing batches is the branch's.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use dedup::VersionId;
use dedup::update::{NewChunks, UpdateBatch};

use crate::client::AnswerRefused;
use crate::server::{AnswerError, Content};
use crate::wire::{
    BatchRange, BatchSize, FRAME_BYTES_MAX, GetUpdate, Message, UPDATE_BATCHES_MAX,
    UPDATE_RANGES_MAX, UpdateHead, UpdatePart,
};

/// An update as the datacenter has it, whole or still growing.
pub trait UpdateSource {
    /// Why it cannot be read.
    type Error: std::error::Error + Send + Sync + 'static;
    /// Its batches; `None`: not planned yet.
    fn sizes(&self) -> Result<Option<Vec<BatchSize>>, Self::Error>;
    /// Batch `number`, encoded, its checksum verified; `None`: not encoded yet.
    fn batch(&self, number: u32) -> Result<Option<Bytes>, Self::Error>;
}

impl<S: UpdateSource> UpdateSource for &S {
    type Error = S::Error;

    fn sizes(&self) -> Result<Option<Vec<BatchSize>>, S::Error> {
        (**self).sizes()
    }

    fn batch(&self, number: u32) -> Result<Option<Bytes>, S::Error> {
        (**self).batch(number)
    }
}

impl<S: UpdateSource> UpdateSource for Arc<S> {
    type Error = S::Error;

    fn sizes(&self) -> Result<Option<Vec<BatchSize>>, S::Error> {
        (**self).sizes()
    }

    fn batch(&self, number: u32) -> Result<Option<Bytes>, S::Error> {
        (**self).batch(number)
    }
}

/// Whether a branch may have the update that it asks for. `readable`: it may read a version now; `was_readable`: it may have read it
/// once, so that nothing about it is news. The parent need not be assigned any more: it is what the assignment moved away from.
pub fn check_update<C: Content>(
    content: &C,
    request: &GetUpdate,
    readable: impl Fn(VersionId) -> bool,
    was_readable: impl Fn(VersionId) -> bool,
) -> Result<(), AnswerError> {
    let (version, parent) = (request.version, request.parent);
    if !readable(version) {
        return Err(AnswerError::NotReadable(version));
    }
    if !was_readable(parent) {
        return Err(AnswerError::NotReadable(parent));
    }
    let image = |id| -> Result<String, AnswerError> {
        let found = content.version(id).map_err(|source| AnswerError::Content {
            version,
            source: Box::new(source),
        })?;
        let published = found.ok_or(AnswerError::NotReadable(id))?;
        Ok(published.record.image.clone())
    };
    if image(version)? != image(parent)? {
        return Err(AnswerError::NotReadable(parent));
    }
    if version == parent {
        let error = "a version is not an update of itself".into();
        return Err(AnswerError::BadRequest(error));
    }
    check_ranges(&request.batches)
}

fn check_ranges(ranges: &[BatchRange]) -> Result<(), AnswerError> {
    let bad = |text: String| Err(AnswerError::BadRequest(text));
    if ranges.len() > UPDATE_RANGES_MAX {
        return bad(format!(
            "{} ranges in one request, at most {UPDATE_RANGES_MAX}",
            ranges.len()
        ));
    }
    let mut next = 0u64;
    for range in ranges {
        if range.count == 0 || u64::from(range.first) < next {
            return bad(
                "ranges of batches must be ascending, without overlap, and not empty".into(),
            );
        }
        next = u64::from(range.first) + u64::from(range.count);
    }
    if next > UPDATE_BATCHES_MAX as u64 {
        return bad(format!(
            "batch {}, an update has at most {UPDATE_BATCHES_MAX}",
            next - 1
        ));
    }
    Ok(())
}

/// What an answer does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// This frame goes out.
    Frame(Message),
    /// What comes next is not made yet: ask again when the update has grown.
    Later,
    /// The answer is whole.
    End,
}

/// The answer to one [`GetUpdate`], made frame by frame.
pub struct UpdateResponder<S> {
    source: S,
    version: VersionId,
    head: bool,
    ranges: VecDeque<BatchRange>,
}

impl<S: UpdateSource> UpdateResponder<S> {
    /// Answers a request that [`check_update`] let pass.
    pub fn new(source: S, request: &GetUpdate) -> Self {
        Self {
            source,
            version: request.version,
            head: request.head,
            ranges: request.batches.iter().copied().collect(),
        }
    }

    /// The next frame.
    pub fn next_frame(&mut self) -> Result<Next, AnswerError> {
        let version = self.version;
        let broken = |source: S::Error| AnswerError::Content {
            version,
            source: Box::new(source),
        };
        if !self.head && self.ranges.is_empty() {
            return Ok(Next::End);
        }
        if self.head {
            let Some(batches) = self.source.sizes().map_err(broken)? else {
                return Ok(Next::Later);
            };
            self.head = false;
            return Ok(Next::Frame(Message::UpdateHead(UpdateHead { batches })));
        }
        let range = self.ranges.front_mut().expect("one is left");
        let number = range.first;
        let Some(batch) = self.source.batch(number).map_err(broken)? else {
            // Either it is still to come or there is none: the plan tells.
            return match self.source.sizes().map_err(broken)? {
                Some(sizes) if number as usize >= sizes.len() => Err(AnswerError::BadRequest(
                    format!("batch {number} of an update of {}", sizes.len()),
                )),
                _ => Ok(Next::Later),
            };
        };
        (range.first, range.count) = (number + 1, range.count - 1);
        if range.count == 0 {
            self.ranges.pop_front();
        }
        let part = UpdatePart {
            batch: batch.to_vec(),
        };
        Ok(Next::Frame(Message::UpdatePart(part)))
    }
}

/// An update's batches as the branch uses them: which new chunks each has, and what it costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateShape {
    /// First new chunk of each batch, and at the end the number of new chunks.
    firsts: Vec<u32>,
    packed_bytes: Vec<u32>,
}

impl UpdateShape {
    /// Believes a head that covers exactly the chunks which the branch itself finds to be new.
    pub fn new(head: &UpdateHead, numbering: &NewChunks) -> Result<Self, AnswerRefused> {
        let refuse = |reason: String| AnswerRefused::Update { reason };
        if head.batches.len() > UPDATE_BATCHES_MAX {
            return Err(refuse(format!("{} batches", head.batches.len())));
        }
        let mut firsts = Vec::with_capacity(head.batches.len() + 1);
        let mut packed_bytes = Vec::with_capacity(head.batches.len());
        let mut first = 0u32;
        for size in &head.batches {
            firsts.push(first);
            if size.chunks == 0 || size.packed_bytes as usize > FRAME_BYTES_MAX {
                return Err(refuse(format!(
                    "a batch of {} chunks in {} bytes",
                    size.chunks, size.packed_bytes
                )));
            }
            let next = first.checked_add(size.chunks);
            first = next
                .filter(|next| *next as usize <= numbering.new.len())
                .ok_or_else(|| refuse("batches of more chunks than are new".into()))?;
            packed_bytes.push(size.packed_bytes);
        }
        if first as usize != numbering.new.len() {
            return Err(refuse(format!(
                "batches of {first} chunks, {} are new",
                numbering.new.len()
            )));
        }
        firsts.push(first);
        Ok(Self {
            firsts,
            packed_bytes,
        })
    }

    /// How many batches.
    pub fn len(&self) -> usize {
        self.packed_bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.packed_bytes.is_empty()
    }

    /// The new chunks in batch `number`, as indexes among the new ones.
    pub fn chunks(&self, number: u32) -> Range<u32> {
        let number = number as usize;
        self.firsts[number]..self.firsts[number + 1]
    }

    /// The batch that has new chunk `index`.
    pub fn batch_of(&self, index: u32) -> Option<u32> {
        let after = self.firsts.partition_point(|first| *first <= index);
        (after > 0 && after < self.firsts.len()).then(|| after as u32 - 1)
    }

    /// Encoded bytes of batch `number`, if it was encoded when the head was made.
    pub fn packed_bytes(&self, number: u32) -> Option<u32> {
        Some(self.packed_bytes[number as usize]).filter(|bytes| *bytes > 0)
    }
}

/// Takes the answer to a request for batches apart.
#[derive(Debug)]
pub struct UpdateExchange {
    /// Batches still to come, with their chunks.
    due: VecDeque<(u32, Range<u32>)>,
}

impl UpdateExchange {
    /// Expects the batches of `ranges`, which must be of `shape`.
    pub fn new(shape: &UpdateShape, ranges: &[BatchRange]) -> Self {
        let numbers = ranges.iter().flat_map(|r| r.first..r.first + r.count);
        Self {
            due: numbers.map(|n| (n, shape.chunks(n))).collect(),
        }
    }

    /// Batches still to come.
    pub fn remaining(&self) -> usize {
        self.due.len()
    }

    /// Takes one part; returns its batch with the number it has in the update. Its content is yet to be verified.
    pub fn part(&mut self, part: UpdatePart) -> Result<(u32, UpdateBatch), AnswerRefused> {
        let refuse = |reason: String| AnswerRefused::Update { reason };
        let Some((number, chunks)) = self.due.pop_front() else {
            return Err(refuse("more batches than were asked for".into()));
        };
        let batch = UpdateBatch::decode(&Bytes::from(part.batch))
            .map_err(|e| refuse(format!("batch {number}: {e}")))?;
        if (batch.first, batch.count) != (chunks.start, chunks.end - chunks.start) {
            return Err(refuse(format!(
                "{} chunks from {} where batch {number} has {chunks:?}",
                batch.count, batch.first
            )));
        }
        Ok((number, batch))
    }
}
