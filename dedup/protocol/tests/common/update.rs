//! An update in memory: made with the real planner and encoder, growing as a datacenter's does, served by the real responder.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;

use bytes::Bytes;
use dedup::update::{BatchPlan, Effort, NewChunks, encode_batch, plan, sketch};
use dedup::{ChunkId, VersionId};
use dedup_protocol::records::Tree;
use dedup_protocol::server::AnswerError;
use dedup_protocol::update::{Next, UpdateResponder, UpdateSource, check_update};
use dedup_protocol::wire::{BatchSize, GetUpdate, Message};

use super::{Datacenter, Missing};

pub struct MemUpdate {
    pub numbering: NewChunks,
    pub plans: Vec<BatchPlan>,
    /// Encoded batches, each with whether it is there already.
    pub batches: RefCell<Vec<(bool, Bytes)>>,
    pub planned: Cell<bool>,
}

/// The chunks of a version's disk, in disk order.
pub fn shown(dc: &Datacenter, version: VersionId) -> Vec<(ChunkId, u32)> {
    let manifest = dc.manifest(version, Tree::Disk);
    let leaves = (0..manifest.leaves.len()).map(|index| manifest.leaf(&dc, index).unwrap());
    leaves
        .flat_map(|leaf| leaf.chunks().collect::<Vec<_>>())
        .collect()
}

impl MemUpdate {
    /// Of `version`, for holders of `parent`, in batches of at most `chunks_max`. `more` gives each batch further prefix chunks.
    pub fn new(
        dc: &Datacenter,
        parent: VersionId,
        version: VersionId,
        chunks_max: u32,
        mut more: impl FnMut(&NewChunks, u32) -> Vec<u32>,
    ) -> Self {
        let numbering = NewChunks::between(shown(dc, parent), shown(dc, version)).unwrap();
        let read = |number| {
            let (id, _) = numbering.number(number).unwrap();
            Ok::<_, Infallible>(dc.chunks[&id].clone())
        };
        let sketched = |number| read(number).map(|bytes| sketch(&bytes));
        let whole = plan(&numbering, sketched).unwrap().batches;
        // A small disk is one batch of the planner's; what is to be tested is many.
        let mut plans = Vec::new();
        for plan in whole {
            for first in plan.chunks.clone().step_by(chunks_max as usize) {
                let own = numbering.number_of_new(first);
                let mut prefix: Vec<u32> =
                    plan.prefix.iter().copied().filter(|n| *n < own).collect();
                for number in more(&numbering, first) {
                    if !prefix.contains(&number) {
                        prefix.push(number);
                    }
                }
                plans.push(BatchPlan {
                    chunks: first..(first + chunks_max).min(plan.chunks.end),
                    prefix,
                });
            }
        }
        let encoded = plans.iter().map(|plan| {
            let batch = encode_batch(plan, &numbering, read, Effort::least()).unwrap();
            let mut bytes = Vec::new();
            batch.encode(&mut bytes);
            (true, Bytes::from(bytes))
        });
        Self {
            batches: RefCell::new(encoded.collect()),
            plans,
            planned: Cell::new(true),
            numbering,
        }
    }

    /// As at its beginning: nothing planned, nothing encoded.
    pub fn forget(&self) {
        self.planned.set(false);
        for batch in self.batches.borrow_mut().iter_mut() {
            batch.0 = false;
        }
    }

    /// The next step of making it.
    pub fn grow(&self) {
        if !self.planned.replace(true) {
            return;
        }
        if let Some(batch) = self.batches.borrow_mut().iter_mut().find(|b| !b.0) {
            batch.0 = true;
        }
    }
}

impl UpdateSource for MemUpdate {
    type Error = Missing;

    fn sizes(&self) -> Result<Option<Vec<BatchSize>>, Missing> {
        let batches = self.batches.borrow();
        let sizes = self
            .plans
            .iter()
            .zip(batches.iter())
            .map(|(plan, (there, bytes))| BatchSize {
                chunks: plan.chunks.end - plan.chunks.start,
                packed_bytes: if *there { bytes.len() as u32 } else { 0 },
            });
        Ok(self.planned.get().then(|| sizes.collect()))
    }

    fn batch(&self, number: u32) -> Result<Option<Bytes>, Missing> {
        let batches = self.batches.borrow();
        let batch = batches.get(number as usize).filter(|(there, _)| *there);
        Ok(batch.map(|(_, bytes)| bytes.clone()))
    }
}

/// All frames that answer `request`; the update grows while they wait for it.
pub fn answer(
    dc: &Datacenter,
    update: &MemUpdate,
    request: &GetUpdate,
) -> Result<Vec<Message>, AnswerError> {
    check_update(&dc, request, |_| true, |_| true)?;
    let mut responder = UpdateResponder::new(update, request);
    let mut frames = Vec::new();
    loop {
        match responder.next_frame()? {
            Next::Frame(frame) => frames.push(frame),
            Next::Later => update.grow(),
            Next::End => return Ok(frames),
        }
    }
}
