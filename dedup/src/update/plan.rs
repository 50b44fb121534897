//! The planner: cuts the new chunks into batches and lists for each what its frame may refer to.

use std::ops::Range;

use crate::update::{BATCH_CHUNKS_MAX, BATCH_PLAIN_BYTES_MAX, NewChunks, Sketch};

/// What to encode as one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPlan {
    /// The chunks, as indexes among the new ones.
    pub chunks: Range<u32>,
    /// Numbers of the chunks that form the prefix, in its order: the parent's, or new ones of earlier batches.
    pub prefix: Vec<u32>,
}

/// Knowledge from outside the content about which of the parent's chunks a new one may resemble.
#[derive(Debug, Clone, Default)]
pub struct Hints {}

impl Hints {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }
}

/// Plans the batches of an update, in order. `sketch_of` gives the sketch of a chunk by number; each is asked for at most once.
pub fn plan<E>(
    numbering: &NewChunks,
    _sketch_of: impl FnMut(u32) -> Result<Sketch, E>,
    _hints: &Hints,
) -> Result<Vec<BatchPlan>, E> {
    let mut plans = Vec::new();
    let (mut first, mut plain_bytes) = (0, 0);
    for (index, (_, len)) in (0..).zip(&numbering.new) {
        let len = *len as usize;
        if plain_bytes + len > BATCH_PLAIN_BYTES_MAX || index - first == BATCH_CHUNKS_MAX {
            plans.push(BatchPlan {
                chunks: first..index,
                prefix: Vec::new(),
            });
            (first, plain_bytes) = (index, 0);
        }
        plain_bytes += len;
    }
    if (first as usize) < numbering.new.len() {
        plans.push(BatchPlan {
            chunks: first..numbering.new.len() as u32,
            prefix: Vec::new(),
        });
    }
    Ok(plans)
}
