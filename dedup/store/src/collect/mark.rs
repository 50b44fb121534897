//! What is reachable: the names of all nodes of all trees, and of the chunks in one slice of the space of names.
//!
//! Names are kept as 128 of their bits. Invariant: every reachable name of the slice is marked; any error ends the collection.

use std::collections::HashSet;

use bytes::Bytes;
use dedup::walk::{Visitor, walk};
use dedup::{Leaf, NodeId, NodeSource};

use super::{CollectPhase, CollectProgress, Control, step};
use crate::chunk_store::Inner;
use crate::error::StoreError;
use crate::pack::{RecordKind, RecordName};

/// Nodes between two calls of the control.
const NODES_PER_STEP: u64 = 256;

/// The marks of one slice.
pub(super) struct Marks {
    nodes: HashSet<u128>,
    chunks: HashSet<u128>,
}

fn wide(id: &[u8; 32]) -> u128 {
    let mut bits = [0; 16];
    bits.copy_from_slice(&id[..16]);
    u128::from_le_bytes(bits)
}

/// First bytes of names in slice `slice` of `slices`: from the first to before the second.
pub(super) fn slice_bounds(slice: u32, slices: u32) -> (u32, u32) {
    (slice * 256 / slices, (slice + 1) * 256 / slices)
}

impl Marks {
    /// Walks all trees, each distinct node once.
    pub(super) fn of(
        inner: &Inner,
        roots: &[NodeId],
        slice: u32,
        slices: u32,
        control: Control<'_>,
    ) -> Result<Self, StoreError> {
        let (from, until) = slice_bounds(slice, slices);
        let total = roots.len() as u64 * u64::from(slices);
        let done = roots.len() as u64 * u64::from(slice);
        let mut marking = Marking {
            marks: Self {
                nodes: HashSet::new(),
                chunks: HashSet::new(),
            },
            from,
            until,
            control,
            progress: CollectProgress {
                phase: CollectPhase::Mark,
                done,
                total,
                io_bytes: 0,
            },
            entered: 0,
            stopped: false,
        };
        let nodes = Nodes(inner);
        for root in roots {
            walk(&nodes, *root, &mut marking).map_err(|e| StoreError::Unmarked {
                root: *root,
                why: with_causes(&e),
            })?;
            marking.progress.done += 1;
            step(&mut *marking.control, marking.progress)?;
            if marking.stopped {
                return Err(StoreError::Stopped);
            }
        }
        Ok(marking.marks)
    }

    pub(super) fn has(&self, name: &RecordName) -> bool {
        let marks = match name.kind {
            RecordKind::Chunk => &self.chunks,
            RecordKind::Node => &self.nodes,
        };
        marks.contains(&wide(&name.id))
    }

    pub(super) fn nodes(&self) -> u64 {
        self.nodes.len() as u64
    }

    pub(super) fn chunks(&self) -> u64 {
        self.chunks.len() as u64
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

struct Marking<'a> {
    marks: Marks,
    from: u32,
    until: u32,
    control: Control<'a>,
    progress: CollectProgress,
    entered: u64,
    /// Once set nothing more is entered, which ends the walk soon.
    stopped: bool,
}

impl Visitor for Marking<'_> {
    fn enter(&mut self, id: NodeId) -> bool {
        self.entered += 1;
        if self.entered.is_multiple_of(NODES_PER_STEP) {
            self.stopped |= (self.control)(&self.progress).is_break();
        }
        !self.stopped && self.marks.nodes.insert(wide(&id.0))
    }

    fn leaf(&mut self, _index: u64, leaf: &Leaf) {
        for (id, _) in leaf.chunks() {
            if (self.from..self.until).contains(&u32::from(id.0[0])) {
                self.marks.chunks.insert(wide(&id.0));
            }
        }
    }
}

/// Nodes as a collection reads them: that one is condemned is for the sweep to put right, not an alarm.
struct Nodes<'a>(&'a Inner);

impl NodeSource for Nodes<'_> {
    type Error = StoreError;

    fn node(&self, id: NodeId) -> Result<Bytes, StoreError> {
        let (record, _) = self.0.record_for_collection(&RecordName::node(id))?;
        let plain = record.decoded()?;
        let actual = self.0.key.node_id(&plain);
        if actual != id {
            return Err(record.damaged(format!("its bytes are those of manifest node {actual}")));
        }
        Ok(plain)
    }
}
