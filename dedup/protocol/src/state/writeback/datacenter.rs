//! The datacenter's end of write-back: parts are staged, whole segments are applied.
//!
//! Invariant: a line's state changes only by [`Receiver::built`], from what it was at one position to what the branch says of the
//! next, when every part of the segment and every chunk of it is durable, in one transaction that also forgets the parts. What is staged
//! is of one segment of one history: a part follows only the very bytes that are staged before it.
//!
//! Crash points: before a part is kept (the branch offers it again), between parts (it goes on there), when all parts are kept (the
//! manifest is built again at the start), after the state is kept (the branch offers the last part again, and is told).
//!
//! It does not look chunks up, store them or build manifests: its owner does, and tells it. Parts that are kept are roots of the
//! collector; the chunks of a part are looked up and pinned before they are called present.

use std::collections::VecDeque;

use dedup::ChunkId;

use super::super::authority::Standing;
use super::super::message::{
    Cut, OfferPart, PartChunks, PartStaged, RestartSegment, SegmentApplied, WantChunks,
};
use super::super::{Generation, Head, Mutant, Nonce, Position, is_mutated};
use super::line::{LineRow, ReceiveAction, ReceiveError, Staged};
use super::part::{PARTS_MAX, Part};
use crate::records::TreeRef;

/// A part of which chunks are on their way. Not kept: after a crash the branch offers it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Due {
    offer: Offer,
    /// Chunks still to come, in order.
    chunks: VecDeque<(ChunkId, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Offer {
    segment: Nonce,
    to: u64,
    part: u32,
    is_last: bool,
    /// The head behind the part.
    head: Head,
    cut: Cut,
    sealed_unix_s: u64,
    ranges: Vec<u8>,
}

/// The datacenter's end of one line.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receiver {
    row: LineRow,
    due: Option<Due>,
}

impl Receiver {
    /// From its row; what was left over by a crash is to be gone on with.
    pub fn open(row: LineRow) -> (Self, Vec<ReceiveAction>) {
        let receiver = Self { row, due: None };
        let build = receiver.build();
        (receiver, build)
    }

    /// Its row.
    pub fn row(&self) -> &LineRow {
        &self.row
    }

    fn build(&self) -> Vec<ReceiveAction> {
        match &self.row.staged {
            Some(staged) if staged.is_whole => vec![ReceiveAction::Build {
                segment: staged.segment,
            }],
            _ => Vec::new(),
        }
    }

    /// Takes an offer. `part` is what its ranges say, `missing` the indexes among its chunks that are not here, ascending. `standing` is
    /// what the offer's generation is worth.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn offer(
        &mut self,
        standing: Standing,
        offer: &OfferPart,
        part: &Part,
        missing: &[u16],
    ) -> Result<Vec<ReceiveAction>, ReceiveError> {
        match (offer.line.fork, standing) {
            (None, Standing::Current) | (Some(_), Standing::Past(_)) => {}
            (None, Standing::Past(ended)) => return Ok(vec![ReceiveAction::Fence(ended)]),
            _ => return Err(ReceiveError::NotYours),
        }
        if offer.to <= offer.from.seq {
            return Err(ReceiveError::Empty {
                from: offer.from.seq,
                to: offer.to,
            });
        }
        if offer.part >= PARTS_MAX {
            return Err(ReceiveError::Parts(offer.part));
        }
        self.begin(offer.line.generation);
        let head = offer
            .head
            .part(offer.to, offer.part, offer.is_last, &offer.ranges);
        if offer.from != self.row.applied {
            return Ok(vec![self.elsewhere(offer)]);
        }
        let is_again = self.is_staged(offer, |staged| {
            staged.parts == offer.part + 1 && staged.head == head
        });
        if is_again {
            return Ok(vec![self.staged_message(offer.segment, offer.part, head)]);
        }
        let follows = if offer.part == 0 {
            offer.head == self.row.applied.head
        } else {
            self.is_staged(offer, |staged| {
                !staged.is_whole && staged.parts == offer.part && staged.head == offer.head
            })
        };
        if !follows {
            return Ok(vec![ReceiveAction::Restart(RestartSegment {
                line: offer.line,
                segment: offer.segment,
            })]);
        }
        let all = part.chunks();
        let mut chunks = VecDeque::with_capacity(missing.len());
        for index in missing {
            let chunk = all.get(usize::from(*index));
            chunks.push_back(*chunk.ok_or(ReceiveError::Missing(*index))?);
        }
        let offer = Offer {
            segment: offer.segment,
            to: offer.to,
            part: offer.part,
            is_last: offer.is_last,
            head,
            cut: offer.cut,
            sealed_unix_s: offer.sealed_unix_s,
            ranges: offer.ranges.clone(),
        };
        if chunks.is_empty() {
            self.due = None;
            return Ok(self.stage(offer));
        }
        let want = WantChunks {
            line: self.row.line,
            segment: offer.segment,
            part: offer.part,
            wanted: missing.to_vec(),
        };
        self.due = Some(Due { offer, chunks });
        Ok(vec![ReceiveAction::Want(want)])
    }

    /// A later generation goes on behind what is applied. Of the one before nothing more is.
    fn begin(&mut self, generation: Generation) {
        if generation <= self.row.line.generation {
            return;
        }
        let progress = self.row.progress(generation);
        self.row.line.generation = generation;
        self.row.applied = progress.applied;
        self.row.before = progress.before;
        self.row.newest = progress.newest;
        // Its parts go with the first one of the next segment.
        self.row.staged = None;
        self.due = None;
    }

    fn is_staged(&self, offer: &OfferPart, holds: impl FnOnce(&Staged) -> bool) -> bool {
        let staged = self.row.staged.as_ref();
        staged.is_some_and(|staged| {
            (staged.segment, staged.to) == (offer.segment, offer.to) && holds(staged)
        })
    }

    /// An offer that does not begin where the line ends: the newest segment once more, because the answer was lost, or something else.
    fn elsewhere(&self, offer: &OfferPart) -> ReceiveAction {
        let is_again = self.row.newest != Nonce::NONE
            && (offer.from, offer.segment) == (self.row.before, self.row.newest);
        if is_again {
            return self.applied(offer.segment);
        }
        if offer.line.fork.is_some() {
            // A fork is one segment from the start, of an overlay that stood still when it was named. One that is whole is the same,
            // also if a copy of the branch's disk brings it again.
            if (offer.from, offer.to) == (self.row.before, self.row.applied.seq) {
                return self.applied(offer.segment);
            }
            return ReceiveAction::Restart(RestartSegment {
                line: offer.line,
                segment: offer.segment,
            });
        }
        ReceiveAction::Doubt(offer.line.generation)
    }

    fn applied(&self, segment: Nonce) -> ReceiveAction {
        ReceiveAction::Applied(SegmentApplied {
            line: self.row.line,
            segment,
            at: self.row.applied,
        })
    }

    fn staged_message(&self, segment: Nonce, part: u32, head: Head) -> ReceiveAction {
        ReceiveAction::Staged(PartStaged {
            line: self.row.line,
            segment,
            part,
            head,
        })
    }

    /// The names and lengths of the chunks that this frame is to have: the owner unpacks, verifies and stores them.
    ///
    /// # Errors
    /// [`ReceiveError::NotDue`], [`ReceiveError::TooMany`].
    pub fn expected(&self, frame: &PartChunks) -> Result<Vec<(ChunkId, u32)>, ReceiveError> {
        let due = self.due.as_ref().ok_or(ReceiveError::NotDue)?;
        let is_due = frame.line == self.row.line
            && (frame.segment, frame.part) == (due.offer.segment, due.offer.part);
        if !is_due || frame.batch.count == 0 {
            return Err(ReceiveError::NotDue);
        }
        let count = frame.batch.count;
        if count as usize > due.chunks.len() {
            return Err(ReceiveError::TooMany {
                count,
                due: due.chunks.len(),
            });
        }
        Ok(due.chunks.iter().take(count as usize).copied().collect())
    }

    /// So many of the chunks that are due are durable now.
    pub fn stored(&mut self, standing: Standing, count: u32) -> Vec<ReceiveAction> {
        let Some(due) = &mut self.due else {
            return Vec::new();
        };
        due.chunks.drain(..(count as usize).min(due.chunks.len()));
        if !due.chunks.is_empty() {
            return Vec::new();
        }
        let Some(due) = self.due.take() else {
            return Vec::new();
        };
        if !self.is_open_to(standing) {
            return Vec::new();
        }
        self.stage(due.offer)
    }

    fn is_open_to(&self, standing: Standing) -> bool {
        match self.row.line.fork {
            None => standing == Standing::Current,
            Some(_) => matches!(standing, Standing::Past(_)),
        }
    }

    fn stage(&mut self, offer: Offer) -> Vec<ReceiveAction> {
        let is_whole = offer.is_last || is_mutated(Mutant::PartialSegment);
        self.row.staged = Some(Staged {
            segment: offer.segment,
            to: offer.to,
            parts: offer.part + 1,
            head: offer.head,
            is_whole,
            cut: offer.cut,
            sealed_unix_s: offer.sealed_unix_s,
        });
        let mut actions = vec![
            ReceiveAction::Keep {
                row: self.row.clone(),
                drops_parts: offer.part == 0,
                part: Some((offer.part, offer.ranges)),
                cut: Cut::None,
            },
            self.staged_message(offer.segment, offer.part, offer.head),
        ];
        if is_whole && is_mutated(Mutant::UnkeptApply) {
            let applied = SegmentApplied {
                line: self.row.line,
                segment: offer.segment,
                at: Position {
                    seq: offer.to,
                    head: offer.head,
                },
            };
            actions.insert(0, ReceiveAction::Applied(applied));
        }
        actions.extend(self.build());
        actions
    }

    /// The manifests of the staged segment are built and durable: it is applied, if it still is the one, and its generation still may.
    /// `standing` is read in the transaction that keeps the row.
    pub fn built(
        &mut self,
        standing: Standing,
        segment: Nonce,
        disks: Vec<TreeRef>,
    ) -> Vec<ReceiveAction> {
        if !self.is_open_to(standing) {
            return Vec::new();
        }
        let staged = &mut self.row.staged;
        let is_it = |staged: &mut Staged| staged.is_whole && staged.segment == segment;
        let Some(staged) = staged.take_if(is_it) else {
            return Vec::new();
        };
        // What is on its way for another segment was to follow what was applied until now.
        self.due = None;
        self.row.before = self.row.applied;
        self.row.applied = Position {
            seq: staged.to,
            head: staged.head,
        };
        self.row.newest = segment;
        self.row.sealed_unix_s = staged.sealed_unix_s;
        self.row.disks = disks;
        vec![
            ReceiveAction::Keep {
                row: self.row.clone(),
                drops_parts: true,
                part: None,
                cut: staged.cut,
            },
            self.applied(segment),
        ]
    }
}
