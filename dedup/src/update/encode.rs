//! Encoding a planned batch.

use bytes::Bytes;

use crate::update::{BatchPlan, NewChunks, UpdateBatch, frame};

/// How much processor time an update is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    level: i32,
}

impl Effort {
    /// A zstd level, 1 to 19.
    pub fn level(level: i32) -> Self {
        Self {
            level: level.clamp(1, 19),
        }
    }

    /// What an update of `new_bytes` plain bytes in all is worth.
    pub fn for_update(_new_bytes: u64) -> Self {
        Self::level(9)
    }
}

/// Encodes one batch. `read` gives the plain bytes of a chunk by number.
pub fn encode_batch<E>(
    plan: &BatchPlan,
    numbering: &NewChunks,
    mut read: impl FnMut(u32) -> Result<Bytes, E>,
    effort: Effort,
) -> Result<UpdateBatch, E> {
    let mut prefix = Vec::new();
    for number in &plan.prefix {
        prefix.extend_from_slice(&read(*number)?);
    }
    let mut plain = Vec::new();
    for index in plan.chunks.clone() {
        plain.extend_from_slice(&read(numbering.number_of_new(index))?);
    }
    Ok(UpdateBatch {
        first: plan.chunks.start,
        count: plan.chunks.end - plan.chunks.start,
        prefix: plan.prefix.clone(),
        packed: frame::pack(&prefix, &plain, effort.level).into(),
    })
}
