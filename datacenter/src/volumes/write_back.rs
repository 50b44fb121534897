//! Write-back: parts are offered, their missing chunks come, whole segments are applied.
//!
//! Chunks of a part are looked up among all that the store holds, under a hold that lasts until the part is a row; that row names them by a tree
//! of its own, which a collection finds. What comes is proven by name before it is stored. Building a state takes its time and no lock of the volume: leases
//! are renewed and broken meanwhile, and the transaction that applies it reads who may still bring it.

use std::collections::HashMap;
use std::sync::Arc;

use dedup::{BranchId, ChunkId};
use dedup_protocol::client::ChunkExchange;
use dedup_protocol::records::TreeRef;
use dedup_protocol::state::authority::Standing;
use dedup_protocol::state::message::{FenceLease, OfferPart, PartChunks, SegmentApplied};
use dedup_protocol::state::writeback::{
    LineRow, Part, RangeSource, ReceiveAction, ReceiveError, Receiver,
};
use dedup_protocol::state::{Ended, Line, Nonce};
use dedup_protocol::wire::Message;
use dedup_store::Hold;

use super::build::{TreeEditor, chunk_list};
use super::keep::LineChange;
use super::{FORKS_MAX, Machines, OpenLine, StateError, lock};
use crate::catalog::volumes::{BeginRow, GenerationKey, LineKey, PartKey, PartRow, VolumeRow};
use crate::datacenter::Datacenter;

/// What is to be done with a message about a segment.
#[derive(Debug, Default)]
pub struct Received {
    /// What the branch is told, in order.
    pub messages: Vec<Message>,
    /// A segment that is whole: [`Datacenter::finish_segment`] builds and applies it, when the messages are sent.
    pub whole: Option<(Line, Nonce)>,
}

/// A part whose chunks are durable: its number, its ranges, and the tree that names its chunks, if it has any.
type StoredPart = (u32, Vec<u8>, Option<TreeRef>);

impl Datacenter {
    /// Takes a part that is offered.
    pub fn offer_part(&self, branch: BranchId, offer: &OfferPart) -> Result<Received, StateError> {
        let id = offer.line.desktop;
        let volume = self.volume_row(id)?.ok_or(ReceiveError::NotYours)?;
        let part = Part::decode(&offer.ranges, &[volume.began.size_bytes])?;
        let machines = self.machines(id, &volume)?;
        let mut machines = lock(&machines);
        let standing = machines.authority.standing(branch, offer.line.generation);
        let key = LineKey::of(&offer.line);
        if key.fork.is_some() && matches!(standing, Standing::Past(_)) {
            self.open_fork(&mut machines, &offer.line)?;
        }
        let line = machines.lines.get(&key).ok_or(ReceiveError::NotYours)?;
        let mut receiver = line.receiver.clone();
        // Before the look-up: who may not write here learns nothing by it.
        let is_open = match key.fork {
            None => standing != Standing::Unknown,
            Some(_) => matches!(standing, Standing::Past(_)),
        };
        if !is_open {
            return Err(ReceiveError::NotYours.into());
        }
        let hold = self.store().hold();
        let missing = missing(&hold, &part)?;
        let actions = receiver.offer(standing, offer, &part, &missing)?;
        if let [ReceiveAction::Fence(ended)] = actions[..] {
            return Ok(fenced(&offer.line, ended));
        }
        let (is_wanted, is_kept) = (
            actions.iter().any(|a| matches!(a, ReceiveAction::Want(_))),
            actions
                .iter()
                .any(|a| matches!(a, ReceiveAction::Keep { .. })),
        );
        let received = self.perform(&mut machines, &volume, key, receiver, actions, &hold)?;
        // An offer that changes nothing leaves what is on its way, and what that is kept by.
        if let Some(line) = machines.lines.get_mut(&key)
            && (is_wanted || is_kept)
        {
            line.hold = is_wanted.then_some(hold);
        }
        Ok(received)
    }

    /// Takes chunks of the part that was offered last.
    pub fn take_part_chunks(
        &self,
        branch: BranchId,
        frame: &PartChunks,
    ) -> Result<Received, StateError> {
        let id = frame.line.desktop;
        let volume = self.volume_row(id)?.ok_or(ReceiveError::NotYours)?;
        let machines = self.machines(id, &volume)?;
        let mut machines = lock(&machines);
        let standing = machines.authority.standing(branch, frame.line.generation);
        if standing == Standing::Unknown {
            return Err(ReceiveError::NotYours.into());
        }
        let key = LineKey::of(&frame.line);
        let line = machines.lines.get(&key).ok_or(ReceiveError::NotDue)?;
        let expected = line.receiver.expected(frame)?;
        let hold = line.hold.clone().ok_or(ReceiveError::NotDue)?;
        let mut receiver = line.receiver.clone();
        // Of how many bytes they are is known from the part, so nothing is unpacked that is longer.
        let mut exchange = ChunkExchange::new(self.id_key().clone(), expected);
        let chunks = exchange.batch(&frame.batch)?;
        hold.writer().put_chunks(&chunks)?;
        self.store().commit()?;
        let standing = machines
            .authority
            .standing_of(receiver.row().line.generation);
        let actions = receiver.stored(standing, frame.batch.count);
        let is_kept = !actions.is_empty();
        let received = self.perform(&mut machines, &volume, key, receiver, actions, &hold)?;
        if let Some(line) = machines.lines.get_mut(&key).filter(|_| is_kept) {
            line.hold = None;
        }
        Ok(received)
    }

    /// Builds a segment that is whole and applies it; long. Answers what the branch is told: nothing if it is none any more.
    pub fn finish_segment(&self, line: Line, segment: Nonce) -> Result<Vec<Message>, StateError> {
        let id = line.desktop;
        let Some(volume) = self.volume_row(id)? else {
            return Ok(Vec::new());
        };
        let key = LineKey::of(&line);
        let machines = self.machines(id, &volume)?;
        let building = match lock(&machines).lines.get(&key) {
            Some(open) => Arc::clone(&open.building),
            None => return Ok(Vec::new()),
        };
        // Whoever comes second finds it applied.
        let _turn = lock(&building);
        let (row, standing) = {
            let machines = lock(&machines);
            let Some(open) = machines.lines.get(&key) else {
                return Ok(Vec::new());
            };
            let row = open.receiver.row().clone();
            let standing = machines.authority.standing_of(row.line.generation);
            (row, standing)
        };
        if row.newest == segment {
            return Ok(vec![Message::SegmentApplied(SegmentApplied {
                line: row.line,
                segment,
                at: row.applied,
            })]);
        }
        let is_it = row
            .staged
            .as_ref()
            .is_some_and(|staged| staged.is_whole && staged.segment == segment);
        if !is_it {
            return Ok(Vec::new());
        }
        if let (Standing::Past(ended), None) = (standing, key.fork) {
            return Ok(fenced(&line, ended).messages);
        }
        // From the first node that is put until the state is a row no collection touches what it is made of.
        let hold = self.store().hold();
        let tree = self.build_state(&hold, key, &row)?;
        self.store().commit()?;
        let mut machines = lock(&machines);
        let Some(open) = machines.lines.get(&key) else {
            return Ok(Vec::new());
        };
        let mut receiver = open.receiver.clone();
        let generation = receiver.row().line.generation;
        let standing = machines.authority.standing_of(generation);
        if let (Standing::Past(ended), None) = (standing, key.fork) {
            return Ok(fenced(&line, ended).messages);
        }
        let actions = receiver.built(standing, segment, vec![tree]);
        let received = self.perform(&mut machines, &volume, key, receiver, actions, &hold)?;
        Ok(received.messages)
    }

    /// Finishes all segments that a crash left whole; long. Answers how many.
    pub fn finish_segments(&self) -> Result<usize, StateError> {
        let mut finished = 0;
        let mut after: Option<LineKey> = None;
        loop {
            let rows = self
                .catalog()
                .read(|tx| tx.list::<LineRow>(&[], after.as_ref(), 1024))?;
            let Some((last, _)) = rows.last() else {
                return Ok(finished);
            };
            after = Some(*last);
            for (_, row) in &rows {
                let Some(staged) = row.staged.as_ref().filter(|staged| staged.is_whole) else {
                    continue;
                };
                match self.finish_segment(row.line, staged.segment) {
                    Ok(_) => finished += 1,
                    Err(error) => {
                        tracing::error!(volume = %row.line.desktop, error = crate::problem::describe(&error), "a segment that is whole could not be applied; it is tried again when its branch offers it again");
                    }
                }
            }
        }
    }

    /// Opens a fork's line, unless it is; its generation has ended, and was the branch's that offers.
    fn open_fork(&self, machines: &mut Machines, line: &Line) -> Result<(), StateError> {
        let key = LineKey::of(line);
        if machines.lines.contains_key(&key) {
            return Ok(());
        }
        let generation_of = |key: &LineKey| key.fork.map(|(generation, _)| generation);
        let forks = machines.lines.keys().filter_map(generation_of);
        if forks.filter(|of| *of == line.generation).count() >= FORKS_MAX {
            return Err(StateError::Forks);
        }
        let begin_key = GenerationKey {
            volume: line.desktop,
            generation: line.generation,
        };
        let begin: Option<BeginRow> = self.catalog().read(|tx| tx.get(&begin_key))?;
        let begin = begin.ok_or(ReceiveError::NotYours)?;
        let row = LineRow::new(*line, vec![begin.tree]);
        machines.lines.insert(key, OpenLine::open(row, false));
        Ok(())
    }

    /// Does what `receiver`, a step further than the one of the line, has decided; then it takes that one's place.
    fn perform(
        &self,
        machines: &mut Machines,
        volume: &VolumeRow,
        key: LineKey,
        receiver: Receiver,
        actions: Vec<ReceiveAction>,
        hold: &Hold,
    ) -> Result<Received, StateError> {
        let mut received = Received::default();
        for action in actions {
            match action {
                ReceiveAction::Keep {
                    row,
                    drops_parts,
                    part,
                    cut,
                } => {
                    let before = machines.lines.get(&key).and_then(|line| line.kept.clone());
                    let change = LineChange {
                        before,
                        row,
                        drops_parts,
                        part: self.stored_part(volume, part, hold)?,
                        cut,
                    };
                    self.keep_step(machines, key, change, hold)?;
                }
                // From the row, below: also if a part is offered again of a segment that is whole already.
                ReceiveAction::Build { .. } => {}
                ReceiveAction::Want(want) => received.messages.push(Message::WantChunks(want)),
                ReceiveAction::Staged(staged) => {
                    received.messages.push(Message::PartStaged(staged));
                }
                ReceiveAction::Applied(applied) => {
                    if key.fork.is_none() {
                        machines.authority.reassured();
                    }
                    received.messages.push(Message::SegmentApplied(applied));
                }
                ReceiveAction::Restart(restart) => {
                    received.messages.push(Message::RestartSegment(restart));
                }
                ReceiveAction::Doubt(generation) => {
                    let asked = self.doubt(machines, key.volume, volume, generation)?;
                    received.messages.extend(asked);
                }
                // Alone, and answered to whoever offered.
                ReceiveAction::Fence(_) => {}
            }
        }
        let row = receiver.row();
        let staged = row.staged.as_ref().filter(|staged| staged.is_whole);
        received.whole = staged.map(|staged| (row.line, staged.segment));
        if let Some(line) = machines.lines.get_mut(&key) {
            line.receiver = receiver;
        }
        Ok(received)
    }

    /// Makes a part's chunks durable and gives them a tree, so that its row can be kept.
    fn stored_part(
        &self,
        volume: &VolumeRow,
        part: Option<(u32, Vec<u8>)>,
        hold: &Hold,
    ) -> Result<Option<StoredPart>, StateError> {
        let Some((number, ranges)) = part else {
            return Ok(None);
        };
        let chunks = Part::decode(&ranges, &[volume.began.size_bytes])?.chunks();
        let tree = chunk_list(self, &hold.writer(), &chunks)?;
        // Also chunks that somebody else put and has not committed.
        self.store().commit()?;
        Ok(Some((number, ranges, tree)))
    }

    fn keep_step(
        &self,
        machines: &mut Machines,
        key: LineKey,
        change: LineChange,
        hold: &Hold,
    ) -> Result<(), StateError> {
        let cut = self.keep_line(key.volume, &change).inspect_err(|error| {
            // It may be on the disk all the same.
            if matches!(error, StateError::Catalog(_)) {
                hold.clone().keep();
            }
        })?;
        if let Some(number) = cut {
            tracing::info!(volume = %key.volume, number, "snapshot cut");
        }
        if let Some(line) = machines.lines.get_mut(&key) {
            line.kept = Some(change.row);
        }
        Ok(())
    }

    fn build_state(
        &self,
        hold: &Hold,
        line: LineKey,
        row: &LineRow,
    ) -> Result<TreeRef, StateError> {
        let tree = row.disks.first().ok_or(StateError::Stale)?;
        let mut editor = TreeEditor::new(self, hold, tree)?;
        let parts = row.staged.as_ref().map_or(0, |staged| staged.parts);
        for part in 0..parts {
            let key = PartKey { line, part };
            let kept: Option<PartRow> = self.catalog().read(|tx| tx.get(&key))?;
            let kept = kept.ok_or(StateError::Stale)?;
            for range in Part::decode(&kept.ranges, &[tree.size_bytes])?.ranges() {
                editor.show(range)?;
            }
        }
        Ok(editor.finish()?)
    }
}

/// Indexes of the part's chunks that are not here, ascending; those that are stay while `hold` lives.
fn missing(hold: &Hold, part: &Part) -> Result<Vec<u16>, StateError> {
    let chunks = part.chunks();
    let told: HashMap<ChunkId, u32> = chunks.iter().copied().collect();
    for range in part.ranges() {
        if let RangeSource::Chunk(id) = range.source
            && let Some(len) = told.get(&id)
            && u64::from(*len) != range.len
        {
            return Err(StateError::Length {
                id,
                told: range.len as u32,
                len: *len,
            });
        }
    }
    let ids: Vec<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
    let lengths = hold.chunk_lengths(&ids)?;
    let mut missing = Vec::new();
    for (index, ((id, told), len)) in (0..).zip(chunks.into_iter().zip(lengths)) {
        match len {
            None => missing.push(index),
            Some(len) if len == told => {}
            Some(len) => return Err(StateError::Length { id, told, len }),
        }
    }
    Ok(missing)
}

fn fenced(line: &Line, ended: Ended) -> Received {
    let fence = FenceLease {
        desktop: line.desktop,
        generation: line.generation,
        ended,
    };
    Received {
        messages: vec![Message::FenceLease(fence)],
        whole: None,
    }
}
