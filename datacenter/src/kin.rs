//! Which chunks of a version took the place of which of its parent's: what the planner of the update between them found out is kept, so
//! that what was learned of the parent's boots can be carried to the version at any time.
//!
//! Invariant: a hint. Without it, or with a wrong one, a carried profile names fewer of the chunks that a boot touches.

use dedup::Manifest;
use dedup::update::NewChunks;
use dedup_protocol::profile::Kin;

use crate::catalog::rows::ChunkKinRow;
use crate::catalog::{CatalogError, Tx};
use crate::datacenter::Datacenter;
use crate::images::StoreNodes;
use crate::problem::describe;
use crate::update::Pair;

/// Most new chunks of a version of which this is kept: 16 GiB of average chunks, a row of 4 MiB at most.
const CHUNKS_MAX: usize = 1 << 20;

/// New chunks that one of the parent's may stand for. A chunk that hundreds resemble says nothing of any of them.
const HEIRS_MAX: usize = 4;

fn steps(kin: &[Option<u32>]) -> Vec<i64> {
    let mut before = 0;
    let step = |number: &Option<u32>| {
        let number = number.map_or(0, |n| i64::from(n) + 1);
        number - std::mem::replace(&mut before, number)
    };
    kin.iter().map(step).collect()
}

/// The parent's numbers that [`steps`] was given; none where a step leads out of the range of numbers.
fn numbers(steps: &[i64]) -> impl Iterator<Item = Option<u32>> + '_ {
    let mut number = 0i64;
    steps.iter().map(move |step| {
        number = number.saturating_add(*step);
        u32::try_from(number.checked_sub(1)?).ok()
    })
}

impl Datacenter {
    /// The planner of an update from a version's parent found `kin`: it is kept, and what is known of the parent's boots is carried to
    /// the version by it. That it cannot be kept is logged.
    pub(crate) fn learn_kin(&self, pair: Pair, kin: &[Option<u32>]) {
        if kin.len() > CHUNKS_MAX {
            return;
        }
        let row = ChunkKinRow {
            parent: pair.parent,
            steps: steps(kin),
        };
        let kept = self.catalog().transact(|tx: &mut Tx<'_>| {
            tx.put(&pair.version, &row);
            Ok::<_, CatalogError>(())
        });
        match kept {
            Ok(()) => self.carry_profile(pair.parent, pair.version),
            Err(error) => {
                tracing::warn!(version = %pair.version, error = describe(&error), "which chunks took the place of which is not kept");
            }
        }
    }

    /// What took the place of the parent's chunks, as far as that is known.
    pub(crate) fn kin(
        &self,
        pair: Pair,
        parent: &Manifest,
        version: &Manifest,
    ) -> Result<Kin, CatalogError> {
        let mut kin = Kin::new();
        let row: Option<ChunkKinRow> = self.catalog().read(|tx| tx.get(&pair.version))?;
        let Some(row) = row.filter(|row| row.parent == pair.parent) else {
            return Ok(kin);
        };
        let numbering = match NewChunks::of_manifests(&StoreNodes(self), parent, version) {
            Ok(numbering) if numbering.new.len() == row.steps.len() => numbering,
            // Whoever carries reads the same manifests next, and says what is wrong with them.
            _ => return Ok(kin),
        };
        for ((new, _), number) in numbering.new.iter().zip(numbers(&row.steps)) {
            let old = number.and_then(|n| numbering.parent.get(n as usize));
            if let Some((old, _)) = old {
                let heirs = kin.entry(*old).or_default();
                if heirs.len() < HEIRS_MAX {
                    heirs.push(*new);
                }
            }
        }
        Ok(kin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_lead_back_to_the_numbers_and_foreign_ones_to_none() {
        let kin = [Some(7), None, None, Some(0), Some(u32::MAX), Some(3)];
        assert_eq!(numbers(&steps(&kin)).collect::<Vec<_>>(), kin);
        let wild = [i64::MAX, i64::MAX, i64::MIN, i64::MIN, i64::MIN];
        assert!(numbers(&wild).all(|number| number.is_none()));
    }
}
