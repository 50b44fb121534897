//! Encoding a planned batch, and how much processor time that is worth.

use bytes::Bytes;

use crate::update::frame::{self, Strength};
use crate::update::{BatchPlan, NewChunks, UpdateBatch};

/// Seconds of one core that an update may take to encode, as long as the weakest effort does not take more.
const CORE_SECONDS_MAX: f64 = 120.0;

/// Measured seconds of one core for each plain MB (10⁶ bytes), prefixes included, and what they buy; strongest first.
const STRENGTHS: [(f64, Strength); 4] = [
    (0.800, Strength::new(16, 22, 24)),
    (0.060, Strength::new(12, 23, 24)),
    (0.038, Strength::new(9, 22, 22)),
    (0.020, Strength::new(3, 22, 22)),
];

/// How much processor time an update is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    strength: Strength,
}

impl Effort {
    /// The least: what keeps up with a branch that waits.
    pub fn least() -> Self {
        Self {
            strength: STRENGTHS[STRENGTHS.len() - 1].1,
        }
    }

    /// The most that takes an update of `new_bytes` plain bytes in all no longer than two minutes of one core: small updates are the
    /// frequent ones, and are encoded once for all branches.
    pub fn for_update(new_bytes: u64) -> Self {
        let megabytes = new_bytes as f64 / 1e6;
        STRENGTHS
            .iter()
            .find(|(seconds, _)| seconds * megabytes <= CORE_SECONDS_MAX)
            .map_or(Self::least(), |(_, strength)| Self {
                strength: *strength,
            })
    }
}

/// Encodes one batch. `read` gives the plain bytes of a chunk by number, as long as the numbering says.
///
/// The result's prefix is the planned one, or empty where that does not pay. Holds the prefix, the plain bytes, the packed ones and
/// zstd's tables, at most 16 + 7.5 + 7.5 + 100 MiB.
pub fn encode_batch<E>(
    plan: &BatchPlan,
    numbering: &NewChunks,
    mut read: impl FnMut(u32) -> Result<Bytes, E>,
    effort: Effort,
) -> Result<UpdateBatch, E> {
    let mut join = |numbers: &mut dyn Iterator<Item = u32>| -> Result<Vec<u8>, E> {
        let mut joined = Vec::new();
        for number in numbers {
            joined.extend_from_slice(&read(number)?);
        }
        Ok(joined)
    };
    let prefix = join(&mut plan.prefix.iter().copied())?;
    let plain = join(
        &mut plan
            .chunks
            .clone()
            .map(|index| numbering.number_of_new(index)),
    )?;
    let (packed, pays) = pack(&prefix, &plain, effort.strength);
    Ok(UpdateBatch {
        first: plan.chunks.start,
        count: plan.chunks.end - plan.chunks.start,
        prefix: if pays {
            plan.prefix.clone()
        } else {
            Vec::new()
        },
        packed: packed.into(),
    })
}

/// The frame, and whether it was made with the prefix.
///
/// A prefix costs the receiver reads of its cache and ties the batch to chunks that may be evicted. Whether it pays is only in doubt
/// where it did not do much, and what did not get smaller with it is quick to pack without.
fn pack(prefix: &[u8], plain: &[u8], strength: Strength) -> (Vec<u8>, bool) {
    let with = frame::pack(prefix, plain, strength);
    if prefix.is_empty() || with.len() < plain.len() / 2 {
        return (with, !prefix.is_empty());
    }
    let without = frame::pack(&[], plain, strength);
    if without.len() - without.len() / 50 <= with.len() {
        (without, false)
    } else {
        (with, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_updates_get_more_and_huge_ones_the_least() {
        let levels = [1 << 20, 500 << 20, 2 << 30, 1 << 40].map(Effort::for_update);
        assert_eq!(levels.map(|e| e.strength.level()), [16, 12, 9, 3]);
        assert_eq!(Effort::for_update(u64::MAX), Effort::least());
    }
}
